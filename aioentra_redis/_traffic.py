"""What one redis-py connection owes its owner: replies, and whether AUTH may go in between.

AUTH among somebody else's commands is safe where nothing is owed, for then the next reply is
AUTH's own; and where the server is in no mode in which AUTH means something else. Between MULTI
and EXEC it would be queued and add an element to EXEC's reply, a RESP2 subscriber gets an error,
and after MONITOR the next line is anybody's command.

Like the engine of the multiplexed connection this does no I/O: it is told what was sent and that
a reply was read. Modes move by this table and no other way; what is not in it changes nothing.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import hiredis

__all__ = ["TRANSITIONS", "Mode", "Subscriptions", "Traffic"]


class Mode(enum.Enum):
    """What the server takes the next command for."""

    COMMANDS = "commands"
    TRANSACTION = "transaction"
    SUBSCRIBED = "subscribed"
    MONITOR = "monitor"
    UNKNOWN = "unknown"
    """Something was sent that is not made of RESP arrays, so nothing can be said of it."""


TRANSITIONS: Final[dict[Mode, dict[bytes, Mode]]] = {
    Mode.COMMANDS: {
        b"MULTI": Mode.TRANSACTION,
        b"SUBSCRIBE": Mode.SUBSCRIBED,
        b"PSUBSCRIBE": Mode.SUBSCRIBED,
        b"SSUBSCRIBE": Mode.SUBSCRIBED,
        b"MONITOR": Mode.MONITOR,
    },
    Mode.TRANSACTION: {
        b"EXEC": Mode.COMMANDS,
        b"DISCARD": Mode.COMMANDS,
        b"RESET": Mode.COMMANDS,
    },
    # Unsubscribing is no way out: how many subscriptions are left, the replies say.
    Mode.SUBSCRIBED: {b"RESET": Mode.COMMANDS},
    Mode.MONITOR: {b"RESET": Mode.COMMANDS},
    Mode.UNKNOWN: {},
}
"""From a mode, by a command's name, to the next one."""


_SUBSCRIBED: Final = Mode.SUBSCRIBED


class Traffic:
    """Counts the replies that are owed, and follows the mode, of one connection.

    ``owed`` means little in modes other than ``COMMANDS`` and ``TRANSACTION``, where messages come
    unasked. A command of redis-py's costs about 0.5 us.
    """

    __slots__ = ("_moves", "_reader", "mode", "owed", "subscriptions")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new connection: nothing is owed, and no mode was asked for."""
        self.owed = 0
        self.mode = Mode.COMMANDS
        self._moves: Mapping[bytes, Mode] = TRANSITIONS[Mode.COMMANDS]
        self._reader: Any = hiredis.Reader()
        self.subscriptions = Subscriptions()

    def sent(self, chunks: str | bytes | memoryview | Iterable[bytes | memoryview]) -> None:
        """Something was, or is about to be, written: any number of commands in any pieces."""
        reader = self._reader
        try:
            if isinstance(chunks, (bytes, memoryview)):
                reader.feed(chunks)
            elif isinstance(chunks, str):
                reader.feed(chunks.encode())
            else:
                for chunk in chunks:
                    reader.feed(chunk)
            # Requests are arrays of strings, so a reader of replies can read them.
            while (words := reader.gets()) is not False:
                self.owed += 1
                moved = self._moves.get(words[0].upper())
                if moved is not None:
                    self._move_to(moved)
                if self.mode is _SUBSCRIBED:
                    self.subscriptions.sent(words)
        except (hiredis.HiredisError, AttributeError, IndexError, TypeError):
            self._move_to(Mode.UNKNOWN)

    def received(self) -> None:
        """A reply was read."""
        if self.owed:  # what a monitor reads was never owed
            self.owed -= 1

    @property
    def quiet(self) -> bool:
        """Whether the next reply would be that of the next command, whoever sends it."""
        return not self.owed and self.mode is Mode.COMMANDS

    def _move_to(self, mode: Mode) -> None:
        self.mode = mode
        self._moves = TRANSITIONS[mode]

    def __repr__(self) -> str:
        return f"<Traffic {self.mode.value}, {self.owed} owed>"


_CHANGES: Final[dict[bytes, str]] = {
    b"SUBSCRIBE": "channels",
    b"UNSUBSCRIBE": "channels",
    b"PSUBSCRIBE": "patterns",
    b"PUNSUBSCRIBE": "patterns",
    b"SSUBSCRIBE": "sharded",
    b"SUNSUBSCRIBE": "sharded",
}
"""The commands that change subscriptions, and which of the three sets of channels they change."""


class Subscriptions:
    """What a RESP3 subscriber is owed: plain replies, and confirmations, which come as pushes.

    With RESP3 a subscriber may send any command, AUTH too, and messages are told from replies by
    their type. What can't be told is whether an error is the answer to AUTH or to a SUBSCRIBE
    that was refused; so AUTH is for when nothing is owed, and then the next plain reply is its.

    ``sent`` takes each command, ``pushed`` each push, ``replied`` each plain reply. In doubt
    something remains owed for ever, and there is no AUTH.
    """

    __slots__ = ("_channels", "_owed")

    def __init__(self) -> None:
        # The name of a change and how many confirmations are left of it, None for "until the set
        # is empty"; or what was passed to `expect`.
        self._owed: deque[tuple[object, int | None]] = deque()
        self._channels: dict[str, set[object]] = {kind: set() for kind in _CHANGES.values()}

    @property
    def quiet(self) -> bool:
        """Whether the next plain reply would be that of the next command."""
        return not self._owed

    def sent(self, words: list[bytes]) -> None:
        """A command was, or is about to be, written."""
        name = words[0].upper()
        if name not in _CHANGES:
            self._owed.append((None, 1))
        else:
            self._owed.append((name, len(words) - 1 or None))

    def expect(self, mark: object) -> None:
        """A command was written whose plain reply ``replied`` is to give back as ``mark``."""
        self._owed.append((mark, 1))

    def pushed(self, push: list[Any]) -> None:
        """A push was read, of any kind."""
        name = push[0] if push else None
        if isinstance(name, str):
            name = name.encode()
        if not isinstance(name, bytes) or (name := name.upper()) not in _CHANGES or len(push) < 2:
            return
        channels = self._channels[_CHANGES[name]]
        if b"UNSUB" in name:
            channels.discard(push[1])
        else:
            channels.add(push[1])
        # A server may take a sharded channel away without having been asked.
        if self._owed and self._owed[0][0] == name:
            left = self._owed.popleft()[1]
            if left is None:
                if channels:
                    self._owed.appendleft((name, None))
            elif left > 1:
                self._owed.appendleft((name, left - 1))

    def replied(self) -> object:
        """A plain reply was read, an error included; returns the mark of what it answers, if any.

        It is the answer to the oldest command, be that a subscription which was refused.
        """
        answered = self._owed.popleft()[0] if self._owed else None
        return None if isinstance(answered, bytes) else answered
