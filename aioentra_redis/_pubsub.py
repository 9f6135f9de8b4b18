"""Publish/subscribe that a rotation of tokens does not disturb.

redis-py's ``PubSub`` stays what it is. It gets its connection from a ``SubscriberPool``, which
leases one from redis-py's pool (so ``max_connections`` counts it) and puts a
``SubscriberConnection`` around it, which stays signed in.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis.asyncio.client import PubSub as RedisPubSub

from ._dedicated import release_from_renewal
from ._events import ConnectionStatus, EventHub
from ._redis_py import attached, default_retry
from ._subscriber_connection import SubscriberConnection
from .errors import ClosedError

if TYPE_CHECKING:
    from ._source import TokenSource

__all__ = ["PubSub", "SubscriberPool"]


class PubSub(RedisPubSub):
    """redis-py's ``PubSub`` on a connection that stays signed in.

    What a token's rotation means for messages: with RESP3, nothing. With RESP2 each message of
    what is subscribed to throughout arrives once and in order where both connections lead to one
    server (no proxies, no cluster) and the user may publish on and subscribe to channels that
    begin with ``__aioentra_redis:handover:``; else a message may arrive twice, and a
    ``SubscriptionHandedOver`` event with a ``doubt`` says so. Subscribers of other libraries to a
    pattern that matches those channels see an empty message for each handover.

    After a lost connection it subscribes again, as redis-py does; what was published meanwhile is
    missed, and a ``MessagesMayBeMissing`` event says so.
    """

    connection_pool: Any
    connection: Any

    def __init__(self, pool: SubscriberPool, **kwargs: Any) -> None:
        super().__init__(pool, **kwargs)  # type: ignore[arg-type]

    def __del__(self) -> None:
        connection = getattr(self, "connection", None)
        if connection is not None:  # dropped without aclose()
            super().__del__()  # type: ignore[no-untyped-call]
            connection.abandon()
            self.connection_pool.connections.discard(connection)


class SubscriberPool:
    """The pool of a client as its ``PubSub`` objects see it; the rest of it is redis-py's."""

    pool: redis.asyncio.ConnectionPool
    source: TokenSource | None
    hub: EventHub
    retry: Any

    def __init__(self) -> None:
        self.closed = False
        self.connections: set[SubscriberConnection] = set()

    def serve(
        self, pool: redis.asyncio.ConnectionPool, source: TokenSource, hub: EventHub, retry: Any
    ) -> None:
        """Lease connections from ``pool``, from now on.

        ``retry`` is the user's, or None for what redis-py's own client does.
        """
        self.pool, self.source, self.hub = pool, source, hub
        self.retry = default_retry() if retry is None else retry
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        if name == "pool":
            raise AttributeError("no subscriber has been asked for")
        return getattr(self.pool, name)

    def check(self) -> None:
        """Raise ``ClosedError``, ``WrongLoopError`` or ``ForkedError`` where they are due."""
        if self.closed:
            raise ClosedError("the client of this subscriber has been closed; that is final")
        if (multiplexed := attached(self.pool)) is not None:
            multiplexed.check()

    async def get_connection(self, *_: Any, **__: Any) -> SubscriberConnection:
        """Lease a connection; raises what the pool raises, MaxConnectionsError among it."""
        self.check()
        pool = self.pool
        leased = await pool.get_connection()  # type: ignore[no-untyped-call]
        connection = self._around(pool, leased)
        try:
            await release_from_renewal(leased)  # it has a task of its own for that
            await connection.start()
        except BaseException:
            await self.release(connection)
            raise
        self.connections.add(connection)
        return connection

    def _around(self, pool: redis.asyncio.ConnectionPool, leased: Any) -> SubscriberConnection:
        return SubscriberConnection(
            pool, leased, source=self.source, hub=self.hub, retry=self.retry, check=self.check
        )

    async def release(self, connection: SubscriberConnection) -> None:
        """Give the lease back, disconnected. Cancelling it does not stop it."""
        self.connections.discard(connection)
        await asyncio.shield(connection.give_back())

    def status(self) -> list[ConnectionStatus]:
        """The ledger: one row for each connection."""
        return [row for each in list(self.connections) for row in each.status()]  # any thread

    async def aclose(self) -> None:
        """End every subscription, finally; whoever waits for a message gets an error."""
        self.closed = True
        for connection in list(self.connections):
            await connection.disconnect()
