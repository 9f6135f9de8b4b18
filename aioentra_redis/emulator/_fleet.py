"""The servers, the doors that lead to them, and their life cycle: one server, or a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import shutil
import socket
import ssl
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._cluster import Cluster
from ._door import Door, loopback_sockets, port_of
from ._errors import EmulatorError
from ._front import Backend, Front
from ._options import Options
from ._records import Node
from ._server import PortTakenError, Server
from ._server_configuration import Membership
from ._topology import SLOTS

__all__ = ["Fleet"]

PORTS = range(12_000, 32_000)
"""Where servers of a cluster talk to each other: below the ports that systems give to outgoing
connections, so that none of those is in the way when a server comes back."""

FORMATION = 15.0
"""Seconds in which servers become a cluster, which takes 2. If not, they start again, so often:"""

FORMATIONS = 3

ATTEMPTS = 5
"""How often other ports are tried where somebody else was quicker."""


@dataclass(slots=True, eq=False)
class Member:
    """One server and what leads to it.

    ``doors`` are what closes when it is lost; ``policies`` are those of its users.
    """

    number: int
    port: int
    directory: Path
    server: Server
    policies: dict[str, str]
    sockets: list[socket.socket] = field(default_factory=list)
    doors: list[Door] = field(default_factory=list)

    @property
    def backend(self) -> Backend:
        blocked = frozenset(name.encode() for name in self.server.left_to_front)
        return Backend(self.number, self.server.path, self.server.secret, blocked)


class Fleet:
    """All servers of one emulator.

    ``start`` starts them, ``open`` lets clients in; ``aclose`` ends both, and leaves nothing
    behind however far they came.
    """

    def __init__(self, options: Options, executable: Path, directory: Path) -> None:
        self._options = options
        self._executable = executable
        self._directory = directory
        self._members: dict[int, Member] = {}
        self._last_number = 0
        self._secret = secrets.token_hex(32)
        self._clustered = options.offer.clustered
        self._entry = loopback_sockets(options.port)
        self._entry_doors: list[Door] = []
        self._front: Front | None = None
        self._context: ssl.SSLContext | None = None
        self.port = port_of(self._entry)
        self.plaintext_port: int | None = None
        self._servers: dict[int, Server] = {}
        self.cluster = Cluster(self._servers) if self._clustered else None
        self._beginning: list[Node] = []

    # ------------------------------------------------------------------------------ start and end

    async def start(self, policies: Mapping[str, str]) -> None:
        """Start every server, and form the cluster if they are to be one."""
        if not self._clustered:
            server = self._new_server(self._directory, None)
            self._members[1] = Member(1, self.port, self._directory, server, dict(policies))
            await server.start(policies)
            self._beginning = await self.nodes()
            return
        await self._form(policies)

    async def _form(self, policies: Mapping[str, str]) -> None:
        """Start as many servers as are to be there as those of a new cluster."""
        assert self.cluster is not None
        self._last_number = self._options.primaries * (1 + self._options.replicas)
        for number in range(1, self._last_number + 1):
            if number not in self._members:
                self._new_member(number, policies)
        primaries = list(range(1, self._options.primaries + 1))
        replicas = {
            number: (number - 1) % self._options.primaries + 1
            for number in range(len(primaries) + 1, self._last_number + 1)
        }
        for attempt in range(1, FORMATIONS + 1):
            await _together(map(self._start_member, self._members.values()))
            try:
                async with asyncio.timeout(FORMATION):
                    await self.cluster.form(primaries, replicas)
                break
            except TimeoutError:
                if attempt == FORMATIONS:
                    raise EmulatorError("the servers did not become a cluster") from None
            await self._stop_all()
            self._forget_cluster()
        self._beginning = await self.nodes()

    async def _stop_all(self) -> None:
        await asyncio.gather(*(each.server.stop() for each in self._members.values()))

    def _forget_cluster(self) -> None:
        """Have no server know of any other, before they form a new cluster."""
        if self.cluster is not None:
            self.cluster.forget_all()
        for member in self._members.values():
            member.server.forget_cluster()

    def _new_server(self, directory: Path, membership: Membership | None) -> Server:
        return Server(
            self._executable,
            directory,
            blocked_commands=self._options.blocked,
            databases=self._options.offer.databases,
            membership=membership,
        )

    def _new_member(self, number: int, policies: Mapping[str, str]) -> Member:
        sockets = loopback_sockets(0, v6=False)
        directory = self._directory / f"node-{number}"
        directory.mkdir(mode=0o700, exist_ok=True)
        server = self._new_server(directory, self._membership(port_of(sockets)))
        member = Member(number, port_of(sockets), directory, server, dict(policies), sockets)
        self._members[number] = member
        self._servers[number] = server
        return member

    def _membership(self, client_port: int) -> Membership:
        port, bus_port = free_ports()
        return Membership(
            port=port,
            bus_port=bus_port,
            client_port=client_port,
            secret=self._secret,
            node_timeout=self._options.node_timeout,
        )

    async def _start_member(self, member: Member) -> None:
        """Start a server of a cluster for the first time, at other ports if its own are taken."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await member.server.start(member.policies)
            except PortTakenError:
                if attempt == ATTEMPTS:
                    raise
            member.server.membership = self._membership(member.port)

    async def open(self, front: Front, context: ssl.SSLContext) -> None:
        """Let clients in: at the entry, at every node, and in clear where there is no cluster."""
        self._front, self._context = front, context
        self._entry_doors.append(front.door(self._entry, "tls", self._first_running, context))
        if not self._clustered:
            plaintext = loopback_sockets(self._options.plaintext_port, v6=False)
            self.plaintext_port = port_of(plaintext)
            door = front.door(plaintext, "plaintext", self._first_running)
            self._entry_doors.append(door)
            self._members[1].doors += self._entry_doors
        for door in self._entry_doors:
            await door.accept()
        for member in self._members.values():
            await self._open_member(member)

    async def _open_member(self, member: Member) -> None:
        if self._clustered and not member.doors:
            assert self._front is not None
            door = self._front.door(member.sockets, "tls", lambda: member.backend, self._context)
            member.doors.append(door)
        for door in member.doors:
            await door.accept()

    def _first_running(self) -> Backend:
        """Where the entry leads."""
        members = list(self._members.values())
        return next((each for each in members if each.server.running), members[0]).backend

    async def aclose(self) -> None:
        """Close every door and kill every server."""
        members = self._members.values()
        for door in (*self._entry_doors, *(door for each in members for door in each.doors)):
            door.close()
        for each in (*self._entry, *(each for member in members for each in member.sockets)):
            each.close()  # what has no door yet
        await asyncio.gather(*(each.server.stop() for each in members))

    # ------------------------------------------------------------------------------------ looking

    @property
    def version(self) -> str:
        return self._members[1].server.version

    async def nodes(self) -> list[Node]:
        """Every node in the order of their numbers."""
        if self.cluster is None:
            [member] = self._members.values()
            everything = ((0, SLOTS - 1),)
            running = member.server.running
            return [Node(1, "localhost", member.port, "primary", running, everything)]
        view = await self.cluster.view()
        nodes = []
        for _, member in sorted(self._members.items()):
            node_id = self.cluster.node_id(member.number)
            place = view[node_id]
            nodes.append(
                Node(
                    number=member.number,
                    host="127.0.0.1",
                    port=member.port,
                    role="primary" if place.is_primary else "replica",
                    running=member.server.running,
                    slots=place.slots,
                    primary=self.cluster.number(place.primary) if place.primary else None,
                    node_id=node_id,
                )
            )
        return nodes

    def check(self, node: int | None, *, running: bool = False) -> None:
        """ValueError for the number of a node that there is not, or that is not ``running``."""
        if node is not None and not self._member(node).server.running and running:
            raise ValueError(f"node {node} does not run: start it first")

    def _member(self, number: int) -> Member:
        if number not in self._members:
            known = ", ".join(map(str, sorted(self._members)))
            raise ValueError(f"there is no node {number!r}: there are {known}")
        return self._members[number]

    def _chosen(self, node: int | None) -> list[Member]:
        return list(self._members.values()) if node is None else [self._member(node)]

    # ------------------------------------------------------------------------------------- policy

    async def set_policy(self, object_id: str, policy: str, node: int | None) -> None:
        """Make or change a user on every server, or on one; those that don't run get it later."""
        for member in self._chosen(node):
            if member.server.running:
                await member.server.set_policy(object_id, policy)
            member.policies[object_id] = policy

    # ---------------------------------------------------------------------------------- node loss

    async def restart(
        self, node: int | None, *, keep_data: bool, downtime: float, loading: float
    ) -> None:
        """Kill servers and start them again, with doors open all the while."""
        chosen = self._chosen(node)
        await asyncio.gather(
            *(
                self._restart(each, keep_data=keep_data, downtime=downtime, loading=loading)
                for each in chosen
            )
        )
        if self.cluster is not None and not loading:
            await self.cluster.until(lambda view: True, "all nodes are back")

    async def _restart(
        self, member: Member, *, keep_data: bool, downtime: float, loading: float
    ) -> None:
        server = member.server
        delay = 0
        if keep_data:
            delay = await server.delay_per_key(loading) if loading else 0
            await server.save_and_stop()
        else:
            await server.stop()
            server.forget()
        await asyncio.sleep(downtime)
        await server.start(member.policies, load_delay=delay)
        server.forget()  # it is open by now if it is still being loaded

    async def kill_node(self, node: int) -> None:
        """Kill a server, and refuse connections where it was."""
        member = self._member(node)
        if not member.server.running:
            raise ValueError(f"node {node} does not run")
        for door in member.doors:
            door.refuse()
        await member.server.stop()

    async def start_node(self, node: int) -> None:
        """Start a server that was killed, without its data; in a cluster it copies it again."""
        member = self._member(node)
        if member.server.running:
            raise ValueError(f"node {node} runs already")
        await member.server.start(member.policies)
        await self._open_member(member)
        if self.cluster is not None:
            view = await self.cluster.until(lambda view: True, f"node {node} is back")
            if not view[self.cluster.node_id(node)].is_primary:
                await self.cluster.until_copied(node)

    async def add_node(self, primary: int | None, policies: Mapping[str, str]) -> int:
        """Start a server and take it into the cluster; returns its number."""
        assert self.cluster is not None
        self._last_number = number = self._last_number + 1
        member = self._new_member(number, policies)
        try:
            await self._start_member(member)
            await self._open_member(member)
            await self.cluster.join(number, primary)
        except BaseException:
            await member.server.stop()
            self._remove(member)
            raise
        return number

    async def remove_node(self, node: int) -> None:
        """Kill a server, and have all others forget it."""
        assert self.cluster is not None
        member = self._member(node)
        for door in member.doors:
            door.refuse()
        await member.server.stop()
        await self.cluster.expel(node)
        self._remove(member)

    # -------------------------------------------------------------------------------------- reset

    async def reset(self, policies: Mapping[str, str], *, anew: bool = False) -> None:
        """Back to the beginning: no data, every user's first policy, the first topology.

        Servers go on where nothing has changed; with ``anew`` they are started again in any case.
        """
        if anew or not await self._as_in_the_beginning():
            await self._begin_again(policies)
            return
        for member in self._members.values():
            for object_id, policy in policies.items():
                if member.policies.get(object_id) != policy:
                    await member.server.set_policy(object_id, policy)
            member.policies = dict(policies)
        copies = Counter(each.primary for each in self._beginning)
        for member in self._members.values():
            await member.server.clear(copies=copies[member.number])

    async def _as_in_the_beginning(self) -> bool:
        if self.cluster is None:
            return await self.nodes() == self._beginning
        with contextlib.suppress(EmulatorError):
            await self.cluster.until(lambda view: True, "rest", patience=1.0)
            return await self.nodes() == self._beginning and await self.cluster.closed()
        return False

    async def _begin_again(self, policies: Mapping[str, str]) -> None:
        """Start all servers anew, at the same doors."""
        await self._stop_all()
        for member in list(self._members.values()):
            if member.number > max(each.number for each in self._beginning):
                self._remove(member)
            member.policies = dict(policies)
        self._forget_cluster()
        if self.cluster is None:
            await self._members[1].server.start(policies)
        else:
            await self._form(policies)
        for member in self._members.values():
            await self._open_member(member)

    def _remove(self, member: Member) -> None:
        for door in member.doors:
            door.close()
        shutil.rmtree(member.directory, ignore_errors=True)
        del self._members[member.number], self._servers[member.number]


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all at the same time. If one fails, the others are cancelled, and it raises that one's
    error when all have ended."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens at, just now."""
    found: list[int] = []
    while len(found) < 2:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found[0], found[1]
