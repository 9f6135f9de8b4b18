"""``EntraRedis.pubsub()`` on a scripted server: leases, handovers that go wrong, losses, ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from redis.asyncio.client import PubSub as RedisPubSub
from support.pubsub_peer import NOPERM
from support.pubsub_stage import staged, until
from support.scripted_peer import HANG

from aioentra_redis import (
    ClosedError,
    ConnectionClosed,
    ConnectionLostError,
    EntraRedis,
    MessagesMayBeMissing,
    SubscriptionHandedOver,
)


async def test_without_tokens_it_is_redis_pys_own():
    redis = EntraRedis(host="127.0.0.1")
    assert type(redis.pubsub()) is RedisPubSub
    await redis.aclose()


async def test_it_is_a_pubsub_and_keeps_off_the_command_connection():
    async with staged() as stage:
        assert isinstance(stage.pubsub, RedisPubSub)
        await stage.redis.ping()
        await stage.subscribe("a")
        assert len(stage.peer.open) == 2
        (shared,) = [c for c in stage.peer.open if [b"PING"] in c.commands]
        assert not any(words[0].upper() == b"SUBSCRIBE" for words in shared.commands)


async def test_a_lease_comes_from_the_pool_and_goes_back_disconnected():
    async with staged() as stage:
        await stage.subscribe("a")
        (leased,) = stage.in_use
        retry = stage.connection._former_retry
        await stage.pubsub.aclose()
        assert stage.in_use == set()
        assert leased in stage.redis.connection_pool._available_connections
        assert not leased.is_connected
        assert leased.retry is retry
        await stage.pubsub.aclose()
        await stage.subscribe("b")  # it may be used again, as in redis-py
        assert stage.in_use == {leased}


async def test_the_lease_is_kept_signed_in_by_the_session_alone():
    """Another task's AUTH would be written into a socket that is not redis-py's any more."""
    async with staged() as stage:
        await stage.subscribe("a")

        def rows() -> list[str]:
            return [row.connection.partition("-")[0] for row in stage.redis.auth_status()]

        assert rows() == ["subscriber"]
        stage.peer.cut()
        await until(lambda: not stage.connection.is_connected)
        await stage.subscribe("b")
        assert rows() == ["subscriber"]
        await stage.hand_over()
        assert rows() == ["connection", "subscriber"]  # the marker was published on the former
        await stage.pubsub.aclose()
        assert "subscriber" not in rows()
        assert "dedicated" not in rows()
        leased = await stage.redis.connection_pool.get_connection()
        assert "dedicated" in rows()  # the pool's again
        await stage.redis.connection_pool.release(leased)


# -- handovers -------------------------------------------------------------------------------------


async def test_the_new_connection_takes_the_old_ones_place():
    async with staged() as stage:
        await stage.subscribe("a")
        old = stage.session
        (leased,) = stage.in_use
        await stage.hand_over()
        assert len(stage.in_use) == 1
        assert stage.in_use != {leased}
        (event,) = stage.of(SubscriptionHandedOver)
        assert (event.old, event.new, event.doubt) == (old.name, stage.session.name, None)
        assert [row.connection for row in stage.redis.auth_status()][-1] == event.new
        await until(lambda: not leased.is_connected)
        await stage.redis.publish("a", "1")
        assert await stage.next_data() == b"1"


async def test_a_marker_that_may_not_be_published_is_told():
    async with staged() as stage:
        stage.peer.script["PUBLISH"] = lambda *_: NOPERM
        await stage.subscribe("a")
        await stage.hand_over()
        (event,) = stage.of(SubscriptionHandedOver)
        assert "could not be published" in event.doubt
        assert stage.of(MessagesMayBeMissing) == []
        stage.peer.publish(b"a", b"1")
        assert await stage.next_data() == b"1"


async def test_changes_wait_for_the_handover():
    async with staged() as stage:
        release = asyncio.Event()
        await stage.subscribe("a")
        publish = stage.connection._publish

        async def late(marker: bytes) -> None:
            await release.wait()
            await publish(marker)

        stage.connection._publish = late
        handing_over = asyncio.create_task(stage.hand_over())
        await until(lambda: len(stage.peer.seen("SUBSCRIBE")) == 4)  # a, marker; a, marker
        changes = [
            asyncio.create_task(stage.pubsub.subscribe("b")),
            asyncio.create_task(stage.pubsub.unsubscribe("a")),
            asyncio.create_task(stage.pubsub.psubscribe("never*")),
        ]
        await asyncio.sleep(0.02)
        assert not any(each.done() for each in changes)
        changes.pop().cancel()  # one that gives up was not sent
        release.set()
        await asyncio.gather(handing_over, *changes)
        got = [await stage.pubsub.get_message(timeout=2) for _ in range(2)]
        assert [each and each["type"] for each in got] == ["subscribe", "unsubscribe"]
        assert stage.session.subscriptions[b""] == {b"b"}
        assert stage.peer.seen("PSUBSCRIBE") == []


@pytest.mark.parametrize("when", ["dialing", "marker"])
async def test_closed_in_the_middle_of_a_handover(when):
    async with staged() as stage:
        await stage.subscribe("a")
        before = len(stage.peer.open)
        if when == "dialing":
            stage.peer.script["HELLO"] = stage.peer.script["AUTH"] = lambda *_: HANG
        else:
            stage.connection._publish = lambda marker: asyncio.sleep(3600)
        handing_over = asyncio.create_task(stage.hand_over())
        await until(lambda: len(stage.peer.open) > before)
        await asyncio.sleep(0.02)
        await stage.pubsub.aclose()
        with pytest.raises(asyncio.CancelledError):
            await handing_over
        await until(lambda: stage.peer.open == [])
        assert stage.in_use == set()
        assert stage.of(SubscriptionHandedOver) == []


async def test_both_lost_in_a_handover_is_a_loss_like_others():
    async with staged() as stage:
        await stage.subscribe("a")

        async def cut(marker: bytes) -> None:
            stage.peer.cut()

        stage.connection._publish = cut
        reading = asyncio.create_task(stage.pubsub.get_message(timeout=None))
        handing_over = asyncio.create_task(stage.hand_over())
        await asyncio.sleep(0)
        changing = asyncio.create_task(stage.pubsub.subscribe("b"))
        with pytest.raises(ConnectionLostError):
            await handing_over
        with contextlib.suppress(redis_exceptions.ConnectionError):
            await reading
        with contextlib.suppress(redis_exceptions.ConnectionError):
            await changing
        await stage.pubsub.subscribe("b")
        await until(lambda: {b"a", b"b"} <= stage.session.subscriptions[b""])
        (gap,) = stage.of(MessagesMayBeMissing)
        assert isinstance(gap.error, ConnectionLostError)


async def test_the_old_one_lost_in_a_handover_leaves_a_gap_that_is_told():
    async with staged() as stage:
        await stage.subscribe("a")
        publish = stage.connection._publish
        (old,) = [c for c in stage.peer.open if stage.peer.names(c)[b""]]

        async def cut_first(marker: bytes) -> None:
            old.cut()
            await publish(marker)

        stage.connection._publish = cut_first
        reading = asyncio.create_task(stage.pubsub.get_message(timeout=None))
        await asyncio.create_task(stage.hand_over())
        (event,) = stage.of(SubscriptionHandedOver)
        (gap,) = stage.of(MessagesMayBeMissing)
        assert event.doubt is not None
        assert gap.connection == event.new
        stage.peer.publish(b"a", b"1")
        message = await reading  # nobody who waits notices
        assert message["data"] == b"1"


# -- losses and refusals ---------------------------------------------------------------------------


async def test_a_refused_subscription_is_the_readers_error_and_nobody_elses():
    async with staged() as stage:
        stage.peer.forbidden = {b"secret"}
        await stage.subscribe("a")
        await stage.pubsub.subscribe("secret")
        with pytest.raises(redis_exceptions.NoPermissionError):
            await stage.pubsub.get_message(timeout=2)
        await stage.redis.publish("a", "1")
        assert await stage.next_data() == b"1"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_what_was_read_before_a_loss_is_not_lost(protocol):
    async with staged(protocol) as stage:
        await stage.subscribe("a")
        for number in range(3):
            stage.peer.publish(b"a", b"%d" % number)
        await until(lambda: len(stage.connection._inbox) == 3)
        stage.peer.cut()
        await until(lambda: not stage.connection.is_connected)
        assert [await stage.next_data() for _ in range(3)] == [b"0", b"1", b"2"]
        message = await stage.pubsub.get_message(timeout=2)
        assert message is not None  # the confirmation on the next connection
        assert message["type"] == "subscribe"
        (gap,) = stage.of(MessagesMayBeMissing)
        assert gap.connection == stage.session.name


async def test_a_lost_connection_without_subscriptions_leaves_no_gap():
    async with staged() as stage:
        await stage.pubsub.connect()
        stage.peer.cut()
        await until(lambda: not stage.connection.is_connected)
        await stage.subscribe("a")
        assert stage.of(MessagesMayBeMissing) == []
        assert len([each for each in stage.of(ConnectionClosed) if each.error is not None]) == 1


class Slow:
    """Holds up the resubscription until it is told to go on."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def on_connect(self, connection: Any) -> None:
        self.begun.set()
        await self.go_on.wait()


async def test_a_reader_cancelled_in_the_middle_of_resubscribing_leaves_no_half():
    async with staged() as stage:
        await stage.subscribe("a")
        slow = Slow()
        callbacks = stage.connection._callbacks
        stage.connection.register_connect_callback(slow.on_connect)
        callbacks.reverse()  # before redis-py's own
        stage.peer.cut()
        await until(lambda: not stage.connection.is_connected)
        reading = asyncio.create_task(stage.pubsub.get_message(timeout=None))
        await slow.begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        slow.go_on.set()
        message = await stage.pubsub.get_message(timeout=2)
        assert message is not None
        assert message["type"] == "subscribe"
        await stage.redis.publish("a", "1")
        assert await stage.next_data() == b"1"
        assert len(stage.of(MessagesMayBeMissing)) == 1


async def test_without_retries_the_reader_gets_the_error_and_may_go_on():
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    async with staged(retry=Retry(NoBackoff(), 0)) as stage:
        await stage.subscribe("a")
        reading = asyncio.create_task(stage.pubsub.get_message(timeout=None))
        await asyncio.sleep(0.01)
        stage.peer.cut()
        with pytest.raises(redis_exceptions.ConnectionError):
            await reading
        message = await stage.pubsub.get_message(timeout=2)
        assert message is not None
        assert message["type"] == "subscribe"


@pytest.mark.parametrize("timeout", [0, -1, 0.02])
async def test_no_message_in_time_is_none(timeout):
    async with staged() as stage:
        await stage.subscribe("a")
        assert await stage.pubsub.get_message(timeout=timeout) is None
        assert stage.connection.is_connected


async def test_socket_timeout_holds_where_no_time_is_named():
    async with staged(socket_timeout=0.05) as stage:
        await stage.subscribe("a")
        with pytest.raises(redis_exceptions.TimeoutError):
            await stage.connection.read_response()
        assert await stage.connection.read_response(timeout=0.01) is None
        reading = asyncio.create_task(stage.connection.read_response(timeout=float("inf")))
        await asyncio.sleep(0.1)
        assert not reading.done()
        stage.peer.publish(b"a", b"1")
        assert await reading == [b"message", b"a", b"1"]


async def test_a_health_check_before_the_first_subscription():
    async with staged(health_check_interval=10) as stage:
        await stage.pubsub.connect()
        stage.peer.commands.clear()
        await stage.subscribe("a")
        names = [words[0].upper() for words in stage.peer.commands]
        assert names == [b"PING", b"SUBSCRIBE"]


async def test_a_health_check_without_an_answer():
    async with staged(health_check_interval=10, socket_timeout=0.05) as stage:
        await stage.pubsub.connect()
        stage.peer.script["PING"] = [HANG, HANG, HANG, HANG, HANG]
        with pytest.raises(redis_exceptions.TimeoutError):
            await stage.connection.send_command("SUBSCRIBE", "a")
        assert not stage.connection.is_connected
        stage.peer.script["PING"] = []
        await stage.subscribe("a")


async def test_a_lost_connection_gets_no_newer_token():
    async with staged() as stage:
        await stage.subscribe("a")
        task = stage.connection._reauthentication
        stage.peer.cut()
        await until(task.done)


async def test_a_slow_reader_gets_everything_in_the_end():
    async with staged() as stage:
        await stage.subscribe("a")
        for number in range(100):
            stage.peer.publish(b"a", b"%d " % number + b"x" * 50_000)
        await until(lambda: stage.session.held_up)
        assert stage.connection._inbox.size < 2_000_000
        for number in range(100):
            data = await stage.next_data()
            assert data.startswith(b"%d " % number)
        assert not stage.session.held_up


async def test_what_waits_to_be_read_is_health_enough():
    """The answer to a PING would wait behind it."""
    async with staged(health_check_interval=10, socket_timeout=0.05) as stage:
        await stage.subscribe("a")
        for number in range(100):
            stage.peer.publish(b"a", b"%d " % number + b"x" * 50_000)
        await until(lambda: stage.session.held_up)
        stage.connection.next_health_check = 0
        await stage.connection.send_command("SUBSCRIBE", "b")
        assert stage.connection.is_connected
        for number in range(100):
            data = await stage.next_data()
            assert data.startswith(b"%d " % number)


@pytest.mark.parametrize("step", ["connecting", "giving back"])
async def test_redis_pys_connection_is_used_again_when_its_socket_is_gone(step):
    """The end of a socket is told a little later, and would look like the end of the next one."""
    async with staged() as stage:
        await stage.subscribe("a")
        gone = asyncio.Event()
        wait_closed, session = stage.session.wait_closed, stage.session

        async def later() -> None:
            await gone.wait()
            await wait_closed()

        session.wait_closed = later
        if step == "connecting":
            await stage.connection.disconnect(nowait=True)
            again = asyncio.create_task(stage.connection.connect())
        else:
            again = asyncio.create_task(stage.pubsub.aclose())
        await asyncio.sleep(0.02)
        assert not again.done()
        assert len(stage.in_use) == 1
        assert len(stage.peer.connections) == 1
        gone.set()
        await again


# -- the end ---------------------------------------------------------------------------------------


async def test_a_closed_client_refuses():
    async with staged() as stage:
        await stage.subscribe("a")
        waiting = asyncio.create_task(stage.pubsub.get_message(timeout=None))
        await asyncio.sleep(0.01)
        await stage.redis.aclose()
        # Without retries, redis-py's default up to version 5, it is the loss that is seen.
        with pytest.raises((ClosedError, redis_exceptions.ConnectionError), match="closed"):
            await waiting
        with pytest.raises(ClosedError):
            await stage.pubsub.subscribe("b")


async def test_closing_wakes_whoever_reads_and_does_not_reconnect():
    async with staged() as stage:
        await stage.subscribe("a")
        waiting = asyncio.create_task(stage.pubsub.get_message(timeout=None))
        await asyncio.sleep(0.01)
        await stage.pubsub.aclose()
        with pytest.raises(redis_exceptions.ConnectionError, match="closed"):
            await waiting
        assert stage.in_use == set()
        await until(lambda: len(stage.peer.open) == 0)


async def test_a_dropped_subscriber_lets_go_of_its_connection():
    async with staged() as stage:
        await stage.subscribe("a")
        stage.pubsub = stage.redis.pubsub()
        gc.collect()
        await until(lambda: stage.in_use == set())
        await until(lambda: stage.peer.open == [])
        assert stage.redis.auth_status() == []
