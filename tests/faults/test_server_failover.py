"""A planned failover as a cache does it: the replica takes over behind the same address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from support.load import Load
from support.token_fakes import Clock, Credential, source_of

from aioentra_redis import EntraRedis
from aioentra_redis.emulator._server import find_server

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]


class Address:
    """The address that clients know, which leads to the one server or the other."""

    def __init__(self) -> None:
        self.target = 0
        self._wires: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._wires |= {writer, back}
        for each in (self._pass(reader, back), self._pass(there, writer)):
            task = asyncio.create_task(each)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        for each in self._wires:
            each.transport.abort()
        self._wires.clear()


class Pair:
    """A master and a replica, by their ports."""

    def __init__(self, master: int, replica: int) -> None:
        self.master, self.replica = master, replica

    async def fail_over(self) -> None:
        """Let the replica take over, which has every acknowledged write by then."""
        async with plain(self.master) as master, plain(self.replica) as replica:
            async with asyncio.timeout(20):
                while (await master.info("replication"))["connected_slaves"] != 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                await master.execute_command("FAILOVER")
                while (await replica.role())[0] not in ("master", b"master"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                while (await master.role())[0] in ("master", b"master"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        self.master, self.replica = self.replica, self.master


def plain(port: int) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(host="127.0.0.1", port=port)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    program = str(await asyncio.to_thread(find_server, None))
    ports = free_ports(2)
    processes = []
    try:
        for port in ports:
            command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
            command += ["--dir", str(tmp_path), "--dbfilename", f"{port}.rdb"]
            command += ["--repl-diskless-sync-delay", "0"]
            processes.append(
                await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.DEVNULL)
            )
        async with asyncio.timeout(30):
            for port in ports:
                async with plain(port) as client:
                    while True:
                        with contextlib.suppress(redis_exceptions.ConnectionError):
                            # Whatever token: how it is judged is not what this is about.
                            await client.acl_setuser(
                                "oid-1", enabled=True, nopass=True, commands=["+@all"], keys="*"
                            )
                            break
                        await asyncio.sleep(0.05)
            async with plain(ports[1]) as client:
                await client.replicaof("127.0.0.1", ports[0])
                while (await client.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        yield Pair(*ports)
    finally:
        for process in processes:
            process.kill()
            await asyncio.to_thread(process.wait)


async def test_failovers_under_load(pair: Pair, figure: Any) -> None:
    clock = asyncio.get_running_loop().time
    fake = Clock()
    source = source_of(Credential(fake), fake)
    address = Address()
    address.target = pair.master
    async with (
        source,
        address.serve() as port,
        EntraRedis(host="127.0.0.1", port=port, token_source=source) as client,
    ):
        pauses = []
        async with Load(client, 50) as load:
            for _ in range(4):
                await load.more(1500)
                await pair.fail_over()
                # The old master lives on for a moment, as a replica that connections lead to.
                refused = len(load.errors)
                async with asyncio.timeout(10):
                    while len(load.errors) < refused + 50:  # noqa: ASYNC110 - nothing tells
                        await asyncio.sleep(0.005)
                address.target = pair.master
                started = clock()
                address.cut()
                await load.more(100)
                pauses.append(clock() - started)
            await load.more(1500)
        reads = f"{load.reads} of {load.reads + len(load.read_errors)}"
        figure("4 failovers: reads that succeeded", reads, target="100 %")
        figure("4 failovers: writes acknowledged / may have run", f"{load.writes} / {load.maybe}")
        figure("4 failovers: writes told READONLY", len(load.errors))
        figure("4 failovers: acknowledged writes lost, applied twice", len(load.wrong), target="0")
        figure("4 failovers: longest pause after the cut", max(pauses), "s")
        assert load.read_errors == []
        assert load.wrong == []
        assert {type(each) for each in load.errors} == {redis_exceptions.ReadOnlyError}
        assert "read only replica" in str(load.errors[0])
        async with plain(pair.master) as master:
            assert int(await master.get("load:count:0")) > 0
