"""What a damaged wire lets pass, and when."""

from __future__ import annotations

import pytest

from aioentra_redis.emulator._damage import Damage


def test_an_undamaged_wire_lets_everything_pass() -> None:
    damage = Damage()
    assert damage.requests(b"asked") == b"asked"
    assert damage.replies(b"answered") == (b"answered", False)
    assert damage.thaw() == (b"", b"")


def test_a_frozen_wire_keeps_both_ways_in_order() -> None:
    damage = Damage()
    damage.freeze(executes=False)
    assert [damage.requests(each) for each in (b"a", b"b")] == [b"", b""]
    assert [damage.replies(each) for each in (b"c", b"d")] == [(b"", False)] * 2
    assert damage.thaw() == (b"ab", b"cd")
    assert not damage.frozen
    assert damage.requests(b"e") == b"e"
    assert damage.replies(b"f") == (b"f", False)
    assert damage.thaw() == (b"", b"")


def test_frozen_for_replies_only() -> None:
    damage = Damage()
    damage.freeze(executes=True)
    assert damage.requests(b"a") == b"a"
    assert damage.replies(b"b") == (b"", False)
    assert damage.thaw() == (b"", b"b")


@pytest.mark.parametrize("after", range(7))
def test_a_break_is_at_the_byte_wherever_the_stream_is_cut(after: int) -> None:
    whole = b"abcdef"
    for cut in range(1, 6):
        damage = Damage()
        damage.break_after(after)
        pieces = [damage.replies(part) for part in (whole[:cut], whole[cut:])]
        assert b"".join(data for data, _ in pieces) == whole[:after]
        assert sum(breaks for _, breaks in pieces) == (after < len(whole))
        assert damage.replies(b"more") == (b"", after == len(whole))
