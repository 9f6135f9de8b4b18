"""How a redis-py connection gets its token: a credential provider, and what goes with it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import ssl
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.credentials import CredentialProvider

from .._diagnosis import explain
from .._options import check_alone, check_tls, is_loopback
from .._redaction import without_tracebacks
from .._schedule import reauth_deadline
from ..errors import ConfigurationError, ConnectTimeoutError, InsecureConnectionError
from ._pools import attached

if TYPE_CHECKING:
    from .._source import TokenSource
    from .._token import Token

__all__ = [
    "SharedTLS",
    "SignIn",
    "explained",
    "no_answer",
    "refuse_plaintext_to_others",
    "sign_in_with",
    "signs_in_with",
]


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
    _just_connected = False

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
        self._just_connected = True
        self.transport_ready_at = asyncio.get_running_loop().time()
        if plaintext and not sign_in.allow_plaintext:
            refuse_plaintext_to_others(self)

    # Whoever asks for the connection gets an error for people, and one whose chain holds no frame
    # of redis-py's sign-in, where the token is a local variable.

    async def on_connect(self) -> None:
        with explained(self):
            await super().on_connect()  # type: ignore[misc]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        with explained(self):
            await super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]

    # A pool asks these two, the one from redis-py 8 on, the other before, when it hands out a
    # connection; on ConnectionError it has the connection connect anew, which signs in anew.

    async def can_read(self, *args: Any, **kwargs: Any) -> bool:
        self._refuse_worn_token()
        return bool(await super().can_read(*args, **kwargs))  # type: ignore[misc]

    async def can_read_destructive(self) -> bool:
        self._refuse_worn_token()
        return bool(await super().can_read_destructive())  # type: ignore[misc]

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
        if sign_in.source.now() >= reauth_deadline(held):
            raise redis_exceptions.ConnectionError("signed in with a token that is about to expire")


@contextlib.contextmanager
def explained(connection: Any) -> Iterator[None]:
    """Turn what the sign-in of ``connection`` raises into an error for people, without secrets."""
    try:
        yield
    except redis_exceptions.TimeoutError as exc:
        raise no_answer(connection) from without_tracebacks(exc)
    except redis_exceptions.RedisError as exc:
        error = explain(
            exc,
            host=getattr(connection, "host", getattr(connection, "path", "the server")),
            port=getattr(connection, "port", 0),
            tls=isinstance(connection, SSLConnection),
            token=connection.credential_provider.token,
        )
        raise error from error.__cause__


def refuse_plaintext_to_others(connection: Any) -> None:
    """Close ``connection``, and raise, where its peer is not this machine."""
    peer = connection._writer.get_extra_info("peername")
    if isinstance(peer, tuple) and not is_loopback(str(peer[0])):
        connection._writer.transport.abort()
        raise InsecureConnectionError(
            f"the plaintext connection reached {peer[0]}, which is not this machine; it was "
            "closed before the token was sent. Use rediss://"
        )


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
    kwargs = getattr(pool, "connection_kwargs", None)  # not every stand-in has any
    provider = kwargs.get("credential_provider") if kwargs else None
    return provider.source if isinstance(provider, SignIn) else None


def no_answer(connection: Any) -> ConnectTimeoutError:
    """The error for a server that was reached and leaves a command of the handshake unanswered."""
    return ConnectTimeoutError(
        f"{connection._host_error()} was reached but did not answer the sign-in within "
        f"{connection.socket_timeout:g} s: it takes long to validate the token, or it is no Redis",
        stage="auth",
        host=getattr(connection, "host", getattr(connection, "path", None)),
        port=getattr(connection, "port", None),
    )
