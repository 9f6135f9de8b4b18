"""Attributes of RESP3, which hiredis returns like replies, move nobody's replies on."""

from __future__ import annotations

import itertools
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioentra_redis._multiplex import _attributes
from aioentra_redis._multiplex._engine import Engine, ProtocolViolation

NOT_ENOUGH = object()


class Waiter:
    def __init__(self, got: list[Any]) -> None:
        self.set_result = self.set_exception = got.append

    def done(self) -> bool:
        return False


def engine_of(commands: int, got: list[Any], pushes: list[Any]) -> Engine:
    engine = Engine(
        hiredis.Reader(notEnoughData=NOT_ENOUGH),
        not_enough=NOT_ENOUGH,
        push_type=hiredis.PushNotification,
        on_push=pushes.append,
    )
    for _ in range(commands):
        engine.submit(Waiter(got), b"GET")
    engine.data_to_send(0.0)
    return engine


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(value), value)


@pytest.mark.parametrize(
    "attribute",
    [
        b"|1\r\n+ttl\r\n:3600\r\n",
        b"|0\r\n",
        b"|2\r\n+a\r\n*2\r\n:1\r\n:2\r\n$1\r\nb\r\n%1\r\n+c\r\n_\r\n",
    ],
)
def test_a_reply_behind_an_attribute_is_its_callers(attribute: bytes):
    got: list[Any] = []
    engine = engine_of(3, got, [])
    engine.receive(b"+first\r\n" + attribute + b"+second\r\n" + attribute + b"-ERR third\r\n")
    assert [got[0], got[1], str(got[2])] == [b"first", b"second", "ERR third"]


PIECES = {
    "reply": (b"+OK\r\n", b"OK"),
    "null": (b"_\r\n", None),
    "nil": (b"$-1\r\n", None),
    "list": (b"*2\r\n$3\r\nabc\r\n*0\r\n", [b"abc", []]),
    "map": (b"%1\r\n+k\r\n*1\r\n$0\r\n\r\n", {b"k": [b""]}),
    "looks like one": (bulk(b"|1\r\n+a\r\n+b\r\n"), b"|1\r\n+a\r\n+b\r\n"),
    "holds one": (b"*2\r\n" + bulk(b"x\r\n|2\r\ny") + b":7\r\n", [b"x\r\n|2\r\ny", 7]),
    "pipes": (bulk(b"|||\r\n|"), b"|||\r\n|"),
}
ATTRIBUTES = (
    b"|1\r\n+k\r\n+v\r\n",
    b"|0\r\n",
    b"|1\r\n" + bulk(b"\r\n|1\r\n") + b"*2\r\n:1\r\n%1\r\n:2\r\n:3\r\n",
)
PUSH = b">2\r\n+invalidate\r\n*1\r\n+key\r\n"


@given(
    pieces=st.lists(st.sampled_from([*PIECES, *ATTRIBUTES, PUSH]), max_size=12),
    cuts=st.lists(st.integers(0, 250)),
)
def test_however_the_bytes_come_each_caller_gets_his_own(pieces: list[Any], cuts: list[int]):
    stream = b"".join(PIECES[each][0] if isinstance(each, str) else each for each in pieces)
    expected = [PIECES[each][1] for each in pieces if isinstance(each, str)]
    got: list[Any] = []
    pushes: list[Any] = []
    engine = engine_of(len(expected), got, pushes)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        engine.receive(stream[start:end])
    assert (got, len(pushes)) == (expected, pieces.count(PUSH))
    assert engine.in_flight == 0


def test_an_attribute_inside_of_a_reply_ends_the_connection():
    """hiredis counts it as an element, and everything behind it is out of step."""
    got: list[Any] = []
    engine = engine_of(2, got, [])
    with pytest.raises(ProtocolViolation, match="an attribute inside of a reply"):
        engine.receive(b"*2\r\n|1\r\n+k\r\n+v\r\n:1\r\n:2\r\n+OK\r\n")
    assert got == []


def test_what_only_looks_like_an_attribute_is_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(_attributes, "KEPT", 1000)
    value = b"\r\n|1\r\n" * 1000
    got: list[Any] = []
    engine = engine_of(2, got, [])
    reply = bulk(value)
    for start in range(0, len(reply), 100):
        engine.receive(reply[start : start + 100])
        assert sum(map(len, engine._attributes.kept)) <= 1000
    assert got == [value]
    engine.receive(b"|1\r\n+k\r\n+v\r\n+next\r\n")
    assert got == [value, b"next"]
