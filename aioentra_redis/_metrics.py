"""OpenTelemetry metrics, fed by events; the rest of the package does not know of OpenTelemetry.

They are recorded in programs that use OpenTelemetry: once ``opentelemetry.metrics`` is imported,
as whatever sets up a meter provider does. Without it nobody could read them, so this module never
imports it itself, which would hold up the loop for tens of milliseconds: an event costs one look
into ``sys.modules`` then.

Instruments are made at the first event after that, once. A provider that is set up later gets them
too (the API hands out proxies until then), and the API takes no second one.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ._events import (
    AcquisitionEnded,
    AuthTrigger,
    ConnectionReplaced,
    ConnectionState,
    ConnectionStatus,
    Event,
    EventHub,
    Reauthenticated,
    ReauthenticationFailed,
    SubscriptionHandedOver,
    TokenState,
    TokenStatus,
)
from .errors import ConnectionLostError

__all__ = ["METRICS", "Metric", "observe_client", "observe_connections", "observe_source"]

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
"""Bounds of the histograms' buckets; OpenTelemetry's own are meant for milliseconds."""

SOURCE: Final = ("source",)
SERVER: Final = ("source", "server.address", "server.port")


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument: its name, kind, unit, attributes, and what it tells."""

    name: str
    kind: str
    unit: str
    attributes: tuple[str, ...]
    description: str


ACQUIRE_DURATION: Final = Metric(
    "aioentra.token.acquire.duration",
    "histogram",
    "s",
    (*SOURCE, "result"),
    "How long attempts to get a token took.",
)
REFRESHES: Final = Metric(
    "aioentra.token.refreshes",
    "counter",
    "{attempt}",
    (*SOURCE, "result"),
    "Attempts to get a token.",
)
REMAINING: Final = Metric(
    "aioentra.token.remaining",
    "gauge",
    "s",
    SOURCE,
    "Time to the token's expiry, 0 after it.",
)
REAUTHS: Final = Metric(
    "aioentra.connection.reauths",
    "counter",
    "{attempt}",
    (*SERVER, "result", "trigger"),
    "Attempts to give a living connection a newer token.",
)
REAUTH_DURATION: Final = Metric(
    "aioentra.connection.reauth.duration",
    "histogram",
    "s",
    (*SERVER, "trigger"),
    "How long the server took to accept a newer token.",
)
STALE: Final = Metric(
    "aioentra.connections.stale",
    "gauge",
    "{connection}",
    SERVER,
    "Connections that could not get the newest token.",
)
METRICS: Final = (ACQUIRE_DURATION, REFRESHES, REMAINING, REAUTHS, REAUTH_DURATION, STALE)


# ----------------------------------------------------------------------- what is there to observe


class Source(Protocol):
    """What is asked of a token source; from any thread."""

    @property
    def status(self) -> TokenStatus: ...


class Client(Protocol):
    """What is asked of a client; from any thread."""

    def auth_status(self) -> list[ConnectionStatus]: ...


class _Living:
    """Objects that are observed as long as somebody else keeps them."""

    def __init__(self) -> None:
        self._refs: dict[int, tuple[weakref.ref[Any], str]] = {}

    def add(self, each: object, name: str) -> None:
        refs, key = self._refs, id(each)
        refs[key] = (weakref.ref(each, lambda _: refs.pop(key, None) and None), name)

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        for ref, name in list(self._refs.values()):  # the collector works in any thread
            if (each := ref()) is not None:
                yield each, name

    def clear(self) -> None:
        self._refs.clear()


_sources = _Living()
_clients = _Living()

if hasattr(os, "register_at_fork"):  # a child's exporter has nothing to say about its parent's
    os.register_at_fork(after_in_child=_sources.clear)
    os.register_at_fork(after_in_child=_clients.clear)


def observe_source(source: Source, name: str, hub: EventHub) -> None:
    """Record the attempts that ``hub`` tells of, and how long the token of ``source`` lasts."""
    _sources.add(source, name)

    def record(event: Event) -> None:
        if isinstance(event, AcquisitionEnded) and (instruments := _instruments()) is not None:
            attributes = {"source": name, "result": event.outcome}
            instruments.refreshes.add(1, attributes)
            instruments.acquire_duration.record(event.seconds, attributes)

    hub.listen(record)


def observe_client(client: Client, source: str) -> None:
    """Count the stale connections of ``client``, which signs in with the source of that name."""
    _clients.add(client, source)


def observe_connections(hub: EventHub, source: str) -> None:
    """Record the re-authentications that ``hub`` tells of."""

    def record(event: Event) -> None:
        match event:
            case Reauthenticated():
                result, trigger = "accepted", event.trigger
            case ReauthenticationFailed():
                result, trigger = _failure(event.error), event.trigger
            case ConnectionReplaced(trigger=AuthTrigger()) | SubscriptionHandedOver():
                result, trigger = "replaced", AuthTrigger.RENEWAL
            case _:
                return
        if (instruments := _instruments()) is None:
            return
        attributes = {**_server(source, event.host), "trigger": trigger.value}
        if isinstance(event, Reauthenticated):
            instruments.reauth_duration.record(event.latency, attributes)
        instruments.reauths.add(1, {**attributes, "result": result})

    hub.listen(record)


def _failure(error: Exception) -> str:
    """What a failed re-authentication counts as."""
    match error:
        case TimeoutError():
            return "unanswered"
        case ConnectionLostError():
            return "not_replaced"  # a connection that takes no AUTH, as subscribers with RESP2
    return "refused"


def _server(source: str, where: str) -> dict[str, Any]:
    """The attributes of a connection; ``where`` is host and port, or the path of a socket."""
    address, _, port = where.rpartition(":")
    if not address or not port.isdecimal():
        return {"source": source, "server.address": where}
    return {"source": source, "server.address": address, "server.port": int(port)}


# -------------------------------------------------------------------------------- the instruments


class Instruments:
    """All instruments, of one meter."""

    def __init__(self, meter: Any, observation: Callable[..., Any]) -> None:
        self._observation = observation
        self.acquire_duration = _histogram(meter, ACQUIRE_DURATION)
        self.reauth_duration = _histogram(meter, REAUTH_DURATION)
        self.refreshes = meter.create_counter(**_options(REFRESHES))
        self.reauths = meter.create_counter(**_options(REAUTHS))
        for metric, observe in ((REMAINING, self._remaining), (STALE, self._stale)):
            meter.create_observable_gauge(callbacks=[observe], **_options(metric))

    # These are called by the exporter, in a thread of its own.

    def _remaining(self, _: object) -> Iterable[Any]:
        """For each name of a source; of several with the same name the shortest time counts."""
        found: dict[str, float] = {}
        for source, name in _sources:
            status = source.status
            if status.remaining is not None and status.state is not TokenState.CLOSED:
                found[name] = min(status.remaining, found.get(name, status.remaining))
        return [self._observation(each, {"source": name}) for name, each in found.items()]

    def _stale(self, _: object) -> Iterable[Any]:
        """For each server that there are connections to; clients that share a pool share them."""
        rows = {r.connection: (name, r) for client, name in _clients for r in client.auth_status()}
        found: dict[tuple[str, str], int] = {}
        for name, row in rows.values():
            where = (name, row.host)
            found[where] = found.get(where, 0) + (row.state is ConnectionState.STALE)
        return [self._observation(each, _server(*where)) for where, each in found.items()]


def _options(metric: Metric) -> dict[str, str]:
    return {"name": metric.name, "unit": metric.unit, "description": metric.description}


def _histogram(meter: Any, metric: Metric) -> Any:
    options = _options(metric)
    try:
        return meter.create_histogram(**options, explicit_bucket_boundaries_advisory=SECONDS)
    except TypeError:  # the API before 1.30
        return meter.create_histogram(**options)


_made: Instruments | None = None
_making = threading.Lock()


def _instruments() -> Instruments | None:
    """The instruments, None while the program has not imported OpenTelemetry's API."""
    return _made if _made is not None else _make()


def _make() -> Instruments | None:
    global _made
    api = sys.modules.get("opentelemetry.metrics")
    get_meter, observation = getattr(api, "get_meter", None), getattr(api, "Observation", None)
    if get_meter is None or observation is None:  # or is in the middle of importing it
        return None
    with _making:  # sources may live in threads of their own
        if _made is None:
            version = getattr(sys.modules[__package__], "__version__", "")
            _made = Instruments(get_meter(__package__, version), observation)
        return _made
