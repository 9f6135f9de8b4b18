"""redis-py's connection pools: how one is made, where it leads, and what we leave on it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

import redis.asyncio
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MaxConnectionsError

from ..errors import ConfigurationError
from ._capabilities import has
from ._maintenance import forget_connection

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "attach",
    "attached",
    "check_connection_options",
    "default_to_host_names",
    "default_to_no_retries",
    "default_to_resp3",
    "detach",
    "follows_a_master",
    "is_exhausted",
    "lend_after",
    "limit_connections",
    "names_its_host",
    "pool_endpoint",
    "pool_from_url",
    "pool_retry",
    "tells_how_to_connect",
]

MAX_CONNECTIONS: Final = 100
"""redis-py's own default from version 8 on; earlier ones had none."""


def pool_from_url(url: str, kwargs: Mapping[str, Any]) -> redis.asyncio.ConnectionPool:
    """redis-py's pool for a URL and keywords of redis-py's."""
    return redis.asyncio.ConnectionPool.from_url(url, **kwargs)


def tells_how_to_connect(pool: object) -> bool:
    """Whether ``pool`` says how its connections are made, so that we can make one beside it.

    redis-py's do. It asks no more of one than to lend connections, and neither does a client of
    ours: over one that does no more than that, each command borrows a connection.
    """
    kind, kwargs = (getattr(pool, name, None) for name in ("connection_class", "connection_kwargs"))
    return isinstance(kind, type) and isinstance(kwargs, dict)


def pool_endpoint(pool: redis.asyncio.ConnectionPool) -> tuple[str, int, bool]:
    """Host (or socket path), port and whether TLS is used, of the connections of ``pool``."""
    kwargs = pool.connection_kwargs
    tls = issubclass(pool.connection_class, SSLConnection)
    if "path" in kwargs:
        return str(kwargs["path"]), 0, False
    if (service := getattr(pool, "service_name", None)) is not None:  # Sentinel's: it knows where
        return str(service), 0, tls
    return str(kwargs.get("host", "localhost")), int(kwargs.get("port", 6379)), tls


def names_its_host(pool: redis.asyncio.ConnectionPool) -> bool:
    """Whether it is known before a dial which host is reached: not with Sentinel, nor a socket's
    path."""
    return "path" not in pool.connection_kwargs and not hasattr(pool, "service_name")


def check_connection_options(pool: redis.asyncio.ConnectionPool) -> None:
    """Raise what redis-py raises for options that its connections don't take.

    Only a pool of ours is asked: somebody else's may hold a class whose making does things.
    ``entra_kwargs()`` is a ``ConfigurationError``: a connection that is handed over leaves behind
    what it has put there, and nothing would renew it.
    """
    hook = pool.connection_kwargs.get("redis_connect_func")
    if getattr(getattr(hook, "__self__", None), "is_for_plain_clients", False):
        raise ConfigurationError(
            "entra_kwargs() is for redis-py's own clients; pass token_source= to EntraRedis"
        )
    if attached(pool) is None and pool.connection_class.__module__ in (__package__, _CONNECTIONS):
        forget_connection(pool.connection_class(**pool.connection_kwargs))


_CONNECTIONS = AbstractConnection.__module__


_ATTRIBUTE = "_aioentra_multiplexed"


class Attached(Protocol):
    """What a pool's owner can do to the multiplexed connection that rides on it."""

    async def disconnect(self, *, inuse: bool) -> None: ...
    def forget(self) -> None: ...


def attach(pool: redis.asyncio.ConnectionPool, multiplexed: Attached) -> None:
    """Remember the pool's multiplexed connection on it: clients that share a pool share both.

    From now on what is done to the pool reaches that connection, too: ``disconnect()``, which
    ``aclose()`` calls, ``reset()`` and ``set_retry()``.
    """
    setattr(pool, _ATTRIBUTE, multiplexed)
    hooks = _Hooks(pool, multiplexed)
    for name in _HOOKED:
        setattr(pool, name, getattr(hooks, name))


def detach(pool: redis.asyncio.ConnectionPool) -> None:
    """Undo ``attach``."""
    setattr(pool, _ATTRIBUTE, None)
    for name in _HOOKED:
        vars(pool).pop(name, None)


_HOOKED = ("disconnect", "reset", "set_retry")


class _Hooks:
    """What stands in front of a pool's own methods; it does not keep the pool alive."""

    def __init__(self, pool: redis.asyncio.ConnectionPool, multiplexed: Attached) -> None:
        self._pool = weakref.ref(pool)
        self._kind: Any = type(pool)
        self._multiplexed = multiplexed

    async def disconnect(self, inuse_connections: bool = True) -> None:
        try:
            await self._kind.disconnect(self._pool(), inuse_connections)
        finally:
            await self._multiplexed.disconnect(inuse=inuse_connections)

    def reset(self) -> None:
        self._kind.reset(self._pool())
        self._multiplexed.forget()

    def set_retry(self, retry: Retry) -> None:
        pool = self._pool()
        assert pool is not None
        # redis-py tells the connections that there are; the shared one asks ``pool_retry``.
        pool.connection_kwargs["retry"] = retry
        self._kind.set_retry(pool, retry)


def pool_retry(pool: redis.asyncio.ConnectionPool) -> Retry | None:
    """When commands on connections of the pool are sent again; None if the user never said so."""
    retry: Retry | None = pool.connection_kwargs.get("retry")
    return None if isinstance(retry, _Unasked) else retry


def follows_a_master(pool: redis.asyncio.ConnectionPool) -> bool:
    """Whether the pool asks Sentinel for a master, which may become a replica."""
    return bool(getattr(pool, "is_master", False))


def attached(pool: redis.asyncio.ConnectionPool) -> Any:
    """What ``attach`` left on the pool, or None."""
    return getattr(pool, _ATTRIBUTE, None)


def default_to_resp3(kwargs: dict[str, Any]) -> None:
    """Ask for RESP3 unless the user chose.

    Where redis-py does so by itself, replies keep their shape, and naming the protocol would
    change it. Before that the two go together: replies look as with redis-py's ``protocol=3``.
    """
    if not has("legacy_responses"):
        kwargs.setdefault("protocol", 3)


def default_to_no_retries(kwargs: dict[str, Any]) -> None:
    """Let no command be repeated unless the user said so.

    redis-py's clients repeat any command, writes included, three times by default; its pools and
    ``from_url()`` do not, and neither do we.
    """
    if kwargs.get("retry") is None:
        kwargs["retry"] = _Unasked(NoBackoff(), 0)


def default_to_host_names(kwargs: dict[str, Any]) -> None:
    """Have redis-py's own clients check host names unless the user said otherwise.

    ``Redis(ssl=True)`` of redis-py 5 hands its pool ``ssl_check_hostname=False``, which looks as if
    the user had asked for it.
    """
    if kwargs.get("ssl") and kwargs.get("ssl_cert_reqs", "required") == "required":
        kwargs.setdefault("ssl_check_hostname", True)


class _Unasked(Retry):
    """What stands in for the retries of a user who said nothing about them; redis-py copies it."""


def limit_connections(kwargs: dict[str, Any], limit: int | None) -> None:
    """Have a pool that is made with ``kwargs`` hold no more than ``limit`` connections.

    Raises ``ConfigurationError`` for what is no number of connections.
    """
    if limit is None:
        if kwargs.get("max_connections") is None:
            kwargs["max_connections"] = MAX_CONNECTIONS
        return
    if type(limit) is not int or limit < 1:
        raise ConfigurationError(
            f"max_dedicated_connections= is a number of connections, 1 or more, not {limit!r}"
        )
    kwargs["max_connections"] = limit


def is_exhausted(error: Exception) -> bool:
    """Whether that is what a pool says which has no connection to spare.

    From redis-py 7 on the one that does not wait has a class of its own for it.
    """
    return isinstance(error, MaxConnectionsError) or str(error) in (
        "Too many connections",
        "No connection available.",
    )


def lend_after(pool: redis.asyncio.ConnectionPool, connection: object, last: int) -> None:
    """Have ``pool`` hand out its other idle connections before this one, but for the ``last`` ones.

    A pool takes the last of its list. One that keeps its connections in another way is left alone.
    """
    idle = getattr(pool, "_available_connections", None)
    if isinstance(idle, list) and connection in idle:
        idle.remove(connection)
        idle.insert(last, connection)
