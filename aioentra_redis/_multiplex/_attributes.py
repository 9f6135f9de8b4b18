"""Attributes of RESP3: which of the things that hiredis returns are none of the replies.

A server may put an attribute in front of any reply (``|1 key value``), for instance for a module
that is sending one. hiredis returns it like a reply, an array, so on a connection whose replies are
known by their order alone each would move everybody's replies on by one. Only its first byte tells
it apart, so the bytes themselves have to be looked at, which in Python takes longer than all else;
it is done where there is what looks like the head of one. Arbitrary values may hold that, too.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Final

__all__ = ["Attributes", "NestedAttribute"]

HEAD: Final = re.compile(rb"(?:^|\r\n)\|\d+\r\n")
LONGEST_HEAD: Final = 24

KEPT: Final = 1 << 18
"""Bytes of an unfinished reply that are kept for a look; an attribute behind a longer one is
missed: the look would hold up the loop for too long, and anybody's values may cause it."""

_BULK, _ROWS, _PAIRS, _ATTRIBUTE = b"$=!", b"*~>", b"%|", ord("|")


class NestedAttribute(ValueError):
    """An attribute inside of a reply, which hiredis counts as one of its elements."""


class Attributes:
    """Looks for attributes in what a reader is fed with."""

    __slots__ = ("_marks", "_missed", "_size", "_tail", "kept")

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        """What the reader has got since it last had nothing left."""
        self._marks: deque[bool] = deque()
        self.finished()

    def look(self, data: bytes) -> deque[bool] | None:
        """Whether each thing that the reader returns next is an attribute, None if none is.

        The caller takes a mark out for each. Raises ``NestedAttribute``.
        """
        if not self._missed and HEAD.search(self._tail + data):
            before = b"".join(self.kept)
            ends = _top_level(before + data)
            self._marks = deque(mark for end, mark in ends if end > len(before))
        return self._marks if any(self._marks) else None

    def finished(self) -> None:
        """The reader has returned all that it was fed with."""
        self._missed = False
        self._size = 0
        self._tail = b""
        self._marks.clear()
        self.kept.clear()

    def unfinished(self, data: bytes) -> None:
        """The reader has returned all but the rest of ``data``, or of what came before."""
        self._size += len(data)
        self._tail = (self._tail + data[-LONGEST_HEAD:])[-LONGEST_HEAD:]
        if self._size > KEPT:
            self._missed = True
            self.kept = [b""]
        elif data:
            self.kept.append(data)


def _top_level(data: bytes) -> Iterator[tuple[int, bool]]:
    """Where each reply, push or attribute in ``data`` ends, and whether it is an attribute.

    One that is not complete ends behind the data. Bytes that are not RESP are left to the reader.
    """
    position, size = 0, len(data)
    while position < size:
        is_attribute = data[position] == _ATTRIBUTE
        left, at_top = 1, True
        while left:
            end = data.find(b"\r\n", position)
            if end < 0:
                yield size + 1, is_attribute
                return
            kind, left = data[position], left - 1
            if kind == _ATTRIBUTE and not at_top:
                raise NestedAttribute("an attribute inside of a reply")
            at_top = False
            if kind in _BULK or kind in _ROWS or kind in _PAIRS:
                try:
                    count = max(int(data[position + 1 : end]), -1)
                except ValueError:
                    return
                if kind in _BULK:
                    end += count + 2 if count >= 0 else 0
                elif count > 0:
                    left += count * (2 if kind in _PAIRS else 1)
            position = end + 2
            if position > size:
                yield size + 1, is_attribute
                return
        yield position, is_attribute
