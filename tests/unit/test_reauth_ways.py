"""Make-before-break, and connections that have one way only, in virtual time."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from support.reauth_stage import Stage, after

from aioentra_redis import _schedule
from aioentra_redis._events import ConnectionState
from aioentra_redis._multiplex import _reauth
from aioentra_redis._multiplex._rotation import Rotation

pytestmark = pytest.mark.looptime

S = ConnectionState


@pytest.fixture
async def stage(monkeypatch):
    """A stage without jitter, whose task is running."""
    monkeypatch.setattr(_schedule, "_random", lambda: 0.0)
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 0.0)
    made = Stage()
    made.start()
    await asyncio.sleep(0)
    yield made
    await made.stop()


# --------------------------------------------------------------------------- make before break


async def test_after_a_slow_answer_the_next_rotation_is_make_before_break(stage: Stage):
    stage.connection.answer = after(0.3)
    stage.publish(2)
    await asyncio.sleep(1)
    stage.replacing = stage.takes(2.0)
    stage.publish(3)
    await asyncio.sleep(2.5)
    assert stage.connection.versions == [2], "no AUTH in the FIFO of a slow server"
    assert stage.replacements == [1.0]
    assert stage.ledger.state is S.DRAINING
    assert stage.task is not None
    assert stage.task.done()


@pytest.mark.parametrize("replacement", ["fails", "hangs"])
async def test_where_no_replacement_can_be_had_auth_goes_in_place_before_the_deadline(
    monkeypatch, replacement: str
):
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 0.0)
    stage = Stage(latency=2.0, life=1000)
    if replacement == "hangs":
        stage.replacing = stage.takes(1e6)
    stage.start()
    await asyncio.sleep(500)
    stage.connection.answer = after(0.5)
    stage.publish(2, life=1000)
    deadline = 1000 - 180
    await asyncio.sleep(deadline - 500)
    assert stage.connection.versions == [2]
    (at,) = stage.connection.times
    assert 500 + 100 <= at <= 500 + (deadline - 500) / 2 + 1
    assert stage.ledger.state is S.AUTHENTICATED
    if replacement == "fails":
        gaps = [b - a for a, b in itertools.pairwise(stage.replacements)]
        assert max(gaps) <= 5.01
        assert gaps[0] <= 0.11
    else:
        assert stage.cancelled_replacements == 1
    await stage.stop()


# ------------------------------------------------------------------------------------ one way


@pytest.fixture
async def committed(monkeypatch):
    """A stage whose connection has one way only: ``committed(way, latency)``."""
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 0.0)
    made: list[Stage] = []

    def start(only: Rotation, latency: float) -> Stage:
        made.append(Stage(latency))
        made[-1].start(only)
        return made[-1]

    yield start
    for each in made:
        await each.stop()


async def test_where_it_must_be_in_place_slowness_changes_nothing(committed):
    slow = committed(Rotation.IN_PLACE, 5.0)
    slow.connection.answer = after(12.0)
    slow.publish(2, life=60.0)
    await asyncio.sleep(12.5)
    assert slow.replacements == []
    assert slow.ledger.state is S.AUTHENTICATED
    assert slow.ledger.token.version == 2


async def test_where_it_must_be_in_place_silence_leaves_it_stale(committed):
    silent = committed(Rotation.IN_PLACE, 0.0)
    silent.publish(2, life=60.0)
    await asyncio.sleep(14.9)
    assert silent.ledger.state is S.REAUTHENTICATING
    await asyncio.sleep(0.2)
    assert silent.ledger.state is S.STALE
    assert silent.replacements == []


async def test_an_answer_that_its_owner_does_not_read_is_not_late(committed):
    busy = committed(Rotation.IN_PLACE, 0.0)
    busy.connection.held_up = True
    busy.publish(2, life=3600.0)
    await asyncio.sleep(292)
    assert busy.ledger.state is S.REAUTHENTICATING
    busy.connection.held_up = False
    await asyncio.sleep(8.5)
    assert busy.ledger.state is S.STALE


async def test_where_no_auth_is_taken_a_replacement_comes(committed):
    subscriber = committed(Rotation.MAKE_BEFORE_BREAK, 0.0)
    subscriber.replacing = subscriber.takes(0.1)
    subscriber.publish(2)
    await asyncio.sleep(0.2)
    assert subscriber.ledger.state is S.DRAINING
    assert subscriber.connection.auths == []


async def test_where_no_auth_is_taken_and_no_replacement_comes_it_is_tried_again(committed):
    subscriber = committed(Rotation.MAKE_BEFORE_BREAK, 0.0)
    subscriber.publish(2, life=60.0)
    await asyncio.sleep(30.0)
    assert subscriber.ledger.state is S.STALE
    assert subscriber.connection.auths == []
    subscriber.replacing = subscriber.takes(0.1)
    await asyncio.sleep(30.0)
    assert subscriber.ledger.state is S.DRAINING
