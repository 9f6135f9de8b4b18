"""The life of a token source: one supervised task that gets tokens and publishes the newer ones.

Read it downwards: the states, then the task (start, wait, attempt), then what it does with a
newer token, with the same token and with a failure, and last how it ends. The task knows nothing
of the :class:`~aioentra_redis.TokenSource` in front of it, so a source that is dropped without
being closed can be collected, and ends its task by that.

Acquisitions happen in this task only, so there is never more than one, and nobody who waits for a
token can cancel it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from traceback import format_exc

from . import _schedule as schedule
from ._acquirer import Acquirer
from ._broadcast import Broadcast
from ._event_streams import EventStreams
from ._events import (
    AcquisitionEnded,
    EventHub,
    RefreshFailed,
    TokenPublished,
    TokenState,
    TokenStateChanged,
    TokenStatus,
)
from ._news import Identity, is_news
from ._redaction import again, scrub, without_tracebacks
from ._repeats import Repeats
from ._supervision import Supervised
from ._token import Token, resources_of
from ._token_states import HOLDS_VALID_TOKEN, TRANSITIONS, retry_after, worth_retrying
from .errors import (
    ClosedError,
    TokenAcquisitionError,
    TokenError,
    TokenExpiredError,
)

__all__ = ["Refresher"]

logger = logging.getLogger("aioentra_redis.source")

S = TokenState
CLOSE_TIMEOUT = 10.0
"""Seconds that closing may take as a whole."""


class Refresher:
    """Keeps a token fresh from :meth:`launch` to :meth:`aclose`; one event loop, no threads."""

    def __init__(
        self,
        acquirer: Acquirer,
        *,
        name: str,
        scopes: tuple[str, ...],
        username: str | None,
        config: schedule.TokenRefreshConfig,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.config = config
        self.hub = EventHub()
        self.streams = EventStreams()
        self.broadcast = Broadcast()
        self.state = S.STARTING
        self.start_error: TokenError | None = None
        self.last_error: TokenError | None = None
        self.failed_at = 0.0
        """When the start gave up, in loop time."""
        self.task: Supervised | None = None
        self.closing: asyncio.Task[None] | None = None
        """Closing on behalf of a source that was collected."""
        self.subject = acquirer.subject
        self._acquirer = acquirer
        self._resources = resources_of(scopes)
        self._username = username
        self._clock = clock
        self._identity = Identity()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: asyncio.Future[None] | None = None
        self._wake: asyncio.Event = asyncio.Event()
        self._demand = False
        self._next_at: float | None = None
        """Loop time of the next attempt; None while the plan in wall time holds."""
        self._not_before = 0.0
        """Loop time before which no attempt starts: the provider's Retry-After."""
        self._attempt_at: float | None = None
        self._last_attempt_at = 0.0
        self._attempt_seconds = 0.0
        """How long the last attempt took."""
        self._burst_failures = 0
        self._failures = 0
        self._acquisitions = 0
        self._published = 0
        self._warned = False
        self._repeats = Repeats()

    # ------------------------------------------------------------------------------- the state

    def _set_state(self, new: TokenState) -> None:
        """Change the state: the only place that does."""
        old = self.state
        if new is old:
            return
        if new not in TRANSITIONS[old]:
            raise AssertionError(f"a token source can't go from {old.name} to {new.name}")
        self.state = new
        # A failed start raises, so it needs no warning besides.
        level = logging.WARNING if new in (S.DEGRADED, S.EXPIRED) else logging.INFO
        logger.log(level, "%s: %s -> %s", self.name, old.name, new.name)
        self.hub.emit(TokenStateChanged(source=self.name, old=old, new=new))

    def seen_state(self) -> TokenState:
        """The state by the wall clock of this moment; changes nothing, so any thread may ask."""
        token = self.broadcast.current
        if token is not None:
            expired = self._clock() >= token.expires_on
            if expired and self.state in HOLDS_VALID_TOKEN:
                return S.EXPIRED
            if not expired and self.state is S.EXPIRED:
                return S.DUE
        return self.state

    def observe(self) -> None:
        """Compare the token's expiry with the wall clock, and follow it."""
        state = self.seen_state()
        if state is S.EXPIRED and self.state is not S.EXPIRED:
            self.demand()
        self._set_state(state)

    def overdue(self) -> bool:
        """Whether the token's time is up, even if the wall clock was set back and denies it."""
        token = self.broadcast.current
        return token is not None and self.wall_time(token) >= token.expires_on

    def demand(self) -> None:
        """Somebody needs a token and there is none: attempt as soon as is decent."""
        self._demand = True
        self._wake.set()

    # -------------------------------------------------------------------------------- the task

    def launch(self) -> None:
        """Start the task in the running loop, if it does not run; also after a failed start."""
        if self.task is not None and self.state is not S.FAILED:
            return  # not `done()`: a task that was cancelled may be told of in a moment only
        self._set_state(S.STARTING)
        self.start_error = None
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self.task = Supervised(
            self._run, name=f"{self.name} refresh", hub=self.hub, gives_up=self._run_failed
        )

    async def started(self) -> None:
        """Wait until the start has ended, well or not; cancelling the wait changes nothing."""
        if self._started is not None:
            await asyncio.shield(self._started)

    async def _run(self) -> None:
        # A run that follows one which failed finds the token where that has left it.
        if self.broadcast.current is not None or await self._start():
            while True:
                await self._wait()
                await self._renew()

    def _run_failed(self, error: Exception | None) -> bool:
        """The task ended, by a bug or by somebody's cancelling; returns whether that is final."""
        if self.state is not S.STARTING:
            return self.state is S.CLOSED
        how = f"an unexpected {type(error).__name__}: {error}" if error else "being cancelled"
        self._give_up_start(TokenAcquisitionError(f"the start of {self.name} ended by {how}"))
        return True

    async def _start(self) -> bool:
        """One burst for the first token. False if it gave up, with everything released again."""
        retry = self.config.retry
        attempt = 1
        while isinstance(outcome := await self._attempt(), TokenError):
            self._failures += 1
            self.last_error = outcome
            self._report("failed", outcome)
            logger.info("%s: attempt %d to start failed: %s", self.name, attempt, outcome)
            asked = retry_after(outcome)
            # start() answers soon, if only to say that it has to be later.
            patient = asked is None or asked <= retry.max_delay
            if attempt == retry.max_attempts or not worth_retrying(outcome) or not patient:
                await self._acquirer.release()
                self._give_up_start(outcome)
                return False
            await asyncio.sleep(schedule.polite(schedule.retry_delay(attempt, retry), asked))
            attempt += 1
        await self._publish(outcome)
        return True

    def _give_up_start(self, error: TokenError) -> None:
        """There is no first token; a later start may try again."""
        self.start_error = error
        self.failed_at = self._now()
        self._set_state(S.FAILED)
        self._settle_start()

    def _settle_start(self) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    async def _wait(self) -> None:
        """Return when the next attempt is due, having followed the wall clock meanwhile."""
        while True:
            self._wake.clear()
            self.observe()
            delay = self._delay()
            if delay <= 0:
                if self.state is S.FRESH:
                    self._set_state(S.DUE)
                return
            token = self.broadcast.current
            if token is not None and self.state in HOLDS_VALID_TOKEN:
                delay = min(delay, max(0.0, token.expires_on - self._clock()))
            # A zero would spin where the clock's resolution is coarse.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(delay, 0.001), schedule.MAX_SLEEP)):
                    await self._wake.wait()

    def _delay(self) -> float:
        """Seconds until the next attempt, by the wall clock where there is a plan."""
        now = self._now()
        token = self.broadcast.current
        if self._next_at is not None:
            delay = self._next_at - now
        elif self.state is S.FRESH and token is not None:
            delay = schedule.renewal_start(token, self._ratio) - self.wall_time(token)
        else:
            delay = 0.0
        if self._demand and self.overdue():
            delay = min(delay, self._last_attempt_at + schedule.EXPIRED_INTERVAL - now)
        return max(delay, self._not_before - now)

    async def _attempt(self) -> Token | TokenError:
        """Ask for a token and check it; what goes wrong is returned, not raised."""
        self._demand = False
        self._acquisitions += 1
        self._attempt_at = self._last_attempt_at = self._now()
        failure: TokenError
        try:
            fetched = await self._acquirer.acquire(self.config.request_timeout)
            token = Token.read(
                fetched.secret,
                expires_on=fetched.expires_on,
                refresh_on=fetched.refresh_on,
                now=self._clock(),
                seen_at=self._now(),
                version=self._published + 1,
                resources=self._resources,
                username=self._username,
            )
            self._identity.check(token, self.subject)
        except TokenError as error:
            failure = without_tracebacks(error)
        except Exception as error:
            # A supervised task does not die of a bug, whose words may hold what it stumbled over.
            logger.error("%s: unexpected error\n%s", self.name, scrub(format_exc()))  # noqa: TRY400
            failure = TokenAcquisitionError(
                f"unexpected {type(error).__name__}: {scrub(str(error))}. This is a bug of "
                "aioentra_redis: please report it with the traceback in the log"
            )
        else:
            return token
        finally:
            self._attempt_at = None
            self._attempt_seconds = self._now() - self._last_attempt_at
        await self._acquirer.settle(accepted=False)
        return failure

    async def _renew(self) -> None:
        """One attempt to renew, and what follows from its outcome."""
        outcome = await self._attempt()
        if isinstance(outcome, TokenError):
            self._failed(outcome)
        elif is_news(outcome, self.broadcast.current):
            await self._publish(outcome)
        else:
            self._unchanged(outcome)
            await self._acquirer.settle(accepted=False)

    # ---------------------------------------------------------------------------- the outcomes

    async def _publish(self, token: Token) -> None:
        """Make ``token`` the current one, then close the credential of the one before."""
        self._identity.fix(token)
        self._published = token.version
        self._burst_failures = self._failures = 0
        self._next_at = None
        self._not_before = 0.0
        self._repeats.over()
        self.last_error = self.start_error = None
        self.broadcast.publish(token)
        self._set_state(S.FRESH)
        self._settle_start()
        self._warn_if_short_lived(token)
        self._report("published")
        self.hub.emit(
            TokenPublished(
                source=self.name,
                version=token.version,
                oid=token.oid or token.username,
                expires_on=token.expires_on,
                lifetime=token.lifetime,
                acquired_in=self._attempt_seconds,
            )
        )
        await self._acquirer.settle(accepted=True)

    def _unchanged(self, token: Token) -> None:
        """The credential had nothing newer: publish nothing and ask again later."""
        self._report("unchanged")
        current = self.broadcast.current
        assert current is not None
        now = self.wall_time(current)
        delay = schedule.unchanged_delay(current, now)
        if token.refresh_on is not None and token.refresh_on < schedule.reauth_deadline(current):
            # The platform returned its cached token with a later time to ask again.
            delay = max(delay, token.refresh_on - now)
        self._next_at = self._now() + delay
        logger.debug("%s: no newer token yet, asking again in %.1f s", self.name, delay)
        if now >= schedule.reauth_deadline(current):
            # Inside its last 300 s azure-identity swallows a failed refresh and returns the old
            # token, so this is the only sign of a provider that is down.
            self._burst_over(
                TokenAcquisitionError(
                    f"{self.subject} keeps returning the same token, which expires in"
                    f" {current.expires_on - now:.0f} s: its renewals are probably failing. Look"
                    " for warnings of the logger 'azure.identity'."
                ),
                attempts=1,
            )

    def _failed(self, error: TokenError) -> None:
        """An attempt failed: plan the next one, and report when the burst is over."""
        self._report("failed", error)
        retry = self.config.retry
        self._failures += 1
        self._burst_failures += 1
        self.last_error = error
        self.observe()
        over = self._burst_failures >= retry.max_attempts or not worth_retrying(error)
        # Without a valid token it is demand that sets the pace, once a second: no bursts then.
        delay = (
            schedule.burst_delay(retry)
            if over or self.overdue()
            else schedule.retry_delay(self._burst_failures, retry)
        )
        current = self.broadcast.current
        delay = schedule.pressed(delay, current, self.wall_time(current))
        wait = retry_after(error)
        if wait is not None:
            delay = schedule.polite(delay, wait)
            self._not_before = self._now() + schedule.polite(0.0, wait)
        self._next_at = self._now() + delay
        level = self._repeats.level(logging.INFO, type(error), self._now())
        logger.log(level, "%s: an attempt failed, next in %.1f s: %s", self.name, delay, error)
        if over:
            attempts, self._burst_failures = self._burst_failures, 0
            self._burst_over(error, attempts=attempts)

    def _report(self, outcome: str, error: TokenError | None = None) -> None:
        """Tell how an attempt has ended."""
        self.hub.emit(
            AcquisitionEnded(
                source=self.name,
                outcome=outcome,
                seconds=self._attempt_seconds,
                error=again(error) if error is not None else None,
            )
        )

    def _burst_over(self, error: TokenError, *, attempts: int) -> None:
        """Tell everybody that renewing failed for now."""
        self.last_error = error
        self.observe()
        if self.state is S.DUE:
            self._set_state(S.DEGRADED)
        assert self._next_at is not None
        failure = RefreshFailed(
            source=self.name,
            error=again(error),
            attempts=attempts,
            next_attempt_in=max(0.0, self._next_at - self._now()),
            state=self.state,
        )
        self.broadcast.publish_error(failure)
        self.hub.emit(failure)

    def _warn_if_short_lived(self, token: Token) -> None:
        short = token.lifetime < schedule.SHORTEST_OBJECT_LIFETIME
        if short and not self._acquirer.renews_early and not self._warned:
            self._warned = True
            logger.warning(
                "%s: tokens live for %.0f s, but a credential object of azure-identity returns its"
                " cached token for 30 s after each request, so they will expire before they can be"
                " renewed; use TokenSource.from_credential_factory() for tokens this short",
                self.name,
                token.lifetime,
            )

    # ------------------------------------------------------------------------------ the outside

    def expired_error(self) -> TokenExpiredError:
        """Return what to raise while there is no valid token, with the last cause."""
        token = self.broadcast.current
        assert token is not None
        ago = self._clock() - token.expires_on
        why = f"the last attempt failed: {self.last_error}" if self.last_error else "none came yet"
        error = TokenExpiredError(
            f"the token of {token.username!r} expired {ago:.0f} s ago and {why} (still trying)"
        )
        error.__cause__ = again(self.last_error) if self.last_error else None
        return error

    def status(self) -> TokenStatus:
        """Return a snapshot; nothing in it is secret."""
        token = self.broadcast.current
        running = self.task is not None and not self.task.done()
        attempt_at = self._attempt_at
        planned = (
            running and token is not None and attempt_at is None and self.state is not S.CLOSED
        )
        return TokenStatus(
            source=self.name,
            state=self.seen_state(),
            version=token.version if token else 0,
            oid=token.oid if token else None,
            expires_on=token.expires_on if token else None,
            remaining=max(0.0, token.expires_on - self._clock()) if token else None,
            next_attempt_in=max(0.0, self._delay()) if planned else None,
            last_attempt_ago=self._now() - self._last_attempt_at if self._acquisitions else None,
            consecutive_failures=self._failures,
            last_error=self.last_error,
            acquisitions=self._acquisitions,
            published=self._published,
            acquiring_for=self._now() - attempt_at if attempt_at is not None else None,
            hung_call=self._acquirer.hung,
            subscribers=len(self.broadcast),
        )

    async def aclose(self) -> None:
        """End the task and close what we made, within :data:`CLOSE_TIMEOUT`; never raises.

        Waiters get :exc:`ClosedError` and subscriptions end before anything is waited for.
        """
        self.mark_closed()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if self.task is not None and (ending := self.task.stop()) is not None:
                    await asyncio.wait({ending})
                await self._acquirer.aclose()

    def mark_closed(self) -> None:
        """Enter CLOSED, without waiting for anything."""
        self._set_state(S.CLOSED)
        self.broadcast.close()
        self.streams.close()
        self._settle_start()
        self._wake.set()

    def closed_error(self) -> ClosedError:
        return ClosedError(
            f"{self.name} has been closed, which is final: make a new TokenSource to go on"
        )

    @property
    def _ratio(self) -> float | None:
        return self.config.expiration_refresh_ratio if self._acquirer.renews_early else None

    def wall_time(self, token: Token | None = None) -> float:
        """The wall clock; for ``token`` as if it had not been set back since that came.

        A token ages all the same, so what has to happen before its expiry is planned by this. Only
        the wall clock says that it *has* expired: it may have been put right.
        """
        now = self._clock()
        if token is None or token.seen_at is None or self._loop is None:
            return now
        return max(now, token.first_seen + self._now() - token.seen_at)

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()
