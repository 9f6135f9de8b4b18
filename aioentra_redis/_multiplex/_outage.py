"""An outage of the multiplexed connection: who waits for its end, and what it ends with."""

from __future__ import annotations

import asyncio
import contextlib

from .._redaction import again

__all__ = ["Outage"]


class Outage:
    """From the first who waits for a session to the moment in which all of them are told.

    One object serves outage after outage. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self.waiting = 0
        """How many wait for its end."""
        self._over: asyncio.Future[None] | None = None
        self._demand = asyncio.Event()

    def begin(self) -> asyncio.Future[None]:
        """What is to be passed to :meth:`wait`; the same for all until the outage ends."""
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        return self._over

    async def wait(self, over: asyncio.Future[None]) -> None:
        """Wait for the end, and raise what it ended with; cancelling it is safe."""
        self.waiting += 1
        self.demand()
        try:
            await asyncio.shield(over)
        except Exception as exc:
            raise again(exc) from exc.__cause__
        finally:
            self.waiting -= 1

    def end(self, error: Exception | None = None) -> None:
        """Tell everybody who waits that there is a session, or why there will be none."""
        over, self._over = self._over, None
        if over is None or over.done():
            return
        if error is None:
            over.set_result(None)
        else:
            over.set_exception(error)
            over.exception()  # nobody may be waiting; that is no reason to complain

    def demand(self) -> None:
        """A session is needed: end what waits in :meth:`demanded`."""
        self._demand.set()

    async def demanded(self, timeout: float) -> None:
        """Wait until somebody needs a session from now on, for ``timeout`` seconds at most."""
        self._demand.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._demand.wait()
