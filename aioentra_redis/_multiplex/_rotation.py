"""Which way a connection is given a newer token, and for how long: pure decisions."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .._schedule import AUTH_TIMEOUT, probe_delay, reauth_deadline

if TYPE_CHECKING:
    from .._token import Token

__all__ = ["UNANSWERED_AUTH", "Probe", "Rotation", "replacement_patience", "rotation_for"]

SLOW_AUTH: Final = 0.25
"""Seconds; where the last AUTH or handshake took longer, the next rotation is make-before-break."""

UNANSWERED_AUTH: Final = 1.0
"""Seconds after which a replacement is begun beside an AUTH that has no answer yet."""


class Rotation(enum.Enum):
    """The two ways to give a connection a newer token."""

    IN_PLACE = "in place"
    MAKE_BEFORE_BREAK = "make before break"


def rotation_for(latency: float) -> Rotation:
    """Which way to go, from how long the server took to validate the last token."""
    return Rotation.MAKE_BEFORE_BREAK if latency > SLOW_AUTH else Rotation.IN_PLACE


def replacement_patience(held: Token, now: float) -> float:
    """Seconds for which a replacement is tried for before AUTH goes in place after all.

    Half of the time that is left to the held token's deadline; but no less than a slow server may
    take for one AUTH, as long as the token lives to see it: in place, that AUTH would be as slow
    and hold up every command.
    """
    to_deadline = (reauth_deadline(held) - now) / 2
    to_expiry = (held.expires_on - now) * 2 / 3
    return max(to_deadline, min(AUTH_TIMEOUT, to_expiry), UNANSWERED_AUTH)


@dataclass(slots=True)
class Probe:
    """When to try again what failed on one connection; refusals are the breaker's matter."""

    delay: float | None = None
    failures: int = 0

    def failed(self) -> None:
        self.failures += 1
        self.delay = probe_delay(self.failures)

    def accepted(self) -> None:
        self.delay, self.failures = None, 0
