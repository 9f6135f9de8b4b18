"""A session: the engine on one authenticated socket, as an ``asyncio.Protocol``.

The way of a command from here to the socket is short: ``submit`` packs it and queues it in the
engine, ``_flush`` writes everything that was queued in one turn of the loop with one call.

Three things are watched on the way:

- *admission*: bytes that wait to be sent are counted; above ``HIGH_WATER`` callers wait at the
  gate, in order, before they pack (``congested``, ``admission``). Reading never stops: a client
  that stops reading because it can't write deadlocks with a server that does the same;
- *time*: one watchdog per session, no timer per command. A command that is late fails alone;
  the session ends only when nothing at all arrived while replies were due;
- *the end*: whoever is in flight learns whether its bytes had been written.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import select
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from .._lifecycle import Home
from .._maintenance import notice_in
from .._redaction import without_tracebacks
from .._repeats import Repeats
from .._schedule import AUTH_TIMEOUT, IDLE_PING
from ..errors import CommandTimeoutError, ConnectionLostError
from ._ending import Ending, ignore_outcome
from ._engine import Engine, Packed, Patient, ProtocolViolation
from ._ledger import Ledger

if TYPE_CHECKING:
    from .._events import MaintenanceAnnounced
    from .._redis_py import Address, Dialed
    from .._token import Token

__all__ = ["Session"]

logger = logging.getLogger("aioentra_redis.connection")

HIGH_WATER: Final = 1 << 20
"""Bytes waiting to be sent above which callers wait at the gate."""

JOIN_LIMIT: Final = 1 << 17
"""Bytes up to which one turn's commands are joined into one buffer."""

FEW: Final = 12
"""Callers in one turn up to which the first of the next turn is written at once."""

WATCH_INTERVAL: Final = 0.25
"""Seconds between two looks of the watchdog, fewer where ``socket_timeout`` is short."""

QUIET: Final = 0.05
"""Seconds of silence after which the peer is looked at before the first write."""

_CLOSED_BY_PEER = (
    select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)
    if hasattr(select, "poll")
    else 0
)

_numbers = itertools.count(1)


class Session(Ending):
    """One authenticated connection, shared by every coroutine of a client.

    ``on_lost`` is called once, with the session and the cause, None if it was closed on purpose.
    Not thread-safe: it belongs to the loop that it was made in.
    """

    held_up = False
    """It always reads."""

    paces_itself = False

    def __init__(
        self, dialed: Dialed, on_lost: Callable[[Session, Exception | None], None]
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._home = Home("the client")
        self._home.check()
        self.dialed = dialed
        self._on_lost = on_lost
        self.pack: Callable[[tuple[Any, ...]], Packed] = dialed.pack
        self._create_future = loop.create_future
        self._transport = dialed.transport
        self._engine = Engine(
            dialed.reader,
            not_enough=dialed.not_enough,
            push_type=dialed.push_type,
            on_push=self._dispatch_push,
        )
        self._enqueue = self._engine.submit
        self._pushes: set[asyncio.Task[None]] = set()
        self.name: str = f"connection-{next(_numbers)}"
        self.host: str = dialed.host
        self.address: Address = dialed.address
        self.on_watch: Callable[[], None] | None = None
        """Called with every look of the watchdog, a few times a second."""
        self.on_notice: Callable[[Session, MaintenanceAnnounced], None] | None = None
        """Called with what the server announces of its maintenance."""
        self.ledger: Ledger = Ledger(self.name, dialed.token, dialed.handshake_seconds)
        self._repeats = Repeats()
        self.cause: Exception | None = None
        self.closed: bool = False
        self._lost: asyncio.Future[None] = loop.create_future()

        self.congested: bool = False
        self._paused = False
        self._gate: deque[asyncio.Future[None]] = deque()
        self._pending_bytes = 0
        self._flush_scheduled = False
        self.few = FEW
        """As the constant says; its owner may know better."""
        self._few_callers = True
        self._surplus = 0  # unwritten commands beyond the first of each batch

        self._auth_position: int | None = None
        self._auth_deadline = 0.0
        self._draining = False
        self._last_received = loop.time()

        self._original = self._transport.get_protocol()
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        unread, eof = dialed.adopt(self)
        self._watchdog = loop.call_later(self._watch_interval(), self._watch)
        if unread:
            self.data_received(unread)
        if eof:
            self._end(ConnectionLostError("the server closed the connection after the handshake"))

    # -- commands --------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many replies are owed."""
        return self._engine.in_flight

    def submit(self, args: tuple[Any, ...], raw: bool = False) -> asyncio.Future[Any]:
        """Queue one command; the future gets its reply, or an error of redis-py's.

        ``raw`` keeps the reply as bytes on a connection that decodes replies. Raises redis-py's
        DataError, ``WrongLoopError``, ``ForkedError``, or ``ConnectionLostError``; then nothing was
        queued.
        Cancelling the future is safe at any time: nobody else's reply changes.
        """
        if self.closed:
            raise self._loss(False)
        first = not self._flush_scheduled
        # Once per batch, not per command: in Python 3.11 this look costs a system call.
        if first and _get_running_loop() is not self._loop:
            self._home.check()
        packed = self.pack(args)
        future: asyncio.Future[Any] = self._create_future()
        if raw:
            self._engine.submit_raw(future, packed)
        else:
            self._enqueue(future, packed)
        size = self._pending_bytes = self._pending_bytes + (
            len(packed) if packed.__class__ is bytes else sum(map(len, packed))  # type: ignore[arg-type]
        )
        if size > HIGH_WATER:
            self.congested = True
        if first:
            self._schedule_flush()
        return future

    def submit_batch(
        self, packed: Sequence[Packed], raw: Collection[int] = ()
    ) -> asyncio.Future[list[Any]]:
        """Queue one command or more, packed with ``pack``, that are to reach the server together.

        Nobody else's command comes in between. The future gets the list of replies, with error
        replies as values; where the connection ends or a reply is late it fails as a whole.
        ``raw`` holds the indexes of the commands whose replies are to stay bytes. Raises
        ``ConnectionLostError``, ``WrongLoopError`` or ``ForkedError``; then nothing was queued.
        Cancelling the future is as safe as with ``submit``; what was written runs to its end.
        """
        if self.closed:
            raise self._loss(False)
        first = not self._flush_scheduled
        if first and _get_running_loop() is not self._loop:
            self._home.check()
        future: asyncio.Future[list[Any]] = self._create_future()
        self._engine.submit_batch(future, packed, raw)
        self._surplus += len(packed) - 1
        self._pending_bytes += _size(packed)
        if self._pending_bytes > HIGH_WATER:
            self.congested = True
        if first:
            self._schedule_flush(len(packed))
        return future

    def withdraw(self, future: asyncio.Future[Any]) -> None:
        """Forget a command, or a batch, of a caller that went away, if it was not written yet."""
        packed = self._engine.withdraw(future)
        if packed:
            self._surplus -= len(packed) - 1
            self._pending_bytes -= _size(packed)
            self._end_if_drained()

    def withdraw_auth(self) -> None:
        """Nothing: AUTH is written at once."""

    def authenticate(self, token: Token) -> asyncio.Future[Any]:
        """Write AUTH with ``token``, in the same FIFO as every command; it passes the gate.

        The time that commands spend behind it does not count, for ``AUTH_TIMEOUT`` at most. Its
        own answer may come at any time: ``socket_timeout`` is meant for commands.
        """
        if self.closed:
            raise self._loss(False)
        position = self._engine.position
        future: asyncio.Future[Any] = self._create_future()
        packed = self.pack(("AUTH", token.username, token.secret))
        self._engine.submit(Patient(future), packed)
        self._auth_position = position
        self._auth_deadline = self._loop.time() + AUTH_TIMEOUT
        self._flush()  # at once: a command withdrawn before the write would shift the position

        def answered(_: asyncio.Future[Any]) -> None:
            if self._auth_position == position:
                self._stop_waiting_for_auth()

        future.add_done_callback(answered)
        return future

    def _stop_waiting_for_auth(self) -> None:
        """AUTH is answered or has had its time: what stands behind it may be late from now on."""
        if self._auth_position is not None:
            self._engine.restart_clock_behind(self._auth_position, self._loop.time())
            self._auth_position = None

    # -- admission -------------------------------------------------------------------------------

    async def admission(self) -> None:
        """Wait until there is room for one more command, in the order of arrival.

        Returns at once when the session ends: the caller finds out at ``submit``. Cancelling it
        gives the place to the next in line.
        """
        if not self.congested or self.closed:
            return
        turn: asyncio.Future[None] = self._create_future()
        self._gate.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._admit_next()  # our turn had come: pass it on
            elif turn in self._gate:  # the gate may have met the cancelled turn before us
                self._gate.remove(turn)
            raise

    def admitted(self) -> None:
        """To be called after the submit that followed ``admission``: lets the next one in."""
        self._admit_next()

    def _admit_next(self) -> None:
        if self.closed:
            self._open_gate()
            return
        room = not self._paused and self._pending_bytes <= HIGH_WATER
        if not room:
            return
        while self._gate:
            turn = self._gate.popleft()
            if not turn.done():
                turn.set_result(None)
                return  # one at a time: the next is let in when this one has submitted
        self.congested = False

    def _open_gate(self) -> None:
        self.congested = False
        while self._gate:
            turn = self._gate.popleft()
            if not turn.done():
                turn.set_result(None)

    def pause_writing(self) -> None:
        """The transport's buffer is full (called by the transport)."""
        self._paused = self.congested = True

    def resume_writing(self) -> None:
        """The transport's buffer has drained (called by the transport)."""
        self._paused = False
        self._admit_next()

    # -- writing ---------------------------------------------------------------------------------

    def _schedule_flush(self, submitted: int = 1) -> None:
        if self._few_callers and self._engine.in_flight == submitted:
            # The server is idle: let it wake and work while the other few callers queue their
            # commands. Measured at 5 and 10 callers it is 20 to 30 % more, at one a turn of the
            # loop less; in a crowd it would break up the batches.
            self._flush()
        else:
            # One flush for everything that this turn of the loop submits: with 100 callers it
            # saves 99 system calls in 100.
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self.closed:
            return
        engine = self._engine
        now = self._loop.time()
        if (
            now - self._last_received > QUIET
            and engine.in_flight == engine.unwritten
            and self._peer_has_closed()
        ):
            # Nothing was in flight and the server has hung up: nothing of this was sent, so all of
            # it is safe to send again on the next connection.
            self._end(ConnectionLostError("the server closed the idle connection"))
            return
        batch = engine.data_to_send(now)
        self._few_callers = len(batch) - self._surplus <= self.few
        self._surplus = 0
        size, self._pending_bytes = self._pending_bytes, 0
        if batch:
            self._write(batch, size)
        if self.congested and not self._paused:
            self._admit_next()  # also where everything was withdrawn

    def _write(self, batch: list[Packed], size: int) -> None:
        write = self._transport.write
        try:
            if len(batch) == 1 and batch[0].__class__ is bytes:
                write(batch[0])
            elif size <= JOIN_LIMIT and list not in {part.__class__ for part in batch}:
                write(b"".join(batch))  # type: ignore[arg-type]
            else:
                _write_in_pieces(write, batch)
        except Exception as exc:
            # uvloop raises where asyncio says nothing: the socket is closed. How much was written
            # is not known, so the replies have no known owners any more.
            cause = ConnectionLostError(f"writing to {self.host} failed: {exc}")
            cause.__cause__ = without_tracebacks(exc)  # AUTH may be among what was written
            self._end(cause)

    def _peer_has_closed(self) -> bool:
        sock = self._transport.get_extra_info("socket")
        if not _CLOSED_BY_PEER or sock is None:
            return False
        poller = select.poll()
        poller.register(sock.fileno(), select.POLLIN | _CLOSED_BY_PEER)
        return any(events & _CLOSED_BY_PEER for _, events in poller.poll(0))

    # -- reading ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes came in (called by the transport)."""
        self._last_received = self._loop.time()
        try:
            self._engine.receive(data)
        except ProtocolViolation as exc:
            self._end(ConnectionLostError(f"the connection to {self.host} is out of step: {exc}"))
            return
        if self._draining:
            self._end_if_drained()

    def _dispatch_push(self, push: Any) -> None:
        task = self._loop.create_task(self._pushed(push))
        self._pushes.add(task)
        task.add_done_callback(self._pushes.discard)

    async def _pushed(self, push: Any) -> None:
        await self.dialed.dispatch_push(push)  # before us: it says where to connect from now on
        notice = notice_in(push, connection=self.name, host=self.host)
        if notice is not None and self.on_notice is not None:
            self.on_notice(self, notice)

    # -- time ------------------------------------------------------------------------------------

    def _watch_interval(self) -> float:
        timeout = self.dialed.socket_timeout
        return min(WATCH_INTERVAL, timeout / 4) if timeout else WATCH_INTERVAL

    def _watch(self) -> None:
        if self.closed:
            return
        now = self._loop.time()
        self._watchdog = self._loop.call_later(self._watch_interval(), self._watch)
        if self.on_watch is not None:
            self.on_watch()
        timeout = self.dialed.socket_timeout
        if self._auth_position is not None and now > self._auth_deadline:
            if self._draining:
                # A replacement has taken over: what only reads is sent again there.
                cause = f"{self.host} has not answered AUTH within {AUTH_TIMEOUT:g} s"
                self._end(ConnectionLostError(cause))
                return
            self._stop_waiting_for_auth()
        oldest = self._engine.oldest_written_at()
        if oldest is None:
            if not self._engine.in_flight and now - self._last_received > (
                self.dialed.health_check_interval or IDLE_PING
            ):
                self._last_received = now  # one PING per interval, whatever becomes of it
                self.submit(("PING",)).add_done_callback(ignore_outcome)
            return
        if not timeout:
            return
        late = self._engine.expire(
            now - timeout,
            ahead_of=self._auth_position,
            make_error=lambda: CommandTimeoutError(
                f"no reply from {self.host} within {timeout:g} s (socket_timeout); the command "
                "may still run"
            ),
        )
        if late:
            level = self._repeats.level(logging.WARNING, "late", now)
            logger.log(
                level, "%s: %d command(s) got no reply within %g s", self.name, late, timeout
            )
        if self._auth_position is None and now - max(oldest, self._last_received) > timeout:
            self._end(
                ConnectionLostError(
                    f"nothing came from {self.host} for {timeout:g} s while replies were due"
                )
            )

    # -- the end ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """Close as soon as nothing is in flight; who waits at the gate goes elsewhere."""
        self._draining = True
        self._open_gate()
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._draining and not self._engine.in_flight:
            self._end(None)

    def close(self) -> None:
        """Close at once; whoever is in flight gets ``ConnectionLostError``. Idempotent.

        A session that has ended, but whose socket lingers because TLS says goodbye, is cut off.
        """
        if self.closed:
            self._transport.abort()
        self._end(None)

    def _end(self, cause: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        self.cause = cause
        self._watchdog.cancel()
        self._pending_bytes = 0
        in_step = not self._engine.in_flight
        self._engine.connection_lost(self._loss)
        self._open_gate()
        for push in self._pushes:
            push.cancel()
        if in_step and cause is None:
            self._transport.close()
        else:
            self._transport.abort()  # nobody waits for what is still in the buffers
        self.ledger.close()
        self._on_lost(self, cause)


def _size(batch: Sequence[Packed]) -> int:
    """How many bytes these are."""
    return sum(
        len(packed) if isinstance(packed, bytes) else sum(map(len, packed)) for packed in batch
    )


def _write_in_pieces(write: Callable[[bytes], None], batch: list[Packed]) -> None:
    """Write small commands joined and large arguments as they are: joining would copy them."""
    small: list[bytes] = []
    for packed in batch:
        for piece in [packed] if isinstance(packed, bytes) else packed:
            if len(piece) <= JOIN_LIMIT // 8:
                small.append(piece)
                continue
            if small:
                write(b"".join(small))
                small.clear()
            write(piece)
    if small:
        write(b"".join(small))
