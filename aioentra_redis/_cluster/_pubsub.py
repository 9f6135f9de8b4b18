"""Publish/subscribe in a cluster, on connections that stay signed in and follow its changes."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from typing import Any

from redis import exceptions as redis_exceptions
from redis.asyncio.client import PubSub as RedisPubSub

from .._redis_py import ClusterPubSubBase
from ._commands import ClusterCommands
from ._nodes import Node
from ._shards import Shards
from ._subscribers import ClusterSubscribers, Spot

__all__ = ["EntraClusterPubSub"]


class EntraClusterPubSub(ClusterPubSubBase):
    """redis-py's ``ClusterPubSub`` on connections that stay signed in.

    Channels and patterns are subscribed to at one node, since all nodes tell each other what is
    published: that of the first channel's slot, unless ``node=``, or ``host=`` and ``port=``, names
    one. When it is lost or leaves, another one takes its place. Sharded channels are subscribed to
    at a node of their slot and follow it, whether the slot moves or its primary changes.

    What a rotation of tokens means for messages is as for :class:`PubSub`. What was published
    between the end of a subscription and the next is missed; a ``MessagesMayBeMissing`` event says
    so.
    """

    connection_pool: Any
    connection: Any

    def __init__(
        self,
        cluster: ClusterCommands,
        subscribers: ClusterSubscribers,
        node: Any = None,
        host: str | None = None,
        port: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.cluster = cluster
        self._subscribers = subscribers
        self.node = named = self._named(node, host, port)
        pool = None if named is None else Spot(subscribers, named, moves=True)
        kwargs.setdefault("encoder", cluster.encoder)
        RedisPubSub.__init__(self, pool, **kwargs)  # type: ignore[arg-type]
        self.shard_channels: dict[Any, Any] = {}
        self.pending_unsubscribe_shard_channels: set[Any] = set()
        self._shards: Shards | None = None
        self._begun: deque[Any] = deque()
        self._ended: deque[Any] = deque()

    def _named(self, node: Any, host: str | None, port: int | None) -> Node | None:
        if node is not None:
            host, port = node.host, node.port
        elif host is None and port is None:
            return None
        elif host is None or port is None:
            raise redis_exceptions.DataError("Specify both host and port")
        known = self.cluster.nodes_manager.get_node(host=host, port=port)
        if known is None:
            raise redis_exceptions.RedisClusterException(
                f"Node {host}:{port} doesn't exist in the cluster"
            )
        return known

    def get_pubsub_node(self) -> Any:
        """The node of the channels and patterns, None before the first of them."""
        return self.node if self.connection_pool is None else self.connection_pool.node

    def get_redis_connection(self) -> Any:
        """The connection of the channels and patterns, None before the first of them."""
        return self.connection

    async def execute_command(self, *args: Any, **_: Any) -> Any:
        """Send a command on the connection of the channels and patterns."""
        if self.connection_pool is None:
            await self._ready()
            topology = self.cluster.nodes_manager
            if len(args) > 1:
                slot = self.cluster.keyslot(args[1])
                self.node = topology.get_node_from_slot(
                    slot, self.cluster.read_from_replicas, self.cluster.load_balancing_strategy
                )
            else:
                self.node = topology.any_node()
            self.connection_pool = Spot(self._subscribers, self.node, moves=True)
        return await RedisPubSub.execute_command(self, *args)

    async def _ready(self) -> None:
        self.cluster._check_open()
        if self.cluster._initialize:
            await self.cluster.initialize()

    @property
    def subscribed(self) -> bool:
        """Whether there are subscriptions, of whatever kind."""
        return bool(self.channels or self.patterns or self.shard_channels)

    # -- sharded channels ------------------------------------------------------------------------

    async def ssubscribe(self, *args: Any, **kwargs: Any) -> None:
        """Subscribe to sharded channels; returns when nodes of their slots have confirmed it.

        Channels by keyword, and redis-py's ``Subscription``, come with a handler for messages.
        Raises a server's refusal, or after ``recovery_timeout`` what kept it from subscribing.
        """
        await self._ready()
        if self._shards is None:
            self._shards = Shards(self._subscribers, patience=self.cluster._recovery_timeout)
        wanted = {
            getattr(each, "name", each): getattr(each, "handler", None) for each in _flat(args)
        }
        for name, handler in {**wanted, **kwargs}.items():
            channel = self._normal(name)
            known = channel in self.shard_channels
            self.shard_channels[channel] = handler
            self.pending_unsubscribe_shard_channels.discard(channel)
            try:
                await self._shards.subscribe(self.encoder.encode(name))
            except Exception:
                if not known:
                    self.shard_channels.pop(channel, None)
                raise
            self._begun.append(["ssubscribe", channel, len(self.shard_channels)])

    async def sunsubscribe(self, *args: Any, **_: Any) -> None:
        """Unsubscribe from sharded channels, without any named from all."""
        for name in _flat(args) if args else list(self.shard_channels):
            channel = self._normal(name)
            if self._shards is not None:
                await self._shards.unsubscribe(self.encoder.encode(name))
            if channel in self.shard_channels:
                self.pending_unsubscribe_shard_channels.add(channel)
            left = len(self.shard_channels) - len(self.pending_unsubscribe_shard_channels)
            self._ended.append(["sunsubscribe", channel, left])

    def _normal(self, name: Any) -> Any:
        """A channel's name as messages bring it."""
        encoder = self.encoder
        return encoder.decode(encoder.encode(name))

    async def get_sharded_message(
        self,
        ignore_subscribe_messages: bool = False,
        timeout: float | None = 0.0,
        target_node: Any = None,
    ) -> dict[str, Any] | None:
        """The next message of a sharded channel, None if there is none within ``timeout`` seconds.

        None waits for ever. What a handler gets is None here, too. ``target_node`` names the only
        node to look at. After ``recovery_timeout`` without a node it raises why a channel has none.
        Cancelling it loses no message.
        """
        if self._begun:
            return await self._handled(self._begun.popleft(), ignore_subscribe_messages)
        loop = asyncio.get_running_loop()
        if timeout is not None and timeout <= 0:
            await asyncio.sleep(0)  # what has come to the socket may come to us
        deadline = None if timeout is None else loop.time() + timeout
        if self._ended:
            deadline = loop.time()
        item = None
        if self._shards is not None:
            at = None if target_node is None else target_node.name
            item = await self._shards.next(deadline, at)
        elif not self._ended and timeout is not None:
            await asyncio.sleep(timeout)
        if item is None and self._ended:
            item = self._ended.popleft()
        return None if item is None else await self._handled(item, ignore_subscribe_messages)

    async def _handled(self, item: Any, ignore: bool) -> dict[str, Any] | None:
        kind, channel, data = item
        kind = kind.decode() if isinstance(kind, bytes) else kind
        message = {"type": kind, "pattern": None, "channel": channel, "data": data}
        if kind == "smessage":
            handler = self.shard_channels.get(channel)
            if handler is None:
                return message
            result = handler(message)
            if inspect.isawaitable(result):
                await result
            return None
        if kind == "sunsubscribe" and channel in self.pending_unsubscribe_shard_channels:
            self.pending_unsubscribe_shard_channels.discard(channel)
            self.shard_channels.pop(channel, None)
        return None if ignore or self.ignore_subscribe_messages else message

    # -- the end ---------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Unsubscribe from everything; it can be used again."""
        shards, self._shards = self._shards, None
        self._begun.clear()
        self._ended.clear()
        try:
            if shards is not None:
                await shards.aclose()
        finally:
            await RedisPubSub.aclose(self)  # type: ignore[no-untyped-call]
            self.shard_channels = {}
            self.pending_unsubscribe_shard_channels = set()

    def __del__(self) -> None:
        shards = getattr(self, "_shards", None)
        if shards is not None:
            shards.abandon()
        connection = getattr(self, "connection", None)
        if connection is not None:  # dropped without aclose()
            RedisPubSub.__del__(self)  # type: ignore[no-untyped-call]
            connection.abandon()
            self.connection_pool.connections.discard(connection)


def _flat(args: tuple[Any, ...]) -> list[Any]:
    """The names that redis-py's methods take: one by one, or the first as a list."""
    if args and isinstance(args[0], (list, tuple, set, frozenset)):
        return [*args[0], *args[1:]]
    return list(args)
