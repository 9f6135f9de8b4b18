"""For users who keep their own redis-py client: the way in, and what each way promises.

``entra_kwargs`` keeps plain asyncio clients signed in across expiries. ``EntraCredentialProvider``
does less, for clients that the former can't serve: it gives each new connection a fresh token.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from redis.credentials import CredentialProvider

from ._options import check_seconds
from ._redis_py import SharedTLS, SignIn, sign_in_plain
from ._renewal import Renewal
from ._source import TokenSource
from ._threads import call_in_thread
from ._token import Token
from ._token_thread import TokenThread
from .errors import ConfigurationError, EntraRedisError, LifecycleError, TokenAcquisitionError

__all__ = ["EntraCredentialProvider", "entra_kwargs"]


def entra_kwargs(
    source: TokenSource, *, allow_plaintext: bool = False, allow_insecure_tls: bool = False
) -> dict[str, Any]:
    """Keyword arguments that sign a plain ``redis.asyncio`` client in, and keep it signed in.

    They fit ``Redis(...)``, ``Redis.from_url(url, ...)``, ``ConnectionPool(...)``,
    ``BlockingConnectionPool(...)`` and every library that passes keywords on to one of them::

        client = redis.asyncio.Redis.from_url(url, **entra_kwargs(source))

    Pass no password, credential provider or ``redis_connect_func`` besides; a user name, if any,
    must be the token's object ID. ``source`` remains yours to close, and belongs to one event
    loop, as the client does. Any number of clients may share it.

    Each connection signs in with the newest token. When there is a newer one, AUTH goes in front
    of a command that is sent anyway, at a moment of the connection's own within the time that
    Microsoft asks for; a subscriber with RESP3 gets it while it waits for messages. If the server
    refuses, the connection goes on with the former token, and no command fails for it; the
    next try comes within seconds. A connection that lies in the pool is left alone: the server
    ends it when its token expires, and the pool makes a new one.

    The server does end what gives no occasion for AUTH until the token expires; the owner then
    gets a :exc:`ConnectionLostError`, a ``ConnectionError`` of redis-py's, which says so, unless
    redis-py's retries come first: a subscriber with RESP2, or one that is not read; one blocking
    command that waits across the expiry; MONITOR; a connection that is held and not used
    (``single_connection_client``, WATCH). ``EntraRedis`` does all of these but MONITOR and WATCH.

    A token is not sent in clear to another machine, unless with ``allow_plaintext=True``, nor to a
    server whose certificate and host name are not checked, unless with ``allow_insecure_tls=True``:
    :exc:`InsecureConnectionError`, at the first command, because it is the open connection that is
    looked at. redis-py 5 does not check host names by itself; there each connection is opened
    twice unless you pass ``ssl_check_hostname=True``. Unix sockets are not supported.

    redis-py's own ``RedisCluster`` does not take ``redis_connect_func``: use ``EntraRedisCluster``.
    """
    if not isinstance(source, TokenSource):
        raise ConfigurationError(f"entra_kwargs() takes a TokenSource, not {source!r}")
    hook = _Hook(source, allow_plaintext=allow_plaintext, allow_insecure_tls=allow_insecure_tls)
    return {"redis_connect_func": hook.on_connect}


class _Hook:
    """What redis-py calls with each connection; a method, because it tells coroutines by kind."""

    is_for_plain_clients = True
    """``EntraRedis`` looks for it, to refuse: see ``_redis_py._pools``."""

    def __init__(
        self, source: TokenSource, *, allow_plaintext: bool, allow_insecure_tls: bool
    ) -> None:
        self._source = source
        self._allow_insecure_tls = allow_insecure_tls
        self._provider = SignIn(
            source,
            tls=SharedTLS(allow_insecure=allow_insecure_tls),
            allow_plaintext=allow_plaintext,
        )
        self._numbers = itertools.count(1)

    async def on_connect(self, connection: Any) -> None:
        await sign_in_plain(
            connection,
            self._provider,
            self._renewal,
            allow_insecure_tls=self._allow_insecure_tls,
        )

    def _renewal(self, host: str) -> Renewal:
        name = f"redis-py's connection {next(self._numbers)} to {host}"
        return Renewal(self._source, name=name, host=host)


class EntraCredentialProvider(CredentialProvider):
    """A redis-py ``credential_provider``: every new connection signs in with a fresh token.

    ``EntraCredentialProvider(source)`` is for clients of ``redis.asyncio``, in the event loop of
    ``source``, which remains yours to close. For synchronous clients there is :meth:`in_thread`.
    One provider serves any number of clients and connections.

    It is called once, when a connection is made. So a connection is not renewed: the server ends
    it when its token expires, and redis-py connects anew, with a newer token, by its own rules
    about retries. A command that is under way just then fails, or runs twice, as those rules say.
    For renewal without a disconnect use :func:`entra_kwargs`, ``EntraRedis`` or
    ``EntraRedisCluster``.

    **Use it with TLS only** (``rediss://``, ``ssl=True``): a credential provider can't see where
    its token goes, so it can't refuse a connection in clear, as everything else here does. Nor
    does it see whether certificates are checked: redis-py before version 6 needs
    ``ssl_check_hostname=True``.
    """

    def __init__(self, source: TokenSource) -> None:
        if not isinstance(source, TokenSource):
            raise ConfigurationError(
                f"EntraCredentialProvider takes a TokenSource, not {type(source).__name__}; for a "
                "synchronous client, or a credential, use EntraCredentialProvider.in_thread()"
            )
        self._source: TokenSource | None = source
        self._thread: TokenThread | None = None

    @classmethod
    def in_thread(cls, factory: Callable[[], object], *, timeout: float = 30.0) -> Self:
        """A provider for synchronous clients, such as ``redis.Redis``, Celery, django-redis.

        ``factory`` makes a :class:`TokenSource`, or a credential of azure-identity, and may be a
        coroutine function. It is called in a daemon thread with an event loop of its own, when
        the first token is asked for, and what it returns is closed there. After a fork the child
        starts a thread of its own in the same way. Any number of threads may use the provider,
        and asyncio clients of any loop, which it does not block.

        ``timeout`` is how many seconds a new connection waits for a token; then the client gets
        :exc:`TokenAcquisitionError`. Not for processes whose threads gevent or eventlet replaced.
        """
        if not callable(factory):
            raise ConfigurationError(
                "in_thread() takes a function that makes a TokenSource or credential, not "
                f"{type(factory).__name__}: what it makes belongs to the thread's event loop"
            )
        check_seconds(timeout=timeout)
        provider = cls.__new__(cls)
        provider._source = None
        provider._thread = TokenThread(factory, timeout=timeout)
        return provider

    # redis-py closes a connection whose sign-in fails with an exception of its own; after any
    # other one it keeps it, not signed in, and every later command gets NOAUTH. Hence _for_redis().

    def get_credentials(self) -> tuple[str, str]:
        """User name and token, for synchronous clients; blocks, ``timeout`` seconds at most.

        Raises :exc:`TokenError`, an ``AuthenticationError`` of redis-py's. Only of a provider made
        by :meth:`in_thread`; any other would have to block the loop that its tokens come from.
        """
        if self._thread is None:
            raise TokenAcquisitionError(
                "EntraCredentialProvider(source) serves clients of redis.asyncio only: a "
                "synchronous client would block the event loop of the token source. Use "
                "EntraCredentialProvider.in_thread(factory)",
                transient=False,
            )
        try:
            return _credentials(self._thread.get())
        except (ConfigurationError, LifecycleError) as error:
            raise _for_redis(error) from error

    async def get_credentials_async(self) -> tuple[str, str]:
        """User name and token, for asyncio clients; raises :exc:`TokenError`.

        Cancelling it ends the wait, never the acquisition.
        """
        try:
            if self._source is not None:
                return _credentials(await self._source.get())
            assert self._thread is not None
            return _credentials(await self._thread.get_async())
        except (ConfigurationError, LifecycleError) as error:
            raise _for_redis(error) from error

    def close(self) -> None:
        """End the thread of :meth:`in_thread`, and close the source in it; final, idempotent.

        Blocks, 12 seconds at most. Connections that are open live on until their token expires.
        Without a thread it does nothing: the source is yours.
        """
        if self._thread is not None:
            self._thread.close()

    async def aclose(self) -> None:
        """:meth:`close`, without blocking the loop; cancelling it ends the wait only."""
        await call_in_thread(self.close, "aioentra_redis close")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # Settings are copied by many a library, and the copy is to have the same thread.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._thread is None:
            raise TypeError(
                "this provider can't be pickled, its token source belongs to this process; one of "
                "EntraCredentialProvider.in_thread(factory) can"
            )
        again = functools.partial(type(self).in_thread, timeout=self._thread.timeout)
        return again, (self._thread.factory,)

    def __repr__(self) -> str:
        if self._thread is None:
            return f"<{type(self).__name__} of {self._source!r}>"
        state = "running" if self._thread.running else "no thread"
        return f"<{type(self).__name__} in a thread, {state}>"


def _credentials(token: Token) -> tuple[str, str]:
    return (token.username, token.secret)


def _for_redis(error: EntraRedisError) -> TokenAcquisitionError:
    """An error that says the same and that redis-py takes for a failed sign-in."""
    return TokenAcquisitionError(str(error), transient=False)
