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
from collections.abc import Iterable, Mapping
from typing import Any, Final

import hiredis

__all__ = ["TRANSITIONS", "Mode", "Traffic"]


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


class Traffic:
    """Counts the replies that are owed, and follows the mode, of one connection.

    ``owed`` means little in modes other than ``COMMANDS`` and ``TRANSACTION``, where messages come
    unasked. A command of redis-py's costs about 0.5 us.
    """

    __slots__ = ("_moves", "_reader", "mode", "owed")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new connection: nothing is owed, and no mode was asked for."""
        self.owed = 0
        self.mode = Mode.COMMANDS
        self._moves: Mapping[bytes, Mode] = TRANSITIONS[Mode.COMMANDS]
        self._reader: Any = hiredis.Reader()

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
