"""The way of every call of the load: counted, judged, and cancelled now and then."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from .findings import Findings, Kind
from .outcomes import Outcome, outcome_of
from .schedule import Windows

__all__ = ["Calls", "Gate"]

STUCK = 45.0
"""Seconds after which a call is taken to be stuck: ``recovery_timeout`` is 30."""


class Gate:
    """Lets calls through, and shuts for as long as somebody wants to look at the client at rest."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    async def __aenter__(self) -> None:
        await self._open.wait()
        self._inside += 1
        self._empty.clear()

    async def __aexit__(self, *_: object) -> None:
        self._inside -= 1
        if not self._inside:
            self._empty.set()

    async def shut(self, timeout: float) -> bool:
        """Let nobody in any more, and wait for those inside; False if that takes too long."""
        self._open.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def open(self) -> None:
        self._open.set()


class Calls:
    """Calls, what became of them, and whether a fault excuses those that failed.

    Calls that ``may_be_cancelled`` are, at random, a fraction ``cancelled`` of them.
    """

    def __init__(
        self, findings: Findings, windows: Windows, seed: int, cancelled: float = 0.02
    ) -> None:
        self.findings = findings
        self.windows = windows
        self.gate = Gate()
        self.stopping = False
        self.total = 0
        self.failures: Counter[str] = Counter()
        self.cancelled = 0
        self.slowest = 0.0
        self._random = random.Random(seed)
        self._fraction = cancelled

    async def attempt(
        self,
        call: Callable[[], Awaitable[Any]],
        *,
        may_be_cancelled: bool = False,
        at_rest: bool = True,
    ) -> tuple[Outcome, Any]:
        """Make a call; how it ended, and its reply.

        ``at_rest`` is False for what waits on purpose: it does not keep the client from its rest.
        """
        if not at_rest:
            return await self._attempt(call, False)
        async with self.gate:
            return await self._attempt(call, may_be_cancelled)

    async def _attempt(
        self, call: Callable[[], Awaitable[Any]], may_be_cancelled: bool
    ) -> tuple[Outcome, Any]:
        self.total += 1
        started = time.monotonic()
        try:
            async with asyncio.timeout(STUCK):
                if may_be_cancelled and self._random.random() < self._fraction:
                    return await self._cancel(call)
                reply = await call()
        except TimeoutError as error:
            if time.monotonic() - started < STUCK:
                return await self._failed(error), None
            self.findings.add(Kind.UNEXPLAINED, f"a call was stuck for {STUCK:g} s")
            return Outcome.LATE, None
        except Exception as error:
            return await self._failed(error), None
        self.slowest = max(self.slowest, time.monotonic() - started)
        return Outcome.DONE, reply

    async def _failed(self, error: Exception) -> Outcome:
        outcome = outcome_of(error)
        self.failures[type(error).__name__] += 1
        text = f"{type(error).__name__}: {error}"[:300]
        if outcome is None:
            self.findings.add(Kind.UNEXPLAINED, text)
        elif not self.windows.excuses_error(error, time.time()):
            last = self.windows.all[-1].kind.name if self.windows.all else "none yet"
            self.findings.add(Kind.UNEXPLAINED, f"{text} (the last fault: {last})")
        await asyncio.sleep(self._random.uniform(0.01, 0.05))
        return outcome or Outcome.LATE

    async def _cancel(self, call: Callable[[], Awaitable[Any]]) -> tuple[Outcome, Any]:
        """Give a call up while it is under way, at whichever point it is by then."""
        task = asyncio.ensure_future(call())
        for _ in range(self._random.randint(0, 3)):
            await asyncio.sleep(0)
        if self._random.random() < 0.5:
            await asyncio.sleep(self._random.uniform(0, 0.002))
        task.cancel()
        try:
            reply = await task
        except asyncio.CancelledError:
            self.cancelled += 1
            return Outcome.LATE, None
        return Outcome.DONE, reply

    def expect(self, got: object, wanted: object, what: str) -> None:
        """A reply that can only be one thing."""
        if got != wanted:
            text = f"{what}: {str(got)[:100]} instead of {str(wanted)[:100]}"
            self.findings.add(Kind.WRONG_REPLY, text)
