"""What an error says about where a command belongs; a pure table.

Everything here but a loss is a server's refusal: the command was not executed, so it may always
be sent again.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from redis import exceptions as redis_exceptions

from .._redis_py import is_exhausted
from ..errors import MaybeExecutedError
from ._addresses import Advertised, Refused, in_redirect

__all__ = ["Action", "Redirect", "judge"]


class Action(enum.Enum):
    """What to do about an error."""

    MOVED = "moved"
    """The slot has another owner: remember that, and send it there."""
    ASK = "ask"
    """This once it is for another node, right behind ASKING."""
    AGAIN = "again"
    """The same way in a moment: a slot is being moved, a server is loading its data."""
    REFRESH = "refresh"
    """Who owns the slot is about to change: find out, and send it there."""
    LOST = "lost"
    """The connection ended, or there is none: whether it may be repeated is another question."""
    RAISE = "raise"
    """It is the caller's."""


class Redirect(NamedTuple):
    """An action; with MOVED and ASK, where to and for which slot."""

    action: Action
    to: Advertised | Refused = Refused("a redirect without address")
    slot: int = -1


_RAISE: Final = Redirect(Action.RAISE)

_ACTIONS: Final[tuple[tuple[type[Exception], Action], ...]] = (
    (redis_exceptions.TryAgainError, Action.AGAIN),
    (redis_exceptions.BusyLoadingError, Action.AGAIN),
    (redis_exceptions.ClusterDownError, Action.REFRESH),
    (redis_exceptions.MasterDownError, Action.REFRESH),
    (redis_exceptions.ReadOnlyError, Action.REFRESH),
    (redis_exceptions.SlotNotCoveredError, Action.REFRESH),
    # redis-py's ConnectionError has replies among its kinds, and what waiting does not help with.
    (redis_exceptions.AuthenticationError, Action.RAISE),
    (redis_exceptions.AuthorizationError, Action.RAISE),
    (MaybeExecutedError, Action.RAISE),
    (redis_exceptions.ConnectionError, Action.LOST),
)


def judge(error: Exception) -> Redirect:
    """What to do about ``error``, how a command's attempt on one node has ended."""
    if isinstance(error, redis_exceptions.AskError):  # MovedError is one, too
        moved = isinstance(error, redis_exceptions.MovedError)
        action = Action.MOVED if moved else Action.ASK
        return Redirect(action, in_redirect(str(error)), error.slot_id)
    for kind, action in _ACTIONS:
        if isinstance(error, kind):
            return _RAISE if is_exhausted(error) else Redirect(action)
    return _RAISE
