"""A subscriber's session: its engine on one authenticated socket, as an ``asyncio.Protocol``.

What is for the reader goes to ``sink``, which can be changed between two messages: a handover
does so. When the sink holds more than the reader takes, reading pauses, and the server's own
limits on its output buffers apply, as they do to any subscriber that does not read.

An answer that somebody waits for stands behind those messages, so a slow reader delays it. That
must not keep the connection from learning whether its token was taken: while an answer is awaited
it reads on, up to ``READ_AHEAD``. Past that it waits, and ``held_up`` says that the delay is no
fault of the server's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .._redaction import without_tracebacks
from .._schedule import AUTH_TIMEOUT, IDLE_PING
from ..errors import ConnectionLostError
from ._ending import Ending, ignore_outcome
from ._engine import ProtocolViolation, Waiter
from ._ledger import Ledger
from ._subscriber import Backlog, Realm, Subscriber

if TYPE_CHECKING:
    from .._redis_py import Dialed
    from .._token import Token

__all__ = ["Inbox", "SubscriberSession"]

logger = logging.getLogger("aioentra_redis.pubsub")

HIGH_WATER: Final = 1 << 20
LOW_WATER: Final = 1 << 18
"""Bytes of unread messages above which reading pauses, and below which it goes on."""

READ_AHEAD: Final = 1 << 26
"""Bytes of unread messages up to which reading goes on while an answer is awaited: twice what a
server keeps for a subscriber by default before it drops it (``client-output-buffer-limit``)."""

SHORTEST_LOOK: Final = 0.05
"""Seconds between two looks of the watchdog, at least."""

_numbers = itertools.count(1)


class Inbox(Backlog):
    """The messages of one reader, who may wait for them.

    Waiting takes nothing out, so a reader that is cancelled, at whatever moment, loses nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiters: deque[asyncio.Future[None]] = deque()

    def put(self, item: Any) -> None:
        """Add ``item`` and wake whoever waits."""
        super().put(item)
        if self._waiters:
            self.wake()

    def wake(self) -> None:
        """Have everybody who waits look again."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def news(self, deadline: float | None) -> bool:
        """Wait for a reason to look again; False if none came until that moment of the loop."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except TimeoutError:
            return False
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return True


class SubscriberSession(Ending):
    """One authenticated connection of a subscriber.

    ``on_lost`` is called once, with the session and the cause, None if it was closed on purpose.
    Not thread-safe: it belongs to the loop that it was made in.
    """

    paces_itself = False

    def __init__(
        self,
        dialed: Dialed,
        sink: Backlog,
        on_lost: Callable[[SubscriberSession, Exception | None], None],
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.dialed = dialed
        self.sink = sink
        self._on_lost = on_lost
        self._transport = dialed.transport
        self._subscriber = Subscriber(
            dialed.reader,
            not_enough=dialed.not_enough,
            push_type=dialed.push_type,
            resp3=dialed.resp3,
            deliver=self._deliver,
            on_marker=self._at_marker,
        )
        self._marker: tuple[bytes, Callable[[], None], asyncio.Future[None]] | None = None
        self.name = f"subscriber-{next(_numbers)}"
        self.host = dialed.host
        self.ledger = Ledger(self.name, dialed.token, dialed.handshake_seconds)
        self.cause: Exception | None = None
        self.closed = False
        self.held_up = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._last_received = loop.time()
        self._ping: asyncio.Future[Any] | None = None
        self._auth: asyncio.Future[Any] | None = None
        self._pinged_at = self._auth_deadline = 0.0
        self._idle: float = dialed.health_check_interval or IDLE_PING
        self._watchdog = loop.call_later(self._idle, self._watch)
        self._original = self._transport.get_protocol()
        unread, eof = dialed.adopt(self)
        self.data_received(unread)  # redis-py's parser may hold something, too
        if eof:
            self._end(ConnectionLostError("the server closed the connection after the handshake"))

    # -- sending ---------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many commands are owed something."""
        return self._subscriber.in_flight

    @property
    def subscriptions(self) -> dict[Realm, set[bytes]]:
        """What the server has confirmed; exact while no change is in flight."""
        return self._subscriber.subscriptions

    def send(self, args: tuple[Any, ...], waiter: Waiter | None = None) -> None:
        """Write one command; what it is owed goes to the waiter, or into the sink.

        Raises redis-py's DataError or ``ConnectionLostError``; then nothing was written.
        """
        if self.closed:
            raise self._loss(written=False)
        if isinstance(args[0], (str, bytes)) and len(words := args[0].split()) > 1:
            args = (*words, *args[1:])
        packed = self.dialed.pack(args)
        self._subscriber.expect(args, waiter)
        try:
            self._transport.write(packed if isinstance(packed, bytes) else b"".join(packed))
        except Exception as exc:  # uvloop raises where asyncio says nothing: the socket is closed
            cause = ConnectionLostError(f"writing to {self.host} failed: {exc}")
            cause.__cause__ = without_tracebacks(exc)
            self._end(cause)
            packed = b""  # an AUTH maybe, and tracebacks with locals show this frame
            raise self._loss(written=False) from None
        self.regulate()

    def ask(self, *args: Any) -> asyncio.Future[Any]:
        """Write one command whose outcome is the future's; the reader gets nothing of it."""
        future: asyncio.Future[Any] = self._loop.create_future()
        future.add_done_callback(ignore_outcome)
        self.send(args, future)
        return future

    def withdraw_auth(self) -> None:
        """Nothing: AUTH is written at once."""

    def authenticate(self, token: Token) -> asyncio.Future[Any]:
        """Write AUTH with ``token``, in the same queue as every command.

        What stands behind it may take ``AUTH_TIMEOUT`` longer.
        """
        self._auth = self.ask("AUTH", token.username, token.secret)
        self._auth_deadline = self._loop.time() + AUTH_TIMEOUT
        return self._auth

    async def drained(self) -> None:
        """Wait until the socket takes more; cancelling it is safe."""
        await self._writable.wait()

    def pause_writing(self) -> None:
        """The transport's buffer is full (called by the transport)."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The transport's buffer has drained (called by the transport)."""
        self._writable.set()

    # -- markers ---------------------------------------------------------------------------------

    def at_marker(self, marker: bytes, action: Callable[[], None]) -> asyncio.Future[None]:
        """Call ``action`` between what was published before the marker and what came after it.

        The future is done with it, and fails with the connection.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(ignore_outcome)
        if self.closed:
            future.set_exception(self._loss(written=False))
        else:
            self._marker = (marker, action, future)
        return future

    def forget_marker(self) -> None:
        """Nobody is interested any more."""
        if self._marker is not None:
            self._marker[2].cancel()
            self._marker = None

    def _at_marker(self, channel: bytes) -> None:
        if self._marker is None or self._marker[0] != channel:
            return  # of another subscriber, or too late
        _, action, future = self._marker
        self._marker = None
        action()
        if not future.done():
            future.set_result(None)

    # -- reading ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes came in (called by the transport)."""
        self._last_received = self._loop.time()
        try:
            self._subscriber.receive(data)
        except ProtocolViolation as exc:
            self._end(ConnectionLostError(f"the connection to {self.host} is out of step: {exc}"))
            return
        self.regulate()

    def _deliver(self, item: Any) -> None:
        self.sink.put(item)

    def regulate(self) -> None:
        """Pause or resume reading, by what is unread; to be called when some of it was read."""
        if self.closed or self._transport.is_closing():
            return
        awaits = self._subscriber.awaited or self._marker is not None
        high, low = (READ_AHEAD, READ_AHEAD) if awaits else (HIGH_WATER, LOW_WATER)
        if self.held_up:
            if self.sink.size <= low:
                self.held_up = False
                self._last_received = self._loop.time()  # the silence was ours
                self._transport.resume_reading()
        elif self.sink.size > high:
            self.held_up = True
            self._transport.pause_reading()

    def _watch(self) -> None:
        """Keep an idle connection from being closed, and end one that is dead."""
        if self.closed:
            return
        now = self._loop.time()
        if self.held_up:
            self._last_received = now  # nobody looks: what is silence can't be told
        asked = self._ping is not None and not self._ping.done()
        if now >= self._dead_or_idle_at(asked):
            if asked:
                self._end(
                    ConnectionLostError(
                        f"nothing came from {self.host} for {now - self._last_received:.3g} s, "
                        "not even the answer to a PING"
                    )
                )
                return
            asked, self._pinged_at = True, now
            try:
                self._ping = self.ask("PING")
            except ConnectionLostError:
                return
        delay = max(self._dead_or_idle_at(asked) - now, SHORTEST_LOOK)
        self._watchdog = self._loop.call_later(delay, self._watch)

    def _dead_or_idle_at(self, asked: bool) -> float:
        """When the connection is dead if nothing comes until then; idle, if it was not asked."""
        if not asked:
            return self._last_received + self._idle
        patience = self.dialed.socket_timeout or IDLE_PING
        dead_at = max(self._last_received, self._pinged_at) + patience
        if self._auth is not None and not self._auth.done():
            dead_at = max(dead_at, self._auth_deadline)
        return dead_at

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close at once. Idempotent."""
        self._end(None)

    def _end(self, cause: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        self.cause = cause
        self._watchdog.cancel()
        self._subscriber.connection_lost(self._loss)
        if self._marker is not None:
            if not self._marker[2].done():
                self._marker[2].set_exception(self._loss(written=False))
            self._marker = None
        self._writable.set()
        self._transport.abort()  # there is nothing in the buffers that anybody waits for
        self.ledger.close()
        self._on_lost(self, cause)
