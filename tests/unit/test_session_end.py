"""How a session notices that nothing arrives, and how it ends, from either side."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from support.resp import pack
from support.scripted_peer import CUT, HANG, OK, Peer, Wire, bulk, dialed_over
from support.sessions import TOKEN, Open, Owner, outcome, turns

from aioentra_redis._events import ConnectionState
from aioentra_redis._multiplex._session import FEW, Session
from aioentra_redis.errors import CommandTimeoutError, ConnectionLostError, WrongLoopError

pytestmark = pytest.mark.looptime


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
async def open_session(owner: Owner):
    """Make sessions over a script, or over a bare wire for which the test speaks."""
    opened: list[tuple[Session, Wire]] = []

    def make(peer: Peer | None = None, *, sock: Any = None, **options: Any) -> tuple[Session, Wire]:
        wire = Wire(peer, sock)
        session = Session(dialed_over(wire, **options), owner)
        opened.append((session, wire))
        return session, wire

    yield make
    for session, wire in opened:
        wire.lingers = False
        session.close()
        await session.wait_closed()


# ----------------------------------------------------------------------------------- watching


async def test_a_late_command_fails_alone_and_its_place_stays(open_session: Open, caplog):
    """Slow is not dead: replies keep coming, so the session goes on."""
    loop = asyncio.get_running_loop()
    peer = Peer(GET=[[4.0, bulk("a")], [4.0, bulk("b")], [4.0, bulk("c")]])
    session, _ = open_session(peer, socket_timeout=5.0)
    futures = [session.submit(("GET", key)) for key in "abc"]
    assert await futures[0] == b"a"
    error = await outcome(futures[1])
    assert isinstance(error, CommandTimeoutError)
    assert isinstance(error, redis_exceptions.TimeoutError)
    assert "no reply from peer within 5 s (socket_timeout)" in str(error)
    assert 5.0 <= loop.time() <= 5.25
    assert isinstance(await outcome(futures[2]), CommandTimeoutError)
    assert session.in_flight == 2, "the places stay"
    await asyncio.sleep(12 - loop.time())
    assert session.in_flight == 0
    assert await session.submit(("ECHO", "mine")) == b"mine"
    assert "2 command(s) got no reply within 5 s" in caplog.text


async def test_nothing_at_all_arrived_so_the_session_is_lost(open_session: Open, owner: Owner):
    loop = asyncio.get_running_loop()
    session, wire = open_session(Peer(GET=lambda *_: HANG), socket_timeout=2.0)
    await asyncio.sleep(100)
    future = session.submit(("GET", "k"))
    started = loop.time()
    assert isinstance(await outcome(future), CommandTimeoutError)
    await session.wait_closed()
    assert 2.0 <= loop.time() - started <= 2.5
    (lost,) = owner.lost
    assert "nothing came from peer for 2 s while replies were due" in str(lost[1])
    assert wire.aborted


async def test_a_partial_reply_is_a_sign_of_life(open_session: Open):
    half = bulk("x" * 100)
    steps: list[Any] = []
    for position in range(0, 90, 10):
        steps += [1.5, half[position : position + 10]]
    session, _ = open_session(Peer(GET=[[*steps, 1.5, half[90:]]]), socket_timeout=2.0)
    future = session.submit(("GET", "k"))
    assert isinstance(await outcome(future), CommandTimeoutError)
    await asyncio.sleep(20)
    assert not session.closed
    assert await session.submit(("PING",)) == b"PONG"


async def test_without_a_timeout_nothing_is_late(open_session: Open):
    session, _ = open_session(Peer(GET=[[1000.0, bulk("a")]]), socket_timeout=None)
    assert await session.submit(("GET", "k")) == b"a"


async def test_behind_an_auth_that_is_never_answered_nothing_waits_once_it_drains(
    open_session: Open, owner: Owner
):
    """A replacement has taken over, where a read can be sent again; a write may have run.

    A draining session has no re-authentication task left to say so.
    """
    loop = asyncio.get_running_loop()
    session, wire = open_session(Peer(AUTH=lambda *_: HANG), socket_timeout=5.0)
    auth, behind = session.authenticate(TOKEN), session.submit(("GET", "k"))
    await asyncio.sleep(1)
    session.drain()
    error = await outcome(behind)
    assert isinstance(error, ConnectionLostError)
    assert error.written
    assert "has not answered AUTH within 15 s" in str(error)
    assert 15.0 <= loop.time() <= 15.3
    assert isinstance(await outcome(auth), ConnectionLostError), "AUTH itself is never late"
    assert len(owner.lost) == 1
    assert wire.aborted


async def test_time_behind_an_unanswered_auth_does_not_count(open_session: Open):
    loop = asyncio.get_running_loop()
    peer = Peer(AUTH=[[12.0, OK]], GET=[[4.0, bulk("a")], HANG])
    session, _ = open_session(peer, socket_timeout=5.0)
    auth = session.authenticate(TOKEN)
    behind = session.submit(("GET", "a"))
    late = session.submit(("GET", "b"))
    assert await auth == b"OK"
    assert await behind == b"a"
    assert loop.time() == pytest.approx(16, abs=0.01)
    assert isinstance(await outcome(late), CommandTimeoutError)
    assert 17.0 <= loop.time() <= 17.3, "its clock started at AUTH's answer"


async def test_what_stands_before_an_auth_may_be_late(open_session: Open):
    loop = asyncio.get_running_loop()
    peer = Peer(GET=[[6.0, bulk("a")]])
    session, _ = open_session(peer, socket_timeout=5.0)
    before = session.submit(("GET", "a"))
    auth = session.authenticate(TOKEN)
    behind = session.submit(("GET", "b"))
    assert isinstance(await outcome(before), CommandTimeoutError)
    assert loop.time() <= 5.25
    assert await auth == b"OK"
    assert await behind is None


async def test_a_late_answer_to_an_older_auth_does_not_end_the_patience_with_a_newer_one(
    open_session: Open,
):
    loop = asyncio.get_running_loop()
    peer = Peer(AUTH=[[16.0, OK], [10.0, OK]])
    session, _wire = open_session(peer, socket_timeout=5.0)
    older = session.authenticate(TOKEN)
    await asyncio.sleep(15.5)
    newer, behind = session.authenticate(TOKEN), session.submit(("ECHO", "a"))
    assert await older == b"OK"
    assert loop.time() == pytest.approx(16, abs=0.01)
    assert await newer == b"OK"
    assert await behind == b"a"
    assert loop.time() == pytest.approx(26, abs=0.01)


async def test_a_command_withdrawn_beside_an_auth_does_not_shift_its_position(open_session: Open):
    peer = Peer(AUTH=[[10.0, OK]])
    session, _ = open_session(peer, socket_timeout=2.0)
    await asyncio.gather(*[session.submit(("PING",)) for _ in range(3)])
    gone = session.submit(("GET", "gone"))  # waits for the end of this turn
    auth = session.authenticate(TOKEN)
    behind = session.submit(("ECHO", "b"))
    gone.cancel()
    session.withdraw(gone)
    assert await auth == b"OK"
    assert await behind == b"b"


async def test_an_idle_connection_is_pinged_every_minute(open_session: Open):
    peer = Peer()
    session, _ = open_session(peer)
    await session.submit(("GET", "k"))
    await asyncio.sleep(59)
    assert peer.seen("PING") == []
    await asyncio.sleep(2)
    assert len(peer.seen("PING")) == 1
    await asyncio.sleep(600)
    assert len(peer.seen("PING")) == 10


async def test_the_interval_of_the_pings_is_the_users(open_session: Open):
    peer = Peer()
    open_session(peer, health_check_interval=5)
    await asyncio.sleep(20.6)
    assert len(peer.seen("PING")) == 3


async def test_a_ping_without_an_answer_ends_the_session(open_session: Open, owner: Owner):
    session, _ = open_session(Peer(PING=lambda *_: HANG), socket_timeout=5.0)
    await asyncio.sleep(59)
    assert not session.closed
    await asyncio.sleep(7)
    assert session.closed
    assert "nothing came from peer for 5 s" in str(owner.lost[0][1])


# -------------------------------------------------------------------------------- the peer ends


async def test_a_peer_that_hung_up_while_idle_is_noticed_before_the_first_write(
    open_session: Open, owner: Owner
):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        session, wire = open_session(sock=ours)
        await asyncio.sleep(1)
        theirs.close()
        error = await outcome(session.submit(("INCR", "n")))
        assert isinstance(error, ConnectionLostError)
        assert not error.written
        assert wire.writes == []
        assert "closed the idle connection" in str(owner.lost[0][1])


async def test_an_idle_peer_that_is_there_gets_the_command(open_session: Open):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        session, _wire = open_session(Peer(), sock=ours)
        await asyncio.sleep(1)
        theirs.send(b"+a push may lie here unread\r\n")
        assert await session.submit(("PING",)) == b"PONG"


async def test_loss_tells_written_from_unwritten_and_gives_each_its_own_error(
    open_session: Open, owner: Owner
):
    session, wire = open_session(Peer(GET=lambda *_: HANG))
    written = [session.submit(("GET", "a"))]
    await turns()
    written.append(session.submit(("GET", "b")))
    await turns()
    wire.end(ConnectionResetError("reset by peer"))
    await asyncio.sleep(0)
    unwritten: list[Any] = []
    if not session.closed:
        unwritten = [session.submit(("GET", "c"))]
    errors = [await outcome(each) for each in written]
    assert [each.written for each in errors] == [True, True]
    assert errors[0] is not errors[1]
    assert errors[0].__cause__ is errors[1].__cause__
    assert isinstance(errors[0].__cause__.__cause__, ConnectionResetError)
    assert "closed by the server: reset by peer" in str(errors[0])
    for each in unwritten:
        assert not (await outcome(each)).written
    assert owner.lost == [(session, errors[0].__cause__)]
    await session.wait_closed()


async def test_what_was_submitted_in_the_turn_of_the_loss_is_unwritten(open_session: Open):
    session, wire = open_session(Peer(GET=lambda *_: HANG))
    first = session.submit(("GET", "a"))
    second = session.submit(("GET", "b"))
    session.close()
    one, two = await outcome(first), await outcome(second)
    assert (one.written, two.written) == (True, False)
    assert wire.aborted, "nobody waits for what is in the buffers"


async def test_a_reply_that_nobody_asked_for_ends_the_session(open_session: Open, owner: Owner):
    session, wire = open_session(Peer())
    wire.deliver(b"-ERR max number of clients reached\r\n")
    await turns()
    assert session.closed
    assert "out of step" in str(owner.lost[0][1])
    assert "max number of clients" in str(owner.lost[0][1])


@pytest.mark.capability("resp3_pushes")
async def test_pushes_go_to_redis_py_and_to_nobody_else(open_session: Open):
    pushes: list[Any] = []
    peer = Peer(ECHO=lambda name, text: [b">2\r\n+invalidate\r\n:1\r\n", bulk(text)])
    session, _ = open_session(peer, on_push=pushes.append)
    assert await session.submit(("ECHO", "a")) == b"a"
    await turns()
    assert pushes == [[b"invalidate", 1]]


@pytest.mark.capability("resp3_pushes")
async def test_a_push_handler_that_raises_is_logged(open_session: Open, caplog):
    def fail(push: Any) -> None:
        raise KeyError("handler")

    session, wire = open_session(Peer(), on_push=fail)
    wire.deliver(b">1\r\n+x\r\n")
    await turns()
    assert await session.submit(("PING",)) == b"PONG"
    assert "push notification handler" in caplog.text


@pytest.mark.capability("resp3_pushes")
async def test_what_the_handshake_left_unread_is_read(open_session: Open, owner: Owner):
    pushes: list[Any] = []
    session, _ = open_session(Peer(), unread=b">1\r\n+hello\r\n", on_push=pushes.append)
    await turns()
    assert pushes == [[b"hello"]]
    assert await session.submit(("PING",)) == b"PONG"


async def test_a_handshake_that_saw_the_end_makes_a_closed_session(
    open_session: Open, owner: Owner
):
    session, _ = open_session(Peer(), eof=True)
    assert session.closed
    assert "after the handshake" in str(session.cause)
    with pytest.raises(ConnectionLostError) as caught:
        session.submit(("PING",))
    assert not caught.value.written
    with pytest.raises(ConnectionLostError):
        session.authenticate(TOKEN)
    assert session.in_flight == 0


async def test_the_server_may_cut_between_two_replies(open_session: Open):
    session, _ = open_session(Peer(GET=[bulk("a"), CUT]))
    one, two = session.submit(("GET", "a")), session.submit(("GET", "b"))
    assert await one == b"a"
    error = await outcome(two)
    assert error.written
    assert not session.eof_received(), "the transport is to close by itself"


# ------------------------------------------------------------------------------------ our end


async def test_draining_ends_with_the_last_reply(open_session: Open, owner: Owner):
    peer = Peer(GET=[[3.0, bulk("a")], [3.0, bulk("b")]])
    session, wire = open_session(peer, socket_timeout=None)
    futures = [session.submit(("GET", key)) for key in "ab"]
    session.drain()
    assert await asyncio.gather(*futures) == [b"a", b"b"]
    assert session.closed
    assert owner.lost == [(session, None)]
    assert not wire.aborted
    assert session.ledger.state is ConnectionState.CLOSED


async def test_draining_an_idle_session_ends_it_at_once(open_session: Open, owner: Owner):
    session, _ = open_session(Peer())
    session.drain()
    assert session.closed
    session.drain()
    await session.wait_closed()
    assert len(owner.lost) == 1


async def test_draining_ends_when_the_last_command_is_withdrawn(open_session: Open, owner: Owner):
    session, wire = open_session(Peer())
    await asyncio.gather(*[session.submit(("PING",)) for _ in range(FEW + 2)])
    future = session.submit(("GET", "k"))  # waits for the end of this turn
    session.drain()
    assert not session.closed
    future.cancel()
    session.withdraw(future)
    assert session.closed
    assert pack("GET", "k") not in wire.sent


async def test_closing_twice_cuts_off_a_socket_that_lingers(open_session: Open):
    """As TLS does, waiting for the other side's goodbye."""
    session, wire = open_session(Peer())
    wire.lingers = True
    session.close()
    assert wire.closing
    assert not wire.aborted
    session.close()
    assert wire.aborted
    await asyncio.wait_for(session.wait_closed(), 1)


async def test_cancelling_wait_closed_leaves_the_session_to_close(open_session: Open):
    session, wire = open_session(Peer())
    wire.lingers = True
    session.close()
    waiting = asyncio.ensure_future(session.wait_closed())
    await turns()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    wire.end()
    await asyncio.wait_for(session.wait_closed(), 1)


async def test_on_lost_is_called_once_however_it_ends(open_session: Open, owner: Owner):
    session, wire = open_session(Peer())
    wire.deliver(b"+unasked\r\n")
    wire.end(ConnectionResetError())
    session.drain()
    session.close()
    await session.wait_closed()
    assert len(owner.lost) == 1


async def test_another_loop_is_refused(open_session: Open):
    session, wire = open_session(Peer())

    async def elsewhere() -> None:
        session.submit(("PING",))

    with pytest.raises(WrongLoopError, match="one per loop"):
        await asyncio.to_thread(asyncio.run, elsewhere())
    assert session.in_flight == 0
    assert wire.writes == []
