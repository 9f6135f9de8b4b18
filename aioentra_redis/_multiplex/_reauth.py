"""Re-authentication: each newer token becomes an AUTH on every living connection, in time.

A connection's ledger says which token the server holds for it and how the last AUTH went. Its
state moves by this table and no other way::

    AUTHENTICATED     holds the newest token it was asked to hold
        | a newer token is sent                        | a replacement has authenticated
        v                                              v
    REAUTHENTICATING  AUTH is in the FIFO          DRAINING  in-flight commands finish here
        | refused, or unanswered for AUTH_TIMEOUT      |
        v                                              v
    STALE             the session goes on          CLOSED    final

The task that drives it (``Reauthenticator``) listens to the token source. It never touches the
commands that are under way: AUTH takes its place in their queue, no drain and no lock. Where the
server is slow to validate tokens, an AUTH in the queue would hold up what stands behind it, so
the next rotation is make-before-break: a replacement signs in beside the connection.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from .._events import (
    AuthTrigger,
    ConnectionState,
    ConnectionStatus,
    EventHub,
    Reauthenticated,
    ReauthenticationFailed,
    RefreshFailed,
)
from .._redaction import without_tracebacks
from .._repeats import Repeats
from .._schedule import AUTH_TIMEOUT, reauth_deadline, reauth_delay
from ..errors import ConnectionLostError

if TYPE_CHECKING:
    from .._broadcast import Subscription
    from .._source import TokenSource
    from .._token import Token

__all__ = ["TRANSITIONS", "Ledger", "Reauthenticator", "Rotation", "report_failure"]

logger = logging.getLogger("aioentra_redis.reauth")

SLOW_AUTH: Final = 0.25
"""Seconds; where the last AUTH or handshake took longer, the next rotation is make-before-break."""

UNANSWERED_AUTH: Final = 1.0
"""Seconds after which a replacement is begun beside an AUTH that has no answer yet."""

FIRST_PROBE: Final = 1.0
LAST_PROBE: Final = 30.0
"""Seconds until a refused token is tried again on a connection that lives on: doubled each time,
between these bounds. It costs the identity provider nothing."""

TRANSITIONS: Final[dict[ConnectionState, frozenset[ConnectionState]]] = {
    ConnectionState.AUTHENTICATED: frozenset(
        {
            ConnectionState.REAUTHENTICATING,
            ConnectionState.STALE,  # it takes no AUTH, and no replacement could be had
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
        self.state = ConnectionState.AUTHENTICATED
        self.token = token
        self.last_auth_at: float | None = token.first_seen if token else None
        self.last_auth_latency = latency
        self.reauthentications = 0
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


class AuthenticatedConnection(Protocol):
    """What the task needs of a connection."""

    name: str
    host: str
    ledger: Ledger
    closed: bool

    @property
    def held_up(self) -> bool:
        """Whether its owner does not read, so that an answer that has come can't be seen."""

    def authenticate(self, token: Token) -> asyncio.Future[Any]:
        """Send AUTH; a result that is a float is the seconds it took, else they are counted."""


class Replacer(Protocol):
    """Opens a replacement that signs in with the newest token, then lets the old one drain.

    Raises where no replacement could be had; the old connection is untouched then.
    """

    async def __call__(self, old: Any, reason: str) -> None: ...


class Rotation(enum.Enum):
    """The two ways to give a connection a newer token."""

    IN_PLACE = "in place"
    MAKE_BEFORE_BREAK = "make before break"


def rotation_for(latency: float) -> Rotation:
    """Which way to go, from how long the server took to validate the last token."""
    return Rotation.MAKE_BEFORE_BREAK if latency > SLOW_AUTH else Rotation.IN_PLACE


def replacement_patience(held: Token, now: float) -> float:
    """Seconds for which a replacement is tried for before AUTH goes in place after all.

    Half of the time that is left to the held token's deadline; but no less than a slow server may
    take for one AUTH, as long as the token lives to see it: in place, that AUTH would be as slow
    and hold up every command.
    """
    to_deadline = (reauth_deadline(held) - now) / 2
    to_expiry = (held.expires_on - now) * 2 / 3
    return max(to_deadline, min(AUTH_TIMEOUT, to_expiry), UNANSWERED_AUTH)


@dataclass(slots=True)
class Probe:
    """When to try a refused token again."""

    delay: float | None = None

    def refused(self) -> None:
        self.delay = min(LAST_PROBE, self.delay * 2) if self.delay else FIRST_PROBE

    def accepted(self) -> None:
        self.delay = None


class Reauthenticator:
    """Keeps one connection authenticated; ``run`` is its task.

    It starts after the version that the handshake used, so that no AUTH follows a connect. It ends
    with the connection, when a replacement has taken over, or when the source is closed.

    ``only`` fixes the way for connections that have no choice: in place where there is an owner
    whom no other connection serves, make-before-break where the server takes no AUTH (RESP2
    subscribers). ``replace`` may be None where it is in place.
    """

    def __init__(
        self,
        connection: AuthenticatedConnection,
        source: TokenSource,
        *,
        replace: Replacer | None,
        hub: EventHub,
        only: Rotation | None = None,
    ) -> None:
        token = connection.ledger.token
        self._connection = connection
        self._ledger = connection.ledger
        self._source = source
        self._subscription: Subscription = source.subscribe(after=token.version if token else None)
        self._replace: Any = replace
        self._only = only if replace is not None else Rotation.IN_PLACE
        self._hub = hub
        self._probe = Probe()
        self._repeats = Repeats()
        self._newest_auth: asyncio.Future[Any] | None = None

    async def run(self) -> None:
        """Give the connection each newer token, until either ends. Cancelling it is clean."""
        try:
            while not self._ended and await self._newer_token_or_probe():
                if not self._ended:
                    await self._rotate()
        finally:
            self._subscription.close()

    @property
    def _ended(self) -> bool:
        return self._ledger.state in (ConnectionState.DRAINING, ConnectionState.CLOSED)

    async def _newer_token_or_probe(self) -> bool:
        """Wait for something to do; False when the source is closed."""
        delay = self._probe.delay
        # Once: failed renewals, which come by here too, must not put the probe off.
        probe_at = None if delay is None else asyncio.get_running_loop().time() + delay
        while True:
            try:
                async with asyncio.timeout_at(probe_at):
                    news = await anext(self._subscription)
            except TimeoutError:
                return True
            except StopAsyncIteration:
                return False
            if not isinstance(news, RefreshFailed):
                return True

    async def _rotate(self) -> None:
        held = self._ledger.token
        assert held is not None
        trigger = AuthTrigger.RENEWAL if self._probe.delay is None else AuthTrigger.PROBE
        if trigger is AuthTrigger.RENEWAL:
            # Spread the AUTHs of many connections: each waits its own share of the time that is
            # left until Microsoft's three minutes before the expiry of the token it holds.
            await asyncio.sleep(reauth_delay(held, self._source.now(held)))
        token = self._source.current  # the newest by now
        held = self._ledger.token or held  # the owner's next command may have taken it along
        if token is None or token.version <= held.version or self._ended:
            return
        way = self._only or rotation_for(self._ledger.last_auth_latency)
        if way is Rotation.MAKE_BEFORE_BREAK:
            if await self._make_before_break(held):
                return
            token = self._source.current or token
            if self._only is way and not self._ended:
                lost = ConnectionLostError("no replacement could be had in time")
                self._failed(token, lost, trigger)
                return
        if not self._ended:
            await self._in_place(token, trigger)

    async def _make_before_break(self, held: Token) -> bool:
        """Try for a replacement; returns False if none could be had in time for AUTH in place."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + replacement_patience(held, self._source.now(held))
        delay = 0.1
        while not self._ended:
            try:
                async with asyncio.timeout_at(give_up_at):
                    await self._replace(self._connection, "the server validates tokens slowly")
            except Exception as exc:
                error = without_tracebacks(exc)
                level = self._repeats.level(logging.WARNING, type(error), loop.time())
                logger.log(level, "%s: no replacement yet: %s", self._connection.name, _text(error))
                if loop.time() + delay >= give_up_at:
                    return False
                await asyncio.sleep(random.uniform(0.5, 1) * delay)
                delay = min(delay * 2, 5.0)
            else:
                return True
        return True

    async def _in_place(self, token: Token, trigger: AuthTrigger) -> None:
        """AUTH in the connection's own queue; beside it a replacement if the answer is late.

        Returns when the outcome is known, or after ``AUTH_TIMEOUT``; the answer is learned from
        whenever it comes. Cancelling it, or an answer, ends the attempt to get a replacement.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        self._ledger.move_to(ConnectionState.REAUTHENTICATING)
        try:
            answer = self._connection.authenticate(token)
        except ConnectionLostError:
            return  # its loss is dealt with elsewhere
        self._newest_auth = answer
        # First of its callbacks: who waits for the answer below finds it learned.
        answer.add_done_callback(
            lambda done: self._answered(done, token, loop.time() - started, trigger)
        )
        await asyncio.wait({answer}, timeout=UNANSWERED_AUTH)
        if answer.done() or self._ended:
            return
        if self._only is Rotation.IN_PLACE:
            await asyncio.wait({answer}, timeout=AUTH_TIMEOUT - UNANSWERED_AUTH)
            while self._connection.held_up and not (answer.done() or self._ended):
                await asyncio.wait({answer}, timeout=AUTH_TIMEOUT)
            if not (answer.done() or self._ended):
                self._failed(token, _unanswered(), trigger)
            return
        replacement = loop.create_task(
            self._replace(self._connection, "an AUTH had no answer after 1 s")
        )
        left = AUTH_TIMEOUT - UNANSWERED_AUTH
        try:
            await asyncio.wait(
                {answer, replacement}, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            if not (answer.done() or self._ended):
                # No replacement to be had: all hope is on the answer.
                left = AUTH_TIMEOUT - (loop.time() - started)
                await asyncio.wait({answer}, timeout=max(0.0, left))
        finally:
            await _give_up(replacement)
        if not (answer.done() or self._ended):
            self._failed(token, _unanswered(), trigger)

    def _answered(
        self, answer: asyncio.Future[Any], token: Token, latency: float, trigger: AuthTrigger
    ) -> None:
        """Learn the outcome of an AUTH, in time or late."""
        error = answer.exception()
        newest = answer is self._newest_auth
        if self._ended or isinstance(error, ConnectionLostError):
            return
        if error is not None:
            if newest:  # else a newer AUTH is in the FIFO, and its answer decides
                self._failed(token, without_tracebacks(error), trigger)
            return
        took = answer.result()
        if isinstance(took, float):
            latency = took
        self._ledger.accepted(token, now=self._source.now(), latency=latency)
        if newest:
            self._probe.accepted()
            self._ledger.move_to(ConnectionState.AUTHENTICATED)
        connection = self._connection
        self._hub.emit(
            Reauthenticated(connection.name, connection.host, token.version, latency, trigger)
        )

    def _failed(self, token: Token, error: BaseException, trigger: AuthTrigger) -> None:
        """The token was refused, or nothing is known of it: the session goes on as it was."""
        connection = self._connection
        logger.warning(
            "%s to %s: AUTH with token version %d failed, going on with the former token: %s",
            connection.name,
            connection.host,
            token.version,
            error,
        )
        self._probe.refused()
        if self._ledger.state is not ConnectionState.STALE:
            self._ledger.move_to(ConnectionState.STALE)
        if isinstance(error, Exception):
            self._ledger.last_error = error
            self._hub.emit(
                ReauthenticationFailed(
                    connection.name, connection.host, token.version, error, trigger
                )
            )


def report_failure(task: asyncio.Task[None]) -> None:
    """Say at once that a re-authentication task has failed, which none should.

    Its connection then lives as long as its token; the one after it signs in with the newest.
    """
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s has failed: %r", task.get_name(), without_tracebacks(error))


def _unanswered() -> TimeoutError:
    return TimeoutError(f"AUTH had no answer after {AUTH_TIMEOUT:g} s")


async def _give_up(task: asyncio.Task[None]) -> None:
    """Cancel a task and see it to its end without raising."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("no replacement: %s", _text(without_tracebacks(error)))


def _text(error: BaseException) -> str:
    """What it says; a timeout says nothing."""
    return str(error) or type(error).__name__
