"""An application's listening sockets, which can refuse connections for a while."""

from __future__ import annotations

import socket
import ssl

from aiohttp import web

from ._door import Door

__all__ = ["Site"]


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
        self._door: Door | None = None

    async def start(self) -> None:
        """Accept connections; does nothing where that is so already."""
        if self._door is None:
            await self._runner.setup()
            factory = self._runner.server
            assert factory is not None
            self._door = Door(self._sockets, factory, self._context)
        await self._door.accept()

    async def refuse(self) -> None:
        """End all connections and refuse new ones until the next ``start``."""
        if self._door is None or not self._door.open:
            return
        self._door.refuse()
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            connection.force_close()

    async def aclose(self) -> None:
        """End all connections and close the sockets."""
        if self._door is not None:
            self._door.close()
        else:
            for each in self._sockets:
                each.close()
        await self._runner.cleanup()
