"""A contest: the same program on redis-py's client and on ours, on a server each."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aioentra_redis import ConnectionOpened, Event, Reauthenticated, TokenPublished

from .comparison import Difference, compare_replies, compare_states
from .peers import VARIANTS, Oracle, Peer
from .program import Program
from .runner import Counts, run

__all__ = ["Contest", "Tally"]

PATIENCE = 45.0
"""Seconds that a program may take on one client; a reply that never comes ends it sooner, by
``socket_timeout``."""


def _names(table: str) -> frozenset[str]:
    return frozenset(table.split())


NOT_COUNTED = _names(
    """
    auth evalsha hello info ping script|exists script|load select unwatch
    blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin xread xreadgroup
    hscan scan sscan zscan
    """
)
"""What a connection is set up and kept with, what may be waited for in slices, and what takes as
many calls as the server's memory is laid out for."""


FOR_THE_CLUSTER = _names("asking cluster|myid cluster|slots command command|getkeys readonly")
"""What a cluster's client finds its way with."""


@dataclass(slots=True)
class Tally:
    """What was run and compared so far."""

    programs: int = 0
    replies: int = 0
    errors: int = 0
    keys: int = 0
    tokens: int = 0
    rotations: int = 0
    connections: int = 0
    counts: Counts = field(default_factory=Counts)
    server_commands: int = 0
    oracle_commands: int = 0


class Contest:
    """Clients of every variant, kept open from program to program while tokens rotate.

    ``rotate`` is the time from one token to the next, in seconds; they are taken to end after
    twice that, so an event loop that is busy for so long sees one expire. Enter it on the loop that
    is to run the programs.
    """

    def __init__(
        self,
        oracle: Oracle,
        peer: Peer,
        *,
        client_class: type[Any] | None = None,
        rotate: float = 0.4,
    ) -> None:
        self.tally = Tally()
        self._oracle = oracle
        self._peer = peer
        self._client_class = client_class
        self._source = peer.source(rotate * 2, on_event=self._on_event)
        self._plain: dict[str, Any] = {}
        self._ours: dict[str, Any] = {}

    @property
    def is_cluster(self) -> bool:
        """Whether the programs are to be for a cluster."""
        return self._peer.is_cluster

    @property
    def variants(self) -> tuple[str, ...]:
        """The kinds of clients that there are."""
        return self._peer.variants

    async def __aenter__(self) -> Self:
        await self._source.start()
        self._admins = (await self._oracle.admin(), await self._peer.admin())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        clients = [*self._plain.values(), *self._ours.values(), *self._admins]
        await asyncio.gather(*(each.aclose() for each in clients))
        await self._source.aclose()

    def _on_event(self, event: Event) -> None:
        self.tally.tokens += isinstance(event, TokenPublished)

    def _on_connection_event(self, event: Event) -> None:
        self.tally.rotations += isinstance(event, Reauthenticated)
        self.tally.connections += isinstance(event, ConnectionOpened)

    async def play(self, program: Program) -> None:
        """Run a program on both; raises ``Difference`` unless they agree in everything."""
        plain, ours = self._clients(program.variant)
        try:
            await self._play(program, plain, ours)
        except BaseException:
            # It may be out of step for good; the next program, a simpler one, gets another.
            await self._ours.pop(program.variant).aclose()
            raise

    def _clients(self, variant: str) -> tuple[Any, Any]:
        options = VARIANTS[variant].options
        if variant not in self._plain:
            self._plain[variant] = self._oracle.plain(**options)
        if variant not in self._ours:
            source = self._source if VARIANTS[variant].tokens else None
            self._ours[variant] = self._peer.ours(
                self._client_class,
                source,
                on_event=self._on_connection_event,
                close_timeout=0.5,  # one that is out of step waits for replies that never come
                **options,
            )
        return self._plain[variant], self._ours[variant]

    async def _play(self, program: Program, plain: Any, ours: Any) -> None:
        if self.is_cluster:  # redis-py sends some of its first commands twice otherwise
            await plain.initialize()
        for admin in self._admins:
            await admin.empty()
        before = [await admin.commands() for admin in self._admins]
        runs = []
        for client in (plain, ours):
            try:
                async with asyncio.timeout(PATIENCE):
                    runs.append(await run(client, program, cancelling=client is ours))
            except TimeoutError as exc:
                raise Difference(f"{client!r} has not come to an end") from exc
        after = [await admin.commands() for admin in self._admins]
        asked = [late - early for late, early in zip(after, before, strict=True)]
        replies, errors = compare_replies(program, *runs)
        not_counted = NOT_COUNTED | FOR_THE_CLUSTER if self.is_cluster else NOT_COUNTED
        slack = runs[1].counts.cancelled_calls
        _compare_commands(*asked, slack=slack, not_counted=not_counted)
        states = [await admin.contents() for admin in self._admins]
        self._count(runs[1].counts, replies, errors, compare_states(program, *states), asked)

    def _count(
        self,
        counts: Counts,
        replies: int,
        errors: int,
        keys: int,
        asked: list[collections.Counter[str]],
    ) -> None:
        tally = self.tally
        tally.programs += 1
        tally.replies += replies
        tally.errors += errors
        tally.keys += keys
        tally.oracle_commands += asked[0].total()
        tally.server_commands += asked[1].total()
        for each in dataclasses.fields(Counts):
            total = getattr(tally.counts, each.name) + getattr(counts, each.name)
            setattr(tally.counts, each.name, total)


def _compare_commands(
    plain: collections.Counter[str],
    ours: collections.Counter[str],
    *,
    slack: int,
    not_counted: frozenset[str],
) -> None:
    """Raise ``Difference`` if the servers were not asked for the same: something was repeated, or
    never sent. Of what was cancelled, up to ``slack`` commands may be missing."""
    missing = 0
    for name in sorted({*plain, *ours}):
        if name in not_counted or name.startswith("client|"):
            continue
        missing += plain[name] - ours[name]
        if ours[name] > plain[name]:
            raise Difference(
                f"{name} was sent {ours[name]} times, and {plain[name]} times by redis-py"
            )
    if missing > slack:
        raise Difference(
            f"{missing} commands fewer than redis-py sends were sent, and {slack} cancelled: "
            f"{ {n: (plain[n], ours[n]) for n in sorted(plain) if plain[n] != ours[n]} }"
        )
