"""What was found to be broken."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable

__all__ = ["Findings", "Kind"]

SHOWN = 20
"""How many of each kind are kept word for word: a soak must not grow by its own records."""


class Kind(enum.Enum):
    """Each is a row of the table at the end, whose target is 0."""

    LOST = "acknowledged writes lost"
    TWICE = "writes applied twice, or although they had failed"
    WRONG_REPLY = "replies delivered to the wrong caller"
    UNDELIVERED = "elements or messages that did not arrive"
    LATE_AUTH = "AUTHs answered after the deadline"
    EXPIRED = "connections closed for expiry"
    UNEXPLAINED = "failures that no fault explains"


class Findings:
    """Counts by kind, and the first of each in words, which ``tell`` is told at once."""

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self._tell = tell
        self.counts: Counter[Kind] = Counter()
        self.texts: dict[Kind, list[str]] = {}

    def add(self, kind: Kind, text: str) -> None:
        self.counts[kind] += 1
        texts = self.texts.setdefault(kind, [])
        if len(texts) < SHOWN:
            texts.append(text)
            self._tell(f"{kind.value}: {text}")

    def of(self, kind: Kind) -> list[str]:
        return self.texts.get(kind, [])

    def __len__(self) -> int:
        return self.counts.total()
