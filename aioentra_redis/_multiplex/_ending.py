"""How a session's socket ends, and what those who wait for its replies are told."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConnectionLostError

if TYPE_CHECKING:
    from .._redis_py import Dialed

__all__ = ["Ending", "ignore_outcome", "see_off"]

GOODBYE: Final = 1.0
"""Seconds that a server gets to close a TLS connection from its side."""


class Ending(asyncio.Protocol):
    """The end that every session has in common; a session says in ``_end`` what else it ends.

    ``_end`` is called with the cause, None if it was closed on purpose; the first call counts.
    """

    dialed: Dialed
    host: str
    closed: bool
    cause: Exception | None
    _lost: asyncio.Future[None]
    """Done when the socket is closed."""
    _original: Any
    """The protocol that the transport had before ours: redis-py's streams."""

    @abstractmethod
    def close(self) -> None:
        """Close at once; a session that has ended, but whose socket lingers, is cut off."""

    @abstractmethod
    def _end(self, cause: Exception | None) -> None:
        """Close the socket and tell everybody; does nothing a second time."""

    async def wait_closed(self) -> None:
        """Wait until the socket is closed and redis-py's objects have heard of it."""
        await asyncio.shield(self._lost)

    def eof_received(self) -> bool:
        """The server has ended its side (called by the transport, which then closes)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed (called by the transport)."""
        self.dialed.release(self._original, exc)
        text = f"the connection to {self.host} was closed by the server"
        cause = ConnectionLostError(text if exc is None else f"{text}: {exc}")
        cause.__cause__ = exc
        self._end(cause)
        if not self._lost.done():
            self._lost.set_result(None)

    def _loss(self, written: bool) -> ConnectionLostError:
        """A new error for one caller; ``written`` says whether the server may have the command."""
        error = ConnectionLostError(
            str(self.cause) if self.cause else f"the connection to {self.host} was closed"
        )
        error.written = written
        error.__cause__ = self.cause
        return error


async def see_off(sessions: Collection[Ending]) -> None:
    """Close sessions, and wait until they are; no longer than ``GOODBYE``."""
    for session in sessions:
        if not session.closed:
            session.close()
    try:
        async with asyncio.timeout(GOODBYE):
            for session in sessions:
                await session.wait_closed()
    except TimeoutError:
        for session in sessions:
            session.close()  # cut off: the peer does not say goodbye


def ignore_outcome(future: asyncio.Future[Any]) -> None:
    """Whoever asked may have stopped to care; that is no reason for asyncio to complain."""
    if not future.cancelled():
        future.exception()
