"""Who watches redis-py's cluster client sees ours: its metrics, and spans, once each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import exceptions as redis_exceptions
from support.cluster_place import slots_reply
from support.meter import Meter, meter
from support.scripted_peer import Peer, bulk

from aioentra_redis import EntraRedisCluster

# redis-py 7 hands its own connections what it tells everybody not to use any more.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

__all__ = ["meter"]


class OneNode(Peer):
    """A cluster of one node."""

    def __init__(self) -> None:
        super().__init__(CLUSTER=self._slots, COMMAND=self._known, BLPOP=self._popped)
        self.script["BAD"] = lambda *_: b"-ERR no\r\n"

    def _slots(self, *_: bytes) -> bytes:
        return slots_reply([(0, 16383, self.port)], "127.0.0.1")

    def _known(self, *_: bytes) -> bytes:
        names = ("get", "set", "bad", "blpop")
        each = b"*7\r\n%b:-2\r\n*0\r\n:1\r\n:1\r\n:1\r\n*0\r\n"
        return b"*%d\r\n" % len(names) + b"".join(each % bulk(name) for name in names)

    def _popped(self, _: bytes, key: bytes, *__: bytes) -> bytes:
        return b"*2\r\n" + bulk(key) + bulk("job")


@contextlib.asynccontextmanager
async def client_of(kind: Any) -> AsyncIterator[Any]:
    peer = OneNode()
    async with peer.serve() as port, kind(host="127.0.0.1", port=port, protocol=3) as client:
        slot = client.keyslot("moved")
        here = f"-MOVED {slot} 127.0.0.1:{port}\r\n".encode()
        peer.script["GET"] = [b"$-1\r\n", here]
        yield client


async def program(client: Any) -> None:
    """Shared commands, a dedicated one, one that moved, one that fails."""
    await client.set("k", "v")
    assert await client.get("k") is None
    assert await client.get("moved") is None
    assert await client.get("k") == b"v"
    assert await client.blpop(["q"], timeout=1) == [b"q", b"job"]
    with pytest.raises(redis_exceptions.ResponseError, match="no"):
        await client.execute_command("BAD", "k")
    assert await client.ping()


async def queue(client: Any) -> None:
    """A pipeline, and one with an error among its replies."""
    assert await client.pipeline().set("k", "v").set("l", "v").execute() == [True, True]
    replies = await client.pipeline().execute_command("BAD", "k").execute(raise_on_error=False)
    assert isinstance(replies[0], redis_exceptions.ResponseError)


@pytest.mark.capability("metrics")
async def test_pipelines_record_the_same(meter: Meter):
    found = []
    for kind in (redis.asyncio.RedisCluster, EntraRedisCluster):
        meter.fresh()
        meter.switch_on()
        async with client_of(kind) as client:
            await queue(client)
        found.append((meter.commands(), meter.errors()))
    plain, ours = found
    assert [each for each in plain[0] if "PIPELINE" in str(each)]
    assert ours == plain


@pytest.mark.capability("metrics")
async def test_the_same_program_records_the_same(meter: Meter):
    found = []
    for kind in (redis.asyncio.RedisCluster, EntraRedisCluster):
        meter.fresh()
        meter.switch_on()
        async with client_of(kind) as client:
            await program(client)
        found.append((meter.commands(), meter.errors()))
    plain, ours = found
    assert ours == plain
    commands, errors = ours
    assert len(commands) > 4
    assert len(errors) == 1


async def test_the_same_program_has_the_same_spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    found = []
    instrumentor = RedisInstrumentor()
    for kind in (redis.asyncio.RedisCluster, EntraRedisCluster):
        instrumentor.instrument(tracer_provider=provider)
        try:
            exporter.clear()
            async with client_of(kind) as client:
                await program(client)
        finally:
            instrumentor.uninstrument()
        found.append(
            [(span.name, span.status.status_code) for span in exporter.get_finished_spans()]
        )
    plain, ours = found
    assert [name for name, _ in ours] == [name for name, _ in plain]
    assert ours == plain
