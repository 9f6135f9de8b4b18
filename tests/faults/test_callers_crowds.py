"""Very many callers, slow ones, and an event loop that stands still: nobody fails for it."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from typing import Any

import pytest
from support.plain_clients import WAYS, client_by
from support.signing_in import Traffic, Witness, client_of, minted_source, secret_source

from aioentra_redis import (
    ConnectionClosed,
    Reauthenticated,
    TokenPublished,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


def memory() -> float:
    """What the process holds now, in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_100_000_coroutines_at_once(entra_emulator: Emulator, figure: Any) -> None:
    """Each gets its own reply, in the order of their coming, and AUTH does not wait for them."""
    count = 100_000
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.6, on_event=witness) as source,
        client_of(entra_emulator, source, on_event=witness, socket_timeout=60) as redis,
    ):
        answered: list[int] = []

        async def ask(number: int) -> None:
            assert await redis.echo(f"{number:06}") == b"%06d" % number
            answered.append(number)

        gc.collect()
        before = memory()
        tasks = [asyncio.create_task(ask(number)) for number in range(count)]
        bare = memory() - before
        rotations = len(witness.of(Reauthenticated))
        clock = asyncio.get_running_loop().time
        began = clock()
        while not all(task.done() for task in tasks[:: count // 100]) or len(answered) < count:
            peak = memory() - before
            await asyncio.sleep(0.02)
        took = clock() - began
        await asyncio.gather(*tasks)
        renewed = len(witness.of(Reauthenticated)) - rotations
        slowest = max(each.latency for each in witness.of(Reauthenticated))
    figure("replies to somebody else", 0, target="0")
    figure("memory per waiting command", (peak - bare) * 1e6 / count, "B", target="under 8,000")
    figure("commands a second", count / took)
    figure("AUTHs meanwhile", renewed)
    figure("slowest AUTH", slowest * 1e3, "ms", target="under 1,000")
    assert answered == sorted(answered)
    assert (peak - bare) * 1e6 / count < 8000
    assert slowest < 1.0
    log = await entra_emulator.log()
    assert all(each.accepted for each in log.auths)
    assert len({each.connection for each in log.auths}) == 1


@pytest.mark.alone
async def test_a_crowd_at_the_gate_starves_no_auth(entra_emulator: Emulator, figure: Any) -> None:
    """More is to be sent all the time than fits: AUTH passes the gate, every reply is right."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.6, on_event=witness) as source,
        client_of(entra_emulator, source, on_event=witness, socket_timeout=60) as redis,
    ):
        value = b"x" * 300_000
        stopping = False
        done = 0

        async def push(number: int) -> None:
            nonlocal done
            while not stopping:
                assert await redis.set(f"k:{number}", value)
                assert await redis.strlen(f"k:{number}") == len(value)
                done += 1

        workers = [asyncio.create_task(push(number)) for number in range(300)]
        await witness.at_least(8, Reauthenticated, timeout=60)
        stopping = True
        await asyncio.gather(*workers)
        slowest = max(each.latency for each in witness.of(Reauthenticated))
    figure("sets of 300 kB", done)
    figure("slowest AUTH", slowest * 1e3, "ms", target="under 2,000")
    assert slowest < 2
    assert len({each.connection for each in (await entra_emulator.log()).auths}) == 1


# -- slow consumers --------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.timeout(120)
async def test_a_subscriber_that_does_not_read(entra_emulator: Emulator, figure: Any) -> None:
    """It holds a bounded amount, keeps its session, and gets every message in order in the end."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=1.0, on_event=witness) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as pubsub,
    ):
        await pubsub.subscribe("a")
        await pubsub.get_message(timeout=0.2)
        gc.collect()
        before = memory()
        size, count = 20_000, 1000
        padding = b"." * size
        for number in range(count):
            await redis.publish("a", b"%d " % number + padding)
        grown = memory() - before
        rotations = len(witness.of(TokenPublished))
        await witness.at_least(rotations + 3, TokenPublished)
        got = []
        while len(got) < count:
            message = await pubsub.get_message(timeout=5)
            assert message is not None, len(got)
            got.append(int(message["data"].split()[0]))
    figure("published meanwhile", size * count / 1e6, "MB")
    figure("memory", grown, "MB", target="under 16")
    figure("messages lost", count - len(got), target="0")
    assert got == list(range(count))
    assert grown < 16


async def test_callers_that_await_late(entra_emulator: Emulator, figure: Any) -> None:
    """A reply that was there long before it is looked at is neither late nor somebody else's."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.4, on_event=witness) as source,
        client_of(entra_emulator, source, socket_timeout=0.5) as redis,
    ):
        tasks = [asyncio.create_task(redis.echo(f"{n}")) for n in range(1000)]
        await asyncio.sleep(2)
        replies = [await task for task in reversed(tasks)]
    figure("wrong or failed", sum(replies[-1 - n] != b"%d" % n for n in range(1000)), target="0")
    assert replies == [b"%d" % n for n in reversed(range(1000))]


# -- a loop that stands still ----------------------------------------------------------------------


def block(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("socket_timeout", [1.0, 5.0])
async def test_the_loop_stalls_for_2_s(
    entra_emulator: Emulator, socket_timeout: float, figure: Any
) -> None:
    """Under load, again and again, with blocking commands and a subscriber, as tokens rotate."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=8, refresh_in=1, on_event=witness) as source,
        client_of(entra_emulator, source, on_event=witness, socket_timeout=socket_timeout) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as pubsub,
    ):
        await pubsub.subscribe("a")
        traffic = Traffic(redis, 20)
        got: list[bytes] = []

        async def listen() -> None:
            async for message in pubsub.listen():
                got.append(message["data"])  # noqa: PERF401 - it never ends

        async def pop() -> list[Any]:
            return [await redis.blpop(["list"], timeout=30) for _ in range(6)]

        listening, popping = asyncio.create_task(listen()), asyncio.create_task(pop())
        for number in range(6):
            await asyncio.sleep(0.3 + number * 0.1)
            await redis.rpush("list", number)
            await redis.publish("a", number)
            block(2.0)
        await asyncio.sleep(0.5)
        await traffic.stop()
        assert [int(each[1]) for each in await popping] == list(range(6))
        # The subscriber keeps its own signed in: the pool's keeper lets go of it, without error.
        closed = [each for each in witness.of(ConnectionClosed) if each.error is not None]
        listening.cancel()
        await asyncio.wait([listening])
    figure("failed or wrong", len(traffic.errors) + len(traffic.wrong), target="0")
    figure("connections lost", len(closed), target="0")
    figure("rotations", len(witness.of(TokenPublished)))
    assert (traffic.errors, traffic.wrong) == ([], [])
    assert got == [b"%d" % n for n in range(6)]
    assert closed == []
    # The shared one, the one that pops and the subscriber's.
    assert len({each.connection for each in (await entra_emulator.log()).auths}) == 3


@pytest.mark.parametrize("way", WAYS)
async def test_the_loop_stalls_as_auth_is_pending(
    entra_emulator: Emulator, way: str, figure: Any
) -> None:
    """And with tokens of 8 s: each stall takes half of the time that is left to give them."""
    await entra_emulator.configure(token_lifetime=8)
    witness = Witness()
    options = {"on_event": witness} if way == "connect" else {}
    async with (
        secret_source(entra_emulator, on_event=witness) as source,
        client_by(way, entra_emulator, source, **options) as redis,
    ):
        await entra_emulator.delay_auth(0.3)
        traffic = Traffic(redis, 10)
        for stalls in range(3):
            published = len(witness.of(TokenPublished))
            await witness.at_least(published + 1, TokenPublished)
            await asyncio.sleep(0.1 * stalls)
            block(2.0)
        await asyncio.sleep(0.5)
        await traffic.stop()
    figure("failed or wrong", len(traffic.errors) + len(traffic.wrong), target="0")
    assert (traffic.errors, traffic.wrong) == ([], [])
