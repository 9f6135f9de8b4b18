"""Numbers published on channels of every kind, and a listener that collects them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from redis.asyncio.client import PubSub as RedisPubSub

from aioentra_redis import EntraRedis

SHARDED = hasattr(RedisPubSub, "ssubscribe")  # redis-py 8 and later
MESSAGES = ("message", "pmessage", "smessage")


class Listener:
    """Collects the numbers that arrive, by the kind of message, until told to stop."""

    def __init__(self, pubsub: RedisPubSub) -> None:
        self.numbers: dict[str, list[int]] = defaultdict(list)
        self.others: list[dict[str, Any]] = []
        self.task = asyncio.create_task(self._listen(pubsub))

    async def _listen(self, pubsub: RedisPubSub) -> None:
        async for message in pubsub.listen():
            if message["type"] in MESSAGES:
                self.numbers[message["type"]].append(int(message["data"]))
            else:
                self.others.append(message)

    async def stop(self) -> None:
        assert not self.task.done(), self.task
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def until_heard(redis: Any, channel: str, listeners: int = 1) -> None:
    """Wait until the server has so many subscribers of a channel.

    A subscription is a command that nobody waits for; what is published on another connection may
    overtake it.
    """
    async with asyncio.timeout(10):
        while int((await redis.pubsub_numsub(channel))[0][1]) < listeners:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def publish(
    redis: EntraRedis, seconds: float, rate: float, enough: Callable[[], bool] = lambda: True
) -> int:
    """Publish numbers on a channel, for a pattern, and on a sharded channel; returns how many.

    For so many seconds, and until there was ``enough`` of what the numbers are to outlast.
    """
    clock = asyncio.get_running_loop().time
    start, number = clock(), 0
    kinds = 3 if SHARDED else 2
    while clock() - start < seconds or not enough():
        assert clock() - start < seconds + 20, "there was never enough"
        number += 1
        sends = [redis.publish("news", number), redis.publish("pattern:1", number)]
        if SHARDED:
            sends.append(redis.execute_command("SPUBLISH", "shard", number))
        await asyncio.gather(*sends)
        await asyncio.sleep(max(0.0, start + number * kinds / rate - clock()))
    return number
