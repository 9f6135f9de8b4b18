"""No lost wake-up lasts, and no task that ended unexpectedly stays dead; in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from support.pooled import Place
from support.token_fakes import Clock, Credential, config, source_of

from aioentra_redis import TaskRestarted, TokenState, _schedule
from aioentra_redis._broadcast import Broadcast
from aioentra_redis._events import EventHub
from aioentra_redis._multiplex import _reauth
from aioentra_redis._schedule import MAX_SLEEP, reconcile_interval, restart_delay
from aioentra_redis._supervision import Supervised
from aioentra_redis._token import Token
from aioentra_redis.errors import TokenAcquisitionError

pytestmark = pytest.mark.looptime

SENT = 61.0
"""When each connection of ``Place`` has been given its second token."""


def now() -> float:
    return asyncio.get_running_loop().time()


def task_named(part: str) -> asyncio.Task[Any]:
    (task,) = [each for each in asyncio.all_tasks() if part in each.get_name()]
    return task


# ---------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(("life", "interval"), [(3600, 30), (86_400, 30), (4, 0.2), (0.4, 0.1)])
def test_how_often_a_connection_looks(life: float, interval: float):
    token = Token("s", username="u", expires_on=1e9 + life, issued_on=1e9, first_seen=1e9)
    assert reconcile_interval(token) == pytest.approx(interval)


@pytest.mark.parametrize("life", [2.0, 4.0, 60.0, 3600.0, 86_400.0])
def test_a_lost_wakeup_is_made_good_before_the_deadline(life: float):
    token = Token("s", username="u", expires_on=1e9 + life, issued_on=1e9, first_seen=1e9)
    window = _schedule.reauth_deadline(token) - _schedule.renewal_start(token)
    assert reconcile_interval(token) < window / 2


def test_the_pause_before_a_restart_is_doubled_up_to_the_longest_sleep():
    assert [restart_delay(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, MAX_SLEEP, MAX_SLEEP]
    assert restart_delay(10_000) == MAX_SLEEP


# --------------------------------------------------------------------------------- supervision


class Runs:
    """Work that ends as it is told to."""

    def __init__(self, *ends: Any, restart: bool = True) -> None:
        self.ends = list(ends)
        self.began: list[float] = []
        self.told: list[Any] = []
        hub = EventHub()
        hub.listen(self.told.append)
        self.supervised = Supervised(
            self.work, name="work", hub=hub, gives_up=lambda error: not restart
        )

    async def work(self) -> None:
        self.began.append(now())
        end = self.ends.pop(0) if self.ends else 3600.0
        if isinstance(end, BaseException):
            raise end
        await asyncio.sleep(end or 0)


async def test_work_that_returns_is_over():
    runs = Runs(1.0)
    await asyncio.sleep(100)
    assert (runs.began, runs.told) == ([0.0], [])
    assert runs.supervised.done()


async def test_work_that_fails_is_begun_again_later_and_later(caplog):
    bug = ValueError("a bug")
    runs = Runs(bug, bug, bug)
    await asyncio.sleep(20)
    assert runs.began == [0, 1, 3, 7]
    assert [each.pause for each in runs.told] == [1, 2, 4]
    assert caplog.text.count("work has failed: ValueError('a bug')") == 3
    assert caplog.text.count("work is started again after") == 3
    assert not runs.supervised.done()
    runs.supervised.stop()
    await asyncio.sleep(0)
    assert runs.supervised.done()


async def test_work_that_ran_for_long_is_begun_again_soon():
    runs = Runs()
    for _ in range(3):
        await asyncio.sleep(MAX_SLEEP + 1)
        assert runs.supervised.task is not None
        runs.supervised.task.cancel()
    await asyncio.sleep(2)
    assert [each.error for each in runs.told] == [None] * 3
    assert [each.pause for each in runs.told] == [1.0] * 3
    runs.supervised.stop()
    await asyncio.sleep(0)


@pytest.mark.parametrize("moment", ["running", "paused"])
async def test_stopping_is_final(moment: str):
    runs = Runs(ValueError("a bug")) if moment == "paused" else Runs()
    await asyncio.sleep(0.5)
    before = len(runs.began)
    assert (runs.supervised.stop() is None) is (moment == "paused")
    assert runs.supervised.stop() is None or moment == "running"
    await asyncio.sleep(60)
    assert len(runs.began) == before
    assert runs.supervised.done()


def test_nothing_is_begun_again_in_a_loop_that_waits_for_its_threads(caplog):
    """That of ``asyncio.run``, which has cancelled all tasks for good then."""
    runs = []

    async def main() -> None:
        runs.append(Runs())
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 1.2)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert len(runs[0].began) == 1
    assert runs[0].supervised.done()
    assert caplog.text == ""


async def test_who_says_no_is_heard():
    runs = Runs(ValueError("a bug"), restart=False)
    await asyncio.sleep(60)
    assert runs.began == [0.0]
    assert runs.supervised.done()


async def test_a_task_may_stop_its_own_supervision():
    ended = []

    async def work() -> None:
        assert supervised.stop() is supervised.task
        await asyncio.sleep(0)
        ended.append(True)
        raise ValueError("too late to matter")

    supervised = Supervised(work, name="work", hub=EventHub())
    await asyncio.sleep(60)
    assert ended == [True]
    assert supervised.done()


# -------------------------------------------------------------------------------------- source


async def test_a_refresh_task_that_is_cancelled_by_others_goes_on():
    clock = Clock()
    source = source_of(Credential(clock, life=100), clock, factory=True)
    events: list[Any] = []
    source.listen(events.append)
    async with source:
        await asyncio.sleep(10)
        task_named("refresh").cancel()
        await asyncio.sleep(60)
        assert source.current is not None
        assert source.current.version == 2
        assert source.state is TokenState.FRESH
        (restarted,) = [each for each in events if isinstance(each, TaskRestarted)]
        assert restarted.error is None
        assert restarted.pause == 1.0


@pytest.mark.parametrize("during", ["an attempt", "the wait"])
async def test_a_refresh_task_that_fails_by_a_bug_goes_on(monkeypatch, during: str):
    clock = Clock()
    credential = Credential(clock, life=100)
    source = source_of(credential, clock, factory=True, refresh=config())
    async with source:
        await asyncio.sleep(10)
        refresher = source._refresher
        name = "_unchanged" if during == "an attempt" else "_delay"
        same = refresher.broadcast.current
        assert same is not None

        def bug(*_: Any) -> Any:
            monkeypatch.undo()
            raise AssertionError("a bug")

        monkeypatch.setattr(type(refresher), name, bug)
        if during == "an attempt":
            monkeypatch.setattr("aioentra_redis._refresher.is_news", lambda *_: False)
        await asyncio.sleep(60)
        assert source.current is not None
        assert source.current.version == 2


async def test_an_attempt_that_was_cancelled_is_made_again_at_once_after_the_restart():
    clock = Clock()
    credential = Credential(clock, life=100)
    source = source_of(credential, clock, factory=True)
    async with source:
        credential.delay = 5.0
        await asyncio.sleep(52)  # renewing since 50
        task_named("refresh").cancel()
        await asyncio.sleep(6.5)
        assert source.current is not None
        assert source.current.version == 2
        assert source.status.last_error is None


async def test_a_start_that_is_cancelled_by_others_has_failed_and_may_be_tried_again():
    clock = Clock()
    credential = Credential(clock)
    credential.delay = 1.0
    source = source_of(credential, clock)
    starting = asyncio.create_task(source.start())
    await asyncio.sleep(0.5)
    task_named("refresh").cancel()
    with pytest.raises(TokenAcquisitionError, match=r"the start of .* ended by being cancelled"):
        await starting
    assert source.state is TokenState.FAILED
    await source.start()
    assert source.current is not None
    await source.aclose()


@pytest.mark.parametrize("turns", range(5))
async def test_who_asks_while_a_cancelled_start_ends_hears_of_it_too(turns: int):
    clock = Clock()
    credential = Credential(clock)
    credential.delay = 1.0
    source = source_of(credential, clock)
    asking = [asyncio.create_task(source.get())]
    await asyncio.sleep(0.5)
    task_named("refresh").cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    asking.append(asyncio.create_task(source.get()))
    _, pending = await asyncio.wait(asking, timeout=60)
    assert not pending
    for task in asking:
        with contextlib.suppress(TokenAcquisitionError):
            task.result()
    await source.aclose()


async def test_a_lost_demand_is_found_within_the_longest_sleep(monkeypatch):
    clock = Clock()
    credential = Credential(clock, life=100)
    source = source_of(credential, clock)
    async with source:
        credential.answer = lambda _: ConnectionError("down")
        await asyncio.sleep(101)
        credential.answer = lambda _: credential.issue(life=100)
        monkeypatch.setattr(source._refresher._wake, "set", lambda: None)
        source._refresher.demand()
        await asyncio.sleep(MAX_SLEEP + 1)
        assert source.state is TokenState.FRESH


# --------------------------------------------------------------------------------- connections


@pytest.fixture
async def place():
    made = Place()
    yield made
    await made.close()


def deafen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing reaches nobody."""
    monkeypatch.setattr(Broadcast, "_wake", lambda self: None)


async def test_a_token_that_nobody_was_told_of_is_found(place: Place, monkeypatch):
    client = place.client()
    await client.ping()
    await place.idle(client, 3)
    deafen(monkeypatch)
    await asyncio.sleep(60 + 5)  # half of the life, the jitter of up to 10 s, one look
    assert [row.token_version for row in client.auth_status()] == [2] * 4
    assert len(place.peer.seen("AUTH")) == 4
    await asyncio.sleep(50)
    assert [row.token_version for row in client.auth_status()] == [3] * 4
    assert len(place.peer.seen("AUTH")) == 8, "once for each token"


async def test_a_subscriber_finds_a_token_that_nobody_was_told_of(place: Place, monkeypatch):
    place.peer.script["SUBSCRIBE"] = lambda *_: b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    client = place.client()
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("a")
        deafen(monkeypatch)
        await asyncio.sleep(60 + 5)
        assert {row.token_version for row in client.auth_status()} == {2}


async def test_a_closed_source_is_noticed_without_being_told(place: Place, monkeypatch):
    client = place.client()
    await client.ping()
    task = task_named("reauth")
    deafen(monkeypatch)
    await place.source.aclose()
    await asyncio.sleep(6)
    assert task.done()


async def test_reauthentication_that_was_cancelled_by_others_goes_on(place: Place):
    client = place.client()
    await client.ping()
    await place.idle(client, 1)
    await asyncio.sleep(1)
    names = ("reauth", "refresh", "ping", "background")
    for task in asyncio.all_tasks():
        if any(each in task.get_name() for each in names):
            task.cancel()
    await asyncio.sleep(SENT)
    assert {row.token_version for row in client.auth_status()} == {2}
    assert len(place.peer.seen("AUTH")) == 2
    assert len(place.of(TaskRestarted)) == 4


async def test_reauthentication_that_failed_once_goes_on(place: Place, monkeypatch, caplog):
    client = place.client()
    await client.ping()
    await place.idle(client, 1)
    real, failed = _reauth.reauth_delay, []

    def broken(*args: Any) -> float:
        if len(failed) < 2:
            failed.append(1)
            raise ValueError("a bug")
        return real(*args)

    monkeypatch.setattr(_reauth, "reauth_delay", broken)
    await asyncio.sleep(SENT)
    assert {row.token_version for row in client.auth_status()} == {2}
    assert caplog.text.count("has failed: ValueError('a bug')") == 2


async def test_an_auth_that_is_under_way_is_not_sent_twice_by_a_restart(place: Place):
    client = place.client()
    await client.ping()
    place.peer.script["AUTH"] = lambda *_: [5.0, b"+OK\r\n"]
    for _ in range(70):
        await asyncio.sleep(1)
        if place.peer.seen("AUTH"):
            break
    task_named("reauth").cancel()
    await asyncio.sleep(7)
    assert len(place.peer.seen("AUTH")) == 1
    assert {row.token_version for row in client.auth_status()} == {2}


async def test_a_reconnect_that_was_cancelled_by_others_goes_on(place: Place):
    client = place.client()
    await client.ping()
    place.peer.script["HELLO"] = [[2.0, b"-ERR later\r\n"]]
    place.peer.cut()
    waiting = asyncio.create_task(client.ping())
    await asyncio.sleep(1)
    task_named("aioentra_redis-connect").cancel()
    assert await waiting
    assert now() < 10


async def test_a_clock_that_is_stepped_during_the_jitter_is_followed(place: Place):
    place.credential.answer = lambda _: place.credential.issue(life=3600)
    client = place.client()
    await client.ping()
    await place.idle(client, 5)
    await asyncio.sleep(0.8 * 3600 + 1)
    assert place.source.current is not None
    assert place.source.current.version == 2
    place.clock.step(530)  # 10 s before the deadline
    await asyncio.sleep(MAX_SLEEP + 1)
    assert {row.token_version for row in client.auth_status()} == {2}
