"""What servers say of their maintenance: out-of-band messages of RESP3, and Azure's channel.

::

    MOVING       <sequence> <seconds> <host:port, or null>
    MIGRATING    <sequence> <seconds>      MIGRATED     <sequence>
    FAILING_OVER <sequence> <seconds>      FAILED_OVER  <sequence>
    SMIGRATING   <sequence> <slots>        SMIGRATED    <sequence> [[<from> <to> <slots>] ...]

On its channel Azure writes names and values in turn, in an order and with a case that differ::

    NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2026-11-22T10:00:00|IsReplica|False|
    IPAddress||SSLPort|15001|NonSSLPort|13001

Read tolerantly: what is missing or has another form is left out, and nothing ever raises. A
message of a kind that is not known is no notice.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any, Final

from ._events import AzureMaintenance, MaintenanceAnnounced, MaintenanceKind

__all__ = ["AZURE_CHANNEL", "azure_event_in", "notice_in"]

AZURE_CHANNEL: Final = "AzureRedisEvents"

LONGEST_TEXT: Final = 2000
"""Characters of a message that are kept."""

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


def azure_event_in(message: Any, *, host: str) -> AzureMaintenance:
    """What a message on Azure's channel says of the cache at ``host``."""
    text = (_text(message) or "")[:LONGEST_TEXT]
    words = [word.strip() for word in text.split("|")]
    said = {name.lower(): value for name, value in zip(words[::2], words[1::2], strict=False)}
    return AzureMaintenance(
        host,
        said.get("notificationtype", ""),
        _moment(said.get("starttimeinutc", "")),
        {"true": True, "false": False}.get(said.get("isreplica", "").lower()),
        said.get("ipaddress") or None,
        _port(said.get("sslport")),
        _port(said.get("nonsslport")),
        text,
    )


def _moment(text: str) -> float | None:
    """Seconds since the epoch; a time without a zone is in UTC, as the name says."""
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None


def _port(word: str | None) -> int | None:
    number = _number(word)
    return int(number) if number is not None and 0 < number < 1 << 16 else None
