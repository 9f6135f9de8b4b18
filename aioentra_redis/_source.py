"""The token source: what users make, start, share among clients and close.

A token's way, from credential to connection, goes through these modules: ``_credentials`` says how
a credential is made, ``_acquirer`` calls it, ``_token`` reads what it returned, ``_refresher``
decides whether that is news and when to ask again (by the rules of ``_schedule``), ``_broadcast``
hands it to every connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from ._acquirer import Acquirer, Recipe
from ._broadcast import Subscription
from ._constructors import Constructors, Scopes
from ._credentials import credential_object
from ._event_streams import EventStream
from ._events import EventCallback, TokenState, TokenStatus
from ._metrics import observe_connections, observe_source
from ._redaction import again
from ._refresher import Refresher
from ._schedule import EXPIRED_INTERVAL, TokenRefreshConfig
from ._servers import Servers
from ._token import REDIS_SCOPE, Token, resources_of
from .errors import ConfigurationError, ForkedError, TokenAcquisitionError, WrongLoopError

__all__ = ["TokenSource"]

EXPIRED_PATIENCE = 2.0
"""Seconds to wait for a token when the old one has expired but nothing has failed yet: the machine
was suspended, and the first command after that should not fail for want of one request."""
RESTART_INTERVAL = 30.0
"""Seconds between starts that :meth:`TokenSource.get` makes after one was refused for good."""

S = TokenState


class TokenSource(Constructors):
    """Keeps an Entra token fresh and hands each newer one to every connection.

    ``credential`` is any object with ``get_token_info()`` or ``get_token()``, asynchronous or
    not; it remains its maker's to close. The constructors ``from_...`` make the credential, and
    the source closes it. Those that make a new one per renewal honour ``refresh``'s ratio; a
    credential *object* decides itself, through its cache, when there is a newer token.

    Construction does nothing and needs no event loop. A source belongs to the loop that starts
    it, with :meth:`start`, ``async with``, or the first :meth:`get`; it is of no use in another
    loop (:exc:`WrongLoopError`) or a forked child (:exc:`ForkedError`). One source serves any
    number of clients.

    :param scopes: what to ask a token for; one string or several.
    :param refresh: when to renew, and how patiently.
    :param name: appears in logs and events; the credential's class by default.
    :param username: what to send as the user name instead of the token's object ID.
    :param on_event: called with every event of this source, see :meth:`listen`.

    Raises :exc:`ConfigurationError` for unusable arguments.
    """

    def __init__(
        self,
        credential: object,
        *,
        scopes: Scopes = REDIS_SCOPE,
        refresh: TokenRefreshConfig | None = None,
        name: str | None = None,
        username: str | None = None,
        on_event: EventCallback | None = None,
        _clock: Callable[[], float] = time.time,
    ) -> None:
        recipe = credential if isinstance(credential, Recipe) else credential_object(credential)
        several: Any = (scopes,) if isinstance(scopes, str) else scopes
        if (
            not isinstance(several, Sequence)
            or not several
            or not all(isinstance(each, str) and each for each in several)
        ):
            raise ConfigurationError(f"scopes should be one string or several, not {scopes!r}")
        self._scopes = tuple(several)
        self.refresh_config: TokenRefreshConfig = (
            refresh if refresh is not None else TokenRefreshConfig()
        )
        if not isinstance(self.refresh_config, TokenRefreshConfig):
            raise ConfigurationError(f"refresh should be a TokenRefreshConfig, not {refresh!r}")
        self._name = name or recipe.label
        self._clock = _clock
        self._resource = ", ".join(sorted(resources_of(self._scopes)))
        self._refresher = Refresher(
            Acquirer(recipe, self._scopes, self._resource),
            name=self._name,
            scopes=self._scopes,
            username=username,
            config=self.refresh_config,
            clock=_clock,
        )
        self._servers = Servers(self.refresh_config.max_concurrent_auths, self._refresher.hub.emit)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid: int | None = None
        self._closer: asyncio.Task[None] | None = None
        observe_source(self, self._name, self._refresher.hub)
        observe_connections(self._refresher.hub, self._name)  # those of `entra_kwargs`
        if on_event is not None:
            self.listen(on_event)

    # ---------------------------------------------------------------------------------- its life

    async def start(self) -> None:
        """Get the first token and keep it fresh from now on; does nothing if that is so already.

        Raises :exc:`TokenAcquisitionError` or :exc:`InvalidTokenError` after one burst of
        attempts (see :class:`RetryConfig`), at once if trying again can't help; a later call
        tries again. Cancelling it ends the wait, not the start.
        """
        self._check_usable()
        if self._refresher.state in (S.STARTING, S.FAILED):
            self._launch()
            await self._started()

    async def aclose(self) -> None:
        """Stop renewing and close what we made; idempotent and final.

        Waiters get :exc:`ClosedError`, subscriptions end. Takes ten seconds at the very most.
        Cancelling it ends the wait, not the closing. In a forked child, or when its event loop
        is gone, it only marks the source as closed.
        """
        forked = self._pid is not None and self._pid != os.getpid()
        if self._loop is None or forked or self._loop.is_closed():
            if self._refresher.state is not S.CLOSED:
                self._refresher.mark_closed()
            return
        if self._loop is not asyncio.get_running_loop():
            raise self._wrong_loop()
        if self._closer is None:
            self._closer = self._loop.create_task(
                self._refresher.aclose(), name=f"{self._name} close"
            )
        await asyncio.shield(self._closer)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except asyncio.CancelledError:
            # Nobody will call __aexit__.
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        task = getattr(getattr(self, "_refresher", None), "task", None)
        if task is None or task.done() or self._pid != os.getpid() or self._loop is None:
            return
        if self._closer is None and not self._loop.is_closed():
            warnings.warn(
                f"unclosed {self!r}: use 'async with', or await its aclose()",
                ResourceWarning,
                source=self,
                stacklevel=1,
            )
            # Collection may happen in any thread.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_abandon, self._refresher)

    # -------------------------------------------------------------------------------- its tokens

    @property
    def current(self) -> Token | None:
        """The newest token, None before the first; it may have expired: see :meth:`get`."""
        self._check_process()
        return self._refresher.broadcast.current

    async def get(self) -> Token:
        """Return a valid token; starts the source if need be, and waits for the first one.

        Raises at once :exc:`TokenExpiredError`, with the last failure as its cause, when the
        token has expired and attempts to renew it fail; the call counts as demand, so attempts
        follow within a second. After a failed start it raises that failure, and tries another
        start at decent intervals. :exc:`ClosedError`, :exc:`WrongLoopError`, :exc:`ForkedError`
        say what they mean. Cancelling it ends the wait, never the acquisition.
        """
        self._check_usable()
        refresher = self._refresher
        if refresher.state is S.STARTING or (refresher.state is S.FAILED and self._may_restart()):
            self._launch()
            await self._started()
        elif refresher.state is S.FAILED:
            self._raise_start_error()
        refresher.observe()
        if refresher.state is S.EXPIRED:
            refresher.demand()
            if refresher.last_error is None:
                await self._wait_for_newer()
            refresher.observe()
            if refresher.state is S.EXPIRED:
                raise refresher.expired_error()
        elif refresher.overdue():
            refresher.demand()  # the server will hardly take what there is
        token = refresher.broadcast.current
        if refresher.state is S.CLOSED or token is None:
            raise refresher.closed_error()
        return token

    def subscribe(self, after: int | None = None) -> Subscription:
        """Return an async iterator over newer tokens and failed renewals.

        The current token comes first, unless its version is ``after`` or lower. A subscription
        that is dropped disappears.
        """
        self._check_process()
        return self._refresher.broadcast.subscribe(after)

    # -------------------------------------------------------------------------------- its status

    @property
    def name(self) -> str:
        """What logs and events call this source."""
        return self._name

    @property
    def state(self) -> TokenState:
        """Where the source is in its life, by the wall clock of this moment."""
        return self._refresher.seen_state()

    @property
    def status(self) -> TokenStatus:
        """A snapshot for health checks and metrics; nothing in it is secret."""
        return self._refresher.status()

    def listen(self, callback: EventCallback) -> Callable[[], None]:
        """Call ``callback`` with every event from now on; returns a function that ends it.

        It is called in the loop, at the very moment of the event, so it should return at once;
        what it raises is logged and changes nothing. Connections of plain clients, which have no
        events of their own (``entra_kwargs``), tell of their re-authentications here.
        """
        return self._refresher.hub.listen(callback)

    def events(self) -> EventStream:
        """Return an async iterator over the events of this source from now on.

        It ends when the source has been closed; see :class:`EventStream`.
        """
        return self._refresher.streams.open(self._refresher.hub)

    def now(self, token: Token | None = None) -> float:
        """The wall clock of this source, in seconds since the epoch.

        With ``token``, one of this source's, as if the clock had not been set back since that came:
        for what has to happen before its expiry.
        """
        return self._refresher.wall_time(token)

    def describe(self) -> str:
        """Return who signs in to what, for error messages; nothing in it is secret."""
        token = self._refresher.broadcast.current
        facts = [
            ("user", token.username if token else None),
            ("tenant", token.tenant_id if token else None),
            ("audience", token.audience if token else self._resource),
        ]
        known = ", ".join(f"{name} {value}" for name, value in facts if value)
        return f"{self._refresher.subject} [{known}]"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self._name} can't be pickled or copied: a TokenSource belongs to its process and"
            " event loop. Make one in each."
        )

    def __repr__(self) -> str:
        refresher = self._refresher
        token = refresher.broadcast.current
        details = f" {refresher.seen_state().value}"
        if token is not None:
            left = token.expires_on - self._clock()
            details += f" ...{token.username[-4:]} version {token.version}, {left:.0f} s left"
        details += f", {len(refresher.broadcast)} subscribers"
        return f"<{type(self).__name__} {self._name!r}{details}>"

    # ----------------------------------------------------------------------------------- helpers

    def _launch(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._refresher.launch()

    async def _started(self) -> None:
        """Wait until the start has ended, and raise what it ended with."""
        await self._refresher.started()
        if self._refresher.state is S.CLOSED:
            raise self._refresher.closed_error()
        if self._refresher.start_error is not None:
            self._raise_start_error()

    def _raise_start_error(self) -> None:
        error = self._refresher.start_error
        assert error is not None
        raise again(error)

    def _may_restart(self) -> bool:
        """Whether it is decent to start again because somebody needs a token."""
        error = self._refresher.start_error
        wait = EXPIRED_INTERVAL
        if not isinstance(error, TokenAcquisitionError) or not error.transient:
            wait = RESTART_INTERVAL
        elif error.retry_after is not None:
            wait = max(wait, error.retry_after)
        return asyncio.get_running_loop().time() >= self._refresher.failed_at + wait

    async def _wait_for_newer(self) -> None:
        """Wait a little for a newer token or a failure, whichever comes first."""
        token = self._refresher.broadcast.current
        subscription = self._refresher.broadcast.subscribe(token.version if token else None)
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(EXPIRED_PATIENCE):
                await anext(subscription)
        subscription.close()

    def _check_process(self) -> None:
        if self._pid is not None and self._pid != os.getpid():
            raise ForkedError(
                f"{self._name} was started in process {self._pid}, before a fork: its event loop"
                f" does not run in process {os.getpid()}. Make a TokenSource in each process."
            )

    def _check_usable(self) -> None:
        self._check_process()
        if self._refresher.state is S.CLOSED:
            raise self._refresher.closed_error()
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise self._wrong_loop()

    def _wrong_loop(self) -> WrongLoopError:
        gone = "which is closed" if self._loop is not None and self._loop.is_closed() else "a loop"
        return WrongLoopError(
            f"{self._name} belongs to the event loop that started it ({gone}) and can't be used"
            " from another one: make a TokenSource inside each asyncio.run()."
        )


def _abandon(refresher: Refresher) -> None:
    """Close what a collected source has left running; called in its loop."""
    if refresher.state is not S.CLOSED:
        refresher.closing = asyncio.get_running_loop().create_task(refresher.aclose())
