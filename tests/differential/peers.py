"""The servers on both sides, looking into them, and tokens that never stop rotating."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import redis.asyncio
from support.free_tokens import OID, free_source
from support.server_cluster import ServerCluster
from support.signing_in import minted_source

from aioentra_redis import EntraRedis, EntraRedisCluster, TokenSource
from aioentra_redis.emulator import Emulator
from aioentra_redis.emulator._server import find_server

__all__ = [
    "VARIANTS",
    "Admin",
    "EmulatorPeer",
    "Oracle",
    "Peer",
    "Valkey",
    "ValkeyCluster",
    "Variant",
    "valkey",
    "valkey_cluster",
]

# -- clients -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variant:
    """One kind of client: what redis-py is told too, and whether a token source signs in."""

    options: dict[str, Any]
    tokens: bool


VARIANTS: dict[str, Variant] = {
    f"RESP{protocol} {'str' if decode else 'bytes'}{' tokens' if tokens else ''}": Variant(
        {"protocol": protocol, "decode_responses": decode}, tokens
    )
    for protocol in (2, 3)
    for decode in (False, True)
    for tokens in (False, True)
} | {
    "latin-1 tokens": Variant(
        {"protocol": 3, "decode_responses": True, "encoding": "latin-1"}, tokens=True
    ),
    "single replacing tokens": Variant(
        {"protocol": 3, "decode_responses": True, "encoding_errors": "replace"}, tokens=True
    ),
}


class Peer(Protocol):
    """A server that our client is tried on."""

    name: str
    variants: tuple[str, ...]
    is_cluster: bool

    def source(self, believed: float, **options: Any) -> TokenSource:
        """A token source that renews after half of ``believed`` seconds."""

    def ours(
        self, client_class: type[Any] | None, source: TokenSource | None, **options: Any
    ) -> Any:
        """A client of ours, or of a broken class."""

    async def admin(self) -> Admin:
        """What looks into the server."""


# -- Valkey --------------------------------------------------------------------------------------


class Valkey:
    """A server that lets everybody in, and takes any token from one user; the fastest peer."""

    name = "Valkey"
    is_cluster = False
    variants = tuple(VARIANTS)

    def __init__(self, port: int) -> None:
        self.port = port

    def plain(self, **options: Any) -> redis.asyncio.Redis:
        """redis-py's client."""
        return redis.asyncio.Redis(host="127.0.0.1", port=self.port, **options)

    def source(self, believed: float, **options: Any) -> TokenSource:
        return free_source(believed, **options)

    def ours(
        self, client_class: type[Any] | None, source: TokenSource | None, **options: Any
    ) -> Any:
        return (client_class or EntraRedis)(
            host="127.0.0.1", port=self.port, token_source=source, **options
        )

    async def admin(self) -> Admin:
        return Admin(self.plain(protocol=2))


@contextlib.contextmanager
def valkey() -> Iterator[Valkey]:
    """Run a server without persistence."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        words = (
            *("--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""),
            *("--user", OID, "on", "nopass", "+@all", "~*", "&*"),
            *("--loglevel", "warning"),
        )
        command = [str(find_server(None)), *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_for(port, process)
            yield Valkey(port)
        finally:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} does not listen on port {port}") from None
            time.sleep(0.01)
        else:
            return


# -- the emulator --------------------------------------------------------------------------------


class EmulatorPeer:
    """The emulator: TLS, and tokens that are checked and end."""

    name = "emulator"
    is_cluster = False
    variants = tuple(name for name, variant in VARIANTS.items() if variant.tokens)

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def source(self, believed: float, **options: Any) -> TokenSource:
        return minted_source(self._emulator, believed=believed, **options)

    def ours(
        self, client_class: type[Any] | None, source: TokenSource | None, **options: Any
    ) -> Any:
        return (client_class or EntraRedis).from_url(
            self._emulator.url,
            token_source=source,
            ssl_ca_certs=self._emulator.ca_file,
            **options,
        )

    async def admin(self) -> Admin:
        return Admin(
            redis.asyncio.Redis.from_url(
                self._emulator.url,
                username=self._emulator.service_principal.object_id,
                password=await self._emulator.issue_token(lifetime=36_000),
                ssl_ca_certs=self._emulator.ca_file,
                protocol=2,
            )
        )


# -- a cluster -----------------------------------------------------------------------------------


class ValkeyCluster:
    """Three primaries that let everybody in, as ``Valkey`` does."""

    name = "cluster"
    is_cluster = True
    # Those that can decode anything: redis-py's pipelines end with ConnectionError otherwise.
    variants = tuple(name for name in VARIANTS if "str" not in name)

    def __init__(self, cluster: ServerCluster) -> None:
        self._cluster = cluster

    def plain(self, **options: Any) -> redis.asyncio.RedisCluster:
        """redis-py's client."""
        return redis.asyncio.RedisCluster(*self._cluster.startup, **options)

    def source(self, believed: float, **options: Any) -> TokenSource:
        return free_source(believed, **options)

    def ours(
        self, client_class: type[Any] | None, source: TokenSource | None, **options: Any
    ) -> EntraRedisCluster:
        made: EntraRedisCluster = (client_class or EntraRedisCluster)(
            *self._cluster.startup, token_source=source, **options
        )
        return made

    async def admin(self) -> Admin:
        nodes = await self._cluster.primaries()
        return Admin(*(redis.asyncio.Redis(port=node.port, protocol=2) for node in nodes))


Oracle = Valkey | ValkeyCluster
"""Where redis-py's client runs."""


@contextlib.contextmanager
def valkey_cluster() -> Iterator[ValkeyCluster]:
    """Run a cluster without replicas or persistence."""
    cluster = ServerCluster(3, 0, users=[OID])
    try:
        asyncio.run(cluster.start())
        yield ValkeyCluster(cluster)
    finally:
        cluster.stop()


# -- looking in ----------------------------------------------------------------------------------

READS = {
    b"string": lambda pipe, key: pipe.get(key),
    b"hash": lambda pipe, key: pipe.hgetall(key),
    b"list": lambda pipe, key: pipe.lrange(key, 0, -1),
    b"set": lambda pipe, key: pipe.smembers(key),
    b"zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
    b"stream": lambda pipe, key: pipe.xrange(key),
}


class Admin:
    """Looks into a server, or into all primaries of a cluster, with plain clients."""

    def __init__(self, *nodes: redis.asyncio.Redis) -> None:
        self._nodes = nodes

    async def empty(self) -> None:
        """Remove all keys and scripts."""
        for node in self._nodes:
            await node.flushall()
            await node.script_flush()  # or one server would know a script that the other doesn't

    async def contents(self) -> dict[str, dict[str, Any]]:
        """What is in each key, of all nodes together; see ``contents``."""
        found: dict[str, dict[str, Any]] = {}
        for node in self._nodes:
            for database, keys in (await contents(node)).items():
                found.setdefault(database, {}).update(keys)
        return found

    async def commands(self) -> collections.Counter[str]:
        """How often each command was asked for, of all nodes together."""
        found: collections.Counter[str] = collections.Counter()
        for node in self._nodes:
            found.update(await commands(node))
        return found

    async def aclose(self) -> None:
        for node in self._nodes:
            await node.aclose()


async def contents(admin: redis.asyncio.Redis) -> dict[str, dict[str, Any]]:
    """For each database in use its keys, with their contents and whether they would expire.

    Only the first database is looked into: the others have no business being in use. Whether a
    key expires is asked with PERSIST: they live no longer than this.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"keys": about["keys"]} for name, about in (await admin.info("keyspace")).items()
    }
    if found.setdefault("db0", {}):
        names = sorted(await admin.keys("*"))
        pipe = admin.pipeline(transaction=False)
        for name in names:
            pipe.type(name)
        types = await pipe.execute()
        for name, kind in zip(names, types, strict=True):
            READS[kind](pipe, name)
            pipe.persist(name)
        replies = iter(await pipe.execute())
        found["db0"] = {name.decode("latin-1"): [next(replies), next(replies)] for name in names}
    return found


async def commands(admin: redis.asyncio.Redis) -> dict[str, int]:
    """How often each command was asked for, refused ones included, since the server began."""
    statistics = await admin.info("commandstats")
    return {
        re.sub("^cmdstat_", "", name): about["calls"] + about.get("rejected_calls", 0)
        for name, about in statistics.items()
    }
