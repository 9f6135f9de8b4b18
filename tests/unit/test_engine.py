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
    """The model's idea of one command, alone or one of a batch, whose waiter they share."""

    def __init__(
        self, waiter: Waiter, packed: Any, raw: bool, number: int, batch: list[Command] | None
    ) -> None:
        self.waiter, self.packed, self.raw, self.number = waiter, packed, raw, number
        self.together = batch
        self.expected: Any = None  # (kind, value) of its reply
        self.clock: float | None = None  # when it was written, or its clock restarted
        self.ticket = 0
        self.write = 0

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
        command = self._command(Waiter(), raw, large, None)
        assert self.engine.position == self.positions + len(self.unwritten)
        submit = self.engine.submit_raw if raw else self.engine.submit
        submit(command.waiter, command.packed)
        self.unwritten.append(command)

    @rule(kinds=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=5))
    def submit_batch(self, kinds: list[tuple[bool, bool]]) -> None:
        waiter, together = Waiter(), list[Command]()
        together += [self._command(waiter, raw, large, together) for raw, large in kinds]
        assert self.engine.position == self.positions + len(self.unwritten)
        raws = [index for index, (raw, _) in enumerate(kinds) if raw]
        self.engine.submit_batch(waiter, [each.packed for each in together], raws)
        self.unwritten += together

    def _command(
        self, waiter: Waiter, raw: bool, large: bool, together: list[Command] | None
    ) -> Command:
        number = next(self.numbers)
        packed: Any = b"c%d" % number
        return Command(waiter, [packed, b"x" * 10] if large else packed, raw, number, together)

    @precondition(lambda self: self.unwritten or self.written)
    @rule(data=st.data())
    def cancel_and_withdraw(self, data: Any) -> None:
        command = data.draw(st.sampled_from(self.unwritten + self.written))
        if not command.waiter.done():
            command.waiter.outcome = ("cancelled",)
        packed = self.engine.withdraw(command.waiter)
        if command in self.unwritten:
            together = command.together or [command]
            assert packed == [each.packed for each in together]
            self.unwritten = [each for each in self.unwritten if each not in together]
        else:
            assert packed == []

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
        write = next(self.numbers)
        for command in self.unwritten:
            command.clock, command.ticket, command.write = self.now, self.positions, write
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
        open_before = {each.waiter for each in overdue if not each.waiter.done()}
        count = self.engine.expire(before, ahead_of=ahead_of, make_error=late)
        assert count == len(open_before)
        for waiter in open_before:
            kind, error = waiter.outcome
            assert kind == "exception"
            assert isinstance(error, CommandTimeoutError)
        errors = [id(each.outcome[1]) for each in open_before]
        assert len(set(errors)) == len(errors), "one exception for two callers"

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def restart_clock(self, data: Any) -> None:
        """AUTH was answered: what was written with it or after it starts anew."""
        position = data.draw(st.sampled_from([each.ticket for each in self.written]))
        auth = next(each for each in self.written if each.ticket == position)
        self.engine.restart_clock_behind(position, self.now)
        for command in self.written:
            # The clock is kept per write, so what stood in the same write as AUTH goes with it.
            if command.write >= auth.write:
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
        assert self.engine._raw == sum(each.raw for each in self.written + self.unwritten)

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
            command.expected = value
            if before[command.number] is not None:
                assert command.waiter.outcome is before[command.number], "a late reply was used"
            elif command.together is None:
                self._check(command, command.waiter.outcome)
            elif command is command.together[-1]:
                kind, got = command.waiter.outcome
                assert kind == "result"
                for each, reply in zip(command.together, got, strict=True):
                    is_error = isinstance(reply, Exception)
                    self._check(each, ("exception" if is_error else "result", reply))
        assert len(self.pushes) == self.expected_pushes
        for command in self.written:
            assert command.waiter.outcome is before[command.number], "a reply that is not its own"

    def _check(self, command: Command, outcome: Any) -> None:
        kind, got = outcome
        assert kind == command.expected[0]
        if kind == "result":
            assert got == command.expected[1]
        else:
            assert isinstance(got, command.expected[1])

    @rule()
    def lose(self) -> None:
        open_before = {
            each.waiter: each in self.written
            for each in self.written + self.unwritten
            if not each.waiter.done()
        }
        self.engine.connection_lost(lost)
        errors = []
        for waiter, was_written in open_before.items():
            kind, error = waiter.outcome
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


# ------------------------------------------------------------------------------------- batches


def test_a_batch_is_one_list_of_replies_with_errors_as_values():
    engine, waiter, behind = engine_of(), Waiter(), Waiter()
    engine.submit_batch(waiter, [b"a", [b"b", b"c"], b"d"])
    engine.submit(behind, b"e")
    assert engine.in_flight == engine.unwritten == engine.position == 4
    assert engine.data_to_send(0) == [b"a", [b"b", b"c"], b"d", b"e"]
    engine.receive(b"+1\r\n-ERR two\r\n+3\r")
    assert not waiter.done()
    engine.receive(b"\n+behind\r\n")
    kind, (one, two, three) = waiter.outcome
    assert (kind, one, str(two), three) == ("result", b"1", "ERR two", b"3")
    assert isinstance(two, hiredis.ReplyError)
    assert behind.outcome == ("result", b"behind")


def test_replies_of_a_batch_are_raw_one_by_one():
    snowman = b"$3\r\n\xe2\x98\x83\r\n"
    engine, waiter, behind = engine_of(encoding="utf-8"), Waiter(), Waiter()
    engine.submit_batch(waiter, [b"a", b"b", b"c"], raw=[1])
    engine.submit(behind, b"d")
    engine.data_to_send(0)
    for byte in snowman * 4:  # the decode flag acts in the middle of a reply, too
        engine.receive(bytes([byte]))
    assert waiter.outcome == ("result", ["\N{SNOWMAN}", b"\xe2\x98\x83", "\N{SNOWMAN}"])
    assert behind.outcome == ("result", "\N{SNOWMAN}")


def test_a_reply_in_a_batch_that_cannot_be_decoded_is_a_value_like_an_error():
    engine, waiter = engine_of(encoding="utf-8"), Waiter()
    engine.submit_batch(waiter, [b"a", b"b"])
    engine.data_to_send(0)
    engine.receive(b"$2\r\n\xff\xfe\r\n+ok\r\n")
    garbled, fine = waiter.outcome[1]
    assert isinstance(garbled, UnicodeDecodeError)
    assert fine == "ok"


def test_a_batch_that_failed_half_way_drops_the_rest_of_its_replies():
    engine, waiter, behind = engine_of(), Waiter(), Waiter()
    engine.submit_batch(waiter, [b"a", b"b", b"c"])
    engine.data_to_send(0)
    engine.receive(b"+1\r\n")
    assert engine.expire(1, ahead_of=None, make_error=late) == 1, "one caller, one error"
    failure = waiter.outcome
    assert isinstance(failure[1], CommandTimeoutError)
    engine.submit(behind, b"d")
    engine.data_to_send(2)
    engine.receive(b"+2\r\n-ERR 3\r\n+4\r\n")
    assert waiter.outcome is failure
    assert behind.outcome == ("result", b"4")


@pytest.mark.parametrize("raw", [[], [0], [1, 2], [0, 1, 2]])
def test_a_batch_is_taken_back_as_a_whole_and_nothing_else(raw: list[int]):
    engine = engine_of(encoding="utf-8")
    before, gone, after = Waiter(), Waiter(), Waiter()
    engine.submit_raw(before, b"a")
    engine.submit_batch(gone, [b"b", [b"c", b"d"], b"e"], raw)
    engine.submit_batch(after, [b"f", b"g"], [1])
    assert engine.withdraw(gone) == [b"b", [b"c", b"d"], b"e"]
    assert engine.withdraw(gone) == []
    assert engine.data_to_send(0) == [b"a", b"f", b"g"]
    engine.receive(b"$1\r\n\xff\r\n+f\r\n$1\r\n\xff\r\n")
    assert before.outcome == ("result", b"\xff")
    assert after.outcome == ("result", ["f", b"\xff"])
    assert engine.withdraw(after) == []
