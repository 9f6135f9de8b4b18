"""Re-authentication: each newer token becomes an AUTH on every living connection, in time.

The task of a connection (``Reauthenticator``) compares what the connection holds with what the
token source has: whenever it is told that something has changed, and every so often in case that
it was not. It never touches the commands that are under way: AUTH takes its place in their queue,
no drain and no lock. Where the server is slow to validate tokens, an AUTH in the queue would hold
up what stands behind it, so the next rotation is make-before-break: a replacement signs in beside
the connection.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from .._events import (
    AuthTrigger,
    ConnectionState,
    EventHub,
    Reauthenticated,
    ReauthenticationFailed,
)
from .._redaction import without_tracebacks
from .._repeats import Repeats
from .._schedule import (
    AUTH_TIMEOUT,
    MAX_SLEEP,
    reauth_delay,
    reconcile_interval,
    slot_patience,
)
from .._servers import Attempt, is_refusal, server_of
from .._supervision import Starter, Supervised
from ..errors import ConnectionLostError, SignInRefusedError
from ._rotation import UNANSWERED_AUTH, Probe, Rotation, replacement_patience, rotation_for

if TYPE_CHECKING:
    from .._broadcast import Subscription
    from .._source import TokenSource
    from .._token import Token
    from ._ledger import Ledger

__all__ = ["Reauthenticator", "keep_running"]

logger = logging.getLogger("aioentra_redis.reauth")


class AuthenticatedConnection(Protocol):
    """What the task needs of a connection."""

    name: str
    host: str
    ledger: Ledger
    closed: bool

    paces_itself: bool
    """Whether it passes the budget and the breaker by itself, because it has to wait for a moment
    at which AUTH can be sent. Then ``withdraw_auth`` takes back what has not been sent yet."""

    @property
    def held_up(self) -> bool:
        """Whether its owner does not read, so that an answer that has come can't be seen."""

    def withdraw_auth(self) -> None: ...

    def authenticate(self, token: Token) -> asyncio.Future[Any]:
        """Send AUTH; a result that is a float is the seconds it took, else they are counted."""


class Replacer(Protocol):
    """Opens a replacement that signs in with the newest token, then lets the old one drain.

    Raises where no replacement could be had; the old connection is untouched then.
    """

    async def __call__(self, old: Any, reason: str) -> None: ...


class Reauthenticator:
    """Keeps one connection authenticated; ``run`` is its task.

    It starts after the version that the handshake used, so that no AUTH follows a connect. It ends
    with the connection, when a replacement has taken over, or when the source is closed; where it
    ended otherwise it may be run again, and goes on where it was.

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
        self._connection = connection
        self._ledger = connection.ledger
        self._source = source
        self._server = server_of(source, connection.host)
        self._replace: Any = replace
        self._only = only if replace is not None else Rotation.IN_PLACE
        self._hub = hub
        self._probe = Probe()
        self._repeats = Repeats()
        self._probe_at = math.inf
        self._failed_version = 0
        self._newest_auth: asyncio.Future[Any] | None = None
        self._newest_version = 0
        self._wait: asyncio.Timeout | None = None

    def supervised(self, *, start: Starter | None = None) -> Supervised:
        """Run it as a task, and again after a pause if that ends while the connection lives."""
        name = f"reauth-{self._connection.name}"
        return keep_running(self.run, name, self._hub, start=start)

    async def run(self) -> None:
        """Give the connection each newer token, until either ends. Cancelling it is clean."""
        token = self._ledger.token
        subscription = self._source.subscribe(after=token.version if token else None)
        stop_listening = self._server.listen(self._breaker_moved)
        try:
            while not self._ended and await self._something_to_do(subscription):
                if not self._ended:
                    await self._rotate()
        finally:
            stop_listening()
            subscription.close()

    @property
    def _ended(self) -> bool:
        return self._ledger.state in (ConnectionState.DRAINING, ConnectionState.CLOSED)

    @property
    def _lags(self) -> bool:
        """Whether there is a newer token that has not been tried in vain."""
        newest, held = self._source.current, self._ledger.token
        return (
            newest is not None
            and held is not None
            and newest.version > max(held.version, self._failed_version)
        )

    # -- waiting ---------------------------------------------------------------------------------

    async def _something_to_do(self, subscription: Subscription) -> bool:
        """Wait until the connection lags, or for its probe; False when the source is closed.

        What the subscription delivers only wakes us: we look for ourselves, and also without it.
        """
        loop = asyncio.get_running_loop()
        delay = self._probe.delay
        # Once: failed renewals, which come by here too, must not put the probe off.
        self._probe_at = math.inf if delay is None else loop.time() + delay
        looking: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal looking
            if subscription.closed or self._is_due():
                self._wake()
            looking = loop.call_at(self._next_look(), look)

        look()
        try:
            while not self._is_due():
                try:
                    async with asyncio.timeout(None) as self._wait:
                        await anext(subscription)
                except TimeoutError:
                    pass
                except StopAsyncIteration:
                    return False
                finally:
                    self._wait = None
            return True
        finally:
            if looking is not None:
                looking.cancel()

    def _is_due(self) -> bool:
        """Whether there is something to be sent, and it may be."""
        due = self._lags or asyncio.get_running_loop().time() >= self._probe_at
        return due and self._server.admits(self._source.current)

    def _next_look(self) -> float:
        """When to look, by the loop's clock, if nobody says anything until then."""
        now = asyncio.get_running_loop().time()
        held = self._ledger.token
        interval = reconcile_interval(held) if held is not None else MAX_SLEEP
        moments = (self._probe_at, self._server.next_look())
        return min(now + interval, *(at if at > now else math.inf for at in moments))

    def _wake(self) -> None:
        if self._wait is not None and not self._wait.expired():
            self._wait.reschedule(asyncio.get_running_loop().time())

    def _breaker_moved(self) -> None:
        """Another connection was refused, or accepted again."""
        if self._is_due():
            self._wake()
        elif self._connection.paces_itself and not self._server.admits(self._source.current):
            self._connection.withdraw_auth()

    # -- rotating --------------------------------------------------------------------------------

    async def _rotate(self) -> None:
        held = self._ledger.token
        assert held is not None
        closed = self._server.is_closed
        planned = closed and self._probe.delay is None
        trigger = AuthTrigger.RENEWAL if planned else AuthTrigger.PROBE
        if planned:
            await self._jitter(held)
        token = self._source.current  # the newest by now
        held = self._ledger.token or held  # the owner's next command may have taken it along
        if token is None or token.version <= held.version or self._ended:
            return
        way = self._only or rotation_for(self._ledger.last_auth_latency)
        if not self._server.admits(token):
            pass  # it was refused elsewhere meanwhile
        elif way is Rotation.IN_PLACE:
            await self._in_place(token, trigger)
        elif not await self._make_before_break(held):
            token = self._source.current or token
            if self._only is way and not self._ended:
                lost = ConnectionLostError("no replacement could be had in time")
                self._failed(token, lost, trigger)
            elif not self._ended:
                await self._in_place(token, trigger)
        now_held = self._ledger.token
        if now_held is None or not self._lags or self._ended:
            return
        if not self._server.is_closed:
            self._stale()  # until the breaker lets it, or somebody else, try again
            if self._ledger.last_error is None:
                self._ledger.last_error = self._server.held_back()
        elif now_held.version < token.version:
            # Nothing was refused and nothing was gained, and nobody may ever tell us why.
            self._failed_version = token.version
            self._probe.failed()

    async def _jitter(self, held: Token) -> None:
        """Spread the AUTHs of many connections.

        Each waits its own share of the time that is left until Microsoft's three minutes before
        the expiry of the token it holds. That may be hours, so it is not slept through: the wall
        clock may be stepped meanwhile, and the machine suspended.
        """
        until = self._source.now(held)
        until += reauth_delay(held, until)
        while not self._ended:
            left = until - self._source.now(held)
            if left <= 0:
                return
            await asyncio.sleep(min(max(left, 0.001), MAX_SLEEP))

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
                refused = isinstance(error, SignInRefusedError)
                if refused and not self._server.admits(self._source.current):
                    return True  # nor would AUTH in place be accepted
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
        answer = self._newest_auth
        if answer is None or answer.done() or self._newest_version != token.version:
            attempt = None
            if not self._connection.paces_itself:
                attempt = await self._turn()
                newest, held = self._source.current, self._ledger.token
                if attempt is None or newest is None or held is None:
                    return
                token = newest
            started = loop.time()
            try:
                answer = self._connection.authenticate(token)
            except ConnectionLostError:
                if attempt is not None:
                    attempt.over()
                return  # its loss is dealt with elsewhere
            self._newest_auth, self._newest_version = answer, token.version
            # First of its callbacks: who waits for the answer below finds it learned.
            answer.add_done_callback(
                lambda done: self._answered(done, token, loop.time() - started, trigger, attempt)
            )
        # Else the same AUTH is in the FIFO still: a second one could only come behind it.
        if self._ledger.state is not ConnectionState.REAUTHENTICATING:
            self._ledger.move_to(ConnectionState.REAUTHENTICATING)
        ends_at = loop.time() + AUTH_TIMEOUT
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
                left = ends_at - loop.time()
                await asyncio.wait({answer}, timeout=max(0.0, left))
        finally:
            await _give_up(replacement)
        if not (answer.done() or self._ended):
            self._failed(token, _unanswered(), trigger)

    async def _turn(self) -> Attempt | None:
        """Wait for this connection's turn; None if there is nothing to be sent any more.

        Does not let go of the event loop where nobody else is sending.
        """
        budget = self._server.budget
        slot = budget.take_now()
        if slot is None:
            held = self._ledger.token
            assert held is not None
            slot = await budget.take(slot_patience(held, self._source.now(held)))
            if self._ended or not (self._lags or self._probe.delay is not None):
                slot.release()
                return None
        token = self._source.current
        if not self._server.admits(token):
            slot.release()
            return None
        return self._server.begin(token, slot)

    def _answered(
        self,
        answer: asyncio.Future[Any],
        token: Token,
        latency: float,
        trigger: AuthTrigger,
        attempt: Attempt | None,
    ) -> None:
        """Learn the outcome of an AUTH, in time or late."""
        error = answer.exception()
        if attempt is not None:
            if error is None:
                attempt.accepted()
            elif isinstance(error, ConnectionLostError):
                attempt.over()
            else:
                attempt.refused(without_tracebacks(error), token)
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
        if not is_refusal(error):
            self._failed_version = token.version
            self._probe.failed()
        self._stale()
        if isinstance(error, Exception):
            self._ledger.last_error = error
            self._hub.emit(
                ReauthenticationFailed(
                    connection.name, connection.host, token.version, error, trigger
                )
            )

    def _stale(self) -> None:
        if self._ledger.state is not ConnectionState.STALE:
            self._ledger.move_to(ConnectionState.STALE)


def keep_running(
    work: Callable[[], Coroutine[Any, Any, None]],
    name: str,
    hub: EventHub,
    *,
    start: Starter | None = None,
) -> Supervised:
    """Run ``work()`` as a task that is started again where it ends without having returned."""
    return Supervised(work, name=f"aioentra_redis-{name}", hub=hub, start=start)


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
