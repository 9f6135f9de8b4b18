"""The ledger: which token the server holds for a connection, and how its last AUTH went.

A connection's state moves by this table and no other way; ``_reauth.py`` drives it::

    AUTHENTICATED     holds the newest token it was asked to hold
        | a newer token is sent                        | a replacement has authenticated
        v                                              v
    REAUTHENTICATING  AUTH is in the FIFO          DRAINING  in-flight commands finish here
        | refused, unanswered for AUTH_TIMEOUT,        |
        v or held back by the breaker                  v
    STALE             the session goes on          CLOSED    final
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from .._events import ConnectionState, ConnectionStatus

if TYPE_CHECKING:
    from .._token import Token

__all__ = ["TRANSITIONS", "Ledger"]

logger = logging.getLogger("aioentra_redis.reauth")

TRANSITIONS: Final[dict[ConnectionState, frozenset[ConnectionState]]] = {
    ConnectionState.AUTHENTICATED: frozenset(
        {
            ConnectionState.REAUTHENTICATING,
            ConnectionState.STALE,  # it takes no AUTH, or none is sent: see ``_breaker``
            ConnectionState.DRAINING,
            ConnectionState.CLOSED,
        }
    ),
    ConnectionState.REAUTHENTICATING: frozenset(
        {
            ConnectionState.AUTHENTICATED,
            ConnectionState.STALE,
            ConnectionState.DRAINING,
            ConnectionState.CLOSED,
        }
    ),
    ConnectionState.STALE: frozenset(
        {
            ConnectionState.AUTHENTICATED,  # the answer came after all
            ConnectionState.REAUTHENTICATING,
            ConnectionState.DRAINING,
            ConnectionState.CLOSED,
        }
    ),
    ConnectionState.DRAINING: frozenset({ConnectionState.CLOSED}),
    ConnectionState.CLOSED: frozenset(),
}


class Ledger:
    """What one connection holds: the token, its state, and how the last AUTH went.

    ``token`` is None where no token source is used. Latencies are in seconds.
    """

    def __init__(self, connection: str, token: Token | None, latency: float) -> None:
        self.connection = connection
        self.state: ConnectionState = ConnectionState.AUTHENTICATED
        self.token = token
        self.last_auth_at: float | None = token.first_seen if token else None
        self.last_auth_latency: float = latency
        self.reauthentications: int = 0
        self.last_error: Exception | None = None
        """Why the connection is STALE."""

    def move_to(self, state: ConnectionState) -> None:
        """The one setter of the state; raises RuntimeError on a transition not in the table."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.connection} can't go from {self.state} to {state}")
        logger.debug("%s: %s -> %s", self.connection, self.state.value, state.value)
        self.state = state
        if state is not ConnectionState.STALE:
            self.last_error = None

    def accepted(self, token: Token, *, now: float, latency: float) -> None:
        """The server has taken ``token``; the state is another matter, see ``move_to``."""
        self.token = token
        self.last_auth_at = now
        self.last_auth_latency = latency
        self.reauthentications += 1

    def close(self) -> None:
        """The connection is gone."""
        if self.state is not ConnectionState.CLOSED:
            self.move_to(ConnectionState.CLOSED)

    def status(self, *, host: str, in_flight: int) -> ConnectionStatus:
        """A snapshot."""
        token = self.token
        return ConnectionStatus(
            connection=self.connection,
            host=host,
            state=self.state,
            token_version=token.version if token else None,
            token_expires_on=token.expires_on if token else None,
            last_auth_at=self.last_auth_at,
            last_auth_latency=self.last_auth_latency,
            in_flight=in_flight,
            reauthentications=self.reauthentications,
            last_error=self.last_error,
        )
