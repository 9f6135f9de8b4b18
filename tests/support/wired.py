"""redis-py connections to a scripted peer without a socket, for what needs virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio

from .scripted_peer import Peer, Wire

__all__ = ["wired"]


def wired(peer: Peer) -> type[redis.asyncio.Connection]:
    """A connection class of redis-py's whose other end is ``peer``."""

    class WiredConnection(redis.asyncio.Connection):
        async def _connect(self) -> None:
            loop = asyncio.get_running_loop()
            peer.dials += 1
            await asyncio.sleep(0)
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            wire: Any = Wire(peer)
            wire.set_protocol(protocol)
            protocol.connection_made(wire)
            self._reader = reader
            self._writer = asyncio.StreamWriter(wire, protocol, reader, loop)

    return WiredConnection
