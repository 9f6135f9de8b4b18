"""``connect``: from a URL and a credential to a client that is signed in, in one call."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Generator
from types import TracebackType
from typing import Any, Final, Generic, Literal, TypeVar, overload
from urllib.parse import urlsplit

import redis.asyncio

from ._client import EntraRedis
from ._cluster import EntraRedisCluster
from ._events import EventCallback
from ._options import check_host_for_plaintext, check_seconds, check_sign_in, resolve_url
from ._redis_py import asking
from ._source import TokenSource
from .errors import (
    ConfigurationError,
    ConnectTimeoutError,
    EntraRedisError,
    LifecycleError,
)

__all__ = ["Connecting", "connect"]

Client = TypeVar("Client", bound=EntraRedis | EntraRedisCluster, covariant=True)


class Connecting(Generic[Client]):
    """What ``connect`` returns: await it once, or enter it with ``async with``."""

    def __init__(
        self,
        url: str,
        *,
        token_source: TokenSource | None,
        credential: Any,
        username: str | None,
        cluster: bool | Literal["auto"],
        open_timeout: float,
        keywords: dict[str, Any],
    ) -> None:
        self._url = url
        self._token_source = token_source
        self._credential = credential
        self._username = username
        self._cluster = cluster
        self._open_timeout = open_timeout
        self._keywords = keywords
        self._used = False
        self._client: Any = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._open().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._open()
        return self._client  # type: ignore[no-any-return]

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def _open(self) -> Any:
        if self._used:
            raise LifecycleError(
                "connect() was awaited or entered before: call it again for another client"
            )
        self._used = True
        owned = None if self._token_source is not None else self._own_source()
        source = self._token_source or owned
        assert source is not None
        opening = _Opening(self._url, source, owned, cluster=self._cluster, keywords=self._keywords)
        try:
            # Made first: what is wrong with the options shows before a token is asked for.
            opening.make()
            async with asyncio.timeout(self._open_timeout):
                await source.get()
                opening.stage = "tcp"
                return await opening.start()
        except BaseException as exc:
            await asyncio.shield(opening.undo())
            if isinstance(exc, TimeoutError) and not isinstance(exc, EntraRedisError):
                raise self._too_late(opening.stage, source) from None
            raise

    def _own_source(self) -> TokenSource:
        if self._credential is not None:
            return TokenSource(self._credential, username=self._username)
        return TokenSource.from_default(username=self._username)

    def _too_late(self, stage: str, source: TokenSource) -> ConnectTimeoutError:
        parts = urlsplit(self._url)
        if stage == "token":
            what = "the first token"
            failure = source.status.last_error
            advice = str(failure) if failure else "the identity provider has not answered"
        else:
            what = f"an authenticated connection to {parts.netloc.rpartition('@')[2]}"
            advice = "the path may drop packets, or the server takes long to validate the token"
        return ConnectTimeoutError(
            f"{what} was not there within {self._open_timeout:g} s (open_timeout): {advice}",
            stage=stage,
            host=parts.hostname,
            port=parts.port,
        )


def _keywords_of(*kinds: type) -> frozenset[str]:
    return frozenset(name for kind in kinds for name in inspect.signature(kind).parameters)


OF_CLUSTERS: Final = _keywords_of(EntraRedisCluster, redis.asyncio.RedisCluster)
FOR_CLUSTERS: Final = OF_CLUSTERS - _keywords_of(EntraRedis, redis.asyncio.Redis)
"""Keywords that a cluster's client has, and those that only it has: as long as it is not known
which client it will be, they wait."""


class _Opening:
    """The client that is being opened, of the one class or the other; it owns what it has made."""

    def __init__(
        self,
        url: str,
        source: TokenSource,
        owned: TokenSource | None,
        *,
        cluster: bool | Literal["auto"],
        keywords: dict[str, Any],
    ) -> None:
        self.stage = "token"
        self._url = url
        self._where = urlsplit(url).netloc.rpartition("@")[2]
        self._source = source
        self._owned = owned
        self._cluster = cluster
        self._keywords = keywords
        self._client: EntraRedis | EntraRedisCluster | None = None

    def make(self) -> None:
        """Make the client that was asked for, or the one that finds out which is needed."""
        if self._cluster is True:
            self._client = self._clusters()
            return
        keywords = self._keywords
        if self._cluster == "auto":
            keywords = {name: it for name, it in keywords.items() if name not in FOR_CLUSTERS}
        self._client = EntraRedis.from_url(self._url, token_source=self._source, **keywords)
        self._client.own(self._owned)

    def _clusters(self) -> EntraRedisCluster:
        client = EntraRedisCluster.from_url(self._url, token_source=self._source, **self._keywords)
        client.own(self._owned)
        return client

    async def start(self) -> EntraRedis | EntraRedisCluster:
        """Connect and sign in; as a client of the other class if the server turns out so."""
        client = self._client
        assert client is not None
        if isinstance(client, EntraRedisCluster) or self._cluster is False:
            return await client.start()
        with asking(client.connection_pool) as answers:
            await client.start()
        if not await client.is_cluster_node(answers):
            return client
        if strange := self._keywords.keys() - OF_CLUSTERS:
            raise ConfigurationError(
                f"{self._where} is a cluster, whose client has no {', '.join(sorted(strange))}=: "
                "leave that out"
            )
        cluster = self._clusters()
        goes_on = cluster.begin_with(client)
        self._client = cluster
        client.own(None)
        await client.aclose(close_connection_pool=not goes_on)
        return await cluster.start()

    async def undo(self) -> None:
        """Close what has been made."""
        made = self._client if self._client is not None else self._owned
        if made is not None:
            await made.aclose()


@overload
def connect(
    url: str | None = None,
    *,
    cluster: Literal[False],
    credential: Any = None,
    token_source: TokenSource | None = None,
    username: str | None = None,
    open_timeout: float = 30.0,
    close_timeout: float = 5.0,
    recovery_timeout: float = 30.0,
    on_event: EventCallback | None = None,
    **redis_options: Any,
) -> Connecting[EntraRedis]: ...


@overload
def connect(
    url: str | None = None,
    *,
    cluster: Literal[True],
    credential: Any = None,
    token_source: TokenSource | None = None,
    username: str | None = None,
    open_timeout: float = 30.0,
    close_timeout: float = 5.0,
    recovery_timeout: float = 30.0,
    on_event: EventCallback | None = None,
    **redis_options: Any,
) -> Connecting[EntraRedisCluster]: ...


@overload
def connect(
    url: str | None = None,
    *,
    cluster: Literal["auto"] = "auto",
    credential: Any = None,
    token_source: TokenSource | None = None,
    username: str | None = None,
    open_timeout: float = 30.0,
    close_timeout: float = 5.0,
    recovery_timeout: float = 30.0,
    on_event: EventCallback | None = None,
    **redis_options: Any,
) -> Connecting[EntraRedis | EntraRedisCluster]: ...


def connect(
    url: str | None = None,
    *,
    cluster: bool | Literal["auto"] = "auto",
    credential: Any = None,
    token_source: TokenSource | None = None,
    username: str | None = None,
    open_timeout: float = 30.0,
    close_timeout: float = 5.0,
    recovery_timeout: float = 30.0,
    on_event: EventCallback | None = None,
    **redis_options: Any,
) -> Connecting[Any]:
    """Connect to Azure's Redis, sign in with Entra ID and stay signed in.

    ``await connect(url)`` returns the client, to be closed with ``aclose()``; ``async with
    connect(url) as redis:`` closes it. It is there when the first token is in hand and the first
    connection is authenticated.

    ``url`` is ``rediss://host:port``, or a bare host name whose port follows from its suffix; by
    default the first that is set of ``REDIS_URL``, ``AZURE_REDIS_HOST`` and ``REDIS_HOST``.
    ``credential`` is any azure credential, asynchronous or synchronous, ``token_source`` a
    :class:`TokenSource` to share between clients; both are yours to close. With neither,
    ``DefaultAzureCredential`` is used. ``username`` is for tokens without an ``oid`` claim.

    Times are in seconds: ``open_timeout`` for all of this, ``recovery_timeout`` for how long a
    command waits for a usable connection, ``close_timeout`` for commands in flight at the end.
    ``on_event`` is called with every event. What else is passed goes to the client under its own
    name, and from there to redis-py.

    ``cluster=False`` makes an :class:`EntraRedis`, ``cluster=True`` an :class:`EntraRedisCluster`;
    ``"auto"`` finds out: CLUSTER SLOTS goes out with the sign-in. Keywords that only a cluster's
    client has wait until the server is known to be one. A server of the Enterprise cluster policy
    is a single endpoint.

    Raises :class:`ConfigurationError` (a ``ValueError``) for what can't work, before a byte is
    sent; a :class:`TokenError` where there is no token; a :class:`ConnectError` whose ``stage``
    says which of DNS, TCP, TLS and AUTH failed; :class:`ClusterModeError` for ``cluster=True``
    where there is no cluster. Cancelling it leaves nothing open.
    """
    resolved = resolve_url(url, os.environ)
    check_sign_in(token_source, credential)
    if cluster not in (True, False, "auto"):
        raise ConfigurationError(f'cluster= is True, False or "auto", not {cluster!r}')
    check_seconds(
        open_timeout=open_timeout, close_timeout=close_timeout, recovery_timeout=recovery_timeout
    )
    if redis_options.get("single_connection_client"):
        raise ConfigurationError(
            "connect() returns a client that shares one connection between all tasks; for a "
            "connection of your own use `async with redis.client() as connection:` on it"
        )
    parts = urlsplit(resolved)
    if cluster is True and (parts.scheme == "unix" or parts.path.strip("/") not in ("", "0")):
        raise ConfigurationError(
            "cluster=True: a cluster is reached over TCP and has database 0 only; expected "
            "rediss://<host>:<port>"
        )
    if parts.scheme == "redis":
        check_host_for_plaintext(
            parts.hostname or "", allow_plaintext=bool(redis_options.get("allow_plaintext"))
        )
    keywords = {
        "close_timeout": close_timeout,
        "recovery_timeout": recovery_timeout,
        "on_event": on_event,
        **redis_options,
    }
    if token_source is not None and username is not None:
        keywords["username"] = username
    return Connecting(
        resolved,
        token_source=token_source,
        credential=credential,
        username=username,
        cluster=cluster,
        open_timeout=open_timeout,
        keywords=keywords,
    )
