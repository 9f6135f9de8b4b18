"""A network in between: bytes arrive later than they were sent, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["SlowWire"]


class SlowWire:
    """Forwards connections of loopback to a port, each byte ``delay`` seconds later each way."""

    def __init__(self, port: int, *, delay: float) -> None:
        self._target = port
        self._delay = delay
        self._ends: list[_End] = []
        self.port = 0

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[SlowWire]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _End(self, None), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for end in list(self._ends):
                end.cut()
            await server.wait_closed()
            await asyncio.sleep(0)

    def swallow(self, port: int) -> None:
        """From now on lose what the client at that port sends and what is sent to it."""
        for end in self._ends:
            if end.accepted and end.peer_port == port:
                end.swallows = True
                if end.other is not None:
                    end.other.swallows = True


class _End(asyncio.Protocol):
    """One end of one connection, a client's or the server's."""

    def __init__(self, wire: SlowWire, other: _End | None) -> None:
        self._wire = wire
        self.accepted = other is None
        self.other = other
        self.swallows = False
        self.peer_port = 0
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._dialing: asyncio.Task[object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.peer_port = transport.get_extra_info("peername")[1]
        self._wire._ends.append(self)
        if self.accepted:
            self.other = _End(self._wire, self)
            loop = asyncio.get_running_loop()
            other = self.other
            self._dialing = loop.create_task(
                loop.create_connection(lambda: other, "127.0.0.1", self._wire._target)
            )
        for data in self._early:
            transport.write(data)

    def data_received(self, data: bytes) -> None:
        if not self.swallows:
            loop = asyncio.get_running_loop()
            loop.call_later(self._wire._delay, self._forward, data)

    def _forward(self, data: bytes) -> None:
        other = self.other
        assert other is not None
        if other._transport is None:
            other._early.append(data)
        elif not other._transport.is_closing():
            other._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._wire._ends:
            self._wire._ends.remove(self)
        if self.other is not None and not self.swallows:
            asyncio.get_running_loop().call_later(self._wire._delay, self.other.cut)

    def cut(self) -> None:
        if self._dialing is not None and not self._dialing.done():
            self._dialing.cancel()
        if self._transport is not None:
            self._transport.abort()
