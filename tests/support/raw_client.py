"""A client without opinions: it writes what it is told and reads one reply at a time."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from types import TracebackType
from typing import Self

from aioentra_redis.emulator import Emulator, Node

from .resp import Reply, pack, parse

DEADLINE = 20.0
"""Seconds for a reply, of which one is of 51 MB; the machine may be busy."""


class RawClient:
    """One connection to the emulator's Redis; ``async with RawClient(emulator) as client``.

    ``node`` is one of a cluster's, to be dialled at its own address.
    """

    def __init__(self, emulator: Emulator, *, tls: bool = False, node: Node | None = None) -> None:
        url = emulator.url if tls else emulator.plaintext_url
        self._name, _, port = url.partition("://")[2].partition(":")
        self._host, self._port = (self._name, int(port)) if node is None else (node.host, node.port)
        self._context = ssl.create_default_context(cafile=emulator.ca_file) if tls else None
        self._buffer = bytearray()

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            self._host,
            self._port,
            ssl=self._context,
            server_hostname=self._name if self._context is not None else None,
            limit=1 << 22,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def reply(self) -> Reply:
        """The next reply; EOFError when the connection has ended, ConnectionError if cut."""
        async with asyncio.timeout(DEADLINE):
            while (found := parse(self._buffer)) is None:
                more = await self._reader.read(1 << 20)
                if not more:
                    raise EOFError
                self._buffer += more
        reply, end = found
        del self._buffer[:end]
        return reply

    async def call(self, *arguments: bytes | str) -> Reply:
        self.send(pack(*arguments))
        return await self.reply()

    async def until_end(self) -> list[Reply]:
        """Every reply up to the end of the connection."""
        replies: list[Reply] = []
        while True:
            try:
                replies.append(await self.reply())
            except (EOFError, ConnectionError):
                return replies

    async def raw_until_error(self) -> tuple[bytes, Exception | None]:
        """Every byte up to the end of the connection, and how it ended: None for a goodbye."""
        got = bytes(self._buffer)
        try:
            async with asyncio.timeout(DEADLINE):
                while more := await self._reader.read(1):
                    got += more
        except ConnectionError as error:
            return got, error
        return got, None

    async def ended(self) -> bool:
        """Wait for the other side to close; False if it sends something instead."""
        try:
            await self.reply()
        except (EOFError, ConnectionError):
            return True
        return False
