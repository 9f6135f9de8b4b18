"""The connection a client keeps for itself: ``client()``, ``single_connection_client=True``.

It comes from a pool and goes back there, so two things are watched that redis-py does not:

- what changes a connection (SELECT, MULTI, CLIENT REPLY, ...) must not reach the next one who
  leases it, which may be a BLPOP of somebody else's: such a connection is closed on its way back;
- redis-py opens a closed connection again without a word. WAIT would then answer for one on which
  nothing was written, and claim a durability that is not there: it raises instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from ._multiplex._routing import answers_for_writes, changes_connection, command_words
from .errors import ConnectionLostError

__all__ = ["HeldConnection"]


class HeldConnection:
    """What has happened to ``connection``, which is redis-py's, since a client holds it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._changed = False
        self._used = False
        self._reopened = False
        # Else it is of the user's own making.
        self._listens = hasattr(connection, "register_connect_callback")
        if self._listens:
            connection.register_connect_callback(self._connected)

    def _connected(self, _: Any) -> None:
        self._reopened = self._reopened or self._used

    async def around(self, args: Sequence[Any], command: Awaitable[Any]) -> Any:
        """The reply of ``command``, whose words are ``args``.

        Raises ``ConnectionLostError`` instead where it would claim too much, once for each time
        that the connection was lost.
        """
        words = command_words(args)
        self._changed = self._changed or changes_connection(words)
        self._used = True
        reply = await command
        if self._reopened and answers_for_writes(words):
            self._reopened = False
            raise ConnectionLostError(
                f"{words} does not answer for all that was written: the connection was lost and "
                "opened again since. Write it once more before you ask"
            )
        return reply

    async def let_go(self) -> None:
        """Make it fit for whoever leases it next; to be called before it goes back to its pool."""
        if self._listens:
            # It is held weakly, but its place would be kept for as long as the connection lives.
            self._connection.deregister_connect_callback(self._connected)
        if self._changed:
            await self._connection.disconnect(nowait=True)
