"""Slots and keys: against redis-py's key_slot, and against what the server's tables say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from aioentra_redis._cluster._slots import MOVABLE, find_in_range, slot_of

PIECES = st.sampled_from([b"", b"{", b"}", b"{}", b"a", b"{a}", b"\xff", b"{{", b"}}"])


@given(st.one_of(st.binary(), st.lists(PIECES, max_size=6).map(b"".join)))
def test_slots_are_those_of_redis_py(key: bytes):
    assert slot_of(key) == key_slot(key)


@pytest.mark.parametrize(
    ("first", "last", "step", "args", "keys"),
    [
        (1, 1, 1, ("GET", "k"), ("k",)),
        (1, -1, 1, ("DEL", "a", "b"), ("a", "b")),
        (1, -1, 2, ("MSET", "a", 1, "b", 2), ("a", "b")),
        (1, -2, 1, ("BLPOP", "a", "b", 0), ("a", "b")),
        (2, 2, 1, ("OBJECT", "ENCODING", "k"), ("k",)),
    ],
)
def test_keys_with_fixed_places(
    first: int, last: int, step: int, args: tuple[Any, ...], keys: tuple[Any, ...]
):
    assert find_in_range(first, last, step)(args) == keys


@pytest.mark.parametrize("args", [("MGET",), ("BLPOP", 0)])
def test_a_command_without_its_keys(args: tuple[Any, ...]):
    with pytest.raises(LookupError):
        find_in_range(1, -1 if len(args) == 1 else -2, 1)(args)


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (("EVAL", "return 1", 0, "a"), ()),
        (("EVALSHA", "f" * 40, "2", "a", "b", "arg"), ("a", "b")),
        (("FCALL", "f", b"1", "a", "arg"), ("a",)),
        (("ZUNION", 2, "a", "b", "WITHSCORES"), ("a", "b")),
        (("ZUNIONSTORE", "to", 2, "a", "b"), ("to", "a", "b")),
        (("LMPOP", 1, "a", "LEFT"), ("a",)),
        (("BLMPOP", 1.5, 1, "a", "LEFT"), ("a",)),
        (("XREAD", "COUNT", 2, "STREAMS", "a", "b", "0", "$"), ("a", "b")),
        (("XREADGROUP", "GROUP", "STREAMS", "c", "STREAMS", "a", ">"), ("a",)),
        ((b"XREAD", b"streams", b"a", b"0"), (b"a",)),
    ],
)
def test_keys_that_can_move(args: tuple[Any, ...], keys: tuple[Any, ...]):
    name = args[0] if isinstance(args[0], str) else args[0].decode()
    assert tuple(MOVABLE[name](args)) == keys


@pytest.mark.parametrize(
    "args", [("EVAL", "s"), ("EVAL", "s", "two", "a"), ("EVAL", "s", -1), ("XREAD", "a", "0")]
)
def test_what_the_server_will_find_wrong(args: tuple[Any, ...]):
    with pytest.raises((LookupError, ValueError)):
        MOVABLE[args[0]](args)
