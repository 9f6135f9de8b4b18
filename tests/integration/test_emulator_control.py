"""Starting, stopping, restarting, resetting: the emulator as a process under control."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis.asyncio
from support.emulator_processes import emulator_pid, processes, until_gone
from support.raw_client import RawClient

import aioentra_redis
from aioentra_redis.emulator import Emulator, EmulatorError
from aioentra_redis.emulator.__main__ import main

pytestmark = pytest.mark.emulator

OK = ("+", b"OK")
ROOT = Path(aioentra_redis.__file__).parents[1]


async def signed_in(emulator: Emulator, client: RawClient) -> None:
    oid = emulator.service_principal.object_id
    assert await client.call("AUTH", oid, await emulator.issue_token()) == OK


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


# ----------------------------------------------------------------------------------- start and end


@needs_proc
async def test_a_life():
    emulator = Emulator(token_lifetime=7)
    async with emulator:
        directory = str(Path(emulator.ca_file).parent)
        assert emulator.url.startswith("rediss://localhost:")
        assert emulator.plaintext_url.startswith("redis://127.0.0.1:")
        assert repr(emulator) == f"<Emulator {emulator.url}>"
        assert emulator.server_version.startswith("Valkey ")
        async with RawClient(emulator) as client:
            await signed_in(emulator, client)
        with pytest.raises(EmulatorError, match="started already"):
            await emulator.start()
    with pytest.raises(EmulatorError, match="not running"):
        await emulator.log()
    await emulator.aclose()
    await asyncio.to_thread(until_gone, directory)


@needs_proc
def test_two_lives_without_a_loop():
    emulator = Emulator()
    for _ in range(2):
        with emulator:
            directory = str(Path(emulator.ca_file).parent)
            emulator.reset_blocking()
        until_gone(directory)


def test_it_belongs_to_no_loop(entra_emulator: Emulator):
    for _ in range(2):
        assert asyncio.run(entra_emulator.log()).tokens == []


def test_a_child_that_is_told_nothing_ends_without_a_word():
    """Its parent was interrupted before it had said what it wants."""
    ended = subprocess.run(
        [sys.executable, "-m", "aioentra_redis.emulator", "--supervised"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


async def test_cancelling_a_start_leaves_nothing():
    emulator = Emulator()
    starting = asyncio.create_task(emulator.start())
    await asyncio.sleep(0.1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    async with emulator:
        assert await emulator.connections() == []


async def test_a_start_that_fails_says_why(tmp_path: Path):
    with pytest.raises(EmulatorError, match="no executable server 'no-such-server'"):
        async with Emulator(server="no-such-server"):
            pass
    broken = tmp_path / "server"
    broken.write_text("#!/bin/sh\necho I am broken\nexit 1\n")
    broken.chmod(0o700)
    with pytest.raises(EmulatorError, match=r"did not start\. I am broken"):
        async with Emulator(server=str(broken)):
            pass


async def test_a_port_that_is_taken(entra_emulator: Emulator):
    port = int(entra_emulator.plaintext_url.rpartition(":")[2])
    with pytest.raises(EmulatorError, match="in use"):
        async with Emulator(plaintext_port=port):
            pass


PARENT = """
import asyncio, sys, time
from aioentra_redis.emulator import Emulator

async def main():
    async with Emulator() as emulator:
        print(emulator.ca_file, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@needs_proc
async def test_it_ends_with_its_parent_however_that_ends():
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    directory = str(Path((await parent.stdout.readline()).decode().strip()).parent)
    assert await asyncio.to_thread(processes, directory)
    parent.kill()
    await parent.wait()
    await asyncio.to_thread(until_gone, directory)


@needs_proc
async def test_the_server_ends_with_the_emulator_however_that_ends():
    async with Emulator() as emulator:
        directory = str(Path(emulator.ca_file).parent)
        os.kill(await asyncio.to_thread(emulator_pid, directory), signal.SIGKILL)
        await asyncio.to_thread(until_gone, directory, files=False)
        with pytest.raises(EmulatorError, match="does not answer"):
            await emulator.log()
    await asyncio.to_thread(until_gone, directory)


# ------------------------------------------------------------------------------------ command line


def test_the_command_line(capfd: pytest.CaptureFixture[str]):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "aioentra_redis.emulator",
            "--sign-in",
            "imds",
            "--policy",
            "reader",
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()
    text = "".join(lines)
    assert "for development only" in text
    assert "loopback" in text
    assert "export AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127.0.0.1:" in text
    assert capfd.readouterr().err == ""


def test_the_command_line_says_what_is_missing():
    process = subprocess.run(
        [sys.executable, "-m", "aioentra_redis.emulator", "--server", "no-such-server"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("There is no executable server 'no-such-server'. Install")


def test_the_command_line_refuses_nonsense(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--token-lifetime", "0"])
    assert "token_lifetime must be more than 0 seconds" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- connections


async def test_dropping_connections(entra_emulator: Emulator):
    principal, other = entra_emulator.service_principal, entra_emulator.user_assigned
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(RawClient(entra_emulator, tls=number == 0))
            for number in range(4)
        ]
        for number, client in enumerate(clients):
            identity = other if number == 3 else principal
            token = await entra_emulator.issue_token(identity)
            assert await client.call("AUTH", identity.object_id, token) == OK
        connections = await entra_emulator.connections()
        assert [each.listener for each in connections] == ["tls"] + ["plaintext"] * 3
        first = connections[0].connection
        assert await entra_emulator.drop_connections(connection=first) == 1
        assert await clients[0].ended()
        assert await entra_emulator.drop_connections(object_id=other.object_id) == 1
        assert await clients[3].ended()
        assert await clients[1].call("PING") == ("+", b"PONG")
        assert await entra_emulator.drop_connections() == 2
        assert await clients[1].ended()
        assert await clients[2].ended()
        assert await entra_emulator.connections() == []
    closes = (await entra_emulator.log()).closes
    assert [each.reason for each in closes] == ["dropped"] * 4
    assert {each.object_id for each in closes} == {principal.object_id, other.object_id}


@pytest.mark.parametrize("keep_data", [False, True])
async def test_restarting_the_server(entra_emulator: Emulator, keep_data: bool):
    async with RawClient(entra_emulator, tls=True) as client:
        await signed_in(entra_emulator, client)
        assert await client.call("SET", "key", "value") == OK
        restarting = asyncio.create_task(
            entra_emulator.restart_server(keep_data=keep_data, downtime=1)
        )
        assert await client.ended()
        async with RawClient(entra_emulator) as hasty:
            assert await hasty.ended()
        await restarting
    assert {each.reason for each in (await entra_emulator.log()).closes} == {"server"}
    async with RawClient(entra_emulator) as client:
        await signed_in(entra_emulator, client)
        assert await client.call("GET", "key") == ("$", b"value" if keep_data else None)


async def test_a_restart_that_keeps_data_keeps_all_that_was_answered(entra_emulator: Emulator):
    answered: dict[str, int] = {}

    async def count(key: str) -> None:
        async with RawClient(entra_emulator) as client:
            await signed_in(entra_emulator, client)
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    _, number = await client.call("INCR", key)
                    answered[key] = int(bytes(number))  # type: ignore[arg-type]

    for turn in range(4):
        counters = [asyncio.create_task(count(f"{turn}:{n}")) for n in range(20)]
        while len(answered) < 20 * (turn + 1):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)
        await entra_emulator.restart_server(keep_data=True)
        await asyncio.gather(*counters)
    async with RawClient(entra_emulator) as client:
        await signed_in(entra_emulator, client)
        for key, number in answered.items():
            _, kept = await client.call("GET", key)
            # One more may have been executed whose answer went down with the server.
            assert int(bytes(kept or b"0")) - number in (0, 1)  # type: ignore[arg-type]


async def test_a_restart_keeps_policies(entra_emulator: Emulator):
    oid = entra_emulator.service_principal.object_id
    await entra_emulator.set_policy(oid, "reader")
    await entra_emulator.restart_server()
    async with RawClient(entra_emulator) as client:
        await signed_in(entra_emulator, client)
        kind, text = await client.call("SET", "key", "value")
        assert kind == "-"
        assert isinstance(text, bytes)
        assert text.startswith(b"NOPERM")


async def test_a_policy_for_somebody_new(entra_emulator: Emulator):
    oid = "11111111-0000-4000-8000-000000000001"
    await entra_emulator.set_policy(oid, "contributor")
    await entra_emulator.next_tokens(oid=oid)
    async with RawClient(entra_emulator) as client:
        assert await client.call("AUTH", oid, await entra_emulator.issue_token()) == OK


async def test_bad_arguments(entra_emulator: Emulator):
    with pytest.raises(ValueError, match="must be more than 0"):
        await entra_emulator.configure(token_lifetime=-1)
    with pytest.raises(ValueError, match="unknown access policy"):
        await entra_emulator.set_policy("x", "admin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not an object ID"):
        await entra_emulator.set_policy("x y", "owner")
    with pytest.raises(ValueError, match="unknown kind 'password'"):
        entra_emulator.environ("password")  # type: ignore[arg-type]


async def test_refusals_come_in_numbers(entra_emulator: Emulator):
    oid = entra_emulator.service_principal.object_id
    await entra_emulator.refuse_auth(2)
    token = await entra_emulator.issue_token()
    async with RawClient(entra_emulator) as client:
        replies = [(await client.call("AUTH", oid, token))[0] for _ in range(3)]
    assert replies == ["-", "-", "+"]


async def test_revoking_is_felt_at_the_next_sign_in(entra_emulator: Emulator):
    oid = entra_emulator.service_principal.object_id
    async with RawClient(entra_emulator) as client:
        await signed_in(entra_emulator, client)
        await entra_emulator.revoke(oid)
        assert await client.call("PING") == ("+", b"PONG")
        assert (await client.call("AUTH", oid, await entra_emulator.issue_token()))[0] == "-"
        await entra_emulator.set_policy(oid, "owner")
        await signed_in(entra_emulator, client)


# ------------------------------------------------------------------------------------------- reset


async def test_reset_restores_everything(entra_emulator: Emulator):
    oid = entra_emulator.service_principal.object_id
    stranger = "11111111-0000-4000-8000-000000000002"
    async with RawClient(entra_emulator) as client:
        await signed_in(entra_emulator, client)
        await client.call("SET", "key", "value")
        await client.call("SCRIPT", "LOAD", "return 1")
        await entra_emulator.set_policy(oid, "reader")
        await entra_emulator.set_policy(stranger, "owner")
        await entra_emulator.configure(token_lifetime=5, refresh_in=3)
        await entra_emulator.next_tokens(opaque=True)
        await entra_emulator.refuse_auth()
        await entra_emulator.delay_auth(60)
        await entra_emulator.hang_identity()
        await entra_emulator.reset()
        assert await client.ended()
    log = await entra_emulator.log()
    assert (log.tokens, log.requests, log.auths, log.closes) == ([], [], [], [])
    async with RawClient(entra_emulator) as client:
        await signed_in(entra_emulator, client)
        assert await client.call("DBSIZE") == (":", b"0")
        assert await client.call("SET", "key", "value") == OK
        await entra_emulator.next_tokens(oid=stranger)
        token = await entra_emulator.issue_token()
        assert (await client.call("AUTH", stranger, token))[0] == "-"
    [first, _] = (await entra_emulator.log()).tokens
    assert first.expires_on - first.time > 3500


async def test_the_log_tells_the_story(entra_emulator: Emulator):
    oid = entra_emulator.service_principal.object_id
    token = await entra_emulator.issue_token(lifetime=1)
    async with redis.asyncio.Redis.from_url(
        entra_emulator.plaintext_url, username=oid, password=token
    ) as client:
        await client.ping()
        [connection] = await entra_emulator.connections()
        async with asyncio.timeout(10):
            while not (await entra_emulator.log()).closes:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
    log = await entra_emulator.log()
    [issued], [attempt], [close] = log.tokens, log.auths, log.closes
    assert issued.uti == attempt.uti
    assert issued.expires_on == attempt.expires_on == connection.expires_on
    assert attempt.connection == connection.connection == close.connection
    assert issued.time <= attempt.time <= issued.expires_on <= close.time
    assert token not in repr(log)
    assert token not in json.dumps([repr(each) for each in (issued, attempt, close, connection)])
