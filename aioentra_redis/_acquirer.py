"""Calling a credential without ever blocking the loop, within a deadline, one call at a time.

A :class:`Recipe` says how credentials are made (``_credentials.py`` has one for each kind); an
:class:`Acquirer` makes them, calls them and closes those it made. Whatever runs code that may
block (an import of azure, a constructor that reads a certificate, a synchronous credential) runs
in a daemon thread, of which a source has one at a time.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ._entra_errors import Subject, explain, timed_out
from ._redaction import Secret
from ._threads import call_in_thread
from .errors import TokenAcquisitionError

__all__ = ["Acquirer", "Fetched", "Recipe", "Runner", "token_method"]

logger = logging.getLogger("aioentra_redis.credentials")

T = TypeVar("T")
CLOSE_TIMEOUT = 5.0
"""Seconds that closing one credential may take."""
CANCEL_GRACE = 1.0
"""Seconds that a cancelled call may take to clean up."""


class Runner(Protocol):
    """Runs a blocking call off the loop; tests put another one in."""

    async def __call__(self, function: Callable[[], T], name: str) -> T: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the credentials of one source are made.

    ``make`` runs in a thread, unless it is a coroutine function. ``fresh`` means that each
    renewal gets an instance of its own, because an instance has a cache that can't be bypassed:
    only so is the refresh ratio honoured. ``owned`` means that we made it and so close it.
    """

    label: str
    make: Callable[[], object] = field(repr=False)
    fresh: bool
    owned: bool = True
    tenant_id: str | None = None
    client_id: str | None = None
    instance: object = field(default=None, repr=False)
    """A credential that was passed in; then ``make`` is not used."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a credential returned, with the secret wrapped; nothing is checked yet."""

    secret: Secret
    expires_on: object
    refresh_on: object

    @classmethod
    def of(cls, info: object) -> Fetched:
        """Wrap an ``AccessTokenInfo`` or ``AccessToken``, whose own reprs print the token."""
        token = getattr(info, "token", None)
        if not isinstance(token, str) or not token:
            raise TypeError(
                f"the credential returned a {type(info).__name__} without a token in it;"
                " it should return an AccessTokenInfo or AccessToken of azure.core.credentials"
            )
        return cls(
            Secret(token), getattr(info, "expires_on", None), getattr(info, "refresh_on", None)
        )


class Acquirer:
    """Gets tokens from the credentials of one recipe, one call at a time.

    Used by one task, in one event loop; only :meth:`aclose` may overlap with a call.
    """

    def __init__(
        self, recipe: Recipe, scopes: Sequence[str], resource: str, run: Runner = call_in_thread
    ) -> None:
        self._recipe = recipe
        self._scopes = tuple(scopes)
        self._run = run
        self.subject = Subject(recipe.label, resource, recipe.tenant_id, recipe.client_id)
        self._live: object = None
        """The instance whose token is in use; for a recipe that is not fresh, the only one."""
        self._candidate: object = None
        """The instance that is being asked for a newer token."""
        self._call: asyncio.Task[Fetched | TokenAcquisitionError] | None = None
        self._in_thread = False
        self._overdue = False

    @property
    def renews_early(self) -> bool:
        """Whether a token can be renewed whenever we like: see :class:`Recipe`."""
        return self._recipe.fresh

    @property
    def hung(self) -> bool:
        """Whether a call has outlived its deadline and can't be ended."""
        return self._overdue and self._call is not None and not self._call.done()

    async def acquire(self, timeout: float) -> Fetched:
        """Ask the credential for a token.

        Raises :exc:`TokenAcquisitionError`, after ``timeout`` seconds at the latest (and a second
        for an asynchronous credential to clean up). A synchronous call can't be ended: while it
        hangs, no second one is started, and later attempts wait for it instead. Cancelling ends
        an asynchronous call and abandons a synchronous one.
        """
        if self._call is None or self._call.cancelled():
            self._overdue = False
            self._call = asyncio.create_task(self._fetch(), name=f"{self.subject.label} fetch")
        call = self._call
        try:
            done, _ = await asyncio.wait({call}, timeout=timeout)
            if not done:
                self._overdue = True
                if not self._in_thread:
                    call.cancel()
                    done, _ = await asyncio.wait({call}, timeout=CANCEL_GRACE)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if not done or call.cancelled():
            late = timed_out(timeout, self.subject, still_running=not done)
            if done:
                self._call = None
            raise late
        self._call = None
        self._overdue = False
        fetched = call.result()
        if isinstance(fetched, TokenAcquisitionError):
            raise fetched
        return fetched

    async def settle(self, *, accepted: bool) -> None:
        """Close the instance that is no longer needed, now that the last answer is dealt with.

        ``accepted`` says whether its token was published. At most two instances live. It never
        raises and takes :data:`CLOSE_TIMEOUT` at most; cancelling it leaves the closing undone.
        """
        if not self._recipe.fresh or self._candidate is None:
            return
        if accepted:
            surplus, self._live = self._live, self._candidate
        else:
            surplus = self._candidate
        self._candidate = None
        # A user's factory may well return the same object each time.
        if surplus is not None and surplus is not self._live:
            await self._close(surplus)

    async def release(self) -> None:
        """Close what we made; a later :meth:`acquire` makes it anew."""
        instances = (self._live, self._candidate)
        self._live = self._candidate = None
        if self._recipe.owned:
            for instance in {id(each): each for each in instances if each is not None}.values():
                await self._close(instance)

    async def aclose(self) -> None:
        """End a call under way and close what we made; idempotent, never raises."""
        call, self._call = self._call, None
        if call is not None and not call.done():
            call.cancel()
            await asyncio.wait({call}, timeout=CANCEL_GRACE)
        await self.release()

    async def _fetch(self) -> Fetched | TokenAcquisitionError:
        """Make the credential if need be, and call it. Errors are values: see ``_threads``."""
        try:
            credential = await self._credential()
            method = token_method(credential)
            return Fetched.of(await self._invoke(lambda: method(*self._scopes), method))
        except Exception as error:
            return explain(error, self.subject)

    async def _credential(self) -> object:
        if self._recipe.instance is not None:
            return self._recipe.instance
        if self._live is not None and not self._recipe.fresh:
            return self._live
        made = await self._invoke(self._recipe.make, self._recipe.make)
        if self._recipe.fresh:
            self._candidate = made
        else:
            self._live = made
        return made

    async def _invoke(self, function: Callable[[], Any], original: object) -> Any:
        """Call on the loop what is a coroutine function, everything else in the thread."""
        if _is_async(original):
            result = function()
        else:
            self._in_thread = True
            try:
                result = await self._run(function, f"{self.subject.label} (aioentra_redis)")
            finally:
                self._in_thread = False
        return await result if inspect.isawaitable(result) else result

    async def _close(self, instance: object) -> None:
        close = getattr(instance, "close", None)
        if not callable(close):
            return
        closing = asyncio.create_task(self._try(close), name=f"{self.subject.label} close")
        try:
            # Not asyncio.timeout(): a close that ignores being cancelled must not hold us up.
            done, _ = await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT)
        except asyncio.CancelledError:
            closing.cancel()
            raise
        if not done:
            closing.cancel()
            logger.warning("closing %s took over %g s", self.subject.label, CLOSE_TIMEOUT)

    async def _try(self, close: Callable[[], object]) -> None:
        try:
            await self._invoke(close, close)
        except Exception as error:  # somebody else's close must not stop us
            logger.warning("closing a credential failed: %s", explain(error, self.subject))


def token_method(credential: object) -> Callable[..., Any]:
    """Return ``get_token_info``, because it tells ``refresh_on``, else ``get_token``.

    Raises :exc:`TypeError` if there is neither.
    """
    for name in ("get_token_info", "get_token"):
        method = getattr(credential, name, None)
        if callable(method):
            return method  # type: ignore[no-any-return]
    raise TypeError(
        f"a {type(credential).__name__} has neither get_token_info() nor get_token(), so it is no"
        " credential"
    )


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )
