"""How a pipeline gives its connection back: also where whoever uses it is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from redis.asyncio.client import Pipeline

__all__ = ["ReturningPipeline"]


class ReturningPipeline(Pipeline):
    """redis-py's ``Pipeline`` with a ``reset()`` that returns the connection in any case."""

    _resetting: asyncio.Task[None] | None = None
    """A reset that is under way, be its caller still there or not."""
    _giving_up = False

    async def reset(self) -> None:  # type: ignore[override]
        """Forget what was queued, and return the connection.

        Cancelling it closes the connection, which ends a WATCH as well, and returns it all the
        same; redis-py's own, before 8, keeps it leased for ever then.
        """
        if self._resetting is None:
            if not getattr(self.connection, "is_connected", True):
                self.watching = False  # to say UNWATCH redis-py would connect anew
            resetting: Any = super().reset()  # type: ignore[no-untyped-call]
            if self.connection is None:
                await resetting
                return
            self._reset_by(resetting)
        running = self._resetting
        assert running is not None
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            if self._resetting is running and not self._giving_up:
                self._giving_up = True
                await asyncio.shield(self._reset_by(self._give_up(running)))
            raise

    async def settled(self) -> None:
        """Wait for a reset that goes on although its caller was cancelled."""
        if self._resetting is not None:
            await asyncio.wait({self._resetting})

    def _reset_by(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have ``work`` done, whoever is cancelled meanwhile."""
        self._resetting = resetting = asyncio.get_running_loop().create_task(work)
        resetting.add_done_callback(self._was_reset)
        return resetting

    def _was_reset(self, resetting: asyncio.Task[None]) -> None:
        if self._resetting is resetting:
            self._resetting, self._giving_up = None, False

    async def _give_up(self, resetting: asyncio.Task[None]) -> None:
        """End an UNWATCH that nobody waits for, and return the connection where that did not."""
        resetting.cancel()
        await asyncio.wait({resetting})
        connection, self.connection = self.connection, None
        self.watching = self.explicit_transaction = False
        if connection is not None:
            await connection.disconnect()  # it has a reply that nobody has read
            await self.connection_pool.release(connection)
