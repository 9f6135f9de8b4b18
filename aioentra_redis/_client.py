"""``EntraRedis``: redis-py's asyncio client on one multiplexed connection that stays signed in.

What a client is made of, what it owns and how it ends; the way of its commands is in
``_commands.py``.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self

import redis.asyncio

from ._azure_events import AzureEvents
from ._commands import Commands
from ._dedicated import DedicatedConnections, dedicated_of
from ._event_streams import EventStream, EventStreams
from ._events import ConnectionStatus, EventCallback, EventHub
from ._health import PATIENCE, Health, examine
from ._metrics import observe_client, observe_connections
from ._mode import is_cluster_node
from ._multiplex._connection import MultiplexedConnection
from ._multiplex._routing import checked_overrides
from ._options import check_alone, check_host_for_plaintext, check_sign_in, given_seconds
from ._pipeline import EntraPipeline
from ._plans import Plan
from ._pubsub import PubSub, SubscriberPool
from ._redis_py import (
    Answers,
    attach,
    attached,
    check_connection_options,
    check_keywords,
    default_to_host_names,
    default_to_no_retries,
    default_to_resp3,
    limit_connections,
    names_its_host,
    pool_endpoint,
    pool_from_url,
    pool_retry,
    sign_in_with,
    signs_in_with,
    tells_how_to_connect,
)
from ._source import TokenSource
from .errors import (
    ClosedError,
    ConfigurationError,
)

__all__ = ["EntraRedis"]


class EntraRedis(Commands):
    """A ``redis.asyncio.Redis`` that shares one connection and signs in with Entra ID tokens.

    ``token_source`` is a :class:`TokenSource` (yours to close), ``credential`` an azure credential
    (yours to close, too; the token source around it is ours). With neither, the client signs in
    exactly as redis-py does: ``username``, ``password``, ``credential_provider``, or not at all.

    Further keywords, times in seconds:

    - ``recovery_timeout`` (30): how long a command waits for a usable connection;
    - ``close_timeout`` (5): how long ``aclose()`` waits for commands in flight;
    - ``routes``: what goes on a connection of its own although our tables say that it can be
      shared, such as ``{"MY.BLOCKING": "dedicated"}``;
    - ``max_dedicated_connections`` (100): how many connections the pool may hold besides the
      shared one, for blocking commands, WATCH, MONITOR and ``client()``;
    - ``on_event``: called with every event of the client and its token source, in the loop and
      at the very moment, so it should return at once; what it raises is logged and changes
      nothing. :meth:`events` is the same as an iterator;
    - ``azure_events`` (False): listen to Azure's channel of maintenance announcements, on one more
      connection, and tell of each message as an :class:`AzureMaintenance` event;
    - ``allow_plaintext``, ``allow_insecure_tls`` (False): lift a rule about tokens, see the errors
      that they lift;

    and all of redis-py's, under their own names; before redis-py 8 replies have the shape of its
    ``protocol=3`` unless another protocol is named. Clients that share a pool share its one
    connection, its sign-in, its times and its events, and the pool's ``retry=`` holds for them.

    The first command connects, and starts a token source of ours. All coroutines of one event loop
    may use the client at once; another loop or process needs its own.
    """

    def __init__(
        self,
        *,
        token_source: TokenSource | None = None,
        credential: Any = None,
        connection_pool: redis.asyncio.ConnectionPool | None = None,
        recovery_timeout: float | None = None,
        close_timeout: float | None = None,
        max_dedicated_connections: int | None = None,
        on_event: EventCallback | None = None,
        routes: Mapping[str, str] | None = None,
        azure_events: bool = False,
        allow_plaintext: bool = False,
        allow_insecure_tls: bool = False,
        **kwargs: Any,
    ) -> None:
        self._multiplexed: MultiplexedConnection | None = None  # __del__ may meet half of us
        self._dedicated: DedicatedConnections | None = None
        self._closed = False
        self._closing: asyncio.Future[None] | None = None
        self._stop_listening: list[Callable[[], None]] = []
        self._streams = EventStreams()
        self._subscribers = SubscriberPool()
        self._azure: AzureEvents | None = None
        check_sign_in(token_source, credential)
        times = given_seconds(recovery_timeout=recovery_timeout, close_timeout=close_timeout)
        if token_source is not None and not isinstance(token_source, TokenSource):
            raise ConfigurationError(f"token_source= is a TokenSource, not {token_source!r}")
        wants_token = token_source is not None or credential is not None
        if wants_token:
            check_alone(kwargs)
            default_to_host_names(kwargs)
        check_keywords(kwargs)
        self._overrides = checked_overrides(routes)
        self._plans: dict[Any, Plan] = {}
        if connection_pool is None:
            default_to_resp3(kwargs)
            default_to_no_retries(kwargs)
            limit_connections(kwargs, max_dedicated_connections)
        elif max_dedicated_connections is not None:
            raise ConfigurationError(
                "max_dedicated_connections= comes too late, the pool is made: give the pool "
                "max_connections= instead"
            )
        super().__init__(connection_pool=connection_pool, **kwargs)
        pool = self.connection_pool
        self._owned_source: TokenSource | None = None
        self._on_event = on_event
        self._times = times
        self._hub = EventHub()
        if wants_token:
            if not tells_how_to_connect(pool):
                raise ConfigurationError(
                    f"no tokens for {pool!r}: it doesn't tell how to connect, as a "
                    "redis.asyncio.ConnectionPool does; pass one of those, or a URL"
                )
            host, _, tls = pool_endpoint(pool)
            if not tls and names_its_host(pool):
                check_host_for_plaintext(host, allow_plaintext=allow_plaintext)
            source = token_source
            if source is None:
                source = self._owned_source = TokenSource(credential)
            sign_in_with(
                pool, source, allow_plaintext=allow_plaintext, allow_insecure_tls=allow_insecure_tls
            )
            if on_event is not None:
                self._stop_listening.append(source.listen(on_event))
        signs_in = self.token_source
        if tells_how_to_connect(pool):
            check_connection_options(pool)
            if not self.single_connection_client:
                self._share()
            elif signs_in is not None:
                observe_connections(self._hub, signs_in.name)
            self._dedicated = dedicated_of(pool, self._hub)
        if signs_in is not None:
            self._count_as_client(signs_in)
        if azure_events:
            self._azure = AzureEvents(self.pubsub, self._hub, pool_endpoint(pool)[0])
        self._listen()

    def _share(self) -> None:
        """Take a share in the pool's multiplexed connection; the first client makes it."""
        pool = self.connection_pool
        multiplexed: MultiplexedConnection | None = attached(pool)
        if multiplexed is None:
            source = signs_in_with(pool)
            hub = self._new_hub(source)
            multiplexed = MultiplexedConnection(pool, source=source, hub=hub, **self._times)
            attach(pool, multiplexed)
        multiplexed.check_times(**self._times)
        multiplexed.hold()
        self._multiplexed = multiplexed
        self._hub = multiplexed.hub

    def _new_hub(self, source: TokenSource | None) -> EventHub:
        """What a pool's multiplexed connection tells its events to."""
        hub = EventHub()
        if source is not None:
            observe_connections(hub, source.name)
        return hub

    def _count_as_client(self, source: TokenSource) -> None:
        observe_client(self, source.name)

    @classmethod
    def from_url(
        cls,
        url: str,
        single_connection_client: bool = False,
        auto_close_connection_pool: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a client for a URL, with the keywords of the class and of redis-py.

        As with redis-py, options in the URL's query win over keywords, and the pool is the
        client's own.
        """
        ours = {name: kwargs.pop(name) for name in _OWN_KEYWORDS if name in kwargs}
        if ours.get("token_source") is not None or ours.get("credential") is not None:
            check_alone(kwargs)
        check_keywords(kwargs)
        default_to_resp3(kwargs)
        limit_connections(kwargs, kwargs.pop("max_dedicated_connections", None))
        client = cls(
            connection_pool=pool_from_url(url, kwargs),
            single_connection_client=single_connection_client,
            **ours,
        )
        if auto_close_connection_pool is not None:
            text = (
                "auto_close_connection_pool= is deprecated, as in redis-py: pass connection_pool="
            )
            warnings.warn(text, DeprecationWarning, stacklevel=2)
        client.auto_close_connection_pool = auto_close_connection_pool is not False
        return client

    @classmethod
    def from_pool(cls, connection_pool: redis.asyncio.ConnectionPool, **kwargs: Any) -> Self:
        """Make a client that owns ``connection_pool``, with the keywords of the class."""
        client = cls(connection_pool=connection_pool, **kwargs)
        client.auto_close_connection_pool = True
        return client

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Connect and sign in now instead of at the first command; raises why it can't be done."""
        self._check_open()
        if self._multiplexed is not None:
            await self._multiplexed.start()
        return self

    def own(self, source: TokenSource | None) -> None:
        """Close ``source`` together with this client."""
        self._owned_source = source

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the client; what we constructed is closed with it.

        Commands in flight may finish within ``close_timeout``. Idempotent; every call waits for
        the same closing, and cancelling one does not stop it. With tokens it is final; a client
        that signs in in redis-py's own ways may be used again, as one of redis-py may.
        """
        multiplexed = self._multiplexed
        if self._closing is None:
            if multiplexed is not None:
                multiplexed.check_loop()
                self._closed = True
            self._plans.clear()
            self._closing = asyncio.ensure_future(self._close(close_connection_pool))
        await asyncio.shield(self._closing)
        if multiplexed is None:  # `client()`: it may take a connection again, as in redis-py
            self._closing = None

    async def __aexit__(self, *exc_info: Any) -> None:
        """``aclose``, with the last ``async with`` that ends; cancelling it does not stop it."""
        # redis-py's own counts first, with an await at which a cancellation would end all of it.
        leaving = super().__aexit__(*exc_info)  # type: ignore[no-untyped-call]
        await asyncio.shield(asyncio.ensure_future(leaving))

    async def _close(self, close_connection_pool: bool | None) -> None:
        try:
            if self._azure is not None:
                await self._azure.aclose()
            await self._subscribers.aclose()
            if self._multiplexed is not None:
                await self._multiplexed.let_go()
            if self._held is not None:
                await self._held.let_go()
            await super().aclose(close_connection_pool)
            shared = self._multiplexed is None or not self._multiplexed.closed
            if self._dedicated is not None and not shared:
                ours = self.auto_close_connection_pool
                with_pool = ours if close_connection_pool is None else close_connection_pool
                await self._dedicated.aclose(with_pool=bool(with_pool))
            if self._owned_source is not None:
                await self._owned_source.aclose()
        finally:
            self._stop_events()  # whoever reads them must not wait for ever

    def _listen(self) -> None:
        if self._on_event is not None:
            self._stop_listening.append(self._hub.listen(self._on_event))
        if self._azure is not None:
            self._stop_listening.append(self._hub.listen(self._azure.heard))

    def _stop_events(self) -> None:
        for stop in self._stop_listening:
            stop()
        self._stop_listening.clear()
        self._streams.close()

    def _check_open(self) -> None:
        """Raise ``ClosedError`` after ``aclose()``, or open again where redis-py would."""
        if not self._closed:
            return
        if self.token_source is not None:
            raise ClosedError("this client has been closed; that is final, make a new one")
        if self._closing is None or not self._closing.done():
            raise ClosedError("this client is being closed: wait for its aclose() first")
        self._closed, self._closing = False, None
        self._streams = EventStreams()
        self._share()
        self._listen()

    # What takes a connection from the pool asks first: the pool itself would open a new one.

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """Queue commands to be sent together, as in redis-py, see :class:`EntraPipeline`."""
        self._check_open()
        if self._multiplexed is None:
            return super().pipeline(transaction, shard_hint)
        return EntraPipeline(self, transaction, shard_hint)

    def pubsub(self, **kwargs: Any) -> Any:
        """Publish/subscribe as in redis-py, on a connection of its own that stays signed in."""
        self._check_open()
        if (source := self.token_source) is None:
            return super().pubsub(**kwargs)
        pool = self.connection_pool
        self._subscribers.serve(pool, source, self._hub, pool_retry(pool))
        return PubSub(self._subscribers, event_dispatcher=self._event_dispatcher, **kwargs)

    def monitor(self) -> Any:
        """MONITOR as in redis-py, on a connection of its own."""
        self._check_open()
        return super().monitor()

    def client(self) -> Any:
        """A client on one connection of its own, for commands that change its state."""
        self._check_open()
        return super().client()

    def __copy__(self) -> Self:
        """Another client of the same pool and token source, which are the original's to close."""
        clone = type(self).__new__(type(self))
        clone.__dict__.update(self.__dict__)
        clone._plans = {}
        clone.response_callbacks = self._callbacks
        clone._subscribers = SubscriberPool()
        clone._owned_source = clone._closing = clone._on_event = clone._azure = None
        clone._stop_listening = []
        clone._streams = EventStreams()
        clone.auto_close_connection_pool = False
        clone.connection = None
        if (source := clone.token_source) is not None:
            clone._count_as_client(source)
        if clone._multiplexed is not None and not clone._closed:
            clone._multiplexed.hold()
        return clone

    def auth_status(self) -> list[ConnectionStatus]:
        """The ledger: for each connection its token's version and expiry, state and last AUTH.

        May be called from any thread, in any state; without connections it is empty.
        """
        owners = (self._multiplexed, self._subscribers, self._dedicated)
        return [row for owner in owners if owner is not None for row in owner.status()]

    async def health(self, *, timeout: float = PATIENCE) -> Health:
        """Whether the client can do its work: a PING on its connection, and its token's state.

        It takes ``timeout`` seconds at most and raises nothing for a server or an identity
        provider that is unwell: the result says so. It connects where no command has yet, but asks
        the identity provider for nothing that isn't asked for anyway, so it may be called often.
        Raises ``WrongLoopError``, ``ForkedError``, and ``ConfigurationError`` for an unusable
        ``timeout``. Cancelling it is safe.
        """
        return await examine(
            self._multiplexed,
            self.token_source,
            self.auth_status,
            self.ping,
            timeout=timeout,
        )

    def events(self) -> EventStream:
        """An async iterator over the events of this client and its token source from now on.

        It ends when the client has been closed; see :class:`EventStream`. Clients that share a
        pool share its events.
        """
        source = self.token_source
        return self._streams.open(self._hub, *(() if source is None else (source,)))

    async def is_cluster_node(self, answers: Answers | None = None) -> bool:
        """Whether the server is a node of an OSS cluster, see ``_mode.py``."""
        assert self._multiplexed is not None
        return await is_cluster_node(self._multiplexed, answers)

    def __repr__(self) -> str:
        multiplexed = self._multiplexed
        if multiplexed is None:
            return str(super().__repr__())  # type: ignore[no-untyped-call]
        source = multiplexed.source
        identity = ""
        status = source.status if source is not None else None
        if status is not None and status.oid and status.remaining is not None:
            identity = f", ...{status.oid[-6:]}, token for {status.remaining:.0f} s more"
        return (
            f"<{type(self).__name__} {multiplexed.host}:{multiplexed.port}{identity}, "
            f"{len(multiplexed.status())} connection(s)>"
        )

    def _abandon(self) -> bool:
        """Let go of everything, from any thread; whether anything was open."""
        multiplexed = self._multiplexed
        if multiplexed is None or self._closed:
            return False
        was_open = multiplexed.abandon()
        if self._dedicated is not None and multiplexed.closed:
            was_open = self._dedicated.abandon() or was_open
        return was_open

    def __del__(self, *args: Any, _warn: Any = warnings.warn) -> None:
        if not hasattr(self, "_stop_listening"):
            return  # a call with wrong arguments: __init__ never ran
        self._stop_events()
        if self._azure is not None:
            self._azure.abandon()
        if self._abandon():
            _warn(f"unclosed client {self!r}", ResourceWarning, source=self)
        super().__del__(*args)


_OWN_KEYWORDS = (
    *("token_source", "credential", "recovery_timeout", "close_timeout", "on_event", "routes"),
    *("azure_events", "allow_plaintext", "allow_insecure_tls"),
)
