"""What is known of a command before it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ._multiplex._routing import Route, command_words, is_read_only, static_route

__all__ = ["Plan", "plan_for"]


class Plan(NamedTuple):
    """What follows from a command's name alone, worked out once."""

    shared: bool
    """It goes on the shared connection, whatever its arguments."""
    words: tuple[str, ...] | None
    """The name as separate words, where it holds a space: ``("CONFIG", "GET")``."""
    callback: Callable[..., Any] | None
    read_only: bool


def plan_for(
    name: Any, *, may_share: bool, with_tokens: bool, callbacks: Mapping[Any, Any]
) -> Plan:
    """The plan of the command ``name``, which redis-py passes as str or bytes.

    ``may_share`` is False for a client on one connection of its own; ``callbacks`` are redis-py's
    response callbacks.
    """
    words = command_words((name,))
    split: list[Any] = name.split() if isinstance(name, (str, bytes)) else [name]
    return Plan(
        shared=may_share and static_route(words, with_tokens=with_tokens) is Route.SHARED,
        words=tuple(split) if len(split) > 1 else None,
        callback=callbacks.get(name),
        read_only=is_read_only(words),
    )
