"""A server that should not get a token: it listens on loopback, takes what comes, and keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import trustme

__all__ = ["Eavesdropper", "certified", "without_certificate"]


class Eavesdropper:
    """What it heard, in clear; it answers every command with an error, as a server might."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.port = 0
        self.dials = 0

    @contextlib.asynccontextmanager
    async def listening(
        self, context: ssl.SSLContext | None, host: str = "127.0.0.1", port: int = 0
    ) -> AsyncIterator[Eavesdropper]:
        """Listen on loopback, over TLS with this context, or in clear with None."""
        transports: set[Any] = set()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            transports.add(writer.transport)
            self.dials += 1
            try:
                while more := await reader.read(1 << 16):
                    self.heard += more
                    writer.write(b"-ERR no\r\n")
            except OSError:
                pass
            finally:
                transports.discard(writer.transport)
                writer.transport.abort()

        server = await asyncio.start_server(take, host, port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for each in list(transports):
                each.abort()
            await asyncio.sleep(0)


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """A server's context with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def without_certificate() -> ssl.SSLContext:
    """A server's context that needs no certificate: anonymous Diffie-Hellman."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context
