"""OpenTelemetry metrics, read by the SDK as its exporters do; and nothing at all without it."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support.pooled import LIFE, Place
from support.scripted_peer import HANG, OK
from support.token_fakes import Clock, Credential, config, source_of

import aioentra_redis
from aioentra_redis import TokenAcquisitionError, _metrics
from aioentra_redis._events import ConnectionReplaced, EventHub, ReauthenticationFailed
from aioentra_redis._metrics import METRICS, Instruments
from aioentra_redis.errors import ConnectionLostError

pytestmark = pytest.mark.looptime

ROOT = Path(aioentra_redis.__file__).parent.parent
WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"

Point = tuple[dict[str, Any], Any]


class Reader:
    """What the SDK would export now."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def metrics(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str, **attributes: Any) -> list[Point]:
        """The points that have these attributes: the rest of them, and the value."""
        metric = self.metrics().get(name)
        found: list[Point] = []
        for point in metric.data.data_points if metric is not None else ():
            rest = dict(point.attributes)
            if all(rest.pop(key, None) == value for key, value in attributes.items()):
                value = getattr(point, "value", None)
                found.append((rest, (point.count, point.sum) if value is None else value))
        return found

    def value(self, name: str, **attributes: Any) -> Any:
        """The value of the only point that has these attributes; None if there is none."""
        points = self.points(name, **attributes)
        assert len(points) < 2, points
        return points[0][1] if points else None


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    read = InMemoryMetricReader()
    provider = MeterProvider([read])
    monkeypatch.setattr(_metrics, "_made", Instruments(provider.get_meter("t"), Observation))
    gc.collect()  # what earlier tests have left
    yield Reader(read)
    provider.shutdown()


@pytest.fixture
async def place():
    made = Place()
    yield made
    await made.close()


# ---------------------------------------------------------------------------------------- tokens


async def test_attempts_to_get_a_token(reader: Reader):
    clock = Clock()
    credential = Credential(clock, life=LIFE)
    credential.delay = 0.2
    source = source_of(credential, clock, factory=True, name="mine", refresh=config())
    refreshes, duration = "aioentra.token.refreshes", "aioentra.token.acquire.duration"
    async with source:
        await asyncio.sleep(LIFE * 0.6)
        assert reader.points(refreshes, source="mine") == [({"result": "published"}, 2)]
        count, seconds = reader.value(duration, source="mine", result="published")
        assert (count, seconds) == (2, pytest.approx(0.4))
        token = credential.issue(life=LIFE)
        credential.answer = lambda _: token
        await asyncio.sleep(LIFE)
        assert reader.value(refreshes, source="mine", result="unchanged") > 0
        credential.answer = lambda _: ConnectionError("down")
        await asyncio.sleep(LIFE)
        failed = reader.value(refreshes, source="mine", result="failed")
        assert failed > 3
        assert reader.value(duration, source="mine", result="failed")[0] == failed
        total = sum(value for _, value in reader.points(refreshes, source="mine"))
        assert total == source.status.acquisitions


async def test_a_start_that_fails_is_counted(reader: Reader):
    clock = Clock()
    source = source_of(Credential(clock, lambda _: OSError("no")), clock, name="unlucky")
    with pytest.raises(TokenAcquisitionError):
        await source.start()
    assert reader.value("aioentra.token.refreshes", source="unlucky", result="failed") == 3
    await source.aclose()


async def test_the_time_that_is_left(reader: Reader):
    clock = Clock()
    credential = Credential(clock, life=LIFE)
    source = source_of(credential, clock, factory=True, name="mine")
    remaining = "aioentra.token.remaining"
    assert reader.value(remaining, source="mine") is None
    async with source:
        await asyncio.sleep(10)
        assert reader.value(remaining, source="mine") == pytest.approx(LIFE - 10)
        shorter = source_of(Credential(clock, life=30), clock, name="mine")
        longer = source_of(Credential(clock, life=1000), clock, name="mine")
        async with shorter, longer:
            assert reader.value(remaining, source="mine") == pytest.approx(30)
        credential.answer = lambda _: ConnectionError("down")
        await asyncio.sleep(LIFE)
        assert reader.value(remaining, source="mine") == 0
    assert reader.value(remaining, source="mine") is None


# ----------------------------------------------------------------------------------- connections


async def test_reauthentications(reader: Reader, place: Place):
    name = place.source.name
    server = {"source": name, "server.address": "localhost", "server.port": 6379}
    client = place.client()
    await client.get("k")
    await place.idle(client, 4)
    await asyncio.sleep(65)
    reauths = "aioentra.connection.reauths"
    assert reader.points(reauths, **server) == [({"result": "accepted", "trigger": "renewal"}, 5)]
    count, seconds = reader.value("aioentra.connection.reauth.duration", **server)
    assert count == 5
    assert 0 <= seconds < 1
    refusals = [WRONGPASS]
    place.peer.script["AUTH"] = refusals
    await asyncio.sleep(50)
    assert reader.value(reauths, **server, result="refused", trigger="renewal") == 1
    probes = reader.value(reauths, **server, result="accepted", trigger="probe")
    renewals = reader.value(reauths, **server, result="accepted", trigger="renewal")
    assert probes >= 1
    assert probes + renewals == 10


async def test_connections_that_could_not_get_the_newest_token(reader: Reader, place: Place):
    stale, name = "aioentra.connections.stale", place.source.name
    server = {"source": name, "server.address": "localhost", "server.port": 6379}
    client = place.client()
    sharing = place.client(client.connection_pool)
    assert reader.points(stale, source=name) == []
    await client.get("k")
    await place.idle(client, 2)
    assert reader.points(stale, source=name) == [
        ({"server.address": "localhost", "server.port": 6379}, 0)
    ]
    place.peer.script["AUTH"] = lambda *_: WRONGPASS
    await asyncio.sleep(65)
    assert len(sharing.auth_status()) == 3
    assert reader.value(stale, **server) == 3
    place.peer.script["AUTH"] = lambda *_: OK
    await asyncio.sleep(30)
    assert reader.value(stale, **server) == 0
    for each in (client, sharing):
        await each.aclose()
    assert reader.points(stale, source=name) == []


async def test_an_auth_without_answer_and_the_replacement_for_it(reader: Reader, place: Place):
    client = place.client()
    await client.get("k")
    place.peer.script["AUTH"] = [HANG]
    await asyncio.sleep(65)
    client._multiplexed.close_timeout = 0.01
    points = reader.points("aioentra.connection.reauths", source=place.source.name)
    address = {"server.address": "localhost", "server.port": 6379}
    assert points == [({**address, "result": "replaced", "trigger": "renewal"}, 1)]


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (TimeoutError("late"), "unanswered"),
        (ConnectionLostError("none"), "not_replaced"),
        (ValueError("what?"), "refused"),
    ],
)
def test_what_a_failure_counts_as(reader: Reader, error: Exception, result: str):
    hub = EventHub()
    _metrics.observe_connections(hub, "mine")
    hub.emit(ReauthenticationFailed("connection-1", "peer", 2, error))
    points = reader.points("aioentra.connection.reauths", source="mine")
    assert points == [({"server.address": "peer", "result": result, "trigger": "renewal"}, 1)]


@pytest.mark.parametrize(
    ("where", "attributes"),
    [
        ("cache.example:10000", {"server.address": "cache.example", "server.port": 10000}),
        ("::1:6379", {"server.address": "::1", "server.port": 6379}),
        ("/run/redis.sock", {"server.address": "/run/redis.sock"}),
        ("peer", {"server.address": "peer"}),
    ],
)
def test_servers(reader: Reader, where: str, attributes: dict[str, Any]):
    hub = EventHub()
    _metrics.observe_connections(hub, "mine")
    hub.emit(ConnectionReplaced("a", "b", where, "slow"))
    hub.emit(ConnectionReplaced("b", "c", where, "maintenance", trigger=None))  # no token's matter
    ((found, count),) = reader.points("aioentra.connection.reauths", source="mine")
    assert found == {**attributes, "result": "replaced", "trigger": "renewal"}
    assert count == 1


async def test_each_instrument_is_what_the_table_says(reader: Reader, place: Place):
    client = place.client()
    await client.get("k")
    await asyncio.sleep(65)
    exported = reader.metrics()
    assert exported.keys() == {metric.name for metric in METRICS}
    for metric in METRICS:
        found = exported[metric.name]
        assert (found.unit, found.description) == (metric.unit, metric.description)
        for point in found.data.data_points:
            assert set(point.attributes) <= set(metric.attributes)
            assert "oid-1" not in str(point.attributes)
        if metric.kind == "histogram":
            assert found.data.data_points[0].explicit_bounds == _metrics.SECONDS


# --------------------------------------------------------------------------- lives, threads, forks


async def test_the_gauges_keep_nobody_alive(reader: Reader):
    clock = Clock()
    source = source_of(Credential(clock, life=LIFE), clock, name="fleeting")
    await source.start()
    assert reader.value("aioentra.token.remaining", source="fleeting") is not None
    place = Place()
    client: Any = place.client()
    dropped = weakref.ref(source), weakref.ref(client)
    place.clients.clear()
    await source.aclose()
    del source, client
    gc.collect()
    assert [each() for each in dropped] == [None, None]
    assert reader.points("aioentra.token.remaining", source="fleeting") == []
    await place.close()


def test_the_instruments_are_made_once_for_all_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_metrics, "_made", None)
    found: list[Instruments | None] = []
    barrier = threading.Barrier(8)

    def look() -> None:
        barrier.wait()
        found.append(_metrics._instruments())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 8
    assert len({id(each) for each in found}) == 1
    assert found[0] is not None


@pytest.mark.looptime(False)
async def test_the_exporter_has_a_thread_of_its_own(reader: Reader, place: Place):
    """It reads while connections and sources come and go."""
    client = place.client()
    errors: list[BaseException] = []
    done = threading.Event()
    reads = 0

    def export() -> None:
        nonlocal reads
        try:
            while not done.is_set():
                reader.points("aioentra.connections.stale")
                reads += 1
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=export)
    thread.start()
    clock = Clock()
    for _ in range(30):
        connections = await place.leased(client, 5)
        async with source_of(Credential(clock), clock), place.client():
            await asyncio.sleep(0)
        for connection in connections:
            await connection.disconnect()
            await client.connection_pool.release(connection)
    done.set()
    thread.join()
    assert errors == []
    assert reads > 0


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT / "tests",
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{':'.join(sys.path)}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


PROGRAM = """
import asyncio, logging, time
logging.basicConfig(level="WARNING")
from support.scripted_peer import Peer
from support.token_fakes import Credential
from aioentra_redis import EntraRedis, TokenSource

async def main():
    peer = Peer()
    credential = Credential(time.time, life=3600)
    async with peer.serve() as port, TokenSource(credential, name="mine") as source:
        async with EntraRedis(host="127.0.0.1", port=port, token_source=source) as client:
            await client.set("k", "v")
            assert (await client.health()).ok
            between()
"""


def test_without_opentelemetry_everything_works_and_nothing_is_imported():
    blocker = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "opentelemetry":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Blocker())
    """
    rest = """
    def between():
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
        from aioentra_redis import _metrics
        assert _metrics._made is None

    asyncio.run(main())
    print("done")
    """
    shown = run(textwrap.dedent(blocker) + PROGRAM + textwrap.dedent(rest))
    assert shown == "done\n"


def test_a_provider_that_is_set_up_after_the_first_event_gets_everything():
    rest = """
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()

    def between():
        metrics.set_meter_provider(MeterProvider([reader]))
        data = reader.get_metrics_data()
        for scope in data.resource_metrics[0].scope_metrics:
            print(scope.scope.name, scope.scope.version)
            for metric in scope.metrics:
                print(metric.name, *[dict(each.attributes) for each in metric.data.data_points])

    asyncio.run(main())
    """
    lines = run(PROGRAM + textwrap.dedent(rest)).splitlines()
    assert lines[0] == f"aioentra_redis {aioentra_redis.__version__}"
    assert "aioentra.token.remaining {'source': 'mine'}" in lines
    assert any(line.startswith("aioentra.connections.stale") for line in lines)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork here")
def test_a_forked_child_does_not_report_its_parents_tokens():
    rest = """
    import os
    from aioentra_redis import _metrics

    def between():
        assert len(list(_metrics._sources)) == len(list(_metrics._clients)) == 1
        child = os.fork()
        if not child:
            os._exit(len(list(_metrics._sources)) + len(list(_metrics._clients)))
        print(os.waitpid(child, 0)[1])

    asyncio.run(main())
    """
    assert run(PROGRAM + textwrap.dedent(rest)) == "0\n"
