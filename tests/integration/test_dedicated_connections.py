"""What can't share a connection goes on across expiries: tokens of 2 s on a real server."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from support.signing_in import client_of, secret_source, until

from aioentra_redis.emulator import Emulator
from aioentra_redis.errors import ConnectionLostError

pytestmark = pytest.mark.emulator

FEW, MANY = 120, 10_000


async def produce(redis: Any, kind: str, count: int) -> None:
    """Elements in bursts, with pauses that are longer than a slice now and then."""
    number = 0
    while number < count:
        for _ in range(min(random.randint(1, count // 20), count - number)):
            if kind.startswith("X"):
                await redis.xadd("s", {"n": number})
            else:
                await redis.rpush("k", number)
            number += 1
        await asyncio.sleep(random.choice((0.01, 0.3, 0.9)))


async def consume(redis: Any, kind: str, count: int) -> list[int]:
    got: list[int] = []
    after: Any = "$"
    while len(got) < count:
        if kind == "BLPOP":
            reply = await redis.blpop("k", 0)
            got.append(int(reply[1]))
            continue
        if kind == "BLMOVE":
            got.append(int(await redis.blmove("k", "done", 10)))
            continue
        if kind == "XREADGROUP":
            reply = await redis.xreadgroup("g", "c", {"s": ">"}, count=7, block=0)
        else:
            reply = await redis.xread({"s": after}, count=7, block=10_000)
        entries = reply[b"s"][0] if isinstance(reply, dict) else reply[0][1]
        after = entries[-1][0]
        got += [int(fields[b"n"]) for _, fields in entries]
    return got


@pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(180)])]
)
@pytest.mark.parametrize("kind", ["BLPOP", "BLMOVE", "XREADGROUP", "XREAD"])
async def test_nothing_is_lost_or_comes_twice(
    entra_emulator: Emulator, kind: str, count: int
) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source) as redis,
    ):
        if kind == "XREADGROUP":
            await redis.xgroup_create("s", "g", "$", mkstream=True)
        consumer = asyncio.create_task(consume(redis, kind, count))
        await asyncio.sleep(2.5)  # nothing to be had for longer than a token lives
        await produce(redis, kind, count)
        async with asyncio.timeout(20):
            assert await consumer == list(range(count))
    log = await entra_emulator.log()
    assert all(each.accepted for each in log.auths)
    assert [each for each in log.closes if each.reason == "expiry"] == []


async def test_many_waits_of_any_length_end_in_time(entra_emulator: Emulator) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, socket_timeout=1) as redis,
    ):
        clock = asyncio.get_running_loop().time

        async def wait(seconds: float) -> float:
            started = clock()
            assert await redis.blpop("nothing", seconds) is None
            return clock() - started - seconds

        late = await asyncio.gather(*(wait(number / 4) for number in range(1, 25)))
        assert min(late) > -0.01
    log = await entra_emulator.log()
    assert [each for each in log.closes if each.reason == "expiry"] == []


async def test_leases_of_every_kind_outlive_their_tokens(entra_emulator: Emulator) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source) as redis,
    ):

        async def one() -> None:
            async with redis.client() as connection:
                identity = await connection.client_id()
                for _ in range(5):
                    await asyncio.sleep(1)
                    assert await connection.client_id() == identity

        async def watched() -> None:
            async with redis.pipeline() as pipe:
                await pipe.watch("w")
                await asyncio.sleep(4.5)
                pipe.multi()
                pipe.set("w", 1)
                assert await pipe.execute() == [True]

        async def locked() -> None:
            async with redis.lock("l", timeout=10):
                await asyncio.sleep(4.5)

        async def scripted() -> None:
            script = redis.register_script("return ARGV[1]")
            for number in range(10):
                assert await script(args=[number]) == b"%d" % number
                await asyncio.sleep(0.5)

        await asyncio.gather(one(), watched(), locked(), scripted())
    log = await entra_emulator.log()
    assert [each for each in log.closes if each.reason == "expiry"] == []


async def test_a_monitor_ends_with_its_token_and_says_so(entra_emulator: Emulator) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source) as redis,
    ):
        async with redis.monitor() as monitor:
            with pytest.raises(ConnectionLostError, match="outlived the token"):
                [each async for each in monitor.listen()]
        async with redis.monitor() as monitor:
            asyncio.get_running_loop().call_later(0.1, asyncio.ensure_future, redis.get("k"))
            async with asyncio.timeout(10):
                # An AUTH of the other connection may come before it.
                while "GET" not in (await monitor.next_command())["command"]:
                    pass


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_wait_can_be_unblocked_and_leaves_watch_alone(
    entra_emulator: Emulator, protocol: int
) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, protocol=protocol) as redis,
        redis.client() as one,
    ):
        number = await one.client_id()
        await one.execute_command("WATCH", "watched")
        await redis.xadd("s", {"n": 1})
        waiting = asyncio.create_task(one.xread({"s": "$", "none": "$"}, block=0))
        await asyncio.sleep(2.5)  # in slices, whose IDs are pinned
        await redis.set("watched", 1)
        async with asyncio.timeout(5):
            while not waiting.done():
                # A slice that was to end in this moment anyway is followed by another one, and
                # with tokens of 2 s some are no longer than such a moment.
                await redis.client_unblock(number)
                await asyncio.wait({waiting}, timeout=0.1)
            assert not await waiting
        await one.execute_command("MULTI")
        await one.execute_command("PING")
        assert await one.execute_command("EXEC") is None  # the key had been changed


async def test_consumers_outlast_a_restart(entra_emulator: Emulator) -> None:
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source) as redis,
    ):
        reads = asyncio.create_task(redis.xread({"s": "0"}, block=0))
        await asyncio.sleep(0.2)
        restart = asyncio.create_task(entra_emulator.restart_server(downtime=1))
        await until(lambda: redis.auth_status() == [])
        pops = asyncio.create_task(redis.blpop("k", 0))
        await restart
        await redis.rpush("k", "element")
        await redis.xadd("s", {"n": 1})
        async with asyncio.timeout(5):
            assert (await pops)[1] == b"element"
            assert await reads
