"""CLUSTER SLOTS read: who owns which slots. Pure, and tolerant of what servers leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from redis import exceptions as redis_exceptions

from ._slots import SLOTS

__all__ = ["Address", "Range", "Shape", "shape_of"]


class Address(NamedTuple):
    """Where a node is reached; ``id`` is the server's name for it, "" where it gave none."""

    host: str
    port: int
    id: str = ""

    @property
    def name(self) -> str:
        """As redis-py calls its nodes."""
        return f"{self.host}:{self.port}"


class Range(NamedTuple):
    """Slots from ``first`` to ``last``; the first of ``nodes`` is the primary."""

    first: int
    last: int
    nodes: tuple[Address, ...]


class Shape(NamedTuple):
    """The slots of a cluster, as one node sees them."""

    ranges: tuple[Range, ...]

    @property
    def covered(self) -> int:
        """How many slots have an owner."""
        return sum(each.last - each.first + 1 for each in self.ranges)

    @property
    def is_whole(self) -> bool:
        """Whether all slots have an owner."""
        return self.covered == SLOTS

    def primaries(self) -> Iterator[Address]:
        """The primaries, by their first slot, each once."""
        return iter(dict.fromkeys(each.nodes[0] for each in self.ranges))

    def replicas(self) -> Iterator[Address]:
        """The replicas, each once."""
        return iter(dict.fromkeys(node for each in self.ranges for node in each.nodes[1:]))


def shape_of(
    reply: Any, *, host: str, remap: Callable[[tuple[str, int]], tuple[str, int]] | None = None
) -> Shape:
    """The shape in a reply to CLUSTER SLOTS.

    ``host`` is that of the node which was asked: it stands for hosts that the server leaves empty
    or null, because it does not know its own. ``remap`` is the user's ``address_remap=``. Replicas
    without an address are left out, and so are ranges whose primary has none. Slots that are named
    twice belong to the first. Raises redis-py's RedisClusterException for what is no such reply.
    """
    try:
        ranges = sorted(
            (int(first), int(last), [_address(node, host, remap) for node in nodes])
            for first, last, *nodes in reply
        )
    except (TypeError, ValueError, IndexError, AttributeError) as exc:
        raise redis_exceptions.RedisClusterException(
            f"{host} has answered CLUSTER SLOTS with what is no such answer: {reply!r:.200}"
        ) from exc
    found: list[Range] = []
    free = 0
    for first, last, nodes in ranges:
        start, end = max(first, free), min(last, SLOTS - 1)
        if start <= end and nodes and nodes[0] is not None:
            found.append(Range(start, end, tuple(dict.fromkeys(filter(None, nodes)))))
            free = end + 1
    return Shape(tuple(found))


def _address(
    node: Any, host: str, remap: Callable[[tuple[str, int]], tuple[str, int]] | None
) -> Address | None:
    """One node of the reply; None for a replica of which the server knows no address."""
    where, port = _text(node[0]) or host, int(node[1])
    if where == "?" or not port:
        return None
    if remap is not None:
        where, port = remap((where, port))
    return Address(where, port, _text(node[2]) if len(node) > 2 else "")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    return "" if value is None else str(value)
