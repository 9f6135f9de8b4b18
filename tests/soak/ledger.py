"""From the server's log: was every AUTH in time, and did a token end a connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from aioentra_redis.emulator import Log

__all__ = ["AuthTime", "auth_times", "expiries"]

LEAD, LEAD_FRACTION = 180.0, 0.3
"""The design's: every AUTH is answered 180 s, or 0.3 of a short life, before the expiry."""


@dataclass(frozen=True, slots=True)
class AuthTime:
    """How long a connection held a token, and by when it had to have the next one, or be gone."""

    connection: int
    since: float
    due: float
    until: float
    next_issued: float | None
    """When the identity provider had issued the token that came next; None if none came."""

    @property
    def late(self) -> float:
        """Seconds past the deadline, negative for those in time."""
        return self.until - self.due


def auth_times(log: Log, *, exempt: frozenset[str], end: float) -> Iterator[AuthTime]:
    """One for each token on each connection; those of ``exempt`` object IDs are left out.

    ``end`` is when the log was taken: what had not come by then had time until then.
    """
    lives = {each.uti: each.expires_on - each.time for each in log.tokens}
    issued = {each.uti: each.time for each in log.tokens}
    closed = {each.connection: each.time for each in log.closes}
    held: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for each in log.auths:
        if each.accepted and each.object_id not in exempt and each.uti in lives:
            expires_on = each.expires_on or 0.0
            due = expires_on - min(LEAD, LEAD_FRACTION * lives[each.uti])
            held[each.connection].append((each.time, due, issued[each.uti]))
    for connection, tokens in held.items():
        nexts = [(since, issue) for since, _, issue in tokens[1:]]
        last = (closed.get(connection, end), None)
        for (since, due, _), (until, issue) in zip(tokens, [*nexts, last], strict=True):
            yield AuthTime(connection, since, due, until, issue)


def expiries(log: Log, *, exempt: frozenset[str]) -> list[tuple[float, int]]:
    """When, and which connections, the server ended because their token did."""
    return [
        (each.time, each.connection)
        for each in log.closes
        if each.reason == "expiry" and each.object_id not in exempt
    ]
