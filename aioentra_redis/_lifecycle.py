"""To whom an object belongs: one event loop in one process."""

from __future__ import annotations

import asyncio
import os

from .errors import ForkedError, LifecycleError, WrongLoopError

__all__ = ["Home", "wrong_loop"]


def wrong_loop(what: str) -> LifecycleError:
    """The error for something that is used from another event loop than its own."""
    return WrongLoopError(
        f"{what} belongs to another event loop: make one per loop (one inside each asyncio.run()), "
        "and reach it from other threads with asyncio.run_coroutine_threadsafe()"
    )


class Home:
    """The loop and process of an object: settled at its first use, checked at every other one."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._process = 0
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def gone(self) -> bool:
        """Whether nothing can be awaited there: its loop is closed, or this is a forked child."""
        loop = self.loop
        return loop is not None and (loop.is_closed() or self._process != os.getpid())

    def check(self) -> None:
        """Raise ``ForkedError`` or ``WrongLoopError`` where the caller is not at home."""
        # First, because asyncio denies that a forked child has a running loop.
        if self.loop is not None and self._process != os.getpid():
            raise ForkedError(
                f"{self._what} was started before this process was forked and shares its "
                "connection with the parent: make a new one in the child"
            )
        loop = asyncio.get_running_loop()
        if self.loop is None:
            self.loop, self._process = loop, os.getpid()
        elif self.loop is not loop:
            raise wrong_loop(self._what)
