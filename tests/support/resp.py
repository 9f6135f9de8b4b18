"""RESP by hand, for tests that look at bytes: packing, and a slow but obvious parser."""

from __future__ import annotations

from collections.abc import Iterable

Reply = tuple[str, object]
"""A type byte and what follows it, nested for aggregates."""


def pack(*arguments: bytes | str) -> bytes:
    """A command as RESP."""
    words = [each.encode() if isinstance(each, str) else each for each in arguments]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def chunks(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """``data`` in pieces of these sizes, the rest in one."""
    pieces: list[bytes] = []
    position = 0
    for size in sizes:
        pieces.append(data[position : position + size])
        position += size
    pieces.append(data[position:])
    return [each for each in pieces if each]


def parse(data: bytes | bytearray, position: int = 0) -> tuple[Reply, int] | None:
    """The first reply in ``data`` and the position behind it; None if it is not all there."""
    end = data.find(b"\r\n", position)
    if end < 0:
        return None
    kind, line, position = chr(data[position]), bytes(data[position + 1 : end]), end + 2
    if kind in "+-:_#,(":
        return (kind, line), position
    if kind in "$=!":
        length = int(line)
        if length < 0:
            return (kind, None), position
        if len(data) < position + length + 2:
            return None
        return (kind, bytes(data[position : position + length])), position + length + 2
    elements: list[Reply] = []
    for _ in range(max(int(line), 0) * (2 if kind == "%" else 1)):
        found = parse(data, position)
        if found is None:
            return None
        element, position = found
        elements.append(element)
    return (kind, elements), position
