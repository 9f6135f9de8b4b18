"""Callers that are cancelled, or run out of time, at every moment, against a real server.

``tests/unit/test_cancellation.py`` has the same in virtual time, with everything that can be held.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.interruption import Interrupted, Moment, Outcome, no_complaints, sweep
from support.plain_clients import WAYS, client_by
from support.signing_in import minted_source, until

from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]


async def command(redis: Any) -> Any:
    return await redis.echo("mine")


async def transaction(redis: Any) -> Any:
    async with redis.pipeline() as pipe:
        return await pipe.rpush("left", 1).echo("mine").rpush("right", 1).execute()


async def watched(redis: Any) -> Any:
    async with redis.pipeline() as pipe:
        await pipe.watch("w")
        await pipe.get("w")
        pipe.multi()
        return await pipe.rpush("left", 1).echo("mine").rpush("right", 1).execute()


async def pop(redis: Any) -> Any:
    return await redis.blpop(["nothing"], timeout=0.02)


async def subscribe(redis: Any) -> Any:
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("a")
        await pubsub.get_message(timeout=0.01)
        await redis.publish("a", "mine")
        return await pubsub.get_message(timeout=0.05)


async def lock(redis: Any) -> Any:
    async with redis.lock(f"lock:{random.random()}", timeout=5):
        return await redis.echo("mine")


OPERATIONS = [command, transaction, watched, pop, subscribe, lock]


@pytest.fixture
async def quietly() -> AsyncIterator[None]:
    async with no_complaints():
        yield


async def all_is_well(redis: Any) -> None:
    texts = [f"{number}".encode() for number in range(10)]
    assert await asyncio.gather(*map(redis.echo, texts)) == texts
    await until(lambda: not redis.connection_pool._in_use_connections)
    left, right = await redis.lrange("left", 0, -1), await redis.lrange("right", 0, -1)
    assert len(left) == len(right)


@pytest.mark.parametrize("moment", Moment, ids=lambda each: each.name.lower())
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("way", WAYS)
async def test_at_each_suspension(
    entra_emulator: Emulator,
    quietly: None,
    way: str,
    operation: Callable[[Any], Any],
    moment: Moment,
    figure: Any,
) -> None:
    """While a token is renewed every 100 ms."""
    async with (
        minted_source(entra_emulator, believed=0.2) as source,
        client_by(way, entra_emulator, source, pool=20) as redis,
    ):
        await all_is_well(redis)

        async def run(interrupted: Interrupted) -> None:
            outcome: Outcome = await interrupted(operation(redis))
            assert "mine" in str(outcome.value) or outcome.value is None
            await all_is_well(redis)

        suspensions = await sweep(run, moment)
    figure("suspensions", suspensions)
    figure("leases left, wrong replies", 0, target="0")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("way", WAYS)
async def test_out_of_time_at_random(
    entra_emulator: Emulator,
    quietly: None,
    way: str,
    operation: Callable[[Any], Any],
    figure: Any,
) -> None:
    generator = random.Random(4)
    late = 0
    async with (
        minted_source(entra_emulator, believed=0.2) as source,
        client_by(way, entra_emulator, source, pool=20) as redis,
    ):
        await all_is_well(redis)

        async def one() -> None:
            nonlocal late
            try:
                async with asyncio.timeout(generator.random() ** 2 * 0.03):
                    await operation(redis)
            except TimeoutError:
                late += 1

        for _ in range(60):
            await asyncio.gather(*(one() for _ in range(5)))
            await all_is_well(redis)
    figure("timeouts", late, "of 300")
    assert late > 10
