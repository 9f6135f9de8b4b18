"""AUTH among the owner's own commands, on one redis-py connection.

redis-py reads a connection only while it waits for a reply, and whoever owns the connection may
do so at any moment. So nobody else may touch it, except where two things hold: nothing is owed to
the owner (``Traffic.quiet``), and the owner's next command waits until ours has been answered.
Both are seen to here, because every command of the owner passes ``InBand.send`` and every reply
``InBand.read``. Ours go out in one of two ways:

- in front of the owner's next command, when a newer token is due by then;
- in the background, while nobody uses the connection, be it leased or idle in a pool.

A connection that ends under a command of ours must not come back in silence, for the owner may
have WATCHed keys on it: the owner's next ``send`` raises redis-py's ``ConnectionError``, as its
own command would have, and redis-py's retries and its WatchError follow from that. What redis-py
calls to hand out or reconnect a connection (``connect``) begins a new life and forgets it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import hiredis
from redis import exceptions as redis_exceptions
from redis.asyncio import Connection

from .._redaction import again, without_tracebacks
from .._schedule import AUTH_TIMEOUT
from .._traffic import Traffic

if TYPE_CHECKING:
    from .._token import Token

__all__ = ["REFUSALS", "InBand", "has_ended", "was_lost_in_flight"]

REFUSALS: Final = (
    redis_exceptions.ResponseError,
    # Replies too, although redis-py derives them from its ConnectionError.
    redis_exceptions.AuthenticationError,
    redis_exceptions.AuthorizationError,
    redis_exceptions.BusyLoadingError,
)
"""What a command is answered with that does not end the connection."""

_PUSH: Final[type] = getattr(hiredis, "PushNotification", type("NoPush", (), {}))
"""redis-py before 6 returns pushes as if they were replies; hiredis before 3.2 does not tell."""

CLOCK_MARGIN: Final = 0.01
"""Seconds; a read that took this much less than its timeout was not ended by it."""


class InBand:
    """What the owner of ``connection`` calls to send and to read, with AUTH in between.

    - ``send`` and ``read`` are redis-py's own ``send_packed_command`` and ``read_response``.
    - ``due()`` returns a newer token that the connection should hold, or None. It is asked before
      each command, so it should be cheap; a version that was refused it should not return again.
    - ``learned(token, error)`` hears how each AUTH was answered: None for accepted, else the
      server's refusal. The connection goes on with the former token then, and the owner never
      hears of it.

    ``begin`` is to be called whenever the connection has signed in; until then commands pass as
    they are: they are the handshake's. ``last_used`` is the loop's time of the last traffic.
    Belongs to one loop; the owner is one task at a time, as redis-py wants it anyway.
    """

    def __init__(
        self,
        connection: Any,
        *,
        send: Callable[..., Awaitable[None]],
        read: Callable[..., Awaitable[Any]],
        due: Callable[[], Token | None],
        learned: Callable[[Token, Exception | None], None],
    ) -> None:
        self.traffic = Traffic()
        self.last_used = 0.0
        self.auth_seconds = 0.0
        self._connection = connection
        self._send = send
        self._read = read
        self._due = due
        self._learned = learned
        self._signed_in_on: weakref.ref[asyncio.StreamWriter] | None = None
        self._exchange = asyncio.Lock()
        self._lost: Exception | None = None

    # -- the owner's side ------------------------------------------------------------------------

    def begin(self) -> None:
        """The connection has signed in, for the first time or anew: what was before is history."""
        self._signed_in_on = weakref.ref(self._connection._writer)
        self._lost = None
        self.traffic.reset()
        self.last_used = asyncio.get_running_loop().time()

    @property
    def signed_in(self) -> bool:
        """Whether the connection stands, and its handshake has been completed."""
        writer, ref = self._connection._writer, self._signed_in_on
        return writer is not None and ref is not None and ref() is writer

    async def send(self, command: Any, check_health: bool = True) -> None:
        """Send what redis-py has packed, in place of its ``send_packed_command``.

        Connects where that is necessary, waits for a command of ours that is under way, and sends
        AUTH first where a newer token is due: one more round trip at each rotation. Raises what
        redis-py raises. Cancelling it in the middle of an AUTH closes the connection.
        """
        connection = self._connection
        if connection.is_connected and not self.signed_in:  # the handshake's own
            await self._send(command, check_health)
            return
        self._raise_loss()
        if not connection.is_connected:
            await _reconnect(connection)
        elif check_health and connection.health_check_interval:
            # redis-py connects anew, in silence, where its PING fails; what happened to ours is
            # to be told.
            await self.catch_up()
            await connection.check_health()
        await self.catch_up()
        if not connection.is_connected:
            await _reconnect(connection)
        if not isinstance(command, (bytes, str, list, tuple)):
            command = list(command)
        # Before the first byte: from here on the connection is not quiet.
        self.traffic.sent(command)
        self.last_used = asyncio.get_running_loop().time()
        await self._send(command, False)

    async def catch_up(self) -> None:
        """Give the connection the token that is due, in the owner's own time; as ``send`` does."""
        if self._exchange.locked() or self._auth_due() is not None:
            async with self._exchange:
                if (token := self._auth_due()) is not None:
                    try:
                        await self._authenticate(token)
                    except BaseException:
                        self._lost = None  # the owner hears of it here and now
                        raise
            self._raise_loss()

    async def read(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply, in place of redis-py's ``read_response``; its arguments, its errors."""
        if not self.signed_in:
            return await self._read(*args, **kwargs)
        loop = asyncio.get_running_loop()
        timeout = args[1] if len(args) > 1 else kwargs.get("timeout")
        started = loop.time()
        try:
            reply = await self._read(*args, **kwargs)
        except redis_exceptions.ResponseError:
            self.traffic.received()
            raise
        self.last_used = loop.time()
        if reply is None and timeout is not None:
            # Either a reply or the lack of one, which is still owed then.
            arrived = self.last_used - started < timeout - CLOCK_MARGIN
        else:
            arrived = not isinstance(reply, _PUSH)
        if arrived:
            self.traffic.received()
        return reply

    def _raise_loss(self) -> None:
        """Raise how the connection ended under a command of ours, once."""
        lost, self._lost = self._lost, None
        if lost is not None:
            raise again(lost)

    # -- ours ------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether a command of ours could be sent at this moment."""
        return self.signed_in and self.traffic.quiet and not self._exchange.locked()

    async def run_in_background(self, token: Token | None = None) -> bool:
        """Send AUTH with ``token``, or a PING, while nobody uses the connection.

        Returns False, having done nothing, where it is not ``idle``. The owner's next command
        waits meanwhile. Raises redis-py's ``ConnectionError`` or ``TimeoutError`` where the
        connection ended; it is closed then, as it is when this is cancelled, and the owner's next
        ``send`` raises the same.
        """
        if not self.idle:
            return False
        async with self._exchange:
            if token is None:
                timeout = self._connection.socket_timeout or AUTH_TIMEOUT
                await self._ask(lambda: self._write("PING"), timeout)
            else:
                await self._authenticate(token)
        return True

    @property
    def lost(self) -> Exception | None:
        """How the connection ended under a command of ours, until the owner has been told."""
        return self._lost

    @property
    def undisturbed(self) -> asyncio.Lock:
        """To be held by what reads the connection in another way than ``read``: a pool's check.

        redis-py before 7 reads for it, and asyncio knows one reader of a stream only.
        """
        return self._exchange

    async def settled(self) -> None:
        """Wait until no command of ours is under way."""
        if self._exchange.locked():
            async with self._exchange:
                pass

    def _auth_due(self) -> Token | None:
        """The token to send in front of the owner's command."""
        return self._due() if self.traffic.quiet and self.signed_in else None

    async def _authenticate(self, token: Token) -> None:
        started = asyncio.get_running_loop().time()
        refusal = await self._ask(
            lambda: self._write("AUTH", token.username, token.secret), AUTH_TIMEOUT
        )
        self.auth_seconds = self.last_used - started
        self._learned(token, refusal)

    def _write(self, *words: Any) -> None:
        """Hand a command to the socket; not by redis-py's way, in whose frames a token would show.

        Nothing is waited for: the connection is quiet, and the reply will be.
        """
        self._connection._writer.write(hiredis.pack_command(words))

    async def _ask(self, write: Callable[[], None], timeout: float) -> Exception | None:
        """One command of ours and its reply, on a quiet connection; returns a refusal."""
        connection = self._connection
        writer = connection._writer
        try:
            write()
            reply = await self._read(timeout=timeout, disconnect_on_error=False)
            while isinstance(reply, _PUSH):
                reply = await self._read(timeout=timeout, disconnect_on_error=False)
        except REFUSALS as refusal:
            self._touch()
            return without_tracebacks(refusal)
        except BaseException as exc:
            raised = exc
        else:
            if reply is not None:
                self._touch()
                return None
            raised = redis_exceptions.TimeoutError(
                f"{connection._host_error()} did not answer within {timeout:g} s"
            )
        # The reply has not been read, so nothing more can be. Unless the owner was quicker, and
        # has closed the connection or even opened the next one.
        if isinstance(raised, Exception) and not isinstance(raised, redis_exceptions.RedisError):
            raised = redis_exceptions.ConnectionError(f"{type(raised).__name__}: {raised}")
        without_tracebacks(raised)
        if connection._writer is writer:
            self._lost = (
                again(raised)
                if isinstance(raised, Exception)
                else redis_exceptions.ConnectionError(
                    f"the connection to {connection._host_error()} was closed in the middle of a "
                    "re-authentication"
                )
            )
            await connection.disconnect(nowait=True)
        raise raised

    def _touch(self) -> None:
        self.last_used = asyncio.get_running_loop().time()


def has_ended(connection: Any) -> bool:
    """Whether the peer has ended a connection that nobody reads, as far as the loop knows.

    Of a reset redis-py's own look before it hands out a connection says nothing; and where it
    expects maintenance notifications, redis-py 8 takes an end for one of them.
    """
    # A stand-in of the user's may have neither.
    reader, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
    if reader is None or writer is None:
        return False
    return bool(reader.at_eof() or reader.exception() is not None or writer.transport.is_closing())


def was_lost_in_flight(connection: Any, error: Exception) -> bool:
    """Whether ``error`` is a loss under commands that had been, or may have been, written.

    Of a connection that nobody keeps signed in it is not known what was.
    """
    if isinstance(error, REFUSALS):
        return False
    if not isinstance(error, (redis_exceptions.ConnectionError, redis_exceptions.TimeoutError)):
        return False
    in_band: InBand | None = getattr(connection, "in_band", None)
    return in_band is None or in_band.traffic.owed > 0


async def _reconnect(connection: Any) -> None:
    """What redis-py does before it sends on a connection that is closed."""
    # Asked of redis-py's class: ours has the method in any case.
    if hasattr(Connection, "connect_check_health"):
        await connection.connect_check_health(check_health=False)
    else:  # redis-py 5
        await connection.connect()
