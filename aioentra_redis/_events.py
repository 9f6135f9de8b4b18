"""Typed events and status records, and the hub that hands events to listeners.

Events are frozen dataclasses: one callback, or one iterator (``_event_streams.py``), receives them
all and tells them apart by class. No event and no status carries a token.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "AcquisitionEnded",
    "AuthTrigger",
    "AzureMaintenance",
    "BreakerClosed",
    "BreakerOpened",
    "ConnectionClosed",
    "ConnectionOpened",
    "ConnectionReplaced",
    "ConnectionState",
    "ConnectionStatus",
    "Event",
    "EventCallback",
    "EventHub",
    "EventsDropped",
    "MaintenanceAnnounced",
    "MaintenanceKind",
    "MessagesMayBeMissing",
    "Reauthenticated",
    "ReauthenticationFailed",
    "RefreshFailed",
    "SubscriptionHandedOver",
    "TaskRestarted",
    "TokenPublished",
    "TokenState",
    "TokenStateChanged",
    "TokenStatus",
]

logger = logging.getLogger("aioentra_redis.events")


class TokenState(enum.Enum):
    """Where a token source is in its life; the transitions are a table in ``_refresher.py``."""

    STARTING = "starting"
    FRESH = "fresh"
    DUE = "due"
    DEGRADED = "degraded"
    EXPIRED = "expired"
    FAILED = "failed"
    CLOSED = "closed"


class ConnectionState(enum.Enum):
    """Where a connection is with regard to its token; the table is in ``_multiplex/_reauth.py``."""

    AUTHENTICATED = "authenticated"
    REAUTHENTICATING = "reauthenticating"
    STALE = "stale"
    DRAINING = "draining"
    CLOSED = "closed"


class AuthTrigger(enum.Enum):
    """What had a newer token sent on a living connection."""

    RENEWAL = "renewal"
    """The connection's own time for it had come, or it was replaced at that time."""
    PROBE = "probe"
    """The token had been refused or left unanswered before, and was tried again."""
    COMMAND = "command"
    """Its deadline had passed, so it went in front of the owner's next command."""


class MaintenanceKind(enum.Enum):
    """What a server announces to its connections; the values are its own words."""

    MOVING = "MOVING"
    """The endpoint goes on at another one; a connection there takes over before this one ends."""
    MIGRATING = "MIGRATING"
    """A shard begins to move to another node: answers may take longer, ``MIGRATED`` ends that."""
    MIGRATED = "MIGRATED"
    FAILING_OVER = "FAILING_OVER"
    """A failover begins: answers may take longer, ``FAILED_OVER`` ends that."""
    FAILED_OVER = "FAILED_OVER"
    SMIGRATING = "SMIGRATING"
    """In a cluster, slots begin to move to another node."""
    SMIGRATED = "SMIGRATED"
    """In a cluster, slots have moved: who owns them is looked up again."""


@dataclass(frozen=True, slots=True)
class Event:
    """Base class of all events."""


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """An iterator was read too slowly: ``count`` events that came next were dropped, oldest first.

    Only the iterator that lost them gets it, in their place.
    """

    count: int


@dataclass(frozen=True, slots=True)
class AcquisitionEnded(Event):
    """One attempt to get a token has ended, after ``seconds``.

    ``outcome`` is ``"published"``, ``"unchanged"`` (the credential returned the token that is in
    use) or ``"failed"``; only then is there an ``error``.
    """

    source: str
    outcome: str
    seconds: float
    error: Exception | None


@dataclass(frozen=True, slots=True)
class TokenPublished(Event):
    """A newer token is out; ``expires_on`` is in seconds since the epoch, durations in seconds."""

    source: str
    version: int
    oid: str
    expires_on: float
    lifetime: float
    acquired_in: float


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """A burst of attempts to renew the token failed; the next one is scheduled.

    It is published to the subscribers as well, as a value: it never hides a token.
    """

    source: str
    error: Exception
    attempts: int
    next_attempt_in: float
    state: TokenState


@dataclass(frozen=True, slots=True)
class TokenStateChanged(Event):
    """The token source moved from one state to another."""

    source: str
    old: TokenState
    new: TokenState


@dataclass(frozen=True, slots=True)
class ConnectionOpened(Event):
    """A connection has signed in; ``token_version`` is None where no token source is used."""

    connection: str
    host: str
    token_version: int | None
    connect_seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionClosed(Event):
    """A connection has ended; ``error`` is None if we closed it."""

    connection: str
    host: str
    error: Exception | None


@dataclass(frozen=True, slots=True)
class ConnectionReplaced(Event):
    """A new, authenticated connection took over from another one, which drains.

    ``trigger`` is None where that was not about a token, but a server goes on elsewhere.
    """

    old: str
    new: str
    host: str
    reason: str
    trigger: AuthTrigger | None = AuthTrigger.RENEWAL


@dataclass(frozen=True, slots=True)
class MaintenanceAnnounced(Event):
    """The server has told the shared connection of maintenance, about to begin or over.

    ``sequence`` is the server's number for it: each connection is told, with the same one.
    ``seconds`` is how long it takes, or until when the connection should have moved; ``target`` the
    endpoint to move to, with its port. ``slots`` are the ranges of slots that are about to move,
    ``moves`` those that have: from which endpoint, to which one, the ranges. What the server did
    not say is None, or empty.
    """

    connection: str
    host: str
    kind: MaintenanceKind
    sequence: int | None = None
    seconds: float | None = None
    target: str | None = None
    slots: str | None = None
    moves: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AzureMaintenance(Event):
    """Azure has announced maintenance of a cache on the channel ``AzureRedisEvents``.

    ``notification`` is Azure's word, such as ``"NodeMaintenanceStarting"``, "" if it gave none;
    ``starts_at`` is in seconds since the epoch, the rest says which node it is about; what was not
    said is None. ``text`` is the message as it came, whose form may change.
    """

    host: str
    notification: str
    starts_at: float | None
    is_replica: bool | None
    address: str | None
    ssl_port: int | None
    non_ssl_port: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Reauthenticated(Event):
    """The server accepted a newer token on a living connection, after ``latency`` seconds."""

    connection: str
    host: str
    token_version: int
    latency: float
    trigger: AuthTrigger = AuthTrigger.RENEWAL


@dataclass(frozen=True, slots=True)
class ReauthenticationFailed(Event):
    """The server refused a newer token on a living connection, or has not answered yet."""

    connection: str
    host: str
    token_version: int
    error: Exception
    trigger: AuthTrigger = AuthTrigger.RENEWAL


@dataclass(frozen=True, slots=True)
class SubscriptionHandedOver(Event):
    """A new connection delivers the messages of a subscriber: with RESP2 a rotation needs one.

    ``doubt`` is None if each message arrives once, as it does where both connections lead to one
    server and a marker could be published there. Else it says why that can't be promised: some
    messages may have arrived twice.
    """

    old: str
    new: str
    host: str
    doubt: str | None


@dataclass(frozen=True, slots=True)
class MessagesMayBeMissing(Event):
    """A subscriber was not connected for a while; what was published meanwhile did not arrive.

    It is subscribed again, on ``connection``; ``error`` is what ended the former one.
    """

    connection: str
    host: str
    error: Exception


@dataclass(frozen=True, slots=True)
class BreakerOpened(Event):
    """A server refused a token; told once, however many connections there are.

    ``error`` is a ``SignInRefusedError``. One connection at a time tries again, first in
    ``retry_in`` seconds. What is signed in goes on until its token expires; what needs a new
    connection meanwhile fails at once with that error. ``host`` names the port as well.
    """

    host: str
    token_version: int
    error: Exception
    retry_in: float


@dataclass(frozen=True, slots=True)
class BreakerClosed(Event):
    """The server took a token again, ``lasted`` seconds and ``refusals`` after it refused one."""

    host: str
    token_version: int
    refusals: int
    lasted: float


@dataclass(frozen=True, slots=True)
class TaskRestarted(Event):
    """A background task ended that should not have; ``pause`` seconds later it starts again.

    ``error`` is None where it was cancelled, by somebody who cancels every task of the event loop,
    else the bug that ended it. Nothing is lost by it but those seconds.
    """

    task: str
    error: Exception | None
    pause: float


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """A snapshot of a token source; times in seconds since the epoch, durations in seconds."""

    source: str
    state: TokenState
    version: int
    """Of the newest token, 0 before the first."""
    oid: str | None
    expires_on: float | None
    remaining: float | None
    """Until the expiry, 0 after it, None before the first token."""
    next_attempt_in: float | None
    """None while one is under way, and where none is planned: before the start, after a failed
    start, when closed."""
    last_attempt_ago: float | None
    """Since the last acquisition began, None before the first."""
    consecutive_failures: int
    last_error: Exception | None
    acquisitions: int
    published: int
    acquiring_for: float | None
    """How long the acquisition under way has been running, None when there is none."""
    hung_call: bool
    """A synchronous credential's call outlived its deadline and still occupies its thread."""
    subscribers: int
    """How many connections, and other subscriptions, get each newer token."""


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One row of the ledger: what a connection holds and how its last AUTH went.

    Times in seconds since the epoch, latencies in seconds; what is about tokens is None where no
    token source is used. ``last_error`` is why the connection is STALE, None when it isn't.
    """

    connection: str
    host: str
    state: ConnectionState
    token_version: int | None
    token_expires_on: float | None
    last_auth_at: float | None
    last_auth_latency: float | None
    in_flight: int
    """How many replies are owed."""
    reauthentications: int
    last_error: Exception | None


EventCallback = Callable[[Event], None]
"""Called in the event loop, at the very moment of the event: it should return at once, because
everything else waits meanwhile. What it raises is logged and changes nothing."""


class EventHub:
    """Hands each event to every listener, at once and in order; a listener's error is logged."""

    def __init__(self) -> None:
        self._listeners: list[EventCallback] = []

    def listen(self, callback: EventCallback) -> Callable[[], None]:
        """Call ``callback`` for every event from now on; returns a function that ends it."""
        self._listeners.append(callback)

        def stop() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return stop

    def lead_to(self, other: EventHub) -> None:
        """Tell everything to ``other`` from now on, and to nobody else."""
        self._listeners = [other.emit]

    def emit(self, event: Event) -> None:
        """Deliver ``event``; never raises."""
        for callback in tuple(self._listeners):
            try:
                callback(event)
            except Exception:
                logger.exception("an event listener raised for %s", type(event).__name__)
