"""One session on a transport whose other end is a script, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
import pytest
from redis import exceptions as redis_exceptions
from support.resp import pack
from support.scripted_peer import HANG, Peer, Wire, dialed_over
from support.sessions import TOKEN, Open, Owner, outcome, turns

from aioentra_redis._multiplex._session import FEW, HIGH_WATER, JOIN_LIMIT, Session
from aioentra_redis._redis_py import packer
from aioentra_redis.errors import ConnectionLostError

pytestmark = pytest.mark.looptime

MEGABYTE = b"x" * HIGH_WATER


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


# ------------------------------------------------------------------------------------ writing


async def test_one_write_per_turn_of_the_loop(open_session: Open):
    session, wire = open_session(Peer())
    first = session.submit(("ECHO", "a"))
    assert wire.sent == pack("ECHO", "a"), "the first one of few is written at once"
    futures = [session.submit(("ECHO", str(n))) for n in range(50)]
    assert len(wire.writes) == 1
    assert await asyncio.gather(first, *futures) == [b"a", *(str(n).encode() for n in range(50))]
    assert wire.writes[1:] == [b"".join(pack("ECHO", str(n)) for n in range(50))]


async def test_after_a_crowd_the_next_turn_is_waited_for_and_after_a_few_not(open_session: Open):
    session, wire = open_session(Peer())
    await asyncio.gather(*[session.submit(("PING",)) for _ in range(1 + FEW + 1)])
    written = len(wire.writes)
    pings = [session.submit(("PING",)) for _ in range(FEW)]
    assert len(wire.writes) == written, "there may be more to come in this turn"
    await asyncio.gather(*pings)
    ping = session.submit(("PING",))
    assert len(wire.writes) == written + 2
    await ping


async def test_large_arguments_are_passed_on_as_they_are(open_session: Open):
    large, chunk = b"y" * JOIN_LIMIT, b"z" * (JOIN_LIMIT // 8 + 1)

    def in_chunks(args: tuple[Any, ...]) -> Any:
        if args[0] == "PING":
            return pack("PING")
        return [b"*2\r\n$3\r\nfoo\r\n$%d\r\n" % len(args[1]), args[1], b"\r\n"]

    writes: list[Any] = []
    session, wire = open_session(pack=in_chunks)
    wire.write = writes.append  # type: ignore[method-assign,assignment]
    futures = [session.submit(words) for words in (("PING",), ("foo", large), ("foo", chunk))]
    await turns()
    assert [len(each) for each in writes[1:]] == [22, JOIN_LIMIT, 23, len(chunk), 2]
    assert writes[2] is large
    assert writes[4] is chunk
    joined = b"".join(writes)
    assert joined == pack("PING") + pack("foo", large) + pack("foo", chunk)
    session.close()
    for future in futures:
        assert isinstance(await outcome(future), ConnectionLostError)


async def test_a_command_that_cannot_be_packed_leaves_nothing_behind(open_session: Open):
    def refuse(args: tuple[Any, ...]) -> bytes:
        if args[0] == "BAD":
            raise redis_exceptions.DataError("no")
        return hiredis.pack_command(args)

    session, wire = open_session(Peer(), pack=refuse)
    with pytest.raises(redis_exceptions.DataError):
        session.submit(("BAD",))
    assert session.in_flight == 0
    assert wire.writes == []
    assert await session.submit(("ECHO", "x")) == b"x"


async def test_a_write_that_fails_ends_the_session(open_session: Open, owner: Owner):
    """uvloop's transports raise where asyncio's say nothing."""
    session, wire = open_session(Peer())
    wire.refuses = RuntimeError("the handler is closed")
    future = session.submit(("INCR", "n"))
    error = await outcome(future)
    assert isinstance(error, ConnectionLostError)
    assert error.written, "it can't be known"
    assert "writing to peer failed: the handler is closed" in str(error)
    assert owner.lost == [(session, error.__cause__)]
    with pytest.raises(ConnectionLostError):
        session.submit(("GET", "n"))


@pytest.mark.parametrize(
    "odd",
    [memoryview(b"abcdef")[::2], memoryview(b"abcdefgh").cast("I"), memoryview(b"ab").cast("B")],
)
def test_odd_memoryviews_are_announced_by_their_bytes(odd: memoryview):
    import redis.asyncio.connection as redis_py

    packed = packer(redis_py.Connection())(("SET", "k", odd))
    assert b"".join(packed) == pack("SET", "k", bytes(odd))


# ------------------------------------------------------------------------------- cancellation


async def test_a_cancelled_command_that_was_written_keeps_its_place(open_session: Open):
    session, _ = open_session(Peer())
    one, two = session.submit(("ECHO", "1")), session.submit(("ECHO", "2"))
    one.cancel()
    session.withdraw(one)
    assert await two == b"2"
    assert session.in_flight == 0


@pytest.mark.parametrize("raw", [False, True])
async def test_a_cancelled_command_that_was_not_written_is_never_sent(
    open_session: Open, raw: bool
):
    session, wire = open_session(Peer())
    futures = [session.submit(("ECHO", str(n)), raw) for n in range(4)]
    futures[2].cancel()
    session.withdraw(futures[2])
    assert await asyncio.gather(futures[0], futures[1], futures[3]) == [b"0", b"1", b"3"]
    assert pack("ECHO", "2") not in wire.sent


async def test_withdrawn_bytes_no_longer_count(open_session: Open):
    """Where nothing is left to write, the flush must open the gate all the same."""
    session, wire = open_session(Peer(), pack=lambda args: [pack(*args), b""])
    await session.submit(("PING",))
    big = [session.submit(("PING",)), session.submit(("ECHO", MEGABYTE))][1]
    assert session.congested
    waiting = asyncio.ensure_future(admitted(session, ("ECHO", "a")))
    big.cancel()
    session.withdraw(big)
    assert await asyncio.wait_for(waiting, 1) == b"a"
    assert not session.congested
    assert len(wire.sent) < 1000


# ---------------------------------------------------------------------------------- admission


async def admitted(session: Session, words: tuple[Any, ...], order: list[str] | None = None) -> Any:
    await session.admission()
    try:
        future = session.submit(words)
        if order is not None:
            order.append(words[1])
    finally:
        session.admitted()
    return await future


async def test_the_gate_counts_bytes_and_keeps_the_order(open_session: Open):
    session, _wire = open_session(Peer())
    order: list[str] = []
    await session.submit(("PING",))
    session.submit(("PING",))
    session.submit(("ECHO", MEGABYTE))  # the gate closes behind it
    assert session.congested
    tasks = [asyncio.ensure_future(admitted(session, ("ECHO", str(n)), order)) for n in range(9)]
    assert order == []
    assert await asyncio.gather(*tasks) == [str(n).encode() for n in range(9)]
    assert order == [str(n) for n in range(9)]
    assert not session.congested


async def test_nobody_passes_while_the_transport_is_paused(open_session: Open):
    session, wire = open_session(Peer())
    session.pause_writing()
    tasks = [asyncio.ensure_future(admitted(session, ("ECHO", str(n)))) for n in range(3)]
    await asyncio.sleep(1)
    assert wire.writes == []
    auth = session.authenticate(TOKEN)
    assert await auth == b"OK", "AUTH passes the gate"
    assert wire.sent == pack("AUTH", "user-1", "s3cret")
    session.resume_writing()
    assert await asyncio.gather(*tasks) == [b"0", b"1", b"2"]
    assert not session.congested


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("moment", ["waiting", "let in", "cancelled first"])
async def test_a_cancelled_waiter_gives_its_place_to_the_next(
    open_session: Open, victim: int, moment: str
):
    session, _ = open_session(Peer())
    session.pause_writing()
    tasks = [asyncio.ensure_future(admitted(session, ("ECHO", str(n)))) for n in range(3)]
    await turns()
    if moment == "waiting":
        tasks[victim].cancel()
        await turns()
        session.resume_writing()
    elif moment == "let in":
        session.resume_writing()  # the first one's turn has come, but it has not run yet
        tasks[victim].cancel()
    else:
        tasks[victim].cancel()
        session.resume_writing()  # the gate meets a turn that is cancelled already
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    expected: list[Any] = [b"0", b"1", b"2"]
    assert isinstance(done.pop(victim), asyncio.CancelledError)
    expected.pop(victim)
    assert done == expected
    assert not session.congested


async def test_a_waiter_that_submits_nothing_lets_the_next_one_in(open_session: Open):
    session, _ = open_session(Peer())
    session.pause_writing()

    async def fail() -> None:
        await session.admission()
        try:
            raise KeyError("no command after all")
        finally:
            session.admitted()

    failing = asyncio.ensure_future(fail())
    following = asyncio.ensure_future(admitted(session, ("ECHO", "a")))
    await turns()
    session.resume_writing()
    assert await asyncio.wait_for(following, 1) == b"a"
    with pytest.raises(KeyError):
        await failing


@pytest.mark.parametrize("end", ["close", "drain", "cut"])
async def test_the_end_opens_the_gate(open_session: Open, end: str):
    session, wire = open_session(Peer(GET=lambda *_: HANG))
    if end == "drain":
        session.submit(("GET", "k"))
    session.pause_writing()
    waiting = [asyncio.ensure_future(session.admission()) for _ in range(3)]
    await turns()
    {"close": session.close, "drain": session.drain, "cut": wire.end}[end]()
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    assert not session.congested
    assert session.closed is (end != "drain")
    await session.admission()  # returns at once: submit() says what is the matter
