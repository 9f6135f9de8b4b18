"""Azure's announcements of maintenance: read however they come, for whoever asks for them."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from support.pubsub_peer import PubSubPeer
from support.token_fakes import Clock, Credential, source_of
from support.wired import wired

from aioentra_redis import AzureMaintenance, EntraRedis, TokenSource
from aioentra_redis._maintenance import azure_event_in

virtual_time = pytest.mark.looptime

STARTING = (
    "NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2026-11-22T10:00:00|IsReplica|False|"
    "IPAddress||SSLPort|15001|NonSSLPort|13001"
)
TEN = 1795341600.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STARTING, ("NodeMaintenanceStarting", TEN, False, None, 15001, 13001)),
        (STARTING.encode(), ("NodeMaintenanceStarting", TEN, False, None, 15001, 13001)),
        (STARTING.lower(), ("nodemaintenancestarting", TEN, False, None, 15001, 13001)),
        (
            " sslport | 15001 |ISREPLICA|TRUE|IPAddress|10.0.0.1|notificationtype|X|More|y|Odd",
            ("X", None, True, "10.0.0.1", 15001, None),
        ),
        ("StartTimeInUTC|2026-11-22T12:00:00+02:00", ("", TEN, None, None, None, None)),
        ("StartTimeInUTC|2026-11-22T10:00:00Z", ("", TEN, None, None, None, None)),
        ("StartTimeInUTC|soon|IsReplica|perhaps|SSLPort|many", ("", None, None, None, None, None)),
        ("SSLPort|99999|NonSSLPort|-1", ("", None, None, None, None, None)),
        ("something else altogether", ("", None, None, None, None, None)),
        ("", ("", None, None, None, None, None)),
        (None, ("", None, None, None, None, None)),
        (7, ("", None, None, None, None, None)),
    ],
)
def test_messages(text: Any, expected: Any) -> None:
    event = azure_event_in(text, host="cache.example")
    assert event.host == "cache.example"
    said = text.decode() if isinstance(text, bytes) else text if isinstance(text, str) else ""
    assert event == AzureMaintenance("cache.example", *expected, said)


NAMES = ["NotificationType", "StartTimeInUTC", "IsReplica", "IPAddress", "SSLPort", "NonSSLPort"]
WORDS = st.sampled_from(NAMES) | st.text()


@given(st.lists(WORDS).map("|".join) | st.binary() | st.text())
def test_no_message_raises(text: Any) -> None:
    event = azure_event_in(text, host="h")
    assert len(event.text) <= 2000
    hash(event)


# ---------------------------------------------------------------------------------- listening


@pytest.fixture
async def source() -> AsyncIterator[TokenSource]:
    clock = Clock()
    async with source_of(Credential(clock), clock) as made:
        yield made


class Stage:
    def __init__(self, source: TokenSource | None, protocol: int = 3) -> None:
        self.peer = PubSubPeer(protocol)
        self.events: list[Any] = []
        pool = redis.asyncio.ConnectionPool(
            connection_class=wired(self.peer), host="localhost", protocol=protocol
        )
        self.client: Any = EntraRedis.from_pool(
            pool, token_source=source, azure_events=True, on_event=self.events.append
        )

    @property
    def told(self) -> list[AzureMaintenance]:
        return [event for event in self.events if isinstance(event, AzureMaintenance)]

    @property
    def subscriptions(self) -> int:
        return len(self.peer.seen("SUBSCRIBE"))

    def publish(self, text: str = STARTING) -> None:
        self.peer.publish(b"AzureRedisEvents", text.encode())


@virtual_time
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("with_tokens", [True, False])
async def test_who_asks_for_it_gets_events_on_one_more_connection(
    source: TokenSource, protocol: int, with_tokens: bool
) -> None:
    stage = Stage(source if with_tokens else None, protocol)
    await asyncio.sleep(10)
    assert stage.peer.dials == 0, "nobody has used the client yet"
    assert await stage.client.ping()
    await asyncio.sleep(1)
    assert stage.peer.dials == 2
    stage.publish()
    stage.publish("nonsense")
    await asyncio.sleep(1)
    first, second = stage.told
    assert (first.host, first.notification, first.ssl_port) == (
        "localhost",
        "NodeMaintenanceStarting",
        15001,
    )
    assert second.text == "nonsense"
    await stage.client.aclose()
    assert stage.peer.open == []
    await asyncio.sleep(60)
    assert stage.peer.dials == 2


@virtual_time
async def test_nobody_who_has_not_asked_pays_for_it(source: TokenSource) -> None:
    peer = PubSubPeer(3)
    pool = redis.asyncio.ConnectionPool(connection_class=wired(peer), host="localhost", protocol=3)
    async with EntraRedis.from_pool(pool, token_source=source) as client:
        assert await client.ping()
        await asyncio.sleep(60)
        assert peer.dials == 1


@virtual_time
async def test_it_goes_on_after_a_lost_connection_and_a_long_outage(source: TokenSource) -> None:
    stage = Stage(source)
    assert await stage.client.ping()
    await asyncio.sleep(1)
    stage.peer.cut()
    await asyncio.sleep(10)
    stage.publish()
    await asyncio.sleep(1)
    assert len(stage.told) == 1
    stage.peer.script["SUBSCRIBE"] = lambda *_: "cut"
    stage.peer.cut()
    await asyncio.sleep(300)
    tried = stage.subscriptions
    assert 5 < tried < 150
    del stage.peer.script["SUBSCRIBE"]
    await asyncio.sleep(65)
    stage.publish()
    await asyncio.sleep(1)
    assert len(stage.told) == 2
    assert await stage.client.ping()
    await stage.client.aclose()
    assert stage.peer.open == []


@virtual_time
async def test_who_may_not_subscribe_is_told_once_and_keeps_no_connection(
    source: TokenSource, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(source)
    stage.peer.forbidden.add(b"AzureRedisEvents")
    with caplog.at_level(logging.WARNING, "aioentra_redis.pubsub"):
        assert await stage.client.ping()
        await asyncio.sleep(100)
    (record,) = caplog.records
    assert "does not permit this user to subscribe to AzureRedisEvents" in record.getMessage()
    assert stage.subscriptions == 1
    assert len(stage.peer.open) == 1
    await stage.client.aclose()


@virtual_time
@pytest.mark.filterwarnings("ignore:unclosed client:ResourceWarning")
async def test_a_client_that_is_dropped_takes_it_along(source: TokenSource) -> None:
    stage = Stage(source)
    assert await stage.client.ping()
    await asyncio.sleep(1)
    assert len(stage.peer.open) == 2
    del stage.client
    gc.collect()
    await asyncio.sleep(5)
    assert stage.peer.open == []


@virtual_time
async def test_closing_while_it_subscribes(source: TokenSource) -> None:
    for moment in (0.0, 0.001):
        stage = Stage(source)
        stage.peer.script["SUBSCRIBE"] = lambda *_: "hang"
        assert await stage.client.ping()
        await asyncio.sleep(moment)
        await stage.client.aclose()
        assert stage.peer.open == []
