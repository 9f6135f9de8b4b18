"""Listening sockets that refuse connections for a while, and are then back at the same port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from aioentra_redis.emulator._door import loopback_sockets, port_of
from aioentra_redis.emulator._site import Site


async def answer(_request: web.Request) -> web.Response:
    return web.Response(text="here")


@pytest.fixture
async def served() -> AsyncIterator[tuple[Site, list[tuple[str, int]]]]:
    application = web.Application()
    application.router.add_get("/", answer)
    sockets = loopback_sockets(0)
    addresses = [each.getsockname()[:2] for each in sockets]
    assert {port for _, port in addresses} == {port_of(sockets)}
    site = Site(application, sockets)
    await site.start()
    yield site, addresses
    await site.aclose()


async def ask(address: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    with contextlib.closing(writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return await reader.read()


async def test_refusing_and_accepting_again(served: tuple[Site, list[tuple[str, int]]]):
    site, addresses = served
    for _ in range(2):
        for address in addresses:
            assert (await ask(address)).endswith(b"here")
        await site.refuse()
        await site.refuse()
        for address in addresses:
            with pytest.raises(ConnectionRefusedError):
                await ask(address)
        await site.start()
        await site.start()


async def test_refusing_ends_the_connections_there_are(served):
    site, addresses = served
    reader, writer = await asyncio.open_connection(*addresses[0])
    with contextlib.closing(writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await site.refuse()
        rest = await reader.read()
        assert rest.endswith(b"here")


async def test_nobody_else_gets_the_port_meanwhile(served):
    site, addresses = served
    await site.refuse()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(addresses[0])
