"""What is known of a command before it is sent, and what keeps that from going stale."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from redis.client import CaseInsensitiveDict
from redis.exceptions import DataError

from ._multiplex._routing import NO_OVERRIDES, Route, command_words, is_read_only, static_route

__all__ = ["FINAL", "Callbacks", "Plan", "awaited", "plan_for"]

FINAL: Final = frozenset((bytes, str, int, float, bool, list, dict, set, tuple, type(None)))
"""What response callbacks nearly always return; none of it is awaitable."""


class Plan(NamedTuple):
    """What follows from a command's name alone, worked out once."""

    shared: bool
    """It goes on the shared connection, whatever its arguments."""
    words: tuple[str, ...] | None
    """The name as separate words, where it holds a space: ``("CONFIG", "GET")``."""
    callback: Callable[..., Any] | None
    read_only: bool


def plan_for(
    name: Any,
    *,
    may_share: bool,
    with_tokens: bool,
    callbacks: Mapping[Any, Any],
    overrides: Mapping[str, Route] = NO_OVERRIDES,
) -> Plan:
    """The plan of the command ``name``, which redis-py passes as str or bytes.

    ``may_share`` is False for a client on one connection of its own; ``callbacks`` are redis-py's
    response callbacks; ``overrides`` the user's routes. Raises redis-py's DataError for what is no
    name.
    """
    split: list[Any] = name.split() if isinstance(name, (str, bytes)) else []
    if not split:
        raise DataError(f"a command begins with its name, a str or bytes, not with {name!r:.100}")
    words = command_words((name,))
    where = static_route(words, with_tokens=with_tokens, overrides=overrides)
    return Plan(
        shared=may_share and where is Route.SHARED,
        words=None if split == [name] else tuple(split),
        callback=callbacks.get(name),
        read_only=is_read_only(words),
    )


class Callbacks(CaseInsensitiveDict):
    """redis-py's response callbacks, which tell of each change: plans hold what they held before.

    ``on_change`` is called after a change, whichever way of a dictionary it came.
    """

    def __init__(self, callbacks: Mapping[Any, Any], on_change: Callable[[], None]) -> None:
        self._on_change: Callable[[], None] = lambda: None
        super().__init__(dict(callbacks))
        self._on_change = on_change

    def __setitem__(self, name: Any, callback: Any) -> None:
        super().__setitem__(name, callback)  # type: ignore[no-untyped-call]
        self._on_change()

    def __delitem__(self, name: Any) -> None:
        super().__delitem__(name)  # type: ignore[no-untyped-call]
        self._on_change()

    def update(self, *others: Any, **more: Any) -> None:
        for name, callback in dict(*others, **more).items():
            self[name] = callback

    def __ior__(self, other: Any) -> Callbacks:  # type: ignore[misc]
        self.update(other)
        return self

    def setdefault(self, name: Any, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, name: Any, *default: Any) -> Any:
        callback = super().pop(name.upper(), *default)
        self._on_change()
        return callback

    def popitem(self) -> tuple[Any, Any]:
        item = super().popitem()
        self._on_change()
        return item

    def clear(self) -> None:
        super().clear()
        self._on_change()


async def awaited(reply: Any) -> Any:
    """A response callback's result; redis-py lets callbacks return awaitables."""
    return await reply if inspect.isawaitable(reply) else reply
