"""How many may sign in at once: the rest wait in order, and nobody waits for ever.

A fleet of connections that sign in, or re-authenticate, at the same moment would hold up the event
loop and the server; Azure Managed Redis limits the rate of new connections. A server that does not
answer, on the other hand, must not hold up the AUTHs of others past their deadline. So a slot is
given up by time as well, and who can't wait any longer goes without one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from ._schedule import SLOT_HOLD

__all__ = ["Budget", "Slot"]


class Slot:
    """Leave to sign in, until :meth:`release`, which is idempotent, or for ``SLOT_HOLD`` s."""

    __slots__ = ("_budget", "_timer")

    def __init__(self, budget: Budget | None) -> None:
        self._budget = budget
        self._timer: asyncio.TimerHandle | None = None
        if budget is not None:
            self._timer = asyncio.get_running_loop().call_later(SLOT_HOLD, self.release)

    def release(self) -> None:
        """Let the next one in."""
        budget, self._budget = self._budget, None
        if budget is not None:
            if self._timer is not None:
                self._timer.cancel()
            budget._give_back()


class Budget:
    """``limit`` slots, handed out in order of arrival. Belongs to one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = self._free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many are in line."""
        return len(self._waiting)

    @property
    def is_whole(self) -> bool:
        """Whether every slot is free."""
        return self._free == self._limit

    def take_now(self) -> Slot | None:
        """A slot if there is one and nobody waits for it."""
        if not self._free or self._waiting:
            return None
        self._free -= 1
        return Slot(self)

    async def take(self, patience: float | None = None) -> Slot:
        """A slot, as soon as there is one; after ``patience`` seconds go without.

        Does not let go of the event loop where there is one. Cancelling it gives up the place.
        """
        slot = self.take_now()
        if slot is not None:
            return slot
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await turn
                return Slot(self)
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._give_back()  # it was our turn, but we are gone
            raise
        finally:
            if not turn.done() or turn.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)
        if turn.done() and not turn.cancelled():
            return Slot(self)  # in the very moment in which patience ended
        return Slot(None)

    def _give_back(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the slot changes hands
                return
        self._free += 1
