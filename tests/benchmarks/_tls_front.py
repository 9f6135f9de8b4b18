"""A TLS terminator in a process of its own: ``_tls_front.py PORT BACKEND_PORT PEM_FILE``."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from typing import cast


class Half(asyncio.Protocol):
    """One side of a relayed connection; what it receives is written to the other side."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: Half | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.peer is None or self.peer.transport is None:
            self.early.append(data)
        else:
            self.peer.transport.write(data)

    def join(self, peer: Half) -> None:
        self.peer, peer.peer = peer, self
        for side in (self, peer):
            for data in side.early:
                side.data_received(data)
            side.early.clear()

    def pause_writing(self) -> None:
        if self.peer and self.peer.transport:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer and self.peer.transport:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.peer and self.peer.transport:
            self.peer.transport.close()


class Front(Half):
    """The client's side; it dials the backend when the handshake is done."""

    def __init__(self, backend: int) -> None:
        super().__init__()
        self.backend = backend
        self.dialing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.dialing = asyncio.get_running_loop().create_task(self.dial())

    async def dial(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, half = await loop.create_connection(Half, "127.0.0.1", self.backend)
        except OSError:
            if self.transport:
                self.transport.abort()
            return
        self.join(half)
        if self.transport is None and half.transport:
            half.transport.close()


async def main(port: int, backend: int, pem: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: Front(backend), "127.0.0.1", port, ssl=context, backlog=4096
    )
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
