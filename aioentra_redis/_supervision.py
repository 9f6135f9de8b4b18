"""Tasks that are not to end: each is started again, after a pause, when it did all the same.

A task of ours may be ended by a bug of ours, or by somebody who cancels every task that
``asyncio.all_tasks()`` shows. Where a renewal hangs on it, that must not go unnoticed until a
token has expired.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ._events import EventHub, TaskRestarted
from ._redaction import without_tracebacks
from ._schedule import MAX_SLEEP, restart_delay

__all__ = ["Supervised"]

logger = logging.getLogger("aioentra_redis.supervision")

Work = Callable[[], Coroutine[Any, Any, None]]
Starter = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class Supervised:
    """Runs ``work()`` as a task named ``name`` until it returns, or until :meth:`stop`.

    If it ends in another way it is run again after a pause (see :func:`restart_delay`), which is
    logged and told as ``TaskRestarted``; unless ``gives_up(error)``, with None where it was
    cancelled, says otherwise. ``start`` makes the task, where that takes more than a loop does.

    To be used in the running event loop. Where that ends, as ``asyncio.run`` does by cancelling
    all tasks, nothing is left and nothing is said.
    """

    def __init__(
        self,
        work: Work,
        *,
        name: str,
        hub: EventHub,
        gives_up: Callable[[Exception | None], bool] | None = None,
        start: Starter | None = None,
    ) -> None:
        self._work = work
        self._name = name
        self._hub = hub
        self._gives_up = gives_up
        self._loop = asyncio.get_running_loop()
        self._start = start  # no method of our own: we would refer to ourselves
        self._pause: asyncio.TimerHandle | None = None
        self._stopped = False
        self._restarts = 0
        self._began = 0.0
        self.task: asyncio.Task[None] | None = None
        """The task of the present run, or of the last one."""
        self._begin()

    def done(self) -> bool:
        """Whether it has ended and will not run again."""
        return self._pause is None and (self.task is None or self.task.done())

    def stop(self) -> asyncio.Task[None] | None:
        """Cancel the task, unless it is the caller, and start no other; idempotent.

        Returns the task if there is one that has not ended yet.
        """
        self._stopped = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        task = self.task
        if task is None or task.done():
            return None
        if task is not _current_task():
            task.cancel()
        return task

    def _create_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._loop.create_task(work, name=name)

    def _begin(self) -> None:
        self._pause = None
        self._began = self._loop.time()
        start = self._start or self._create_task
        self.task = start(self._work(), self._name)
        self.task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        """Decide what follows the end of a run."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            without_tracebacks(error)
        if self._stopped or not (task.cancelled() or error is not None):
            if error is not None:
                logger.debug("%s failed while it was stopped: %r", self._name, error)
            return
        cause = error if isinstance(error, Exception) else None
        if error is not None:
            logger.error("%s has failed: %r", self._name, error)
        if self._gives_up is not None and self._gives_up(cause):
            return
        if self._loop.time() - self._began >= MAX_SLEEP:
            self._restarts = 0
        self._restarts += 1
        pause = restart_delay(self._restarts)
        # A timer, not a task: where the loop is about to be closed, nothing is left pending.
        self._pause = self._loop.call_later(pause, self._begin_again, cause, pause)

    def _begin_again(self, cause: Exception | None, pause: float) -> None:
        self._pause = None
        # Asyncio says it in no other way: all tasks have been cancelled for good, and the loop
        # runs on only until the threads of its executor have ended.
        if getattr(self._loop, "_asyncgens_shutdown_called", False):
            return
        how = "it has failed" if cause is not None else "somebody else has cancelled it"
        logger.error("%s is started again after %g s: %s", self._name, pause, how)
        self._hub.emit(TaskRestarted(task=self._name, error=cause, pause=pause))
        self._begin()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # called when no loop runs
        return None
