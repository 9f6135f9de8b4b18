"""The typed queue of a subscriber: to whom a reply belongs, whatever stands around it."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis._parsers import BaseParser
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from aioentra_redis._multiplex._engine import ProtocolViolation
from aioentra_redis._multiplex._subscriber import (
    ITEM_OVERHEAD,
    MARKER_PREFIX,
    Backlog,
    Subscriber,
    resubscription,
)
from aioentra_redis.errors import ConnectionLostError

NOPERM = b"-NOPERM No permissions to access a channel\r\n"


class Waiter:
    """Keeps what it is told."""

    outcome: Any = None

    def done(self) -> bool:
        return self.outcome is not None

    def set_result(self, result: Any) -> None:
        self.outcome = ("result", result)

    def set_exception(self, exception: Exception) -> None:
        self.outcome = ("error", exception)


class Stage:
    """A subscriber and a server's voice."""

    def __init__(self, protocol: int = 3, push_type: type | None = hiredis.PushNotification):
        self.protocol = protocol
        self.read: list[Any] = []
        self.markers: list[bytes] = []
        self.subscriber = Subscriber(
            hiredis.Reader(
                replyError=BaseParser.parse_error, notEnoughData=NOT_ENOUGH_DATA, encoding="utf-8"
            ),
            not_enough=NOT_ENOUGH_DATA,
            push_type=push_type,
            resp3=protocol == 3,
            deliver=self.read.append,
            on_marker=self.markers.append,
        )

    def sends(self, *words: Any, waits: bool = False) -> Waiter:
        waiter = Waiter()
        self.subscriber.expect(words, waiter if waits else None)
        return waiter

    def says(self, *parts: bytes | int | None) -> None:
        self.subscriber.receive(self.push(*parts))

    def push(self, *parts: bytes | int | None) -> bytes:
        encoded = b""
        for part in parts:
            if part is None:
                encoded += b"_\r\n" if self.protocol == 3 else b"$-1\r\n"
            elif isinstance(part, int):
                encoded += b":%d\r\n" % part
            else:
                encoded += b"$%d\r\n%b\r\n" % (len(part), part)
        return (b">" if self.protocol == 3 else b"*") + b"%d\r\n" % len(parts) + encoded


@pytest.fixture(params=[2, 3, "3, old hiredis"])
def stage(request):
    if isinstance(request.param, int):
        return Stage(request.param)
    stage = Stage(3, push_type=None)
    stage.protocol = 2  # that hiredis makes lists of pushes
    return stage


# -- whose reply it is -----------------------------------------------------------------------------


def test_a_subscription_owes_one_confirmation_for_each_name(stage):
    stage.sends("SUBSCRIBE", "a", "b")
    auth = stage.sends("AUTH", "me", "token", waits=True)
    stage.says(b"subscribe", b"a", 1)
    assert stage.subscriber.in_flight == 2
    stage.says(b"subscribe", b"b", 2)
    assert stage.subscriber.in_flight == 1
    stage.subscriber.receive(b"+OK\r\n")
    assert auth.outcome == ("result", b"OK")
    assert stage.read == [[b"subscribe", b"a", 1], [b"subscribe", b"b", 2]]
    assert stage.subscriber.subscriptions[b""] == {b"a", b"b"}


def test_the_refusal_of_a_subscription_is_not_the_answer_to_auth(stage):
    stage.sends("SUBSCRIBE", "forbidden", "a")
    auth = stage.sends("AUTH", "me", "token", waits=True)
    stage.subscriber.receive(NOPERM)
    assert auth.outcome is None
    assert [type(each) for each in stage.read] == [NoPermissionError]
    stage.subscriber.receive(b"+OK\r\n")
    assert auth.outcome == ("result", b"OK")
    assert stage.subscriber.subscriptions[b""] == set()


def test_a_refused_auth_is_not_the_answer_to_a_subscription(stage):
    auth = stage.sends("AUTH", "me", "token", waits=True)
    stage.sends("PSUBSCRIBE", "a*")
    stage.subscriber.receive(b"-WRONGPASS invalid username-password pair\r\n")
    stage.says(b"psubscribe", b"a*", 1)
    kind, error = auth.outcome
    assert kind == "error"
    assert isinstance(error, AuthenticationError)
    assert stage.read == [[b"psubscribe", b"a*", 1]]


def test_messages_answer_nothing(stage):
    stage.sends("SUBSCRIBE", "a")
    auth = stage.sends("AUTH", "me", "token", waits=True)
    stage.says(b"message", b"b", b"1")
    stage.says(b"subscribe", b"a", 1)
    stage.says(b"pmessage", b"b*", b"b", b"2")
    stage.says(b"smessage", b"b", b"3")
    assert auth.outcome is None
    assert [each[0] for each in stage.read] == [b"message", b"subscribe", b"pmessage", b"smessage"]


def test_whoever_waits_for_a_change_gets_it_and_the_reader_nothing(stage):
    change = stage.sends(b"SUBSCRIBE", b"a", b"b", waits=True)
    stage.says(b"subscribe", b"a", 1)
    assert not change.done()
    stage.says(b"subscribe", b"b", 2)
    assert change.outcome == ("result", None)
    refused = stage.sends(b"SSUBSCRIBE", b"c", waits=True)
    stage.subscriber.receive(NOPERM)
    assert refused.outcome[0] == "error"
    assert stage.read == []
    assert stage.subscriber.awaited == 0


def test_a_ping_of_the_reader_is_answered_to_the_reader():
    stage = Stage(3)
    stage.sends("PING")
    stage.subscriber.receive(b"+PONG\r\n")
    assert stage.read == [b"PONG"]
    stage = Stage(2)
    stage.sends("PING", "hello")
    ping = stage.sends("PING", waits=True)
    stage.subscriber.receive(b"*2\r\n$4\r\npong\r\n$5\r\nhello\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    assert stage.read == [[b"pong", b"hello"]]
    assert ping.outcome == ("result", [b"pong", b""])


@pytest.mark.parametrize(
    ("subscribed", "confirmations"),
    [([], [None]), ([b"a"], [b"a"]), ([b"a", b"b", b"c"], [b"b", b"c", b"a"])],
)
def test_an_unsubscription_from_everything_owes_what_there_is(stage, subscribed, confirmations):
    for name in subscribed:
        stage.sends("SUBSCRIBE", name)
    stage.sends("UNSUBSCRIBE")
    auth = stage.sends("AUTH", "me", "token", waits=True)
    for number, name in enumerate(subscribed, 1):
        stage.says(b"subscribe", name, number)
    for number, name in enumerate(confirmations):
        assert stage.subscriber.in_flight == 2, number
        stage.says(b"unsubscribe", name, len(confirmations) - number - 1)
    assert stage.subscriber.in_flight == 1
    stage.subscriber.receive(b"+OK\r\n")
    assert auth.outcome == ("result", b"OK")
    assert stage.subscriber.subscriptions[b""] == set()


def test_a_refused_subscription_does_not_count_for_an_unsubscription_behind_it(stage):
    stage.sends("SUBSCRIBE", "a")
    stage.sends("SUBSCRIBE", "forbidden")
    stage.sends("UNSUBSCRIBE")
    auth = stage.sends("AUTH", "me", "token", waits=True)
    stage.says(b"subscribe", b"a", 1)
    stage.subscriber.receive(NOPERM)
    stage.says(b"unsubscribe", b"a", 0)
    stage.subscriber.receive(b"+OK\r\n")
    assert auth.outcome == ("result", b"OK")


def test_a_sharded_channel_that_moves_away_answers_nothing(stage):
    stage.sends("SSUBSCRIBE", "a")
    stage.says(b"ssubscribe", b"a", 1)
    auth = stage.sends("AUTH", "me", "token", waits=True)
    stage.says(b"sunsubscribe", b"a", 0)
    stage.subscriber.receive(b"+OK\r\n")
    assert auth.outcome == ("result", b"OK")
    assert stage.read[-1] == [b"sunsubscribe", b"a", 0]
    assert stage.subscriber.subscriptions[b"s"] == set()


def test_other_pushes_are_the_readers_too():
    stage = Stage(3)
    auth = stage.sends("AUTH", "me", "token", waits=True)
    stage.says(b"MIGRATING", 1, 10)
    assert stage.read == [[b"MIGRATING", 1, 10]]
    assert auth.outcome is None


# -- markers ---------------------------------------------------------------------------------------


def test_no_reader_gets_a_marker(stage):
    marker = MARKER_PREFIX + b"1"
    stage.says(b"message", b"a", b"1")
    stage.says(b"message", marker, b"")
    stage.says(b"pmessage", b"*", marker, b"")
    stage.says(b"message", b"a", b"2")
    assert stage.markers == [marker]
    assert [each[2] for each in stage.read] == [b"1", b"2"]


# -- what breaks it --------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [b"+OK\r\n", b"-ERR what\r\n", b"*1\r\n:1\r\n", b"?what\r\n"])
def test_what_nobody_asked_for_ends_it(stage, wrong):
    with pytest.raises(ProtocolViolation):
        stage.subscriber.receive(wrong)


def test_a_plain_reply_to_a_subscription_ends_it(stage):
    stage.sends("SUBSCRIBE", "a")
    with pytest.raises(ProtocolViolation, match="nobody asked for"):
        stage.subscriber.receive(b"+OK\r\n")


def test_a_loss_reaches_whoever_waits():
    stage = Stage()
    stage.sends("SUBSCRIBE", "a")
    auth = stage.sends("AUTH", "me", "token", waits=True)
    stage.subscriber.connection_lost(lambda written: ConnectionLostError("gone"))
    assert str(auth.outcome[1]) == "gone"
    assert stage.subscriber.in_flight == stage.subscriber.awaited == 0


@pytest.mark.parametrize("protocol", [2, 3])
def test_it_does_not_matter_where_the_bytes_are_cut(protocol):
    whole = Stage(protocol)
    data = (
        whole.push(b"subscribe", b"a", 1)
        + whole.push(b"message", b"a", b"\xff\r\n+OK")
        + NOPERM
        + b"+OK\r\n"
        + whole.push(b"unsubscribe", b"a", 0)
    )
    for cut in range(len(data) + 1):
        stage = Stage(protocol)
        stage.sends("SUBSCRIBE", "a")
        stage.sends("SUBSCRIBE", "forbidden")
        auth = stage.sends("AUTH", "me", "token", waits=True)
        stage.sends("UNSUBSCRIBE")
        stage.subscriber.receive(data[:cut])
        stage.subscriber.receive(data[cut:])
        assert auth.outcome == ("result", b"OK"), cut
        assert [type(each).__name__ for each in stage.read[2:3]] == ["NoPermissionError"]
        assert stage.read[1][2] == b"\xff\r\n+OK"  # though it can't be decoded
        assert stage.subscriber.in_flight == 0


COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(["sub", "unsub", "unsub all", "refused", "auth", "ping", "message"]),
        st.lists(st.sampled_from("abcd"), min_size=1, max_size=3),
        st.sampled_from(["", "p", "s"]),
    ),
    max_size=30,
)


@given(commands=COMMANDS, protocol=st.sampled_from([2, 3]), ahead=st.integers(0, 10))
def test_whatever_is_sent_each_auth_gets_its_own_answer(commands, protocol, ahead):
    """The server's side is simulated; up to ``ahead`` answers lag behind."""
    stage = Stage(protocol)
    names: dict[str, list[bytes]] = {"": [], "p": [], "s": []}
    lag: list[bytes] = []
    auths: list[tuple[Waiter, bytes]] = []

    def flush(most: int) -> None:
        while len(lag) > most:
            stage.subscriber.receive(lag.pop(0))

    for number, (kind, words, realm) in enumerate(commands):
        mine, prefix = names[realm], realm.encode()
        encoded = [word.encode() for word in words]
        answer = b""
        if kind == "message":
            answer = stage.push(b"message", b"a", b"%d" % number)
        elif kind == "sub":
            stage.sends(f"{realm}subscribe", *words)
            for name in encoded:
                mine += [name] if name not in mine else []
                answer += stage.push(prefix + b"subscribe", name, len(mine))
        elif kind.startswith("unsub"):
            every = kind == "unsub all"
            stage.sends(f"{realm.upper()}UNSUBSCRIBE", *([] if every else words))
            for name in (list(mine) or [None]) if every else encoded:
                if name in mine:
                    mine.remove(name)
                answer += stage.push(prefix + b"unsubscribe", name, len(mine))
        elif kind == "refused":
            stage.sends(f"{realm}SUBSCRIBE", *words)
            answer = NOPERM
        else:
            waiter = stage.sends(kind.upper(), waits=True)
            auths.append((waiter, b"%s %d" % (kind.encode(), number)))
            answer = b"+%s\r\n" % auths[-1][1]
        lag.append(answer)
        flush(ahead)
    flush(0)
    assert [waiter.outcome for waiter, _ in auths] == [("result", answer) for _, answer in auths]
    assert stage.subscriber.in_flight == 0
    assert stage.subscriber.subscriptions == {
        realm.encode(): set(mine) for realm, mine in names.items()
    }


# -- the rest --------------------------------------------------------------------------------------


def test_a_backlog_knows_its_size():
    backlog, other = Backlog(), Backlog()
    for data in (b"x" * 1000, b"y"):
        backlog.put([b"message", b"channel", data])
    backlog.put(ResponseError("no"))
    assert backlog.size == 3 * ITEM_OVERHEAD + 2 * 14 + 1001
    assert len(backlog) == 3
    other.put(b"first")
    backlog.pour_into(other)
    assert (len(backlog), backlog.size) == (0, 0)
    assert other.take() == b"first"
    assert other.take()[2] == b"x" * 1000
    other.clear()
    assert (len(other), other.size) == (0, 0)


def test_another_connection_is_subscribed_with_few_commands():
    commands = list(resubscription({b"": {b"b", b"a"}, b"p": set(), b"s": {b"x", b"y"}}))
    assert commands == [(b"subscribe", b"a", b"b"), (b"ssubscribe", b"x"), (b"ssubscribe", b"y")]
    assert list(resubscription({b"": set(), b"p": {b"*"}, b"s": set()})) == [(b"psubscribe", b"*")]
