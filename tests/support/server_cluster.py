"""A cluster of real servers on this machine: no TLS, no tokens, and every node can be reached.

``async with ServerCluster() as cluster:`` is three primaries with a replica each, in about two
seconds. The nodes know of each other from the start: each gets a ``nodes.conf`` that says who owns
what, so nobody has to meet anybody. No process outlives us, whatever ends us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aioentra_redis.emulator._server import find_server

from .cluster_links import Link, Ports, View, link, view_of

__all__ = ["ClusterNode", "ServerCluster"]

SLOTS = 16_384
HOST = "127.0.0.1"
POLL = 0.02
START_TIMEOUT = 30.0
NODE_TIMEOUT = 5000
"""Milliseconds without an answer until a node is suspected: long enough for a busy machine."""

# The emulator's way of not leaving a server behind: this shell waits for the end of its standard
# input, which is a pipe from us, and takes the server with it. First it says the server's pid.
SUPERVISOR = (
    '"$@" >/dev/null 2>&1 & server=$!; echo "$server"; exec >&- 2>&-; '
    'read -r _; kill -9 "$server" 2>/dev/null; wait "$server"'
)

CONFIGURATION = {
    "bind": HOST,
    "save": '""',
    "appendonly": "no",
    "enable-debug-command": "yes",
    "acl-pubsub-default": "allchannels",
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
}


@dataclass(eq=False)
class ClusterNode:
    """One server of a cluster. It keeps its port and its identity over restarts, not its data."""

    port: int
    bus_port: int
    folder: Path
    id: str = field(default_factory=lambda: secrets.token_hex(20))
    pid: int | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """As redis-py calls its nodes."""
        return f"{HOST}:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether we have started it and not killed it since."""
        return self.process is not None

    def start(self, executable: Path) -> None:
        """Start the server; it doesn't answer yet."""
        assert self.process is None
        command = ["/bin/sh", "-c", SUPERVISOR, "sh", str(executable)]
        self.process = subprocess.Popen(
            [*command, str(self.folder / "server.conf")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline())

    def kill(self) -> None:
        """Kill -9: nothing is said to anybody, the kernel resets the connections."""
        process, self.process = self.process, None
        if process is None:
            return
        assert self.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait()
        process.stdout.close()
        self.pid = None

    def pause(self) -> None:
        """Stop the process without ending it: its connections stay, and nothing answers."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again after ``pause()``."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGCONT)

    def link(self) -> contextlib.AbstractAsyncContextManager[Link]:
        """A connection that calls commands, for ``async with``."""
        return link(HOST, self.port)

    async def call(self, *command: str | bytes | int) -> Any:
        """One command on a connection of its own; the reply as RESP2 has it, errors are raised."""
        async with self.link() as call:
            return await call(*command)

    async def view(self) -> View:
        """The cluster as this node sees it."""
        return view_of((await self.call("CLUSTER", "NODES")).decode())

    def last_words(self) -> str:
        """The end of its log."""
        log = self.folder / "server.log"
        return log.read_text(errors="replace")[-1500:] if log.exists() else "no log"


class ServerCluster:
    """Primaries with ``replicas`` each. ``server`` is the emulator's choice of one, or a path.

    ``settings`` are lines of the servers' configuration, on top or instead of ours; ``users`` may
    sign in with any password, which is what a token is to them; ``ports`` are the nodes', primaries
    first, or any that are free. Also usable without a loop: ``start()`` under ``asyncio.run()``,
    ``stop()`` from anywhere.
    """

    host = HOST

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 1,
        *,
        server: str | None = None,
        node_timeout: int = NODE_TIMEOUT,
        users: Iterable[str] = (),
        settings: Mapping[str, str] | None = None,
        ports: Sequence[int] | None = None,
    ) -> None:
        self._shape = (primaries, replicas)
        self._ports = ports
        self._server = server
        self._users = tuple(users)
        self._settings = {
            **CONFIGURATION,
            "cluster-node-timeout": str(node_timeout),
            **(settings or {}),
        }
        self._executable = Path()
        self._folder: Path | None = None
        self._free: Ports | None = None
        self.nodes: list[ClusterNode] = []

    # -- life ------------------------------------------------------------------------------------

    async def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start all nodes; returns when they agree and serve. Raises RuntimeError if they don't."""
        self._executable = await asyncio.to_thread(find_server, self._server)
        self._folder = Path(tempfile.mkdtemp(prefix="server-cluster-"))
        try:
            self._make_nodes()
            for node in self.nodes:
                node.start(self._executable)
            await self.converged(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill every node and forget its data; waits for their ends."""
        for node in self.nodes:
            node.kill()
        if self._free is not None:
            self._free.let_go()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _make_nodes(self) -> None:
        assert self._folder is not None
        primaries, replicas = self._shape
        count = primaries * (1 + replicas)
        self._free = free = Ports(2 * count)
        ports, bus_ports = self._ports or free[:count], free[count:]
        for number, (port, bus_port) in enumerate(zip(ports, bus_ports, strict=True)):
            folder = self._folder / f"node-{number}"
            folder.mkdir()
            self.nodes.append(ClusterNode(port, bus_port, folder))
        for node in self.nodes:
            settings = {
                **self._settings,
                "port": str(node.port),
                "cluster-port": str(node.bus_port),
                "dir": str(node.folder),
                "logfile": str(node.folder / "server.log"),
            }
            lines = [f"{name} {value}" for name, value in settings.items()]
            lines += [f"user {name} on nopass ~* &* +@all" for name in self._users]
            (node.folder / "server.conf").write_text("\n".join(lines) + "\n")
            (node.folder / "nodes.conf").write_text(self._who_owns_what(node))

    def _who_owns_what(self, myself: ClusterNode) -> str:
        """A node's ``nodes.conf``, as the server itself would write it once all had met."""
        primaries, _ = self._shape
        lines = []
        for number, node in enumerate(self.nodes):
            shard = number % primaries
            flags = "myself," if node is myself else ""
            first, last = SLOTS * shard // primaries, SLOTS * (shard + 1) // primaries - 1
            primary = self.nodes[shard]
            role = (
                f"{flags}master - 0 0 {shard + 1} connected {first}-{last}"
                if number < primaries
                else f"{flags}slave {primary.id} 0 0 {shard + 1} connected"
            )
            address = f"{HOST}:{node.port}@{node.bus_port},,shard-id={primary.id[::-1]}"
            lines.append(f"{node.id} {address} {role}")
        return "\n".join([*lines, f"vars currentEpoch {primaries} lastVoteEpoch 0", ""])

    # -- who is who ------------------------------------------------------------------------------

    @property
    def startup(self) -> tuple[str, int]:
        """Host and port of a living node, to begin with."""
        return HOST, next(node.port for node in self.nodes if node.alive)

    @property
    def url(self) -> str:
        """For ``from_url()``."""
        return "redis://{}:{}".format(*self.startup)

    def node(self, id: str) -> ClusterNode:
        """The node with this id."""
        return next(node for node in self.nodes if node.id == id)

    def at(self, port: int) -> ClusterNode:
        """The node at this port."""
        return next(node for node in self.nodes if node.port == port)

    def living(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.alive]

    async def view(self) -> View:
        """The cluster as the first living node sees it."""
        return await self.living()[0].view()

    async def primaries(self) -> list[ClusterNode]:
        """The primaries that own slots, by their first slot."""
        view = await self.view()
        owners = sorted((min(each.slots), id) for id, each in view.items() if each.slots)
        return [self.node(id) for _, id in owners]

    async def replicas_of(self, primary: ClusterNode) -> list[ClusterNode]:
        """Its living replicas."""
        view = await self.view()
        found = [self.node(id) for id, each in view.items() if each.primary == primary.id]
        return [node for node in found if node.alive]

    async def owner(self, slot: int) -> ClusterNode:
        """The primary that owns a slot."""
        view = await self.view()
        return self.node(next(id for id, each in view.items() if slot in each.slots))

    # -- waiting ---------------------------------------------------------------------------------

    async def converged(self, timeout: float = START_TIMEOUT) -> View:
        """Wait until all living nodes agree, serve, and replicate; returns what they agree on.

        Raises RuntimeError with what they last said, after ``timeout`` seconds.
        """
        told: object = "nothing"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        told = await self._disagreement()
                    except (OSError, EOFError, Link.Error) as error:
                        told = error
                    if told is None:
                        return await self.view()
                    await asyncio.sleep(POLL)
        except TimeoutError:
            logs = "\n".join(node.last_words() for node in self.living())
            raise RuntimeError(f"the nodes don't agree: {told!r}\n{logs}") from None

    async def _disagreement(self) -> object:
        """What keeps the cluster from being converged; None if nothing does."""
        living = self.living()
        views = [await node.view() for node in living]
        for node, view in zip(living, views, strict=True):
            if view != views[0]:
                return {"disagree": (living[0].name, views[0], node.name, view)}
            for other in living:
                if other.id not in view or view[other.id].flags & {"fail", "fail?", "handshake"}:
                    return {"who": node.name, "has not accepted": other.name}
        for node in living:
            if "cluster_state:ok" not in (await node.call("CLUSTER", "INFO")).decode():
                return {"not serving": node.name}
            replication = (await node.call("INFO", "replication")).decode()
            if "master_link_status:down" in replication:
                return {"not replicating": node.name}
            connected = [each for each in living if views[0][each.id].primary == node.id]
            if f"connected_slaves:{len(connected)}" not in replication:
                return {"who": node.name, "has not all replicas": replication}
        return None

    # -- changes ---------------------------------------------------------------------------------

    async def fail_over(self, primary: ClusterNode, *options: str) -> ClusterNode:
        """CLUSTER FAILOVER to a replica; returns it as soon as it calls itself the primary."""
        replica = (await self.replicas_of(primary))[0]
        async with replica.link() as call:
            await call("CLUSTER", "FAILOVER", *options)
            async with asyncio.timeout(20):
                while (await call("ROLE"))[0] != b"master":  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.005)
        return replica

    async def restart(self, node: ClusterNode) -> None:
        """Start a killed node again, empty; returns when it answers and the cluster agrees."""
        node.start(self._executable)
        await self.converged()

    @contextlib.asynccontextmanager
    async def links(self, nodes: Sequence[ClusterNode]) -> AsyncIterator[list[Link]]:
        """Connections to several nodes, to be asked again and again."""
        async with contextlib.AsyncExitStack() as stack:
            yield [await stack.enter_async_context(node.link()) for node in nodes]

    async def tidy(self) -> None:
        """Bring back what a test left: dead nodes, half-moved slots, keys, functions.

        Roles and the owners of slots stay as they are.
        """
        for node in self.nodes:
            if node.alive and node.pid is not None:
                node.go_on()
            if not node.alive:
                node.start(self._executable)
        await self.converged()
        for id, each in (await self.view()).items():
            if each.primary is not None:
                continue  # is told by its primary
            node = self.node(id)
            for slot in (await node.view())[id].open_slots:
                await node.call("CLUSTER", "SETSLOT", slot, "STABLE")
            await node.call("FLUSHALL")
            await node.call("FUNCTION", "FLUSH")
        await self.converged()
