"""``entra_kwargs`` in virtual time: days of hourly tokens on one connection of redis-py's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support.plain_place import HOUR, RESP2, WRONGPASS, Place
from support.scripted_peer import CUT, HANG, OK
from support.token_fakes import CANARY

from aioentra_redis import (
    ConnectionLostError,
)

pytestmark = pytest.mark.looptime


@pytest.fixture
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    made = Place(**getattr(request, "param", {}))
    yield made
    await made.close()


# ------------------------------------------------------------------------------- days of tokens


async def test_a_day_of_commands(place: Place):
    """A command every 40 seconds: each token once, three minutes before the former one expires."""
    for turn in range(24 * 90):
        await place.client.set("turn", turn)
        await asyncio.sleep(40)
    assert len(place.peer.connections) == 1
    assert len(place.auths) >= 24
    assert place.versions == list(range(2, 2 + len(place.auths)))
    assert len({secret for _, _, secret in place.auths}) == len(place.auths)
    # Tokens are renewed at 0.8 of their life, and each AUTH comes in half of the time left to the
    # deadline at the latest.
    for earlier, later in zip([0.0] + [at for at, _, _ in place.auths], place.auths, strict=False):
        assert later[0] - earlier < HOUR - 180


async def test_hours_of_waiting_for_messages(place: Place):
    """Nothing is published, and nothing but AUTH is sent."""
    pubsub = place.client.pubsub()
    place.peer.script["SUBSCRIBE"] = lambda *_: b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    await pubsub.subscribe("a")
    got: list[Any] = []

    async def listen() -> None:
        async for message in pubsub.listen():
            got.append(message["data"])  # noqa: PERF401 - it never ends

    listening = asyncio.create_task(listen())
    await asyncio.sleep(3 * HOUR)
    assert place.versions == list(range(2, 2 + len(place.auths)))
    assert len(place.auths) >= 3
    place.peer.push(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n")
    await asyncio.sleep(1)
    assert got == [1, b"hello"]
    listening.cancel()
    await asyncio.wait([listening])
    await pubsub.aclose()


# ------------------------------------------------------------------------------- refused


async def test_a_refused_token_is_tried_again_at_decent_intervals_and_no_command_fails(
    place: Place, caplog: pytest.LogCaptureFixture
):
    place.answers = [WRONGPASS] * 5
    with caplog.at_level(logging.DEBUG):
        turn = 0
        while asyncio.get_running_loop().time() < HOUR:
            turn += 1
            assert await place.client.echo(str(turn)) == str(turn).encode()
            await asyncio.sleep(0.5 if place.source.current.version == 2 else 60)
    assert place.versions == [2] * 6
    gaps = [b - a for (a, *_), (b, *_) in zip(place.auths, place.auths[1:], strict=False)]
    assert gaps == pytest.approx([1, 2, 4, 8, 16], abs=1.1)
    assert len(place.peer.connections) == 1
    assert CANARY not in caplog.text
    assert "was refused" in caplog.text


async def test_an_auth_that_fails_in_another_way_is_tried_again_at_decent_intervals(place: Place):
    """It is no refusal of the token, so the breaker has no say in it."""
    await place.client.ping()
    await asyncio.sleep(0.8 * HOUR)
    while not place.auths:
        place.answers = [b"-ERR out of order\r\n"] * 4
        await place.client.ping()
        await asyncio.sleep(0.5)
    for _ in range(60):
        assert await place.client.ping()
        await asyncio.sleep(0.5)
    gaps = [b - a for (a, *_), (b, *_) in zip(place.auths, place.auths[1:], strict=False)]
    assert gaps == pytest.approx([1, 2, 4, 8], abs=0.6)
    assert place.versions == [2] * 5


async def test_a_newer_token_is_not_kept_waiting_by_a_refused_one(place: Place):
    place.answers = [WRONGPASS] * 50
    while not place.auths:
        await place.client.ping()
        await asyncio.sleep(10)
    await asyncio.sleep(100)
    place.answers = []
    await place.client.ping()
    assert place.versions == [2, 2]


async def test_refused_while_a_subscriber_waits(place: Place):
    place.answers = [WRONGPASS] * 3
    pubsub = place.client.pubsub()
    place.peer.script["SUBSCRIBE"] = lambda *_: b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    await pubsub.subscribe("a")
    assert (await pubsub.get_message(timeout=1) or {})["type"] == "subscribe"
    waiting = asyncio.create_task(pubsub.get_message(timeout=HOUR - 1))
    assert await waiting is None
    assert place.versions == [2] * 4
    assert len(place.peer.connections) == 1
    await pubsub.aclose()


# ------------------------------------------------------------------------------- subscribers


async def subscribed(place: Place) -> Any:
    pubsub = place.client.pubsub()
    place.peer.script["SUBSCRIBE"] = lambda _, name: (
        b">3\r\n$9\r\nsubscribe\r\n$1\r\n%b\r\n:1\r\n" % name
    )
    await pubsub.subscribe("a")
    assert (await pubsub.get_message(timeout=1) or {})["type"] == "subscribe"
    return pubsub


async def test_no_auth_while_a_subscription_is_unconfirmed(place: Place):
    """Its refusal could not be told from AUTH's."""
    pubsub = await subscribed(place)
    place.peer.script["SUBSCRIBE"] = [
        [3500.0, b"-NOPERM this user has no permissions to access the channel\r\n"]
    ]
    await pubsub.subscribe("b")
    with pytest.raises(redis_exceptions.ResponseError, match="permission"):
        await pubsub.get_message(timeout=3550)
    assert place.auths == []
    await pubsub.get_message(timeout=2)
    assert place.versions == [2]
    await pubsub.aclose()


async def test_an_answer_to_auth_that_is_late_finds_the_next_read(place: Place):
    """The owner stops reading, changes its subscriptions and reads on: nothing is out of step."""
    pubsub = await subscribed(place)
    place.answers = [[5.0, OK]]
    while not place.auths:
        assert await pubsub.get_message(timeout=1) is None
    await pubsub.subscribe("b")
    await pubsub.ping()
    place.peer.push(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n")
    await asyncio.sleep(10)
    assert (await pubsub.get_message(timeout=1) or {})["data"] == b"hello"
    assert (await pubsub.get_message(timeout=1) or {})["channel"] == b"b"
    assert (await pubsub.get_message(timeout=1) or {})["type"] == "pong"
    assert await pubsub.get_message(timeout=60) is None
    assert place.versions == [2]
    await pubsub.aclose()


async def test_a_cancelled_read_loses_no_answer_and_leaves_no_timer(place: Place):
    pubsub = await subscribed(place)
    place.answers = [[30.0, OK]]
    waiting = asyncio.create_task(pubsub.get_message(timeout=None))
    while not place.auths:  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(2 * HOUR)
    assert place.versions == [2]  # nobody reads: nothing is sent
    place.clock.offset = -2 * HOUR  # (the connection is as young as it was)
    assert await pubsub.get_message(timeout=10) is None
    place.peer.push(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n")
    assert (await pubsub.get_message(timeout=10) or {})["data"] == b"hello"
    await pubsub.aclose()


@pytest.mark.skipif(redis.VERSION < (6,), reason="it subscribes again after time-outs only")
async def test_a_connection_lost_under_auth_is_made_anew_and_subscribed_again(place: Place):
    place.pool.connection_kwargs["retry"] = Retry(NoBackoff(), 1)
    pubsub = await subscribed(place)
    place.answers = [[CUT]]
    got: list[Any] = []

    async def listen() -> None:
        async for message in pubsub.listen():
            got.append(message["type"])  # noqa: PERF401 - it never ends

    listening = asyncio.create_task(listen())
    await asyncio.sleep(2 * HOUR)
    assert got == ["subscribe"]
    assert len(place.peer.connections) == 2
    assert place.versions[0] == 2
    assert len(place.versions) >= 2
    listening.cancel()
    await asyncio.wait([listening])
    await pubsub.aclose()


@RESP2
async def test_a_resp2_subscriber_gets_no_auth(place: Place):
    pubsub = place.client.pubsub()
    place.peer.script["SUBSCRIBE"] = lambda *_: b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    await pubsub.subscribe("a")
    assert (await pubsub.get_message(timeout=1) or {})["type"] == "subscribe"
    assert await pubsub.get_message(timeout=HOUR - 10) is None
    assert len(place.auths) == 1
    place.peer.cut()
    with pytest.raises(redis_exceptions.ConnectionError):
        await pubsub.get_message(timeout=1)
    await pubsub.aclose()


# ------------------------------------------------------------------------------- other modes


async def test_no_auth_between_multi_and_exec(place: Place):
    connection = await place.pool.get_connection()
    place.peer.script |= {
        "MULTI": lambda *_: OK,
        "EXEC": lambda *_: b"*1\r\n+OK\r\n",
        "SET": lambda *_: b"+QUEUED\r\n",
    }
    for command in (["MULTI"], ["SET", "a", "b"], ["SET", "a", "c"], ["EXEC"]):
        await connection.send_command(*command)
        await connection.read_response()
        if command != ["EXEC"]:
            await asyncio.sleep(1100)
            assert place.auths == []
    await connection.send_command("PING")
    await connection.read_response()
    assert place.versions == [2]
    await place.pool.release(connection)


async def test_no_auth_on_a_monitor(place: Place):
    place.peer.script["MONITOR"] = lambda *_: OK
    async with place.client.monitor() as monitor:
        line = b'+1339518083.107412 [0 127.0.0.1:60866] "get" "x"\r\n'
        for _ in range(4):
            place.peer.push(line)
            assert (await monitor.next_command())["command"] == "get x"
            await asyncio.sleep(1000)
    assert place.auths == []


@pytest.mark.parametrize("place", [{"socket_timeout": None}], indirect=True)
async def test_what_ended_because_its_token_did_says_so(place: Place):
    place.peer.script["BLPOP"] = lambda *_: HANG
    popping = asyncio.create_task(place.client.blpop(["list"], timeout=0))
    await asyncio.sleep(HOUR)
    place.peer.cut()
    with pytest.raises(ConnectionLostError, match=r"expired at .* UTC: a newer one is sent with"):
        await popping
    assert place.auths == []
