"""What was measured to go wrong with redis-py and redis-entraid, done to clients of either way.

Each function does one of those things, checks that nothing has gone wrong, and returns its
figures. The everyday suite calls them with small numbers, the fault suite with large ones.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import BlockingConnectionPool, Redis

from aioentra_redis import (
    ClosedError,
    EntraRedis,
    TokenPublished,
    TokenSource,
    WrongLoopError,
    entra_kwargs,
)
from aioentra_redis.emulator import Emulator

from .listening import until_heard
from .plain_clients import (
    client_by,
    no_retries,
    patient_source,
    renewals,
    tls,
)
from .signing_in import BRISK, Mint, Traffic, Witness, minted_source, until, until_gone
from .slow_wire import SlowWire

__all__ = [
    "a_blocking_pool_under_renewal",
    "a_pop_while_auth_is_refused",
    "black_holed_among_the_idle",
    "clients_that_come_and_go",
    "closed_and_dropped",
    "load_at_1_ms",
    "refusals",
    "renewals_of_a_second_run",
    "subscribed_across_renewals",
    "subscriber_closed_before_a_pop",
    "worst_get_beside_idle_connections",
]


def port_of(emulator: Emulator) -> int:
    port = urlsplit(emulator.url).port
    assert port is not None
    return port


async def load_at_1_ms(
    way: str, emulator: Emulator, *, rotations: int = 10, **options: Any
) -> dict[str, int]:
    """50 workers over a network with a round trip of a millisecond, while tokens are renewed."""
    witness = Witness()
    async with (
        minted_source(emulator, believed=0.4, on_event=witness) as source,
        SlowWire(port_of(emulator), delay=0.0005).serve() as wire,
        client_by(way, emulator, source, url=f"rediss://localhost:{wire.port}", **options) as redis,
    ):
        traffic = Traffic(redis, 50)
        await until(lambda: traffic.done > 300, timeout=30)
        before = len(witness.of(TokenPublished))
        await witness.at_least(before + rotations, TokenPublished, timeout=40)
        await traffic.stop()
    assert (traffic.errors, traffic.wrong) == ([], [])
    log = await emulator.log()
    assert all(each.accepted for each in log.auths)
    count = sum(renewals(log).values())
    assert count >= rotations - 1
    return {"commands": traffic.done, "AUTHs": count, "failed": len(traffic.errors)}


async def a_blocking_pool_under_renewal(
    way: str, emulator: Emulator, *, rotations: int = 8
) -> dict[str, int]:
    """Six owners take turns on the three connections of a blocking pool."""
    witness = Witness()
    done: list[int] = []
    # Long enough for each to be used, and so renewed, before its token is taken to be worn.
    async with minted_source(emulator, believed=0.8, on_event=witness) as source:
        options: dict[str, Any] = {**tls(emulator), **no_retries(), "timeout": 20}
        if way != "connect":
            options |= entra_kwargs(source)
        pool = BlockingConnectionPool.from_url(emulator.url, max_connections=3, **options)
        redis: Any = (
            EntraRedis.from_pool(pool, token_source=source)
            if way == "connect"
            else Redis.from_pool(pool)
        )

        async def work(number: int) -> int:
            for turn in itertools.count():
                async with redis.pipeline() as pipe:
                    await pipe.watch(f"w:{number}")
                    assert int(await pipe.get(f"w:{number}") or 0) == turn
                    pipe.multi()
                    assert await pipe.incr(f"w:{number}").execute() == [turn + 1]
                if len(witness.of(TokenPublished)) > rotations:
                    return turn
            raise AssertionError

        async with redis:
            done += await asyncio.gather(*map(work, range(6)))
    log = await emulator.log()
    assert all(each.accepted for each in log.auths)
    assert len({each.connection for each in log.auths}) <= 4
    renewed = sum(renewals(log).values())
    assert renewed >= rotations
    return {"transactions": sum(done), "AUTHs": renewed, "failed": 0}


async def a_pop_while_auth_is_refused(
    way: str, emulator: Emulator, **options: Any
) -> dict[str, int]:
    """AUTH is refused in front of a BLPOP: the element that it pops reaches its caller."""
    witness = Witness()
    async with (
        patient_source(emulator, on_event=witness) as source,
        client_by(way, emulator, source, **options) as redis,
        client_by(way, emulator, source) as other,
    ):
        await asyncio.gather(redis.ping(), other.ping())
        popping = asyncio.create_task(redis.blpop(["list"], timeout=10))
        await asyncio.sleep(0.05)
        await emulator.refuse_auth()
        await witness.at_least(3, TokenPublished)
        for number in itertools.count():
            await other.rpush("list", number)
            assert list(await popping) == [b"list", b"%d" % number]
            popping = asyncio.create_task(redis.blpop(["list"], timeout=10))
            await asyncio.sleep(0.02)
            # At a moment of its own within seconds AUTH goes in front of a BLPOP.
            if number % 20 == 0 and await refusals(emulator) >= 2:
                break
        await other.rpush("list", "last")
        assert list(await popping) == [b"list", b"last"]
        refused = await refusals(emulator)
    return {"popped": number + 2, "refused": refused, "lost": 0}


async def refusals(emulator: Emulator) -> int:
    return sum(not each.accepted for each in (await emulator.log()).auths)


async def black_holed_among_the_idle(way: str, emulator: Emulator) -> float:
    """One of ten pooled connections says nothing any more; seconds of the slowest command."""
    witness = Witness()
    async with (
        minted_source(emulator, believed=0.4, on_event=witness) as source,
        SlowWire(port_of(emulator), delay=0).serve() as wire,
        client_by(way, emulator, source, url=f"rediss://localhost:{wire.port}") as redis,
    ):
        await asyncio.gather(*(redis.blpop([f"l:{n}"], timeout=1.5) for n in range(10)))
        pool = redis.connection_pool
        # The pool hands out the one that came back last; this is the one that came back first.
        assert len(pool._available_connections) == 10
        black = pool._available_connections[0]
        wire.swallow(black._writer.get_extra_info("sockname")[1])
        await witness.at_least(len(witness.of(TokenPublished)) + 1, TokenPublished)
        ends = len(witness.of(TokenPublished)) + 5
        clock = asyncio.get_running_loop().time
        slowest = 0.0
        while len(witness.of(TokenPublished)) < ends:
            began = clock()
            async with redis.pipeline() as pipe:  # on a connection of the pool
                await pipe.watch("w")
                pipe.multi()
                assert await pipe.incr("w").get("w").execute()
            await redis.get("w")
            slowest = max(slowest, clock() - began)
            await asyncio.sleep(0.001)
        for each in pool._available_connections:
            await each.disconnect(nowait=True)  # one of them would not say goodbye
    return slowest


async def subscribed_across_renewals(
    way: str, emulator: Emulator, *, seconds: float, rotations: int
) -> dict[str, int]:
    """A RESP3 subscriber of some 1,000 messages a second gets each of them once, in order."""
    witness = Witness()
    async with (
        minted_source(emulator, believed=seconds, on_event=witness) as source,
        client_by(way, emulator, source, protocol=3) as redis,
        client_by(way, emulator, source) as publisher,
    ):
        got: list[int] = []
        async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("stays")
            await until_heard(publisher, "stays")

            async def listen() -> None:
                async for message in pubsub.listen():
                    got.append(int(message["data"]))  # noqa: PERF401 - it never ends

            listening = asyncio.create_task(listen())
            sent = 0
            while len(witness.of(TokenPublished)) < rotations + 1:
                for _ in range(20):
                    await publisher.publish("stays", sent)
                    sent += 1
                await asyncio.sleep(0.01)
            await until(lambda: len(got) == sent)
            listening.cancel()
            await asyncio.wait([listening])
    assert got == list(range(sent))
    log = await emulator.log()
    assert all(each.accepted for each in log.auths)
    renewed = max(renewals(log).values())
    assert renewed >= rotations * 2 // 3
    return {"messages": sent, "lost": sent - len(got), "AUTHs": renewed}


async def subscriber_closed_before_a_pop(way: str, emulator: Emulator) -> dict[str, int]:
    """No AUTH goes into a connection that is running BLPOP, whatever was there before."""
    witness = Witness()
    async with (
        patient_source(emulator, on_event=witness) as source,
        client_by(way, emulator, source, protocol=3, pool=1) as redis,
        client_by(way, emulator, source) as other,
    ):
        pubsub = redis.pubsub()
        await pubsub.subscribe("a")
        assert (await pubsub.get_message(timeout=5) or {})["type"] == "subscribe"
        await pubsub.get_message(timeout=0.5)
        await pubsub.aclose()
        await redis.ping()
        popping = asyncio.create_task(redis.blpop(["list"], timeout=20))
        await asyncio.sleep(0.1)
        blocked = max(each.connection for each in (await emulator.log()).auths)
        if way != "connect":  # one connection, whose first AUTH is the first in the log
            blocked = (await emulator.log()).auths[0].connection
        before = await auths_on(emulator, blocked)
        published = len(witness.of(TokenPublished))
        await witness.at_least(published + 4, TokenPublished)
        after = await auths_on(emulator, blocked)
        await other.rpush("list", "element")
        assert list(await popping) == [b"list", b"element"]
        assert await redis.ping()
    assert after == before
    return {"renewals meanwhile": 4, "AUTHs": after - before}


async def auths_on(emulator: Emulator, connection: int) -> int:
    return sum(each.connection == connection for each in (await emulator.log()).auths)


async def slowest_get(redis: Any, seconds: float) -> float:
    clock = asyncio.get_running_loop().time
    end, slowest = clock() + seconds, 0.0
    while (started := clock()) < end:
        await redis.get("k")
        slowest = max(slowest, clock() - started)
        await asyncio.sleep(0.001)
    return slowest


async def worst_get_beside_idle_connections(
    way: str, emulator: Emulator, *, idle: int, believed: float, seconds: float
) -> tuple[float, int]:
    """Seconds of the slowest GET beside so many idle connections, and their AUTHs meanwhile."""
    witness = Witness()
    async with (
        minted_source(emulator, believed=believed, lifetime=120, on_event=witness) as source,
        client_by(way, emulator, source, url=emulator.plaintext_url, pool=idle) as redis,
    ):
        pool = redis.connection_pool
        connections = [await pool.get_connection() for _ in range(idle)]
        for each in connections:
            await pool.release(each)
        await redis.get("k")
        gc.collect()
        before = len((await emulator.log()).auths)
        slowest = await slowest_get(redis, seconds)
        auths = len((await emulator.log()).auths) - before
    return slowest, auths


async def closed_and_dropped(way: str, emulator: Emulator, *, seconds: float) -> dict[str, int]:
    """Nothing is open once a client is closed, and nothing goes on in the seconds after it."""
    async with minted_source(emulator, believed=0.4) as source:
        async with client_by(way, emulator, source) as redis:
            await asyncio.gather(*(redis.blpop(["none"], timeout=0.1) for _ in range(5)))
        connections = [weakref.ref(each) for each in redis.connection_pool._available_connections]
        dropped = [weakref.ref(redis), weakref.ref(redis.connection_pool)]
        del redis
        await asyncio.sleep(0.1)
        await until_gone(emulator)
        gc.collect()
        assert [each() for each in connections + dropped if each() is not None] == []
        await source.aclose()
        log = await emulator.log()
        await asyncio.sleep(seconds)
        later = await emulator.log()
        assert await emulator.connections() == []
    requests = len(later.tokens) - len(log.tokens)
    auths = len(later.auths) - len(log.auths)
    assert (requests, auths) == (0, 0)
    return {"token requests": requests, "AUTHs": auths}


async def clients_that_come_and_go(way: str, emulator: Emulator, *, clients: int) -> dict[str, int]:
    """So many, one after the other, leave neither tasks nor timers, connections nor objects."""
    async with minted_source(emulator, believed=10) as source:
        before = asyncio.all_tasks()
        gone: list[weakref.ref[Any]] = []
        for _ in range(clients):
            async with client_by(way, emulator, source, url=emulator.plaintext_url) as redis:
                assert await redis.ping()
            gone += [weakref.ref(redis), weakref.ref(redis.connection_pool)]
        del redis
        await asyncio.sleep(0.1)
        await until_gone(emulator)
        gc.collect()
        objects = sum(each() is not None for each in gone)
        tasks = len(asyncio.all_tasks() - before)
        assert "0 subscribers" in repr(source)
        connections = len(await emulator.connections())
    assert (objects, tasks, connections) == (0, 0, 0)
    return {"objects": objects, "tasks": tasks, "connections": connections}


def renewals_of_a_second_run(way: str, emulator: Emulator, *, seconds: float) -> int:
    """The source of the first ``asyncio.run`` says so in the second; a new one is renewed."""
    mint = Mint(emulator, believed=0.6, lifetime=30)

    async def use(source: TokenSource, seconds: float) -> int:
        async with client_by(way, emulator, source) as client:
            ends = asyncio.get_running_loop().time() + seconds
            while asyncio.get_running_loop().time() < ends:
                assert await client.ping()
        return len((await emulator.log()).auths)

    def made() -> TokenSource:
        return TokenSource.from_credential_factory(mint, refresh=BRISK)

    async def first() -> None:
        async with source:
            await use(source, 0.1)

    async def second() -> int:
        async with made() as another:
            return await use(another, seconds)

    source = made()
    asyncio.run(first())
    with pytest.raises((WrongLoopError, ClosedError)):
        asyncio.run(use(source, 0.1))
    before = len(asyncio.run(emulator.log()).auths)
    return asyncio.run(second()) - before - 1
