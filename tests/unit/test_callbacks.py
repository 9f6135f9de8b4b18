"""What the user's own functions raise is theirs, and changes nothing for anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.pooled import LIFE, Place
from support.working_peer import WorkingPeer

from aioentra_redis import ConnectionState, EntraRedis
from aioentra_redis._multiplex import _reauth

pytestmark = pytest.mark.looptime


class Odd(BaseException):
    """Not an Exception, as some libraries' ways to stop a program are not."""


KINDS = pytest.mark.parametrize("kind", [ValueError, Odd])


def raising(kind: type[BaseException]) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise kind("the user's own")

    return function


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(_reauth, "reauth_delay", lambda token, now: 0.0)
    made = Place(WorkingPeer())
    yield made
    await made.close()


async def all_is_well(redis: EntraRedis) -> None:
    texts = [f"{number}".encode() for number in range(10)]
    assert await asyncio.gather(*map(redis.echo, texts)) == texts
    assert await redis.blpop(["none"], timeout=0.01) is None
    assert not redis.connection_pool._in_use_connections
    assert [row.in_flight for row in redis.auth_status() if row.in_flight] == []


async def test_on_event_that_raises_stops_no_rotation(place: Place):
    redis = place.client(on_event=raising(ValueError))
    await all_is_well(redis)
    for rotation in range(1, 4):
        await asyncio.sleep(LIFE / 2 + 1)
        assert {row.token_version for row in redis.auth_status()} == {rotation + 1}
        assert {row.state for row in redis.auth_status()} == {ConnectionState.AUTHENTICATED}
    await all_is_well(redis)


@KINDS
async def test_a_response_callback_that_raises_is_its_callers_alone(place: Place, kind: Any):
    redis = place.client()
    await all_is_well(redis)
    redis.set_response_callback("GET", raising(kind))
    redis.set_response_callback("BLPOP", raising(kind))

    async def fails(call: Any) -> None:
        with pytest.raises(kind, match="the user's own"):
            await call

    await asyncio.gather(
        *(fails(redis.get("k")) for _ in range(5)),
        fails(redis.blpop(["none"], timeout=0.01)),
        fails(redis.pipeline().get("k").execute()),
        fails(redis.pipeline(transaction=False).get("k").execute()),
        *(redis.echo("b") for _ in range(5)),
    )
    del redis.response_callbacks["GET"], redis.response_callbacks["BLPOP"]
    await all_is_well(redis)


@KINDS
async def test_a_handler_of_messages_that_raises_is_its_readers_alone(place: Place, kind: Any):
    redis = place.client()
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(a=raising(kind), b=None)
        await pubsub.get_message(timeout=0.1)
        await pubsub.get_message(timeout=0.1)
        await redis.publish("a", "1")
        await redis.publish("b", "2")
        with pytest.raises(kind, match="the user's own"):
            await pubsub.get_message(timeout=1)
        message = await pubsub.get_message(timeout=1)
        assert message is not None
        assert message["data"] == b"2"
        await asyncio.sleep(LIFE / 2 + 1)
        await redis.publish("b", "3")
        assert (await pubsub.get_message(timeout=1) or {})["data"] == b"3"
    await all_is_well(redis)


@KINDS
async def test_a_transaction_function_that_raises_returns_its_connection(place: Place, kind: Any):
    redis = place.client()
    with pytest.raises(kind, match="the user's own"):
        await redis.transaction(raising(kind), "watched")
    await all_is_well(redis)
