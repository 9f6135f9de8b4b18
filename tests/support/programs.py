"""Programs that have a process to themselves, because they fork it, or measure its memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from aioentra_redis.emulator import Emulator

__all__ = ["FORK", "run_program"]

ROOT = Path(__file__).parents[2]


async def run_program(program: str, emulator: Emulator, *arguments: str) -> str:
    """Run a program against the emulator; returns what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore:This process:DeprecationWarning",  # has threads and forks: what is being tried
        "-c",
        program,
        *arguments,
        env={**os.environ, **emulator.environ("client-secret")},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b""), errors.decode()
    return output.decode()


FORK = """
import asyncio, os, sys, traceback
import redis.asyncio
from aioentra_redis import (
    EntraCredentialProvider, ForkedError, TokenSource, connect, entra_kwargs)

ca, way = sys.argv[1:]

def make():
    return TokenSource.from_client_secret(
        os.environ["AZURE_TENANT_ID"], os.environ["AZURE_CLIENT_ID"],
        os.environ["AZURE_CLIENT_SECRET"])

def client_of(source):
    if way == "connect":
        return connect(token_source=source, ssl_ca_certs=ca, cluster=False)
    signs_in = {"credential_provider": source, "ssl_check_hostname": True} if way == "in_thread" \\
        else entra_kwargs(source)
    return redis.asyncio.Redis.from_url(os.environ["REDIS_URL"], ssl_ca_certs=ca, **signs_in)

async def use(source):
    async with client_of(source) as client:
        assert await client.ping()

async def anew():
    async with make() as source:
        await use(source)

source = EntraCredentialProvider.in_thread(make) if way == "in_thread" else make()
loop = asyncio.new_event_loop()
loop.run_until_complete(use(source))
pid = os.fork()
if pid == 0:
    try:
        if way == "in_thread":
            asyncio.run(use(source))
        else:
            try:
                asyncio.run(use(source))
                os._exit(2)
            except ForkedError:
                asyncio.run(anew())
    except BaseException:
        traceback.print_exc()
        os._exit(3)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0, "the child failed"
loop.run_until_complete(use(source))
loop.run_until_complete(source.aclose())
loop.close()
print("signed in")
"""
"""Its arguments are the CA's file and the way to sign in; "signed in" is what it prints.

The child is told that the source is its parent's, where it is, and signs in with one of its own.
"""
