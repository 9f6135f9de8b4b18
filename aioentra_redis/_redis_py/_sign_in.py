"""How a redis-py connection gets its token: a credential provider, and what goes with it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.credentials import CredentialProvider

from .._diagnosis import explain
from .._options import check_alone
from .._redaction import without_tracebacks
from .._schedule import reauth_deadline
from .._servers import server_of
from .._tls import check_tls
from .._tls_names import tls_names
from ..errors import (
    ConfigurationError,
    ConnectionLostError,
    ConnectTimeoutError,
    EntraRedisError,
)
from ._commands import write_packed
from ._in_band import InBand, has_ended
from ._peer import SharedTLS, check_peer, drop
from ._pools import attached

if TYPE_CHECKING:
    from .._source import TokenSource
    from .._token import Token

K = TypeVar("K", bound="Keeper")

__all__ = [
    "Keeper",
    "Renewal",
    "SignIn",
    "explained",
    "held_by",
    "keeper_of",
    "let_go_of",
    "no_answer",
    "sign_in_with",
    "signs_in_with",
]


class Renewal(Protocol):
    """Who keeps one connection signed in, from its sign-in to its end."""

    pending: Token | None
    """The token that the connection should be given as soon as it is quiet."""

    def due(self) -> Token | None:
        """The token that is to go in front of the owner's next command."""

    def learned(self, token: Token, error: Exception | None) -> None:
        """The server has accepted ``token``, or refused it with ``error``."""

    closed: bool
    """It has ended, so the connection may get another one."""

    def quiet(self) -> None:
        """A reply was read, so this may be the moment for what is ``pending``."""

    def ended(self) -> None:
        """The connection has been closed, or is another's to keep."""


class Keeper(Protocol):
    """Who keeps the connections of one pool signed in."""

    def keep(self, connection: Any) -> Renewal | None:
        """``connection`` has signed in, or is handed out without anybody who keeps it so."""

    def connecting(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Where a connection connects; raises ``ClosedError`` when the clients are closed."""


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
        self.keeper: Keeper | None = None

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
        raise ConfigurationError(
            "the token source of this connection serves asyncio clients only: a synchronous one "
            "would block its event loop. Use EntraCredentialProvider.in_thread(factory)"
        )

    def __repr__(self) -> str:
        return f"<SignIn {self.source!r}>"


class _SignedIn:
    """What connections of ours add to redis-py's: TLS and plaintext rules, AUTH among commands.

    ``tls_name`` is the name that the server's certificate must be for. If it is None that is the
    host's own, unless the server itself has named the host, to move there. ``renewal`` is set while
    somebody keeps the connection signed in.
    """

    credential_provider: SignIn
    _just_connected = False

    def __init__(self, *, tls_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._tls_name = tls_name
        self.credential_provider = self.credential_provider.for_one_connection()
        self.transport_ready_at = 0.0
        self.renewal: Renewal | None = None
        self.in_band = InBand(
            self,
            send=functools.partial(write_packed, self),
            read=super().read_response,  # type: ignore[misc]
            due=self._due,
            learned=self._learned,
        )

    @property
    def tls_name(self) -> str | None:
        """The name that the server's certificate must be for; None for that of the host."""
        host: str | None = getattr(self, "host", None)
        # Where maintenance may lead elsewhere, redis-py keeps what the user has named.
        origin: str | None = getattr(self, "orig_host_address", None)
        if self._tls_name is not None or host is None or origin is None or host == origin:
            return self._tls_name
        return tls_names([origin]).name_of(host, getattr(self, "port", 0))

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = dict(super()._connection_arguments())  # type: ignore[misc]
        if (name := self.tls_name) is not None and "ssl" in arguments:
            arguments.setdefault("server_hostname", name)  # a class may bring its own
        return arguments

    async def _connect(self) -> None:
        sign_in = self.credential_provider
        if isinstance(self, SSLConnection):
            await sign_in.tls.prepare(self)
        await super()._connect()  # type: ignore[misc]
        self._just_connected = True
        self.transport_ready_at = asyncio.get_running_loop().time()
        check_peer(self, sign_in.tls, allow_plaintext=sign_in.allow_plaintext)

    # What opens the socket and signs in has to pass the server's budget and breaker first. In
    # redis-py 5 that is ``connect``, but with Sentinel what is called when the address is known.

    def _connecting(self) -> contextlib.AbstractAsyncContextManager[None]:
        keeper = self.credential_provider.keeper
        return contextlib.nullcontext() if keeper is None else keeper.connecting()

    if hasattr(AbstractConnection, "connect_check_health"):

        async def connect(self, *args: Any, **kwargs: Any) -> None:
            async with self._connecting():
                with explained(self, reached=False):
                    await super().connect(*args, **kwargs)  # type: ignore[misc]

        async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
            async with self._connecting():
                if not self.is_connected:  # type: ignore[attr-defined]
                    async with turn_of(self):
                        await super().connect_check_health(*args, **kwargs)  # type: ignore[misc]

    else:

        async def connect(self, *args: Any, **kwargs: Any) -> None:
            async with self._connecting():
                if self.is_connected:  # type: ignore[attr-defined]
                    return
                with explained(self, reached=False):
                    if hasattr(super(), "connect_to"):
                        await super().connect(*args, **kwargs)  # type: ignore[misc]
                    else:
                        async with turn_of(self):
                            await super().connect(*args, **kwargs)  # type: ignore[misc]

        async def connect_to(self, address: tuple[str, int]) -> None:
            self.host, self.port = address
            async with turn_of(self):
                await super().connect_to(address)  # type: ignore[misc]

    # Whoever asks for the connection gets an error for people, and one whose chain holds no frame
    # of redis-py's sign-in, where the token is a local variable.

    async def on_connect(self) -> None:
        with explained(self):
            await super().on_connect()  # type: ignore[misc]
        self._signed_in()

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        with explained(self):
            await super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]
        self._signed_in()

    def _signed_in(self) -> None:
        if not self.in_band.signed_in:  # else redis-py called the one method from the other
            self.in_band.begin()
            self._keep()

    def _keep(self) -> None:
        keeper = self.credential_provider.keeper
        if keeper is None or not self.in_band.signed_in:
            return
        if self.renewal is None or self.renewal.closed:
            self.renewal = keeper.keep(self)

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        renewal, self.renewal = self.renewal, None
        if renewal is not None:
            renewal.ended()
        await super().disconnect(*args, **kwargs)  # type: ignore[misc]

    # The owner's commands and replies.

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        try:
            await self.in_band.send(command, check_health)
        except redis_exceptions.ConnectionError as exc:
            self._tell_of_outliving(exc)
            raise

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await self.in_band.read(*args, **kwargs)
        except redis_exceptions.ConnectionError as exc:
            self._tell_of_outliving(exc)
            raise
        finally:
            renewal = self.renewal
            if renewal is not None and renewal.pending is not None:
                renewal.quiet()

    def _due(self) -> Token | None:
        return self.renewal.due() if self.renewal is not None else None

    def _learned(self, token: Token, error: Exception | None) -> None:
        if error is None:
            self.credential_provider.token = token
        if self.renewal is not None:
            self.renewal.learned(token, error)

    def _tell_of_outliving(self, exc: redis_exceptions.ConnectionError) -> None:
        """Raise an error that says so, where the connection has outlived its token."""
        sign_in = self.credential_provider
        held = sign_in.token
        if (
            held is None
            or isinstance(exc, (EntraRedisError, redis_exceptions.AuthenticationError))
            or sign_in.source.now() < held.expires_on
        ):
            return
        newest = sign_in.source.current
        if newest is None or newest.version <= held.version:
            why = "no newer one could be had"
        elif not self.in_band.traffic.quiet:
            why = (
                "there was no moment for AUTH with a newer one: the connection was in the middle "
                "of a command, a raw MULTI, MONITOR or a subscription"
            )
        else:
            why = "the server has accepted no newer one"
        raise ConnectionLostError(
            f"the connection to {self.where} outlived the token that it was signed in with: {why}. "
            "What was kept on it (WATCH, MULTI, MONITOR) is gone; a new connection signs in with "
            f"the newest token ({exc})"
        ) from without_tracebacks(exc)

    @property
    def where(self) -> str:
        """Host and port, or the socket's path."""
        return str(self._host_error())  # type: ignore[attr-defined]

    # A pool asks these two, the one from redis-py 8 on, the other before, when it hands out a
    # connection; on ConnectionError it has the connection connect anew, which signs in anew.

    async def can_read(self, *args: Any, **kwargs: Any) -> bool:
        await self._ready()
        async with self.in_band.undisturbed:
            return bool(await super().can_read(*args, **kwargs))  # type: ignore[misc]

    async def can_read_destructive(self) -> bool:
        await self._ready()
        async with self.in_band.undisturbed:
            return bool(await super().can_read_destructive())  # type: ignore[misc]

    async def _ready(self) -> None:
        """Wait for an AUTH in the background, so that nothing unread is handed out."""
        await self.in_band.settled()
        if has_ended(self):
            raise redis_exceptions.ConnectionError("the server ended the connection")
        self._refuse_worn_token()
        self._keep()

    def _refuse_worn_token(self) -> None:
        """Raise where the server may end the connection soon and a newer token is there.

        Not at the first look after a connect: a pool that has made the connection anew gives up if
        it is refused again, and a token may be published during any sign-in.
        """
        just_connected, self._just_connected = self._just_connected, False
        if just_connected:
            return
        sign_in = self.credential_provider
        held, newest = sign_in.token, sign_in.source.current
        if held is None or newest is None or newest.version <= held.version:
            return
        if not server_of(sign_in.source, self.where).admits(newest, demand=True):
            return  # the server refuses newer ones: what stands is worth more
        if sign_in.source.now(held) >= reauth_deadline(held):
            raise redis_exceptions.ConnectionError("signed in with a token that is about to expire")


def turn_of(connection: Any) -> contextlib.AbstractAsyncContextManager[None]:
    """What ``connection`` has to pass to be signed in: its server's budget and breaker."""
    sign_in: SignIn = connection.credential_provider
    sign_in.token = None
    server = server_of(sign_in.source, str(connection._host_error()))
    return server.signing_in(
        newest=lambda: sign_in.source.current,
        sent=lambda: sign_in.token,
    )


@contextlib.contextmanager
def explained(connection: Any, *, reached: bool = True) -> Iterator[None]:
    """Turn what the sign-in of ``connection`` raises into an error for people, without secrets.

    ``reached`` is False where the socket is opened inside, too: then a timeout, unless one inside
    has been explained already, is that of TCP or TLS.

    redis-py closes the connection then, but only if it is an error of its own: otherwise, and if
    the sign-in is cancelled, it would be kept, and handed out without having been signed in.
    """
    try:
        with _translated(connection, reached=reached):
            yield
    except redis_exceptions.RedisError:
        raise
    except BaseException:
        drop(connection)
        raise


@contextlib.contextmanager
def _translated(connection: Any, *, reached: bool) -> Iterator[None]:
    try:
        yield
    except redis_exceptions.RedisError as exc:
        if reached and isinstance(exc, redis_exceptions.TimeoutError):
            raise no_answer(connection) from without_tracebacks(exc)
        error = explain(
            exc,
            host=getattr(connection, "host", getattr(connection, "path", "the server")),
            port=getattr(connection, "port", 0),
            tls=isinstance(connection, SSLConnection),
            token=connection.credential_provider.token,
            tls_name=getattr(connection, "tls_name", None),
        )
        raise error from error.__cause__
    except BaseException as exc:
        # Cancelled by a timeout of the caller's, say, whose error this will be the cause of.
        without_tracebacks(exc)
        raise


@functools.cache
def _signed_in_class(base: Any) -> type[AbstractConnection]:
    """redis-py's connection class with our additions; one class per base, whatever the pool."""
    return type(f"Entra{base.__name__}", (_SignedIn, base), {"__module__": __package__})


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
            "token source uses it: make another pool for this token source, or give all clients of "
            "the pool the same token_source="
        )
    check_alone(kwargs)
    lifted = check_tls(kwargs, allow_insecure_tls=allow_insecure_tls)
    if "ssl_cert_reqs" in kwargs and "ssl_cert_reqs" not in lifted:
        kwargs["ssl_cert_reqs"] = "required"  # redis-py 5 takes the word only, others no capitals
    kwargs.pop("password", None)
    kwargs["credential_provider"] = SignIn(
        source,
        tls=SharedTLS(allow_insecure=allow_insecure_tls, lifted=lifted),
        allow_plaintext=allow_plaintext,
        username=kwargs.pop("username", None),
    )
    base: Any = pool.connection_class
    pool.connection_class = _signed_in_class(base)


def signs_in_with(pool: redis.asyncio.ConnectionPool) -> TokenSource | None:
    """The token source of the pool's connections, None if they sign in in redis-py's own ways."""
    kwargs = getattr(pool, "connection_kwargs", None)  # not every stand-in has any
    provider = kwargs.get("credential_provider") if kwargs else None
    return provider.source if isinstance(provider, SignIn) else None


def keeper_of(pool: redis.asyncio.ConnectionPool, make: Callable[[], K]) -> K:
    """Who keeps the pool's connections signed in; made where there is nobody yet."""
    sign_in: Any = pool.connection_kwargs["credential_provider"]
    if sign_in.keeper is None:
        sign_in.keeper = make()
    keeper: K = sign_in.keeper
    return keeper


def held_by(connection: Any) -> tuple[Token, TokenSource] | None:
    """The token that a connection of a pool is signed in with, and where newer ones come from."""
    sign_in = getattr(connection, "credential_provider", None)  # not every stand-in has one
    if not isinstance(sign_in, SignIn) or sign_in.token is None:
        return None
    return sign_in.token, sign_in.source


def let_go_of(connection: Any) -> None:
    """Have nobody keep ``connection`` signed in until it signs in anew or is handed out again."""
    renewal: Renewal | None = getattr(connection, "renewal", None)
    if renewal is not None:
        renewal.ended()


def no_answer(connection: Any) -> ConnectTimeoutError:
    """The error for a server that was reached and leaves a command of the handshake unanswered."""
    return ConnectTimeoutError(
        f"{connection._host_error()} was reached but did not answer the sign-in within "
        f"{connection.socket_timeout:g} s: it takes long to validate the token, or it is no Redis",
        stage="auth",
        host=getattr(connection, "host", getattr(connection, "path", None)),
        port=getattr(connection, "port", None),
    )
