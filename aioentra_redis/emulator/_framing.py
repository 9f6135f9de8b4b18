"""Finding where commands and replies begin and end, without reading what is in them.

Both framers are resumable at any byte, never look at a byte twice but for the header of a command
that is still incomplete, and hold no payload but that of the few commands the front must see
whole. They do no I/O.

Whatever a framer does not understand it passes on untouched, from there to the end of the
connection: the server is the judge of bad protocol, and its answer is the native one. That is
safe, because only the front knows the secrets of the server's users.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Command", "Notice", "Passage", "ReplyFramer", "RequestFramer"]

WHOLE = frozenset({b"AUTH", b"HELLO", b"CLIENT"})
"""Commands that are collected with all their arguments."""

NOTED = frozenset(
    {
        b"SUBSCRIBE",
        b"PSUBSCRIBE",
        b"SSUBSCRIBE",
        b"UNSUBSCRIBE",
        b"PUNSUBSCRIBE",
        b"SUNSUBSCRIBE",
        b"MONITOR",
        b"SYNC",
        b"PSYNC",
    }
)
"""Commands that are pointed out, because they are not answered by exactly one reply."""

LENGTHS = frozenset(map(len, WHOLE | NOTED))

MAX_LINE = 64 * 1024
"""The longest header or inline command: PROTO_INLINE_MAX_SIZE of the servers."""

MAX_WHOLE = 64 * 1024
"""The largest command that is collected; a token has 1-3 kB. A larger one passes as any other,
and an AUTH that passes is refused by the server."""

STAR, DOLLAR = b"*$"


@dataclass(frozen=True, slots=True)
class Passage:
    """Bytes to pass on as they are; ``commands`` begin in them that get one reply each."""

    data: bytes
    commands: int


@dataclass(frozen=True, slots=True)
class Command:
    """A command of ``WHOLE`` with its arguments; ``raw`` is how the client wrote it."""

    arguments: list[bytes]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """A command of ``NOTED`` begins here; its bytes come in the next passages, uncounted."""

    name: bytes
    arguments: int


class RequestFramer:
    """Cuts a client's stream into passages, commands to look at, and notices.

    Commands of ``also_whole`` (upper case) are looked at as those of ``WHOLE`` are.
    """

    __slots__ = ("_arguments", "_held", "_lengths", "_noted", "_opaque", "_skip", "_whole")

    def __init__(self, also_whole: frozenset[bytes] = frozenset()) -> None:
        self._whole = WHOLE | also_whole
        self._noted = NOTED - also_whole
        self._lengths = LENGTHS | set(map(len, also_whole)) if also_whole else LENGTHS
        self._held = b""  # the header of a command that is still incomplete
        self._skip = 0  # bytes that are left of the argument we are in
        self._arguments = 0  # arguments of the current command that are still to come
        self._opaque = False

    @property
    def idle(self) -> bool:
        """Whether the stream stands between two commands."""
        return not (self._held or self._skip or self._arguments or self._opaque)

    def feed(self, data: bytes) -> list[Passage | Command | Notice]:
        """Take the next bytes; return what they complete, in order. Never raises."""
        if self._opaque:
            return [Passage(data, 0)]
        if self._held:
            data = self._held + data
        items: list[Passage | Command | Notice] = []
        whole, noted, lengths = self._whole, self._noted, self._lengths
        find, size = data.find, len(data)
        skip, arguments = self._skip, self._arguments
        start = 0  # of the bytes that are to be passed on
        position = 0  # of the first byte that is not understood yet
        commands = 0  # that begin between the two

        def cut(end: int) -> None:
            nonlocal start, commands
            if end > start:
                items.append(Passage(data[start:end] if end - start < size else data, commands))
            start, commands = end, 0

        try:
            while True:
                if skip:
                    step = min(skip, size - position)
                    position += step
                    skip -= step
                    if skip:
                        break
                if arguments:
                    end = find(b"\r\n", position)
                    if end < 0:
                        _check_line(size - position)
                        break
                    skip = _bulk_length(data, position, end) + 2
                    arguments -= 1
                    position = end + 2
                    continue
                if position >= size:
                    break
                if data[position] != STAR:
                    end = find(b"\n", position)
                    if end < 0:
                        _check_line(size - position)
                        break
                    words = data[position:end].split()
                    if words:
                        name = words[0].upper()
                        if name in whole:
                            cut(position)
                            start = end + 1
                            items.append(Command(words, data[position:start]))
                        elif name in noted:
                            cut(position)
                            items.append(Notice(name, len(words)))
                        else:
                            commands += 1
                    position = end + 1
                    continue
                end = find(b"\r\n", position)
                if end < 0:
                    _check_line(size - position)
                    break
                count = int(data[position + 1 : end])
                if count <= 0:
                    position = end + 2
                    continue
                header = end + 2
                end = find(b"\r\n", header)
                if end < 0:
                    _check_line(size - header)
                    break
                length = _bulk_length(data, header, end)
                counted = 1
                if length in lengths:
                    if size < end + 2 + length:
                        break
                    name = data[end + 2 : end + 2 + length].upper()
                    if name in noted:
                        cut(position)
                        items.append(Notice(name, count))
                        counted = 0
                    elif name in whole:
                        collected = _collect(data, header, count)
                        if collected is None:
                            if size - position <= MAX_WHOLE:
                                break
                        elif collected[1] - position <= MAX_WHOLE:
                            words, after = collected
                            cut(position)
                            items.append(Command(words, data[position:after]))
                            position = start = after
                            continue
                commands += counted
                skip, arguments = length + 2, count - 1
                position = end + 2
        except ValueError:
            # Not RESP (any more): from here on everything passes.
            self._opaque = True
            position = size
        cut(position)
        self._held = data[position:]
        self._skip, self._arguments = skip, arguments
        return items


def _check_line(length: int) -> None:
    if length > MAX_LINE:
        raise ValueError("line too long")


def _bulk_length(data: bytes, position: int, end: int) -> int:
    """The length in the header between two positions; ValueError if it is none."""
    if data[position] != DOLLAR:
        raise ValueError("expected a bulk string")
    length = int(data[position + 1 : end])
    if length < 0:
        raise ValueError("negative length")
    return length


def _collect(data: bytes, position: int, count: int) -> tuple[list[bytes], int] | None:
    """``count`` bulk strings and the position behind them, or None if they are not all there."""
    words = []
    for _ in range(count):
        end = data.find(b"\r\n", position)
        if end < 0:
            _check_line(len(data) - position)
            return None
        begin = end + 2
        end = begin + _bulk_length(data, position, end)
        position = end + 2
        if position > len(data):
            return None
        words.append(data[begin:end])
    return words, position


# ------------------------------------------------------------------------------------- replies

SIMPLE = frozenset(b"+-:_#,(")
BULK = frozenset(b"$=!")
CHILDREN = {STAR: 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}
"""Type byte of an aggregate to the number of elements per unit of its length."""

PUSH, ATTRIBUTE, ERROR = b">|-"
MAX_KIND = 64


class ReplyFramer:
    """Finds the replies in a server's stream and yields the first line of each.

    Raises ValueError for bytes that are no RESP; the framer is of no use afterwards.
    """

    __slots__ = ("_elements", "_head", "_held", "_skip")

    def __init__(self) -> None:
        self._held = b""  # a line that is still incomplete
        self._skip = 0  # bytes that are left of the bulk string we are in
        self._elements = 0  # elements of the current reply that are still to come
        self._head = b""  # the current reply's first line

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the first line of each reply that they complete.

        The line comes without its end: ``b"+OK"``, ``b"$5"``, ``b"-WRONGPASS ..."``. For a push,
        it is ``b">"`` and the kind instead: ``b">message"``.
        """
        if self._held:
            data = self._held + data
        heads: list[bytes] = []
        find, size = data.find, len(data)
        skip, elements, head = self._skip, self._elements, self._head
        position = 0
        while True:
            if skip:
                step = min(skip, size - position)
                position += step
                skip -= step
                if skip:
                    break
            if head and not elements:
                heads.append(head)
                head = b""
            if position >= size:
                break
            end = find(b"\r\n", position)
            if end < 0:
                break
            kind = data[position]
            if kind in BULK:
                length = int(data[position + 1 : end])
                if head == b">" and length <= MAX_KIND:
                    if size < end + 2 + length:
                        break
                    head += data[end + 2 : end + 2 + length]
                skip = length + 2 if length >= 0 else 0
            elif kind not in SIMPLE and kind not in CHILDREN:
                raise ValueError(f"no RESP type: {kind:#x}")
            if not head:
                head = b">" if kind == PUSH else data[position:end]
                elements = 1
            if kind in CHILDREN:
                children = int(data[position + 1 : end]) * CHILDREN[kind]
                # A null array has length -1; an attribute stands before the element it is about.
                elements += max(children, 0) + (1 if kind == ATTRIBUTE else 0)
            elements -= 1
            position = end + 2
        self._held = data[position:]
        self._skip, self._elements, self._head = skip, elements, head
        return heads
