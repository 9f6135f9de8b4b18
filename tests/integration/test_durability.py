"""WAIT tells the truth: it answers for the writes of its own connection, and runs nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import exceptions as redis_exceptions

from aioentra_redis import CommandRefusedError, EntraRedis
from aioentra_redis.emulator._server import find_server

pytestmark = pytest.mark.emulator


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def server(folder: Path, port: int, *more: str) -> AsyncIterator[None]:
    where = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "")
    program = str(await asyncio.to_thread(find_server, None))
    command = [program, *where, *more]
    process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.DEVNULL)
    try:
        async with EntraRedis(host="127.0.0.1", port=port) as client, asyncio.timeout(20):
            while True:
                with contextlib.suppress(redis_exceptions.ConnectionError):
                    await client.ping()
                    break
                await asyncio.sleep(0.05)
        yield
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def test_wait_is_true_where_it_is_allowed_and_refused_where_it_would_not_be(tmp_path: Path):
    master, replica = free_port(), free_port()
    follow = ("--replicaof", "127.0.0.1", str(master), "--dbfilename", "replica.rdb")
    async with (
        server(tmp_path, master),
        server(tmp_path, replica, *follow),
        EntraRedis(host="127.0.0.1", port=master, socket_timeout=10) as client,
        EntraRedis(host="127.0.0.1", port=replica) as follower,
    ):
        async with asyncio.timeout(30):
            while (await follower.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.1)
            while (await client.info("replication"))["connected_slaves"] != 1:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.1)
        for name in ("WAIT", "WAITAOF"):
            with pytest.raises(CommandRefusedError, match=r"redis\.pipeline\(transaction=False\)"):
                await client.execute_command(name, *([1, 1000] if name == "WAIT" else [0, 1, 1000]))

        async def in_pipeline(timeout: int) -> int:
            pipe = client.pipeline(transaction=False).set("k", "v")
            return int((await pipe.execute_command("WAIT", 1, timeout).execute())[-1])

        async def on_a_connection(timeout: int) -> int:
            async with client.client() as own:
                await own.set("k", "v")
                return int(await own.wait(1, timeout))

        assert [await in_pipeline(5000), await on_a_connection(5000)] == [1, 1]
        # From here on the replica hears nothing, and no answer may claim that it did.
        await follower.execute_command("REPLICAOF", "NO", "ONE")
        await client.set("k", "unheard")
        assert [await in_pipeline(100), await on_a_connection(100)] == [0, 0]
