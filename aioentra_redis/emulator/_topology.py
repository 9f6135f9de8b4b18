"""Who has which slots: reading CLUSTER NODES, and sharing slots out. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = [
    "SLOTS",
    "Place",
    "View",
    "agreement",
    "has_open_slots",
    "parse_nodes",
    "ranges",
    "shares",
]

SLOTS = 16384
"""Slots are 0 to 16383."""

Ranges = tuple[tuple[int, int], ...]
"""First and last slot of each range, both included."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node's place in its cluster: the id of the primary that it copies, if it does, or its
    slots."""

    primary: str | None
    slots: Ranges = ()

    @property
    def is_primary(self) -> bool:
        return self.primary is None

    def owns(self, slot: int) -> bool:
        """Whether the slot is this node's."""
        return any(first <= slot <= last for first, last in self.slots)


View = Mapping[str, Place]
"""A topology as one node sees it: ids to places."""


def parse_nodes(text: str) -> dict[str, Place]:
    """Read the reply of CLUSTER NODES. Nodes that are still shaking hands are left out."""
    places = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 8:
            continue
        node_id, _, flags, primary, *_ = words
        if not {"handshake", "noaddr"}.isdisjoint(flags.split(",")):
            continue
        slots = [each for each in words[8:] if not each.startswith("[")]  # "[": on the move
        places[node_id] = Place(
            primary=None if primary == "-" else primary,
            slots=tuple(_range(each) for each in slots),
        )
    return places


def has_open_slots(text: str) -> bool:
    """Whether CLUSTER NODES tells of slots that are being moved."""
    return any("[" in line for line in text.splitlines())


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def agreement(views: Iterable[View], known: Iterable[str]) -> View | None:
    """What all views say about the nodes in ``known``, or None where they don't say the same."""
    known = list(known)
    agreed: View | None = None
    for view in views:
        if not all(each in view for each in known):
            return None
        part = {each: view[each] for each in known}
        if agreed is not None and part != agreed:
            return None
        agreed = part
    return agreed


def shares(count: int) -> list[tuple[int, int]]:
    """All slots in so many ranges of about the same size."""
    edges = [number * SLOTS // count for number in range(count + 1)]
    return [(first, end - 1) for first, end in itertools.pairwise(edges)]


def ranges(slots: Iterable[int]) -> Ranges:
    """Slots as ranges, in order."""
    found: list[tuple[int, int]] = []
    for slot in sorted(set(slots)):
        if found and found[-1][1] == slot - 1:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    return tuple(found)
