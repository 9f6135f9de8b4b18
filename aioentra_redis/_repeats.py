"""How loudly to log what an outage repeats: aloud when it is news, and once a minute."""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["REMINDER", "Repeats"]

REMINDER: Final = 60.0
"""Seconds after which a repetition is logged aloud again."""


class Repeats:
    """What one object has logged of late. The rest of a repetition goes to DEBUG.

    ``news`` is what makes a difference: the class of an error rather than its text, which may name
    a number that changes each time. ``now`` is in seconds of any clock.
    """

    def __init__(self) -> None:
        self._news: object = None
        self._said_at = 0.0

    def level(self, loud: int, news: object, now: float) -> int:
        """The level to log at: ``loud`` or DEBUG."""
        if news == self._news and now < self._said_at + REMINDER:
            return logging.DEBUG
        self._news, self._said_at = news, now
        return loud

    def over(self) -> None:
        """It has ended: the next time is news."""
        self._news = None
