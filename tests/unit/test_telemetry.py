"""Who watches redis-py's commands sees ours: its metrics, and OpenTelemetry's spans, once each.

What plain ``redis.asyncio`` records for a program is what the same program records with ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from support.meter import Meter, meter
from support.scripted_peer import CUT, OK, Peer, bulk

from aioentra_redis import EntraRedis
from aioentra_redis._multiplex._session import WATCH_INTERVAL
from aioentra_redis._redis_py import _telemetry as telemetry

__all__ = ["meter"]

metrics = pytest.mark.capability("metrics")


def peer_with_lists(**script: Any) -> Peer:
    blpop = lambda name, key, timeout: b"*2\r\n" + bulk(key) + bulk("job")  # noqa: E731
    return Peer(**{"BLPOP": blpop, "BAD": lambda *_: b"-ERR no\r\n", **script})


@contextlib.asynccontextmanager
async def client_of(kind: Any, peer: Peer, **options: Any) -> AsyncIterator[Any]:
    options = {"protocol": 3, "retry": Retry(ConstantBackoff(0.001), 0), **options}
    async with peer.serve() as port, kind(host="127.0.0.1", port=port, **options) as client:
        yield client


async def program(client: Any) -> None:
    """Shared commands, dedicated ones, one that fails."""
    await client.set("k", "v")
    assert await client.get("k") == b"v"
    await asyncio.gather(*[client.get("k") for _ in range(5)])
    assert await client.blpop(["q"], timeout=1) == [b"q", b"job"]
    with pytest.raises(redis_exceptions.ResponseError, match="no"):
        await client.execute_command("BAD")
    await client.execute_command("INCR", "n", NEVER_DECODE=True)


# ------------------------------------------------------------------------------------- metrics


async def recorded(meter: Meter, run: Any, kind: Any, script: Any, **options: Any) -> Any:
    """What is recorded of the program ``run`` with clients of that kind."""
    meter.fresh()
    meter.switch_on()
    async with client_of(kind, peer_with_lists(**script()), **options) as client:
        await run(client)
    return meter.commands(), meter.errors()


@metrics
async def test_the_same_program_records_the_same(meter: Meter):
    """Per command: name, address, database; per error its kind; and how often."""
    plain = await recorded(meter, program, redis.asyncio.Redis, dict)
    ours = await recorded(meter, program, EntraRedis, dict)
    assert ours == plain
    commands, errors = ours
    counts = {attributes["db.operation.name"]: count for attributes, count in commands}
    assert counts == {"SET": 1, "GET": 6, "BLPOP": 1, "INCR": 1}
    assert [(each["error.type"], count) for each, count in errors] == [("ResponseError", 1)]


def of_pipelines() -> Any:
    """MULTI, two commands and EXEC; the pipelines send GET, the transactions SET and ECHO."""
    return {
        "MULTI": lambda *_: OK,
        "SET": lambda *_: b"+QUEUED\r\n",
        "ECHO": lambda *_: b"+QUEUED\r\n",
        "EXEC": lambda *_: b"*2\r\n+OK\r\n$1\r\nx\r\n",
    }


async def pipelined(client: Any) -> None:
    assert await client.pipeline().set("k", "v").echo("x").execute() == [True, b"x"]
    assert await client.pipeline(transaction=False).get("k").get("k").execute() == [None, None]
    with pytest.raises(redis_exceptions.ResponseError, match="no"):
        await client.pipeline(transaction=False).get("k").execute_command("BAD").execute()
    with pytest.raises(redis_exceptions.DataError):
        await client.pipeline(transaction=False).get(None).execute()


@metrics
async def test_pipelines_record_the_same(meter: Meter):
    plain = await recorded(meter, pipelined, redis.asyncio.Redis, of_pipelines)
    ours = await recorded(meter, pipelined, EntraRedis, of_pipelines)
    assert ours == plain
    commands, errors = ours
    assert {each["db.operation.name"]: n for each, n in commands} == {"MULTI": 1, "PIPELINE": 1}
    assert len(errors) == 2


async def lossy(client: Any) -> None:
    assert await client.execute_command("INCR", "n") == 1
    with pytest.raises(redis_exceptions.ConnectionError):
        await client.execute_command("DECR", "n")


@metrics
@pytest.mark.parametrize("retries", [1, 2])
async def test_repeated_and_lost_commands_record_the_same(meter: Meter, retries: int):
    """Each attempt that another one follows, with its number, and the last one's error."""

    def script() -> Any:
        return {"INCR": [CUT], "DECR": [CUT] * 9}

    numbers = []
    for kind in (redis.asyncio.Redis, EntraRedis):
        retry = Retry(ConstantBackoff(0.001), retries)
        commands, errors = await recorded(meter, lossy, kind, script, retry=retry)
        attempts = "redis.client.operation.retry_attempts"
        numbers.append(
            (
                [(each["db.operation.name"], each.get(attempts), n) for each, n in commands],
                [(each[attempts], n) for each, n in errors],
            )
        )
    plain, ours = numbers
    assert ours == plain
    assert len(ours[0]) == 2 + retries, "INCR's failure and success, and DECR's failures"


@metrics
async def test_a_command_that_never_had_a_connection_records_nothing(meter: Meter):
    meter.switch_on()
    for kind in (redis.asyncio.Redis, EntraRedis):
        client = kind(host="127.0.0.1", port=1, retry=Retry(ConstantBackoff(0), 0))
        with pytest.raises(redis_exceptions.ConnectionError):
            await client.get("k")
        await client.aclose()
    assert meter.commands() == []
    assert telemetry._recorder._async_metrics_collector is not None


@metrics
async def test_metrics_may_be_switched_on_and_off_while_connected(meter: Meter):
    """The short way of commands is closed by the watchdog's next look, and opened again."""
    async with client_of(EntraRedis, peer_with_lists()) as client:
        await client.get("k")
        assert client._multiplexed.straight is client._multiplexed.session is not None
        assert meter.commands() == []
        meter.switch_on()
        await asyncio.sleep(WATCH_INTERVAL * 1.5)
        await client.get("k")
        ((attributes, count),) = meter.commands()
        assert (attributes["db.operation.name"], count) == ("GET", 1)
        assert client._multiplexed.straight is None
        meter.switch_off()
        await asyncio.sleep(WATCH_INTERVAL * 1.5)
        assert client._multiplexed.straight is client._multiplexed.session


# --------------------------------------------------------------------------------------- spans


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What is traced, in memory; ``RedisInstrumentor`` is off again behind the test."""
    exporter = InMemorySpanExporter()
    yield exporter
    if RedisInstrumentor().is_instrumented_by_opentelemetry:
        RedisInstrumentor().uninstrument()


def tracing(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def seen(exporter: InMemorySpanExporter) -> list[tuple[str, Any, Any]]:
    """Name, statement and outcome of each span, since the last look."""
    found = [
        (span.name, (span.attributes or {}).get("db.statement"), span.status.status_code.name)
        for span in exporter.get_finished_spans()
    ]
    exporter.clear()
    return found


EXPECTED = [
    ("SET", "SET ? ?", "UNSET"),
    *[("GET", "GET ?", "UNSET")] * 6,
    ("BLPOP", "BLPOP ? ?", "UNSET"),
    ("BAD", "BAD", "ERROR"),
    ("INCR", "INCR ?", "UNSET"),
]


@pytest.mark.parametrize("kind", [redis.asyncio.Redis, EntraRedis])
async def test_one_span_a_command(spans: InMemorySpanExporter, kind: Any):
    """Whichever route it takes; ours are redis-py's, name, statement and outcome."""
    RedisInstrumentor().instrument(tracer_provider=tracing(spans))
    async with client_of(kind, peer_with_lists()) as client:
        await program(client)
    assert seen(spans) == EXPECTED


@pytest.mark.parametrize("kind", [redis.asyncio.Redis, EntraRedis])
async def test_one_span_a_command_of_an_instrumented_client(spans: InMemorySpanExporter, kind: Any):
    async with (
        client_of(kind, peer_with_lists()) as client,
        client_of(kind, peer_with_lists()) as another,
    ):
        RedisInstrumentor.instrument_client(client, tracer_provider=tracing(spans))
        await program(client)
        assert seen(spans) == EXPECTED
        await program(another)
        assert seen(spans) == []
        RedisInstrumentor.uninstrument_client(client)
        await program(client)
        assert seen(spans) == []


async def test_spans_on_a_connection_of_its_own_and_for_refusals(spans: InMemorySpanExporter):
    RedisInstrumentor().instrument(tracer_provider=tracing(spans))
    async with client_of(EntraRedis, peer_with_lists()) as client:
        async with client.client() as own:
            assert await own.set("k", "v") is True
        assert seen(spans) == [("SET", "SET ? ?", "UNSET")]
        with pytest.raises(redis_exceptions.RedisError, match="db="):
            await client.execute_command("SELECT", 1)
        assert seen(spans) == [("SELECT", "SELECT ?", "ERROR")]


async def test_hooks_get_the_client_the_command_and_the_reply(spans: InMemorySpanExporter):
    requests: list[Any] = []
    responses: list[Any] = []
    RedisInstrumentor().instrument(
        tracer_provider=tracing(spans),
        request_hook=lambda span, client, args, options: requests.append((client, args, options)),
        response_hook=lambda span, client, reply: responses.append((client, reply)),
    )
    async with client_of(EntraRedis, peer_with_lists()) as client:
        await client.set("k", "v")
        assert requests == [(client, ("SET", "k", "v"), {})]
        assert responses == [(client, True)]


async def test_instrumented_while_connected(spans: InMemorySpanExporter):
    """Seen from the watchdog's next look on, and no more after the end of it."""
    async with client_of(EntraRedis, peer_with_lists()) as client:
        await client.get("k")
        RedisInstrumentor().instrument(tracer_provider=tracing(spans))
        await asyncio.sleep(WATCH_INTERVAL * 1.5)
        await client.get("k")
        assert seen(spans) == [("GET", "GET ?", "UNSET")]
        RedisInstrumentor().uninstrument()
        await client.get("k")
        await asyncio.sleep(WATCH_INTERVAL * 1.5)
        assert client._multiplexed.straight is client._multiplexed.session
        await client.get("k")
        assert seen(spans) == []


@pytest.mark.parametrize("transaction", [True, False])
@pytest.mark.parametrize("kind", [redis.asyncio.Redis, EntraRedis])
async def test_one_span_a_pipeline(spans: InMemorySpanExporter, kind: Any, transaction: bool):
    RedisInstrumentor().instrument(tracer_provider=tracing(spans))
    queued = b"+QUEUED\r\n" if transaction else None
    replies = [queued or OK, queued or b":1\r\n"]
    peer = Peer(
        MULTI=lambda *_: OK,
        SET=lambda *_: replies[0],
        INCRBY=lambda *_: replies[1],
        EXEC=lambda *_: b"*2\r\n+OK\r\n:1\r\n",
    )
    async with client_of(kind, peer) as client:
        pipe = client.pipeline(transaction=transaction)
        assert await pipe.set("k", "v").incr("n").execute() == [True, 1]
    assert seen(spans) == [("SET INCRBY", "SET ? ?\nINCRBY ? ?", "UNSET")]


@pytest.mark.parametrize("kind", [redis.asyncio.Redis, EntraRedis])
async def test_one_span_a_pipeline_on_a_connection_of_its_own(
    spans: InMemorySpanExporter, kind: Any
):
    RedisInstrumentor().instrument(tracer_provider=tracing(spans))
    async with client_of(kind, peer_with_lists()) as client:
        pipe = client.pipeline(transaction=False)
        assert await pipe.get("k").blpop(["q"], timeout=1).execute() == [None, [b"q", b"job"]]
    assert seen(spans) == [("GET BLPOP", "GET ?\nBLPOP ? ?", "UNSET")]
