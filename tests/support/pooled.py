"""Clients whose pooled connections lead to a scripted peer, with tokens, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio

from aioentra_redis import EntraRedis, Event

from .scripted_peer import Peer
from .token_fakes import Clock, Credential, source_of
from .wired import wired

LIFE = 100.0
"""Renewed after 50 s, to be sent by 70 s: with its jitter each AUTH comes between 50 and 60 s."""


class Place:
    """Clients of one pool of wired connections to one scripted peer."""

    def __init__(self, peer: Peer | None = None) -> None:
        self.peer = peer or Peer()
        self._connection_class = wired(self.peer)
        self.clock = Clock()
        self.credential = Credential(self.clock, life=LIFE)
        self.source = source_of(self.credential, self.clock, factory=True)
        self.events: list[Event] = []
        self.clients: list[Any] = []

    def pool(self, kind: Any = redis.asyncio.ConnectionPool, **options: Any) -> Any:
        options = {"protocol": 3, **options}
        return kind(connection_class=self._connection_class, host="localhost", **options)

    def client(self, pool: Any = None, **options: Any) -> EntraRedis:
        options = {"token_source": self.source, "on_event": self.events.append, **options}
        made = EntraRedis(connection_pool=pool or self.pool(), **options)
        made.auto_close_connection_pool = True
        self.clients.append(made)
        return made

    async def leased(self, client: EntraRedis, number: int) -> list[Any]:
        pool: Any = client.connection_pool
        return [await pool.get_connection() for _ in range(number)]

    async def idle(self, client: EntraRedis, number: int) -> list[Any]:
        pool: Any = client.connection_pool
        connections = await self.leased(client, number)
        for connection in connections:
            await pool.release(connection)
        return connections

    def of(self, kind: type[Event]) -> list[Any]:
        return [each for each in self.events if isinstance(each, kind)]

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()
            await client.connection_pool.disconnect()
        await self.source.aclose()
        await asyncio.sleep(0)
