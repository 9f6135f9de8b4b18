"""Framing finds every command and reply, wherever the stream is cut, and loses no byte."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.resp import chunks, pack, parse

from aioentra_redis.emulator._framing import (
    MAX_LINE,
    MAX_WHOLE,
    NOTED,
    WHOLE,
    Command,
    Notice,
    Passage,
    ReplyFramer,
    RequestFramer,
)

settings.register_profile("framing", deadline=None, max_examples=100)
settings.load_profile("framing")

Event = tuple[object, ...]

# ------------------------------------------------------------------------------------- requests


def run(pieces: Iterable[bytes]) -> tuple[bytes, list[Event], RequestFramer]:
    """The bytes that come out, and what is found: ordinary commands one by one."""
    framer = RequestFramer()
    out = b""
    events: list[Event] = []
    for piece in pieces:
        for item in framer.feed(piece):
            match item:
                case Passage(data, commands):
                    out += data
                    events += [("ordinary",)] * commands
                case Command(arguments, raw):
                    out += raw
                    events.append(("whole", *arguments))
                case Notice(name, arguments):
                    events.append(("noted", name, arguments))
    return out, events, framer


def any_case(names: frozenset[bytes]) -> st.SearchStrategy[bytes]:
    return st.sampled_from(sorted(names)).flatmap(
        lambda name: st.sampled_from([name, name.lower(), name.title()])
    )


NASTY = st.sampled_from(
    [b"", b"\r\n", b"AUTH", b"\r\n*3\r\n$4\r\nAUTH\r\n", b"*1\r\n$5\r\nHELLO\r\n", b"x" * 3000]
)
ARGUMENT = st.one_of(NASTY, st.binary(max_size=40))
ORDINARY_NAME = st.sampled_from([b"GET", b"SET", b"MSET", b"EVAL", b"", b"AUTHX", b"*1\r\nAUTH"])


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """One request and what the framer should say of it."""
    style = draw(st.sampled_from(["ordinary", "whole", "noted", "inline", "nothing"]))
    arguments = draw(st.lists(ARGUMENT, max_size=4))
    if style == "ordinary":
        return pack(draw(ORDINARY_NAME), *arguments), [("ordinary",)]
    if style == "whole":
        name = draw(any_case(WHOLE))
        return pack(name, *arguments), [("whole", name, *arguments)]
    if style == "noted":
        name = draw(any_case(NOTED))
        return pack(name, *arguments), [("noted", name.upper(), len(arguments) + 1)]
    if style == "inline":
        return draw(
            st.sampled_from(
                [
                    (b"PING\r\n", [("ordinary",)]),
                    (b"SET a b\n", [("ordinary",)]),
                    (b"auth me secret\r\n", [("whole", b"auth", b"me", b"secret")]),
                    (b"Subscribe a b\r\n", [("noted", b"SUBSCRIBE", 3)]),
                ]
            )
        )
    return draw(st.sampled_from([b"\r\n", b"*0\r\n", b"*-1\r\n", b"  \r\n"])), []


STREAM = st.lists(requests(), max_size=12)
SIZES = st.lists(st.integers(1, 70), max_size=60)


@given(STREAM, SIZES)
def test_requests_are_found_wherever_the_stream_is_cut(
    stream: list[tuple[bytes, list[Event]]], sizes: list[int]
):
    data = b"".join(raw for raw, _ in stream)
    out, events, framer = run(chunks(data, sizes))
    assert out == data
    assert events == [event for _, expected in stream for event in expected]
    assert framer.idle


@given(requests(), requests())
@settings(max_examples=25)
def test_every_split_point(first: tuple[bytes, list[Event]], second: tuple[bytes, list[Event]]):
    data = first[0] + second[0]
    for cut in range(0, len(data) + 1, 1 if len(data) < 600 else 17):
        out, events, _ = run([data[:cut], data[cut:]])
        assert out == data
        assert events == first[1] + second[1]


@given(STREAM, st.binary(max_size=30), STREAM, SIZES)
def test_garbage_passes_and_is_found_alike_however_it_is_cut(
    before: list[tuple[bytes, list[Event]]],
    garbage: bytes,
    after: list[tuple[bytes, list[Event]]],
    sizes: list[int],
):
    data = b"".join(raw for raw, _ in before) + garbage + b"".join(raw for raw, _ in after)
    whole, together, framer = run([data])
    pieces, apart, _ = run(chunks(data, sizes))
    assert data.startswith(whole)
    assert data.startswith(pieces)
    assert together == apart
    if framer.idle:
        assert whole == data


@pytest.mark.parametrize(
    "bad",
    [
        b"*x\r\n",
        b"*1\r\n+PING\r\n",
        b"*1\r\n$-3\r\n",
        b"*2\r\n$3\r\nGET\r\n$z\r\n",
        b"*3\r\n$4\r\nAUTH\r\n:1\r\n",
        b"*" + b"1" * (MAX_LINE + 1),
        b"a" * (MAX_LINE + 1),
        b"*1\r\n$" + b"1" * (MAX_LINE + 1),
        b"*2\r\n$3\r\nGET\r\n$" + b"1" * (MAX_LINE + 1),
        b"*2\r\n$4\r\nAUTH\r\n$" + b"1" * (MAX_LINE + 1),
    ],
)
def test_bad_protocol_is_left_to_the_server(bad: bytes):
    good = pack("GET", "key")
    out, events, framer = run([good + bad, pack("AUTH", "me", "secret")])
    assert out == good + bad + pack("AUTH", "me", "secret")
    assert events[0] == ("ordinary",)
    assert not framer.idle
    assert ("whole", b"AUTH", b"me", b"secret") not in events


def test_an_auth_too_large_to_hold_passes_like_any_other_command():
    large = pack("AUTH", "me", b"x" * (MAX_WHOLE + 10))
    out, events, framer = run(chunks(large, [50_000]))
    assert out == large
    assert events == [("ordinary",)]
    assert framer.idle


def test_a_payload_is_not_held_back():
    framer = RequestFramer()
    head = b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$1000000\r\n"
    assert framer.feed(head) == [Passage(head, 1)]
    assert framer.feed(b"x" * 1000) == [Passage(b"x" * 1000, 0)]


def test_bytes_that_pass_whole_are_not_copied():
    data = pack("GET", "key") * 10
    [passage] = RequestFramer().feed(data)
    assert isinstance(passage, Passage)
    assert passage.data is data


# -------------------------------------------------------------------------------------- replies


def flatten(kind: bytes, elements: list[bytes], width: int = 1) -> bytes:
    return b"%b%d\r\n" % (kind, len(elements) // width) + b"".join(elements)


def bulk(kind: bytes) -> st.SearchStrategy[bytes]:
    return ARGUMENT.map(lambda value: b"%b%d\r\n%b\r\n" % (kind, len(value), value))


LINES = st.sampled_from(
    [b"+OK", b"-ERR no", b":7", b"_", b"#t", b",1.5", b"(12345", b"$-1", b"*-1", b"*0", b"%0"]
).map(lambda line: line + b"\r\n")
LEAF = st.one_of(LINES, bulk(b"$"), bulk(b"="), bulk(b"!"))


def nest(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    lists = st.lists(inner, min_size=1, max_size=4)
    pairs = st.lists(st.tuples(inner, inner).map(b"".join), min_size=1, max_size=3)
    return st.one_of(
        lists.map(lambda elements: flatten(b"*", elements)),
        lists.map(lambda elements: flatten(b"~", elements)),
        pairs.map(lambda elements: flatten(b"%", elements)),
    )


KINDS = st.sampled_from([b"message", b"subscribe", b"invalidate", b"unsubscribe"])
PUSH = st.tuples(KINDS, st.lists(LEAF, max_size=3)).map(
    lambda pair: flatten(b">", [b"$%d\r\n%b\r\n" % (len(pair[0]), pair[0]), *pair[1]])
)
REPLY = st.recursive(LEAF, nest, max_leaves=12)


def head_of(raw: bytes) -> bytes:
    """What the framer should say of a reply, by way of the naive parser."""
    found = parse(raw)
    assert found is not None
    (kind, value), end = found
    assert end == len(raw)
    if kind == ">":
        assert isinstance(value, list)
        return b">" + value[0][1]
    return raw[: raw.index(b"\r\n")]


@given(st.lists(st.one_of(REPLY, PUSH), max_size=10), SIZES)
def test_replies_are_found_wherever_the_stream_is_cut(stream: list[bytes], sizes: list[int]):
    framer = ReplyFramer()
    heads = [head for piece in chunks(b"".join(stream), sizes) for head in framer.feed(piece)]
    assert heads == [head_of(raw) for raw in stream]


@given(st.one_of(REPLY, PUSH), st.one_of(REPLY, PUSH))
@settings(max_examples=25)
def test_every_split_point_of_replies(first: bytes, second: bytes):
    data = first + second
    for cut in range(0, len(data) + 1, 1 if len(data) < 600 else 17):
        framer = ReplyFramer()
        heads = framer.feed(data[:cut]) + framer.feed(data[cut:])
        assert heads == [head_of(first), head_of(second)]


def test_a_reply_is_told_with_its_last_byte():
    framer = ReplyFramer()
    assert framer.feed(b"*2\r\n$3\r\nabc\r\n$3\r\nde") == []
    assert framer.feed(b"f\r") == []
    assert framer.feed(b"\n") == [b"*2"]


def test_an_attribute_belongs_to_the_reply_behind_it():
    data = b"|1\r\n+ttl\r\n:3\r\n*2\r\n:1\r\n:2\r\n+OK\r\n"
    assert ReplyFramer().feed(data) == [b"|1", b"+OK"]


@pytest.mark.parametrize("bad", [b"hello\r\n", b"$x\r\n", b"*?\r\n"])
def test_what_is_no_reply_is_an_error(bad: bytes):
    with pytest.raises(ValueError, match=r".+"):
        ReplyFramer().feed(bad)


# ------------------------------------------------------------------------- more commands to look at


@given(st.lists(st.integers(1, 9), max_size=20))
def test_a_framer_may_be_asked_to_point_out_more(sizes: list[int]):
    stream = pack("SELECT", "1") + pack("SYNC") + b"select 2\r\n" + pack("GET", "SELECT")
    framer = RequestFramer(frozenset({b"SELECT", b"SYNC"}))
    found = [item for piece in chunks(stream, sizes) for item in framer.feed(piece)]
    assert [each.arguments for each in found if isinstance(each, Command)] == [
        [b"SELECT", b"1"],
        [b"SYNC"],  # it is no notice any more
        [b"select", b"2"],
    ]
    assert sum(each.commands for each in found if isinstance(each, Passage)) == 1
    assert framer.idle


def test_others_are_not_asked():
    _, events, _ = run([pack("SELECT", "1") + pack("SYNC")])
    assert events == [("ordinary",), ("noted", b"SYNC", 1)]
