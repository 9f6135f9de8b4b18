"""The engine against a simple model of a server that answers in the order of the requests."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import hiredis
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioentra_redis._multiplex._engine import Engine, ProtocolViolation
from aioentra_redis.errors import CommandTimeoutError, ConnectionLostError

NOT_ENOUGH = object()


class Waiter:
    """What a command became: nothing yet, gone, a result or an exception."""

    def __init__(self) -> None:
        self.outcome: Any = None

    def done(self) -> bool:
        return self.outcome is not None

    def set_result(self, result: Any) -> None:
        assert not self.done(), "a second outcome"
        self.outcome = ("result", result)

    def set_exception(self, exception: Exception) -> None:
        assert not self.done(), "a second outcome"
        self.outcome = ("exception", exception)


def engine_of(pushes: list[Any] | None = None, **reader: Any) -> Engine:
    return Engine(
        hiredis.Reader(notEnoughData=NOT_ENOUGH, **reader),
        not_enough=NOT_ENOUGH,
        push_type=hiredis.PushNotification,
        on_push=(pushes if pushes is not None else []).append,
    )


def lost(written: bool) -> ConnectionLostError:
    error = ConnectionLostError("lost")
    error.written = written
    return error


def late() -> CommandTimeoutError:
    return CommandTimeoutError("late")


class Command:
    """The model's idea of one command."""

    def __init__(self, waiter: Waiter, packed: Any, raw: bool, number: int) -> None:
        self.waiter, self.packed, self.raw, self.number = waiter, packed, raw, number
        self.clock: float | None = None  # when it was written, or its clock restarted
        self.ticket = 0
        self.batch = 0

    @property
    def text(self) -> str:
        return f"reply-{self.number}-\N{SNOWMAN}"


class Machine(RuleBasedStateMachine):
    """Rules are what callers, clocks and servers do; the model is two lists."""

    @initialize(decode=st.booleans())
    def start(self, decode: bool) -> None:
        self.pushes: list[Any] = []
        self.decode = decode
        self.engine = engine_of(self.pushes, **({"encoding": "utf-8"} if decode else {}))
        self.unwritten: list[Command] = []
        self.written: list[Command] = []  # and owed a reply, fully or in part
        self.stream = b""  # bytes of replies on their way
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.expected_pushes = 0
        self.positions = 0
        self.on_the_way: list[tuple[int, Command | None, Any]] = []  # (end offset, whose, value)
        self.sent_total = self.read_total = 0
        self.answered_by_server = 0  # how many of `written` have their replies in `stream`

    # -- callers

    @rule(raw=st.booleans(), large=st.booleans())
    def submit(self, raw: bool, large: bool) -> None:
        number = next(self.numbers)
        packed: Any = b"c%d" % number
        if large:
            packed = [packed, b"x" * 10]
        command = Command(Waiter(), packed, raw, number)
        assert self.engine.position == self.positions + len(self.unwritten)
        (self.engine.submit_raw if raw else self.engine.submit)(command.waiter, packed)
        self.unwritten.append(command)

    @precondition(lambda self: self.unwritten or self.written)
    @rule(data=st.data())
    def cancel_and_withdraw(self, data: Any) -> None:
        command = data.draw(st.sampled_from(self.unwritten + self.written))
        if not command.waiter.done():
            command.waiter.outcome = ("cancelled",)
        packed = self.engine.withdraw(command.waiter)
        if command in self.unwritten:
            assert packed == command.packed
            self.unwritten.remove(command)
        else:
            assert packed is None

    @precondition(lambda self: self.unwritten or self.written)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        command = data.draw(st.sampled_from(self.unwritten + self.written))
        if not command.waiter.done():
            command.waiter.outcome = ("cancelled",)

    # -- time

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def write(self) -> None:
        assert self.engine.data_to_send(self.now) == [each.packed for each in self.unwritten]
        batch = next(self.numbers)
        for command in self.unwritten:
            command.clock, command.ticket, command.batch = self.now, self.positions, batch
            self.positions += 1
        self.written += self.unwritten
        self.unwritten = []

    @rule(patience=st.sampled_from([0.0, 1.0, 2.0]), data=st.data())
    def expire(self, patience: float, data: Any) -> None:
        tickets = [each.ticket for each in self.written]
        ahead_of = data.draw(st.sampled_from([None, *tickets]))
        before = self.now - patience
        overdue = [
            each
            for each in self.written
            if each.clock is not None
            and each.clock <= before
            and (ahead_of is None or each.ticket < ahead_of)
        ]
        open_before = [each for each in overdue if not each.waiter.done()]
        count = self.engine.expire(before, ahead_of=ahead_of, make_error=late)
        assert count == len(open_before)
        for command in open_before:
            kind, error = command.waiter.outcome
            assert kind == "exception"
            assert isinstance(error, CommandTimeoutError)
        errors = [id(each.waiter.outcome[1]) for each in open_before]
        assert len(set(errors)) == len(errors), "one exception for two callers"

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def restart_clock(self, data: Any) -> None:
        """AUTH was answered: what was written with it or after it starts anew."""
        position = data.draw(st.sampled_from([each.ticket for each in self.written]))
        auth = next(each for each in self.written if each.ticket == position)
        self.engine.restart_clock_behind(position, self.now)
        for command in self.written:
            # The clock is kept per batch, so what stood in the same write as AUTH goes with it.
            if command.batch >= auth.batch:
                command.clock = self.now

    @invariant()
    def oldest_is_right(self) -> None:
        if not hasattr(self, "engine"):
            return
        oldest = self.engine.oldest_written_at()
        expected = self.written[0].clock if self.written else None
        assert oldest == expected
        assert self.engine.in_flight == len(self.written) + len(self.unwritten)
        assert self.engine.unwritten == len(self.unwritten)

    # -- the server

    @precondition(lambda self: self.answered_by_server < len(self.written))
    @rule(kind=st.sampled_from(["text", "error", "integer", "list", "garbled"]))
    def answer(self, kind: str) -> None:
        command = self.written[self.answered_by_server]
        self.answered_by_server += 1
        plain = not self.decode or command.raw
        text: Any = command.text.encode() if plain else command.text
        encoded = command.text.encode()
        bulk = b"$%d\r\n%b\r\n" % (len(encoded), encoded)
        value: Any
        match kind:
            case "text":
                reply, value = bulk, ("result", text)
            case "error":
                reply = b"-ERR no %d\r\n" % command.number
                value = ("exception", hiredis.ReplyError)
            case "integer":
                reply, value = b":%d\r\n" % command.number, ("result", command.number)
            case "list":
                reply, value = b"*2\r\n" + bulk + b":1\r\n", ("result", [text, 1])
            case _:
                reply = b"$2\r\n\xff\xfe\r\n"
                value = ("result", b"\xff\xfe") if plain else ("exception", UnicodeDecodeError)
        self._send(reply, command, value)

    @rule()
    def push(self) -> None:
        self._send(b">2\r\n+invalidate\r\n:7\r\n", None, None)

    def _send(self, reply: bytes, command: Command | None, value: Any) -> None:
        self.stream += reply
        self.sent_total += len(reply)
        self.on_the_way.append((self.sent_total, command, value))

    @precondition(lambda self: self.stream)
    @rule(data=st.data())
    def some_bytes_arrive(self, data: Any) -> None:
        size = data.draw(st.integers(1, len(self.stream)))
        piece, self.stream = self.stream[:size], self.stream[size:]
        before = {each.number: each.waiter.outcome for each in self.written}
        self.engine.receive(piece)
        self.read_total += size
        while self.on_the_way and self.on_the_way[0][0] <= self.read_total:
            _, command, value = self.on_the_way.pop(0)
            if command is None:
                self.expected_pushes += 1
                continue
            assert self.written.pop(0) is command
            self.answered_by_server -= 1
            if before[command.number] is not None:
                assert command.waiter.outcome is before[command.number], "a late reply was used"
                continue
            kind, got = command.waiter.outcome
            assert kind == value[0]
            if kind == "result":
                assert got == value[1]
            else:
                assert isinstance(got, value[1])
        assert len(self.pushes) == self.expected_pushes
        for command in self.written:
            assert command.waiter.outcome is before[command.number], "a reply that is not its own"

    @rule()
    def lose(self) -> None:
        open_before = [
            (each, each in self.written)
            for each in self.written + self.unwritten
            if not each.waiter.done()
        ]
        self.engine.connection_lost(lost)
        errors = []
        for command, was_written in open_before:
            kind, error = command.waiter.outcome
            assert kind == "exception"
            assert isinstance(error, ConnectionLostError)
            assert error.written is was_written
            errors.append(id(error))
        assert len(set(errors)) == len(errors), "one exception for two callers"
        assert self.engine.data_to_send(self.now) == []
        self.start(self.decode)


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestEngine = Machine.TestCase


# ------------------------------------------------------------------------- what a peer can't do


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b"+OK\r\n+nobody asked\r\n", "nobody asked"),
        (b"+OK\r\nHTTP/1.1 400 Bad Request\r\n", "unreadable"),
        (b"+OK\r\n$-5\r\n", "unreadable"),
    ],
)
def test_a_stream_out_of_step_ends_it_after_the_replies_before(stream: bytes, says: str):
    engine, waiter = engine_of(), Waiter()
    engine.submit(waiter, b"c")
    engine.data_to_send(0)
    with pytest.raises(ProtocolViolation, match=says):
        engine.receive(stream)
    assert waiter.outcome == ("result", b"OK")


def test_garbage_instead_of_a_reply_leaves_the_waiter_to_the_end_of_the_connection():
    engine, waiter = engine_of(), Waiter()
    engine.submit(waiter, b"c")
    engine.data_to_send(0)
    with pytest.raises(ProtocolViolation, match="unreadable"):
        engine.receive(b"\x16\x03\x01\r\n")
    assert not waiter.done()
    engine.connection_lost(lost)
    assert waiter.outcome[1].written


def test_a_reply_before_its_command_was_written_is_not_taken_for_its_answer():
    """The server can't answer what it has not seen: this is somebody else's reply."""
    engine, waiter = engine_of(), Waiter()
    engine.submit(waiter, b"c")
    with pytest.raises(ProtocolViolation):
        engine.receive(b"+for whom?\r\n")
    assert not waiter.done()
    engine.connection_lost(lost)
    assert not waiter.outcome[1].written


def test_a_push_before_resp3_knows_pushes_is_no_reply():
    engine = Engine(
        hiredis.Reader(notEnoughData=NOT_ENOUGH),
        not_enough=NOT_ENOUGH,
        push_type=None,
        on_push=lambda push: None,
    )
    with pytest.raises(ProtocolViolation, match="nobody"):
        engine.receive(b"*1\r\n+message\r\n")


def test_a_push_handler_that_submits_raw_commands_does_not_confuse_the_count():
    replies: list[Waiter] = []

    def on_push(push: Any) -> None:
        waiter = Waiter()
        engine.submit_raw(waiter, b"raw")
        engine.data_to_send(0)
        replies.append(waiter)

    engine = Engine(
        hiredis.Reader(notEnoughData=NOT_ENOUGH, encoding="utf-8"),
        not_enough=NOT_ENOUGH,
        push_type=hiredis.PushNotification,
        on_push=on_push,
    )
    engine.receive(b">1\r\n+a\r\n$2\r\n\xff\xfe\r\n")
    assert replies[0].outcome == ("result", b"\xff\xfe")


async def test_a_future_serves_as_a_waiter():
    engine, future = engine_of(), asyncio.get_running_loop().create_future()
    engine.submit(future, b"c")
    engine.data_to_send(0)
    engine.receive(b":4\r\n")
    assert await future == 4
