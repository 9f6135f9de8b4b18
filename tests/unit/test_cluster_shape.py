"""CLUSTER SLOTS as servers answer it: with all there is, and with what they leave out."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import RedisClusterException

from aioentra_redis._cluster._addresses import Advertised, Destination, Refused
from aioentra_redis._cluster._shape import EMPTY, shape_of


def locate(advertised: Advertised | Refused) -> Destination | Refused:
    if isinstance(advertised, Refused):
        return advertised
    return Destination(advertised.host or "entry", advertised.port, "entry")


def node(number: int, host: Any = b"10.0.0.1") -> list[Any]:
    return [host, 7000 + number, b"id%d" % number, []]


def names(reply: Any) -> list[tuple[int, int, list[str]]]:
    shape = shape_of(reply, locate)
    return [(each.first, each.last, [it.name for it in each.nodes]) for each in shape.ranges]


def test_a_whole_cluster():
    reply = [[8192, 16383, node(2), node(3)], [0, 8191, node(1)]]
    shape = shape_of(reply, locate)
    assert shape.is_whole
    assert shape.covered == 16384
    assert names(reply) == [
        (0, 8191, ["10.0.0.1:7001"]),
        (8192, 16383, ["10.0.0.1:7002", "10.0.0.1:7003"]),
    ]
    assert [each.name for each in shape.primaries()] == ["10.0.0.1:7001", "10.0.0.1:7002"]
    assert [each.id for each in shape.replicas()] == ["id3"]
    assert shape == shape_of(reply, locate)


def test_decoded_and_short_forms_are_the_same():
    assert names([["0", "16383", ["10.0.0.1", "7001"]]]) == [(0, 16383, ["10.0.0.1:7001"])]


@pytest.mark.parametrize("host", [b"", "", None])
def test_a_server_that_does_not_know_its_own_host(host: Any):
    assert names([[0, 16383, node(1, host)]]) == [(0, 16383, ["entry:7001"])]


def test_what_nothing_may_be_sent_to_is_left_out():
    reply = [[0, 9, node(1), node(2, b"?")], [10, 19, node(3, b"?"), node(4)], [20, 29, node(5)]]
    shape = shape_of(reply, locate)
    assert [each.name for each in shape.primaries()] == ["10.0.0.1:7001", "10.0.0.1:7005"]
    assert list(shape.replicas()) == []
    assert shape.covered == 20
    assert len(shape.refused) == 1
    assert "host name" in shape.refused[0]


def test_slots_that_are_named_twice_belong_to_the_first():
    assert names([[0, 10, node(1)], [5, 20, node(2)], [6, 7, node(3)]]) == [
        (0, 10, ["10.0.0.1:7001"]),
        (11, 20, ["10.0.0.1:7002"]),
    ]


def test_nothing():
    assert shape_of([], locate) == EMPTY
    assert not EMPTY.is_whole


@pytest.mark.parametrize("reply", [None, 1, [None], [[0]], [["a", "b", node(1)]], b"OK"])
def test_what_is_no_such_answer(reply: Any):
    with pytest.raises(RedisClusterException, match="no such answer"):
        shape_of(reply, locate)
