"""Clients over a scripted peer, without sockets: for tests in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

from support.scripted_peer import Peer

from aioentra_redis import EntraRedis
from aioentra_redis._redis_py import packer


class Place:
    """Clients of one scripted peer; their dials take no time."""

    def __init__(self, peer: Peer | None = None) -> None:
        self.peer = peer or Peer()
        self.dials = 0
        self.clients: list[EntraRedis] = []
        self.encoding: str | None = None
        self.on_dial: Any = lambda dialed: None

    async def dial(self, pool: Any) -> Any:
        self.dials += 1
        await asyncio.sleep(0)
        connection = pool.connection_class(**pool.connection_kwargs)
        dialed = self.peer.dialed(pack=packer(connection), encoding=self.encoding)
        self.on_dial(dialed)
        return dialed

    def client(self, **options: Any) -> EntraRedis:
        made = EntraRedis(host="peer", **options)
        self.clients.append(made)
        return made

    async def aclose(self) -> None:
        for client in self.clients:
            client._multiplexed.close_timeout = 0.01
            await client.aclose()
