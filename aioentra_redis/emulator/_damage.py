"""What is wrong with one connection's wire: which bytes pass, wait, or are the last. No I/O."""

from __future__ import annotations

from typing import Final

__all__ = ["NOTHING", "Damage"]

NOTHING: Final = b""


class Damage:
    """A wire that is frozen, or that breaks after so many more bytes of replies.

    Frozen, it takes bytes and lets none come back: what waits passes with ``thaw``, in order and
    complete, as after an outage that TCP outlasts. With ``executes`` only the replies wait.
    """

    def __init__(self) -> None:
        self.frozen = False
        self.executes = False
        self._left: int | None = None
        self._broken = False
        self._requests: list[bytes] = []
        self._replies: list[bytes] = []

    def freeze(self, *, executes: bool) -> None:
        """Let nothing come back from now on."""
        self.frozen = True
        self.executes = executes

    def break_after(self, size: int) -> None:
        """Let ``size`` more bytes of replies pass, and nothing behind them."""
        self._left = size

    def requests(self, data: bytes) -> bytes:
        """What of ``data`` from the client passes now."""
        if self.frozen and not self.executes:
            self._requests.append(data)
            return NOTHING
        return data

    def replies(self, data: bytes) -> tuple[bytes, bool]:
        """What of ``data`` for the client passes now, and whether the wire breaks behind it.

        It breaks once, at the first byte that may not pass any more, not before.
        """
        if self.frozen:
            self._replies.append(data)
            return NOTHING, False
        if self._broken:
            return NOTHING, False
        if self._left is None or len(data) <= self._left:
            if self._left is not None:
                self._left -= len(data)
            return data, False
        self._broken = True
        return data[: self._left], True

    def thaw(self) -> tuple[bytes, bytes]:
        """Let everything pass again; return the requests and the replies that have waited."""
        self.frozen = False
        self._left = None
        requests, self._requests = b"".join(self._requests), []
        replies, self._replies = b"".join(self._replies), []
        return requests, replies
