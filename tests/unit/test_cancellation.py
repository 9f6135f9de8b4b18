"""Cancelled at each of its suspensions, nothing that a caller does leaves a trace; virtual time.

Each operation is run again and again, and cancelled at its first, second, third ... suspension
until it gets through, in each moment of the suspension. After each time the client has to serve
everybody, with the right replies, and to hold nothing that it did not hold before.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from support.interruption import Interrupted, Moment, Outcome, no_complaints, sweep
from support.pooled import LIFE, Place
from support.scripted_peer import OK
from support.token_fakes import source_of
from support.working_peer import WorkingPeer

from aioentra_redis import ClosedError, TokenPublished, entra_kwargs
from aioentra_redis._multiplex import _reauth

pytestmark = pytest.mark.looptime


class Stage(Place):
    """A place whose server works, and what has to hold when somebody has been interrupted."""

    def __init__(self) -> None:
        self.server = WorkingPeer()
        super().__init__(self.server)
        self.turn = 0
        self.client_of_all = self.client()

    async def under_auth(self) -> None:
        """Come to where AUTH is in the FIFO of every connection, its answer some way off."""
        self.server.script["AUTH"] = lambda *_: [0.02, OK]
        published = len(self.of(TokenPublished))
        await asyncio.sleep(LIFE / 2 - 1)
        while len(self.of(TokenPublished)) == published:  # noqa: ASYNC110 - time is virtual
            await asyncio.sleep(0.1)
        await asyncio.sleep(0)

    async def all_is_well(self) -> None:
        """Everybody is served, and nothing is held that nobody uses."""
        client = self.client_of_all
        self.turn += 1

        async def one(number: int) -> None:
            text = f"{self.turn}/{number}".encode()
            assert await client.echo(text) == text

        async def popped() -> None:
            key = f"well:{self.turn}"
            waiting = asyncio.ensure_future(client.blpop([key], timeout=5))
            await asyncio.sleep(0.01)
            await client.rpush(key, self.turn)
            assert list(await waiting) == [key.encode(), b"%d" % self.turn]

        async def together() -> None:
            async with client.pipeline() as pipe:
                replies = await pipe.set("all", self.turn).get("all").execute()
                assert replies == [True, b"%d" % self.turn]

        async with asyncio.timeout(10):
            await asyncio.gather(*map(one, range(5)), popped(), together())
        await asyncio.sleep(0.05)
        rows = client.auth_status()
        assert [row for row in rows if row.in_flight] == []
        assert not client.connection_pool._in_use_connections
        session = client._multiplexed.session
        assert (len(session._gate), session._pending_bytes, session.congested) == (0, 0, False)
        assert len(self.server.open) == len(rows)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        names = sorted(each.get_name() for each in tasks if "Task-" not in each.get_name())
        assert len([each for each in tasks if "reauth" in each.get_name()]) == len(rows), names
        assert len(names) <= len(rows) + 2, names  # what refreshes, and what keeps idle ones


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(_reauth, "reauth_delay", lambda token, now: 0.0)
    made = Stage()
    async with no_complaints():
        yield made
        await made.close()


class Operation:
    """What is interrupted; ``check`` is told how it went, before everything else is looked at."""

    async def prepare(self, stage: Stage) -> None:
        pass

    @abstractmethod
    async def run(self, stage: Stage) -> Any:
        """Do what is interrupted, at each of its suspensions in turn."""

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        pass


class Command(Operation):
    async def run(self, stage: Stage) -> Any:
        return await stage.client_of_all.echo("mine")

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        assert outcome.value in (None, b"mine")


class AtTheGate(Command):
    """There is no room for the command yet; others stand in line behind it."""

    async def prepare(self, stage: Stage) -> None:
        session = stage.client_of_all._multiplexed.session
        session.pause_writing()
        asyncio.get_running_loop().call_later(0.01, session.resume_writing)

    async def run(self, stage: Stage) -> Any:
        self.behind = [asyncio.ensure_future(stage.client_of_all.echo("b")) for _ in range(3)]
        return await super().run(stage)

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        await super().check(stage, outcome)
        async with asyncio.timeout(1):
            assert await asyncio.gather(*self.behind) == [b"b"] * 3


class WhileReconnecting(AtTheGate):
    """The connection has just been lost; others wait for the next one, too."""

    async def prepare(self, stage: Stage) -> None:
        stage.server.cut()
        await asyncio.sleep(0)


class Connection(Operation):
    """A connection of one's own."""

    async def run(self, stage: Stage) -> Any:
        async with stage.client_of_all.client() as one:
            await one.echo("a")
            return await one.echo("mine")

    check = Command.check


class Pipeline(Operation):
    async def run(self, stage: Stage) -> Any:
        async with stage.client_of_all.pipeline(transaction=False) as pipe:
            return await pipe.echo("a").echo("b").execute()

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        assert outcome.value in (None, [b"a", b"b"])


class Transaction(Operation):
    """Both of its commands are executed, or neither."""

    async def run(self, stage: Stage) -> Any:
        async with stage.client_of_all.pipeline() as pipe:
            return await pipe.incr("left").incr("right").execute()

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        await asyncio.sleep(0.05)  # it may run although its caller has gone
        left, right = await stage.client_of_all.mget("left", "right")
        assert left == right
        if outcome.finished:
            assert outcome.value == [int(left), int(right)]


class Watch(Operation):
    """The same with WATCH, on a connection of its own."""

    async def run(self, stage: Stage) -> Any:
        async with stage.client_of_all.pipeline() as pipe:
            await pipe.watch("left")
            await pipe.get("left")
            pipe.multi()
            return await pipe.incr("left").incr("right").execute()

    check = Transaction.check


class Unwatch(Operation):
    """The owner changes his mind and leaves."""

    async def run(self, stage: Stage) -> Any:
        async with stage.client_of_all.pipeline() as pipe:
            await pipe.watch("left")
            return await pipe.echo("mine")

    check = Command.check


class BlockingPop(Operation):
    """An element is in the list before: it is popped for this caller, or for the next."""

    async def prepare(self, stage: Stage) -> None:
        stage.server.popped.clear()
        await stage.client_of_all.rpush("list", "element")

    async def run(self, stage: Stage) -> Any:
        return await stage.client_of_all.blpop(["list"], timeout=1)

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        if outcome.finished:
            assert list(outcome.value) == [b"list", b"element"]
        await asyncio.sleep(0.05)
        # What the server had sent when the caller went away has gone with it; the docs say so.
        assert stage.server.lists[b"list"] + stage.server.popped == [b"element"]
        stage.server.lists[b"list"].clear()
        stage.server.popped.clear()


class LateElement(Operation):
    """The element comes when the caller is gone: it is there for the next one."""

    async def run(self, stage: Stage) -> Any:
        return await stage.client_of_all.blpop(["late"], timeout=0.5)

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        assert outcome.value is None
        await stage.client_of_all.rpush("late", "element")
        got = await stage.client_of_all.blpop(["late"], timeout=1)
        assert list(got or ()) == [b"late", b"element"]


class Subscriber(Operation):
    async def run(self, stage: Stage) -> Any:
        async with stage.client_of_all.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("channel")
            await pubsub.get_message(timeout=0.1)
            await stage.client_of_all.publish("channel", "a")
            first = await pubsub.get_message(timeout=5)
            await stage.client_of_all.publish("channel", "b")
            async for message in pubsub.listen():
                await pubsub.unsubscribe()
                return first["data"], message["data"]

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        assert outcome.value in (None, (b"a", b"b"))


class PatientSubscriber(Operation):
    """Only the reading is cancelled; the subscriber lives on and gets what is published then."""

    async def prepare(self, stage: Stage) -> None:
        self.pubsub = stage.client_of_all.pubsub(ignore_subscribe_messages=True)
        await self.pubsub.subscribe("channel")
        await self.pubsub.get_message(timeout=0.01)

    async def run(self, stage: Stage) -> Any:
        asyncio.get_running_loop().call_later(0.005, stage.server.publish, b"channel", b"a")
        return (await self.pubsub.get_message(timeout=1))["data"]

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        await asyncio.sleep(0.01)
        await stage.client_of_all.publish("channel", "b")
        expected = [b"b"] if outcome.finished else [b"a", b"b"]
        got = []
        while (message := await self.pubsub.get_message(timeout=0.2)) is not None:
            got.append(message["data"])
        assert got == expected
        await self.pubsub.aclose()


class Locked(Operation):
    """A lock whose holder was cancelled is free again, or was never had."""

    async def prepare(self, stage: Stage) -> None:
        stage.server.values.pop(b"lock", None)

    async def run(self, stage: Stage) -> Any:
        async with stage.client_of_all.lock("lock", timeout=10, blocking_timeout=1):
            await stage.client_of_all.echo("held")

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        if outcome.finished:
            assert b"lock" not in stage.server.values


class Lifetime(Operation):
    """A client of one's own, from its first command to its end, and its source."""

    async def run(self, stage: Stage) -> Any:
        source = source_of(stage.credential, stage.clock, factory=True)
        async with source, stage.client(token_source=source) as client:
            await client.start()
            await client.echo("a")
            await client.blpop(["nothing"], timeout=0.01)
            return True


class Closing(Operation):
    """Closing goes on when its caller is cancelled, and whoever calls it again waits for it."""

    async def prepare(self, stage: Stage) -> None:
        self.source = source_of(stage.credential, stage.clock, factory=True)
        self.client = stage.client(token_source=self.source)
        await self.client.echo("a")
        await self.client.blpop(["nothing"], timeout=0.01)
        self.popping = asyncio.ensure_future(self.client.blpop(["nothing"], timeout=0))
        self.waiting = asyncio.ensure_future(self.client.echo("in flight"))
        await asyncio.sleep(0.0001)

    async def run(self, stage: Stage) -> Any:
        await self.client.aclose()
        await self.source.aclose()

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        await self.client.aclose()
        await self.source.aclose()
        assert self.client.auth_status() == []
        async with asyncio.timeout(5):
            assert await self.waiting == b"in flight"
            with pytest.raises(redis.exceptions.RedisError):
                await self.popping
        with pytest.raises(ClosedError):
            await self.client.echo("late")


class Token(Operation):
    """The start, a wait for a token, and the end of a source."""

    async def run(self, stage: Stage) -> Any:
        stage.credential.delay = 0.01
        source = source_of(stage.credential, stage.clock, factory=True)
        try:
            await source.start()
            return await source.get()
        finally:
            await source.aclose()


class Plain(Operation):
    """A client of redis-py's with ``entra_kwargs``."""

    async def prepare(self, stage: Stage) -> None:
        self.pool = stage.pool(**entra_kwargs(stage.source))
        self.client = redis.asyncio.Redis(connection_pool=self.pool)
        await self.client.echo("warm")

    async def run(self, stage: Stage) -> Any:
        async with self.client.pipeline() as pipe:
            replies = await pipe.incr("left").incr("right").execute()
        return replies, await self.client.echo("mine")

    async def check(self, stage: Stage, outcome: Outcome) -> None:
        await Transaction().check(stage, Outcome(False))
        replies = await asyncio.gather(*(self.client.echo(f"{n}") for n in range(5)))
        assert replies == [b"%d" % n for n in range(5)]
        assert not self.pool._in_use_connections
        await self.client.aclose()
        await self.pool.disconnect()


OPERATIONS = [
    *(Command, AtTheGate, WhileReconnecting, Connection, Pipeline, Transaction),
    *(Watch, Unwatch, BlockingPop, LateElement, Subscriber, PatientSubscriber, Locked),
    *(Lifetime, Closing, Token, Plain),
]


@pytest.mark.parametrize("auth", ["settled", "under AUTH"])
@pytest.mark.parametrize("moment", Moment, ids=lambda each: each.name.lower())
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)
async def test_at_each_suspension(
    stage: Stage, operation: type[Operation], moment: Moment, auth: str
) -> None:
    await stage.all_is_well()

    async def run(interrupted: Interrupted) -> None:
        it = operation()
        await it.prepare(stage)
        if auth == "under AUTH":
            await stage.under_auth()
        outcome = await interrupted(it.run(stage))
        await it.check(stage, outcome)
        await stage.all_is_well()

    assert await sweep(run, moment) > 0


async def test_a_pipeline_that_is_used_again_waits_for_its_reset_that_was_cancelled():
    """Its connection is in the middle of UNWATCH: a second reader would be one too many."""
    place = Place()
    place.peer.script.update(
        WATCH=lambda *_: OK, UNWATCH=lambda *_: [1, OK], GET=lambda *_: b"$1\r\n1\r\n"
    )
    pipe = place.client().pipeline()
    await pipe.watch("k")
    resetting = asyncio.ensure_future(pipe.reset())
    await asyncio.sleep(0.1)
    resetting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resetting
    await pipe.watch("other")
    assert await pipe.get("k") == b"1"
    names = [words[0] for words in place.peer.commands]
    assert names.index(b"UNWATCH") < names.index(b"GET")
    assert len(place.peer.seen("WATCH")) == 2
    await pipe.reset()
    await place.close()
