"""One node of a cluster: its address, and on a pool of its own a client like any other.

So each node has what a single server has: one multiplexed connection with its re-authentication
task, dedicated connections, admission, waits in slices. What all nodes of a cluster have in common
is in ``Common``; a node connects when the first command goes there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import redis.asyncio
from redis import exceptions as redis_exceptions

from .._client import EntraRedis
from .._events import ConnectionStatus, EventHub
from .._multiplex._connection import MultiplexedConnection
from .._multiplex._ending import ignore_outcome
from .._multiplex._routing import Route, command_words, remedy
from .._multiplex._session import Session
from .._redis_py import (
    NEVER_DECODE,
    NodeBase,
    command_options,
    forget_pool,
    give_back_now,
    lead_to,
    lease_now,
    make_one_of,
    node_pool,
    run_last_command,
)
from ..errors import CommandRefusedError, ConfigurationError, ConnectionLostError
from ._plans import awaited

if TYPE_CHECKING:
    from .._plans import Callbacks
    from .._source import TokenSource

__all__ = ["Common", "Node", "NotConnectedError"]

_ASKING = ("ASKING",)

FEW: Final = 1
"""Callers in one turn up to which the first of the next turn is written at once: here one. A turn's
commands are spread over the nodes, and whoever waits for those that are about to come saves system
calls at all of them: at 10 and 20 callers of three nodes that was measured as 25 to 35 % more."""


class NotConnectedError(ConnectionLostError):
    """Nothing was sent: a node has no connection. Whoever routes commands decides what to do."""


@dataclass
class Common:
    """What the nodes of one cluster have in common."""

    template: redis.asyncio.ConnectionPool
    callbacks: Callbacks
    hub: EventHub
    source: TokenSource | None = None
    routes: Mapping[str, str] | None = None
    times: dict[str, float] = field(default_factory=dict)
    allow_plaintext: bool = False
    allow_insecure_tls: bool = False


class NodeClient(EntraRedis):
    """The client of one node: no client of a user's, so its life and events are the cluster's."""

    def __init__(self, common: Common, pool: redis.asyncio.ConnectionPool) -> None:
        self._common = common
        self._defaults: dict[Any, Any] | None = None
        super().__init__(
            connection_pool=pool,
            token_source=common.source,
            routes=common.routes,
            allow_plaintext=common.allow_plaintext,
            allow_insecure_tls=common.allow_insecure_tls,
            **common.times,  # type: ignore[arg-type]
        )
        self._defaults = None
        self.auto_close_connection_pool = True
        self.multiplexed.few = FEW

    def _new_hub(self, _: TokenSource | None) -> EventHub:
        return self._common.hub

    def _count_as_client(self, _: TokenSource) -> None:
        """It is not one."""

    @property  # type: ignore[override]
    def response_callbacks(self) -> Callbacks:
        """The cluster's."""
        given: Any = self._defaults
        return self._common.callbacks if given is None else given

    @response_callbacks.setter
    def response_callbacks(self, callbacks: Any) -> None:
        """What redis-py's constructor does, and some versions' then add to: for as long as that."""
        self._defaults = dict(callbacks)

    def _make_plan(self, args: tuple[Any, ...]) -> Any:
        plan = super()._make_plan(args)
        self._plans.clear()  # the callbacks are the cluster's, and change there
        return plan

    def _explained(self, error: redis_exceptions.ResponseError) -> redis_exceptions.RedisError:
        return error  # MOVED is what it says

    @property
    def multiplexed(self) -> MultiplexedConnection:
        """The one connection for everything that can be shared."""
        assert self._multiplexed is not None
        return self._multiplexed

    def abandon(self) -> bool:
        """Let go of everything, from any thread; whether anything was open."""
        was_open = self._abandon()
        self._closed = True
        return was_open

    # -- one attempt at a command ----------------------------------------------------------------

    async def attempt(self, args: tuple[Any, ...], options: dict[str, Any], *, asking: bool) -> Any:
        """The reply of this node, through its response callback; what fails is not repeated.

        ``asking`` puts ASKING right in front of the command, in the same write. Raises what the
        server or redis-py raises, ``NotConnectedError`` where there is no connection,
        ``MaybeExecutedError`` for what was lost on a dedicated one, ``CommandRefusedError``.
        """
        plan = self._make_plan(args)
        where = Route.SHARED if plan.shared else self._route(args)
        if where is Route.SHARED:
            words = args if plan.words is None else plan.words + args[1:]
            reply = await self._submitted(words, NEVER_DECODE in options, asking)
            if plan.callback is None:
                return reply
            return await awaited(plan.callback(reply, **command_options(options)))
        if where is Route.REFUSED:
            name = command_words(args)
            raise CommandRefusedError(
                f"{name} can't be sent on a connection that all coroutines share: {remedy(name)}"
            )
        if where is Route.LAST:
            return await run_last_command(self, args, options)
        return await self._on_a_connection_of_its_own(args, {**options, _ASKED: asking})

    async def _submitted(self, words: tuple[Any, ...], raw: bool, asking: bool) -> Any:
        session = await self.admission()
        future: asyncio.Future[Any]
        try:
            if asking:
                packed = [session.pack(_ASKING), session.pack(words)]
                future = session.submit_batch(packed, (1,) if raw else ())
            else:
                future = session.submit(words, raw)
        finally:
            session.admitted()
        try:
            reply = await future
        except asyncio.CancelledError:
            session.withdraw(future)
            raise
        finally:
            del future  # it refers to an error, and the error to this frame
        return _behind_asking(reply) if asking else reply

    async def admission(self) -> Session:
        """A session with room; after the submit the caller calls ``session.admitted()``.

        Raises ``NotConnectedError`` where there is none (waiting for one is up to the caller, who
        may know of a better node), ``ClosedError``. Cancelling it is safe.
        """
        multiplexed = self.multiplexed
        multiplexed.check()
        session = multiplexed.session
        if session is not None and not session.closed and session.congested:
            await session.admission()
            if session is multiplexed.session and not session.closed:
                return session
            session.admitted()
            multiplexed.check()
            session = multiplexed.session
        if session is None or session.closed:
            raise NotConnectedError(f"there is no connection to {multiplexed.host}")
        return session

    async def _send_command_parse_response(
        self, conn: Any, command_name: Any, *args: Any, **options: Any
    ) -> Any:
        if options.pop(_ASKED, False):
            await conn.send_command(*_ASKING)
            await conn.read_response()
        return await super()._send_command_parse_response(conn, command_name, *args, **options)


def _behind_asking(replies: list[Any]) -> Any:
    """The reply to the command that ASKING went in front of, or its error, raised."""
    error = next((each for each in replies if isinstance(each, Exception)), None)
    try:
        if error is not None:
            raise error
        return replies[1]
    finally:
        del error, replies


_ASKED = "_asking"
"""The option of a command on a dedicated connection that ASKING goes in front of."""


class _NotConnected:
    """The multiplexed connection of a node that nobody has needed yet."""

    straight = session = last_error = None


_NOT_CONNECTED: Any = _NotConnected()


class Node(NodeBase):
    """redis-py's ``ClusterNode``, with a client of ours on it.

    Without ``common`` it is an address, as redis-py's users make them for ``startup_nodes=`` and
    ``target_nodes=``.
    """

    response_callbacks: Any
    max_connections: int
    connection_kwargs: dict[str, Any]

    def __init__(
        self,
        host: str,
        port: int,
        server_type: str | None = None,
        *,
        common: Common | None = None,
        tls_name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(host, port, server_type, **options)
        self.tls_name = tls_name
        self._common = common
        if common is not None:  # what redis-py's own classes read of a node
            template = common.template
            self.response_callbacks = common.callbacks
            kind: Any = template.connection_class
            self.connection_class = kind
            self.max_connections = template.max_connections
            self.connection_kwargs = {**template.connection_kwargs, "host": host, "port": port}
        self._client: NodeClient | None = None
        self._usable: asyncio.Task[None] | None = None
        self.multiplexed: MultiplexedConnection = _NOT_CONNECTED
        self.retired: bool = False
        """It has left the cluster, or the client has been closed."""

    @property
    def client(self) -> NodeClient:
        """The client of this node, made when it is needed; what its constructor raises."""
        client = self._client
        if client is None:
            if self._common is None:
                raise ConfigurationError(f"{self.name} is an address, not a node of this client")
            if self.retired:
                raise ConnectionLostError(f"{self.name} has left the cluster")
            pool = node_pool(self._common.template, self.host, self.port, self.tls_name)
            client = self._client = NodeClient(self._common, pool)
            self.multiplexed = client.multiplexed
        return client

    def adopt(self, client: EntraRedis) -> None:
        """Go on with the connections of ``client``, which is for the same server."""
        assert self._common is not None
        pool = client.connection_pool
        make_one_of(pool, self._common.template, self.tls_name or self.host)
        self._client = NodeClient(self._common, pool)
        self.multiplexed = self._client.multiplexed
        self.multiplexed.hub.lead_to(self._common.hub)

    @property
    def is_connected(self) -> bool:
        """Whether a command could be sent at once, but for a full gate."""
        session = self.multiplexed.session
        return session is not None and not session.closed

    @property
    def is_promising(self) -> bool:
        """Whether it is connected, or nothing has kept it from that yet."""
        return self.is_connected or self.multiplexed.last_error is None

    @property
    def was_connected(self) -> bool:
        """Whether there has ever been a connection."""
        return self._client is not None and self.multiplexed.address is not None

    @property
    def has_client(self) -> bool:
        """Whether there is anything to close."""
        return self._client is not None

    @property
    def peer(self) -> tuple[str, int] | None:
        """The address that its connection has reached; None without one."""
        session = self.multiplexed.session
        return session.dialed.peer if session is not None else None

    def move_to(self, host: str, port: int, tls_name: str | None = None) -> None:
        """Be the node at another address: connections from now on go there."""
        super().move_to(host, port)
        self.tls_name = tls_name
        if getattr(self, "_client", None) is not None:
            assert self._client is not None
            lead_to(self._client.connection_pool, host, port, tls_name)
            self.multiplexed.host, self.multiplexed.port = host, port

    def usable(self) -> asyncio.Task[None]:
        """Ends when a command can be sent, or with the reason why none can; shared by waiters."""
        task = self._usable
        if task is None or task.done():
            task = self._usable = asyncio.ensure_future(self.client.multiplexed.start())
            task.add_done_callback(ignore_outcome)
        return task

    def status(self) -> list[ConnectionStatus]:
        """The ledger of this node's connections."""
        return self._client.auth_status() if self._client is not None else []

    async def retire(self) -> None:
        """Let what is in flight finish, within ``close_timeout``, and close; idempotent."""
        self.retired = True
        if self._client is not None:
            await self._client.aclose()
            forget_pool(self._client.connection_pool)

    def abandon(self) -> bool:
        """Let go of everything, from any thread; whether anything was open."""
        self.retired = True
        return self._client is not None and self._client.abandon()

    # -- what redis-py and its users call --------------------------------------------------------

    async def execute_command(
        self, *args: Any, asking: bool = False, connect: bool = True, **options: Any
    ) -> Any:
        """One command on this node, whatever slot its keys are in; what fails is not repeated.

        ``asking`` sends ASKING in front of it. It waits for a connection, unless ``connect`` is
        False: then ``NotConnectedError`` is raised.
        """
        while True:
            try:
                return await self.client.attempt(args, options, asking=asking)
            except NotConnectedError:
                if not connect:
                    raise
            await asyncio.shield(self.usable())

    def acquire_connection(self) -> Any:
        """A connection of the node's pool, leased until ``release``; as redis-py does it.

        It may not stand yet. Raises redis-py's MaxConnectionsError.
        """
        return lease_now(self.client.connection_pool)

    def release(self, connection: Any) -> None:
        """Give a leased connection back."""
        if self._client is not None:
            give_back_now(self._client.connection_pool, connection)

    async def disconnect(self) -> None:
        """Let go of all connections; the next command opens new ones."""
        if self._client is not None:
            await self._client.connection_pool.disconnect()
