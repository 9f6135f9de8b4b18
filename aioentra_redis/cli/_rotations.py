"""Counting rotations: the token has changed when every connection has taken the new one."""

from __future__ import annotations

__all__ = ["Rotations"]


class Rotations:
    """How often the oldest token that any connection has was a newer one; ``count`` never falls.

    Versions of tokens are consecutive numbers, and connections are told apart by their names.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: int | None = None
        self._versions: dict[str, int] = {}

    def opened(self, connection: str, version: int) -> None:
        """A connection has signed in, usually with the newest token."""
        self._first = version if self._first is None else min(self._first, version)
        self._versions[connection] = version

    def changed(self, connection: str, version: int) -> bool:
        """A connection took another token; whether all others had waited for it."""
        self._versions[connection] = version
        return self._counted()

    def closed(self, connection: str) -> bool:
        """A connection has ended, or is about to; whether all others had waited for it."""
        self._versions.pop(connection, None)
        return self._counted()

    def _counted(self) -> bool:
        if not self._versions or self._first is None:
            return False
        before, self.count = self.count, max(self.count, min(self._versions.values()) - self._first)
        return self.count > before
