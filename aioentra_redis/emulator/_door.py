"""Listening sockets on loopback, which can refuse connections for a while."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

__all__ = ["Door", "loopback_sockets", "port_of"]


class Door:
    """One port of loopback, where a protocol of ``factory`` meets whoever comes.

    Over TLS if given a context; ``listening`` is for ``create_server``.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        factory: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext | None = None,
        **listening: Any,
    ) -> None:
        self.port = port_of(sockets)
        self._sockets = sockets
        self._factory = factory
        self._context = context
        self._listening = listening
        self._servers: list[asyncio.Server] = []

    @property
    def open(self) -> bool:
        """Whether connections are accepted."""
        return bool(self._servers)

    async def accept(self) -> None:
        """Accept connections; does nothing where that is so already."""
        if self._servers:
            return
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            server = await loop.create_server(
                self._factory, sock=each, ssl=self._context, **self._listening
            )
            self._servers.append(server)

    def refuse(self) -> None:
        """Refuse connections until the next ``accept``; those there are go on.

        The port stays ours: bound, but not listening, so nobody else gets it meanwhile.
        """
        if not self._servers:
            return
        addresses = [(each.family, each.getsockname()) for each in self._sockets]
        self._stop_listening()
        self._sockets = [_bound(family, address) for family, address in addresses]

    def close(self) -> None:
        """Refuse connections for ever, and let go of the port."""
        self._stop_listening()
        for each in self._sockets:
            each.close()

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
