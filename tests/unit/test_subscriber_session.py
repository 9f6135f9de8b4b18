"""A subscriber's session on a scripted peer, in virtual time: AUTH, slow readers, ends."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, DataError, NoPermissionError
from support.pubsub_peer import NOPERM, PubSubPeer
from support.scripted_peer import CUT, HANG, OK, Wire, dialed_over
from support.token_fakes import CANARY, EPOCH, jwt

from aioentra_redis._multiplex import _subscriber_session
from aioentra_redis._multiplex._subscriber_session import Inbox, SubscriberSession
from aioentra_redis._token import Token
from aioentra_redis.errors import ConnectionLostError

pytestmark = pytest.mark.looptime

LARGE = b"x" * 100_000


def token(version: int = 2) -> Token:
    return Token(
        jwt({"oid": "oid-1"}),
        username="oid-1",
        expires_on=EPOCH + 3600,
        first_seen=EPOCH,
        version=version,
    )


class Stage:
    """A peer, a session on it, and what the session's owner gets to see."""

    def __init__(self, protocol: int = 3, **script: Any) -> None:
        self.peer = PubSubPeer(protocol, **script)
        self.inbox = Inbox()
        self.losses: list[Exception | None] = []
        self.wire = Wire(self.peer)
        self.session = self.open(self.wire)

    def open(self, wire: Wire, **options: Any) -> SubscriberSession:
        dialed = dialed_over(wire, protocol=self.peer.protocol, **options)
        return SubscriberSession(dialed, self.inbox, lambda _session, cause: self.lost(cause))

    def lost(self, cause: Exception | None) -> None:
        self.losses.append(cause)

    def unread(self) -> list[Any]:
        items = []
        while self.inbox:
            items.append(self.inbox.take())
        return items


@pytest.fixture
async def stage():
    made: list[Stage] = []

    def make(*args: Any, **options: Any) -> Stage:
        made.append(Stage(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.session.close()
    await asyncio.sleep(0.01)


async def turns(count: int = 4) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# -- AUTH ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_reader_sees_nothing_of_auth(stage, protocol):
    it = stage(protocol)
    it.session.send(("SUBSCRIBE", "a"))
    answer = it.session.authenticate(token())
    await asyncio.sleep(0)
    it.peer.publish(b"a", b"1")
    assert await answer == b"OK"
    await turns()
    assert [item[0] for item in it.unread()] == [b"subscribe", b"message"]
    assert it.session.in_flight == 0


async def test_a_subscription_refused_while_auth_is_in_flight(stage):
    it = stage(AUTH=lambda *_: [0.5, OK])
    it.peer.forbidden = {b"secret"}
    before = it.session.authenticate(token())
    it.session.send(("SUBSCRIBE", "secret"))
    after = it.session.authenticate(token(3))
    assert await before == b"OK"
    assert await after == b"OK"
    assert [type(item) for item in it.unread()] == [NoPermissionError]
    assert not it.session.closed


async def test_a_refused_auth_leaves_the_subscription_as_it_was(stage):
    it = stage(AUTH=lambda *_: b"-WRONGPASS invalid username-password pair\r\n")
    it.session.send(("SUBSCRIBE", "a"))
    answer = it.session.authenticate(token())
    with pytest.raises(AuthenticationError):
        await answer
    it.peer.publish(b"a", b"1")
    await turns()
    assert [item[0] for item in it.unread()] == [b"subscribe", b"message"]


async def test_an_unanswered_auth_stops_no_message(stage):
    it = stage(AUTH=lambda *_: [HANG, OK])
    it.session.send(("SUBSCRIBE", "a"))
    answer = it.session.authenticate(token())
    await turns()
    it.peer.publish(b"a", b"1")
    await asyncio.sleep(60)
    assert not answer.done()
    assert not it.session.closed
    assert [item[0] for item in it.unread()] == [b"subscribe", b"message"]
    it.peer.go_on()
    answer.cancel()  # whoever asked has gone: the late answer meets nobody
    it.peer.script["AUTH"] = lambda *_: OK
    assert await it.session.authenticate(token(3)) == b"OK"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_cut_at_every_byte(stage, protocol):
    """What is complete is read, the rest is a loss, and whoever waits for an answer hears of it."""
    peer = PubSubPeer(protocol)
    parts = [
        peer.out_of_band(b"subscribe", b"a", 1),
        peer.out_of_band(b"message", b"a", b"1"),
        OK,
        peer.out_of_band(b"message", b"a", b"2"),
    ]
    data = b"".join(parts)
    for cut in range(len(data) + 1):
        inbox, losses = Inbox(), []
        wire = Wire()
        session = SubscriberSession(
            dialed_over(wire, protocol=protocol),
            inbox,
            lambda _, cause, to=losses: to.append(cause),
        )
        session.send(("SUBSCRIBE", "a"))
        answer = session.authenticate(token())
        wire.deliver(data[:cut])
        wire.end()
        await session.wait_closed()
        ends = [sum(map(len, parts[: number + 1])) for number in range(len(parts))]
        complete = sum(end <= cut for end in ends)
        assert len(inbox) == complete - (complete >= 3)
        if complete >= 3:
            assert await answer == b"OK"
        else:
            with pytest.raises(ConnectionLostError):
                await answer
        assert [type(loss) for loss in losses] == [ConnectionLostError]
        with pytest.raises(ConnectionLostError):
            session.send(("SUBSCRIBE", "b"))


async def test_no_token_shows_in_what_is_raised(stage):
    it = stage()
    it.wire.refuses = RuntimeError("closed")
    with pytest.raises(ConnectionLostError) as caught:
        it.session.authenticate(token())
    assert CANARY not in repr(caught.value)
    assert it.losses
    await turns()


# -- slow readers ----------------------------------------------------------------------------------


async def test_a_slow_reader_stops_the_reading(stage, monkeypatch):
    it = stage()
    it.session.send(("SUBSCRIBE", "a"))
    await turns()
    for _ in range(50):
        it.peer.publish(b"a", LARGE)
    await turns()
    assert it.session.held_up
    assert it.inbox.size <= _subscriber_session.HIGH_WATER + 2 * len(LARGE)
    received = 0
    while received < 51:
        while it.inbox:
            it.inbox.take()
            it.session.regulate()
            received += 1
        await turns(1)
    assert not it.session.held_up


async def test_a_slow_reader_does_not_keep_auth_from_its_answer(stage):
    it = stage()
    it.session.send(("SUBSCRIBE", "a"))
    await turns()
    for _ in range(50):
        it.peer.publish(b"a", LARGE)
    await turns()
    assert it.session.held_up
    assert await it.session.authenticate(token()) == b"OK"  # 50 messages stood before it
    assert it.session.held_up
    assert len(it.inbox) == 51


async def test_reading_ahead_has_an_end_too(stage, monkeypatch):
    monkeypatch.setattr(_subscriber_session, "READ_AHEAD", 30 * len(LARGE))
    it = stage()
    it.session.send(("SUBSCRIBE", "a"))
    await turns()
    for _ in range(50):
        it.peer.publish(b"a", LARGE)
    await turns()
    answer = it.session.authenticate(token())
    await turns(10)
    assert not answer.done()
    assert it.session.held_up
    assert len(it.inbox) < 40
    while not answer.done():
        it.inbox.take()
        it.session.regulate()
        await turns(1)
    assert answer.result() == b"OK"


async def test_nobody_is_called_dead_for_not_being_read(stage):
    it = stage(PING=lambda *_: HANG)
    it.session.send(("SUBSCRIBE", "a"))
    await turns()
    for _ in range(50):
        it.peer.publish(b"a", LARGE)
    await asyncio.sleep(3600)
    assert not it.session.closed
    assert it.peer.seen("PING") == []


# -- idle ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
async def test_an_idle_connection_pings_and_the_reader_sees_nothing_of_it(stage, protocol):
    it = stage(protocol)
    it.session.send(("SUBSCRIBE", "a"))
    await asyncio.sleep(600)
    assert 7 <= len(it.peer.seen("PING")) <= 10
    assert [item[0] for item in it.unread()] == [b"subscribe"]
    assert not it.session.closed


async def test_a_dead_connection_is_found_out(stage):
    it = stage(PING=lambda *_: HANG)
    await asyncio.sleep(200)
    assert it.session.closed
    (cause,) = it.losses
    assert "PING" in str(cause)


async def test_a_dead_connection_is_found_out_as_fast_as_its_options_say(stage):
    """PING after ``health_check_interval`` of silence, the end ``socket_timeout`` after that."""
    it = stage(PING=lambda *_: HANG)
    session = it.open(Wire(it.peer), health_check_interval=10, socket_timeout=2.0)
    await asyncio.sleep(11.9)
    assert not session.closed
    await asyncio.sleep(0.2)
    assert session.closed


async def test_a_subscriber_is_not_dead_behind_an_auth_that_takes_its_time(stage):
    it = stage(AUTH=lambda *_: [12.0, OK])
    session = it.open(Wire(it.peer), health_check_interval=3, socket_timeout=2.0)
    await asyncio.sleep(2)
    answer = session.authenticate(token())
    await asyncio.sleep(13)
    assert answer.result() == b"OK"
    assert not session.closed


async def test_a_subscriber_whose_auth_is_never_answered_is_dead(stage):
    it = stage(AUTH=lambda *_: HANG)
    session = it.open(Wire(it.peer), health_check_interval=3, socket_timeout=2.0)
    session.authenticate(token())
    await asyncio.sleep(14.5)
    assert not session.closed
    await asyncio.sleep(1)
    assert session.closed


# -- ends ------------------------------------------------------------------------------------------


async def test_what_redis_py_held_unread_is_not_lost(stage):
    it = stage()
    peer = it.peer
    wire = Wire(peer)
    early = peer.out_of_band(b"message", b"a", b"1")
    session = it.open(wire, unread=early + early[:5])
    wire.deliver(early[5:])
    await turns()
    assert len(it.unread()) == 2
    session.close()
    await session.wait_closed()


async def test_a_connection_that_ends_with_the_handshake(stage):
    it = stage()
    session = it.open(Wire(it.peer), eof=True)
    assert session.closed
    assert "after the handshake" in str(session.cause)
    await session.wait_closed()


async def test_out_of_step_is_the_end(stage):
    it = stage(AUTH=lambda *_: [OK, OK])
    answer = it.session.authenticate(token())
    await turns()
    assert await answer == b"OK"
    assert "out of step" in str(it.losses[0])
    assert it.wire.aborted


async def test_closing_is_said_once_and_whoever_waits_is_told(stage):
    it = stage(AUTH=lambda *_: HANG)
    answer = it.session.authenticate(token())
    it.session.close()
    it.session.close()
    with pytest.raises(ConnectionLostError):
        await answer
    await it.session.wait_closed()
    assert it.losses == [None]
    with pytest.raises(ConnectionLostError):
        it.session.authenticate(token())


async def test_a_cut_under_a_command(stage):
    it = stage(AUTH=lambda *_: CUT)
    with pytest.raises(ConnectionLostError, match="closed by the server"):
        await it.session.authenticate(token())


async def test_wrong_arguments_leave_no_trace(stage):
    def pack(args: tuple[Any, ...]) -> bytes:
        raise DataError("no")

    it = stage()
    session = it.open(Wire(it.peer), pack=pack)
    with pytest.raises(DataError):
        session.send(("SUBSCRIBE", None))
    assert session.in_flight == 0
    session.close()
    await turns()


async def test_a_command_of_two_words_is_split(stage):
    it = stage(CLIENT=lambda *_: b":7\r\n")
    it.session.send(("CLIENT ID",))
    await turns()
    assert it.peer.commands == [[b"CLIENT", b"ID"]]
    assert it.unread() == [7]


async def test_a_full_socket_is_waited_for(stage):
    it = stage()
    it.session.pause_writing()
    waiting = asyncio.ensure_future(it.session.drained())
    await turns()
    assert not waiting.done()
    it.session.resume_writing()
    await waiting
    it.session.pause_writing()
    waiting = asyncio.ensure_future(it.session.drained())
    await turns()
    it.session.close()
    await waiting


# -- the inbox -------------------------------------------------------------------------------------


async def test_waiting_for_news_takes_nothing_and_has_an_end():
    inbox = Inbox()
    loop = asyncio.get_running_loop()
    assert await inbox.news(loop.time() + 2) is False
    first, second = (asyncio.ensure_future(inbox.news(None)) for _ in range(2))
    await turns()
    inbox.put(b"1")
    first.cancel()  # woken and cancelled in the same turn
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert await second is True
    assert len(inbox) == 1


async def test_a_refusal_is_read_in_its_turn(stage):
    it = stage(PSUBSCRIBE=lambda *_: NOPERM)
    it.session.send(("SUBSCRIBE", "a"))
    it.session.send(("PSUBSCRIBE", "*"))
    it.session.send(("SUBSCRIBE", "b"))
    await turns()
    kinds = [type(item).__name__ for item in it.unread()]
    assert kinds == ["PushNotification", "NoPermissionError", "PushNotification"]


async def test_an_auth_that_could_not_be_written_leaves_no_frame_with_the_token(
    stage: Callable[..., Stage],
):
    it = stage()
    it.wire.refuses = RuntimeError("the socket is closed")  # as uvloop says it
    newest = token()
    with pytest.raises(ConnectionLostError, match="writing to") as caught:
        it.session.authenticate(newest)
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )
    assert "authenticate" in shown
    assert str(newest.secret) not in shown
