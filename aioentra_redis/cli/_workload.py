"""The load of the demo: workers that send commands and check every reply.

Each worker has a counter and a key of its own. It increments the counter, whose reply must be one
more than before; stores a value that nobody else stores; and reads it back. A reply that went to
the wrong caller, was lost or came twice shows at once, and the counters are compared with what the
server holds at the end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Final

from ._statistics import Recorder

__all__ = ["Workload"]

PAUSE_AFTER_FAILURE: Final = 0.05
"""Seconds; when nothing works, workers must not take all the time there is."""

PATIENCE: Final = 5.0
"""Seconds that a command may still take when the load has ended."""

MAX_KINDS: Final = 20
"""Failures that are told apart by their text; the rest are only counted."""

_FAILED: Final = object()


class Workload:
    """So many workers on one client; ``recorder`` gets their latencies.

    ``clock`` is monotonic, in seconds, and the one that ``recorder`` is told of rotations with.
    """

    def __init__(
        self,
        redis: Any,
        workers: int,
        recorder: Recorder,
        *,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._redis = redis
        self._workers = workers
        self._recorder = recorder
        self._clock = clock
        self._stopping = False
        self._counters = [Tally(f"demo:counter:{number}") for number in range(workers)]
        self.errors = 0
        self.wrong = 0
        self.reasons: Counter[str] = Counter()

    @property
    def commands(self) -> int:
        """Commands that have ended, well or badly."""
        return self._recorder.commands + self.errors

    @property
    def failures(self) -> int:
        """Commands that raised, were answered wrongly or not at all, and lost increments."""
        return self.errors + self.wrong

    async def run(self, until: Awaitable[Any]) -> None:
        """Keep all workers busy until ``until`` is done, then let each finish its command.

        Cancelling it cancels the workers.
        """
        tasks = [
            asyncio.create_task(self._work(number), name=f"demo-worker-{number}")
            for number in range(self._workers)
        ]
        try:
            await until
            self._stopping = True
            _, hanging = await asyncio.wait(tasks, timeout=PATIENCE)
            for _ in hanging:
                self._error(f"a command had no answer {PATIENCE:g} s after the end of the load")
        finally:
            self._stopping = True
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def verify(self) -> None:
        """Compare every counter with what the server holds; a difference is a failure.

        An increment that raised may have been executed or not, and either is right.
        """
        for tally in self._counters:
            try:
                held = int(await self._redis.get(tally.key) or 0)
            except Exception as error:
                self._error(describe("GET", error))
                continue
            if not tally.acknowledged <= held <= tally.acknowledged + tally.uncertain:
                self._wrong(
                    f"{tally.key} is {held}, but {tally.acknowledged} increments were acknowledged"
                )

    async def _work(self, number: int) -> None:
        redis = self._redis
        tally = self._counters[number]
        key = f"demo:value:{number}"
        turn = 0
        while not self._stopping:
            turn += 1
            reply = await self._timed("INCR", redis.incr(tally.key))
            if reply is _FAILED:
                tally.uncertain += 1
            elif not tally.take(reply):
                self._wrong(f"INCR {tally.key} returned {reply!r} instead of its next value")
            value = b"%d of worker %d" % (turn, number)
            reply = await self._timed("SET", redis.set(key, value))
            if reply is _FAILED:
                continue
            if reply is not True:
                self._wrong(f"SET {key} returned {reply!r}")
            reply = await self._timed("GET", redis.get(key))
            if reply is not _FAILED and reply != value:
                self._wrong(f"GET {key} returned {reply!r} instead of {value!r}")

    async def _timed(self, name: str, command: Awaitable[Any]) -> Any:
        begun = self._clock()
        try:
            reply = await command
        except Exception as error:
            self._error(describe(name, error))
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
            return _FAILED
        self._recorder.record(begun, self._clock())
        return reply

    def _error(self, reason: str) -> None:
        self.errors += 1
        self._note(reason)

    def _wrong(self, reason: str) -> None:
        self.wrong += 1
        self._note(reason)

    def _note(self, reason: str) -> None:
        if reason in self.reasons or len(self.reasons) < MAX_KINDS:
            self.reasons[reason] += 1


class Tally:
    """What one worker knows of its counter."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.acknowledged = 0
        self.uncertain = 0

    def take(self, reply: Any) -> bool:
        """Count an increment; whether ``reply`` is a value that it can have led to."""
        expected = self.acknowledged + 1
        right = type(reply) is int and expected <= reply <= expected + self.uncertain
        if right:
            # What had been uncertain was executed, or not: this reply settles it.
            self.acknowledged = reply
            self.uncertain = 0
        else:
            self.acknowledged = expected
        return right


def describe(name: str, error: Exception) -> str:
    """A failed command in one line."""
    return f"{name} raised {type(error).__name__}: {error}"
