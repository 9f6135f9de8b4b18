"""CLUSTER SLOTS read: who owns which slots. Pure, and tolerant of what servers leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from redis import exceptions as redis_exceptions

from ._addresses import Advertised, Destination, Refused, in_slots
from ._slots import SLOTS

__all__ = ["EMPTY", "Address", "Locate", "Range", "Shape", "shape_of"]

Locate = Callable[[Advertised | Refused], Destination | Refused]
"""From what a server says of a node to where that is, see ``_addresses.destination``."""


class Address(NamedTuple):
    """Where a node is; ``id`` is the server's name for it, "" where it gave none."""

    at: Destination
    id: str = ""

    @property
    def name(self) -> str:
        """As redis-py calls its nodes."""
        return f"{self.at.host}:{self.at.port}"


class Range(NamedTuple):
    """Slots from ``first`` to ``last``; the first of ``nodes`` is the primary."""

    first: int
    last: int
    nodes: tuple[Address, ...]


class Shape(NamedTuple):
    """The slots of a cluster, as one node sees them.

    ``refused`` says why nodes are missing that nothing may be sent to.
    """

    ranges: tuple[Range, ...]
    refused: tuple[str, ...] = ()

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


EMPTY: Final = Shape(())


def shape_of(reply: Any, locate: Locate) -> Shape:
    """The shape in a reply to CLUSTER SLOTS.

    Nodes that ``locate`` refuses are left out, and with its primary the whole range; slots that
    are named twice belong to the first. Raises redis-py's RedisClusterException for what is no
    such reply.
    """
    refused: list[str] = []
    found: list[Range] = []
    free = 0
    try:
        for first, last, *nodes in sorted(reply, key=lambda each: int(each[0])):
            start, end = max(int(first), free), min(int(last), SLOTS - 1)
            located = [_address(node, locate) for node in nodes]
            refused += [each.reason for each in located if isinstance(each, Refused)]
            if start <= end and located and isinstance(located[0], Address):
                known = (each for each in located if isinstance(each, Address))
                found.append(Range(start, end, tuple(dict.fromkeys(known))))
                free = end + 1
    except (TypeError, ValueError, IndexError, KeyError) as exc:
        raise redis_exceptions.RedisClusterException(
            f"CLUSTER SLOTS was answered with what is no such answer: {reply!r:.200}"
        ) from exc
    return Shape(tuple(found), tuple(dict.fromkeys(refused)))


def _address(node: Any, locate: Locate) -> Address | Refused:
    where = locate(in_slots(node))
    if isinstance(where, Refused):
        return where
    given = node[2] if len(node) > 2 else ""
    return Address(where, given.decode() if isinstance(given, bytes) else str(given))
