"""What servers say of their maintenance: out-of-band messages of the RESP3 protocol.

::

    MOVING       <sequence> <seconds> <host:port, or null>
    MIGRATING    <sequence> <seconds>      MIGRATED     <sequence>
    FAILING_OVER <sequence> <seconds>      FAILED_OVER  <sequence>
    SMIGRATING   <sequence> <slots>        SMIGRATED    <sequence> [[<from> <to> <slots>] ...]

Read tolerantly: what is missing or has another form is left out, and nothing ever raises. A
message of a kind that is not known is no notice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ._events import MaintenanceAnnounced, MaintenanceKind

__all__ = ["notice_in"]

_K = MaintenanceKind
_WITH_SECONDS = (_K.MOVING, _K.MIGRATING, _K.FAILING_OVER)


def notice_in(push: Sequence[Any], *, connection: str, host: str) -> MaintenanceAnnounced | None:
    """What ``push`` announces to the connection of that name, None if it is about other things."""
    try:
        kind = MaintenanceKind(_text(push[0]))
    except (ValueError, IndexError):
        return None
    words = [*push[1:], None, None, None]
    sequence = _number(words[0])
    return MaintenanceAnnounced(
        connection,
        host,
        kind,
        sequence=None if sequence is None else int(sequence),
        seconds=_number(words[1]) if kind in _WITH_SECONDS else None,
        target=_text(words[2]) if kind is _K.MOVING else None,
        slots=_text(words[1]) if kind is _K.SMIGRATING else None,
        moves=_moves(words[1]) if kind is _K.SMIGRATED else (),
    )


def _moves(rows: Any) -> tuple[tuple[str, str, str], ...]:
    """The triples of SMIGRATED."""
    found = []
    for row in rows if isinstance(rows, list | tuple) else ():
        texts = [_text(each) for each in row] if isinstance(row, list | tuple) else []
        if len(texts) == 3 and None not in texts:
            found.append((texts[0] or "", texts[1] or "", texts[2] or ""))
    return tuple(found)


def _text(word: Any) -> str | None:
    if isinstance(word, bytes):
        return word.decode("utf-8", "replace") or None
    return word or None if isinstance(word, str) else None


def _number(word: Any) -> float | None:
    try:
        number = float(word)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
