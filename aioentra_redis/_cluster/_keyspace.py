"""Keyspace notifications of a cluster: redis-py's, on connections that stay signed in.

Each node tells only of its own keys, so redis-py keeps a subscriber at each primary.
"""

from __future__ import annotations

from typing import Any

import redis

from .._pubsub import PubSub
from .._redis_py import CAPABILITIES, ClusterKeyspaceBase
from ..errors import ConfigurationError
from ._commands import ClusterCommands
from ._subscribers import ClusterSubscribers, Spot

__all__ = ["EntraClusterKeyspaceNotifications"]


class EntraClusterKeyspaceNotifications(ClusterKeyspaceBase):
    """redis-py's ``AsyncClusterKeyspaceNotifications``, with our subscribers."""

    def __init__(
        self, cluster: ClusterCommands, subscribers: ClusterSubscribers, **options: Any
    ) -> None:
        capability = CAPABILITIES["keyspace_notifications"]
        if not capability.present:
            raise ConfigurationError(
                f"{capability.what} needs redis-py {capability.since}; this is "
                f"{redis.__version__}: upgrade it, or use pubsub() on a node"
            )
        super().__init__(cluster, **options)
        self._subscribers = subscribers

    async def _ensure_node_pubsub(self, node: Any) -> Any:
        """What redis-py calls for the subscriber at a node, made when it is needed."""
        found: Any = self._node_pubsubs.get(node.name)
        if found is None:
            spot = Spot(self._subscribers, node, moves=False)
            found = self._node_pubsubs[node.name] = PubSub(
                spot, encoder=self.cluster.encoder, ignore_subscribe_messages=False
            )
        return found
