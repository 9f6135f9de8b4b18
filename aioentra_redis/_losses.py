"""Losses under what goes on a dedicated connection: redis-py does not say what may have run.

It raises ConnectionError whether anything had been sent or not, and WatchError while it watches,
which invites to repeat what may have run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from redis import exceptions as redis_exceptions

from ._multiplex._routing import command_words, is_read_only
from ._recovery import maybe_executed
from ._redis_py import has_ended, was_lost_in_flight

__all__ = ["Flight", "alone", "is_harmless"]

_ABOUT_WATCHING = frozenset(("WATCH", "UNWATCH"))
"""What they do ends with their connection, so losing their answer loses nothing."""


class Flight:
    """What was sent on a connection, over all attempts at it: ``lost`` is how its replies were."""

    def __init__(self) -> None:
        self.lost: redis_exceptions.RedisError | None = None

    async def under(self, connection: Any, attempt: Awaitable[Any]) -> Any:
        """The outcome of ``attempt`` on ``connection``, which redis-py replaces if it was lost."""
        # Nothing of what is written to an ended connection arrives; and of one that is opened for
        # it, and that nobody keeps signed in, it is not known whether anything was written.
        unknown = not hasattr(connection, "in_band")
        unsent = has_ended(connection) or (
            unknown and not getattr(connection, "is_connected", True)  # a stand-in's may not say
        )
        try:
            return await attempt
        except redis_exceptions.RedisError as exc:
            if not unsent and was_lost_in_flight(connection, exc):
                self.lost = exc
            raise


async def alone(connection: Any, args: Sequence[Any], attempt: Awaitable[Any]) -> Any:
    """The outcome of ``attempt``, one command; ``MaybeExecutedError`` where it may have run."""
    flight = Flight()
    try:
        return await flight.under(connection, attempt)
    except redis_exceptions.ConnectionError:
        words = command_words(args)
        if flight.lost is None or is_harmless(words):
            raise
        raise maybe_executed(words, flight.lost) from flight.lost.__cause__


def is_harmless(words: str) -> bool:
    """Whether the loss of that command's reply leaves nothing in doubt."""
    return is_read_only(words) or words.partition(" ")[0] in _ABOUT_WATCHING
