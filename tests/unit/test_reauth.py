"""The re-authentication task of one connection, in virtual time, between fakes on both sides."""

from __future__ import annotations

import asyncio

import pytest
from support.reauth_stage import Stage, after, now, refused
from support.token_fakes import EPOCH

from aioentra_redis import _schedule
from aioentra_redis._events import (
    ConnectionState,
    Reauthenticated,
    ReauthenticationFailed,
)
from aioentra_redis._multiplex import _reauth
from aioentra_redis._multiplex._reauth import AUTH_TIMEOUT

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


# ----------------------------------------------------------------------------------- in place


async def test_no_auth_follows_a_connect(stage: Stage):
    await asyncio.sleep(600)
    assert stage.connection.auths == []
    stage.fail_to_refresh()
    await asyncio.sleep(600)
    assert stage.connection.auths == []
    assert stage.ledger.state is S.AUTHENTICATED


async def test_a_newer_token_is_sent_in_place(stage: Stage):
    stage.connection.answer = after(0.1)
    new = stage.publish(2)
    await asyncio.sleep(0.05)
    assert stage.ledger.state is S.REAUTHENTICATING
    await asyncio.sleep(0.1)
    assert stage.ledger.state is S.AUTHENTICATED
    assert stage.ledger.token is new
    assert stage.ledger.last_auth_latency == pytest.approx(0.1)
    assert stage.ledger.last_auth_at == pytest.approx(EPOCH + 0.1)
    assert stage.ledger.reauthentications == 1
    assert stage.replacements == []
    assert stage.events == [Reauthenticated("connection-1", "peer", 2, pytest.approx(0.1))]


async def test_only_the_newest_token_is_sent(stage: Stage):
    stage.connection.answer = after(0.2)
    stage.publish(2)
    await asyncio.sleep(0.1)
    stage.publish(3)
    stage.publish(4)
    await asyncio.sleep(1)
    assert stage.connection.versions == [2, 4]


@pytest.mark.parametrize("life", [4.0, 3600.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
async def test_auth_is_sent_in_time_to_be_answered_by_the_deadline(
    monkeypatch, life: float, share: float
):
    monkeypatch.setattr(
        _reauth, "reauth_delay", lambda held, now: _schedule.reauth_delay(held, now, lambda: share)
    )
    stage = Stage(life=life)
    held = stage.source.current
    assert held is not None
    stage.start()
    await asyncio.sleep(0.4 * life)  # renewal may begin this early
    deadline = _schedule.reauth_deadline(held) - EPOCH
    left = deadline - now()
    latency = min(left / 2, AUTH_TIMEOUT - 1)
    stage.connection.answer = after(latency)
    published = now()
    stage.publish(2, life=life)
    await asyncio.sleep(left)
    (at,) = [each[0] for each in stage.connection.auths]
    assert at == pytest.approx(published + share * left / 2)
    assert at + latency <= deadline, "half of the time is left for the answer"
    await stage.stop()


async def test_past_the_deadline_there_is_no_jitter():
    stage = Stage(life=10)
    stage.start()
    await asyncio.sleep(9)
    stage.publish(2)
    await asyncio.sleep(0.01)
    assert stage.connection.times == [9.0]
    await stage.stop()


async def test_a_newer_token_during_the_jitter_is_the_one_that_is_sent(monkeypatch):
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 3.0)
    stage = Stage()
    stage.start()
    stage.connection.answer = after(0.0)
    await asyncio.sleep(0)
    stage.publish(2)
    await asyncio.sleep(1)
    stage.publish(3)
    await asyncio.sleep(20)
    assert stage.connection.versions == [3]
    await stage.stop()


# ----------------------------------------------------------------------- an answer that is late


async def test_a_replacement_is_begun_after_a_second_and_given_up_when_the_answer_comes(
    stage: Stage,
):
    stage.connection.answer = after(3.0)
    stage.replacing = stage.takes(10.0)
    stage.publish(2)
    await asyncio.sleep(3.1)
    assert stage.replacements == [1.0]
    assert stage.cancelled_replacements == 1
    assert stage.ledger.state is S.AUTHENTICATED
    assert stage.task is not None
    assert not stage.task.done()


async def test_the_replacement_comes_first(stage: Stage):
    stage.connection.answer = after(8.0)
    stage.replacing = stage.takes(2.0)
    stage.publish(2)
    await asyncio.sleep(3.1)
    assert stage.ledger.state is S.DRAINING
    assert stage.task is not None
    assert stage.task.done(), "the replacement has a task of its own"
    await asyncio.sleep(10)
    assert stage.ledger.state is S.DRAINING
    assert stage.events == []
    assert len(stage.source.broadcast) == 0


async def test_both_come_in_the_same_moment(stage: Stage):
    stage.connection.answer = after(3.0)
    stage.replacing = stage.takes(2.0)
    stage.publish(2)
    await asyncio.sleep(5)
    assert stage.ledger.state in (S.DRAINING, S.AUTHENTICATED)
    assert stage.task is not None
    assert stage.task.done() is (stage.ledger.state is S.DRAINING)


async def test_the_replacement_fails_and_the_answer_comes(stage: Stage):
    stage.connection.answer = after(6.0)
    stage.publish(2)
    await asyncio.sleep(6.1)
    assert stage.replacements == [1.0]
    assert stage.ledger.state is S.AUTHENTICATED


@pytest.mark.parametrize("replacement", ["fails", "hangs"])
async def test_without_answer_or_replacement_it_is_stale_after_15_s(stage: Stage, replacement: str):
    if replacement == "hangs":
        stage.replacing = stage.takes(1e6)
    stage.publish(2)
    await asyncio.sleep(AUTH_TIMEOUT - 0.1)
    assert stage.ledger.state is S.REAUTHENTICATING
    await asyncio.sleep(0.2)
    assert stage.ledger.state is S.STALE
    assert stage.ledger.token is not None
    assert stage.ledger.token.version == 1
    (failed,) = stage.events
    assert isinstance(failed, ReauthenticationFailed)
    assert "no answer after 15 s" in str(failed.error)
    stage.connection.auths[0][2].set_result(b"OK")
    await asyncio.sleep(0.01)
    assert stage.ledger.state is S.AUTHENTICATED, "a late answer is learned"
    assert stage.ledger.token.version == 2
    assert stage.connection.versions == [2]


async def test_a_late_answer_to_an_older_auth_leaves_the_word_to_the_newer_one(stage: Stage):
    stage.publish(2)
    await asyncio.sleep(AUTH_TIMEOUT + 0.1)
    stage.publish(3)
    await asyncio.sleep(0.1)
    assert stage.connection.versions == [2, 3]
    older, newer = (each[2] for each in stage.connection.auths)
    older.set_result(b"OK")
    await asyncio.sleep(0.1)
    assert stage.ledger.state is S.REAUTHENTICATING
    assert stage.ledger.token is not None
    assert stage.ledger.token.version == 2
    newer.set_exception(refused)
    await asyncio.sleep(0.1)
    assert stage.ledger.state is S.STALE
    assert stage.ledger.token.version == 2
    assert stage.task is not None
    assert not stage.task.done()


async def test_a_late_refusal_of_an_older_token_says_nothing_of_the_newer_one(stage: Stage):
    stage.publish(2)
    await asyncio.sleep(AUTH_TIMEOUT + 0.1)
    stage.publish(3)
    await asyncio.sleep(0.1)
    older, newer = (each[2] for each in stage.connection.auths)
    older.set_exception(refused)
    await asyncio.sleep(0.1)
    assert stage.ledger.state is S.REAUTHENTICATING
    newer.set_result(b"OK")
    await asyncio.sleep(0.1)
    assert stage.ledger.state is S.AUTHENTICATED
    assert stage.ledger.token is not None
    assert stage.ledger.token.version == 3


# ------------------------------------------------------------------------------------- refused


async def test_a_refusal_is_probed_and_the_session_goes_on(stage: Stage):
    stage.connection.answer = after(0.0, refused)
    stage.publish(2, life=3600)
    await asyncio.sleep(0.1)
    assert stage.ledger.state is S.STALE
    assert stage.ledger.token is not None
    assert stage.ledger.token.version == 1
    assert isinstance(stage.events[0], ReauthenticationFailed)
    assert stage.events[0].error is refused
    await asyncio.sleep(100)
    assert stage.connection.times == [0, 1, 3, 7, 15, 31, 61, 91]
    assert set(stage.connection.versions) == {2}
    stage.connection.answer = after(0.0)
    await asyncio.sleep(30)
    assert stage.ledger.state is S.AUTHENTICATED
    assert stage.ledger.token.version == 2
    auths = len(stage.connection.auths)
    await asyncio.sleep(300)
    assert len(stage.connection.auths) == auths, "it is over"
    assert stage.replacements == []


async def test_failed_renewals_do_not_put_the_probe_off(stage: Stage):
    stage.connection.answer = after(0.0, refused)
    stage.publish(2, life=3600)
    await asyncio.sleep(0.1)
    for _ in range(29):
        stage.fail_to_refresh()
        await asyncio.sleep(0.3)
    assert stage.connection.times == [0, 1, 3, 7]


async def test_a_newer_token_is_tried_at_once(stage: Stage, monkeypatch):
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 1000.0)
    stage.connection.answer = after(0.0, refused)
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 0.0)
    stage.publish(2, life=3600)
    await asyncio.sleep(4.5)
    assert stage.connection.times == [0, 1, 3]
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 1000.0)
    stage.connection.answer = after(0.0)
    stage.publish(3)
    await asyncio.sleep(0.1)
    assert stage.connection.times == [0, 1, 3, 4.5]
    assert stage.ledger.state is S.AUTHENTICATED


# ------------------------------------------------------------------------------------- the end


async def test_the_connection_is_lost_under_an_auth(stage: Stage):
    stage.publish(2)
    await asyncio.sleep(0.5)
    stage.connection.lose()
    stage.publish(3)
    await asyncio.sleep(1)
    assert stage.task is not None
    assert stage.task.done()
    assert stage.task.exception() is None
    assert stage.events == []
    assert stage.replacements == []


async def test_a_connection_that_is_closed_already(stage: Stage):
    stage.connection.closed = True  # the ledger has not heard of it
    stage.publish(2)
    await asyncio.sleep(1)
    assert stage.connection.auths == []
    stage.connection.lose()
    stage.publish(3)
    await asyncio.sleep(1)
    assert stage.task is not None
    assert stage.task.done()


async def test_a_closed_source_ends_the_task_and_not_the_connection(stage: Stage):
    stage.source.broadcast.close()
    await asyncio.sleep(0.1)
    assert stage.task is not None
    assert stage.task.done()
    assert stage.task.exception() is None
    assert stage.ledger.state is S.AUTHENTICATED


@pytest.mark.parametrize(
    ("latency", "at"),
    [
        (0.01, 0.0),  # waiting for news
        (0.01, 1.0),  # in the jitter
        (0.01, 2.5),  # AUTH has no answer
        (0.01, 5.0),  # a replacement is under way beside it
        (0.01, 16.9),  # ... and almost given up
        (0.01, 17.5),  # stale, waiting for the probe
        (2.0, 3.0),  # make before break
        (2.0, 3.55),  # between two attempts at that
    ],
)
async def test_cancelling_it_anywhere_leaves_nothing_behind(monkeypatch, latency: float, at: float):
    monkeypatch.setattr(_reauth, "reauth_delay", lambda held, now: 2.0)
    stage = Stage(latency=latency, life=3600)
    stage.replacing = stage.takes(100.0)
    if at == 3.55:

        async def fail() -> None:
            await asyncio.sleep(1.5)
            raise OSError("no route")

        stage.replacing = fail
    before = asyncio.all_tasks()
    stage.start()
    assert stage.task is not None
    await asyncio.sleep(0)
    if at:
        stage.publish(2, life=3600)
    await asyncio.sleep(at)
    begun = len(stage.replacements)
    stage.task.cancel()
    done, _ = await asyncio.wait({stage.task}, timeout=0.01)
    assert done, "cancelling is prompt, whatever the replacement does"
    assert stage.task.cancelled()
    assert asyncio.all_tasks() == before
    assert stage.cancelled_replacements == (begun if at != 3.55 else 0) or at == 17.5
    assert len(stage.source.broadcast) == 0
    for _, _, answer in stage.connection.auths:
        answer.set_result(b"OK")  # the connection lives on and may hear of it
    await asyncio.sleep(0.1)
    assert stage.ledger.token is not None
    assert stage.ledger.token.version == (2 if stage.connection.auths else 1)


async def test_no_event_and_no_log_shows_the_token(stage: Stage, caplog):
    caplog.set_level("DEBUG")
    stage.connection.answer = after(0.0, refused)
    stage.publish(2)
    await asyncio.sleep(2)
    assert "secret-2" not in caplog.text + repr(stage.events)
    assert "AUTH with token version 2 failed, going on with the former token" in caplog.text
