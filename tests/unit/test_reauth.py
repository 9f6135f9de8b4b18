"""The re-authentication task of one connection, in virtual time, between fakes on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import AuthenticationError
from support.token_fakes import EPOCH

from aioentra_redis import _schedule
from aioentra_redis._broadcast import Broadcast, Subscription
from aioentra_redis._events import (
    ConnectionState,
    Event,
    EventHub,
    Reauthenticated,
    ReauthenticationFailed,
    RefreshFailed,
    TokenState,
)
from aioentra_redis._multiplex import _reauth
from aioentra_redis._multiplex._ledger import TRANSITIONS, Ledger
from aioentra_redis._multiplex._reauth import (
    AUTH_TIMEOUT,
    Probe,
    Reauthenticator,
    Rotation,
    rotation_for,
)
from aioentra_redis._servers import Servers
from aioentra_redis._token import Token
from aioentra_redis.errors import ConnectionLostError

pytestmark = pytest.mark.looptime

S = ConnectionState


def now() -> float:
    return asyncio.get_running_loop().time()


def token(version: int, *, life: float = 10.0) -> Token:
    """A token that is issued now."""
    at = EPOCH + (now() if asyncio._get_running_loop() else 0.0)
    return Token(
        f"secret-{version}",
        username="u",
        expires_on=at + life,
        issued_on=at,
        first_seen=at,
        version=version,
    )


class Source:
    """A token source without a credential."""

    def __init__(self) -> None:
        self.broadcast = Broadcast()
        self._servers = Servers(8, lambda event: None)

    @property
    def current(self) -> Token | None:
        return self.broadcast.current

    def subscribe(self, after: int | None = None) -> Subscription:
        return self.broadcast.subscribe(after)

    def now(self, _token: object = None) -> float:
        return EPOCH + now()


class Connection:
    """A connection whose AUTHs the test answers, and which the test replaces or ends."""

    name = "connection-1"
    host = "peer"
    closed = False
    held_up = False
    paces_itself = False

    def withdraw_auth(self) -> None: ...

    def __init__(self, held: Token, latency: float = 0.01) -> None:
        self.ledger = Ledger(self.name, held, latency)
        self.auths: list[tuple[float, Token, asyncio.Future[Any]]] = []
        self.answer: Callable[[asyncio.Future[Any]], Any] = lambda future: None

    def authenticate(self, token: Token) -> asyncio.Future[Any]:
        if self.closed:
            raise ConnectionLostError("closed")
        future = asyncio.get_running_loop().create_future()
        self.auths.append((now(), token, future))
        self.answer(future)
        return future

    @property
    def versions(self) -> list[int]:
        return [token.version for _, token, _ in self.auths]

    @property
    def times(self) -> list[float]:
        return [round(at, 2) for at, _, _ in self.auths]

    def lose(self) -> None:
        self.closed = True
        self.ledger.close()
        for _, _, future in self.auths:
            if not future.done():
                future.set_exception(ConnectionLostError("lost"))


def after(seconds: float, value: Any = b"OK") -> Callable[[asyncio.Future[Any]], Any]:
    """An answer that comes that much later."""

    def answer(future: asyncio.Future[Any]) -> None:
        def give() -> None:
            if future.done():
                return
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)

        asyncio.get_running_loop().call_later(seconds, give)

    return answer


refused = AuthenticationError("WRONGPASS invalid username-password pair")


class Stage:
    """One connection with its task, the source and the events."""

    def __init__(self, latency: float = 0.01, life: float = 10.0) -> None:
        self.source = Source()
        self.source.broadcast.publish(token(1, life=life))
        assert self.source.current is not None
        self.connection = Connection(self.source.current, latency)
        self.ledger = self.connection.ledger
        self.events: list[Event] = []
        self.hub = EventHub()
        self.hub.listen(self.events.append)
        self.replacements: list[float] = []
        self.cancelled_replacements = 0
        self.replacing: Callable[[], Any] = self.no_replacement
        self.task: asyncio.Task[None] | None = None

    async def no_replacement(self) -> None:
        raise OSError("no route")

    def takes(self, seconds: float) -> Callable[[], Any]:
        """A replacement that takes over after that many seconds."""

        async def replace() -> None:
            await asyncio.sleep(seconds)
            self.ledger.move_to(S.DRAINING)

        return replace

    async def _replace(self, old: Any, reason: str) -> None:
        assert old is self.connection
        self.replacements.append(round(now(), 2))
        try:
            await self.replacing()
        except asyncio.CancelledError:
            self.cancelled_replacements += 1
            raise

    def start(self, only: Rotation | None = None) -> None:
        reauthenticator = Reauthenticator(
            self.connection,
            self.source,
            replace=self._replace,
            hub=self.hub,  # type: ignore[arg-type]
            only=only,
        )
        self.task = asyncio.get_running_loop().create_task(reauthenticator.run())

    def publish(self, version: int, *, life: float = 10.0) -> Token:
        new = token(version, life=life)
        self.source.broadcast.publish(new)
        return new

    def fail_to_refresh(self) -> None:
        failure = RefreshFailed("s", OSError(), 3, 1.0, TokenState.DEGRADED)
        self.source.broadcast.publish_error(failure)

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task


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


# -------------------------------------------------------------------------------------- table


ALLOWED = {
    (S.AUTHENTICATED, S.REAUTHENTICATING),
    (S.AUTHENTICATED, S.STALE),
    (S.AUTHENTICATED, S.DRAINING),
    (S.AUTHENTICATED, S.CLOSED),
    (S.REAUTHENTICATING, S.AUTHENTICATED),
    (S.REAUTHENTICATING, S.STALE),
    (S.REAUTHENTICATING, S.DRAINING),
    (S.REAUTHENTICATING, S.CLOSED),
    (S.STALE, S.AUTHENTICATED),
    (S.STALE, S.REAUTHENTICATING),
    (S.STALE, S.DRAINING),
    (S.STALE, S.CLOSED),
    (S.DRAINING, S.CLOSED),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(S, S)))
def test_every_transition(old: ConnectionState, new: ConnectionState):
    ledger = Ledger("connection-1", None, 0.0)
    ledger.state = old
    assert (new in TRANSITIONS[old]) is ((old, new) in ALLOWED)
    if (old, new) in ALLOWED:
        ledger.move_to(new)
        assert ledger.state is new
    else:
        with pytest.raises(RuntimeError, match=r"connection-1 can't go from"):
            ledger.move_to(new)
        assert ledger.state is old


def test_closing_a_ledger_twice():
    ledger = Ledger("connection-1", None, 0.0)
    ledger.close()
    ledger.close()
    assert ledger.state is S.CLOSED
    status = ledger.status(host="h", in_flight=3)
    assert (status.token_version, status.token_expires_on, status.last_auth_at) == (None,) * 3
    assert status.in_flight == 3


@pytest.mark.parametrize(
    ("latency", "way"),
    [(0.0, Rotation.IN_PLACE), (0.25, Rotation.IN_PLACE), (0.26, Rotation.MAKE_BEFORE_BREAK)],
)
def test_the_way_follows_from_the_last_latency(latency: float, way: Rotation):
    assert rotation_for(latency) is way


def test_probes_are_doubled_between_their_bounds():
    probe, delays = Probe(), []
    for _ in range(7):
        probe.failed()
        delays.append(probe.delay)
    assert delays == [1, 2, 4, 8, 16, 30, 30]
    probe.accepted()
    assert probe.delay is None
    probe.failed()
    assert probe.delay == 1


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
