"""``EntraRedis``: redis-py's asyncio client on one multiplexed connection that stays signed in.

The way of a command: redis-py's method (``get``, ``set``, ...) calls ``execute_command``; the plan
of that command's name says where it goes; a shared one is submitted to the current session, and
its reply goes through redis-py's own response callback. Everything that is not the straight way
(no connection, a full gate, a lost reply, a dedicated connection) is in ``_detour``.
"""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

import redis.asyncio
from redis import exceptions as redis_exceptions

from ._dedicated import DedicatedConnections, dedicated_of
from ._events import ConnectionStatus, EventCallback, EventHub
from ._mode import is_cluster_node
from ._multiplex._connection import MultiplexedConnection
from ._multiplex._routing import Route, checked_overrides, command_words, remedy, route
from ._options import check_alone, check_host_for_plaintext, check_sign_in, given_seconds
from ._pipeline import EntraPipeline
from ._plans import FINAL, Callbacks, Plan, awaited, plan_for
from ._pubsub import PubSub, SubscriberPool
from ._recovery import answered, is_to_recover_from, sent_elsewhere
from ._redis_py import (
    EMPTY_RESPONSE,
    NEVER_DECODE,
    Recording,
    attach,
    attached,
    check_connection_options,
    check_keywords,
    command_options,
    default_to_no_retries,
    default_to_resp3,
    is_observed,
    led_through,
    limit_connections,
    pool_endpoint,
    pool_from_url,
    pool_retry,
    recording,
    run_last_command,
    sign_in_with,
    signs_in_with,
    tells_how_to_connect,
    unwrapped,
)
from ._source import TokenSource
from .errors import (
    ClosedError,
    CommandRefusedError,
    ConfigurationError,
    ConnectionLostError,
)

__all__ = ["EntraRedis"]

MAX_PLANS: Final = 4096
"""Command names that plans are kept for; a program that makes up names must not fill memory."""


class EntraRedis(redis.asyncio.Redis):
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
    - ``on_event``: called with every event, see :mod:`aioentra_redis`;
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
        allow_plaintext: bool = False,
        allow_insecure_tls: bool = False,
        **kwargs: Any,
    ) -> None:
        self._multiplexed: MultiplexedConnection | None = None  # __del__ may meet half of us
        self._dedicated: DedicatedConnections | None = None
        self._closed = False
        self._closing: asyncio.Future[None] | None = None
        self._stop_listening: list[Callable[[], None]] = []
        self._subscribers = SubscriberPool()
        check_sign_in(token_source, credential)
        times = given_seconds(recovery_timeout=recovery_timeout, close_timeout=close_timeout)
        if token_source is not None and not isinstance(token_source, TokenSource):
            raise ConfigurationError(f"token_source= is a TokenSource, not {token_source!r}")
        wants_token = token_source is not None or credential is not None
        if wants_token:
            check_alone(kwargs)
        check_keywords(kwargs)
        self._overrides = checked_overrides(routes)
        self._plans: dict[Any, Plan] = {}
        if connection_pool is None:
            default_to_resp3(kwargs)
            default_to_no_retries(kwargs)
            limit_connections(kwargs, max_dedicated_connections)
        elif max_dedicated_connections is not None:
            raise ConfigurationError("max_dedicated_connections= comes too late: the pool is made")
        super().__init__(connection_pool=connection_pool, **kwargs)
        pool = self.connection_pool
        self._owned_source: TokenSource | None = None
        self._on_event = on_event
        self._times = times
        self._hub = EventHub()
        if wants_token:
            if not tells_how_to_connect(pool):
                raise ConfigurationError(f"no tokens for {pool!r}: it doesn't tell how to connect")
            host, _, tls = pool_endpoint(pool)
            if not tls and "path" not in pool.connection_kwargs:
                check_host_for_plaintext(host, allow_plaintext=allow_plaintext)
            source = token_source
            if source is None:
                source = self._owned_source = TokenSource(credential)
            sign_in_with(
                pool, source, allow_plaintext=allow_plaintext, allow_insecure_tls=allow_insecure_tls
            )
            if on_event is not None:
                self._stop_listening.append(source.listen(on_event))
        if tells_how_to_connect(pool):
            check_connection_options(pool)
            if not self.single_connection_client:
                self._share()
            self._dedicated = dedicated_of(pool, self._hub)
        self._listen()

    def _share(self) -> None:
        """Take a share in the pool's multiplexed connection; the first client makes it."""
        pool = self.connection_pool
        multiplexed: MultiplexedConnection | None = attached(pool)
        if multiplexed is None:
            multiplexed = MultiplexedConnection(
                pool, source=signs_in_with(pool), hub=EventHub(), **self._times
            )
            attach(pool, multiplexed)
        multiplexed.check_times(**self._times)
        multiplexed.hold()
        self._multiplexed = multiplexed
        self._hub = multiplexed.hub

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

    # -- commands --------------------------------------------------------------------------------

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return its reply, as every method of this class does.

        Cancelling it changes nobody else's reply; a command that was written may still run.
        Raises redis-py's exceptions; ``MaybeExecutedError`` where the connection ended under a
        command that is not known to be read-only; ``CommandRefusedError``.
        """
        try:
            plan = self._plans.get(args[0]) or self._make_plan(args)
        except TypeError:  # what can't be looked up is no name: DataError
            plan = self._make_plan(args)
        shared, words, callback, _ = plan
        # This test is all that the straight way pays for the others: retries, routing, a full
        # gate, replies as bytes.
        session = shared and self._multiplexed.straight  # type: ignore[union-attr]
        if not session or session.congested or NEVER_DECODE in options:
            return await self._detour(args, options)
        try:
            future = session.submit(args if words is None else words + args[1:])
        except ConnectionLostError:
            return await self._detour(args, options)
        try:
            reply = await future
        except asyncio.CancelledError:
            session.withdraw(future)
            raise
        except redis_exceptions.RedisError as exc:
            return await self._after_error(exc, plan, args, options)
        if callback is None:
            return reply
        if options:
            command_options(options)
        reply = callback(reply, **options)
        # isawaitable() costs 0.4 us; what callbacks nearly always return is known not to be.
        return reply if reply.__class__ in FINAL else await awaited(reply)

    if not TYPE_CHECKING:  # type checkers are to see redis-py's own signatures

        @property
        def connection(self):
            """The one that every command goes over: that of `client()`, or the one set, or None."""
            return self.__dict__.get("connection")

        @connection.setter
        def connection(self, connection):
            self.__dict__["connection"] = connection
            if plans := self.__dict__.get("_plans"):
                plans.clear()

        @functools.wraps(redis.asyncio.Redis.set)
        def set(self, name, value, *args, **options):
            # redis-py checks the options of SET in a decorator, for 2 us; the plain form has none.
            if args or options:
                return super().set(name, value, *args, **options)
            return self.execute_command("SET", name, value)

    def _make_plan(self, args: tuple[Any, ...]) -> Plan:
        self._check_open()  # closing took all plans away
        plan = plan_for(
            args[0],
            may_share=self._multiplexed is not None and self.connection is None,
            with_tokens=self.token_source is not None,
            callbacks=self.response_callbacks,
            overrides=self._overrides,
        )
        if len(self._plans) < MAX_PLANS:
            self._plans[args[0]] = plan
        return plan

    @property
    def response_callbacks(self) -> Callbacks:
        """redis-py's response callbacks; a change holds from the next command on."""
        return self._callbacks

    @response_callbacks.setter
    def response_callbacks(self, callbacks: Mapping[Any, Any]) -> None:
        self._callbacks = Callbacks(callbacks, self._plans.clear)
        self._plans.clear()

    async def _detour(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Every way but the straight one."""
        if is_observed():
            way = led_through(redis.asyncio.Redis, "execute_command", self, self._long_way)
            return await way(*args, **options)
        return await self._long_way(*args, **options)

    async def _long_way(self, *args: Any, **options: Any) -> Any:
        plan = self._plans.get(args[0]) or self._make_plan(args)
        multiplexed = self._multiplexed
        # `client()`, a connection that was put into our hand, or a pool that only lends them: the
        # way of redis-py.
        if multiplexed is None or self.connection is not None:
            return await self._on_a_connection_of_its_own(args, options)
        multiplexed.check()
        where = Route.SHARED if plan.shared else self._route(args)
        if where is Route.SHARED:
            record = recording(args[0], multiplexed)
            if record is None:
                return await self._submit_again(None, plan, args, options)
            return await record.around(self._submit_again(None, plan, args, options, record))
        if where is Route.DEDICATED:
            return await self._on_a_connection_of_its_own(args, options)
        if where is Route.LAST:
            return await run_last_command(self, args, options)
        words = command_words(args)
        raise CommandRefusedError(
            f"{words} can't be sent on a connection that all coroutines share: {remedy(words)}"
        )

    def _route(self, args: tuple[Any, ...]) -> Route:
        return route(args, with_tokens=self.token_source is not None, overrides=self._overrides)

    async def _on_a_connection_of_its_own(
        self, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """redis-py's own way, over a connection of the pool, which signs in like ours."""
        if is_observed():  # whoever has wrapped it has been led through already
            execute = unwrapped(redis.asyncio.Redis, "execute_command")
            return await execute(self, *args, **options)
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    async def _after_error(
        self,
        exc: redis_exceptions.RedisError,
        plan: Plan,
        args: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        """What becomes of a command that got an error instead of a reply."""
        if isinstance(exc, redis_exceptions.ResponseError):
            if EMPTY_RESPONSE in options:
                return options[EMPTY_RESPONSE]
            raise sent_elsewhere(exc, self._multiplexed) or exc  # type: ignore[arg-type]
        if is_to_recover_from(exc):
            return await self._submit_again(exc, plan, args, options)
        raise exc

    async def _submit_again(
        self,
        failure: redis_exceptions.RedisError | None,
        plan: Plan,
        args: tuple[Any, ...],
        options: dict[str, Any],
        record: Recording | None = None,
    ) -> Any:
        """Submit once there is a session with room, and again as long as that repeats nothing."""
        words = args if plan.words is None else plan.words + args[1:]
        raw = NEVER_DECODE in options
        try:
            reply = await answered(
                self._multiplexed,  # type: ignore[arg-type]
                lambda session: session.submit(words, raw),
                name=lambda: command_words(words),
                repeatable=plan.read_only,
                retry=pool_retry(self.connection_pool),
                failure=failure,
                on_repeat=record.repeated if record is not None else None,
            )
        except redis_exceptions.ResponseError as exc:
            return await self._after_error(exc, plan, args, options)
        if plan.callback is None:
            return reply
        return await awaited(plan.callback(reply, **command_options(options)))

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

    async def _close(self, close_connection_pool: bool | None) -> None:
        await self._subscribers.aclose()
        if self._multiplexed is not None:
            await self._multiplexed.let_go()
        await super().aclose(close_connection_pool)
        shared = self._multiplexed is None or not self._multiplexed.closed
        if self._dedicated is not None and not shared:
            await self._dedicated.aclose()
        self._stop_events()
        if self._owned_source is not None:
            await self._owned_source.aclose()

    def _listen(self) -> None:
        if self._on_event is not None:
            self._stop_listening.append(self._hub.listen(self._on_event))

    def _stop_events(self) -> None:
        for stop in self._stop_listening:
            stop()
        self._stop_listening.clear()

    def _check_open(self) -> None:
        """Raise ``ClosedError`` after ``aclose()``, or open again where redis-py would."""
        if not self._closed:
            return
        if self.token_source is not None:
            raise ClosedError("this client has been closed; that is final, make a new one")
        if self._closing is None or not self._closing.done():
            raise ClosedError("this client is being closed")
        self._closed, self._closing = False, None
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

    def auth_status(self) -> list[ConnectionStatus]:
        """The ledger: for each connection its token's version and expiry, state and last AUTH."""
        owners = (self._multiplexed, self._subscribers, self._dedicated)
        return [row for owner in owners if owner is not None for row in owner.status()]

    @property
    def token_source(self) -> TokenSource | None:
        """What this client signs in with, None if it does so in redis-py's own ways."""
        return signs_in_with(self.connection_pool)

    async def is_cluster_node(self) -> bool:
        """Whether the server is a node of an OSS cluster."""
        assert self._multiplexed is not None
        return await is_cluster_node(self._multiplexed)

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

    def __del__(self, *args: Any, _warn: Any = warnings.warn) -> None:
        if not hasattr(self, "_stop_listening"):
            return  # a call with wrong arguments: __init__ never ran
        self._stop_events()
        multiplexed = self._multiplexed
        if multiplexed is not None and not self._closed:
            was_open = multiplexed.abandon()
            if self._dedicated is not None and multiplexed.closed:
                was_open = self._dedicated.abandon() or was_open
            if was_open:
                _warn(f"unclosed client {self!r}", ResourceWarning, source=self)
        super().__del__(*args)


_OWN_KEYWORDS = (
    *("token_source", "credential", "recovery_timeout", "close_timeout", "on_event", "routes"),
    *("allow_plaintext", "allow_insecure_tls"),
)
