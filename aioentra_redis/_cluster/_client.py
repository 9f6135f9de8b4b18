"""``EntraRedisCluster``: what a cluster client is made of, what it owns and how it ends.

The way of its commands is in ``_commands.py``, the nodes and their slots in ``_topology.py``.
"""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Self

from redis import exceptions as redis_exceptions

from .._client import EntraRedis
from .._event_streams import EventStream, EventStreams
from .._events import ConnectionStatus, EventCallback, EventHub
from .._health import PATIENCE, Health, examine
from .._lifecycle import Home
from .._metrics import observe_client, observe_connections
from .._multiplex._routing import checked_overrides
from .._options import check_alone, check_host_for_plaintext, check_sign_in, given_seconds
from .._redis_py import (
    PRIMARY,
    check_connection_options,
    check_keywords,
    default_to_host_names,
    default_to_resp3,
    loosen,
    pool_endpoint,
    sign_in_with,
    signs_in_with,
    template_pool,
)
from .._source import TokenSource
from .._tls_names import NodeTLSNames, tls_names
from ..errors import ClosedError, ConfigurationError
from ._addresses import Destination
from ._commands import ClusterCommands
from ._keyspace import EntraClusterKeyspaceNotifications
from ._nodes import Common, Node
from ._notices import follow_notices
from ._pipeline import EntraClusterPipeline
from ._plans import Plan
from ._pubsub import EntraClusterPubSub
from ._shared import SharedWork
from ._subscribers import ClusterSubscribers
from ._topology import Topology
from ._transaction import EntraClusterTransaction

__all__ = ["EntraRedisCluster"]

RECOVERY_TIMEOUT = 30.0


class EntraRedisCluster(ClusterCommands):
    """A ``redis.asyncio.RedisCluster`` with one connection for each node, signed in with tokens.

    ``token_source`` is a :class:`TokenSource` (yours to close), ``credential`` an azure credential
    (yours to close, too; the token source around it is ours). With neither, the client signs in
    exactly as redis-py does: ``username``, ``password``, ``credential_provider``, or not at all.

    Further keywords, times in seconds:

    - ``recovery_timeout`` (30): how long a command waits for a node that can execute it;
    - ``close_timeout`` (5): how long ``aclose()`` waits for commands in flight;
    - ``routes``: what goes on a connection of its own although our tables say that it can be
      shared, such as ``{"MY.BLOCKING": "dedicated"}``;
    - ``max_dedicated_connections`` (100): how many connections each node's pool may hold besides
      the shared one, for blocking commands, WATCH and MONITOR;
    - ``on_event``: called with every event of the client and its token source, see
      :class:`EntraRedis`;
    - ``node_tls_names`` ("entry"): with tokens, which names the certificates of nodes must be for
      whose address only a server has told. ``"entry"``: the name of the first host that you gave,
      or their own if that is below it or of the same Azure suffix; a list adds suffixes to those,
      ``"advertised"`` takes any name that the cluster says, a function of host and port returns
      the name, or None where no token may go;
    - ``allow_plaintext``, ``allow_insecure_tls`` (False): lift a rule about tokens, see the errors
      that they lift;

    and all of redis-py's, under their own names; before redis-py 8 replies have the shape of its
    ``protocol=3`` unless another protocol is named. ``retry=`` and its older names count for
    commands that may have been executed when their connection was lost: without one those are not
    repeated. What was not executed is sent again in any case.

    The first command connects, and starts a token source of ours. All coroutines of one event loop
    may use the client at once; another loop or process needs its own.
    """

    startup_nodes: list[Any]

    def __init__(
        self,
        host: str | None = None,
        port: str | int = 6379,
        startup_nodes: list[Any] | None = None,
        *,
        token_source: TokenSource | None = None,
        credential: Any = None,
        recovery_timeout: float | None = None,
        close_timeout: float | None = None,
        max_dedicated_connections: int | None = None,
        on_event: EventCallback | None = None,
        routes: Mapping[str, str] | None = None,
        node_tls_names: NodeTLSNames = "entry",
        allow_plaintext: bool = False,
        allow_insecure_tls: bool = False,
        **kwargs: Any,
    ) -> None:
        self._closing: asyncio.Future[None] | None = None  # __del__ may meet half of us
        self._closed = False
        self._owned_source: TokenSource | None = None
        self._stop_listening: list[Callable[[], None]] = []
        self._streams = EventStreams()
        self._home = Home("the client")
        self._learning = SharedWork()
        self._plans: dict[Any, Plan] = {}
        self._overrides = checked_overrides(routes)
        check_sign_in(token_source, credential)
        times = given_seconds(recovery_timeout=recovery_timeout, close_timeout=close_timeout)
        self._recovery_timeout = times.get("recovery_timeout", RECOVERY_TIMEOUT)
        if token_source is not None and not isinstance(token_source, TokenSource):
            raise ConfigurationError(f"token_source= is a TokenSource, not {token_source!r}")
        wants_token = token_source is not None or credential is not None
        if wants_token:
            check_alone(kwargs)
            default_to_host_names(kwargs)
        check_keywords(kwargs)
        default_to_resp3(kwargs)
        self._asked_to_retry = any(kwargs.get(name) is not None for name in _RETRIES)
        seeds = [(node.host, int(node.port)) for node in startup_nodes or ()]
        if host and port:
            seeds.append((host, int(port)))
        names = tls_names([address for address, _ in seeds] or ["localhost"], node_tls_names)
        # redis-py's nodes are thrown away; it would look "localhost" up for them.
        stand_in = "127.0.0.1" if host == "localhost" else host
        super().__init__(host=stand_in, port=port, startup_nodes=startup_nodes, **kwargs)
        loosen(self)
        encoding = self.encoder.encoding.lower().replace("_", "-")
        self._utf8 = encoding in ("utf-8", "utf8") and self.encoder.encoding_errors == "strict"
        template = template_pool(self, max_dedicated_connections, reading_replicas=self._balances)
        self._hub = EventHub()
        if wants_token:
            _, _, tls = pool_endpoint(template)
            for address, _ in seeds if not tls else ():
                check_host_for_plaintext(address, allow_plaintext=allow_plaintext)
            source = token_source
            if source is None:
                source = self._owned_source = TokenSource(credential)
            sign_in_with(
                template,
                source,
                allow_plaintext=allow_plaintext,
                allow_insecure_tls=allow_insecure_tls,
            )
        check_connection_options(template)
        self._common = Common(
            template=template,
            callbacks=self.response_callbacks,
            hub=self._hub,
            source=signs_in_with(template),
            routes=routes,
            times=times,
            allow_plaintext=allow_plaintext,
            allow_insecure_tls=allow_insecure_tls,
        )
        common = self._common

        def make_node(at: Destination, server_type: str | None) -> Node:
            return Node(at.host, at.port, server_type, common=common, tls_name=at.tls_name)

        self.nodes_manager: Topology = Topology(
            self.nodes_manager,
            seeds,
            make_node=make_node,
            names=names,
            hub=self._hub,
            steps=self.reinitialize_steps,
        )
        follow_notices(self._hub, self.nodes_manager)
        self.startup_nodes = list(self.nodes_manager.startup_nodes.values())
        self._subscribers = ClusterSubscribers(self.nodes_manager, self._common.source, self._hub)
        self._on_event = on_event
        if (signs_in := self.token_source) is not None:
            observe_client(self, signs_in.name)
            observe_connections(self._hub, signs_in.name)
            if on_event is not None:
                self._stop_listening.append(signs_in.listen(on_event))
        self._listen()

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Self:
        """Make a client for the URL of one node, with the keywords of the class and of redis-py.

        As with redis-py, options in the URL's query win over keywords.
        """
        made: Any = super().from_url(url, **kwargs)
        return made  # type: ignore[no-any-return]  # redis-py names its own class

    @property
    def token_source(self) -> TokenSource | None:
        """What this client signs in with, None if it does so in redis-py's own ways."""
        return self._common.source

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Connect and sign in now instead of at the first command; raises why it can't be done.

        It learns who owns which slot and connects to every primary, and to the replicas if they
        are read. Cancelling it leaves what stands.
        """
        self._check_open()
        await self.initialize()
        known = self.nodes_manager.nodes_cache.values()
        nodes: list[Node] = [
            node for node in known if self._balances or node.server_type == PRIMARY
        ]
        await asyncio.gather(*(asyncio.shield(node.usable()) for node in nodes))
        return self

    def begin_with(self, client: EntraRedis) -> bool:
        """Go on with the connection by which ``client`` has found out that there is a cluster.

        To be called before the first command. Returns False where that can't be, since connections
        that may read replicas begin in another way. The client is to be closed, its pool only then.
        """
        if self._balances:
            return False
        self.nodes_manager.entry().adopt(client)
        return True

    def own(self, source: TokenSource | None) -> None:
        """Close ``source`` together with this client."""
        self._owned_source = source

    async def initialize(self, *_: Any, **__: Any) -> Self:
        """Learn who owns which slot, if that has not happened; see ``Topology.refresh``."""
        self._check_open()
        if self._initialize:
            self._home.check()
            await self._learning.done(self._learn)
        return self

    async def _learn(self) -> None:
        await self.nodes_manager.refresh()
        if not self.commands_parser.commands:
            anywhere: Any = _AnyNode(self.nodes_manager)
            await self.commands_parser.initialize(anywhere)
        if not self._closed:
            self._initialize = False

    async def __aenter__(self) -> Self:
        """Learn who owns which slot; what can't be entered, or is cancelled, is closed again."""
        try:
            await super().__aenter__()
        except BaseException:
            if self._initialize:  # nobody else has come further
                await asyncio.shield(asyncio.ensure_future(self.aclose()))
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """``aclose``, with the last ``async with`` that ends; cancelling it does not stop it."""
        # redis-py's own counts first, with an await at which a cancellation would end all of it.
        leaving = super().__aexit__(*exc_info)  # type: ignore[no-untyped-call]
        await asyncio.shield(asyncio.ensure_future(leaving))

    def __await__(self) -> Generator[Any, None, Self]:
        return self.initialize().__await__()

    async def aclose(self) -> None:
        """Close the client; what we constructed is closed with it.

        Commands in flight may finish within ``close_timeout``. Idempotent; every call waits for
        the same closing, and cancelling one does not stop it. With tokens it is final; a client
        that signs in in redis-py's own ways may be used again, as one of redis-py may.
        """
        if self._closing is None:
            if not self._home.gone:
                self._home.check()
            self._closed = self._initialize = True
            self._plans.clear()
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await self._subscribers.aclose()
            await self.nodes_manager.aclose()
            if self._owned_source is not None:
                await self._owned_source.aclose()
        finally:
            self._stop_events()  # whoever reads them must not wait for ever

    def _listen(self) -> None:
        if self._on_event is not None:
            self._stop_listening.append(self._hub.listen(self._on_event))

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
        self._home = Home("the client")
        self._streams = EventStreams()
        self._subscribers.closed = False
        self.nodes_manager.reopen()
        self._listen()

    # -- pipelines -------------------------------------------------------------------------------

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        """Queue commands to be sent together, as in redis-py, see :class:`EntraClusterPipeline`.

        With ``transaction`` they are run as one, see :class:`EntraClusterTransaction`.
        """
        self._check_open()
        if shard_hint:
            raise redis_exceptions.RedisClusterException("shard_hint is deprecated in cluster mode")
        return EntraClusterTransaction(self) if transaction else EntraClusterPipeline(self)

    async def transaction(  # type: ignore[override]
        self,
        func: Callable[[Any], Any],
        *watches: Any,
        shard_hint: Any = None,
        value_from_callable: bool = False,
        watch_delay: float | None = None,
    ) -> Any:
        """Run ``func(pipeline)`` as a transaction while ``watches`` are watched, as in redis-py.

        It is called again where a watched key has changed, after ``watch_delay`` seconds.
        """
        async with self.pipeline(True, shard_hint) as pipe:
            while True:
                try:
                    if watches:
                        await pipe.watch(*watches)
                    value = func(pipe)
                    if inspect.isawaitable(value):
                        value = await value
                    results = await pipe.execute()
                    return value if value_from_callable else results
                except redis_exceptions.WatchError:
                    await pipe.reset()
                    if watch_delay is not None and watch_delay > 0:
                        await asyncio.sleep(watch_delay)

    async def _execute_pipeline_by_slot(  # type: ignore[override]
        self, command: str, slots_to_args: Mapping[int, Iterable[Any]]
    ) -> list[Any]:
        """What redis-py calls for commands on keys of several slots, with one for each slot."""
        if len(slots_to_args) == 1:
            (args,) = slots_to_args.values()
            return [await self.execute_command(command, *args)]
        pipe = self.pipeline()
        for args in slots_to_args.values():
            pipe.execute_command(command, *args)
        return list(await pipe.execute())

    def pubsub(
        self, node: Any = None, host: str | None = None, port: int | None = None, **kwargs: Any
    ) -> Any:
        """Publish/subscribe as in redis-py, sharded too, see :class:`EntraClusterPubSub`."""
        self._check_open()
        return EntraClusterPubSub(self, self._subscribers, node, host, port, **kwargs)

    def keyspace_notifications(
        self, key_prefix: str | bytes | None = None, ignore_subscribe_messages: bool = True
    ) -> Any:
        """Notifications of all primaries about their keys, as in redis-py from version 8.1 on."""
        self._check_open()
        return EntraClusterKeyspaceNotifications(
            self,
            self._subscribers,
            key_prefix=key_prefix,
            ignore_subscribe_messages=ignore_subscribe_messages,
        )

    # -- status ----------------------------------------------------------------------------------

    def auth_status(self) -> list[ConnectionStatus]:
        """The ledger: for each connection of each node its token's version and expiry, and so on.

        May be called from any thread, in any state; without connections it is empty.
        """
        rows = [row for node in self.nodes_manager.all_nodes() for row in node.status()]
        return rows + self._subscribers.status()

    async def health(self, *, timeout: float = PATIENCE) -> Health:
        """Whether the client can do its work: a PING to every primary, and its token's state.

        See :meth:`EntraRedis.health`.
        """
        return await examine(
            None, self.token_source, self.auth_status, self._ping_primaries, timeout=timeout
        )

    async def _ping_primaries(self) -> None:
        await self.execute_command("PING", target_nodes=self.PRIMARIES)

    def events(self) -> EventStream:
        """An async iterator over the events of this client and its token source from now on.

        It ends when the client has been closed; see :class:`EventStream`.
        """
        source = self.token_source
        return self._streams.open(self._hub, *(() if source is None else (source,)))

    # -- redis-py's settings ---------------------------------------------------------------------

    @property
    def _user_retry(self) -> Any:
        return self.retry if self._asked_to_retry else None

    def set_retry(self, retry: Any) -> None:
        """Set how often commands may be repeated that may have been executed."""
        super().set_retry(retry)
        self._asked_to_retry = True

    def __repr__(self) -> str:
        if not hasattr(self, "_common"):
            return f"<{type(self).__name__}>"
        seeds = ", ".join(self.nodes_manager.seeds)
        source = self.token_source
        identity = ""
        status = source.status if source is not None else None
        if status is not None and status.oid and status.remaining is not None:
            identity = f", ...{status.oid[-6:]}, token for {status.remaining:.0f} s more"
        return (
            f"<{type(self).__name__} {seeds}{identity}, "
            f"{len(self.nodes_manager.nodes_cache)} node(s), "
            f"{len(self.auth_status())} connection(s)>"
        )

    def __del__(self, *_: Any, _warn: Any = warnings.warn) -> None:
        if not hasattr(self, "_on_event"):
            return  # __init__ has not come to its end
        self._stop_events()
        if not self._closed and self.nodes_manager.abandon():
            _warn(f"unclosed cluster client {self!r}", ResourceWarning, source=self)


class _AnyNode:
    """What redis-py's parser of commands asks about their keys, for as long as it lives."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await self._topology.any_node().execute_command(*args, **options)


_RETRIES = ("retry", "cluster_error_retry_attempts", "connection_error_retry_attempts")
