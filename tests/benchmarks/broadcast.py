"""How much more it costs to wake subscribers through a broadcast than through bare futures.

Each round makes as many tasks as there are subscribers wait, wakes them all and measures the time
until the last one has run: once with a future per task, once with a subscription per task. The
rounds of both kinds are interleaved, so that a slow spell of the machine hits both. Run with::

    python tests/benchmarks/broadcast.py [subscribers] [rounds]
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time

from aioentra_redis._broadcast import Broadcast
from aioentra_redis._token import Token

LIMIT = 1.5


class Countdown:
    """Fires when every waiter has been woken."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.done = asyncio.get_running_loop().create_future()

    def hit(self) -> None:
        self.left -= 1
        if not self.left:
            self.done.set_result(None)


async def through_futures(count: int) -> float:
    """Seconds to wake ``count`` tasks that each wait on a future of their own."""
    loop = asyncio.get_running_loop()
    countdown = Countdown(count)
    futures = [loop.create_future() for _ in range(count)]

    async def wait(future: asyncio.Future[None]) -> None:
        await future
        countdown.hit()

    tasks = [loop.create_task(wait(future)) for future in futures]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    started = time.perf_counter()
    for future in futures:
        future.set_result(None)
    await countdown.done
    elapsed = time.perf_counter() - started
    await asyncio.gather(*tasks)
    return elapsed


async def through_broadcast(count: int) -> float:
    """Seconds to wake ``count`` tasks that each wait on a subscription of their own."""
    loop = asyncio.get_running_loop()
    countdown = Countdown(count)
    broadcast = Broadcast()
    subscriptions = [broadcast.subscribe() for _ in range(count)]

    async def wait(index: int) -> None:
        async for _ in subscriptions[index]:
            countdown.hit()
            return

    tasks = [loop.create_task(wait(index)) for index in range(count)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    token = Token("secret", username="oid", expires_on=2.0, first_seen=1.0)
    started = time.perf_counter()
    broadcast.publish(token)
    await countdown.done
    elapsed = time.perf_counter() - started
    await asyncio.gather(*tasks)
    broadcast.close()
    return elapsed


async def main(count: int, rounds: int) -> float:
    """Print both medians and their ratio; returns the ratio."""
    bare, ours = [], []
    for _ in range(rounds):
        for measure, results in ((through_futures, bare), (through_broadcast, ours)):
            gc.collect()
            gc.disable()
            results.append(await measure(count))
            gc.enable()
    ratios = sorted(b / a for a, b in zip(bare, ours, strict=True))
    print(f"{count} subscribers, {rounds} interleaved rounds")
    print(f"  bare futures  median {statistics.median(bare) * 1e3:7.2f} ms")
    print(f"  broadcast     median {statistics.median(ours) * 1e3:7.2f} ms")
    ratio = statistics.median(ratios)
    print(f"  ratio         median {ratio:7.2f}    range {ratios[0]:.2f} - {ratios[-1]:.2f}")
    return ratio


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    measured = asyncio.run(main(*(arguments + [10_000, 21][len(arguments) :])))
    sys.exit(measured > LIMIT)
