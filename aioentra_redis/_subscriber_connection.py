"""A subscriber's connection, as redis-py's ``PubSub`` uses one, that stays signed in.

Its socket belongs to a session of ours, and a task gives it each newer token:

- with RESP3 as AUTH in place, whose answer meets no reader;
- with RESP2, where a subscriber may not AUTH, by handing the subscription over to a connection
  that has signed in with the newer token. Changes of subscriptions wait meanwhile.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis import exceptions as redis_exceptions

from ._dedicated import release_from_renewal
from ._events import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectionStatus,
    EventHub,
    MessagesMayBeMissing,
    SubscriptionHandedOver,
)
from ._multiplex._handover import hand_over
from ._multiplex._reauth import Reauthenticator
from ._multiplex._rotation import Rotation
from ._multiplex._subscriber import Backlog
from ._multiplex._subscriber_session import Inbox, SubscriberSession
from ._recovery import answered
from ._redis_py import attached, decoded, dial, exchange, handled_push, take_over
from .errors import ClosedError, ConnectionLostError

if TYPE_CHECKING:
    from ._redis_py import Dialed
    from ._source import TokenSource
    from ._supervision import Supervised

__all__ = ["SubscriberConnection"]

logger = logging.getLogger("aioentra_redis.pubsub")


class SubscriberConnection:
    """A connection that was leased from ``pool``; what is not defined here is redis-py's.

    ``retry`` says what is done about a lost connection, ``check`` raises if nothing may be done
    any more. ``source`` is None where nobody has to be kept signed in; ``where(failed)`` names the
    pool for the next connection, if that is not always the same, and is told whether the last
    attempt at one has failed. It outlives its sessions: messages that were read stay in the inbox
    through a handover and a loss, and the reader learns of a loss when it has read them.
    """

    def __init__(
        self,
        pool: redis.asyncio.ConnectionPool,
        leased: Any,
        *,
        source: TokenSource | None,
        hub: EventHub,
        retry: Any,
        check: Callable[[], None],
        inbox: Inbox | None = None,
        where: Callable[[bool], redis.asyncio.ConnectionPool] | None = None,
    ) -> None:
        self._pool = pool
        self._leased = leased
        self._source = source
        self._hub = hub
        self._check_owner = check
        self._retry = retry
        self._where_to = where
        self._failed = False
        self._use(leased)
        self._loop = asyncio.get_running_loop()
        self._given_back = False
        self._session: SubscriberSession | None = None
        self._ending: SubscriberSession | None = None
        self._reauthentication: Supervised | None = None
        self._inbox = Inbox() if inbox is None else inbox
        self._callbacks: list[weakref.WeakMethod[Any]] = []
        self._connecting = asyncio.Lock()
        self._changes = asyncio.Lock()
        self._handing_over = False
        self._loss: Exception | None = None
        self._gap: Exception | None = None
        self.next_health_check: float = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._leased, name)

    def _use(self, leased: Any) -> None:
        self._leased = leased
        self._former_retry = leased.retry
        if self._retry is not None:
            leased.retry = copy.deepcopy(self._retry)  # it has a state

    # -- connecting ------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether messages arrive, or will when a handover is over."""
        session = self._session
        return session is not None and (self._handing_over or not session.closed)

    def register_connect_callback(self, callback: Any) -> None:
        """Call a method, which is held weakly, after each reconnect."""
        method = weakref.WeakMethod(callback)
        if method not in self._callbacks:
            self._callbacks.append(method)

    def deregister_connect_callback(self, callback: Any) -> None:
        """Undo ``register_connect_callback``."""
        method = weakref.WeakMethod(callback)
        if method in self._callbacks:
            self._callbacks.remove(method)

    async def connect(self) -> None:
        """Connect and sign in with the newest token, unless connected; then subscribe again.

        Raises what redis-py's connections raise, ``ClosedError``. Cancelling it is safe.
        """
        if self.is_connected:
            return
        async with self._connecting:
            if self.is_connected:
                return
            self._check()
            await self._ended()
            failed, self._failed = self._failed, True
            try:
                await self._leased.disconnect(nowait=True)
                await self._move(failed)
                await self.start()
            except BaseException:
                await self._leased.disconnect(nowait=True)
                raise
            self._failed = False
        gap = self._gap
        # Outside of the lock: what subscribes again comes back here if the connection is lost.
        try:
            for method in list(self._callbacks):
                if (callback := method()) is not None:
                    result = callback(self)
                    if inspect.isawaitable(result):
                        await result
        except BaseException:
            await self.disconnect(nowait=True)  # subscribed to a part of it would be worse
            raise
        session = self._session
        told = gap is None or gap is not self._gap
        if not told and session is not None and self._callbacks:  # which have subscribed again
            self._gap = None
            assert gap is not None
            self._hub.emit(MessagesMayBeMissing(session.name, session.host, gap))

    async def _move(self, failed: bool) -> None:
        """Lease the next connection from another pool, if that is where to go."""
        pool = self._pool if self._where_to is None else self._where_to(failed)
        if pool is self._pool:
            return
        leased = await pool.get_connection()  # type: ignore[no-untyped-call]
        former, self._pool = self._pool, pool
        old, retry = self._leased, self._former_retry
        self._use(leased)
        old.retry = retry
        await asyncio.shield(former.release(old))

    def _check(self) -> None:
        self._check_owner()
        if self._given_back:
            raise ConnectionLostError("the subscriber has been closed")

    async def start(self) -> None:
        """Take over the leased connection, which is connected if it isn't yet.

        Raises what connecting raises, ``ClosedError``.
        """
        leased = self._leased
        while True:
            await leased.connect()
            await release_from_renewal(leased)
            self._check()
            if leased.is_connected:  # an AUTH that was under way may have ended it
                break
        session = self._new_session(take_over(self._leased), self._inbox)
        self._loss = None
        self._install(session)

    def _new_session(self, dialed: Dialed, sink: Backlog) -> SubscriberSession:
        session = SubscriberSession(dialed, sink, self._lost)
        if session.closed:
            self._ending = session
            raise ConnectionLostError(str(session.cause)) from session.cause
        token = session.ledger.token
        self._hub.emit(
            ConnectionOpened(
                session.name,
                session.host,
                token.version if token is not None else None,
                dialed.handshake_seconds,
            )
        )
        return session

    def _install(self, session: SubscriberSession) -> None:
        self._session = session
        if self._source is None:
            return
        resp3 = session.dialed.resp3
        reauthenticator = Reauthenticator(
            session,
            self._source,
            replace=None if resp3 else self._hand_over,
            hub=self._hub,
            only=Rotation.IN_PLACE if resp3 else Rotation.MAKE_BEFORE_BREAK,
        )
        self._reauthentication = reauthenticator.supervised()

    # -- the reader's side -----------------------------------------------------------------------

    async def send_command(self, *args: Any, **options: Any) -> None:
        """Write one command, behind a handover that is under way.

        Raises redis-py's ConnectionError and DataError. Cancelling it is safe: the command was
        sent or it was not.
        """
        if options.get("check_health", True):
            await self._check_health()
        while True:
            if not self.is_connected:
                await self.connect()
            async with self._changes:
                session = self._session
                if session is None or session.closed:
                    continue  # lost while we waited: nothing was sent
                session.send(args)
            await session.drained()
            return

    async def ask(self, *args: Any) -> Any:
        """Send one command, behind a handover that is under way; the reader gets nothing of it.

        Returns None for a change of subscriptions when it is confirmed. Raises the server's
        refusal, ``ConnectionLostError``. Cancelling it is safe.
        """
        async with self._changes:
            session = self._session
            if session is None or session.closed:
                raise self._lost_error()
            outcome = session.ask(*args)
        return await outcome

    @property
    def session(self) -> SubscriberSession | None:
        """The present one, None without a connection; it may have ended."""
        return self._session

    async def _check_health(self) -> None:
        """PING where redis-py would; the reader gets nothing of it."""
        interval = self._leased.health_check_interval
        if not interval or self._loop.time() <= self.next_health_check:
            return
        if not self.is_connected:
            await self.connect()
        session = self._session
        if session is None or session.held_up:
            return  # what waits to be read is health enough, and the answer would wait, too
        try:
            async with asyncio.timeout(self._leased.socket_timeout):
                await session.ask("PING")
        except TimeoutError:
            await self.disconnect()
            raise redis_exceptions.TimeoutError(
                f"no answer to a PING from {session.host}"
            ) from None
        self.next_health_check = self._loop.time() + interval

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,
        **_: Any,
    ) -> Any:
        """The next message, or None if none came in ``timeout`` seconds.

        As redis-py's connections: None stands for ``socket_timeout``, whose end is a TimeoutError,
        and infinity for no end. Raises ConnectionError when the connection is lost and all that
        came before is read, and the errors that refused subscriptions got. Cancelling it loses no
        message.
        """
        seconds = self._leased.socket_timeout if timeout is None else timeout
        item = await self._next_item(None if seconds == math.inf else seconds)
        if item is _NOTHING:
            if timeout is not None:
                return None
            raise redis_exceptions.TimeoutError(f"Timeout reading from {self._where()}")
        if interval := self._leased.health_check_interval:
            self.next_health_check = self._loop.time() + interval
        if isinstance(item, Exception):
            raise item
        if not disable_decoding:
            push = item.__class__ is not list and isinstance(item, list)
            item = decoded(self._leased, item)
            if push:
                item = await handled_push(self._leased, item)
        return item

    async def _next_item(self, seconds: float | None) -> Any:
        inbox = self._inbox
        if not inbox and seconds is not None and seconds <= 0:
            await asyncio.sleep(0)  # what has come to the socket may come to us
        deadline = None if seconds is None else self._loop.time() + seconds
        while not inbox:
            if not self.is_connected:
                raise self._lost_error()
            if seconds is not None and seconds <= 0:
                return _NOTHING
            if not await inbox.news(deadline) and not inbox:
                return _NOTHING
        item = inbox.take()
        session = self._session
        if session is not None and session.held_up:
            session.regulate()
        return item

    def _lost_error(self) -> redis_exceptions.ConnectionError:
        cause = self._loss
        text = str(cause) if cause is not None else f"the connection to {self._where()} is closed"
        error = ConnectionLostError(text)
        error.__cause__ = cause
        return error

    def _where(self) -> str:
        return self._session.host if self._session is not None else "the server"

    # -- rotation --------------------------------------------------------------------------------

    async def _hand_over(self, old: SubscriberSession, reason: str) -> None:
        """Sign in beside ``old`` and let the new connection deliver in its place.

        Raises what kept it from that; ``old`` goes on then, unless it was lost meanwhile.
        """
        new = self._new_session(await dial(self._pool), Backlog())
        try:
            async with self._changes:
                if old is not self._session or old.closed:
                    return
                self._handing_over = True
                cut = await hand_over(old, new, self._publish)
                self._exchange(old, new)
        finally:
            self._handing_over = False
            if self._session is not new:
                new.close()
                if self._session is old and old.closed:  # then its loss is still to be dealt with
                    self._lost(old, old.cause)
        logger.info("%s takes over from %s", new.name, old.name)
        self._hub.emit(SubscriptionHandedOver(old.name, new.name, new.host, cut.doubt))
        if cut.missing and old.cause is not None:
            self._hub.emit(MessagesMayBeMissing(new.name, new.host, old.cause))

    def _exchange(self, old: SubscriberSession, new: SubscriberSession) -> None:
        exchange(self._pool, self._leased, new.dialed.connection)
        self._leased = new.dialed.connection
        self._stop_reauthentication()
        self._install(new)
        new.regulate()
        old.close()

    async def _publish(self, marker: bytes) -> None:
        """Publish on the client's multiplexed connection: this one may not, with RESP2."""
        multiplexed = attached(self._pool)
        if multiplexed is None:
            raise ClosedError(
                "the client of this subscriber has been closed: close the subscriber, too"
            )
        await answered(
            multiplexed,
            lambda session: session.submit(("PUBLISH", marker, b"")),
            name=lambda: "PUBLISH",
            repeatable=True,  # the first of them counts
            retry=None,
        )

    # -- the end ---------------------------------------------------------------------------------

    def _lost(self, session: SubscriberSession, cause: Exception | None) -> None:
        if session is self._session and self._handing_over:
            return  # the handover finds out, and makes the best of it
        self._hub.emit(ConnectionClosed(session.name, session.host, cause))
        if session is not self._session:
            return
        self._loss = cause
        self._note_gap(session, cause)
        self._ending = session
        self._stop_reauthentication()
        self._inbox.wake()

    def _note_gap(self, session: SubscriberSession, cause: Exception | None) -> None:
        """Messages will be missed from now on, if there are any to come."""
        if any(session.subscriptions.values()) and self._gap is None:
            self._gap = cause or ConnectionLostError("the subscriber was disconnected")

    def _stop_reauthentication(self) -> None:
        task, self._reauthentication = self._reauthentication, None
        if task is not None:
            task.stop()

    async def disconnect(self, nowait: bool = False, **_: Any) -> None:
        """Close the connection; ``connect`` opens another one.

        Waits for the socket unless ``nowait``. Messages that were read can still be had.
        """
        session, self._session = self._session, None
        self._stop_reauthentication()
        if session is not None:
            self._note_gap(session, None)
            self._ending = session
            session.close()
            self._inbox.wake()
        if not nowait:
            await self._ended()

    async def _ended(self) -> None:
        """Wait until redis-py's objects know that the last session is over."""
        if self._ending is not None:
            await self._ending.wait_closed()

    async def give_back(self) -> None:
        """Return the leased connection to its pool; idempotent."""
        if self._given_back:
            return
        self._given_back = True
        await self.disconnect()
        self._leased.retry = self._former_retry
        await self._leased.disconnect(nowait=True)
        await self._pool.release(self._leased)

    def abandon(self) -> None:
        """The reader was dropped without being closed; may be called from any thread."""
        if self._given_back or self._loop.is_closed():
            return

        def let_go() -> None:
            task = self._loop.create_task(self.give_back())
            _LETTING_GO.add(task)
            task.add_done_callback(_LETTING_GO.discard)

        self._loop.call_soon_threadsafe(let_go)

    def status(self) -> list[ConnectionStatus]:
        """The ledger's row, none while there is no connection."""
        session = self._session
        if session is None:
            return []
        return [session.ledger.status(host=session.host, in_flight=session.in_flight)]


_NOTHING = object()
_LETTING_GO: set[asyncio.Task[None]] = set()  # a loop holds its tasks weakly
