"""Which faults there are, when they strike, and what each of them excuses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from redis import exceptions as redis_exceptions

from aioentra_redis import ConnectError, TokenError

__all__ = ["GRACE", "KINDS", "Fault", "FaultKind", "Window", "Windows", "faults"]

GRACE = 2.0
"""Seconds after a fault in which what it has broken is still being mended."""

Errors = tuple[type[BaseException], ...]

REFUSAL: Errors = (ConnectError, TokenError)
"""A new connection can't sign in. One that waits, and whose token was refused until shortly before
the end of the former one, says so in time."""

LOSS: Errors = (
    redis_exceptions.ConnectionError,
    redis_exceptions.TimeoutError,
    redis_exceptions.WatchError,  # the connection that had the WATCH is gone
)
NOTHING: Errors = ()


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A fault, and what it excuses.

    ``seconds`` is how long it lasts, from and to; ``weight`` how often it comes. ``errors`` are
    what callers may be given meanwhile. ``kills`` connections, so that an element which BLPOP
    popped may be lost; ``holds_up_auth``, so that AUTH may come late; ``without_identity`` there
    is no token, so that connections may expire.
    """

    name: str
    seconds: tuple[float, float]
    weight: int
    errors: Errors = NOTHING
    kills: bool = False
    holds_up_auth: bool = False
    without_identity: bool = False

    def excuses(self, error: BaseException) -> bool:
        """Whether a caller may be given ``error`` while this is on."""
        # To redis-py a refused sign-in is a ConnectionError, too; no lost connection explains it.
        about_auth = isinstance(error, redis_exceptions.AuthenticationError)
        return isinstance(error, self.errors) and (self.holds_up_auth or not about_auth)


_ALL = (
    FaultKind("cut every connection", (0, 0), 4, LOSS, kills=True),
    FaultKind("cut one connection", (0, 0), 6, LOSS, kills=True),
    FaultKind("restart the server", (0, 0.5), 4, LOSS, kills=True),
    FaultKind("load data at a restart", (0.2, 1.0), 2, LOSS, kills=True),
    FaultKind("break every reply off", (0, 0), 3, LOSS, kills=True),
    FaultKind(
        "leave one connection half open", (0.5, 2.0), 3, LOSS, kills=True, holds_up_auth=True
    ),
    FaultKind("freeze one connection", (0.2, 1.5), 4, holds_up_auth=True),
    FaultKind("freeze every connection", (0.2, 1.0), 2, holds_up_auth=True),
    FaultKind("CLIENT KILL one", (0, 0), 4, LOSS, kills=True),
    FaultKind("CLIENT KILL normal", (0, 0), 2, LOSS, kills=True),
    FaultKind("CLIENT KILL pubsub", (0, 0), 3, LOSS, kills=True),
    FaultKind("identity provider fails", (0.3, 1.2), 5),
    FaultKind("identity provider hangs", (0.3, 1.0), 4),
    FaultKind("identity provider is slow", (1.0, 2.0), 4),
    FaultKind("identity provider refuses connections", (0.3, 1.2), 3),
    FaultKind("identity provider breaks answers off", (0.3, 1.2), 3),
    FaultKind("identity provider changes its key", (0, 0), 2),
    FaultKind("identity provider gives what is no token", (0.3, 1.0), 2),
    FaultKind("identity provider gives forged tokens", (0.3, 1.0), 3, REFUSAL, holds_up_auth=True),
    FaultKind(
        "identity provider is gone",
        (5.0, 7.0),
        1,
        (TokenError, ConnectError, *LOSS),
        kills=True,
        holds_up_auth=True,
        without_identity=True,
    ),
    FaultKind("AUTH is refused once", (0, 0), 4, REFUSAL, holds_up_auth=True),
    FaultKind("AUTH is refused", (0.3, 1.0), 4, REFUSAL, holds_up_auth=True),
    FaultKind("AUTH is slow", (1.0, 2.5), 5, holds_up_auth=True),
    FaultKind("AUTH hangs", (0.3, 1.5), 3, holds_up_auth=True),
    FaultKind("the event loop stalls", (0.05, 0.5), 5),
)

KINDS: dict[str, FaultKind] = {each.name: each for each in _ALL}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the schedule: ``after`` a pause, ``seconds`` long, of a ``strength`` in 0..1."""

    kind: FaultKind
    after: float
    seconds: float
    strength: float


def faults(seed: int) -> Iterator[Fault]:
    """An endless schedule that follows from ``seed`` alone; every kind once before any again."""
    source = random.Random(seed)
    weights = [each.weight for each in _ALL]
    first = list(_ALL)
    source.shuffle(first)
    while True:
        kind = first.pop() if first else source.choices(_ALL, weights)[0]
        yield Fault(
            kind,
            after=source.uniform(0.5, 2.5),
            seconds=source.uniform(*kind.seconds),
            strength=source.random(),
        )


@dataclass(slots=True)
class Window:
    """When a fault was on; ``end`` is None while it is."""

    kind: FaultKind
    start: float
    end: float | None = None


class Windows:
    """The faults that there were, and whether one of them excuses something."""

    def __init__(self) -> None:
        self.all: list[Window] = []

    def open(self, kind: FaultKind, now: float) -> Window:
        window = Window(kind, now)
        self.all.append(window)
        return window

    def excuses(
        self, start: float, end: float, what: Callable[[FaultKind], bool], grace: float = GRACE
    ) -> bool:
        """Whether such a fault was on, or being mended, at some time from ``start`` to ``end``."""
        for each in reversed(self.all):
            over = each.end is not None and each.end + grace < start
            if not over and each.start <= end and what(each.kind):
                return True
        return False

    def between(self, start: float, end: float) -> list[str]:
        """The faults that were on at some time from ``start`` to ``end``, in seconds after it."""
        return [
            f"{each.kind.name} ({each.start - start:.2f} to {(each.end or end) - start:.2f})"
            for each in self.all
            if each.start <= end and (each.end is None or each.end >= start)
        ]

    def excuses_error(self, error: BaseException, now: float) -> bool:
        """Whether a caller may be given ``error`` now."""
        return self.excuses(now, now, lambda kind: kind.excuses(error))
