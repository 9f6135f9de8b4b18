"""Counters that many workers increment: what was acknowledged, and what the server counted."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from aioentra_redis import MaybeExecutedError

__all__ = ["Counting"]


class Counting:
    """``async with Counting(redis, keys, 20) as counting:`` has so many workers INCR the keys.

    Every reply is another number: one that comes twice was somebody else's.
    """

    def __init__(self, redis: Any, keys: Sequence[str], workers: int, seed: int = 1) -> None:
        self._redis = redis
        self._keys = keys
        self._random = random.Random(seed)
        self._workers = workers
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.attempts = 0
        self.acknowledged: dict[str, set[int]] = {key: set() for key in keys}
        self.maybe: Counter[str] = Counter()
        self.errors: list[Exception] = []
        self.strange: list[str] = []
        """Replies that cannot be right."""
        self.longest = 0.0

    @property
    def done(self) -> int:
        """INCRs that were acknowledged."""
        return sum(map(len, self.acknowledged.values()))

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)

    async def more(self, attempts: int, timeout: float = 30.0) -> None:
        """Wait until so many more INCRs have ended, well or not."""
        goal = self.attempts + attempts
        async with asyncio.timeout(timeout):
            while self.attempts < goal:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.002)

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._stopping:
            key = self._random.choice(self._keys)
            sent = clock()
            try:
                reply = await self._redis.incr(key)
            except MaybeExecutedError:
                self.maybe[key] += 1
            except Exception as error:
                self.errors.append(error)
                await asyncio.sleep(0.01)
            else:
                if reply in self.acknowledged[key]:
                    self.strange.append(f"INCR {key} was answered with {reply!r} twice")
                self.acknowledged[key].add(reply)
            self.attempts += 1
            self.longest = max(self.longest, clock() - sent)

    async def differences(self, redis: Any) -> dict[str, int]:
        """What the server counted beyond what was acknowledged, by key, where it can't be right.

        Positive for INCRs that ran twice, negative for those that were lost. One that may have been
        executed may have been or not.
        """
        found = {}
        for key in self._keys:
            more = int(await redis.get(key) or 0) - len(self.acknowledged[key])
            if not 0 <= more <= self.maybe[key]:
                found[key] = more
        return found
