"""Maintenance that a server announces: read tolerantly, waited for, and moved away from in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from support.scripted_peer import Peer, bulk
from support.token_fakes import Clock, Credential, source_of
from support.wired import wired

from aioentra_redis import EntraRedis, MaintenanceAnnounced, MaintenanceKind, TokenSource
from aioentra_redis._events import ConnectionClosed, ConnectionReplaced
from aioentra_redis._maintenance import notice_in
from aioentra_redis._multiplex import _moves
from aioentra_redis.errors import CommandTimeoutError

virtual_time = pytest.mark.looptime
notifying = pytest.mark.capability("maintenance_notifications")

K = MaintenanceKind


# ------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("push", "expected"),
    [
        ([b"MOVING", 7, 15, b"10.0.0.2:10000"], (K.MOVING, 7, 15, "10.0.0.2:10000", None, ())),
        (["MOVING", 7, 15, None], (K.MOVING, 7, 15, None, None, ())),
        ([b"MOVING"], (K.MOVING, None, None, None, None, ())),
        ([b"MOVING", b"7", b"1.5", "x", "more"], (K.MOVING, 7, 1.5, "x", None, ())),
        ([b"MIGRATING", 1, 10], (K.MIGRATING, 1, 10, None, None, ())),
        ([b"MIGRATED", 1, 3], (K.MIGRATED, 1, None, None, None, ())),
        ([b"FAILING_OVER", 2, 20, b"1"], (K.FAILING_OVER, 2, 20, None, None, ())),
        ([b"FAILED_OVER", 2], (K.FAILED_OVER, 2, None, None, None, ())),
        ([b"SMIGRATING", 3, b"1,5-9"], (K.SMIGRATING, 3, None, None, "1,5-9", ())),
        (
            [b"SMIGRATED", 3, [[b"a:1", b"b:2", b"1,5-9"], [b"odd"], 7, [1, 2, 3]]],
            (K.SMIGRATED, 3, None, None, None, (("a:1", "b:2", "1,5-9"),)),
        ),
        ([b"SMIGRATED", 3, b"odd"], (K.SMIGRATED, 3, None, None, None, ())),
        ([b"MIGRATING", [], {}], (K.MIGRATING, None, None, None, None, ())),
        ([b"MIGRATING", float("nan"), float("inf")], (K.MIGRATING, None, None, None, None, ())),
    ],
)
def test_notices(push: list[Any], expected: Any) -> None:
    notice = notice_in(push, connection="connection-1", host="h:1")
    assert notice == MaintenanceAnnounced("connection-1", "h:1", *expected)


WORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
    max_leaves=6,
)
KINDS = st.sampled_from([kind.value for kind in K] + [kind.value.encode() for kind in K])


@given(st.lists(WORDS))
def test_what_is_no_notice(push: list[Any]) -> None:
    assert notice_in(push, connection="c", host="h") is None


@given(KINDS, st.lists(WORDS))
def test_no_notice_is_lost_whatever_it_says(kind: Any, words: list[Any]) -> None:
    notice = notice_in([kind, *words], connection="c", host="h")
    assert notice is not None
    assert notice.kind.value in (kind, kind.decode() if isinstance(kind, bytes) else "")
    hash(notice)


# ------------------------------------------------------------------------------------ effects


def pushed(*words: Any) -> bytes:
    parts = [
        b"_\r\n" if w is None else b":%d\r\n" % w if isinstance(w, int) else bulk(w) for w in words
    ]
    return b">%d\r\n" % len(words) + b"".join(parts)


class Stage:
    """A client whose pool listens to maintenance notifications, and a peer on every host."""

    def __init__(self, source: TokenSource, **options: Any) -> None:
        self.peer = Peer()
        self.events: list[Any] = []
        self.dialled: list[str] = []
        self.refusals = 0
        stage = self

        class Dialling(wired(self.peer)):  # type: ignore[misc]
            async def _connect(self) -> None:
                stage.dialled.append(self.host)
                if stage.refusals:
                    stage.refusals -= 1
                    raise ConnectionRefusedError(111, "nothing listens there yet")
                await super()._connect()

        self.pool = redis.asyncio.ConnectionPool(
            connection_class=Dialling,
            **{"host": "localhost", "protocol": 3, "socket_timeout": 1, **options},
        )
        self.client = EntraRedis.from_pool(
            self.pool,
            token_source=source,
            allow_plaintext=True,
            recovery_timeout=5,
            on_event=self.events.append,
        )

    def seen(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def answers_after(self, seconds: float) -> Any:
        """What a command gets that the server answers only then."""
        self.peer.script["ECHO"] = [[seconds, bulk("late")]]
        return await self.client.echo("x")


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setattr(_moves.random, "uniform", lambda a, b: b)
    clock = Clock()
    async with source_of(Credential(clock), clock) as source:
        stages: list[Stage] = []

        def stage(**options: Any) -> Stage:
            stages.append(Stage(source, **options))
            return stages[-1]

        yield stage
        for each in stages:
            await each.client.aclose()
            assert each.peer.open == []
            # Nothing refers to the connection in a circle, so it is gone with the client.
            assert each.client._multiplexed is not None
            assert each.client._multiplexed._moves.running is None
        assert [task.get_name() for task in asyncio.all_tasks() if "move" in task.get_name()] == []


@notifying
@virtual_time
async def test_a_move_is_made_before_the_old_endpoint_ends_and_nobody_notices(make: Any) -> None:
    stage = make()
    client, peer = stage.client, stage.peer
    assert await client.ping()
    peer.script["ECHO"] = [[3.0, bulk("slow")]]
    slow = asyncio.ensure_future(client.echo("x"))  # in flight on the old one when it moves
    errors: list[Exception] = []
    counted = 0

    async def work() -> None:
        nonlocal counted
        while True:
            try:
                await client.execute_command("INCR", "counter")
                counted += 1
            except Exception as error:
                errors.append(error)
            await asyncio.sleep(0.05)

    await asyncio.sleep(0)
    workers = [asyncio.ensure_future(work()) for _ in range(4)]
    (old,) = peer.open
    old.send(pushed("MOVING", 7, 15, "10.0.0.2:10000"))
    old.send(pushed("MOVING", 7, 15, "10.0.0.2:10000"))
    await asyncio.sleep(10)
    assert stage.dialled == ["localhost", "10.0.0.2"]
    assert await slow == b"slow"
    assert old.closed, "it has drained"
    await asyncio.sleep(10)
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)
    assert errors == []
    assert counted == int(peer.values[b"counter"])
    (replaced,) = stage.seen(ConnectionReplaced)
    assert replaced.reason == "the server goes on at 10.0.0.2:10000"
    assert replaced.trigger is None
    assert [event.error for event in stage.seen(ConnectionClosed)] == [None]
    first, second = stage.seen(MaintenanceAnnounced)
    assert (
        first
        == second
        == MaintenanceAnnounced(replaced.old, first.host, K.MOVING, 7, 15.0, "10.0.0.2:10000")
    )


@notifying
@virtual_time
async def test_who_is_told_again_and_again_moves_at_its_time_all_the_same(make: Any) -> None:
    stage = make()
    assert await stage.client.ping()
    for _ in range(10):
        stage.peer.connections[0].send(pushed("MOVING", 7, 60, "10.0.0.2:10000"))
        await asyncio.sleep(0.3)
    assert stage.dialled == ["localhost", "10.0.0.2"]


@notifying
@virtual_time
async def test_without_an_endpoint_the_same_host_is_dialled_when_half_of_the_time_is_over(
    make: Any,
) -> None:
    stage = make()
    assert await stage.client.ping()
    stage.peer.push(pushed("MOVING", 7, 20, None))
    await asyncio.sleep(9)
    assert stage.dialled == ["localhost"]
    await asyncio.sleep(3)
    assert stage.dialled == ["localhost", "localhost"]
    (replaced,) = stage.seen(ConnectionReplaced)
    assert replaced.reason == "the server goes on at another endpoint"


@notifying
@virtual_time
async def test_an_endpoint_that_is_not_there_yet_is_tried_until_it_is(make: Any) -> None:
    stage = make()
    assert await stage.client.ping()
    stage.refusals = 3
    stage.peer.push(pushed("MOVING", 7, 20, "10.0.0.2:10000"))
    await asyncio.sleep(2)
    assert stage.dialled == ["localhost"] + 4 * ["10.0.0.2"]
    assert len(stage.seen(ConnectionReplaced)) == 1
    assert await stage.client.ping()


@notifying
@virtual_time
async def test_an_endpoint_that_never_comes_is_given_up_and_the_old_one_goes_on(make: Any) -> None:
    stage = make()
    assert await stage.client.ping()
    stage.refusals = 1000
    stage.peer.push(pushed("MOVING", 7, 10, "10.0.0.2:10000"))
    await asyncio.sleep(60)
    tried = len(stage.dialled)
    assert 5 < tried < 20
    assert await stage.client.ping()
    await asyncio.sleep(60)
    assert len(stage.dialled) == tried
    assert stage.seen(ConnectionReplaced) == []


@notifying
@virtual_time
async def test_a_newer_target_counts(make: Any) -> None:
    stage = make()
    assert await stage.client.ping()
    stage.refusals = 2
    stage.peer.push(pushed("MOVING", 7, 20, "10.0.0.2:10000"))
    await asyncio.sleep(1.05)
    stage.peer.push(pushed("MOVING", 8, 20, "10.0.0.3:10000"))
    await asyncio.sleep(5)
    assert stage.dialled == ["localhost", "10.0.0.2", "10.0.0.3", "10.0.0.3"]
    (replaced,) = stage.seen(ConnectionReplaced)
    assert "10.0.0.3" in replaced.reason


@notifying
@virtual_time
@pytest.mark.parametrize("moment", [0.5, 1.0, 1.00005])
async def test_the_old_endpoint_may_end_before_its_time(make: Any, moment: float) -> None:
    """Before the move, as it begins, and in the middle of its dial: one new connection comes."""
    stage = make()
    assert await stage.client.ping()
    stage.peer.push(pushed("MOVING", 7, 20, "10.0.0.2:10000"))
    await asyncio.sleep(moment)
    stage.peer.open[0].cut()
    assert await stage.client.get("key") is None
    await asyncio.sleep(30)
    assert len(stage.peer.open) == 1
    assert stage.dialled[1] == "10.0.0.2"


@notifying
@virtual_time
@pytest.mark.parametrize("moment", [0.5, 1.0, 1.5])
async def test_a_client_may_be_closed_while_it_moves(make: Any, moment: float) -> None:
    stage = make()
    assert await stage.client.ping()
    stage.refusals = 3
    stage.peer.push(pushed("MOVING", 7, 20, "10.0.0.2:10000"))
    await asyncio.sleep(moment)
    await stage.client.aclose()
    dialled = len(stage.dialled)
    await asyncio.sleep(30)
    assert len(stage.dialled) == dialled


@notifying
@virtual_time
@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        (("FAILING_OVER", 2, 20), ("FAILED_OVER", 2)),
        (("MIGRATING", 2, 20), ("MIGRATED", 2)),
    ],
)
async def test_a_failover_that_is_announced_is_waited_for(
    make: Any, begins: Any, ends: Any
) -> None:
    stage = make()
    assert await stage.client.ping()
    stage.peer.push(pushed(*begins))
    assert await stage.answers_after(8) == b"late"
    stage.peer.push(pushed(*ends))
    await asyncio.sleep(1)
    with pytest.raises(CommandTimeoutError):
        await stage.answers_after(8)
    assert [event.kind.value for event in stage.seen(MaintenanceAnnounced)] == [begins[0], ends[0]]


@notifying
@virtual_time
async def test_who_is_more_patient_than_that_stays_so(make: Any) -> None:
    stage = make(socket_timeout=30)
    assert await stage.client.ping()
    stage.peer.push(pushed("FAILING_OVER", 2, 20))
    assert await stage.answers_after(25) == b"late"


@notifying
@virtual_time
async def test_who_waits_for_ever_still_does(make: Any) -> None:
    stage = make(socket_timeout=None)
    assert await stage.client.ping()
    stage.peer.push(pushed("FAILING_OVER", 2, 20))
    assert await stage.answers_after(25) == b"late"


@notifying
@virtual_time
async def test_a_move_is_patient_on_both_sides_until_its_time_is_over(make: Any) -> None:
    stage = make()
    assert await stage.client.ping()
    stage.peer.push(pushed("MOVING", 7, 20, "10.0.0.2:10000"))
    await asyncio.sleep(0.1)
    assert await stage.answers_after(5) == b"late"  # on the old one, whose time is not over
    assert len(stage.seen(ConnectionReplaced)) == 1
    assert await stage.answers_after(5) == b"late"  # on the new one
    await asyncio.sleep(20)
    with pytest.raises(CommandTimeoutError):
        await stage.answers_after(5)
    assert stage.dialled == ["localhost", "10.0.0.2"]
    # From now on the user's host leads to the new endpoint.
    await stage.client.connection_pool.disconnect()
    assert await stage.client.ping()
    assert stage.dialled[2:] == ["localhost"]


@notifying
@virtual_time
async def test_a_rotation_in_the_middle_of_a_move_makes_one_connection(make: Any) -> None:
    stage = make()
    assert await stage.client.ping()
    multiplexed = stage.client._multiplexed
    stage.peer.push(pushed("MOVING", 7, 20, "10.0.0.2:10000"))
    await asyncio.sleep(1.0)
    session = multiplexed.session
    replacing = [
        asyncio.ensure_future(multiplexed._replace(session, "the server validates tokens slowly"))
        for _ in range(2)
    ]
    await asyncio.gather(*replacing)
    await asyncio.sleep(30)
    assert len(stage.peer.open) == 1
    assert len(stage.seen(ConnectionReplaced)) == 1


@notifying
@virtual_time
async def test_a_handler_that_raises_keeps_nobody_from_moving(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make()
    assert await stage.client.ping()
    (session,) = stage.client._multiplexed._sessions

    async def raises(_: Any) -> None:
        raise RuntimeError("a handler's bug")

    monkeypatch.setattr(session.dialed.connection._parser, "handle_push_response", raises)
    stage.peer.push(pushed("MOVING", 7, 20, "10.0.0.2:10000"))
    await asyncio.sleep(5)
    assert len(stage.seen(ConnectionReplaced)) == 1
