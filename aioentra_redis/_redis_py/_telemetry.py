"""Who watches redis-py's commands: its own metrics, and tracers that wrap its methods.

Both sit in redis-py's ``execute_command`` and ``Pipeline.execute``, which our commands do not pass
through. While nobody watches, that costs nothing: the straight way of a command is open. Once
``is_observed`` finds somebody, a few times a second and at every command that goes the long way
anyway, commands take that long way and are shown to both.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from types import FunctionType
from typing import Any, NamedTuple, Protocol

from redis import exceptions as redis_exceptions
from redis.asyncio import Redis, RedisCluster

from ._capabilities import has

_recorder: Any = import_module("redis.asyncio.observability.recorder") if has("metrics") else None

__all__ = ["Address", "Recording", "is_observed", "led_through", "recording", "unwrapped"]


class Address(NamedTuple):
    """Where a connection leads, as metrics name it."""

    host: str | None
    port: int | None
    db: Any


def is_observed() -> bool:
    """Whether commands have to be shown to somebody."""
    return (
        _is_wrapped(Redis, "execute_command")
        or _is_wrapped(RedisCluster, "execute_command")
        or _metrics_are_on()
    )


# -- metrics -------------------------------------------------------------------------------------


def _metrics_are_on() -> bool:
    return _recorder is not None and _recorder._get_or_create_collector() is not None


class Place(Protocol):
    """What has a connection that leads somewhere; None before the first one."""

    @property
    def address(self) -> Address | None: ...


def recording(name: Any, place: Place, *, in_cluster: bool = False) -> Recording | None:
    """Begin to record a command, or a pipeline by redis-py's name; None where metrics are off."""
    if not _metrics_are_on():
        return None
    return ClusterRecording(name, place) if in_cluster else Recording(name, place)


class Recording:
    """One command as redis-py's metrics see it: how long it took, and what became of it."""

    def __init__(self, name: Any, place: Place) -> None:
        self._name = name
        self._place = place
        self._started = time.monotonic()
        self._failures = 0

    async def around(self, command: Awaitable[Any]) -> Any:
        """The reply of ``command``, recorded; nothing is where there never was a connection."""
        try:
            reply = await command
        except Exception as exc:
            await self._error(exc)
            raise
        await self._duration()
        return reply

    async def ended(self, error: Exception | None) -> None:
        """It is over; redis-py does not count the ``error`` of one node's share of a pipeline."""
        await (self._duration() if error is None else self._duration(error=error))

    async def repeated(self, error: Exception) -> None:
        """An attempt has failed and another one follows."""
        self._failures += 1
        await self._duration(error=error, retry_attempts=self._failures)

    async def _error(self, error: Exception, *, is_internal: bool = False) -> None:
        if (address := self._place.address) is None:
            return
        lost = isinstance(error, (redis_exceptions.ConnectionError, redis_exceptions.TimeoutError))
        await _recorder.record_error_count(
            server_address=address.host,
            server_port=address.port,
            network_peer_address=address.host,
            network_peer_port=address.port,
            error_type=error,
            # redis-py counts the failure behind which there was no other attempt, too.
            retry_attempts=self._failures + lost,
            is_internal=is_internal,
        )

    async def _duration(self, **failure: Any) -> None:
        if (address := self._place.address) is None:
            return
        await _recorder.record_operation_duration(
            command_name=self._name,
            duration_seconds=time.monotonic() - self._started,
            server_address=address.host,
            server_port=address.port,
            db_namespace=str(address.db),
            **failure,
        )


class ClusterRecording(Recording):
    """The same of a cluster's client, where redis-py times failures, too, and counts redirects."""

    async def repeated(self, error: Exception) -> None:
        await self._duration(error=error)
        await self._error(error, is_internal=True)
        self._failures += isinstance(error, redis_exceptions.ConnectionError)

    async def _error(self, error: Exception, *, is_internal: bool = False) -> None:
        if not is_internal:
            await self._duration(error=error)
        await super()._error(error, is_internal=is_internal)


# -- tracers -------------------------------------------------------------------------------------
# OpenTelemetry's instrumentation, like others, replaces methods of redis-py's classes by function
# wrappers of the package wrapt, each with the function that it calls around the method.


def _is_wrapped(owner: type, name: str) -> bool:
    return type(owner.__dict__[name]) is not FunctionType  # `__class__` is that of the wrapped


def unwrapped(owner: type, name: str) -> Callable[..., Any]:
    """redis-py's own method, for what has been led through its wrappers already."""
    method = owner.__dict__[name]
    while hasattr(method, "_self_wrapper"):
        method = method.__wrapped__
    return method  # type: ignore[no-any-return]


def led_through(
    owner: type, name: str, instance: Any, own: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """``own``, a bound method, inside of all wrappers around redis-py's method of that name."""
    method = owner.__dict__[name]
    wrappers = []
    while hasattr(method, "_self_wrapper"):
        wrappers.append(method._self_wrapper)
        method = method.__wrapped__
    for wrapper in reversed(wrappers):
        own = _called_by(wrapper, own, instance)
    return own


def _called_by(
    wrapper: Callable[..., Any], inner: Callable[..., Awaitable[Any]], instance: Any
) -> Callable[..., Awaitable[Any]]:
    def call(*args: Any, **options: Any) -> Any:
        return wrapper(inner, instance, args, options)

    return call
