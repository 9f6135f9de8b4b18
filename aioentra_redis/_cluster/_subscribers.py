"""The subscribers of a cluster: to which node each has its connection, now and after a loss.

What is published reaches every node of a cluster, so a subscriber that has lost its node goes to
another one. Sharded channels belong to the nodes of their slot; see ``_shards``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import redis.asyncio

from .._events import EventHub
from .._multiplex._subscriber_session import Inbox
from .._pubsub import SubscriberPool
from .._redis_py import default_retry
from .._subscriber_connection import SubscriberConnection
from ..errors import ClosedError
from ._nodes import Node
from ._topology import Topology

if TYPE_CHECKING:
    from .._source import TokenSource

__all__ = ["ClusterSubscribers", "Spot"]


class ClusterSubscribers:
    """What the subscribers of one cluster client have in common, and the end of them all."""

    def __init__(self, topology: Topology, source: TokenSource | None, hub: EventHub) -> None:
        self.topology = topology
        self.source = source
        self.hub = hub
        self.retry: Any = default_retry()
        self.closed = False
        self.connections: set[SubscriberConnection] = set()

    def check(self) -> None:
        """Raise ``ClosedError`` after the end."""
        if self.closed:
            raise ClosedError("the client of this subscriber has been closed; that is final")

    def status(self) -> list[Any]:
        """The ledger: one row for each connection."""
        return [row for each in list(self.connections) for row in each.status()]  # any thread

    async def aclose(self) -> None:
        """End every subscription; whoever waits for a message gets an error."""
        self.closed = True
        for connection in list(self.connections):
            await connection.disconnect()


class Spot(SubscriberPool):
    """The pool of one subscriber, as redis-py's ``PubSub`` sees it: that of ``node``.

    With ``moves`` it is another node's after a loss, if need be.
    """

    def __init__(
        self, owner: ClusterSubscribers, node: Node, *, moves: bool, inbox: Inbox | None = None
    ) -> None:
        super().__init__()
        self.node = node
        self._owner = owner
        self._moves = moves
        self._inbox = inbox
        self.connections = owner.connections
        self.source, self.hub, self.retry = owner.source, owner.hub, owner.retry

    @property
    def pool(self) -> redis.asyncio.ConnectionPool:  # type: ignore[override]
        """The pool of the node at which the next connection is made."""
        return self.node.client.connection_pool

    def check(self) -> None:
        """Raise ``ClosedError`` after the end of the client."""
        self._owner.check()

    def _around(self, pool: redis.asyncio.ConnectionPool, leased: Any) -> SubscriberConnection:
        where: Callable[[bool], redis.asyncio.ConnectionPool] | None
        where = self._where if self._moves else None
        return SubscriberConnection(
            pool,
            leased,
            source=self.source,
            hub=self.hub,
            retry=self.retry,
            check=self.check,
            inbox=self._inbox,
            where=where,
        )

    def _where(self, failed: bool) -> redis.asyncio.ConnectionPool:
        self.check()
        topology, node = self._owner.topology, self.node
        known = topology.get_node(node_name=node.name)
        if known is None or failed or (known.was_connected and not known.is_connected):
            topology.want()
            others = [each for each in topology.nodes_cache.values() if each is not known]
            connected = [each for each in others if each.is_connected]
            if connected or others:
                known = random.choice(connected or others)
        self.node = known or topology.any_node()
        return self.pool
