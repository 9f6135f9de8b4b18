"""Clients in each way they come, ours and redis-py's own with ``entra_kwargs``, and their AUTHs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aioentra_redis import EntraRedis, TokenSource, connect, entra_kwargs
from aioentra_redis.emulator import Emulator, Log

from .signing_in import minted_source


def no_retries() -> dict[str, Any]:
    """Nothing is to succeed only because redis-py tries again."""
    return {"retry": Retry(NoBackoff(), 0)}


def tls(emulator: Emulator) -> dict[str, Any]:
    return {"ssl_ca_certs": emulator.ca_file}


def client_for(emulator: Emulator, source: TokenSource, **options: Any) -> Redis:
    options = {**tls(emulator), **no_retries(), **options}
    return Redis.from_url(emulator.url, **options, **entra_kwargs(source))


WAYS = ("connect", "entra_kwargs")
"""How the fault suite signs its clients in: with ours, and with redis-py's own."""


@contextlib.asynccontextmanager
async def client_by(
    way: str, emulator: Emulator, source: TokenSource, *, url: str | None = None, **options: Any
) -> AsyncIterator[Any]:
    """A client of ``connect()``, or a plain one, of the emulator or of what ``url`` leads to.

    ``pool`` is how many connections its pool may hold.
    """
    pool = options.pop("pool", None)
    url = url or emulator.url
    options = {**(tls(emulator) if url.startswith("rediss:") else {}), **options}
    if way == "connect":
        limit = {} if pool is None else {"max_dedicated_connections": pool}
        connecting = connect(url, token_source=source, cluster=False, **limit, **options)
    else:
        limit = {} if pool is None else {"max_connections": pool}
        options = {**no_retries(), "socket_timeout": 20, **limit, **options}
        connecting = Redis.from_url(
            url, socket_connect_timeout=20, **options, **entra_kwargs(source)
        )
    async with connecting as client:
        yield client


@contextlib.asynccontextmanager
async def every_way(
    emulator: Emulator, source: TokenSource, protocol: int, *, ours: bool = False
) -> AsyncIterator[dict[str, Any]]:
    """A client made in each way that there is, each on a database of its own."""
    port = urlsplit(emulator.url).port
    databases = itertools.count()
    kind: Any = EntraRedis if ours else Redis
    signs_in: dict[str, Any] = {"token_source": source} if ours else {}
    kwargs = {} if ours else entra_kwargs(source)

    def options() -> dict[str, Any]:
        patience = {"socket_timeout": 20, "socket_connect_timeout": 20}  # as busy as the machine is
        common = {**tls(emulator), **no_retries(), **patience, **kwargs}
        return {**common, "protocol": protocol, "db": next(databases)}

    direct = {"connection_class": SSLConnection, "host": "localhost", "port": port}
    pools = {
        "connection_pool=": ConnectionPool(**direct, **options()),
        "from_pool": ConnectionPool.from_url(emulator.url, **options()),
        "blocking pool": BlockingConnectionPool(max_connections=3, **direct, **options()),
        "blocking from_url": BlockingConnectionPool.from_url(
            emulator.url, max_connections=3, **options()
        ),
    }
    clients = {
        "Redis()": kind(host="localhost", port=port, ssl=True, **options(), **signs_in),
        "from_url": kind.from_url(emulator.url, **options(), **signs_in),
        "single": kind.from_url(
            emulator.url, single_connection_client=True, **options(), **signs_in
        ),
        **{
            name: kind.from_pool(pool, **signs_in)
            if name == "from_pool"
            else kind(connection_pool=pool, **signs_in)
            for name, pool in pools.items()
        },
    }
    try:
        yield clients
    finally:
        for client in clients.values():
            await client.aclose()
        for pool in pools.values():
            await pool.disconnect()


def renewals(log: Log) -> dict[int, int]:
    """How often each connection was re-authenticated."""
    counts: dict[int, int] = {}
    for each in log.auths:
        counts[each.connection] = counts.get(each.connection, -1) + 1
    return counts


def patient_source(emulator: Emulator, **options: Any) -> TokenSource:
    """Newer tokens every second, and time until one is missed."""
    return minted_source(emulator, believed=10, refresh_in=1, **options)


async def until_refused(emulator: Emulator, count: int, *, within: float = 10) -> None:
    async with asyncio.timeout(within):
        while sum(not each.accepted for each in (await emulator.log()).auths) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_renewed(emulator: Emulator, count: int, *, within: float = 10) -> None:
    async with asyncio.timeout(within):
        while len((await emulator.log()).auths) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
