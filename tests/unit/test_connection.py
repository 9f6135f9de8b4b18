"""The multiplexed connection: connecting, losing, replacing and closing, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
import redis.asyncio
from support.connection_world import Source, World, now, virtual_time

from aioentra_redis._events import (
    ConnectionClosed,
    ConnectionOpened,
    TokenState,
)
from aioentra_redis._multiplex import _connection, _reauth
from aioentra_redis.errors import (
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    SignInRefusedError,
    TokenExpiredError,
)


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
