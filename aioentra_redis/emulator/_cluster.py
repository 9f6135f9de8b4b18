"""Forming a cluster of servers and changing its shape, step by step as operators do.

Every step is a command to one server; what the steps bring about is waited for, until all servers
that run say the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from ._errors import EmulatorError
from ._server import Server
from ._server_configuration import MASTER
from ._topology import View, agreement, has_open_slots, parse_nodes, shares

__all__ = ["Cluster"]

PATIENCE: Final = 40.0
"""Seconds until a cluster that does not come to rest is given up; it takes 2, or a failover, but
on a machine that has no time for it much longer."""

HANDSHAKE: Final = 2.0
"""Seconds until servers are introduced to each other again: they may forget the first time."""

ELECTION: Final = 6.0
"""Seconds until a failover is asked for again: servers give one up after 5."""

POLL_INTERVAL: Final = 0.01

CHUNK: Final = 256
"""Slots that are open at the same time while many move."""

LANES: Final = 32
"""Connections for many commands: each SETSLOT waits for replicas and the disk, as one or many."""

KEYS: Final = 64
"""Keys that move in one step where nobody wants to watch."""

MIGRATE_TIMEOUT: Final = "5000"
"""Milliseconds that the servers give each other to move keys."""


class Cluster:
    """The servers of one cluster by number. ``servers`` is its owner's, who may add and remove."""

    def __init__(self, servers: Mapping[int, Server]) -> None:
        self._servers = servers
        self._ids: dict[int, str] = {}
        self._last: View = {}

    # ---------------------------------------------------------------------------------- looking

    def node_id(self, number: int) -> str:
        """What the cluster calls a node."""
        return self._ids[number]

    def number(self, node_id: str) -> int:
        """The node that the cluster calls so."""
        return next(number for number, each in self._ids.items() if each == node_id)

    @property
    def running(self) -> dict[int, Server]:
        """The servers that run."""
        return {number: each for number, each in self._servers.items() if each.running}

    async def view(self) -> View:
        """The topology as a server that runs sees it, primaries first; as last seen without one."""
        for number in self._primaries_first():
            with contextlib.suppress(OSError, EOFError, EmulatorError):
                self._last = parse_nodes(await self._servers[number].execute("CLUSTER", "NODES"))
                break
        return self._last

    def _primaries_first(self) -> list[int]:
        def is_replica(number: int) -> bool:
            place = self._last.get(self._ids.get(number, ""))
            return place is not None and not place.is_primary

        return sorted(self.running, key=is_replica)

    async def until(
        self, condition: Callable[[View], bool], what: str, *, patience: float = PATIENCE
    ) -> View:
        """Wait until all servers that run are at one, at work, and in the state that is wanted.

        Raises EmulatorError after ``patience`` seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while True:
            view = await self._agreed()
            if view is not None and condition(view):
                self._last = {**self._last, **view}
                return view
            if loop.time() > deadline:
                raise EmulatorError(f"the cluster did not come to this: {what}")
            await asyncio.sleep(POLL_INTERVAL)

    async def _agreed(self) -> View | None:
        running = self.running
        try:
            answers = await asyncio.gather(
                *(each.execute("CLUSTER", "NODES") for each in running.values()),
                *(each.execute("CLUSTER", "INFO") for each in running.values()),
            )
        except (OSError, EOFError, EmulatorError):  # one is ending, or loading its data
            return None
        views, states = answers[: len(running)], answers[len(running) :]
        if not all("cluster_state:ok" in each for each in states):
            return None
        return agreement(map(parse_nodes, views), [self._ids[each] for each in running])

    async def closed(self) -> bool:
        """Whether no slot is on the move."""
        answers = await asyncio.gather(
            *(each.execute("CLUSTER", "NODES") for each in self.running.values())
        )
        return not any(has_open_slots(each) for each in answers)

    async def until_copied(self, number: int) -> None:
        """Wait until a replica follows its primary."""
        async with asyncio.timeout(PATIENCE):
            while True:
                told = await self._servers[number].execute("INFO", "replication")
                if "master_link_status:up" in told:
                    return
                await asyncio.sleep(POLL_INTERVAL)

    # ---------------------------------------------------------------------------------- forming

    async def form(self, primaries: Sequence[int], replicas: Mapping[int, int]) -> None:
        """Make a cluster of fresh servers; ``replicas`` maps them to their primaries."""
        await asyncio.gather(*map(self._identify, [*primaries, *replicas]))
        for number, (first, last) in zip(primaries, shares(len(primaries)), strict=True):
            server = self._servers[number]
            await server.execute("CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
        for number in self._ids:  # else they would have to sort out who is who
            await self._servers[number].execute("CLUSTER", "SET-CONFIG-EPOCH", str(number))
        await self._acquaint(self._ids)
        for replica, primary in replicas.items():
            await self._replicate(replica, primary)
        await self.until(self._shape(replicas), "every replica has its primary")
        await asyncio.gather(*map(self.until_copied, replicas))

    async def _identify(self, number: int) -> None:
        self._ids[number] = await self._servers[number].execute("CLUSTER", "MYID")

    async def _acquaint(self, numbers: Iterable[int]) -> None:
        """Make servers known to each other, and wait until they are."""
        numbers = list(numbers)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        again = 0.0
        while strangers := [pair for each in numbers for pair in await self._strangers(each)]:
            if loop.time() > deadline:
                raise EmulatorError(
                    f"the cluster's nodes did not get to know each other: {strangers}"
                )
            if loop.time() > again:
                again = loop.time() + HANDSHAKE
                for number, other in strangers:
                    if number > other or (other, number) not in strangers:
                        # One of the two: where both shake hands at once, one may end up with a
                        # node that it never hears of again.
                        await self._introduce(number, other)
            await asyncio.sleep(POLL_INTERVAL)

    async def _strangers(self, number: int) -> list[tuple[int, int]]:
        """A server and each of those that it does not know."""
        known = parse_nodes(await self._servers[number].execute("CLUSTER", "NODES"))
        return [(number, each) for each in self.running if self._ids[each] not in known]

    async def _introduce(self, number: int, other: int) -> None:
        membership = self._servers[other].membership
        assert membership is not None
        await self._servers[number].execute(
            "CLUSTER", "MEET", "127.0.0.1", str(membership.port), str(membership.bus_port)
        )

    async def _replicate(self, replica: int, primary: int) -> None:
        await self._servers[replica].execute("CLUSTER", "REPLICATE", self._ids[primary])

    def _shape(self, replicas: Mapping[int, int]) -> Callable[[View], bool]:
        def holds(view: View) -> bool:
            return all(
                view[self._ids[replica]].primary == self._ids[primary]
                for replica, primary in replicas.items()
            )

        return holds

    def forget_all(self) -> None:
        """Know no node any more, before another cluster is formed."""
        self._ids.clear()
        self._last = {}

    async def join(self, number: int, primary: int | None) -> None:
        """Take a fresh server in, as a primary without slots or as the replica of one."""
        await self._identify(number)
        await self._acquaint(self.running)
        replicas = {}
        if primary is not None:
            await self._replicate(number, primary)
            replicas[number] = primary
        await self.until(self._shape(replicas), f"node {number} has joined")
        if primary is not None:
            await self.until_copied(number)

    async def expel(self, number: int) -> None:
        """Have all others forget a node that has been stopped."""
        node_id = self._ids.pop(number)
        for server in self.running.values():
            await server.execute("CLUSTER", "FORGET", node_id)

    # --------------------------------------------------------------------------------- failover

    async def failover(self, replica: int, *options: str) -> None:
        """Have a replica take over from its primary: CLUSTER FAILOVER with these options."""
        taking_over = self._ids[replica]
        if not options:
            await self.until_copied(replica)
        server = self._servers[replica]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while True:
            await server.execute("CLUSTER", "FAILOVER", *options)
            try:
                await self.until(
                    lambda view: view[taking_over].is_primary,
                    f"node {replica} is a primary",
                    patience=ELECTION,
                )
            except EmulatorError:
                if loop.time() > deadline:
                    raise
            else:
                return

    # -------------------------------------------------------------------------------- migration

    async def migrate(
        self,
        slots: Iterable[int],
        source: int,
        target: int,
        *,
        keys: int | None = None,
        pace: float = 0.0,
    ) -> int:
        """Move slots with their keys; with a ``pace`` one by one, so many seconds apart.

        With ``keys``, stop when so many have moved, or all, and leave the slots open. Returns how
        many have.
        """
        moved = 0
        slots = list(slots)
        watched = pace > 0 or keys is not None
        for start in range(0, len(slots), CHUNK):
            chunk = slots[start : start + CHUNK]
            await self._announce(chunk, source, target)
            for slot in await self._with_keys(source, chunk):
                while keys is None or moved < keys:
                    found = await self._some_keys(source, slot, 1 if watched else KEYS)
                    if not found:
                        break
                    await self._move_keys(found, source, target)
                    moved += len(found)
                    await asyncio.sleep(pace)
            if keys is None:
                await self._settle(chunk, source, target)
        return moved

    async def _announce(self, slots: Iterable[int], source: int, target: int) -> None:
        """Open slots: the source sends clients on for keys it has not, the target lets them in."""
        await self._set_slots(target, slots, "IMPORTING", source)
        await self._set_slots(source, slots, "MIGRATING", target)

    async def _settle(self, slots: Iterable[int], source: int, target: int) -> None:
        """Close slots: they are the target's. It has to be the first who knows."""
        others = [
            each
            for each in self.running
            if each not in (source, target) and self._last[self._ids[each]].is_primary
        ]
        for number in (target, source, *others):
            await self._set_slots(number, slots, "NODE", target)

    async def _set_slots(self, number: int, slots: Iterable[int], how: str, other: int) -> None:
        server, node_id = self._servers[number], self._ids[other]
        commands = [("CLUSTER", "SETSLOT", str(slot), how, node_id) for slot in slots]
        await asyncio.gather(
            *(server.call_all(commands[start::LANES]) for start in range(LANES)),
        )

    async def _with_keys(self, number: int, slots: list[int]) -> list[int]:
        """Those of the slots in which a node has keys. No new ones come where they migrate."""
        counts = await self._servers[number].call_all(
            [("CLUSTER", "COUNTKEYSINSLOT", str(slot)) for slot in slots]
        )
        return [slot for slot, count in zip(slots, counts, strict=True) if int(count)]

    async def _some_keys(self, source: int, slot: int, count: int) -> list[bytes]:
        found: list[bytes] = await self._servers[source].call(
            "CLUSTER", "GETKEYSINSLOT", str(slot), str(count)
        )
        return found

    async def _move_keys(self, keys: list[bytes], source: int, target: int) -> None:
        membership = self._servers[target].membership
        assert membership is not None
        where = ("127.0.0.1", str(membership.port), "", "0", MIGRATE_TIMEOUT)
        who = ("AUTH2", MASTER, membership.secret)
        await self._servers[source].execute("MIGRATE", *where, *who, "KEYS", *keys)
