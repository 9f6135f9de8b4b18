"""redis-py's maintenance notifications, where they concern a connection that was handed over.

redis-py applies them to the connections that its pool knows, and to its settings for new ones. The
shared connection is not among the former, so what they would get is done to it here; while a move
is under way, what its pool has learned holds for it, too.
"""

from __future__ import annotations

import logging
from typing import Any

from ._capabilities import has

__all__ = ["dispatch", "forget_connection", "forget_pool", "patience_of"]

logger = logging.getLogger("aioentra_redis.connection")


async def dispatch(connection: Any, push: list[Any]) -> None:
    """Hand an out-of-band message (maintenance, invalidation) to redis-py's own handlers."""
    if not has("resp3_pushes"):
        return  # a redis-py without handlers: nobody can have asked for the message
    try:
        await connection._parser.handle_push_response(push)
        if push[0] in (b"MOVING", "MOVING"):
            _relax(connection)
    except Exception:
        logger.exception("a push notification handler of redis-py raised")


def _pool_handler(connection: Any) -> Any:
    return getattr(connection, "_maint_notifications_pool_handler", None)


def _pool_state(handler: Any) -> Any:
    """The state in which redis-py's pool makes connections, until the time of a move is over."""
    return handler.pool.connection_kwargs.get("maintenance_state")


def _relax(connection: Any) -> None:
    """Give ``connection`` the patience that redis-py has just given to those of its pool."""
    handler = _pool_handler(connection)
    if handler is None or (state := _pool_state(handler)) is None:
        return
    handler.pool.update_connection_settings(
        connection, state=state, relaxed_timeout=handler.config.relaxed_timeout
    )


def patience_of(connection: Any) -> float | None:
    """Seconds that a reply may take at this moment, None without end.

    Relaxed during maintenance, but never below what the user has set: redis-py's 10 s may be less.
    """
    seconds: float | None = connection.socket_timeout
    state = getattr(connection, "maintenance_state", None)
    if state is None or state.value == "none":
        return seconds
    handler = _pool_handler(connection)
    if handler is None:  # of a cluster's: there is no moving
        usual: float | None = connection.orig_socket_timeout
    elif state.value == "moving" and _pool_state(handler) is not state:
        handler.pool.update_connection_settings(
            connection,
            state=type(state).NONE,
            reset_relaxed_timeout=handler.config.is_relaxed_timeouts_enabled(),
        )
        return connection.socket_timeout  # type: ignore[no-any-return]
    else:
        usual = handler.pool.connection_kwargs.get("orig_socket_timeout")
    return None if seconds is None or usual is None else max(seconds, usual)


# -- the end -------------------------------------------------------------------------------------

_PUSH_HANDLERS = (
    "invalidation_push_handler_func",
    "maintenance_push_handler_func",
    "node_moving_push_handler_func",
    "oss_cluster_maint_push_handler_func",
    "pubsub_push_handler_func",
)
_HANDLERS = ("_maint_notifications_connection_handler", "_maint_notifications_pool_handler")


def forget_connection(connection: Any) -> None:
    """Undo that a connection and its handlers refer to each other; it must not be used any more.

    It is to be gone at once, not when the garbage collector comes by.
    """
    _set_to_none(connection, _HANDLERS)
    parser = getattr(connection, "_parser", None)  # a class of the user's may have none
    if parser is not None:
        _set_to_none(parser, _PUSH_HANDLERS)


def forget_pool(pool: Any) -> None:
    """Undo that a pool and its handler refer to each other, and forget what it holds, likewise."""
    pool.connection_kwargs.pop("maint_notifications_pool_handler", None)
    _set_to_none(pool, _HANDLERS)
    for connection in (*pool._available_connections, *pool._in_use_connections):
        forget_connection(connection)


def _set_to_none(owner: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(owner, name, None) is not None:
            setattr(owner, name, None)
