"""An application's listening sockets, which can refuse connections for a while."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from aiohttp import web

__all__ = ["Site", "loopback_sockets", "port_of"]


class Site:
    """Serves an aiohttp application on sockets of loopback, over TLS if given a context."""

    def __init__(
        self,
        application: web.Application,
        sockets: list[socket.socket],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        self._sockets = sockets
        self._context = context
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Accept connections; does nothing where that is so already."""
        if self._runner.server is None:
            await self._runner.setup()
        if not self._servers:
            loop = asyncio.get_running_loop()
            factory = self._runner.server
            assert factory is not None
            for each in self._sockets:
                server = await loop.create_server(factory, sock=each, ssl=self._context)
                self._servers.append(server)

    async def refuse(self) -> None:
        """End all connections and refuse new ones until the next ``start``.

        The ports stay ours: bound, but not listening, so nobody else gets them meanwhile.
        """
        if not self._servers:
            return
        addresses = [(each.family, each.getsockname()) for each in self._sockets]
        self._stop_listening()
        self._sockets = [_bound(family, address) for family, address in addresses]
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            connection.force_close()

    async def aclose(self) -> None:
        """End all connections and close the sockets."""
        self._stop_listening()
        for each in self._sockets:
            each.close()
        await self._runner.cleanup()

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()


def _bound(family: socket.AddressFamily, address: object) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.bind(address)  # type: ignore[arg-type]
    return bound


def loopback_sockets(port: int, *, v6: bool = True) -> list[socket.socket]:
    """Sockets bound to one port of 127.0.0.1 and, where there is IPv6, of ::1.

    ``localhost`` may mean either. Never anything but loopback: this is for development.
    """
    first = socket.create_server(("127.0.0.1", port))
    sockets = [first]
    if v6 and socket.has_ipv6:
        with contextlib.suppress(OSError):  # no IPv6 here, or the port is taken there
            address = ("::1", first.getsockname()[1])
            sockets.append(socket.create_server(address, family=socket.AF_INET6))
    return sockets


def port_of(sockets: list[socket.socket]) -> int:
    """The port that all of ``sockets`` are bound to."""
    port: int = sockets[0].getsockname()[1]
    return port
