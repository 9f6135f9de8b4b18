"""The competitors, each behind the same few methods."""

from __future__ import annotations

import abc
import asyncio
import collections
import contextlib
import inspect
from collections.abc import Awaitable
from typing import Any, ClassVar

import hiredis
from _harness import Endpoint


class Competitor(abc.ABC):
    """A client of one library, opened for one measurement and closed after it."""

    name: ClassVar[str]
    distribution: ClassVar[str]

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this competitor can't take part, or None."""
        return None

    @classmethod
    def takes_part(cls, n: int) -> bool:
        """Whether it is worth measuring with ``n`` coroutines."""
        return True

    @abc.abstractmethod
    async def open(self, endpoint: Endpoint) -> None: ...

    @abc.abstractmethod
    def get(self, key: str) -> Awaitable[Any]: ...

    @abc.abstractmethod
    def set(self, key: str, value: bytes) -> Awaitable[Any]: ...

    @abc.abstractmethod
    async def close(self) -> None: ...


class _RedisShaped(Competitor):
    """What has ``get``, ``set`` and ``aclose`` as redis-py does."""

    client: Any

    # The methods are the client's own, bound in open(): a wrapper would be measured too.
    async def get(self, key: str) -> Any:
        return await self.client.get(key)

    async def set(self, key: str, value: bytes) -> Any:
        return await self.client.set(key, value)

    def bind(self, client: Any) -> None:
        self.client = client
        self.get = client.get  # type: ignore[method-assign]
        self.set = client.set  # type: ignore[method-assign]

    async def close(self) -> None:
        await self.client.aclose()


class RedisPy(_RedisShaped):
    """redis.asyncio as it comes."""

    name = "redis.asyncio"
    distribution = "redis"
    pool_size: ClassVar[int | None] = None

    async def open(self, endpoint: Endpoint) -> None:
        import redis.asyncio

        options: dict[str, Any] = {}
        if endpoint.ca:
            options = {"ssl": True, "ssl_ca_certs": str(endpoint.ca), "ssl_check_hostname": True}
        if self.pool_size:
            options["max_connections"] = self.pool_size
        self.bind(redis.asyncio.Redis(host=endpoint.host, port=endpoint.port, **options))


class RedisPyLargePool(RedisPy):
    """redis.asyncio where the default pool would run out of connections."""

    name = "redis.asyncio, 4000 connections"
    pool_size = 4000

    @classmethod
    def takes_part(cls, n: int) -> bool:
        return n >= 1000


class Ours(_RedisShaped):
    """EntraRedis without a token source: the same connection, minus the tokens."""

    name = "aioentra_redis"
    distribution = "aioentra-redis"

    @classmethod
    def unavailable(cls) -> str | None:
        try:
            from aioentra_redis import EntraRedis
        except ImportError as error:
            return f"it does not import: {error}"
        return None if EntraRedis else "it is empty"

    async def open(self, endpoint: Endpoint) -> None:
        from aioentra_redis import EntraRedis

        options: dict[str, Any] = {}
        if endpoint.ca:
            options = {"ssl": True, "ssl_ca_certs": str(endpoint.ca)}
        self.bind(EntraRedis(host=endpoint.host, port=endpoint.port, **options))


class Coredis(_RedisShaped):
    """coredis, which shares connections among coroutines too."""

    name = "coredis"
    distribution = "coredis"

    @classmethod
    def unavailable(cls) -> str | None:
        try:
            import coredis
        except ImportError as error:
            return f"it does not import: {error}"
        return None if coredis.Redis else "it is empty"

    async def open(self, endpoint: Endpoint) -> None:
        import coredis

        self.stack = contextlib.AsyncExitStack()
        client = coredis.Redis(
            host=endpoint.host, port=endpoint.port, ssl_context=endpoint.ssl_context()
        )
        await self.stack.enter_async_context(client)
        self.bind(client)

    async def close(self) -> None:
        await self.stack.aclose()


class Glide(_RedisShaped):
    """valkey-glide, whose core is in Rust."""

    name = "valkey-glide"
    distribution = "valkey-glide"

    @classmethod
    def unavailable(cls) -> str | None:
        try:
            import glide
        except ImportError as error:
            return f"it does not import: {error}"
        return None if glide.GlideClient else "it is empty"

    async def open(self, endpoint: Endpoint) -> None:
        import glide

        advanced = None
        if endpoint.ca:
            tls = glide.TlsAdvancedConfiguration(root_pem_cacerts=endpoint.ca.read_bytes())
            advanced = glide.AdvancedGlideClientConfiguration(tls_config=tls)
        configuration = glide.GlideClientConfiguration(
            [glide.NodeAddress(endpoint.host, endpoint.port)],
            use_tls=endpoint.ca is not None,
            request_timeout=10_000,
            advanced_config=advanced,
        )
        self.bind(await glide.GlideClient.create(configuration))

    async def close(self) -> None:
        closing = self.client.close()
        if inspect.isawaitable(closing):
            await closing


class Floor(Competitor):
    """asyncio.Protocol and hiredis and nothing else: what no client can beat on this machine."""

    name = "floor: asyncio.Protocol and hiredis"
    distribution = "hiredis"

    async def open(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        context = endpoint.ssl_context()
        _, self.protocol = await loop.create_connection(
            lambda: _FloorProtocol(loop), endpoint.host, endpoint.port, ssl=context
        )

    def get(self, key: str) -> Any:
        return self.protocol.send(("GET", key))

    def set(self, key: str, value: bytes) -> Any:
        return self.protocol.send(("SET", key, value))

    async def close(self) -> None:
        self.protocol.transport.close()
        await self.protocol.closed


class _FloorProtocol(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = loop.create_future()
        self.waiters: collections.deque[asyncio.Future[Any]] = collections.deque()
        self.unwritten: list[bytes] = []
        self.reader = hiredis.Reader(notEnoughData=self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)

    def send(self, words: tuple[Any, ...]) -> asyncio.Future[Any]:
        waiter = self.loop.create_future()
        self.waiters.append(waiter)
        if not self.unwritten:
            self.loop.call_soon(self.flush)
        self.unwritten.append(hiredis.pack_command(words))
        return waiter

    def flush(self) -> None:
        self.transport.write(b"".join(self.unwritten))
        self.unwritten.clear()

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not self:
            self.waiters.popleft().set_result(reply)


COMPETITORS: dict[str, type[Competitor]] = {
    "redis-py": RedisPy,
    "redis-py-4000": RedisPyLargePool,
    "coredis": Coredis,
    "glide": Glide,
    "ours": Ours,
    "floor": Floor,
}
"""By the name that ``--only`` takes, in the order of the tables."""
