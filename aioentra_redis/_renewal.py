"""When one connection of a plain redis-py client gets a newer token, and what comes of it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Final

from redis import exceptions as redis_exceptions

from ._events import AuthTrigger, ConnectionState, Reauthenticated, ReauthenticationFailed
from ._multiplex._ledger import Ledger
from ._multiplex._rotation import Probe
from ._schedule import reauth_deadline, reauth_delay
from ._servers import Attempt, is_refusal, server_of
from ._traffic import Mode, Traffic
from .errors import ConnectionLostError, EntraRedisError

if TYPE_CHECKING:
    from ._source import TokenSource
    from ._token import Token

__all__ = ["Renewal"]

logger = logging.getLogger("aioentra_redis.reauth")

LAST_MOMENTS: Final = 10.0
LAST_MOMENTS_FRACTION: Final = 0.05
"""Seconds, or the fraction of a shorter life, before a token's expiry in which a connection that
nobody uses is replaced rather than given a newer one: it might be ended in the middle."""

LONGEST_LOOKOUT: Final = 1.0
LOOKOUT_FRACTION: Final = 0.02

_REMEDIES: Final = {
    Mode.SUBSCRIBED: (
        "a RESP2 subscriber takes no newer one (use protocol=3, or EntraRedis), nor one that is "
        "not being read"
    ),
    Mode.MONITOR: "MONITOR takes no newer one: start it again",
    Mode.TRANSACTION: "a transaction that was begun takes no newer one",
}
_OTHERWISE: Final = (
    "a newer one is sent with the next command, and there was none in time, because one command "
    "was waited for all along or the connection was held without using it (EntraRedis does better)"
)


class Renewal:
    """One connection's ledger, and the decisions of ``_redis_py``'s ``Policy``.

    The share of the jitter is drawn once per connection, and counts from the moment the newer
    token arrived, so it does not matter how often a connection is used.
    """

    def __init__(self, source: TokenSource, *, name: str, host: str) -> None:
        self._source = source
        self._name = name
        self._host = host
        self._share = random.random()
        self._trigger = AuthTrigger.RENEWAL
        self._sent_at = 0.0
        self._held: Token
        self._refused = 0
        self._probe = Probe()
        self._probe_at = 0.0
        self._server = server_of(source, host)
        self._attempt: Attempt | None = None
        self.ledger: Ledger
        self.lookout = LONGEST_LOOKOUT

    def signed_in(self, token: Token) -> None:
        """The connection was made, or made anew: everything before is history."""
        self._held = token
        self._refused = 0
        self._probe, self._probe_at = Probe(), 0.0
        self.closed()
        self.ledger = Ledger(self._name, token, 0.0)
        self.lookout = min(LONGEST_LOOKOUT, LOOKOUT_FRACTION * token.lifetime)

    def due(self) -> Token | None:
        """A newer token, once this connection's time has come."""
        held, newest = self._held, self._source.current
        if newest is None or newest.version <= held.version:
            return None
        now = self._source.now
        age = now(newest) - newest.first_seen
        if now() >= newest.expires_on:
            return None
        jitter = reauth_delay(held, now(held) - age, lambda: self._share)
        if newest.version == self._refused:
            if asyncio.get_running_loop().time() < self._probe_at:
                return None
        elif age < jitter:
            return None
        late = now(held) >= reauth_deadline(held)
        if not self._begin(newest, late=late):
            return None
        self._sent_at = asyncio.get_running_loop().time()
        if newest.version == self._refused:
            self._trigger = AuthTrigger.PROBE
        else:
            self._trigger = AuthTrigger.COMMAND if late else AuthTrigger.RENEWAL
        return newest

    def _begin(self, token: Token, *, late: bool) -> bool:
        """Whether the server's budget and breaker let ``token`` pass; no command waits for it."""
        if self._attempt is None:
            self._attempt = self._server.begin_at_once(token, late=late)
        return self._attempt is not None

    def closed(self) -> None:
        """The connection was closed, by whomever: an AUTH under way will have no answer."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.over()

    def learned(self, token: Token, error: Exception | None) -> None:
        """The server took ``token``, or refused it: then the session goes on as it was."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            if error is None:
                attempt.accepted(token.version)
            else:
                attempt.refused(error, token)
        who, version = (self._name, self._host), token.version
        if error is None:
            latency = asyncio.get_running_loop().time() - self._sent_at
            self._held = token
            self._probe.accepted()
            self.ledger.accepted(token, now=self._source.now(), latency=latency)
            self._move_to(ConnectionState.AUTHENTICATED)
            self._server.emit(Reauthenticated(*who, version, latency, self._trigger))
            return
        self._refused = token.version
        if not is_refusal(error):  # else it is the breaker that says when to try again
            self._probe.failed()
            assert self._probe.delay is not None
            self._probe_at = asyncio.get_running_loop().time() + self._probe.delay
        self._move_to(ConnectionState.STALE)
        logger.warning(
            "%s: AUTH with token version %d was refused, going on with the former token: %s",
            self._name,
            token.version,
            error,
        )
        self._server.emit(ReauthenticationFailed(*who, version, error, self._trigger))

    def worn(self) -> bool:
        """Whether the held token has expired, or will in a moment, and there is a better one.

        Without one, or if the server has just refused it, a connection that stands is worth more
        than one that can't be made.
        """
        held, newest = self._held, self._source.current
        if newest is None or newest.version in (held.version, self._refused):
            return False
        if not self._server.admits(newest, demand=True):
            return False
        left = held.expires_on - self._source.now()
        return left <= min(LAST_MOMENTS, LAST_MOMENTS_FRACTION * held.lifetime)

    def ended(self, error: Exception, traffic: Traffic) -> Exception | None:
        """The error for people where the connection ended because its token did, else None."""
        self.closed()
        held = self._held
        replies = (EntraRedisError, redis_exceptions.AuthenticationError)
        # The server's clock and ours may differ by a little.
        if isinstance(error, replies) or self._source.now() < held.expires_on - self.lookout:
            return None
        moment = time.strftime("%H:%M:%S", time.gmtime(held.expires_on))
        return ConnectionLostError(
            f"{self._name} ended ({error}) because the token it was signed in with expired at "
            f"{moment} UTC: {_REMEDIES.get(traffic.mode, _OTHERWISE)}"
        )

    def _move_to(self, state: ConnectionState) -> None:
        if self.ledger.state is not state:
            self.ledger.move_to(state)
