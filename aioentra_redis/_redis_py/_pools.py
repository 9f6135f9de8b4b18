"""redis-py's connection pools: how one is made, where it leads, and what we leave on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "attach",
    "attached",
    "check_connection_options",
    "default_to_no_retries",
    "default_to_resp3",
    "detach",
    "pool_endpoint",
    "pool_from_url",
    "tells_how_to_connect",
]


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
    return str(kwargs.get("host", "localhost")), int(kwargs.get("port", 6379)), tls


def check_connection_options(pool: redis.asyncio.ConnectionPool) -> None:
    """Raise what redis-py raises for options that its connections don't take.

    Only a pool of ours is asked: somebody else's may hold a class whose making does things.
    """
    if attached(pool) is None and pool.connection_class.__module__ in (__package__, _CONNECTIONS):
        pool.connection_class(**pool.connection_kwargs)


_CONNECTIONS = AbstractConnection.__module__


_ATTRIBUTE = "_aioentra_multiplexed"


def attach(pool: redis.asyncio.ConnectionPool, multiplexed: object) -> None:
    """Remember the pool's multiplexed connection on it: clients that share a pool share both."""
    setattr(pool, _ATTRIBUTE, multiplexed)


def detach(pool: redis.asyncio.ConnectionPool) -> None:
    """Undo ``attach``."""
    setattr(pool, _ATTRIBUTE, None)


def attached(pool: redis.asyncio.ConnectionPool) -> Any:
    """What ``attach`` left on the pool, or None."""
    return getattr(pool, _ATTRIBUTE, None)


def default_to_resp3(kwargs: dict[str, Any]) -> None:
    """Ask for RESP3 unless the user chose.

    redis-py 8 does so by itself, and naming the protocol there would change the shape of replies.
    """
    if int(redis.__version__.partition(".")[0]) < 8:
        kwargs.setdefault("protocol", 3)


def default_to_no_retries(kwargs: dict[str, Any]) -> None:
    """Let no command be repeated unless the user said so.

    redis-py's clients repeat any command, writes included, three times by default; its pools and
    ``from_url()`` do not, and neither do we.
    """
    if kwargs.get("retry") is None:
        kwargs["retry"] = Retry(NoBackoff(), 0)
