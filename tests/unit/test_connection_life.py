"""How a multiplexed connection is replaced, closed, and shared by clients of one pool."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import weakref
from typing import Any

import pytest
import redis.asyncio
from support.connection_world import Source, World, now, virtual_time
from support.scripted_peer import HANG, OK, Peer, bulk

from aioentra_redis import EntraRedis, _lifecycle
from aioentra_redis._events import (
    ConnectionClosed,
    ConnectionReplaced,
    ConnectionState,
    EventHub,
)
from aioentra_redis._multiplex import _connection, _reauth
from aioentra_redis._multiplex._connection import MultiplexedConnection
from aioentra_redis._multiplex._session import HIGH_WATER
from aioentra_redis._redis_py import attached
from aioentra_redis._token import Token
from aioentra_redis.errors import (
    ClosedError,
    ConnectionLostError,
    ForkedError,
    WrongLoopError,
)

S = ConnectionState


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
