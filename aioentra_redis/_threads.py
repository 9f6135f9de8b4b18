"""Running a blocking call off the event loop, in a daemon thread of its own.

Not in the loop's default executor: ``asyncio.run`` joins that one, so a synchronous credential
that hangs would keep the program from ending, and a few of them would starve everybody else's
``getaddrinfo``. A daemon thread that hangs is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["call_in_thread"]

T = TypeVar("T")


async def call_in_thread(function: Callable[[], T], name: str) -> T:
    """Call ``function`` in a new daemon thread and return what it returns.

    Cancelling the wait does not end the thread: its result is then thrown away. A thread per call
    is no waste, because calls are an hour apart, and there is none to stop afterwards.
    """
    loop = asyncio.get_running_loop()
    # The outcome travels as a value: an exception that nobody retrieves would be logged.
    outcome: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if not outcome.done():
            outcome.set_result((result, error))

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as caught:
            error = caught
        # The loop may be gone by now, if the call was abandoned.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=work, name=name, daemon=True).start()
    result, error = await outcome
    if error is not None:
        if not isinstance(error, Exception) or isinstance(error, StopIteration):
            raise RuntimeError(f"the call ended with {type(error).__name__}: {error}") from error
        raise error
    return result  # type: ignore[return-value]
