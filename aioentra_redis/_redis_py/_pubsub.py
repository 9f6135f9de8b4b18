"""What redis-py's pools and parsers have to do with publish/subscribe connections."""

from __future__ import annotations

import copy
import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis.asyncio import cluster
from redis.asyncio.client import PubSub

from ._capabilities import has

__all__ = [
    "ClusterKeyspaceBase",
    "ClusterPubSubBase",
    "decoded",
    "default_retry",
    "exchange",
    "handled_push",
]


if TYPE_CHECKING:
    from redis.asyncio.keyspace_notifications import (
        AsyncClusterKeyspaceNotifications as ClusterKeyspaceBase,
    )

    ClusterPubSubBase = PubSub
else:
    ClusterPubSubBase = getattr(cluster, "ClusterPubSub", PubSub)
    """redis-py's subscriber of a cluster, which came with version 8.1."""
    ClusterKeyspaceBase = object
    if has("keyspace_notifications"):
        _keyspace = import_module("redis.asyncio.keyspace_notifications")
        ClusterKeyspaceBase = _keyspace.AsyncClusterKeyspaceNotifications


def default_retry() -> Any:
    """What redis-py's client of this version does about a lost connection; None up to version 5.

    Subscribing again repeats nothing, so there is no reason to do less.
    """
    return copy.deepcopy(_DEFAULT_RETRY)


_DEFAULT_RETRY = inspect.signature(redis.asyncio.Redis).parameters["retry"].default


def exchange(pool: redis.asyncio.ConnectionPool, old: Any, new: Any) -> None:
    """Let ``new`` stand for the lease of ``old``, which the pool forgets."""
    new.retry = old.retry
    # Once it is back in the pool and signs in anew, it is kept signed in as the pool's others are.
    new.credential_provider.keeper = old.credential_provider.keeper
    pool._in_use_connections.discard(old)
    pool._in_use_connections.add(new)


async def handled_push(connection: Any, push: list[Any]) -> Any:
    """What is left of an out-of-band message for the reader, None if it was none of its business.

    redis-py's parser hands messages to ``push_handler_func=``, and news of maintenance to its own
    handlers; up to redis-py 5 its hiredis parser does neither.
    """
    handle = getattr(connection._parser, "handle_push_response", None)
    return push if handle is None else await handle(push)


def decoded(connection: Any, item: Any) -> Any:
    """``item`` with its strings decoded, if the connection decodes replies.

    Raises UnicodeDecodeError.
    """
    if isinstance(item, list):
        return [decoded(connection, part) for part in item]
    return connection.encoder.decode(item) if isinstance(item, bytes) else item
