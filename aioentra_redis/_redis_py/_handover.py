"""The hand-over: redis-py performs the handshake, then its socket goes to a protocol of ours."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hiredis
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _AsyncHiredisParser
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..errors import ConnectTimeoutError
from ._asking import ask_with_the_sign_in
from ._commands import packer
from ._maintenance import dispatch, forget_connection, patience_of
from ._sign_in import SignIn, let_go_of, no_answer
from ._telemetry import Address

if TYPE_CHECKING:
    from .._multiplex._engine import Packed, Reader
    from .._token import Token

__all__ = ["Dialed", "dial", "take_over"]

logger = logging.getLogger("aioentra_redis.connection")

HANDSHAKE_TIMEOUT = 15.0
"""Seconds that each reply of the handshake may take. Azure may need seconds to validate a token,
and gives up after 10 itself; ``socket_timeout`` is meant for commands."""


_PUSH: type | None = getattr(hiredis, "PushNotification", None)  # hiredis < 3.2 has none


@dataclass(slots=True)
class Dialed:
    """An authenticated connection that waits to be handed over.

    ``handshake_seconds`` counts from the open transport to the last reply of the handshake, so it
    is AUTH that it tells about, not DNS.
    """

    connection: Any  # an AbstractConnection, of which much is untyped
    transport: asyncio.Transport
    pack: Callable[[tuple[Any, ...]], Packed]
    reader: Reader
    token: Token | None
    host: str
    handshake_seconds: float
    not_enough: object = NOT_ENOUGH_DATA
    push_type: type | None = _PUSH
    kept: bool = True
    """Whether somebody uses ``connection`` when it has been released: its owner leased it."""

    @property
    def socket_timeout(self) -> float | None:
        """Seconds that a reply may take; read each time, maintenance notifications relax it."""
        return patience_of(self.connection)

    @property
    def address(self) -> Address:
        """Where the connection leads, for metrics."""
        connection = self.connection
        host, port = getattr(connection, "host", None), getattr(connection, "port", None)
        return Address(host, port, getattr(connection, "db", 0))

    @property
    def peer(self) -> tuple[str, int] | None:
        """The address at the other end; None for a socket of another family, or a closed one."""
        name = self.transport.get_extra_info("peername")
        return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None

    @property
    def health_check_interval(self) -> float:
        """Seconds without traffic after which redis-py's user wants a PING; 0 for never."""
        return float(self.connection.health_check_interval or 0)

    @property
    def resp3(self) -> bool:
        """Whether the connection speaks RESP3; otherwise it is RESP2."""
        return str(self.connection.get_protocol()) == "3"

    def adopt(self, protocol: asyncio.Protocol) -> tuple[bytes, bool]:
        """Hand the socket over to ``protocol``.

        Returns the bytes that redis-py's stream reader held unread, and whether it saw the end.
        """
        stream = self.connection._reader
        unread = bytes(stream._buffer)
        stream._buffer.clear()
        self.transport.set_protocol(protocol)
        if not self.transport.is_reading():
            self.transport.resume_reading()  # the stream reader may have paused it
        return unread, bool(stream._eof)

    def release(self, original: asyncio.BaseProtocol, exc: Exception | None) -> None:
        """Tell redis-py's objects that the connection is gone.

        The original stream protocol has to hear of it, or ``StreamWriter.wait_closed()`` hangs;
        the writer is let go of, because redis-py warns of connections that still have one.
        """
        original.connection_lost(exc)
        connection = self.connection
        connection._parser.on_disconnect()
        connection._writer = connection._reader = None
        if not self.kept:
            forget_connection(connection)

    async def dispatch_push(self, push: Any) -> None:
        """Hand an out-of-band message (maintenance, invalidation) to redis-py's own handlers."""
        await dispatch(self.connection, list(push))


async def dial(pool: redis.asyncio.ConnectionPool) -> Dialed:
    """Open one connection of the kind that ``pool`` makes, and sign in.

    One attempt: redis-py's own retries are switched off, ours are around it. Raises whatever
    redis-py or the token source raise. Cancelling it leaves no socket behind.
    """
    loop = asyncio.get_running_loop()
    # A subclass of the user's may make its own.
    connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
    connection.retry = Retry(NoBackoff(), 0)
    if isinstance(connection.credential_provider, SignIn):
        connection.credential_provider.keeper = None  # the session has a task of its own
    socket_timeout = connection.socket_timeout
    connection.socket_timeout = max(socket_timeout or 0.0, HANDSHAKE_TIMEOUT)
    if connection.socket_connect_timeout is None:  # redis-py's default up to version 7
        connection.socket_connect_timeout = HANDSHAKE_TIMEOUT
    started = loop.time()
    opened = _keep_what_opens(connection)
    try:
        with _refusals_free_of_frames(connection), ask_with_the_sign_in(connection, pool):
            await connection.connect()
    except BaseException as exc:
        _drop(connection, opened)
        if (
            opened
            and isinstance(exc, redis_exceptions.TimeoutError)
            and not isinstance(exc, ConnectTimeoutError)
        ):
            raise no_answer(connection) from exc
        raise
    finally:
        del connection._connect
    connection.socket_timeout = socket_timeout
    dialed = _dialed(connection, loop.time() - getattr(connection, "transport_ready_at", started))
    dialed.kept = False
    return dialed


def take_over(connection: Any) -> Dialed:
    """What ``dial`` returns, for a connected connection that was leased from a pool.

    The owner gives it back to the pool when the session has ended, whatever ended it. Until then
    nobody else keeps it signed in.
    """
    let_go_of(connection)
    return _dialed(connection, 0.0)


def _dialed(connection: Any, handshake_seconds: float) -> Dialed:
    sign_in = connection.credential_provider
    encoder = connection.encoder
    parser = connection._parser
    reader: Any
    if isinstance(parser, _AsyncHiredisParser):
        reader = parser._reader
    else:  # the user chose a parser in Python: its stream can't be shared, its errors can
        decoding = (
            {"encoding": encoder.encoding, "errors": encoder.encoding_errors}
            if encoder.decode_responses
            else {}
        )
        reader = hiredis.Reader(
            replyError=parser.parse_error, notEnoughData=NOT_ENOUGH_DATA, **decoding
        )
    return Dialed(
        connection=connection,
        transport=connection._writer.transport,
        pack=packer(connection),
        reader=reader,
        token=sign_in.token if isinstance(sign_in, SignIn) else None,
        host=connection._host_error(),
        handshake_seconds=handshake_seconds,
    )


def _keep_what_opens(connection: Any) -> list[asyncio.StreamWriter]:
    """Return a list that gets the stream which ``connection`` opens when it connects.

    After a failed handshake redis-py lets go of it, having begun to close it: over TLS that ends
    when the peer says goodbye too, for which asyncio waits 30 s if it is stuck.
    """
    opened: list[asyncio.StreamWriter] = []
    original = connection._connect

    async def connect() -> None:
        await original()
        opened.append(connection._writer)

    connection._connect = connect
    return opened


@contextlib.contextmanager
def _refusals_free_of_frames(connection: Any) -> Iterator[None]:
    """Have what the server refuses in the handshake not refer to the frame that read it.

    That frame of redis-py's refers back, and to the connection: with a server that knows no
    maintenance notifications each connection would stay until a garbage collection.
    """
    read = connection.read_response

    async def read_response(*args: Any, **options: Any) -> Any:
        try:
            return await read(*args, **options)
        except redis_exceptions.ResponseError as refusal:
            refusal.__traceback__ = None
            raise

    connection.read_response = read_response
    try:
        yield
    finally:
        vars(connection).pop("read_response", None)


def _drop(connection: Any, opened: list[asyncio.StreamWriter]) -> None:
    """Close what a failed or cancelled handshake left open, at once."""
    connection._writer = connection._reader = None
    for writer in opened:
        with contextlib.suppress(Exception):
            writer.transport.abort()
