"""Publish/subscribe across rotations: every message once, in order, and nothing of AUTH."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from typing import Any

import pytest
import redis
from redis import exceptions as redis_exceptions
from support.listening import MESSAGES, SHARDED, Listener, publish, until_heard
from support.signing_in import Witness, client_of, minted_source, secret_source, until

from aioentra_redis import (
    BreakerOpened,
    ClosedError,
    ConnectionClosed,
    ConnectionStatus,
    EntraRedis,
    MessagesMayBeMissing,
    Reauthenticated,
    ReauthenticationFailed,
    SubscriptionHandedOver,
    TokenPublished,
)
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("in_place")]

PROTOCOLS = pytest.mark.parametrize("protocol", [3, 2], ids=["RESP3", "RESP2"])


async def every_message_once(
    emulator: Emulator, protocol: int, seconds: float, rate: float, period: float
) -> None:
    witness = Witness()

    def rotations() -> list[Any]:
        if protocol == 2:
            return witness.of(SubscriptionHandedOver)
        return [
            each for each in witness.of(Reauthenticated) if each.connection.startswith("subscriber")
        ]

    async with (
        minted_source(emulator, believed=2 * period) as source,
        client_of(emulator, source, on_event=witness, protocol=protocol) as redis,
        redis.pubsub() as pubsub,
    ):
        await pubsub.subscribe("news")
        await pubsub.psubscribe("pattern:*")
        if SHARDED:
            await pubsub.ssubscribe("shard")
        listener = Listener(pubsub)
        await until(lambda: len(listener.others) == 2 + SHARDED)
        stopping = False

        async def change_subscriptions() -> int:
            turn = 0
            while not stopping:
                turn += 1
                await pubsub.subscribe(f"other:{turn % 7}")
                await pubsub.punsubscribe(f"nothing:{turn}")
                await pubsub.unsubscribe(f"other:{(turn + 3) % 7}")
                await asyncio.sleep(0.013)
            return turn

        changing = asyncio.create_task(change_subscriptions())
        count = await publish(redis, seconds, rate, lambda: len(rotations()) > seconds / period / 4)
        stopping = True
        changes = await changing
        # Whatever is still under way: the confirmations of all changes, too.
        await until(lambda: len(listener.others) >= 2 + SHARDED + 3 * changes, timeout=10)
        await until(lambda: len(listener.numbers["message"]) >= count, timeout=10)
        await listener.stop()
    everything = list(range(1, count + 1))
    for kind in MESSAGES[: 2 + SHARDED]:
        assert listener.numbers[kind] == everything, kind
    assert len(listener.others) == 2 + SHARDED + 3 * changes
    assert {each["type"] for each in listener.others} <= {
        "subscribe",
        "psubscribe",
        "ssubscribe",
        "unsubscribe",
        "punsubscribe",
    }
    if protocol == 2:
        assert [each.doubt for each in rotations() if each.doubt] == []
    assert len(rotations()) > seconds / period / 4
    assert witness.of(MessagesMayBeMissing) == witness.of(ReauthenticationFailed) == []
    print(f"RESP{protocol}: {count * (2 + SHARDED)} messages, {len(rotations())} rotations")


@PROTOCOLS
async def test_every_message_once_and_in_order(entra_emulator: Emulator, protocol: int) -> None:
    await every_message_once(entra_emulator, protocol, seconds=2.0, rate=600, period=0.05)


@pytest.mark.slow
@PROTOCOLS
async def test_ten_seconds_at_1000_messages_a_second(
    entra_emulator: Emulator, protocol: int
) -> None:
    await every_message_once(entra_emulator, protocol, seconds=10.0, rate=1000, period=0.05)


@PROTOCOLS
async def test_a_subscriber_outlives_its_tokens(entra_emulator: Emulator, protocol: int) -> None:
    """The server ends what a token of 2 s has signed in; nobody who listens notices."""
    await entra_emulator.configure(token_lifetime=2)
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, on_event=witness, protocol=protocol) as redis,
        redis.pubsub() as pubsub,
    ):
        await pubsub.subscribe("news")
        await until_heard(redis, "news")
        listener = Listener(pubsub)
        publishing = asyncio.create_task(publish(redis, 7.0, 100))
        await witness.at_least(4, TokenPublished, timeout=20)
        count = await publishing
        await until(lambda: len(listener.numbers["message"]) >= count)
        await listener.stop()
        assert listener.numbers["message"] == list(range(1, count + 1))
        assert len(listener.others) == 1
    assert [each for each in witness.of(ConnectionClosed) if each.error is not None] == []
    assert "expiry" not in {each.reason for each in (await entra_emulator.log()).closes}


async def test_a_reader_that_waits_notices_no_rotation(entra_emulator: Emulator) -> None:
    """What breaks redis-py's own renewal at the first token: a reader in the way of AUTH."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.4) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as pubsub,
    ):
        await pubsub.subscribe("news")
        waiting = asyncio.create_task(pubsub.get_message(timeout=None))
        assert await pubsub.get_message(timeout=0.05) is None
        await witness.first(
            Reauthenticated, lambda event: event.connection.startswith("subscriber")
        )
        await witness.at_least(8, Reauthenticated)
        ignored = waiting.done()  # one of the two readers was given the confirmation
        assert not ignored or waiting.result() is None
        await redis.publish("news", "hello")  # the message may be there before the answer
        message = await (pubsub.get_message(timeout=20) if ignored else waiting)
        assert message is not None
        assert (message["channel"], message["data"]) == (b"news", b"hello")

        def subscriber() -> ConnectionStatus:
            return next(r for r in redis.auth_status() if r.connection.startswith("subscriber"))

        await until(lambda: subscriber().reauthentications >= 2)
        assert (subscriber().token_version or 0) > 1
        waiting.cancel()
    assert redis.auth_status() == []


@PROTOCOLS
async def test_a_closed_subscriber_writes_nothing_any_more(
    entra_emulator: Emulator, protocol: int
) -> None:
    """Its connection serves somebody else then: an AUTH in front of BLPOP would wait for it."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.4) as source,
        client_of(entra_emulator, source, on_event=witness, protocol=protocol) as redis,
    ):
        pubsub = redis.pubsub()
        await pubsub.subscribe("news")
        await pubsub.get_message(timeout=1)
        await witness.at_least(4, TokenPublished)
        await pubsub.aclose()
        assert len(redis.auth_status()) == 1
        await nobody_subscribed(redis)
        waiting = asyncio.create_task(redis.blpop(["queue"], timeout=20))
        await witness.at_least(10, TokenPublished)
        assert not waiting.done()
        await redis.rpush("queue", "element")
        assert list(await waiting) == [b"queue", b"element"]
    assert witness.of(ReauthenticationFailed) == []


async def until_patterns(redis: EntraRedis) -> None:
    """As ``until_heard``, for the only pattern that there is."""
    async with asyncio.timeout(10):
        while not await redis.pubsub_numpat():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


async def nobody_subscribed(redis: EntraRedis) -> None:
    """Wait until the server has heard of the end of every subscriber."""
    async with asyncio.timeout(5):
        while True:
            clients = await redis.client_list()
            if not any(int(each["sub"]) + int(each["psub"]) for each in clients):
                return
            await asyncio.sleep(0.005)


@PROTOCOLS
async def test_run_with_handlers_and_an_exception_handler(
    entra_emulator: Emulator, protocol: int
) -> None:
    witness = Witness()
    handled: list[bytes] = []
    failures: list[BaseException] = []

    async def handle(message: dict[str, Any]) -> None:
        if message["data"] == b"bad":
            raise ValueError("bad")
        handled.append(message["data"])

    async with (
        minted_source(entra_emulator, believed=0.2) as source,
        client_of(entra_emulator, source, on_event=witness, protocol=protocol) as redis,
        redis.pubsub() as pubsub,
    ):
        await pubsub.subscribe(news=handle)
        await pubsub.psubscribe(**{"pattern:*": lambda message: handled.append(message["data"])})
        await until_heard(redis, "news")
        await until_patterns(redis)
        running = asyncio.create_task(
            pubsub.run(
                exception_handler=lambda error, _pubsub: failures.append(error), poll_timeout=0.05
            )
        )
        expected = []
        while len(witness.of(TokenPublished)) < 12:
            expected += [b"%d" % len(expected), b"%d" % (len(expected) + 1)]
            await redis.publish("news", expected[-2])
            await redis.publish("pattern:x", expected[-1])
            await redis.publish("news", "bad")
            await asyncio.sleep(0.02)
        await until(lambda: len(handled) >= len(expected))
        await until(lambda: len(failures) >= len(expected) / 2)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert handled == expected
    assert {str(each) for each in failures} == {"bad"}


@PROTOCOLS
async def test_decoded_messages(entra_emulator: Emulator, protocol: int) -> None:
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.2) as source,
        client_of(
            entra_emulator, source, on_event=witness, protocol=protocol, decode_responses=True
        ) as redis,
        redis.pubsub() as pubsub,
    ):
        await pubsub.subscribe("günther")
        message = await pubsub.get_message(timeout=5)
        assert message == {"type": "subscribe", "pattern": None, "channel": "günther", "data": 1}
        for number in range(10):
            await witness.at_least(len(witness.of(TokenPublished)) + 1, TokenPublished)
            await redis.publish("günther", f"größer {number}")
            message = await pubsub.get_message(timeout=5)
            assert message is not None
            assert (message["channel"], message["data"]) == ("günther", f"größer {number}")
        await redis.publish("günther", b"\xff")
        await redis.publish("günther", "after")
        with pytest.raises(UnicodeDecodeError):
            await pubsub.get_message(timeout=5)
        message = await pubsub.get_message(timeout=5)
        assert message is not None
        assert message["data"] == "after"
        if protocol == 2:  # with RESP3 redis-py takes a decoded PONG for a message
            await pubsub.ping()
            message = await pubsub.get_message(timeout=5)
            assert message is not None
            assert message["type"] == "pong"


@PROTOCOLS
async def test_no_cancelled_reader_loses_a_message(entra_emulator: Emulator, protocol: int) -> None:
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.2) as source,
        client_of(entra_emulator, source, on_event=witness, protocol=protocol) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as pubsub,
    ):
        cancelled = 0
        await pubsub.subscribe("news")
        await until_heard(redis, "news")
        publishing = asyncio.create_task(publish(redis, 1.5, 600, lambda: cancelled > 50))
        numbers: list[int] = []
        while not publishing.done() or len(numbers) < publishing.result():
            task = asyncio.create_task(pubsub.get_message(timeout=random.choice([None, 0.5])))
            for _ in range(random.randrange(6)):
                await asyncio.sleep(0)
            if random.random() < 0.3:
                await asyncio.sleep(random.random() * 0.003)
            task.cancel()
            try:
                message = await task
            except asyncio.CancelledError:
                cancelled += 1
                continue
            if message is not None:
                numbers.append(int(message["data"]))
        assert numbers == list(range(1, publishing.result() + 1))
        assert cancelled > 50


@PROTOCOLS
async def test_a_lost_connection_is_made_anew_and_the_gap_is_told(
    entra_emulator: Emulator, protocol: int
) -> None:
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=20) as source,
        client_of(entra_emulator, source, on_event=witness, protocol=protocol) as redis,
        redis.pubsub() as pubsub,
    ):
        await pubsub.subscribe("news")
        await pubsub.psubscribe("pattern:*")
        await until_patterns(redis)
        arrived: list[bytes] = []

        async def listen() -> None:
            while True:
                try:
                    async for message in pubsub.listen():
                        arrived.append(message["data"])  # noqa: PERF401 - not to be lost
                except redis_exceptions.ConnectionError:  # what redis-py before 6 does by default
                    await asyncio.sleep(0.01)

        listening = asyncio.create_task(listen())
        for number in range(1, 4):
            await redis.publish("pattern:1", f"before {number}")
            await until(lambda n=number: f"before {n}".encode() in arrived)
            await entra_emulator.drop_connections()
            await witness.at_least(number, MessagesMayBeMissing)
            await redis.publish("news", f"after {number}")
            await until(lambda n=number: f"after {n}".encode() in arrived)
        gap = witness.of(MessagesMayBeMissing)[-1]
        (row,) = [r for r in redis.auth_status() if r.connection.startswith("subscriber")]
        assert gap.connection == row.connection
        assert isinstance(gap.error, redis_exceptions.ConnectionError)
        listening.cancel()


async def test_an_expired_subscriber_signs_in_with_the_newest_token(
    entra_emulator: Emulator,
) -> None:
    """The server refuses every AUTH in place and ends the connection at its token's expiry."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=2, lifetime=4) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
        redis.pubsub() as pubsub,
    ):
        await pubsub.subscribe("news")
        listener = Listener(pubsub)
        await until(lambda: listener.others)
        await entra_emulator.refuse_auth()
        await witness.first(BreakerOpened)  # one connection is refused for all of them
        await redis.publish("news", 1)
        await until(lambda: listener.numbers["message"] == [1])  # the session goes on
        assert not listener.task.done()
        await entra_emulator.heal()
        await witness.first(
            Reauthenticated, lambda event: event.connection.startswith("subscriber")
        )
        await redis.publish("news", 2)
        await until(lambda: listener.numbers["message"] == [1, 2])
        await listener.stop()


async def test_subscribers_count_as_connections_of_the_pool(entra_emulator: Emulator) -> None:
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, max_connections=2, protocol=2) as redis,
    ):
        first, second, third = (redis.pubsub() for _ in range(3))
        await first.subscribe("a")
        await second.subscribe("a")
        with pytest.raises(redis_exceptions.ConnectionError, match="Too many connections"):
            await third.subscribe("a")
        await until_heard(redis, "a", 2)
        assert await redis.publish("a", 1) == 2
        await first.aclose()
        await third.subscribe("a")
        await asyncio.gather(second.aclose(), third.aclose())
        await second.aclose()
        assert len(redis.connection_pool._available_connections) == 2
        assert not any(c.is_connected for c in redis.connection_pool._available_connections)
        assert await redis.blpop(["a"], timeout=0.01) is None


async def test_a_closed_client_has_no_subscribers(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        redis = await client_of(entra_emulator, source)
        pubsub = redis.pubsub()
        await pubsub.subscribe("a")
        await pubsub.get_message(timeout=5)
        waiting = asyncio.create_task(pubsub.get_message(timeout=None))
        await asyncio.sleep(0.01)
        await redis.aclose()
        with pytest.raises((ClosedError, redis_exceptions.ConnectionError)):
            await waiting
        with pytest.raises(ClosedError):
            await pubsub.subscribe("b")
        with pytest.raises(ClosedError):
            redis.pubsub()
        await pubsub.aclose()


async def test_a_dropped_subscriber_gives_its_connection_back(entra_emulator: Emulator) -> None:
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source) as redis,
    ):
        pubsub = redis.pubsub()
        await pubsub.subscribe("a")
        del pubsub
        gc.collect()
        await until(lambda: len(redis.auth_status()) == 1)
        await until(lambda: not redis.connection_pool._in_use_connections)
        await nobody_subscribed(redis)


@pytest.mark.skipif(
    redis.__version__.startswith("5."), reason="redis-py 5 checks a connection before it signs in"
)
async def test_health_checks_and_pushes_as_in_redis_py(entra_emulator: Emulator) -> None:
    pushed: list[Any] = []

    async def push_handler(message: Any) -> Any:
        pushed.append(message)
        return message

    async with (
        minted_source(entra_emulator, believed=0.4) as source,
        client_of(entra_emulator, source, health_check_interval=0.05) as redis,
        redis.pubsub(push_handler_func=push_handler, ignore_subscribe_messages=True) as pubsub,
    ):
        await pubsub.subscribe("a")
        await until_heard(redis, "a")
        seen = []
        for number in range(40):
            await redis.publish("a", number)
            await asyncio.sleep(0.02)
            while (message := await pubsub.get_message()) is not None:
                seen.append(int(message["data"]))
        while (message := await pubsub.get_message(timeout=0.2)) is not None:
            seen.append(int(message["data"]))
        assert seen == list(range(40))
        if hasattr(pubsub.connection._parser, "handle_push_response") and pushed:
            assert [int(each[2]) for each in pushed if each[0] == b"message"] == seen


@pytest.mark.skipif(
    not hasattr(EntraRedis, "keyspace_notifications"), reason="redis-py 8 and later"
)
@PROTOCOLS
async def test_keyspace_notifications(protocol: int) -> None:
    witness = Witness()
    async with (
        Emulator(blocked_commands=()) as emulator,  # whose server may be configured
        minted_source(emulator, believed=0.2) as source,
        client_of(emulator, source, on_event=witness, protocol=protocol) as redis,
    ):
        await redis.config_set("notify-keyspace-events", "KEA")
        notifications = redis.keyspace_notifications(key_prefix="user:")
        await notifications.subscribe_keyspace("user:*")
        assert await notifications.get_message(timeout=5) is None  # the confirmation
        keys = []
        for number in range(30):
            await redis.set(f"user:{number}", number)
            notification = await notifications.get_message(timeout=5)
            assert notification is not None
            keys.append(notification.key)
            await asyncio.sleep(0.03)
        await notifications.aclose()
        assert [str(key) for key in keys] == [str(number) for number in range(30)]
        assert len(witness.of(TokenPublished)) > 5
        rotations = [*witness.of(SubscriptionHandedOver), *witness.of(Reauthenticated)]
        assert len(rotations) > 3
