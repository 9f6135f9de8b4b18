"""What is known of a command in a cluster before it is sent: its route and where its keys are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .._multiplex._routing import NO_OVERRIDES, Route
from .._plans import FINAL, awaited
from .._plans import plan_for as single_plan_for
from .._redis_py import READ_COMMANDS, key_range
from ._slots import MOVABLE, Finder, find_in_range

__all__ = ["FINAL", "Plan", "awaited", "name_of", "plan_for"]


class Plan(NamedTuple):
    """What follows from a command's name alone, worked out once."""

    shared: bool
    """It goes on a node's shared connection, whatever its arguments."""
    words: tuple[str, ...] | None
    """The name as separate words, where it holds a space: ``("CONFIG", "GET")``."""
    callback: Callable[..., Any] | None
    read_only: bool
    key: int
    """The place of its first key among the arguments, 0 where it is another matter."""
    more: bool
    """More keys may follow the first one."""
    find: Finder | None
    """Finds all of its keys; None where that takes redis-py's parser."""
    balanced: bool
    """It may be read from a replica."""
    alone: bool
    """redis-py gives it a node flag or a policy: its keys, if any, don't say where it goes."""


def name_of(name: Any) -> str:
    """The name of a command, or what else was passed for one, as redis-py's tables spell it."""
    text = name.decode("latin-1") if isinstance(name, (bytes, bytearray)) else str(name)
    return text.upper()


def plan_for(
    name: Any,
    *,
    commands: Mapping[str, Any],
    alone: bool,
    balances: bool,
    utf8: bool,
    with_tokens: bool,
    callbacks: Mapping[Any, Any],
    overrides: Mapping[str, Route] = NO_OVERRIDES,
) -> Plan:
    """The plan of the command ``name``, which redis-py passes as str or bytes.

    ``commands`` is the server's COMMAND as redis-py's parser keeps it; ``balances`` says that
    replicas are read; ``utf8`` that keys become bytes in the usual way. The rest is as in
    ``_plans.plan_for``. Raises redis-py's DataError for what is no name.
    """
    shared, words, callback, read_only = single_plan_for(
        name,
        may_share=True,
        with_tokens=with_tokens,
        callbacks=callbacks,
        overrides=overrides,
    )
    upper = name_of(name)
    key, more, find = 0, True, None
    if not alone:
        find = MOVABLE.get(upper)
        split = tuple(upper.split())
        if find is None and (place := key_range(commands, split)) is not None:
            # Positions count words; a name of two words is one argument.
            first = place.first - (len(split) - 1)
            last = place.last if place.last < 0 else place.last - (len(split) - 1)
            key, more = first if utf8 else 0, first != last
            find = find_in_range(first, last, place.step)
    return Plan(
        shared=shared,
        words=words,
        callback=callback,
        read_only=read_only,
        key=key,
        more=more,
        find=find,
        balanced=balances and upper in READ_COMMANDS,
        alone=alone,
    )
