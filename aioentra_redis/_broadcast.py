"""Handing each newer token to every connection: the newest value wins, publishing never waits.

The broadcast keeps the newest token and the newest error; a subscription only remembers how much
of that it has seen. So a slow subscriber costs nothing and skips what it missed, and publishing
is one pass over the futures of those that wait.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator

from ._events import RefreshFailed
from ._token import Token

__all__ = ["Broadcast", "Subscription"]

logger = logging.getLogger("aioentra_redis.broadcast")


class Broadcast:
    """The newest token and the newest error, for any number of subscriptions.

    Everything here is to be used from one thread; nothing waits and nothing raises.
    """

    def __init__(self) -> None:
        self._refs: dict[int, weakref.ref[Subscription]] = {}
        self._token: Token | None = None
        self._error: RefreshFailed | None = None
        # Publications are numbered, so that a subscription can tell what is new and what is older.
        self._count = 0
        self._token_number = 0
        self._error_number = 0
        self._closed = False

    @property
    def current(self) -> Token | None:
        """The newest token, None before the first."""
        return self._token

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        """The number of living, open subscriptions."""
        return len(self._refs)

    def publish(self, token: Token) -> None:
        """Make ``token`` the current one and wake everybody; an older one is ignored."""
        if self._closed or (self._token is not None and token.version <= self._token.version):
            return
        self._count += 1
        self._token, self._token_number = token, self._count
        logger.debug("publishing %r to %d subscriptions", token, len(self._refs))
        self._wake()

    def publish_error(self, failure: RefreshFailed) -> None:
        """Report a failed renewal to everybody; the current token stays what it is."""
        if self._closed:
            return
        self._count += 1
        self._error, self._error_number = failure, self._count
        self._wake()

    def subscribe(self, after: int | None = None) -> Subscription:
        """Return a subscription; the current token is delivered to it at once.

        Unless its version is ``after`` or lower: that is for a connection which has just signed
        in with that version. A failure that was published before is not delivered.
        """
        subscription = Subscription(self, after or 0)
        if self._closed:
            return subscription
        refs, key = self._refs, id(subscription)
        # Weak: a client that is dropped without being closed must not live on in here.
        refs[key] = weakref.ref(subscription, lambda _: refs.pop(key, None) and None)
        return subscription

    def close(self) -> None:
        """End every iteration; idempotent and final."""
        if not self._closed:
            self._closed = True
            self._wake()
            self._refs.clear()

    async def aclose(self) -> None:
        """:meth:`close`, for ``async`` code; it does not wait for anything."""
        self.close()

    def _wake(self) -> None:
        # A copy, because the garbage collector may remove entries while we are at it.
        for ref in tuple(self._refs.values()):
            subscription = ref()
            if subscription is not None:
                waiter = subscription._waiter
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)

    def _forget(self, subscription: Subscription) -> None:
        self._refs.pop(id(subscription), None)


class Subscription(AsyncIterator["Token | RefreshFailed"]):
    """An async iterator over newer tokens and failed renewals, in order of publication.

    Of each kind only the newest is kept, so an error never hides a token and a slow subscriber
    gets what counts. It ends when the broadcast or the subscription is closed, and only then.
    Cancelling a wait loses nothing. One task at a time may wait.
    """

    __slots__ = ("__weakref__", "_broadcast", "_closed", "_seen_error", "_seen_version", "_waiter")

    def __init__(self, broadcast: Broadcast, after: int) -> None:
        self._broadcast = broadcast
        self._seen_version = after
        self._seen_error = broadcast._error_number
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    async def __anext__(self) -> Token | RefreshFailed:
        while True:
            broadcast = self._broadcast
            if self._closed or broadcast._closed:
                raise StopAsyncIteration
            token = broadcast._token
            if token is not None and token.version <= self._seen_version:
                token = None
            if broadcast._error_number > self._seen_error and (
                token is None or broadcast._error_number < broadcast._token_number
            ):
                self._seen_error = broadcast._error_number
                assert broadcast._error is not None
                return broadcast._error
            if token is not None:
                self._seen_version = token.version
                return token
            if self._waiter is not None:
                raise RuntimeError(
                    "another task is already waiting on this subscription: give each one of its own"
                )
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    @property
    def closed(self) -> bool:
        """Whether the iteration has ended, or will where it goes on."""
        return self._closed or self._broadcast._closed

    def close(self) -> None:
        """End the iteration, also for a task that waits in it; idempotent."""
        if not self._closed:
            self._closed = True
            self._broadcast._forget(self)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def __repr__(self) -> str:
        state = "closed" if self._closed or self._broadcast._closed else "open"
        return f"<Subscription {state}, seen version {self._seen_version}>"
