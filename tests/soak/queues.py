"""Producers and consumers of elements that are to arrive exactly once.

A consumer with BLMOVE, or of a stream's group, keeps what it was given where it can look it up
after a loss, so nothing is lost. One with BLPOP may lose an element with its connection.
"""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from typing import Any

from .calls import Calls
from .model import Elements
from .outcomes import Outcome

__all__ = ["ByMove", "ByPop", "ByStream", "Queue"]

WAIT = 2.0
"""Seconds that a consumer waits for an element at a time, longer than a token is in use."""


class Queue:
    """One producer and one consumer of a key."""

    kind: str
    lossy = False

    def __init__(self, redis: Any, calls: Calls, client: str, seed: int) -> None:
        self._redis, self._calls = redis, calls
        self.key = f"{client}:{self.kind}"
        self.elements = Elements(calls.findings, self.key, lossy=self.lossy)
        self._random = random.Random(seed)
        self._produced = False

    async def produce(self, think: float) -> None:
        """Put elements in until the calls stop; now and then nothing for longer than a wait."""
        while not self._calls.stopping:
            number = self.elements.next()
            outcome, _ = await self._calls.attempt(
                lambda number=number: self._put(number), may_be_cancelled=True
            )
            self.elements.tell(number, outcome)
            pause = WAIT * 1.5 if self._random.random() < 0.003 else 2 * think
            await asyncio.sleep(self._random.uniform(0, pause))
        self._produced = True

    async def consume(self) -> None:
        """Take elements out until the producer has ended and nothing is left."""
        idle = 0
        while not (self._produced and idle > 1):
            idle = 0 if await self._take() else idle + 1
        await self._take_up()

    async def _put(self, number: int) -> None:
        await self._redis.rpush(self.key, number)

    @abstractmethod
    async def _take(self) -> bool:
        """One wait, and what it brought; False if that was nothing."""

    async def _take_up(self) -> bool:
        """What was given to this consumer before, and it has not seen: the reply was lost."""
        return False

    async def _do(self, *words: Any) -> Any:
        """A command that may be repeated at will, until it is answered."""
        while True:
            outcome, reply = await self._calls.attempt(
                lambda: self._redis.execute_command(*words), at_rest=False
            )
            if outcome is Outcome.DONE:
                return reply


class ByPop(Queue):
    """BLPOP."""

    kind = "blpop"
    lossy = True

    async def _take(self) -> bool:
        outcome, reply = await self._calls.attempt(
            lambda: self._redis.blpop(self.key, WAIT), at_rest=False
        )
        if outcome in (Outcome.MAYBE, Outcome.LATE):
            self.elements.deaths += 1
        if not reply:
            return outcome is not Outcome.DONE
        self._calls.expect(reply[0], self.key.encode(), "BLPOP")
        self.elements.came(int(reply[1]))
        return True


class ByMove(Queue):
    """BLMOVE to a list of the consumer's own, which it empties when it has seen the element."""

    kind = "blmove"

    async def _take(self) -> bool:
        outcome, element = await self._calls.attempt(
            lambda: self._redis.blmove(self.key, self._taken, WAIT), at_rest=False
        )
        if outcome is not Outcome.DONE:
            await self._take_up()
            return True
        if element is None:
            return False
        await self._see(element)
        return True

    async def _take_up(self) -> bool:
        elements = await self._do("LRANGE", self._taken, 0, -1)
        for each in elements:
            await self._see(each)
        return bool(elements)

    async def _see(self, element: bytes) -> None:
        self.elements.came(int(element))
        await self._do("LREM", self._taken, 0, element)

    @property
    def _taken(self) -> str:
        return f"{self.key}:taken"


class ByStream(Queue):
    """XREADGROUP; after a loss the consumer asks for what it was given and has not confirmed."""

    kind = "stream"

    async def open(self) -> None:
        """Make the stream and its group."""
        await self._redis.xgroup_create(self.key, "group", "$", mkstream=True)

    async def _put(self, number: int) -> None:
        await self._redis.xadd(self.key, {"n": number})

    async def _take(self) -> bool:
        outcome, reply = await self._calls.attempt(
            lambda: self._redis.xreadgroup(
                "group", "consumer", {self.key: ">"}, count=10, block=int(WAIT * 1000)
            ),
            at_rest=False,
        )
        if outcome is not Outcome.DONE:
            await self._take_up()
            return True
        return await self._see(reply)

    async def _take_up(self) -> bool:
        words = ("GROUP", "group", "consumer", "COUNT", 1000, "STREAMS", self.key, 0)
        return await self._see(await self._do("XREADGROUP", *words))

    async def _see(self, reply: Any) -> bool:
        entries = _entries(reply)
        for entry, fields in entries:
            self.elements.came(int(fields[b"n"]))
            await self._do("XACK", self.key, "group", entry)
            await self._do("XDEL", self.key, entry)
        return bool(entries)


def _entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of one stream, in whichever shape redis-py has given them."""
    if not reply:
        return []
    lists = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    entries = lists[0] if lists and isinstance(lists[0], list) else lists
    return [(entry, _fields(fields)) for entry, fields in entries]


def _fields(fields: Any) -> dict[bytes, bytes]:
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
