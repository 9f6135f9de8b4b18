"""A plain redis-py client as a witness of what the emulator's cluster does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from redis.asyncio import RedisCluster

from aioentra_redis.emulator import Emulator

__all__ = ["KEYS", "fill", "holds_everything", "witness"]

KEYS = [f"key:{number}" for number in range(100)]


@contextlib.asynccontextmanager
async def witness(emulator: Emulator, **options: object) -> AsyncIterator[RedisCluster]:
    """A plain redis-py cluster client with a token for a password.

    It would verify the IPs of the topology, which the certificate is not good for. Connections of
    nodes that have gone it leaves open, and to the garbage collector, with warnings of its own.
    """
    before = _transports()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # of what redis-py 7 does itself
        async with _client(emulator, **options) as client:
            yield client
        del client
        gc.collect()
        for each in _transports() - before:  # redis-py 7 keeps some open for ever
            each.abort()


def _transports() -> set[asyncio.WriteTransport]:
    """Those of asyncio's selector loop; uvloop keeps no such list."""
    return set(getattr(asyncio.get_running_loop(), "_transports", {}).values())


@contextlib.asynccontextmanager
async def _client(emulator: Emulator, **options: object) -> AsyncIterator[RedisCluster]:
    client = RedisCluster(
        host="localhost",
        port=urlsplit(emulator.url).port or 0,
        ssl=True,
        ssl_ca_certs=emulator.ca_file,
        ssl_check_hostname=False,
        username=emulator.service_principal.object_id,
        password=await emulator.issue_token(),
        decode_responses=True,
        **options,  # type: ignore[arg-type]
    )
    try:
        await client.initialize()
        yield client
    finally:
        await client.aclose()


async def fill(emulator: Emulator) -> None:
    """Set all keys."""
    async with witness(emulator) as client:
        for key in KEYS:
            await client.set(key, key)


async def holds_everything(emulator: Emulator) -> bool:
    """Whether all keys are still there, for a client that comes now.

    One that had seen another topology would let go of nodes without closing them (redis-py 7.4).
    """
    async with witness(emulator) as client:
        return [await client.get(key) for key in KEYS] == KEYS
