"""Interrupt a coroutine at its first, second, third ... suspension, and see what it leaves behind.

``Interruption`` drives a coroutine in the task that awaits it, counts the times it hands control
back to the event loop, and cancels the task at the one that was asked for. A sweep is a loop over
these numbers until the coroutine gets through.
"""

from __future__ import annotations

import asyncio
import enum
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

__all__ = ["Interrupted", "Interruption", "Moment", "Outcome", "no_complaints", "sweep"]


class Moment(enum.Enum):
    """When in a suspension the cancellation comes."""

    AT_ONCE = "as it begins"
    A_TURN_LATER = "a turn of the loop later"
    WITH_THE_RESULT = "when what is waited for is there, before the waiter has run"
    TWICE = "as it begins, and again at the next one, in the cleaning up"


class Interruption:
    """Await it in place of ``coroutine``: raises CancelledError at the suspension ``at``.

    ``suspensions`` counts; ``happened`` tells whether there were so many. The cancellation is
    ``Task.cancel`` of the task that awaits, as a timeout or a task group would do it.
    """

    def __init__(self, coroutine: Awaitable[Any], at: int, moment: Moment = Moment.AT_ONCE) -> None:
        self._coroutine = coroutine
        self._at = at
        self._moment = moment
        self._over = False
        self.suspensions = 0
        self.happened = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        try:
            yielded = next(steps)
            while True:
                self.suspensions += 1
                if self.suspensions == self._at:
                    self.happened = True
                    self._arrange(yielded)
                elif self.suspensions == self._at + 1 and self._moment is Moment.TWICE:
                    self._arrange(yielded)
                try:
                    sent = yield yielded
                except BaseException as exc:
                    yielded = steps.throw(exc)
                else:
                    yielded = steps.send(sent)
        except StopIteration as stop:
            return stop.value
        finally:
            self._over = True

    def _arrange(self, yielded: Any) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def cancel(*_: Any) -> None:
            if not self._over:
                task.cancel()

        match self._moment:
            case Moment.AT_ONCE | Moment.TWICE:
                cancel()
            case Moment.A_TURN_LATER:
                loop.call_soon(cancel)
            case Moment.WITH_THE_RESULT if yielded is None:
                loop.call_soon(cancel)
            case Moment.WITH_THE_RESULT:
                # The task adds its own callback when it gets hold of the future: after this one.
                yielded.add_done_callback(cancel)


class Outcome(NamedTuple):
    """How an interrupted operation ended: with a value, or as it should, with CancelledError."""

    finished: bool
    value: Any = None


Interrupted = Callable[[Coroutine[Any, Any, Any]], Awaitable[Outcome]]


async def sweep(
    run: Callable[[Interrupted], Awaitable[None]], moment: Moment, *, most: int = 400
) -> int:
    """Call ``run`` for each suspension until nothing is left to interrupt; how many there were.

    ``run`` is given what to run its operation with, and checks what the operation leaves behind.
    """
    for at in range(1, most):
        interruptions: list[Interruption] = []

        async def interrupted(operation: Coroutine[Any, Any, Any], at: int = at) -> Outcome:
            interruption = Interruption(operation, at, moment)
            interruptions.append(interruption)  # noqa: B023
            task = asyncio.ensure_future(interruption)
            await asyncio.wait([task])
            return Outcome(False) if task.cancelled() else Outcome(True, task.result())

        await run(interrupted)
        (interruption,) = interruptions
        if not interruption.happened:
            return interruption.suspensions
    raise AssertionError(f"{most} suspensions and no end")


@asynccontextmanager
async def no_complaints() -> AsyncIterator[None]:
    """Fail where something was said to the loop's exception handler: "never retrieved" and such."""
    loop = asyncio.get_running_loop()
    said: list[str] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: said.append(repr(context)))
    try:
        yield
        await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(before)
    assert said == []
