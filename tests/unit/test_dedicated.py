"""Pooled connections stay signed in, idle, leased or busy, and nobody notices; in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support.dedicated_runs import SENT, run
from support.pooled import LIFE, Place
from support.scripted_peer import CUT, HANG, OK, bulk
from support.token_fakes import CANARY

from aioentra_redis import (
    ConnectionClosed,
    ConnectionState,
    Reauthenticated,
    ReauthenticationFailed,
    _budget,
)
from aioentra_redis._multiplex import _reauth
from aioentra_redis._schedule import IDLE_PING, TokenRefreshConfig
from aioentra_redis.errors import ConfigurationError, ConnectionLostError

pytestmark = pytest.mark.looptime

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"


@pytest.fixture
async def place():
    made = Place()
    yield made  # the source starts with the first connection, in virtual time
    await made.close()


# -------------------------------------------------------------------------- the three moments


async def test_idle_connections_are_given_each_newer_token_once(place: Place):
    client = place.client()
    connections = await place.idle(client, 10)
    for rotation in range(1, 4):
        await asyncio.sleep(SENT - 50 if rotation > 1 else SENT)
        assert len(place.peer.seen("AUTH")) == 10 * rotation
        assert {row.token_version for row in client.auth_status()} == {rotation + 1}
        await asyncio.sleep(50 - 11)
    assert place.peer.dials == 10
    assert len(place.of(Reauthenticated)) == 30
    assert all(0 <= each.latency < 1 for each in place.of(Reauthenticated))
    assert place.of(ReauthenticationFailed) == []
    assert {row.state for row in client.auth_status()} == {ConnectionState.AUTHENTICATED}
    assert len({row.connection for row in client.auth_status()}) == 10
    assert [each.credential_provider.token.version for each in connections] == [4] * 10


async def test_a_leased_connection_that_is_quiet_is_renewed_too(place: Place):
    client = place.client()
    (connection,) = await place.leased(client, 1)
    assert await run(connection, "ECHO", "a") == b"a"
    await asyncio.sleep(SENT)
    assert len(place.peer.seen("AUTH")) == 1
    assert await run(connection, "ECHO", "b") == b"b"
    assert place.peer.dials == 1
    await client.connection_pool.release(connection)


async def test_a_busy_connection_is_renewed_in_front_of_its_owners_next_command(place: Place):
    client = place.client()
    (connection,) = await place.leased(client, 1)
    await connection.send_command("ECHO", "a")
    await asyncio.sleep(SENT)
    assert place.peer.seen("AUTH") == []
    (row,) = client.auth_status()
    assert (row.state, row.in_flight) == (ConnectionState.REAUTHENTICATING, 1)
    await connection.send_command("ECHO", "b")
    assert [await connection.read_response(), await connection.read_response()] == [b"a", b"b"]
    # Quiet from here on: whoever is first, the owner or the background.
    assert await run(connection, "ECHO", "c") == b"c"
    names = [words[0] for words in place.peer.commands]
    assert names[-4:] == [b"ECHO", b"ECHO", b"AUTH", b"ECHO"]
    await asyncio.sleep(0)
    (row,) = client.auth_status()
    assert (row.state, row.token_version) == (ConnectionState.AUTHENTICATED, 2)
    assert row.last_auth_latency is not None
    assert row.last_auth_latency < 1  # not the time it had to wait for its turn
    await client.connection_pool.release(connection)


async def test_a_busy_connection_is_renewed_in_the_background_once_it_is_quiet(place: Place):
    client = place.client()
    (connection,) = await place.leased(client, 1)
    await connection.send_command("ECHO", "a")
    await asyncio.sleep(SENT)
    assert await connection.read_response() == b"a"
    await asyncio.sleep(1)
    assert len(place.peer.seen("AUTH")) == 1
    await client.connection_pool.release(connection)


async def test_one_that_was_busy_across_two_rotations_is_given_the_newest_token_only(place: Place):
    """What was to be sent first has expired meanwhile, and its refusal would say nothing."""
    client = place.client()
    (connection,) = await place.leased(client, 1)
    await connection.send_command("ECHO", "a")
    await asyncio.sleep(2 * SENT)
    assert place.peer.seen("AUTH") == []
    assert await connection.read_response() == b"a"
    assert await run(connection, "ECHO", "b") == b"b"
    newest = place.source.current
    assert newest is not None
    assert newest.version == 3
    assert [words[-1] for words in place.peer.seen("AUTH")] == [newest.secret.encode()]
    await asyncio.sleep(1)
    (row,) = client.auth_status()
    assert (row.state, row.token_version) == (ConnectionState.AUTHENTICATED, 3)
    assert place.of(ReauthenticationFailed) == []
    assert place.peer.dials == 1
    await client.connection_pool.release(connection)


async def test_a_transaction_of_a_pool_goes_on_across_a_rotation(place: Place):
    place.peer.script.update(
        WATCH=lambda *_: OK,
        UNWATCH=lambda *_: OK,
        MULTI=lambda *_: OK,
        EXEC=lambda *_: b"*1\r\n+OK\r\n",
        SET=lambda *_: b"+QUEUED\r\n",
    )
    client = place.client()
    async with client.pipeline() as pipe:
        await pipe.watch("k")
        await asyncio.sleep(SENT)
        pipe.multi()
        pipe.set("k", "v")
        assert await pipe.execute() == [True]
    assert len(place.peer.seen("AUTH")) == 1
    assert place.peer.dials == 1


# -------------------------------------------------------------------------- a few at a time


async def test_no_more_than_a_few_are_renewed_at_once(place: Place, monkeypatch):
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 0.0)
    under_way: list[int] = []
    client = place.client()

    def auth(*_: Any) -> list[Any]:
        under_way.append(
            sum(c.in_band._exchange.locked() for c in client.connection_pool._available_connections)
        )
        return [0.9, OK]

    place.peer.script["AUTH"] = auth
    await place.idle(client, 30)
    await asyncio.sleep(95)
    assert len(place.peer.seen("AUTH")) == 30
    assert max(under_way) == TokenRefreshConfig().max_concurrent_auths
    assert place.peer.dials == 30


async def test_one_that_hangs_delays_the_others_only_as_one_of_a_few(place: Place):
    client = place.client()
    await place.idle(client, 20)
    place.peer.script["AUTH"] = [HANG]
    await asyncio.sleep(SENT)
    assert [row.token_version for row in client.auth_status()].count(2) == 19
    await asyncio.sleep(20)
    assert len(client.auth_status()) == 19  # it was closed: its AUTH was never answered
    (closed,) = place.of(ConnectionClosed)
    assert isinstance(closed.error, redis_exceptions.TimeoutError)
    assert CANARY not in repr(place.events)


async def test_one_that_hangs_stays_the_last_to_be_handed_out(place: Place):
    client = place.client()
    await place.idle(client, 20)
    place.peer.script["AUTH"] = [HANG]  # the first of them
    await asyncio.sleep(SENT)
    (hung,) = [row for row in client.auth_status() if row.token_version == 1]
    assert hung.state is ConnectionState.REAUTHENTICATING
    started = asyncio.get_running_loop().time()
    leased = await place.leased(client, 19)
    assert asyncio.get_running_loop().time() - started < 0.1
    for connection in leased:
        await client.connection_pool.release(connection)


async def test_checkout_waits_for_an_auth_that_is_unread(place: Place):
    client = place.client(place.pool(max_connections=1))
    (connection,) = await place.idle(client, 1)
    place.peer.script["AUTH"] = [[5.0, OK]]
    await asyncio.sleep(50)
    while not connection.in_band._exchange.locked():  # noqa: ASYNC110 - its jitter
        await asyncio.sleep(0.01)
    started = asyncio.get_running_loop().time()
    pool: Any = client.connection_pool
    assert await pool.get_connection() is connection
    assert asyncio.get_running_loop().time() - started == pytest.approx(5, abs=0.1)
    with pytest.raises(redis_exceptions.ConnectionError, match="Too many"):
        await pool.get_connection()
    assert await run(connection, "ECHO", "a") == b"a"
    assert place.peer.dials == 1
    await pool.release(connection)


async def test_the_others_are_handed_out_first(place: Place, monkeypatch):
    monkeypatch.setattr(_budget, "SLOT_HOLD", 100.0)
    client = place.client()
    connections = await place.idle(client, 12)
    place.peer.script["AUTH"] = lambda *_: HANG
    await asyncio.sleep(SENT)
    busy = [each for each in connections if each.in_band._exchange.locked()]
    assert len(busy) == 8
    pool: Any = client.connection_pool
    assert set(pool._available_connections[:8]) == set(busy)
    others = await place.leased(client, 4)
    assert not set(others) & set(busy)
    for each in others:
        await pool.release(each)


# -------------------------------------------------------------------------- idle PING


@pytest.mark.parametrize(("interval", "expected"), [(0, IDLE_PING), (7, 7)])
async def test_a_ping_where_nothing_else_goes_on(place: Place, interval: float, expected: float):
    place.credential.answer = lambda _: place.credential.issue(life=36_000)
    client = place.client(place.pool(health_check_interval=interval))
    await place.idle(client, 6)
    pings = len(place.peer.seen("PING"))  # redis-py's handshake may send some
    await asyncio.sleep(expected - 1)
    assert len(place.peer.seen("PING")) == pings
    await asyncio.sleep(2.1)
    assert len(place.peer.seen("PING")) == pings + 6
    await asyncio.sleep(expected)
    assert len(place.peer.seen("PING")) == pings + 12


async def test_traffic_is_as_good_as_a_ping_and_a_busy_connection_gets_none(place: Place):
    place.credential.answer = lambda _: place.credential.issue(life=36_000)
    client = place.client()
    used, busy = await place.leased(client, 2)
    pings = len(place.peer.seen("PING"))
    place.peer.script["BLPOP"] = [HANG]
    await busy.send_command("BLPOP", "k", "0")
    for _ in range(5):
        await asyncio.sleep(IDLE_PING / 2)
        await run(used, "ECHO", "a")
    assert len(place.peer.seen("PING")) == pings
    for each in (used, busy):
        await each.disconnect()
        await client.connection_pool.release(each)


async def test_an_auth_that_comes_due_under_a_ping_follows_it(place: Place):
    client = place.client(place.pool(health_check_interval=49))
    await place.idle(client, 1)
    place.peer.script["PING"] = [[30.0, b"+PONG\r\n"]]
    for each in client.connection_pool._available_connections:
        each.socket_timeout = 60
    await asyncio.sleep(76)
    assert len(place.peer.seen("PING")) >= 1
    assert len(place.peer.seen("AUTH")) == 0
    await asyncio.sleep(5)
    assert len(place.peer.seen("AUTH")) == 1


# -------------------------------------------------------------------------- refused, lost, late


async def test_a_refused_auth_leaves_a_connection_as_it_was_and_is_tried_again(place: Place):
    client = place.client()
    (connection,) = await place.leased(client, 1)
    place.peer.script["AUTH"] = [WRONGPASS, WRONGPASS, OK]
    while not place.of(ReauthenticationFailed):  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    assert client.auth_status()[0].state is ConnectionState.STALE
    assert await run(connection, "ECHO", "a") == b"a"
    await asyncio.sleep(5)  # probes after 1 and 2 s
    assert len(place.peer.seen("AUTH")) == 3
    (row,) = client.auth_status()
    assert (row.state, row.token_version) == (ConnectionState.AUTHENTICATED, 2)
    assert place.peer.dials == 1
    await client.connection_pool.release(connection)


async def test_checkout_past_the_deadline_signs_in_anew(place: Place):
    client = place.client()
    place.peer.script["AUTH"] = lambda *_: b"-ERR not now\r\n"
    await place.idle(client, 1)
    await asyncio.sleep(75)
    (connection,) = await place.leased(client, 1)
    assert place.peer.dials == 2
    (row,) = client.auth_status()
    assert (row.state, row.token_version) == (ConnectionState.AUTHENTICATED, 2)
    await client.connection_pool.release(connection)


async def test_checkout_past_the_deadline_keeps_what_stands_where_newer_tokens_are_refused(
    place: Place,
):
    client = place.client()
    await place.idle(client, 1)
    place.peer.script["AUTH"] = lambda *_: WRONGPASS
    place.peer.script["HELLO"] = lambda *_: WRONGPASS
    await asyncio.sleep(75)
    (connection,) = await place.leased(client, 1)
    assert await run(connection, "ECHO", "a") == b"a"
    assert place.peer.dials == 1
    await client.connection_pool.release(connection)


async def test_a_reply_is_the_owners_whatever_becomes_of_the_next_auth(place: Place):
    place.peer.script.update(AUTH=[CUT], LPOP=lambda *_: b"$7\r\nelement\r\n")
    client = place.client()
    (connection,) = await place.leased(client, 1)
    await connection.send_command("LPOP", "k")
    await asyncio.sleep(SENT)
    assert await connection.read_response() == b"element"
    await client.connection_pool.release(connection)
    await asyncio.sleep(1)
    assert len(place.peer.seen("AUTH")) == 1
    (connection,) = await place.leased(client, 1)
    assert await run(connection, "ECHO", "a") == b"a"
    await client.connection_pool.release(connection)


async def test_a_lost_connection_is_noticed_by_its_auth_and_replaced_at_checkout(place: Place):
    client = place.client()
    await place.idle(client, 3)
    place.peer.cut()
    await asyncio.sleep(SENT)
    assert client.auth_status() == []
    assert len(place.of(ConnectionClosed)) == 3
    (connection,) = await place.leased(client, 1)
    assert await run(connection, "ECHO", "a") == b"a"
    assert len(client.auth_status()) == 1
    await client.connection_pool.release(connection)


async def test_watch_is_not_lost_in_silence_because_of_a_health_check(place: Place):
    place.peer.script["WATCH"] = lambda *_: OK
    retry = Retry(NoBackoff(), 3)
    client = place.client(place.pool(health_check_interval=1, retry=retry))
    (connection,) = await place.leased(client, 1)
    await run(connection, "WATCH", "k")
    place.peer.script["AUTH"] = [[14.0, CUT]]
    await asyncio.sleep(SENT)  # a health check is due, and an AUTH is under way
    with pytest.raises(redis_exceptions.ConnectionError):
        await connection.send_command("GET", "k")
    assert place.peer.dials == 1
    await client.connection_pool.release(connection)


@pytest.mark.parametrize("end", [None, ConnectionResetError("reset by peer")])
async def test_a_connection_that_the_server_ended_is_not_handed_out(
    place: Place, end: Exception | None
):
    client = place.client()
    (connection,) = await place.idle(client, 1)
    connection._writer.transport.end(end)
    await asyncio.sleep(1)
    place.peer.script["BLPOP"] = [b"*2\r\n" + bulk("k") + bulk("element")]
    assert await client.blpop("k", 5) in ((b"k", b"element"), [b"k", b"element"])
    assert place.peer.dials == 2


@pytest.mark.parametrize("cancelled", [True, False])
async def test_what_was_not_signed_in_is_not_handed_out(
    place: Place, monkeypatch: pytest.MonkeyPatch, cancelled: bool
):
    client = place.client()
    pool: Any = client.connection_pool

    async def get() -> Any:
        if not cancelled:
            raise ConfigurationError("no error of redis-py's")
        await asyncio.sleep(100)

    with monkeypatch.context() as patch:
        patch.setattr(place.source, "get", get)
        with pytest.raises((TimeoutError, ConfigurationError)):
            async with asyncio.timeout(1):
                await pool.get_connection()
    await asyncio.sleep(0)
    assert place.peer.open == []
    (connection,) = await place.leased(client, 1)
    assert connection.in_band.signed_in
    await pool.release(connection)


async def test_a_pinned_connection_that_outlives_its_token_says_so(place: Place):
    place.peer.script["MONITOR"] = [[OK, 101.0, CUT]]
    client = place.client()
    async with client.monitor() as monitor:
        monitor.connection.socket_timeout = None
        with pytest.raises(ConnectionLostError, match=r"outlived the token.*MONITOR"):
            await monitor.next_command()
    assert place.peer.seen("AUTH") == []


async def test_outliving_without_a_newer_token_says_that(place: Place):
    def once(call: int) -> Any:
        return place.credential.issue(life=LIFE) if call == 1 else ConnectionError("down")

    place.credential.answer = once
    client = place.client()
    (connection,) = await place.leased(client, 1)
    await run(connection, "ECHO", "a")
    await asyncio.sleep(101)
    place.peer.cut()
    await asyncio.sleep(0)
    with pytest.raises(ConnectionLostError, match="no newer one could be had"):
        await run(connection, "ECHO", "b")
    await client.connection_pool.release(connection)


async def test_a_loss_before_the_expiry_is_redis_pys_own_error(place: Place):
    client = place.client()
    (connection,) = await place.leased(client, 1)
    place.peer.script["ECHO"] = [CUT]
    with pytest.raises(redis_exceptions.ConnectionError) as caught:
        await run(connection, "ECHO", "b")
    assert not isinstance(caught.value, ConnectionLostError)
    await client.connection_pool.release(connection)


async def test_a_connection_does_not_remember_all_who_have_held_it(place: Place):
    client = place.client()
    for _ in range(5):
        async with client.client() as own:
            assert await own.echo("a") == b"a"
            connection = own.connection
    assert place.peer.dials == 1
    assert connection._connect_callbacks == []
