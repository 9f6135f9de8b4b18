"""Work that many wait for and one task does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from .._multiplex._ending import ignore_outcome
from .._redaction import again
from ..errors import ClosedError

__all__ = ["SharedWork"]


class SharedWork:
    """One task at a time: who comes while it runs waits for the same outcome.

    Belongs to one event loop. Nobody's cancellation stops the work but :meth:`cancel`.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def done(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do the work, or wait until it is done; raises what it raises.

        ``ClosedError`` where it was cancelled.
        """
        task = self._task
        if task is None:
            task = self._task = asyncio.ensure_future(work())
            task.add_done_callback(self._over)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ClosedError("the client of this cluster was closed meanwhile") from None
            raise
        except Exception as exc:
            raise again(exc) from exc.__cause__
        finally:
            del task  # it refers to its error, and the error to this frame

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        ignore_outcome(task)

    def cancel(self) -> list[asyncio.Task[None]]:
        """Stop; returns the task, if there is one, that has not ended yet."""
        if self._task is None:
            return []
        self._task.cancel()
        return [self._task]
