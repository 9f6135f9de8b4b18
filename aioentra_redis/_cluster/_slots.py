"""Which slot a key belongs to, and which words of a command are keys; pure functions.

What the server's COMMAND says of a command suffices where its keys have fixed places. Where they
can move, the server would have to be asked (COMMAND GETKEYS) at each call: a round trip. The
commands that redis-py has methods for are in the table below instead.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Final

__all__ = ["MOVABLE", "SLOTS", "Finder", "find_in_range", "slot_of"]

SLOTS: Final = 16384

Finder = Callable[[Sequence[Any]], Sequence[Any]]
"""From the words of a command to its keys; ``LookupError`` or ``ValueError`` where they are not
what the command wants, which the server will say."""


def slot_of(key: bytes) -> int:
    """The slot of a key; with a hash tag, ``{...}``, that of what is in the first braces."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) & 16383


def find_in_range(first: int, last: int, step: int) -> Finder:
    """Keys from ``first`` to ``last``, from the end if negative, each ``step`` words."""

    def find(args: Sequence[Any]) -> Sequence[Any]:
        stop = len(args) + last if last < 0 else last
        keys = args[first : stop + 1 : step]
        if not keys:
            raise IndexError("the command has no key")
        return keys

    return find


def _counted(count: int, *before: int) -> Finder:
    """As many keys as the word at ``count`` says, behind it, and those at ``before``."""

    def find(args: Sequence[Any]) -> Sequence[Any]:
        number = int(args[count])
        if number < 0:
            raise ValueError("a negative number of keys")
        keys = args[count + 1 : count + 1 + number]
        return (*(args[position] for position in before), *keys)

    return find


def _behind_streams(args: Sequence[Any]) -> Sequence[Any]:
    """XREAD's keys: the first half of what follows STREAMS; a group may have that name."""
    start = 4 if _text(args[1]) == "GROUP" else 1
    for position in range(start, len(args)):
        if _text(args[position]) == "STREAMS":
            rest = args[position + 1 :]
            return rest[: (len(rest) + 1) // 2]
    raise IndexError("no STREAMS")


def _text(word: Any) -> str:
    if isinstance(word, (bytes, bytearray, memoryview)):
        return bytes(word).decode("latin-1").upper()
    return str(word).upper()


MOVABLE: Final = MappingProxyType(
    {
        **dict.fromkeys(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"), _counted(2)),
        **dict.fromkeys(("FCALL", "FCALL_RO"), _counted(2)),
        **dict.fromkeys(("ZDIFF", "ZINTER", "ZUNION", "ZINTERCARD", "SINTERCARD"), _counted(1)),
        **dict.fromkeys(("LMPOP", "ZMPOP"), _counted(1)),
        **dict.fromkeys(("BLMPOP", "BZMPOP"), _counted(2)),
        **dict.fromkeys(("ZDIFFSTORE", "ZINTERSTORE", "ZUNIONSTORE"), _counted(2, 1)),
        **dict.fromkeys(("XREAD", "XREADGROUP"), _behind_streams),
    }
)
"""The commands whose keys have no fixed places, by name, each with how to find them."""
