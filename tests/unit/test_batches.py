"""Several commands as one on a session: one write, one waiter, never a part. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from support.resp import pack
from support.scripted_peer import CUT, HANG, OK, Peer, Wire, bulk, dialed_over
from support.token_fakes import EPOCH

from aioentra_redis._multiplex._session import FEW, HIGH_WATER, JOIN_LIMIT, Session
from aioentra_redis._token import Token
from aioentra_redis.errors import CommandTimeoutError, ConnectionLostError, WrongLoopError

pytestmark = pytest.mark.looptime

TOKEN = Token("s3cret", username="user-1", expires_on=EPOCH + 3600, first_seen=EPOCH)

Open = Callable[..., tuple[Session, Wire]]


@pytest.fixture
async def open_session():
    """Make sessions over a script, or over a bare wire for which the test speaks."""
    opened: list[Session] = []

    def make(peer: Peer | None = None, **options: Any) -> tuple[Session, Wire]:
        wire = Wire(peer)
        session = Session(dialed_over(wire, **options), lambda session, cause: None)
        opened.append(session)
        return session, wire

    yield make
    for session in opened:
        session.close()
        await session.wait_closed()


def echoes(*texts: str) -> list[bytes]:
    return [pack("ECHO", text) for text in texts]


async def outcome(future: asyncio.Future[Any]) -> Any:
    """What became of the future, as a value."""
    try:
        return await future
    except Exception as exc:
        return exc


async def crowd(session: Session) -> None:
    """Have so many callers that the next turn of the loop is waited for before a write."""
    await asyncio.gather(*[session.submit(("PING",)) for _ in range(FEW + 2)])


# --------------------------------------------------------------------------------- one write


async def test_alone_it_is_written_at_once_and_as_one_piece(open_session: Open):
    session, wire = open_session(Peer())
    batch = session.submit_batch(echoes("a", "b", "c"))
    assert wire.writes == [b"".join(echoes("a", "b", "c"))]
    assert session.in_flight == 3
    assert await batch == [b"a", b"b", b"c"]
    assert session.in_flight == 0


async def test_neighbours_of_the_same_turn_stand_before_and_behind_it(open_session: Open):
    session, wire = open_session(Peer())
    await crowd(session)
    written = len(wire.writes)
    before = session.submit(("ECHO", "before"))
    batch = session.submit_batch(echoes("a", "b"))
    other = session.submit_batch(echoes("c"))
    behind = session.submit(("ECHO", "behind"))
    assert await asyncio.gather(before, batch, other, behind) == [
        b"before",
        [b"a", b"b"],
        [b"c"],
        b"behind",
    ]
    assert wire.writes[written:] == [b"".join(echoes("before", "a", "b", "c", "behind"))]


async def test_a_batch_counts_as_one_caller(open_session: Open):
    """A long pipeline is no crowd: the next command need not wait for others of its turn."""
    session, wire = open_session(Peer())
    await session.submit_batch(echoes(*map(str, range(10 * FEW))))
    written = len(wire.writes)
    ping = session.submit(("PING",))
    assert len(wire.writes) == written + 1
    await ping
    for _ in range(2):
        await asyncio.gather(*[session.submit_batch(echoes("x", "y")) for _ in range(FEW + 2)])
    written = len(wire.writes)
    ping = session.submit(("PING",))
    assert len(wire.writes) == written, "many callers are a crowd"
    await ping


async def test_large_arguments_are_passed_on_as_they_are(open_session: Open):
    large = b"y" * JOIN_LIMIT
    session, wire = open_session(Peer())
    writes: list[Any] = []
    original = wire.write

    def write(data: Any) -> None:
        writes.append(data)
        original(data)

    wire.write = write  # type: ignore[method-assign]
    chunks = [b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % len(large), large, b"\r\n"]
    assert await session.submit_batch([pack("PING"), chunks, pack("PING")]) == [
        b"PONG",
        large,
        b"PONG",
    ]
    assert [len(each) for each in writes] == [14 + len(chunks[0]), JOIN_LIMIT, 2 + 14]
    assert writes[1] is large


async def test_its_bytes_count_at_the_gate(open_session: Open):
    session, _ = open_session(Peer())
    await crowd(session)
    half = pack("ECHO", b"x" * (HIGH_WATER // 2))
    gone = session.submit_batch([half, half, half])
    assert session.congested
    assert session._pending_bytes == 3 * len(half)
    waiting = asyncio.ensure_future(session.admission())
    await asyncio.sleep(0)
    gone.cancel()
    session.withdraw(gone)
    assert session._pending_bytes == 0
    await asyncio.wait_for(waiting, 1)
    session.admitted()
    assert not session.congested


# ----------------------------------------------------------------------------------- replies


@pytest.mark.parametrize("cut_at", range(1, 60))
async def test_replies_cut_at_any_byte_reach_their_owners(open_session: Open, cut_at: int):
    session, wire = open_session(encoding="utf-8")
    before = session.submit(("GET", "1"))
    batch = session.submit_batch([pack("GET", n) for n in "234"], raw=[1])
    behind = session.submit(("GET", "5"))
    await asyncio.sleep(0)
    snowman = "\N{SNOWMAN}".encode()
    stream = b"+one\r\n" + bulk(snowman) + bulk(snowman) + b"-ERR \xe2\x98\x83\r\n+five\r\n"
    assert len(stream) < 60
    wire.deliver(stream[:cut_at])
    await asyncio.sleep(0.01)
    wire.deliver(stream[cut_at:])
    decoded, raw, error = await batch
    assert (decoded, raw) == ("\N{SNOWMAN}", snowman)
    assert isinstance(error, redis_exceptions.ResponseError)
    assert (await before, await behind) == ("one", "five")


@pytest.mark.capability("resp3_pushes")
async def test_pushes_between_its_replies_are_nobody_elses(open_session: Open):
    pushes: list[Any] = []
    session, wire = open_session(on_push=pushes.append)
    batch = session.submit_batch(echoes("a", "b"))
    wire.deliver(b"+a\r\n>2\r\n+invalidate\r\n:7\r\n+b\r\n")
    assert await batch == [b"a", b"b"]
    await asyncio.sleep(0)
    assert pushes == [[b"invalidate", 7]]


async def test_a_reply_too_many_ends_the_session(open_session: Open):
    session, wire = open_session()
    batch = session.submit_batch(echoes("a", "b"))
    wire.deliver(b"+a\r\n+b\r\n+c\r\n")
    assert await batch == [b"a", b"b"]
    assert session.closed


# ------------------------------------------------------------------------------ cancellation


async def test_cancelled_before_the_write_it_is_never_sent(open_session: Open):
    session, wire = open_session(Peer(), encoding="utf-8")
    await crowd(session)
    before = session.submit(("ECHO", "1"), raw=True)
    gone = session.submit_batch(echoes("2", "3", "4"), raw=[0, 2])
    behind = session.submit_batch(echoes("5", "6"), raw=[1])
    gone.cancel()
    session.withdraw(gone)
    assert (session.in_flight, session._surplus) == (3, 1)
    assert await before == b"1"
    assert await behind == ["5", b"6"]
    assert not any(each in wire.sent for each in echoes("2", "3", "4"))


async def test_cancelled_after_the_write_it_runs_and_its_replies_are_dropped(open_session: Open):
    peer = Peer()
    session, _ = open_session(peer)
    gone = session.submit_batch([pack("INCR", "n")] * 3)
    gone.cancel()
    session.withdraw(gone)
    assert session.in_flight == 3
    assert await session.submit(("GET", "n")) == b"3"
    assert session.in_flight == 0


async def test_cancelled_between_two_of_its_replies(open_session: Open):
    peer = Peer(GET=lambda name, key: [1.0, bulk(key)])
    session, _ = open_session(peer)
    gone = session.submit_batch([pack("GET", key) for key in "abc"])
    behind = session.submit(("GET", "d"))
    await asyncio.sleep(1.5)
    gone.cancel()
    session.withdraw(gone)
    assert await behind == b"d"


async def test_draining_ends_when_it_is_withdrawn(open_session: Open):
    session, _ = open_session(Peer())
    await crowd(session)
    batch = session.submit_batch(echoes("a", "b"))
    session.drain()
    assert not session.closed
    batch.cancel()
    session.withdraw(batch)
    assert session.closed


async def test_draining_waits_for_all_of_its_replies(open_session: Open):
    session, wire = open_session()
    batch = session.submit_batch(echoes("a", "b"))
    session.drain()
    wire.deliver(b"+a\r\n")
    await asyncio.sleep(0.01)
    assert not session.closed
    wire.deliver(b"+b\r\n")
    assert await batch == [b"a", b"b"]
    assert session.closed


# -------------------------------------------------------------------------------------- loss


async def test_lost_before_the_write_it_was_not_written(open_session: Open):
    session, wire = open_session(Peer())
    await crowd(session)
    batch = session.submit_batch(echoes("a", "b"))
    session.close()
    error = await outcome(batch)
    assert isinstance(error, ConnectionLostError)
    assert not error.written
    assert pack("ECHO", "a") not in wire.sent
    with pytest.raises(ConnectionLostError):
        session.submit_batch(echoes("c"))


@pytest.mark.parametrize("answered", [0, 1, 2])
async def test_lost_after_the_write_it_fails_as_a_whole(open_session: Open, answered: int):
    peer = Peer(GET=[*[[bulk("x")]] * answered, [CUT]])
    session, _ = open_session(peer)
    await crowd(session)
    batch = session.submit_batch([pack("GET", key) for key in "abc"])
    behind = session.submit_batch([pack("GET", key) for key in "de"])
    first, second = await outcome(batch), await outcome(behind)
    for error in (first, second):
        assert isinstance(error, ConnectionLostError)
        assert error.written
    assert first is not second
    assert first.__cause__ is second.__cause__


async def test_lost_at_its_last_reply_it_is_complete(open_session: Open):
    peer = Peer(GET=[[bulk("x")], [bulk("y"), CUT]])
    session, _ = open_session(peer)
    assert await session.submit_batch([pack("GET", "a"), pack("GET", "b")]) == [b"x", b"y"]


# -------------------------------------------------------------------------------------- time


async def test_late_it_fails_once_and_its_places_stay(open_session: Open, caplog):
    peer = Peer(GET=lambda name, key: [3.0, bulk(key)])
    session, _ = open_session(peer, socket_timeout=5.0)
    batch = session.submit_batch([pack("GET", key) for key in "abcd"])
    error = await outcome(batch)
    assert isinstance(error, CommandTimeoutError)
    assert "1 command(s)" in caplog.text
    assert session.in_flight == 3
    behind = session.submit_batch(echoes("e", "f"))
    error = await outcome(behind)
    assert isinstance(error, CommandTimeoutError), "the server was busy with the rest"
    assert await session.submit(("ECHO", "g")) == b"g"
    assert session.in_flight == 0
    assert not session.closed


async def test_behind_an_auth_its_time_does_not_count(open_session: Open):
    peer = Peer(AUTH=[[10.0, OK]])
    session, _ = open_session(peer, socket_timeout=2.0)
    auth = session.authenticate(TOKEN)
    batch = session.submit_batch(echoes("a", "b"))
    assert await auth == b"OK"
    assert await batch == [b"a", b"b"]
    assert asyncio.get_running_loop().time() == pytest.approx(10, abs=0.01)


async def test_before_an_auth_it_may_be_late_however_many_places_it_has(open_session: Open):
    peer = Peer(ECHO=[[HANG]])
    session, _ = open_session(peer, socket_timeout=2.0)
    batch = session.submit_batch(echoes("a", "b", "c"))
    auth = session.authenticate(TOKEN)
    behind = session.submit_batch(echoes("d", "e"))
    assert isinstance(await outcome(batch), CommandTimeoutError)
    assert not behind.done()
    await asyncio.sleep(3)
    assert not behind.done(), "what stands behind the AUTH waits for it"
    session.close()
    await outcome(auth)
    assert isinstance(await outcome(behind), ConnectionLostError)


async def test_between_two_auths_every_reply_goes_home(open_session: Open):
    session, wire = open_session(Peer())
    await crowd(session)
    written = len(wire.sent)
    before = session.submit_batch(echoes("1", "2"))
    first = session.authenticate(TOKEN)
    between = session.submit_batch(echoes("3", "4"))
    second = session.authenticate(TOKEN)
    behind = session.submit_batch(echoes("5"))
    assert await asyncio.gather(before, first, between, second, behind) == [
        [b"1", b"2"],
        b"OK",
        [b"3", b"4"],
        b"OK",
        [b"5"],
    ]
    auth = pack("AUTH", "user-1", "s3cret")
    sent = wire.sent[written:]
    assert sent == b"".join([*echoes("1", "2"), auth, *echoes("3", "4"), auth, *echoes("5")])


async def test_a_batch_withdrawn_beside_an_auth_does_not_shift_its_position(open_session: Open):
    peer = Peer(AUTH=[[10.0, OK]])
    session, _ = open_session(peer, socket_timeout=2.0)
    await crowd(session)
    gone = session.submit_batch(echoes("x", "y", "z"))
    gone.cancel()
    session.withdraw(gone)
    auth = session.authenticate(TOKEN)
    behind = session.submit_batch(echoes("a", "b"))
    assert await auth == b"OK"
    assert await behind == [b"a", b"b"]


async def test_another_loop_is_refused(open_session: Open):
    session, wire = open_session(Peer())

    async def elsewhere() -> None:
        session.submit_batch(echoes("a"))

    with pytest.raises(WrongLoopError, match="one per loop"):
        await asyncio.to_thread(asyncio.run, elsewhere())
    assert session.in_flight == 0
    assert wire.writes == []
