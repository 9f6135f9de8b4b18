"""What redis-py's pools and parsers have to do with publish/subscribe connections."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import redis.asyncio

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = ["decoded", "default_retry", "exchange", "handled_push"]


def default_retry() -> Any:
    """What redis-py's client of this version does about a lost connection; None up to version 5.

    Subscribing again repeats nothing, so there is no reason to do less.
    """
    return copy.deepcopy(_DEFAULT_RETRY)


_DEFAULT_RETRY = inspect.signature(redis.asyncio.Redis).parameters["retry"].default


def exchange(
    pool: redis.asyncio.ConnectionPool, old: AbstractConnection, new: AbstractConnection
) -> None:
    """Let ``new`` stand for the lease of ``old``, which the pool forgets."""
    new.retry = old.retry
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
