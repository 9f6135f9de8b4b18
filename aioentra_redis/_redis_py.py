"""Everything that we know of redis-py's insides; no other module touches them.

It is longer than the others for that reason: a new redis-py version is one file's problem.

Three things are borrowed from redis-py: its connection classes perform the handshake (TCP, TLS,
HELLO, AUTH, SELECT, names), its parser turns error replies into its exceptions, and its encoder
packs what hiredis' packer does not take. What this module adds is a hand-over: once a connection
is authenticated, its socket is given to a protocol of ours (``Dialed.adopt``).

``SignIn`` is how a redis-py connection gets its token: a credential provider that also carries
what all connections of a client share, the TLS context and the rule about plaintext.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import itertools
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hiredis
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _AsyncHiredisParser
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.credentials import CredentialProvider

from ._diagnosis import explain
from ._options import check_alone, check_tls, is_loopback
from ._redaction import without_tracebacks
from ._schedule import reauth_deadline
from .errors import ConfigurationError, ConnectTimeoutError, InsecureConnectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._multiplex._engine import Packed, Reader
    from ._source import TokenSource
    from ._token import Token

__all__ = [
    "EMPTY_RESPONSE",
    "NEVER_DECODE",
    "Dialed",
    "SignIn",
    "attach",
    "attached",
    "check_connection_options",
    "command_options",
    "default_to_no_retries",
    "default_to_resp3",
    "detach",
    "dial",
    "pool_endpoint",
    "pool_from_url",
    "retry_delays",
    "run_last_command",
    "server_mode",
    "sign_in_with",
    "signs_in_with",
]

logger = logging.getLogger("aioentra_redis.connection")

CHUNK = 6000
"""Arguments longer than this, in bytes, are written uncopied as chunks of their own; it is
redis-py's own limit."""

HANDSHAKE_TIMEOUT = 15.0
"""Seconds that each reply of the handshake may take. Azure may need seconds to validate a token,
and gives up after 10 itself; ``socket_timeout`` is meant for commands."""


# -- signing in ----------------------------------------------------------------------------------


class SharedTLS:
    """The one SSLContext of a client: loading the CA store takes about 20 ms of a core."""

    def __init__(self, *, allow_insecure: bool) -> None:
        self._allow_insecure = allow_insecure
        self._lock = threading.Lock()
        self.context: ssl.SSLContext | None = None

    async def prepare(self, connection: SSLConnection) -> None:
        """Give ``connection`` the shared context, which the first caller builds in a thread."""
        if self.context is None:
            await asyncio.to_thread(self._build, connection)
        connection.ssl_context.context = self.context

    def _build(self, connection: SSLConnection) -> None:
        with self._lock:
            if self.context is not None:
                return
            context = connection.ssl_context.get()
            if not self._allow_insecure:
                # Whatever redis-py's version defaults to: 5.x does not check host names.
                context.check_hostname = True
                context.verify_mode = ssl.CERT_REQUIRED
                if context.minimum_version < ssl.TLSVersion.TLSv1_2:
                    context.minimum_version = ssl.TLSVersion.TLSv1_2
            self.context = context


class SignIn(CredentialProvider):
    """Gives each connection of a client its token, and remembers which one."""

    def __init__(
        self,
        source: TokenSource,
        *,
        tls: SharedTLS,
        allow_plaintext: bool,
        username: str | None = None,
    ) -> None:
        self.source = source
        self.tls = tls
        self.allow_plaintext = allow_plaintext
        self.username = username
        self.token: Token | None = None

    def for_one_connection(self) -> SignIn:
        """A provider for one connection, which shares everything but the token."""
        one = copy.copy(self)
        one.token = None
        return one

    async def get_credentials_async(self) -> tuple[str, str]:
        """The user name and the token to sign in with; raises what ``TokenSource.get`` raises.

        A user name that was configured and is not the token's is a ``ConfigurationError``: nothing
        was sent.
        """
        token = await self.source.get()
        if self.username is not None and self.username.lower() != token.username.lower():
            raise ConfigurationError(
                f"the user name {self.username!r} is not the object ID that the token is for, "
                f"{token.username!r}. Azure wants the object ID (oid) of the user, service "
                "principal or managed identity, not its name or client ID: leave the user name out"
            )
        self.token = token
        return (token.username, token.secret)

    def get_credentials(self) -> tuple[str, str]:
        """Refuses: a synchronous client would have to block on the token source's loop."""
        raise ConfigurationError("this credential provider serves asyncio connections only")

    def __repr__(self) -> str:
        return f"<SignIn {self.source!r}>"


class _SignedIn:
    """What connections of ours add to redis-py's: the shared TLS context and the plaintext rule."""

    credential_provider: SignIn
    _writer: asyncio.StreamWriter | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.credential_provider = self.credential_provider.for_one_connection()
        self.transport_ready_at = 0.0

    async def _connect(self) -> None:
        sign_in = self.credential_provider
        plaintext = True
        if isinstance(self, SSLConnection):
            plaintext = False
            await sign_in.tls.prepare(self)
        await super()._connect()  # type: ignore[misc]
        self.transport_ready_at = asyncio.get_running_loop().time()
        if plaintext and not sign_in.allow_plaintext:
            self._refuse_plaintext_to_others()

    # Whoever asks for the connection gets an error for people, and one whose chain holds no frame
    # of redis-py's sign-in, where the token is a local variable.

    async def on_connect(self) -> None:
        with self._explained():
            await super().on_connect()  # type: ignore[misc]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        with self._explained():
            await super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except redis_exceptions.TimeoutError as exc:
            raise _no_answer(self) from without_tracebacks(exc)
        except redis_exceptions.RedisError as exc:
            error = explain(
                exc,
                host=getattr(self, "host", getattr(self, "path", "the server")),
                port=getattr(self, "port", 0),
                tls=isinstance(self, SSLConnection),
                token=self.credential_provider.token,
            )
            raise error from error.__cause__

    # A pool asks these two, the one from redis-py 8 on, the other before, when it hands out a
    # connection; on ConnectionError it has the connection connect anew, which signs in anew.

    async def can_read(self, *args: Any, **kwargs: Any) -> bool:
        self._refuse_worn_token()
        return bool(await super().can_read(*args, **kwargs))  # type: ignore[misc]

    async def can_read_destructive(self) -> bool:
        self._refuse_worn_token()
        return bool(await super().can_read_destructive())  # type: ignore[misc]

    def _refuse_worn_token(self) -> None:
        """Raise where the server may end the connection soon and a newer token is there."""
        sign_in = self.credential_provider
        held, newest = sign_in.token, sign_in.source.current
        if held is None or newest is None or newest.version <= held.version:
            return
        if sign_in.source.now() >= reauth_deadline(held):
            raise redis_exceptions.ConnectionError("signed in with a token that is about to expire")

    def _refuse_plaintext_to_others(self) -> None:
        assert self._writer is not None
        peer = self._writer.get_extra_info("peername")
        if isinstance(peer, tuple) and not is_loopback(str(peer[0])):
            self._writer.transport.abort()
            raise InsecureConnectionError(
                f"the plaintext connection reached {peer[0]}, which is not this machine; it was "
                "closed before the token was sent. Use rediss://"
            )


@functools.cache
def _signed_in_class(base: Any) -> type[AbstractConnection]:
    """redis-py's connection class with our additions; one class per base, whatever the pool."""
    return type(f"Entra{base.__name__}", (_SignedIn, base), {"__module__": __name__})


def sign_in_with(
    pool: redis.asyncio.ConnectionPool,
    source: TokenSource,
    *,
    allow_plaintext: bool,
    allow_insecure_tls: bool,
) -> None:
    """Make every connection that ``pool`` opens from now on sign in with tokens of ``source``."""
    kwargs = pool.connection_kwargs
    present = kwargs.get("credential_provider")
    if isinstance(present, SignIn) and present.source is source:
        return  # another client of the same source shares the pool
    if present is not None or attached(pool) is not None:
        raise ConfigurationError(
            "the connections of this pool sign in in another way already, or a client without a "
            "token source uses it: make another pool for this token source"
        )
    check_alone(kwargs)
    check_tls(kwargs, allow_insecure_tls=allow_insecure_tls)
    kwargs.pop("password", None)
    kwargs["credential_provider"] = SignIn(
        source,
        tls=SharedTLS(allow_insecure=allow_insecure_tls),
        allow_plaintext=allow_plaintext,
        username=kwargs.pop("username", None),
    )
    base: Any = pool.connection_class
    pool.connection_class = _signed_in_class(base)


def signs_in_with(pool: redis.asyncio.ConnectionPool) -> TokenSource | None:
    """The token source of the pool's connections, None if they sign in in redis-py's own ways."""
    provider = pool.connection_kwargs.get("credential_provider")
    return provider.source if isinstance(provider, SignIn) else None


# -- pools ---------------------------------------------------------------------------------------


def pool_from_url(url: str, kwargs: Mapping[str, Any]) -> redis.asyncio.ConnectionPool:
    """redis-py's pool for a URL and keywords of redis-py's."""
    return redis.asyncio.ConnectionPool.from_url(url, **kwargs)


def pool_endpoint(pool: redis.asyncio.ConnectionPool) -> tuple[str, int, bool]:
    """Host (or socket path), port and whether TLS is used, of the connections of ``pool``."""
    kwargs = pool.connection_kwargs
    tls = issubclass(pool.connection_class, SSLConnection)
    if "path" in kwargs:
        return str(kwargs["path"]), 0, False
    return str(kwargs.get("host", "localhost")), int(kwargs.get("port", 6379)), tls


def check_connection_options(pool: redis.asyncio.ConnectionPool) -> None:
    """Raise what redis-py raises for options that its connections don't take.

    Only a pool of ours is asked: somebody else's may hold a class whose making does things.
    """
    if attached(pool) is None and pool.connection_class.__module__ in (__name__, _CONNECTIONS):
        pool.connection_class(**pool.connection_kwargs)


_CONNECTIONS = AbstractConnection.__module__


_ATTRIBUTE = "_aioentra_multiplexed"


def attach(pool: redis.asyncio.ConnectionPool, multiplexed: object) -> None:
    """Remember the pool's multiplexed connection on it: clients that share a pool share both."""
    setattr(pool, _ATTRIBUTE, multiplexed)


def detach(pool: redis.asyncio.ConnectionPool) -> None:
    """Undo ``attach``."""
    setattr(pool, _ATTRIBUTE, None)


def attached(pool: redis.asyncio.ConnectionPool) -> Any:
    """What ``attach`` left on the pool, or None."""
    return getattr(pool, _ATTRIBUTE, None)


def default_to_resp3(kwargs: dict[str, Any]) -> None:
    """Ask for RESP3 unless the user chose.

    redis-py 8 does so by itself, and naming the protocol there would change the shape of replies.
    """
    if int(redis.__version__.partition(".")[0]) < 8:
        kwargs.setdefault("protocol", 3)


def default_to_no_retries(kwargs: dict[str, Any]) -> None:
    """Let no command be repeated unless the user said so.

    redis-py's clients repeat any command, writes included, three times by default; its pools and
    ``from_url()`` do not, and neither do we.
    """
    if kwargs.get("retry") is None:
        kwargs["retry"] = Retry(NoBackoff(), 0)


# -- commands ------------------------------------------------------------------------------------


def command_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that go on to a response callback: redis-py's own markers are taken out."""
    options.pop("keys", None)
    options.pop(NEVER_DECODE, None)
    options.pop(EMPTY_RESPONSE, None)
    return options


async def run_last_command(client: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run a command that ends or resets its connection on one of the pool's, then close that."""
    pool = client.connection_pool
    connection = await pool.get_connection()
    try:
        return await client._send_command_parse_response(connection, args[0], *args, **options)
    finally:
        try:
            await connection.disconnect(nowait=True)
        finally:
            await pool.release(connection)


def server_mode(hello: Any) -> str | None:
    """The ``mode`` in HELLO's reply, a map with RESP3 and a flat list with RESP2."""
    if isinstance(hello, list):
        hello = dict(zip(hello[::2], hello[1::2], strict=False))
    if not isinstance(hello, dict):
        return None
    mode = hello.get("mode", hello.get(b"mode"))
    return mode.decode() if isinstance(mode, bytes) else mode


def retry_delays(retry: Any) -> Iterator[float]:
    """The waits, in seconds, between the attempts that a user's redis-py ``Retry`` allows.

    None allows no attempt but the first, a negative number of retries any.
    """
    if retry is None:
        return
    backoff = copy.deepcopy(retry._backoff)  # it has a state: each command counts for itself
    backoff.reset()
    for number in range(1, retry._retries + 1) if retry._retries >= 0 else itertools.count(1):
        yield max(0.0, backoff.compute(number))


def _packer(connection: AbstractConnection) -> Callable[[tuple[Any, ...]], Packed]:
    """How commands become bytes on this connection; raises redis-py's DataError.

    hiredis' packer is about five times as fast as redis-py's, and the latter takes everything:
    other encodings, memoryviews, the refusal of None and bool.
    """

    def general(*args: Any) -> list[bytes]:
        packed: list[bytes] = connection.pack_command(*map(_plain_bytes, args))
        return packed

    encoder = connection.encoder
    utf8 = encoder.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    if not utf8 or encoder.encoding_errors != "strict":
        return lambda args: general(*args)

    def pack(
        args: tuple[Any, ...],
        hiredis_pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command,
    ) -> Packed:
        for arg in args:
            kind = arg.__class__
            if kind is str or kind is bytes:
                if len(arg) > CHUNK:
                    return general(*args)
            elif kind is not int and kind is not float:
                return general(*args)
        return hiredis_pack(args)

    return pack


def _plain_bytes(arg: Any) -> Any:
    """``arg``, or its bytes if it is a memoryview that is not just a row of bytes.

    redis-py would announce it by its number of elements, and joining it would fail half-way: on a
    shared connection either is everybody's problem.
    """
    if arg.__class__ is memoryview and (arg.ndim != 1 or arg.itemsize != 1 or not arg.c_contiguous):
        return bytes(arg)
    return arg


# -- the hand-over -------------------------------------------------------------------------------


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

    @property
    def socket_timeout(self) -> float | None:
        """Seconds that a reply may take; read each time, maintenance notifications relax it."""
        timeout: float | None = self.connection.socket_timeout
        return timeout

    @property
    def health_check_interval(self) -> float:
        """Seconds without traffic after which redis-py's user wants a PING; 0 for never."""
        return float(self.connection.health_check_interval or 0)

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

    async def dispatch_push(self, push: Any) -> None:
        """Hand an out-of-band message (maintenance, invalidation) to redis-py's own handlers."""
        try:
            await self.connection._parser.handle_push_response(list(push))
        except Exception:
            logger.exception("a push notification handler of redis-py raised")


async def dial(pool: redis.asyncio.ConnectionPool) -> Dialed:
    """Open one connection of the kind that ``pool`` makes, and sign in.

    One attempt: redis-py's own retries are switched off, ours are around it. Raises whatever
    redis-py or the token source raise. Cancelling it leaves no socket behind.
    """
    loop = asyncio.get_running_loop()
    connection: Any = pool.connection_class(**pool.connection_kwargs)
    connection.retry = Retry(NoBackoff(), 0)
    socket_timeout = connection.socket_timeout
    connection.socket_timeout = max(socket_timeout or 0.0, HANDSHAKE_TIMEOUT)
    if connection.socket_connect_timeout is None:  # redis-py's default up to version 7
        connection.socket_connect_timeout = HANDSHAKE_TIMEOUT
    started = loop.time()
    opened = _keep_what_opens(connection)
    try:
        await connection.connect()
    except BaseException as exc:
        _drop(connection, opened)
        if (
            opened
            and isinstance(exc, redis_exceptions.TimeoutError)
            and not isinstance(exc, ConnectTimeoutError)
        ):
            raise _no_answer(connection) from exc
        raise
    finally:
        del connection._connect
    connection.socket_timeout = socket_timeout
    finished = loop.time()
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
        pack=_packer(connection),
        reader=reader,
        token=sign_in.token if isinstance(sign_in, SignIn) else None,
        host=connection._host_error(),
        handshake_seconds=finished - getattr(connection, "transport_ready_at", started),
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


def _no_answer(connection: Any) -> ConnectTimeoutError:
    """The error for a server that was reached and leaves a command of the handshake unanswered."""
    return ConnectTimeoutError(
        f"{connection._host_error()} was reached but did not answer the sign-in within "
        f"{connection.socket_timeout:g} s: it takes long to validate the token, or it is no Redis",
        stage="auth",
        host=getattr(connection, "host", getattr(connection, "path", None)),
        port=getattr(connection, "port", None),
    )


def _drop(connection: Any, opened: list[asyncio.StreamWriter]) -> None:
    """Close what a failed or cancelled handshake left open, at once."""
    connection._writer = connection._reader = None
    for writer in opened:
        with contextlib.suppress(Exception):
            writer.transport.abort()
