"""Reading CLUSTER NODES, agreeing on it, and sharing slots out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioentra_redis.emulator._topology import (
    SLOTS,
    Place,
    agreement,
    has_open_slots,
    parse_nodes,
    ranges,
    shares,
)

NODES = """\
07c3 127.0.0.1:30004@31004,hostname4 slave e7d1 0 1426238317239 4 connected
67ed 127.0.0.1:30002@31002 master - 0 1426238316232 2 connected 5461-10922
292f 127.0.0.1:30003@31003 master,fail - 0 1426238318243 3 disconnected 10923-16000 16002 16383
e7d1 127.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-5460 [93->-292f] [77-<-67ed]
824f 127.0.0.1:30005@31005 handshake - 0 1426238317741 0 connected
6ec2 :0@0 master,noaddr - 0 1426238317741 9 disconnected 16001
"""


def test_reading_cluster_nodes():
    assert parse_nodes(NODES) == {
        "07c3": Place("e7d1"),
        "67ed": Place(None, ((5461, 10922),)),
        "292f": Place(None, ((10923, 16000), (16002, 16002), (16383, 16383))),
        "e7d1": Place(None, ((0, 5460),)),
    }


def test_slots_on_the_move():
    assert has_open_slots(NODES)
    assert not has_open_slots(NODES.replace(" [93->-292f] [77-<-67ed]", ""))


def test_a_place():
    place = Place(None, ((0, 5), (9, 9)))
    assert place.is_primary
    assert [slot for slot in range(12) if place.owns(slot)] == [0, 1, 2, 3, 4, 5, 9]
    assert not Place("07c3").is_primary


PRIMARY, REPLICA = Place(None, ((0, 1),)), Place("a")


@pytest.mark.parametrize(
    ("views", "known", "agreed"),
    [
        ([{"a": PRIMARY}], ["a"], {"a": PRIMARY}),
        ([{"a": PRIMARY}, {"a": PRIMARY, "gone": REPLICA}], ["a"], {"a": PRIMARY}),
        ([{"a": PRIMARY}, {"a": Place(None, ((0, 2),))}], ["a"], None),
        ([{"a": PRIMARY}, {"a": REPLICA}], ["a"], None),
        ([{"a": PRIMARY, "b": REPLICA}, {"a": PRIMARY}], ["a", "b"], None),
        ([], ["a"], None),
    ],
)
def test_agreement(views: list[dict[str, Place]], known: list[str], agreed: object):
    assert agreement(views, iter(known)) == agreed


@given(st.integers(1, 50))
def test_shares_are_all_slots_and_about_the_same(count: int):
    found = shares(count)
    assert [first for first, _ in found] == [0, *(last + 1 for _, last in found[:-1])]
    assert found[-1][1] == SLOTS - 1
    sizes = {last - first + 1 for first, last in found}
    assert max(sizes) - min(sizes) <= 1


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_the_same_slots(slots: set[int]):
    found = ranges(slots)
    assert {slot for first, last in found for slot in range(first, last + 1)} == slots
    assert all(after[0] > before[1] + 1 for before, after in itertools.pairwise(found))


def test_ranges_need_no_order():
    assert ranges([7, 3, 4, 3]) == ((3, 4), (7, 7))
