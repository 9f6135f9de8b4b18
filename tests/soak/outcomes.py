"""What an error says of the command that it ended."""

from __future__ import annotations

import asyncio
import enum

from redis import exceptions as redis_exceptions

from aioentra_redis import (
    CommandTimeoutError,
    ConnectError,
    ConnectionLostError,
    MaybeExecutedError,
    TokenError,
)

__all__ = ["Outcome", "outcome_of"]


class Outcome(enum.Enum):
    """What became of a command."""

    DONE = "done"
    NOT_RUN = "not executed"
    MAYBE = "executed by now, or never"
    LATE = "executed by now, or later, or never"


def outcome_of(error: BaseException) -> Outcome | None:
    """What is promised of a command that ended in ``error``; None where it had a reply.

    Plain redis-py promises nothing: after any of its own connection errors it may have run.
    """
    match error:
        case asyncio.CancelledError() | CommandTimeoutError():
            return Outcome.LATE
        case MaybeExecutedError():
            return Outcome.MAYBE
        case ConnectError() | TokenError() | redis_exceptions.WatchError():
            return Outcome.NOT_RUN
        case ConnectionLostError():
            return Outcome.MAYBE if error.written else Outcome.NOT_RUN
        case redis_exceptions.ConnectionError() | redis_exceptions.TimeoutError() | OSError():
            return Outcome.MAYBE
    return None
