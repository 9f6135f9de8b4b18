"""Connections are reset at every byte of a reply: right replies or honest errors, nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.signing_in import Witness, client_of, minted_source, secret_source

from aioentra_redis import ConnectionClosed, EntraRedis, MaybeExecutedError
from aioentra_redis._multiplex import _connection
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(240)]

Call = Callable[[EntraRedis], Awaitable[Any]]

READS: dict[str, Call] = {
    "bulk": lambda r: r.get("bulk"),
    "empty": lambda r: r.get("empty"),
    "null": lambda r: r.get("none"),
    "number": lambda r: r.strlen("bulk"),
    "list": lambda r: r.lrange("list", 0, -1),
    "map": lambda r: r.hgetall("map"),
    "set": lambda r: r.smembers("set"),
    "scores": lambda r: r.zrange("scores", 0, -1, withscores=True),
    "double": lambda r: r.zscore("scores", "two"),
    "status": lambda r: r.type("list"),
    "nested": lambda r: r.xrange("stream"),
    "many": lambda r: r.mget(["bulk", "none", "empty"]),
    "scan": lambda r: r.hscan("map"),
    "error": lambda r: r.llen("bulk"),
}
"""Replies of each type, of commands that change nothing; RESP3 has its own for most of them."""


async def counted(redis: EntraRedis) -> int:
    return int(await redis.incr("count"))


async def stored(redis: EntraRedis) -> bool:
    return bool(await redis.set("stored", "value"))


async def in_transaction(redis: EntraRedis) -> list[Any]:
    async with redis.pipeline(transaction=True) as pipe:
        return await pipe.incr("pair:a").incr("pair:b").hset("map", "f1", "v1").execute()


WRITES: dict[str, Call] = {"counted": counted, "stored": stored, "transaction": in_transaction}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends its connections time and again is otherwise not asked at once."""
    monkeypatch.setattr(_connection, "SHORT_LIFE", 0.0)


async def fill(redis: EntraRedis) -> None:
    await redis.set("bulk", b"some\r\nbytes \xff")
    await redis.set("empty", b"")
    await redis.rpush("list", "a", "", "c\r\nd")
    await redis.hset("map", mapping={"f1": "v1", "f2": ""})
    await redis.sadd("set", "only")
    await redis.zadd("scores", {"one": 1, "two": 2.5})
    await redis.xadd("stream", {"field": "value"}, id="1-1")


async def outcome(call: Awaitable[Any]) -> Any:
    """What a call returned, or what it raised, in a form that compares."""
    try:
        return await call
    except MaybeExecutedError as error:
        return error
    except Exception as error:
        return type(error).__name__, str(error)


class Counts:
    """What the counters must be, from what the writes were told."""

    def __init__(self) -> None:
        self.least = {"count": 0, "pair:a": 0}
        self.most = {"count": 0, "pair:a": 0}

    def told(self, key: str, reply: Any) -> None:
        self.most[key] += 1
        if isinstance(reply, MaybeExecutedError):
            return
        assert self.least[key] + 1 <= reply <= self.most[key], f"{key} was answered with {reply}"
        self.least[key] = reply


@pytest.mark.parametrize("protocol", [2, 3])
async def test_at_every_byte_of_replies_to_many_callers(
    entra_emulator: Emulator, figure: Any, protocol: int
) -> None:
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, protocol=protocol, on_event=witness) as redis,
    ):
        await fill(redis)
        expected = {name: await outcome(call(redis)) for name, call in READS.items()}
        assert expected["error"][0] == "ResponseError"
        calls = {**READS, **WRITES}
        # Writes among the reads, so that each meets its cut in the middle of the others' replies.
        order = [name for pair in zip(READS, list(WRITES) * 5, strict=False) for name in pair]
        counts = Counts()
        maybe = position = 0
        while True:
            await redis.ping()  # connected again
            ends = len(witness.of(ConnectionClosed))
            assert await entra_emulator.cut_replies(position) == 1
            tasks = [asyncio.create_task(outcome(calls[name](redis))) for name in order]
            async with asyncio.timeout(10):
                replies = await asyncio.gather(*tasks)
            for name, reply in zip(order, replies, strict=True):
                if isinstance(reply, MaybeExecutedError):
                    assert name in WRITES
                    assert "may or may not have been executed" in str(reply)
                    maybe += 1
                if name in READS:
                    assert reply == expected[name], f"at byte {position}"
                elif name == "stored":
                    assert reply is True or isinstance(reply, MaybeExecutedError)
                elif name == "counted":
                    counts.told("count", reply)
                else:
                    pair = reply if isinstance(reply, MaybeExecutedError) else reply[0]
                    counts.told("pair:a", pair)
                    if isinstance(reply, list):
                        assert reply == [reply[0], reply[0], 0]
            if len(witness.of(ConnectionClosed)) == ends:
                break  # the cut lies behind the last byte
            position += 1
        figure(f"RESP{protocol}: bytes at which a reply was cut", position)
        figure(f"RESP{protocol}: writes that may have run, of {3 * 5 * position}", maybe)
        figure(f"RESP{protocol}: wrong replies, failed reads", 0, target="0")
        assert position > 300
        assert maybe > 100
        for key, least in counts.least.items():
            assert least <= int(await redis.get(key)) <= counts.most[key]
        assert await redis.get("pair:a") == await redis.get("pair:b")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_at_every_byte_of_the_reply_to_a_blocking_pop(
    entra_emulator: Emulator, figure: Any, protocol: int
) -> None:
    """Each element is delivered, is left where it was, or its loss is told."""
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, protocol=protocol) as redis,
    ):
        delivered, told, position = 0, 0, 0
        while True:
            element = f"element {position}".encode()
            popping = asyncio.create_task(outcome(redis.blpop("queue", timeout=5)))
            while not any(row.in_flight for row in redis.auth_status()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await entra_emulator.cut_replies(position, connection=await newest(entra_emulator))
            await redis.rpush("queue", element)
            reply = await popping
            if isinstance(reply, MaybeExecutedError):
                assert "may be lost" in str(reply)
                told += 1
                # It may be in the list: the connection may have ended before the pop.
                await redis.delete("queue")
            else:
                assert list(reply) == [b"queue", element]
                delivered += 1
                break  # the whole reply went through
            position += 1
        figure(f"RESP{protocol}: cuts of BLPOP's reply, each told", told)
        assert (delivered, told) == (1, position)
        assert position > 20
        assert await redis.llen("queue") == 0


async def newest(emulator: Emulator) -> int:
    return max(each.connection for each in await emulator.connections())


@pytest.mark.parametrize("protocol", [2, 3])
async def test_at_every_byte_of_a_message(
    entra_emulator: Emulator, figure: Any, protocol: int
) -> None:
    """A subscriber never sees half a message or another one, and is subscribed again."""
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, protocol=protocol) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as subscriber,
    ):
        await subscriber.subscribe("news")
        await next_message(subscriber, 0.05)
        position, seen = 0, set()
        while True:
            own = await newest(entra_emulator)
            await entra_emulator.cut_replies(position, connection=own)
            sent = f"message {position}".encode()
            await redis.publish("news", sent)
            got = await next_message(subscriber, 0.3)
            if got is not None:
                assert got == sent
                break
            # Lost with its connection, which is at most once; the next one must come.
            async with asyncio.timeout(5):
                while not await redis.publish("news", b"after"):
                    assert await next_message(subscriber, 0.01) is None
            while (got := await next_message(subscriber, 1.0)) is not None:
                seen.add(got)
                if got == b"after":
                    break
            assert got == b"after", f"at byte {position}"
            position += 1
        figure(f"RESP{protocol}: cuts of a message, subscribed again after each", position)
        assert position > 30
        assert seen == {b"after"}


async def next_message(subscriber: Any, timeout: float) -> bytes | None:
    message = await subscriber.get_message(timeout=timeout)
    return None if message is None else bytes(message["data"])


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x03\x00\x02", b"$-5\r\n", b"*1\r\n?\r\n"],
    ids=["http", "tls", "length", "type"],
)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_garbage_in_the_stream(
    entra_emulator: Emulator, figure: Any, protocol: int, garbage: bytes
) -> None:
    """The connection is dropped, callers are told, and the next command works."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=3.0) as source,
        client_of(entra_emulator, source, protocol=protocol, on_event=witness) as redis,
    ):
        await redis.set("key", "value")
        # Idle:
        assert await entra_emulator.inject_reply(garbage) == 1
        closed = await witness.first(ConnectionClosed)
        assert "out of step" in str(closed.error)
        assert await redis.get("key") == b"value"
        # Under way, with replies due that never come:
        await entra_emulator.freeze_connections(execute=True)
        writing = [asyncio.create_task(outcome(redis.incr("count"))) for _ in range(10)]
        reading = [asyncio.create_task(redis.get("key")) for _ in range(10)]
        await asyncio.sleep(0.05)
        await entra_emulator.inject_reply(garbage)
        for reply in await asyncio.gather(*writing):
            assert isinstance(reply, MaybeExecutedError)
            assert "out of step" in str(reply)
        assert await asyncio.gather(*reading) == [b"value"] * 10
        assert int(await redis.get("count")) == 10
        figure(f"RESP{protocol}: garbage: failed reads", 0, target="0")


async def test_garbage_for_a_blocking_pop_and_a_subscriber(entra_emulator: Emulator) -> None:
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as subscriber,
    ):
        await subscriber.subscribe("news")
        popping = asyncio.create_task(outcome(redis.blpop("queue", timeout=5)))
        await asyncio.sleep(0.1)
        assert await entra_emulator.inject_reply(b"?garbage\r\n") == 3
        assert isinstance(await popping, MaybeExecutedError)
        async with asyncio.timeout(5):
            while await next_message(subscriber, 0.1) != b"after":
                await redis.publish("news", "after")
        await redis.rpush("queue", "element")
        assert list(await redis.blpop("queue", timeout=1)) == [b"queue", b"element"]
