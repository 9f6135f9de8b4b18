"""A client is closed in every state that it can be in: it ends in time and nobody waits on.

In virtual time. Each state is brought about, commands that wait in it are started, and then the
client is closed: once, by several at the same time, again and again, by a caller who is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from support.interruption import no_complaints
from support.pooled import LIFE, Place
from support.scripted_peer import HANG
from support.working_peer import WorkingPeer

from aioentra_redis import ConnectionReplaced, ConnectionState, EntraRedis, Event
from aioentra_redis._multiplex import _reauth
from aioentra_redis.errors import ClosedError, EntraRedisError

pytestmark = pytest.mark.looptime

ERRORS = (EntraRedisError, redis_exceptions.RedisError)

CLOSE_TIMEOUT = 3.0
MARGIN = 2.0
"""Seconds for a goodbye that nobody answers."""


class Stage(Place):
    def __init__(self) -> None:
        self.server = WorkingPeer()
        super().__init__(self.server)
        self.redis = self.client(close_timeout=CLOSE_TIMEOUT)
        self.waiting: list[asyncio.Task[Any]] = []

    def wait(self, *calls: Awaitable[Any]) -> None:
        self.waiting += [asyncio.ensure_future(call) for call in calls]

    async def ready(self) -> None:
        await self.redis.echo("a")
        await self.redis.blpop(["none"], timeout=0.01)

    async def until_rotated(self) -> None:
        """A newer token is there, and has been given to every connection that takes it."""
        await asyncio.sleep(LIFE / 2 + 0.5)


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(_reauth, "reauth_delay", lambda token, now: 0.0)
    made = Stage()
    async with no_complaints():
        yield made
        await made.close()


# -- states ----------------------------------------------------------------------------------------


async def unused(stage: Stage) -> None:
    pass


async def connecting(stage: Stage) -> None:
    stage.server.script["HELLO"] = lambda *_: HANG
    stage.wait(stage.redis.echo("a"), stage.redis.blpop(["l"], timeout=0), stage.redis.start())


async def waiting_for_a_token(stage: Stage) -> None:
    stage.credential.delay = 1000.0
    stage.wait(stage.redis.echo("a"), stage.redis.blpop(["l"], timeout=0))


async def idle(stage: Stage) -> None:
    await stage.ready()


async def auth_pending(stage: Stage) -> None:
    await stage.ready()
    stage.server.script["AUTH"] = lambda *_: HANG
    await stage.until_rotated()
    assert ConnectionState.REAUTHENTICATING in {row.state for row in stage.redis.auth_status()}
    stage.wait(stage.redis.echo("behind"), stage.redis.blpop(["l"], timeout=0))


async def replacement_under_way(stage: Stage) -> None:
    await stage.ready()
    stage.server.script["AUTH"] = lambda *_: HANG
    stage.server.script["HELLO"] = lambda *_: HANG
    dials = stage.server.dials
    await stage.until_rotated()
    await asyncio.sleep(1.5)
    assert stage.server.dials > dials
    stage.wait(stage.redis.echo("behind"))


async def draining(stage: Stage) -> None:
    await stage.ready()
    stage.server.script["ECHO"] = [[HANG]]
    stage.wait(stage.redis.echo("in flight on the old one"))
    await asyncio.sleep(0.1)
    session = stage.redis._multiplexed.session
    await stage.redis._multiplexed._replace(session, "for a test")
    assert stage.of(ConnectionReplaced)
    assert await stage.redis.echo("on the new one")


async def reconnecting(stage: Stage) -> None:
    await stage.ready()
    stage.server.script["HELLO"] = lambda *_: HANG
    stage.server.cut()
    await asyncio.sleep(0.01)
    stage.wait(stage.redis.echo("a"), stage.redis.incr("n"), stage.redis.blpop(["l"], timeout=0))


async def between_attempts(stage: Stage) -> None:
    await stage.ready()
    stage.server.script["HELLO"] = lambda *_: b"-ERR not now\r\n"
    stage.server.cut()
    await asyncio.sleep(0.2)
    stage.wait(stage.redis.echo("a"))


async def in_flight(stage: Stage) -> None:
    await stage.ready()
    stage.server.script["ECHO"] = lambda *_: HANG
    stage.wait(*(stage.redis.echo(f"{n}") for n in range(20)))
    stage.wait(stage.redis.pipeline().echo("a").incr("n").execute())


async def at_the_gate(stage: Stage) -> None:
    await stage.ready()
    stage.redis._multiplexed.session.pause_writing()
    stage.wait(*(stage.redis.echo(f"{n}") for n in range(20)))


async def popping(stage: Stage) -> None:
    await stage.ready()
    stage.wait(*(stage.redis.blpop([f"l:{n}"], timeout=0) for n in range(5)))


async def subscribed(stage: Stage) -> None:
    await stage.ready()
    pubsub = stage.redis.pubsub()
    await pubsub.subscribe("a")

    async def listen() -> None:
        async for _ in pubsub.listen():
            pass

    stage.wait(listen())


async def watching(stage: Stage) -> None:
    """WATCH, and ``client()``, in the hands of an owner who waits for a reply on it."""
    await stage.ready()
    stage.server.script["ECHO"] = lambda *_: HANG

    async def watch() -> None:
        async with stage.redis.pipeline() as pipe:
            await pipe.watch("k")
            await pipe.echo("a")

    async def own() -> None:
        async with stage.redis.client() as one:
            await one.echo("a")

    stage.wait(watch(), own())


STATES = [
    *(unused, connecting, waiting_for_a_token, idle, auth_pending, replacement_under_way, draining),
    *(reconnecting, between_attempts, in_flight, at_the_gate, popping, subscribed, watching),
]


# -- ways to close ---------------------------------------------------------------------------------


async def once(redis: EntraRedis) -> None:
    await redis.aclose()


async def twice(redis: EntraRedis) -> None:
    await redis.aclose()
    await redis.aclose()


async def at_the_same_time(redis: EntraRedis) -> None:
    await asyncio.gather(*(redis.aclose() for _ in range(5)))


async def by_somebody_who_is_cancelled(redis: EntraRedis) -> None:
    closing = asyncio.ensure_future(redis.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await redis.aclose()


async def in_a_callback(redis: EntraRedis) -> None:
    """An event is told of in the closing; the callback closes, too."""
    closings: list[asyncio.Task[None]] = []

    def close(_: Event) -> None:
        closings.append(asyncio.ensure_future(redis.aclose()))

    redis._hub.listen(close)
    await redis.aclose()
    await asyncio.gather(*closings)


@pytest.mark.parametrize(
    "close",
    [once, twice, at_the_same_time, by_somebody_who_is_cancelled, in_a_callback],
    ids=lambda each: each.__name__,
)
@pytest.mark.parametrize("state", STATES, ids=lambda each: each.__name__)
async def test_closed(
    stage: Stage,
    state: Callable[[Stage], Awaitable[None]],
    close: Callable[[EntraRedis], Awaitable[None]],
) -> None:
    await state(stage)
    await asyncio.sleep(0.01)
    clock = asyncio.get_running_loop().time
    began = clock()
    await close(stage.redis)
    assert clock() - began <= CLOSE_TIMEOUT + MARGIN
    if stage.waiting:
        done, late = await asyncio.wait(stage.waiting, timeout=0.5)
        assert late == set()
        for task in done:
            assert isinstance(task.exception(), ERRORS), task
    for use in (stage.redis.echo("late"), stage.redis.blpop(["l"], timeout=1), stage.redis.start()):
        with pytest.raises(ClosedError):
            await use
    assert stage.redis.auth_status() == []
    await asyncio.sleep(0.01)
    assert stage.server.open == []
    await stage.source.aclose()
    await asyncio.sleep(0.01)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert [task for task in left if "Task-" not in task.get_name()] == []


async def test_closed_by_the_callback_of_a_reply(stage: Stage) -> None:
    await stage.ready()

    async def close(reply: Any, **_: Any) -> Any:
        await stage.redis.aclose()
        return reply

    stage.redis.set_response_callback("ECHO", close)
    assert await stage.redis.echo("last") == b"last"
    with pytest.raises(ClosedError):
        await stage.redis.echo("late")
    assert stage.server.open == []
