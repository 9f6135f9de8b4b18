"""A cluster of the emulator from its start to its end: processes, ports, and what goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blockbuster import BlockBuster
from support.emulator_processes import emulator_pid, processes, until_gone
from support.raw_client import RawClient

import aioentra_redis
from aioentra_redis.emulator import Emulator, EmulatorError
from aioentra_redis.emulator import _fleet as fleet_module
from aioentra_redis.emulator._fleet import Fleet
from aioentra_redis.emulator._options import Options
from aioentra_redis.emulator._server import Server, find_server
from aioentra_redis.emulator._settings import Settings

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

ROOT = Path(aioentra_redis.__file__).parents[1]
PER_SERVER = 2
"""Processes: the server and the shell that watches over it."""

PARENT = """
import asyncio
from aioentra_redis.emulator import Emulator

async def main():
    async with Emulator(profile="amr-oss") as emulator:
        await emulator.kill_node(2)
        await emulator.add_node()
        print(emulator.ca_file, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_life():
    async with Emulator(profile="amr-oss", primaries=1, replicas=2) as emulator:
        directory = str(Path(emulator.ca_file).parent)
        assert emulator.profile == "amr-oss"
        assert [each.primary for each in await emulator.nodes()] == [None, 1, 1]
        found = await asyncio.to_thread(processes, directory)
        assert len(found) == 3 * PER_SERVER
        await emulator.kill_node(2)
        assert len(await asyncio.to_thread(processes, directory)) == 2 * PER_SERVER
    await asyncio.to_thread(until_gone, directory)


async def test_it_ends_with_its_parent_however_that_ends():
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    directory = str(Path((await parent.stdout.readline()).decode().strip()).parent)
    assert len(await asyncio.to_thread(processes, directory)) == 6 * PER_SERVER
    parent.kill()
    await parent.wait()
    await asyncio.to_thread(until_gone, directory)


async def test_the_servers_end_with_the_emulator_however_that_ends():
    async with Emulator(profile="amr-oss", primaries=2, replicas=0) as emulator:
        directory = str(Path(emulator.ca_file).parent)
        os.kill(await asyncio.to_thread(emulator_pid, directory), signal.SIGKILL)
        await asyncio.to_thread(until_gone, directory, files=False)
    await asyncio.to_thread(until_gone, directory)


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.2])
async def test_cancelling_a_start_leaves_nothing(seconds: float):
    """While processes start, while the cluster forms, and somewhere between."""
    before = await asyncio.to_thread(emulators)
    emulator = Emulator(profile="amr-oss")
    starting = asyncio.create_task(emulator.start())
    await asyncio.sleep(seconds)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    async with asyncio.timeout(10):
        while await asyncio.to_thread(emulators) - before:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)


async def test_cancelling_a_servers_start_ends_it_with_its_supervisor(
    tmp_path: Path, no_blocking_calls: BlockBuster
):
    """A supervisor that is killed while it is being started would leave the server behind."""
    no_blocking_calls.deactivate()
    for turn in range(16):
        server = Server(find_server(None), tmp_path, blocked_commands=())
        starting = asyncio.create_task(server.start({}))
        await asyncio.sleep(turn * 0.0005)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not server.running
    await asyncio.sleep(0.1)
    assert await asyncio.to_thread(processes, str(tmp_path)) == []


def emulators() -> set[int]:
    """Processes that work for a child of ours in a private directory of the emulator's."""
    family = descendants(os.getpid())
    return {pid for pid in processes("/tmp") if pid in family}


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            found |= {child} | descendants(child)
    return found


async def test_a_server_that_ends_by_itself():
    """It counts as one that does not run, and can be started again."""
    async with Emulator(profile="amr-oss", primaries=1, replicas=1) as emulator:
        directory = Path(emulator.ca_file).parent / "node-1"
        for pid in await asyncio.to_thread(processes, str(directory)):
            if "valkey" in os.readlink(f"/proc/{pid}/exe"):
                os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while (await emulator.nodes())[0].running:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)
        await emulator.start_node(1)
        assert len(await asyncio.to_thread(processes, str(directory))) == PER_SERVER


# -------------------------------------------------------------------------------------------- ports


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("which", [0, 1], ids=["for-clients", "for-the-bus"])
async def test_a_port_that_somebody_was_quicker_to_take(
    which: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_blocking_calls: BlockBuster,
):
    no_blocking_calls.deactivate()  # it runs in our process for once
    free, asked = fleet_module.free_ports, 0

    def ports() -> tuple[int, int]:
        nonlocal asked
        asked += 1
        found = list(free())
        if asked == 1:
            found[which] = taken
        return found[0], found[1]

    monkeypatch.setattr(fleet_module, "free_ports", ports)
    options = Options(Settings(policy="default"), profile="amr-oss", primaries=1, replicas=0)
    with taken_port() as taken:
        fleet = Fleet(options, find_server(None), tmp_path)
        try:
            await fleet.start({})
            assert asked == 2
            [node] = await fleet.nodes()
            assert node.slots == ((0, 16383),)
        finally:
            await fleet.aclose()


async def test_ports_that_are_always_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_blocking_calls: BlockBuster
):
    no_blocking_calls.deactivate()
    options = Options(Settings(policy="default"), profile="amr-oss", primaries=1, replicas=0)
    with taken_port() as taken:
        monkeypatch.setattr(fleet_module, "free_ports", lambda: (taken, taken + 1))
        fleet = Fleet(options, find_server(None), tmp_path)
        with pytest.raises(EmulatorError, match="ddress already in use"):
            await fleet.start({})
        await fleet.aclose()
    assert await asyncio.to_thread(processes, str(tmp_path)) == []


# ------------------------------------------------------------------------------------------ servers


async def test_a_server_that_knows_no_ports_for_clients(tmp_path: Path):
    """Those before Valkey 9.1 don't: what clients are told is where peers would come, too."""
    old = tmp_path / "server"
    old.write_text(
        "#!/bin/sh\n"
        "echo '*** FATAL CONFIG FILE ERROR ***'\n"
        "echo \">>> 'cluster-announce-client-port 1'\"\n"
        "echo 'Bad directive or wrong number of arguments'\n"
        "exit 1\n"
    )
    old.chmod(0o700)
    with pytest.raises(EmulatorError, match=r"needs Valkey 9\.1 or later"):
        async with Emulator(profile="amr-oss", server=str(old)):
            pass


async def test_nobody_gets_past_the_fronts(tmp_path: Path, no_blocking_calls: BlockBuster):
    """The ports at which servers talk to each other let nobody in without their secret."""
    no_blocking_calls.deactivate()
    options = Options(Settings(policy="default"), profile="amr-oss", primaries=1, replicas=0)
    fleet = Fleet(options, find_server(None), tmp_path)
    try:
        await fleet.start({"someone": "default"})
        [server] = fleet.cluster.running.values()  # type: ignore[union-attr]
        assert server.membership is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", server.membership.port)
        for command, refusal in (
            (b"PING\r\n", b"-NOAUTH"),
            (b"AUTH x\r\n", b"-WRONGPASS"),
            (b"AUTH someone refused\r\n", b"-WRONGPASS"),
            (b"PSYNC ? -1\r\n", b"-NOAUTH"),
        ):
            writer.write(command)
            assert (await reader.readline()).startswith(refusal)
        writer.close()
        await writer.wait_closed()
    finally:
        await fleet.aclose()


async def test_two_at_a_time():
    async with (
        Emulator(profile="amr-oss", replicas=0) as one,
        Emulator(profile="amr-oss", replicas=0) as other,
    ):
        ports = [{each.port for each in await emulator.nodes()} for emulator in (one, other)]
        assert not ports[0] & ports[1]
        oid = one.service_principal.object_id
        async with RawClient(other, tls=True) as client:
            kind, _ = await client.call("AUTH", oid, await one.issue_token())
            assert kind == "-"  # each has its own keys
