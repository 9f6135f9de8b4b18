"""Reads and writes whose model knows what every key may hold, whatever happened meanwhile.

Each worker has keys of its own, so that what it was told (done, refused, may have been executed)
says what they hold. A reply that the model does not allow is somebody else's, or a lost write.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from redis import exceptions as redis_exceptions

from aioentra_redis import MaybeExecutedError

__all__ = ["Load"]


class Load:
    """``async with Load(redis, 50) as load:`` runs workers until its end, then checks every key.

    ``errors`` holds what commands raised but for ``MaybeExecutedError``, which are counted in
    ``maybe``; ``wrong`` what the model does not allow, after the end too.
    """

    def __init__(self, redis: Any, workers: int, *, check_at_end: bool = True) -> None:
        self._redis = redis
        self._count = workers
        self._check_at_end = check_at_end
        self._workers: list[_Worker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.stopping = False
        self.reads = self.writes = self.maybe = 0
        self.read_errors: list[Exception] = []
        self.errors: list[Exception] = []
        self.wrong: list[str] = []
        self.texts: set[str] = set()
        """What the errors of writes that may have been executed said."""
        self.maybe_sent: list[float] = []
        """When those writes had been sent, by the loop's clock."""
        self.latencies: list[tuple[float, float]] = []
        """When each command was sent, and how long it took, in seconds of the loop's clock."""

    @property
    def done(self) -> int:
        """Commands that succeeded."""
        return self.reads + self.writes

    async def __aenter__(self) -> Self:
        self._workers = [_Worker(self, self._redis, number) for number in range(self._count)]
        self._tasks = [asyncio.create_task(each.run()) for each in self._workers]
        await self.more(2 * self._count)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stopping = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)
        if error is None and self._check_at_end:
            for each in self._workers:
                await each.check()

    async def more(self, commands: int, timeout: float = 20.0) -> None:
        """Wait until so many more commands have succeeded."""
        goal = self.done + commands
        async with asyncio.timeout(timeout):
            while self.done < goal:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)

    def slowest(self, since: float, until: float = float("inf")) -> float:
        """The longest that a command took which was under way at some moment of that time."""
        return max(took for sent, took in self.latencies if sent <= until and sent + took >= since)


class _Worker:
    """One caller: sets its key, reads it, increments its counter, and knows what to expect."""

    def __init__(self, load: Load, redis: Any, number: int) -> None:
        self._load = load
        self._redis = redis
        self._number = number
        self._key, self._counter = f"load:{number}", f"load:count:{number}"
        self._may_hold: set[bytes | None] = {None}
        self._counted = 0
        self._maybe_counted = 0

    async def run(self) -> None:
        load, turn = self._load, 0
        while not load.stopping:
            turn += 1
            failures = len(load.errors) + len(load.read_errors)
            await self._set(b"%d/%d" % (self._number, turn))
            await self._get()
            await self._incr()
            if len(load.errors) + len(load.read_errors) > failures:
                await asyncio.sleep(0.01)

    async def _set(self, value: bytes) -> None:
        before = self._may_hold
        self._may_hold = before | {value}  # also if we are cancelled
        try:
            if await self._timed(self._redis.set(self._key, value)) is not True:
                self._load.wrong.append(f"SET {self._key} was not answered with OK")
        except MaybeExecutedError as error:
            self._note_maybe(error)
        except redis_exceptions.ResponseError as error:
            self._load.errors.append(error)
            self._may_hold = before
        except Exception as error:
            self._load.errors.append(error)
        else:
            self._may_hold = {value}
            self._load.writes += 1

    async def _get(self) -> None:
        try:
            reply = await self._timed(self._redis.get(self._key))
        except Exception as error:
            self._load.read_errors.append(error)
            return
        self._load.reads += 1
        if reply not in self._may_hold:
            self._load.wrong.append(f"GET {self._key}: {reply!r}, not of {self._may_hold}")
        self._may_hold = {reply}

    async def _incr(self) -> None:
        try:
            reply = await self._timed(self._redis.incr(self._counter))
        except MaybeExecutedError as error:
            self._maybe_counted += 1
            self._note_maybe(error)
        except redis_exceptions.ResponseError as error:
            self._load.errors.append(error)
        except Exception as error:
            self._maybe_counted += 1
            self._load.errors.append(error)
        else:
            self._load.writes += 1
            self._count(reply, "INCR", self._counted + 1)

    def _count(self, reply: Any, what: str, least: int) -> None:
        if not (isinstance(reply, int) and least <= reply <= least + self._maybe_counted):
            bounds = f"{least} to {least + self._maybe_counted}"
            self._load.wrong.append(f"{what} {self._counter}: {reply!r}, not {bounds}")
            return
        self._maybe_counted -= reply - least
        self._counted = reply

    def _note_maybe(self, error: MaybeExecutedError) -> None:
        self._load.maybe += 1
        self._load.texts.add(str(error))

    async def _timed(self, command: Any) -> Any:
        clock = asyncio.get_running_loop().time
        sent = clock()
        try:
            return await command
        except MaybeExecutedError:
            self._load.maybe_sent.append(sent)
            raise
        finally:
            self._load.latencies.append((sent, clock() - sent))

    async def check(self) -> None:
        """What the keys hold at the end."""
        reply = await self._redis.get(self._key)
        if reply not in self._may_hold:
            self._load.wrong.append(f"{self._key} holds {reply!r}, not one of {self._may_hold}")
        count = await self._redis.get(self._counter)
        self._count(int(count or 0), "the count of", self._counted)
