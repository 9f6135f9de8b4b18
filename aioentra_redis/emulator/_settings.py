"""What can be changed while the emulator runs: settings, claims of new tokens, and faults."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ._policies import check_policy

__all__ = [
    "Claims",
    "Countdown",
    "Cut",
    "Faults",
    "FrontFaults",
    "IdentityFailure",
    "Settings",
]

CUT_ENDS = ("close", "hang", "end")


@dataclass(frozen=True, slots=True)
class Settings:
    """How the emulator behaves when nothing is wrong. Times are seconds and may be fractions.

    ``token_lifetime`` is a service principal's, ``managed_identity_lifetime`` a managed
    identity's. ``refresh_in`` is what the identity endpoints advise, if anything.
    ``managed_identity_caching`` makes the platform hand out one token until it nears its end.
    """

    token_lifetime: float = 3600.0
    refresh_in: float | None = None
    managed_identity_lifetime: float = 86400.0
    managed_identity_caching: bool = True
    policy: str = "owner"

    def __post_init__(self) -> None:
        for name in ("token_lifetime", "managed_identity_lifetime"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0 seconds")
        if self.refresh_in is not None and self.refresh_in < 0:
            raise ValueError("refresh_in must not be negative")
        check_policy(self.policy)

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """A copy with ``changes``; ValueError names a setting that does not exist."""
        unknown = set(changes) - {each.name for each in dataclasses.fields(self)}
        if unknown:
            raise ValueError(f"no such setting: {', '.join(sorted(unknown))}")
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Claims:
    """How tokens issued from now on differ from good ones; the default is not at all."""

    oid: str | None = None
    tenant_id: str | None = None
    audience: str | None = None
    opaque: bool = False
    forged: bool = False
    without: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    answer: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the answer around the token that are added or replaced."""


@dataclass(slots=True)
class Countdown:
    """Something that happens ``times`` times, or until told otherwise (``None``)."""

    times: int | None = 0

    def take(self) -> bool:
        """Whether it happens this time, which then counts."""
        if self.times is None:
            return True
        if self.times <= 0:
            return False
        self.times -= 1
        return True


@dataclass(frozen=True, slots=True)
class IdentityFailure:
    """What a failing identity endpoint answers.

    ``error`` is the OAuth error, ``code`` the number behind ``AADSTS``, ``retry_after`` the
    header (seconds, or text as it is), ``body`` a raw body in place of all that. ``endpoint``
    limits the failure to one of ``"token"``, ``"imds"``, ``"app-service"``.
    """

    status: int = 503
    error: str = "temporarily_unavailable"
    code: int | None = None
    description: str | None = None
    retry_after: float | str | None = None
    body: str | None = None
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Where an identity endpoint's answer breaks off, and how.

    ``after`` counts bytes of the body; None is before the answer's first byte, head included.
    ``then`` is what follows: ``"close"`` the connection, ``"hang"`` until healed, or ``"end"``
    as if that had been all.
    """

    after: int | None = None
    then: str = "close"
    endpoint: str | None = None

    def __post_init__(self) -> None:
        if self.after is not None and self.after < 0:
            raise ValueError("after must not be negative")
        if self.then not in CUT_ENDS:
            raise ValueError(f"then must be one of {', '.join(CUT_ENDS)}, not {self.then!r}")
        if self.then == "end" and self.after is None:
            raise ValueError("an answer can't end before it begins: say after how many bytes")


@dataclass(slots=True)
class FrontFaults:
    """What goes wrong where clients sign in: at one node, or at all of them.

    With ``new_frozen`` new connections are, and with ``new_executes`` the server runs what such
    a connection sends.
    """

    auth_delay: float = 0.0
    auth_hangs: Countdown = field(default_factory=Countdown)
    refusals: Countdown = field(default_factory=Countdown)
    revoked: set[str] = field(default_factory=set)
    new_frozen: bool = False
    new_executes: bool = False


class Faults:
    """Every fault that is switched on; ``heal`` switches all of them off.

    ``at(None)`` has those of all nodes, ``at(node)`` one node's own, which come first.
    """

    identity_delay: float
    failure: IdentityFailure
    failures: Countdown
    cut: Cut
    cuts: Countdown
    hangs: Countdown
    claims: Claims

    def __init__(self) -> None:
        self._healed = asyncio.Event()
        self._clear()

    def _clear(self) -> None:
        self.identity_delay = 0.0
        self.failure = IdentityFailure()
        self.failures = Countdown()
        self.cut = Cut()
        self.cuts = Countdown()
        self.hangs = Countdown()
        self.claims = Claims()
        self._fronts: dict[int | None, FrontFaults] = {None: FrontFaults()}

    def at(self, node: int | None) -> FrontFaults:
        """The faults of one node's front, or of all of them, to be read or changed."""
        return self._fronts.setdefault(node, FrontFaults())

    def meeting(self, node: int) -> Iterable[FrontFaults]:
        """The faults that a connection to this node meets: its own, then everybody's."""
        return [self._fronts[each] for each in (node, None) if each in self._fronts]

    def take_failure(self, endpoint: str) -> IdentityFailure | None:
        """The failure that a request to ``endpoint`` meets, which then counts."""
        if self.failure.endpoint not in (None, endpoint):
            return None
        return self.failure if self.failures.take() else None

    def take_cut(self, endpoint: str) -> Cut | None:
        """Where the answer to a request to ``endpoint`` breaks off, which then counts."""
        if self.cut.endpoint not in (None, endpoint):
            return None
        return self.cut if self.cuts.take() else None

    def forgive(self, object_id: str, node: int | None) -> None:
        """Give an identity back what ``revoke`` took, at one node or everywhere."""
        for each in self._fronts.values() if node is None else [self.at(node)]:
            each.revoked.discard(object_id)

    async def until_healed(self) -> None:
        """Wait for the next ``heal``; cancelling is safe."""
        await self._healed.wait()

    def heal(self) -> None:
        """Remove every fault and let go of every request that hangs."""
        self._clear()
        self._healed.set()
        self._healed = asyncio.Event()
