"""A circuit breaker for refused AUTH: what one server says of the tokens of one source.

Where a server refuses a token that Entra hands out, sending it again from every connection helps
nobody. So the first refusal is for all of them, and one at a time finds out whether it still
holds::

    CLOSED      tokens are sent
        | one is refused
        v
    OPEN        none is sent until the pause is over, but for a newer one
        | the pause is over, or there is a newer token
        v
    HALF_OPEN   one is sent: the probe
        | refused, or no answer            | accepted
        v                                  v
    OPEN, for twice as long            CLOSED

Who needs a new connection may try once more at once after a single refusal: the pause between
that and the next probe is for those whose session goes on. Pure decisions, no clock and no I/O:
``now`` is the event loop's time, in seconds.
"""

from __future__ import annotations

import enum
import math
from typing import Final

from ._schedule import AUTH_TIMEOUT, probe_delay

__all__ = ["TRANSITIONS", "Breaker", "BreakerState"]


class BreakerState(enum.Enum):
    """Whether tokens are sent to a server; the picture is above."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


S = BreakerState
TRANSITIONS: Final[dict[BreakerState, frozenset[BreakerState]]] = {
    S.CLOSED: frozenset({S.OPEN}),
    S.OPEN: frozenset(
        {
            S.HALF_OPEN,
            S.CLOSED,  # an AUTH that was on its way when another one was refused
        }
    ),
    S.HALF_OPEN: frozenset({S.OPEN, S.CLOSED}),
}


class Breaker:
    """The state for one server. Versions are those of the source's tokens."""

    def __init__(self) -> None:
        self.state = S.CLOSED
        self.refusals = 0
        """How often a token was refused since one was accepted, the answers of stragglers aside."""
        self.opened_at = 0.0
        self.version = 0
        """The newest token that was refused."""
        self._accepted_version = 0
        self._retry_at = 0.0
        self._probe_ends = 0.0

    def admits(self, version: int, now: float, *, demand: bool = False) -> bool:
        """Whether a token may be sent; ``demand`` says that somebody needs a new connection."""
        if self.state is S.CLOSED:
            return True
        if self.state is S.HALF_OPEN:
            return now >= self._probe_ends  # whoever sent it is gone without a word
        return version > self.version or now >= self._retry_at or (demand and self.refusals == 1)

    def next_look(self, now: float) -> float:
        """When who is not admitted now may be, if nothing happens until then."""
        if self.state is S.CLOSED:
            return math.inf
        return max(now, self._probe_ends if self.state is S.HALF_OPEN else self._retry_at)

    def begin(self, now: float) -> bool:
        """A token that was admitted is sent; returns whether it is the probe."""
        if self.state is S.CLOSED:
            return False
        if self.state is S.OPEN:
            self._move_to(S.HALF_OPEN)
        self._probe_ends = now + AUTH_TIMEOUT
        return True

    def accepted(self, version: int) -> None:
        """The server took a token."""
        self._accepted_version = max(self._accepted_version, version)
        if self.state is not S.CLOSED and version >= self.version:
            self.refusals = 0
            self._move_to(S.CLOSED)

    def refused(self, version: int, now: float, *, probe: bool) -> None:
        """The server refused a token: WRONGPASS."""
        if self.state is S.CLOSED:
            if version < self._accepted_version:
                return  # an older one, late: the newer one is good
            self.opened_at = now
        elif not probe:
            self.version = max(self.version, version)
            return  # it was on its way when another one was refused
        self.refusals += 1
        self.version = max(self.version, version)
        self._retry_at = now + probe_delay(self.refusals)
        if self.state is not S.OPEN:
            self._move_to(S.OPEN)

    def unanswered(self) -> None:
        """The probe ended without an answer, so that anybody may send the next one."""
        if self.state is S.HALF_OPEN:
            self._move_to(S.OPEN)

    def _move_to(self, state: BreakerState) -> None:
        """The one setter of the state."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a breaker can't go from {self.state} to {state}")
        self.state = state
