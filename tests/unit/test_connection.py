"""The multiplexed connection: connecting, losing, replacing and closing, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import weakref
from typing import Any

import pytest
import redis.asyncio
from support.scripted_peer import HANG, OK, Peer, bulk
from support.token_fakes import EPOCH

from aioentra_redis import EntraRedis, _lifecycle
from aioentra_redis._broadcast import Broadcast, Subscription
from aioentra_redis._events import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReplaced,
    ConnectionState,
    Event,
    EventHub,
    TokenState,
)
from aioentra_redis._multiplex import _connection, _reauth
from aioentra_redis._multiplex._connection import MultiplexedConnection
from aioentra_redis._multiplex._session import HIGH_WATER
from aioentra_redis._redis_py import attached
from aioentra_redis._token import Token
from aioentra_redis.errors import (
    ClosedError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    ForkedError,
    SignInRefusedError,
    TokenExpiredError,
    WrongLoopError,
)

virtual_time = pytest.mark.looptime

S = ConnectionState


def now() -> float:
    return asyncio.get_running_loop().time()


class Source:
    """A token source without a credential."""

    def __init__(self) -> None:
        self.broadcast = Broadcast()
        self.state = TokenState.FRESH
        self.gets = 0
        self.publish(1)

    def publish(self, version: int, life: float = 3600.0) -> None:
        at = EPOCH + now()
        self.broadcast.publish(
            Token(f"s{version}", username="u", expires_on=at + life, first_seen=at, version=version)
        )

    @property
    def current(self) -> Token | None:
        return self.broadcast.current

    async def get(self) -> Token:
        self.gets += 1
        if self.state is TokenState.EXPIRED:
            raise TokenExpiredError("expired, and no newer one")
        assert self.current is not None
        return self.current

    def subscribe(self, after: int | None = None) -> Subscription:
        return self.broadcast.subscribe(after)

    def now(self) -> float:
        return EPOCH + now()


class World:
    """A multiplexed connection over a scripted peer, whose dials the test decides about."""

    def __init__(self, source: Source | None = None, **script: Any) -> None:
        self.peer = Peer(**script)
        self.source = source
        self.pool = redis.asyncio.ConnectionPool(host="peer", port=7)
        self.dials: list[float] = []
        self.dial_seconds = 0.1
        self.refusals: list[Exception] = []
        self.down: Exception | None = None
        self.handshake_seconds = 0.01
        self.ends_at_once = False
        self.socket_timeout: float | None = 5.0
        self.open_dials = 0
        self.events: list[Event] = []
        self.hub = EventHub()
        self.hub.listen(self.events.append)
        self.multiplexed = MultiplexedConnection(
            self.pool,
            source=source,  # type: ignore[arg-type]
            recovery_timeout=30,
            close_timeout=5,
            hub=self.hub,
        )

    async def dial(self, pool: Any) -> Any:
        assert pool is self.pool
        self.dials.append(round(now(), 2))
        self.open_dials += 1
        try:
            token = await self.source.get() if self.source is not None else None
            await asyncio.sleep(self.dial_seconds)
            if self.refusals:
                raise self.refusals.pop(0)
            if self.down is not None:
                raise self.down
        finally:
            self.open_dials -= 1
        dialed = self.peer.dialed(
            token=token,
            handshake_seconds=self.handshake_seconds,
            socket_timeout=self.socket_timeout,
        )
        if self.ends_at_once:
            dialed.transport.end()  # type: ignore[attr-defined]
        return dialed

    async def command(self, *words: Any) -> Any:
        session = await self.multiplexed.admit()
        try:
            future = session.submit(words)
        finally:
            session.admitted()
        return await future

    def seen(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
async def world(monkeypatch):
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 0.0)
    monkeypatch.setattr(_connection.random, "uniform", lambda a, b: b)
    made: list[World] = []

    def make(source: Source | None = None, **script: Any) -> World:
        new = World(source, **script)
        made.append(new)
        monkeypatch.setattr(_connection, "dial", new.dial)
        return new

    yield make
    for each in made:
        each.multiplexed.close_timeout = 0.01  # the clock is a real one again
        with contextlib.suppress(Exception):
            await each.multiplexed.aclose()


# --------------------------------------------------------------------------------- connecting


@virtual_time
async def test_many_first_commands_share_one_dial(world):
    it = world()
    assert await asyncio.gather(*[it.command("ECHO", str(n)) for n in range(20)]) == [
        str(n).encode() for n in range(20)
    ]
    assert it.dials == [0]
    (opened,) = it.seen(ConnectionOpened)
    assert opened.token_version is None
    assert opened.connect_seconds == pytest.approx(0.1)
    assert "connected" in repr(it.multiplexed)
    await it.multiplexed.start()
    assert it.dials == [0]


@virtual_time
async def test_the_first_connect_fails_fast_and_a_later_one_may_succeed(world):
    it = world()
    it.refusals = [redis.asyncio.AuthenticationError("WRONGPASS no")]
    results = await asyncio.gather(
        it.multiplexed.start(), it.command("PING"), return_exceptions=True
    )
    assert [type(each) for each in results] == [SignInRefusedError] * 2
    assert results[0] is not results[1], "each waiter gets its own"
    assert results[0].stage == "auth"
    assert results[0].__cause__ is results[1].__cause__
    assert it.dials == [0]
    assert await it.command("PING") == b"PONG"
    assert it.dials == [0, 0.1]


@virtual_time
async def test_after_a_loss_waiters_share_one_outage_with_backoff(world):
    it = world()
    await it.multiplexed.start()
    it.down = ConnectionRefusedError("refused")
    await asyncio.sleep(10)
    it.peer.cut()
    await asyncio.sleep(0.01)
    waiting = [asyncio.ensure_future(it.command("ECHO", "a")) for _ in range(5)]
    await asyncio.sleep(8)
    assert not any(each.done() for each in waiting)
    gaps = [round(b - a - 0.1, 2) for a, b in zip(it.dials[1:], it.dials[2:], strict=False)]
    assert gaps[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0], "somebody waits: no more than 1 s"
    it.down = None
    assert await asyncio.gather(*waiting) == [b"a"] * 5
    (closed,) = it.seen(ConnectionClosed)
    assert isinstance(closed.error, ConnectionLostError)


@virtual_time
async def test_without_demand_attempts_become_rare_and_demand_brings_one_at_once(world):
    it = world()
    await it.multiplexed.start()
    it.down = ConnectionRefusedError("refused")
    await asyncio.sleep(10)
    it.peer.cut()
    await asyncio.sleep(100)
    assert it.dials[-1] - it.dials[-2] == pytest.approx(10.1, abs=0.02)
    it.down = None
    await asyncio.sleep(it.dials[-1] + 0.1 + 3 - now())
    started = now()
    assert await it.command("ECHO", "a") == b"a"
    assert now() - started == pytest.approx(0.1, abs=0.01)


@virtual_time
async def test_recovery_timeout_says_what_the_last_failure_was(world):
    it = world()
    await it.multiplexed.start()
    it.down = ConnectionRefusedError("refused")
    it.peer.cut()
    await asyncio.sleep(0.01)
    started = now()
    with pytest.raises(ConnectTimeoutError) as caught:
        await it.command("PING")
    assert now() - started == pytest.approx(30, abs=0.01)
    assert "no usable connection to peer:7 within 30 s (recovery_timeout)" in str(caught.value)
    assert "nothing listens at peer:7" in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectError)
    assert caught.value.stage == "tcp"
    it.down = None
    await asyncio.sleep(2)
    assert await it.command("PING") == b"PONG"


@virtual_time
async def test_recovery_timeout_bounds_a_dial_that_hangs(world):
    it = world()
    it.dial_seconds = 1e6
    with pytest.raises(ConnectTimeoutError, match="the server has not answered yet"):
        await it.command("PING")
    assert now() == pytest.approx(30)


@virtual_time
async def test_a_server_that_ends_every_connection_is_not_hammered(world):
    it = world()
    await it.multiplexed.start()
    it.ends_at_once = True
    it.peer.cut()
    await asyncio.sleep(60)
    assert len(it.dials) < 25
    with contextlib.suppress(ConnectionLostError, ConnectTimeoutError):
        await it.command("PING")
    assert now() <= 90.2
    it.ends_at_once = False
    await asyncio.sleep(12)
    assert await it.command("PING") == b"PONG"


@virtual_time
async def test_an_expired_token_fails_at_once_and_asks_for_a_newer_one(world):
    source = Source()
    it = world(source)
    await it.multiplexed.start()
    source.state = TokenState.EXPIRED
    it.peer.cut()
    await asyncio.sleep(0.01)
    gets = source.gets
    started = now()
    with pytest.raises(TokenExpiredError):
        await it.command("PING")
    assert now() == started
    assert source.gets == gets + 1
    source.state = TokenState.FRESH
    assert await it.command("PING") == b"PONG"


@virtual_time
async def test_a_token_that_expires_during_the_outage_ends_the_wait(world):
    source = Source()
    it = world(source)
    await it.multiplexed.start()
    it.down = ConnectionRefusedError()
    it.peer.cut()
    await asyncio.sleep(0.01)
    waiting = asyncio.ensure_future(it.command("PING"))
    await asyncio.sleep(3)
    source.state = TokenState.EXPIRED
    started = now()
    with pytest.raises(TokenExpiredError):
        await waiting
    assert now() - started < 1.2


@virtual_time
async def test_a_cancelled_waiter_leaves_the_attempt_to_the_others(world):
    it = world()
    one, two = (asyncio.ensure_future(it.command("ECHO", "a")) for _ in range(2))
    await asyncio.sleep(0.05)
    one.cancel()
    assert await two == b"a"
    assert one.cancelled()
    assert it.dials == [0]


# --------------------------------------------------------------------------------- replacing


@virtual_time
async def test_the_newest_token_goes_to_the_server_in_place(world):
    source = Source()
    it = world(source)
    await it.multiplexed.start()
    assert it.peer.seen("AUTH") == []
    source.publish(2)
    await asyncio.sleep(0.1)
    assert it.peer.seen("AUTH") == [[b"AUTH", b"u", b"s2"]]
    (row,) = it.multiplexed.status()
    assert (row.token_version, row.state, row.reauthentications) == (2, S.AUTHENTICATED, 1)


@virtual_time
async def test_make_before_break_takes_the_new_commands_and_lets_the_old_ones_finish(world):
    source = Source()
    it = world(source, GET=[[2.0, bulk("old")]])
    it.handshake_seconds = 1.0
    await it.multiplexed.start()
    old = asyncio.ensure_future(it.command("GET", "k"))
    await asyncio.sleep(0.1)
    source.publish(2)
    await asyncio.sleep(0.5)
    assert [row.state for row in it.multiplexed.status()] == [S.DRAINING, S.AUTHENTICATED]
    assert await it.command("ECHO", "new") == b"new"
    assert not old.done()
    assert await old == b"old"
    await asyncio.sleep(0.1)
    (row,) = it.multiplexed.status()
    assert row.token_version == 2
    (replaced,) = it.seen(ConnectionReplaced)
    assert "slowly" in replaced.reason
    (closed,) = it.seen(ConnectionClosed)
    assert closed.error is None
    assert len(it.peer.open) == 1
    assert it.peer.seen("AUTH") == []


@virtual_time
@pytest.mark.parametrize("cut_after", [0.5, 1.05, 1.1, 1.15])
async def test_a_loss_at_any_moment_of_a_replacement_leaves_one_connection(world, cut_after):
    """AUTH hangs, a replacement is dialled after 1 s, and the old connection dies."""
    source = Source()
    it = world(source, AUTH=lambda *_: HANG)
    await it.multiplexed.start()
    source.publish(2)
    await asyncio.sleep(cut_after)
    it.peer.connections[0].cut()
    await asyncio.sleep(2)
    assert len(it.peer.open) == 1
    assert len(it.multiplexed.status()) == 1
    assert it.open_dials == 0
    assert await it.command("PING") == b"PONG"
    source.publish(3)
    await asyncio.sleep(0.5)
    assert it.peer.seen("AUTH")[-1] == [b"AUTH", b"u", b"s3"], "its task is alive"


@virtual_time
async def test_commands_behind_an_auth_that_is_never_answered_do_not_hang_for_ever(world):
    source = Source()
    it = world(source, AUTH=[HANG])
    await it.multiplexed.start()
    source.publish(2)
    await asyncio.sleep(0.5)
    stuck = asyncio.ensure_future(it.command("INCR", "n"))
    await asyncio.sleep(1)
    assert await it.command("ECHO", "a") == b"a", "the replacement has taken over"
    with contextlib.suppress(redis.asyncio.RedisError):
        await asyncio.wait_for(stuck, 25)
    assert stuck.done()
    await asyncio.sleep(1)
    assert len(it.peer.open) == 1


@virtual_time
async def test_who_waits_at_the_gate_of_a_replaced_session_goes_to_the_new_one(world):
    source = Source()
    it = world(source, GET=[HANG])
    it.handshake_seconds = 1.0
    await it.multiplexed.start()
    stuck = asyncio.ensure_future(it.command("GET", "k"))
    await asyncio.sleep(0.1)
    old = it.multiplexed.session
    old.pause_writing()
    waiting = [asyncio.ensure_future(it.command("ECHO", str(n))) for n in range(3)]
    await asyncio.sleep(0.1)
    source.publish(2)
    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [b"0", b"1", b"2"]
    assert it.multiplexed.session is not old
    stuck.cancel()


# ----------------------------------------------------------------------------------- closing


async def refused_after_close(it: World) -> None:
    with pytest.raises(ClosedError, match="final"):
        await it.command("PING")
    await it.multiplexed.aclose()
    assert it.peer.open == []
    assert it.open_dials == 0
    assert it.multiplexed.status() == []
    assert "closed" in repr(it.multiplexed)


@virtual_time
async def test_closing_before_use(world):
    it = world()
    assert "not connected" in repr(it.multiplexed)
    await it.multiplexed.aclose()
    await refused_after_close(it)
    assert it.dials == []


@virtual_time
async def test_closing_while_connecting(world):
    it = world()
    it.dial_seconds = 100
    waiting = asyncio.ensure_future(it.command("PING"))
    await asyncio.sleep(1)
    await it.multiplexed.aclose()
    assert now() == pytest.approx(1)
    with pytest.raises(ClosedError, match="closed meanwhile"):
        await waiting
    await refused_after_close(it)


@virtual_time
async def test_closing_while_reconnecting(world):
    it = world()
    await it.multiplexed.start()
    it.down = ConnectionRefusedError()
    it.peer.cut()
    await asyncio.sleep(5)
    waiting = asyncio.ensure_future(it.command("PING"))
    await asyncio.sleep(0.5)
    await it.multiplexed.aclose()
    with pytest.raises(ClosedError):
        await waiting
    await refused_after_close(it)


@virtual_time
async def test_closing_lets_what_is_in_flight_finish_and_refuses_the_rest(world):
    it = world(GET=[[2.0, bulk("a")]])
    await it.multiplexed.start()
    flying = asyncio.ensure_future(it.command("GET", "k"))
    await asyncio.sleep(0.1)
    closing = asyncio.ensure_future(it.multiplexed.aclose())
    await asyncio.sleep(0.1)
    assert it.multiplexed.session is None, "the straight way of a command is shut, too"
    with pytest.raises(ClosedError):
        await it.command("ECHO", "late")
    assert await flying == b"a"
    await closing
    assert now() < 3
    assert it.peer.seen("ECHO") == []
    await refused_after_close(it)


@virtual_time
async def test_closing_takes_no_longer_than_close_timeout(world, caplog):
    it = world(GET=[HANG])
    it.socket_timeout = None
    await it.multiplexed.start()
    flying = asyncio.ensure_future(it.command("GET", "k"))
    await asyncio.sleep(0.1)
    started = now()
    await it.multiplexed.aclose()
    assert now() - started == pytest.approx(5, abs=0.01)
    with pytest.raises(ConnectionLostError) as caught:
        await flying
    assert caught.value.written
    assert "closing took longer than 5 s" in caplog.text
    await refused_after_close(it)


@virtual_time
async def test_closing_cuts_off_a_socket_that_lingers(world):
    it = world()
    await it.multiplexed.start()
    wire = it.multiplexed.session._transport
    wire.lingers = True
    await it.multiplexed.aclose()
    assert now() == pytest.approx(5.1, abs=0.02)
    assert wire.aborted
    await refused_after_close(it)


@virtual_time
async def test_closing_during_a_replacement_does_not_wait_for_it(world):
    source = Source()
    it = world(source, AUTH=lambda *_: HANG)
    await it.multiplexed.start()
    it.dial_seconds = 1000
    source.publish(2)
    await asyncio.sleep(2)
    assert it.open_dials == 1
    started = now()
    await it.multiplexed.aclose()
    assert now() - started <= 5.01
    await refused_after_close(it)


@virtual_time
async def test_closing_while_draining(world):
    source = Source()
    it = world(source, GET=[[3.0, bulk("old")]])
    it.handshake_seconds = 1.0
    await it.multiplexed.start()
    old = asyncio.ensure_future(it.command("GET", "k"))
    await asyncio.sleep(0.1)
    source.publish(2)
    await asyncio.sleep(0.5)
    await it.multiplexed.aclose()
    assert await old == b"old"
    await refused_after_close(it)


@virtual_time
async def test_closing_with_callers_at_the_gate(world):
    it = world()
    await it.multiplexed.start()
    it.multiplexed.session.pause_writing()
    waiting = asyncio.ensure_future(it.command("ECHO", b"x" * HIGH_WATER))
    await asyncio.sleep(0.1)
    await it.multiplexed.aclose()
    with pytest.raises(ClosedError):
        await waiting
    await refused_after_close(it)


@virtual_time
async def test_cancelling_aclose_does_not_stop_the_closing(world):
    it = world(GET=[[2.0, bulk("a")]])
    await it.multiplexed.start()
    flying = asyncio.ensure_future(it.command("GET", "k"))
    await asyncio.sleep(0.1)
    closing = asyncio.ensure_future(it.multiplexed.aclose())
    await asyncio.sleep(0.1)
    closing.cancel()
    assert await flying == b"a"
    await it.multiplexed.aclose()
    assert closing.cancelled()
    await refused_after_close(it)


# --------------------------------------------------------------------------- loops and processes


@virtual_time
async def test_another_loop_may_neither_use_nor_close_it(world):
    it = world()
    await it.multiplexed.start()
    for action in (it.multiplexed.start, it.multiplexed.aclose, it.multiplexed.admit):
        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(asyncio.run, action())
    assert await it.command("PING") == b"PONG"


@virtual_time
async def test_a_forked_child_may_not_use_it_and_closes_nothing(world, monkeypatch):
    it = world()
    await it.multiplexed.start()
    session = it.multiplexed.session
    parent = os.getpid()
    monkeypatch.setattr(_lifecycle.os, "getpid", lambda: parent + 1)
    with pytest.raises(ForkedError, match="make a new one in the child"):
        await it.command("PING")
    await it.multiplexed.aclose()
    assert not session.closed, "the socket is the parent's"
    monkeypatch.undo()
    session.close()
    await session.wait_closed()


def test_where_the_loop_is_gone_closing_only_marks_it():
    pool = redis.asyncio.ConnectionPool(host="peer", port=7)
    multiplexed = MultiplexedConnection(
        pool, source=None, recovery_timeout=1, close_timeout=1, hub=EventHub()
    )

    async def use() -> None:
        multiplexed.check()

    asyncio.run(use())
    asyncio.run(multiplexed.aclose())
    assert multiplexed.closed


# ------------------------------------------------------------------------- clients and pools


async def settle(peer: Peer) -> None:
    """Let sockets that were closed be seen to be."""
    for _ in range(100):
        if not peer.open:
            return
        await asyncio.sleep(0.005)


async def test_a_dropped_client_warns_and_leaves_nothing():
    peer = Peer()
    async with peer.serve() as port:
        client = EntraRedis(host="127.0.0.1", port=port)
        assert await client.ping() is True
        multiplexed = weakref.ref(client._multiplexed)
        clients = [client]
        del client
        with pytest.warns(ResourceWarning, match="unclosed client"):
            clients.clear()
        await settle(peer)
        assert peer.open == []
        await asyncio.sleep(0.01)
        gc.collect()
        assert multiplexed() is None


async def test_two_clients_on_one_pool_share_the_connection():
    peer = Peer()
    async with peer.serve() as port:
        pool = redis.asyncio.ConnectionPool(host="127.0.0.1", port=port)
        one, two = EntraRedis(connection_pool=pool), EntraRedis(connection_pool=pool)
        await asyncio.gather(one.set("k", "v"), one.get("k"), two.get("k"))
        assert len(peer.open) == 1
        await one.aclose()
        assert await two.get("k") == b"v"
        await two.aclose()
        await settle(peer)
        assert peer.open == []
        assert attached(pool) is None
        three = EntraRedis(connection_pool=pool)
        assert await three.get("k") == b"v"
        await three.aclose()


async def test_the_pool_of_a_dropped_client_serves_the_next_one():
    peer = Peer()
    async with peer.serve() as port:
        pool = redis.asyncio.ConnectionPool(host="127.0.0.1", port=port)
        client = EntraRedis(connection_pool=pool)
        await client.ping()
        clients = [client]
        del client
        with pytest.warns(ResourceWarning):
            clients.clear()
        client = EntraRedis(connection_pool=pool)
        assert await client.ping() is True
        await client.aclose()


async def test_a_sign_in_that_hangs_is_cut_off_when_cancelled():
    peer = Peer(HELLO=lambda *_: HANG, AUTH=lambda *_: OK)
    async with peer.serve() as port:
        client = EntraRedis(host="127.0.0.1", port=port)
        starting = asyncio.ensure_future(client.start())
        await peer.arrival("HELLO")
        await client.aclose()
        with pytest.raises(ClosedError):
            await starting
        await settle(peer)
        assert peer.open == []


@virtual_time
async def test_a_reauthentication_task_that_fails_says_so(world, monkeypatch, caplog):
    def broken(held: Token, now: float) -> float:
        raise ZeroDivisionError("a defect of ours")

    source = Source()
    it = world(source)
    assert await it.command("ECHO", "a") == b"a"
    monkeypatch.setattr(_reauth, "reauth_delay", broken)
    source.publish(2)
    await asyncio.sleep(1)
    assert "aioentra_redis-reauth-" in caplog.text
    assert "ZeroDivisionError('a defect of ours')" in caplog.text
    assert await it.command("ECHO", "b") == b"b", "commands go on"
