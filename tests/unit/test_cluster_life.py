"""The life of a cluster client: what it is made of, what it owns, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from support.cluster_place import HOST, ClusterPlace
from support.scripted_peer import HANG, bulk

from aioentra_redis import EntraRedisCluster, TokenSource
from aioentra_redis._multiplex import _connection
from aioentra_redis.errors import (
    ClosedError,
    ConfigurationError,
    InsecureConnectionError,
    WrongLoopError,
)

pytestmark = pytest.mark.looptime


@pytest.fixture
async def place(monkeypatch):
    made = ClusterPlace()
    monkeypatch.setattr(_connection, "dial", made.dial)
    yield made
    await made.aclose()


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def source() -> TokenSource:
    return TokenSource.from_credential_factory(lambda: object())


# -------------------------------------------------------------------------------- making


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recovery_timeout": 0}, "recovery_timeout="),
        ({"close_timeout": "5"}, "close_timeout="),
        ({"max_dedicated_connections": 0}, "max_dedicated_connections="),
        ({"routes": {"GET": "nowhere"}}, "routes="),
        ({"token_source": object()}, "token_source="),
        ({"token_source": "made", "credential": object()}, "not both"),
        ({"token_source": "made", "password": "secret"}, "password="),
        ({"token_source": "made", "node_tls_names": "all"}, "node_tls_names="),
    ],
)
async def test_what_is_refused(options: dict[str, Any], words: str):
    if options.get("token_source") == "made":
        options = {**options, "token_source": source()}
    with pytest.raises(ConfigurationError, match=words):
        EntraRedisCluster("localhost", 7000, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": HOST, "db": 1}, "db"),
        ({"host": HOST, "path": "/tmp/socket"}, "socket"),
        ({}, "at least one node"),
    ],
)
def test_what_redis_py_refuses(options: dict[str, Any], words: str):
    with pytest.raises(redis_exceptions.RedisClusterException, match=words):
        EntraRedisCluster(**options)


def test_unknown_keywords_are_a_type_error():
    with pytest.raises(TypeError, match="no_such_option"):
        EntraRedisCluster(HOST, no_such_option=1)


async def test_tokens_do_not_travel_in_clear():
    with pytest.raises(InsecureConnectionError, match="example"):
        EntraRedisCluster("redis.example", 7000, token_source=source())
    EntraRedisCluster("redis.example", 7000, token_source=source(), allow_plaintext=True)
    made = EntraRedisCluster.from_url("rediss://redis.example:7000", token_source=source())
    assert "redis.example:7000" in repr(made)


def test_one_can_be_made_without_a_loop():
    made = EntraRedisCluster("localhost", "7000")
    assert repr(made) == "<EntraRedisCluster localhost:7000, 0 node(s), 0 connection(s)>"
    assert made.auth_status() == []


# -------------------------------------------------------------------------------- beginning


async def test_start_connects_to_every_primary(place: ClusterPlace):
    place.shape = [(0, 5000, 1, 4), *place.shape[1:]]
    client = await place.client().start()
    assert sorted(place.dials) == [1, 2, 3]
    assert len(client.auth_status()) == 3
    health = await client.health()
    assert health.ok
    assert place.seen("PING") == {1: 1, 2: 1, 3: 1}


async def test_it_can_be_awaited_and_entered(place: ClusterPlace):
    client = place.client()
    assert await client is client
    async with client as one, client as other:
        assert one is other
        assert await client.get(place.key[1]) is None
    place.down |= {1, 2, 3}
    with pytest.raises(redis_exceptions.ConnectionError):
        await client.get(place.key[1])
    place.down.clear()
    assert await client.get(place.key[1]) is None, "without tokens it may be used again"


async def test_health_tells_of_a_primary_that_is_gone(place: ClusterPlace):
    client = await place.client(recovery_timeout=60).start()
    place.fail(2)
    await asyncio.sleep(0.1)
    health = await client.health(timeout=1)
    assert not health.ok
    assert "1 s" in health.reasons[0]


# -------------------------------------------------------------------------------- ending


async def test_closing_lets_commands_finish(place: ClusterPlace):
    client = place.client(close_timeout=5)
    await client.start()
    place.peers[1].script["GET"] = [[1, bulk("late")]]
    late = asyncio.create_task(client.get(place.key[1]))
    await asyncio.sleep(0.01)
    closing = [asyncio.create_task(client.aclose()) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(ClosedError, match="being closed"):
        await client.get(place.key[2])
    closing[0].cancel()
    await asyncio.gather(*closing[1:])
    assert await late == b"late"
    assert client.auth_status() == []
    assert not any(peer.open for peer in place.peers.values())
    await client.aclose()


async def test_closing_gives_up_what_takes_too_long(place: ClusterPlace):
    client = place.client(close_timeout=1)
    await client.start()
    place.peers[1].script["GET"] = [HANG]
    late = asyncio.create_task(client.get(place.key[1]))
    await asyncio.sleep(0.01)
    await client.aclose()
    with pytest.raises((ClosedError, redis_exceptions.ConnectionError)):
        await late


@pytest.mark.parametrize("what", ["opening", "waiting", "down", "unused"])
async def test_closing_ends_every_wait(place: ClusterPlace, what: str):
    client = place.client()
    key = place.key[1]
    if what == "opening":
        place.silent.add(1)
    else:
        await (client.initialize() if what == "unused" else client.start())
        if what == "waiting":
            place.fail(1)
        elif what == "unused":
            place.silent.add(3)
            key = place.key[3]
        else:
            place.peers[1].script["GET"] = lambda *_: b"-CLUSTERDOWN down\r\n"
    tasks = [asyncio.create_task(client.get(key)) for _ in range(5)]
    await asyncio.sleep(0.3)
    started = asyncio.get_running_loop().time()
    await client.aclose()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in outcomes} <= {ClosedError}
    assert asyncio.get_running_loop().time() - started < 1


async def test_with_tokens_the_end_is_final(place: ClusterPlace):
    made = source()
    client = place.client(token_source=made, allow_plaintext=True)
    await client.aclose()
    with pytest.raises(ClosedError, match="final"):
        await client.get("k")
    with pytest.raises(ClosedError, match="final"):
        await client.start()
    await client.aclose()
    assert made.status.state.value != "closed", "it was its maker's to close"
    await made.aclose()


async def test_events_end_with_the_client(place: ClusterPlace):
    heard: list[Any] = []
    client = place.client(on_event=heard.append)
    stream = client.events()
    await client.start()
    await client.aclose()
    seen = [type(event).__name__ async for event in stream]
    assert seen.count("ConnectionOpened") == 3
    assert seen.count("ConnectionClosed") == 3
    assert [type(event).__name__ for event in heard] == seen


async def test_another_loop_is_refused(place: ClusterPlace):
    client = await place.client().start()

    def elsewhere() -> None:
        with pytest.raises(WrongLoopError):
            asyncio.run(client.get(place.key[1]))
        with pytest.raises(WrongLoopError):
            asyncio.run(client.aclose())

    await asyncio.to_thread(elsewhere)
    assert await client.get(place.key[1]) is None


async def test_one_that_is_dropped_says_so_and_closes(place: ClusterPlace, caplog):
    caplog.set_level(logging.CRITICAL)
    client = await place.client().start()
    place.clients.clear()
    kept = [client]
    del client
    with pytest.warns(ResourceWarning, match="unclosed cluster client <EntraRedisCluster"):
        kept.clear()
    await asyncio.sleep(0.1)
    assert not any(peer.open for peer in place.peers.values())


async def test_one_that_was_never_used_is_dropped_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EntraRedisCluster(HOST, 7000)
        gc.collect()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("trouble", [None, "moved", "lost", "refresh"])
async def test_a_closed_client_is_gone_at_once(place: ClusterPlace, trouble: str | None):
    client = await place.client().start()
    place.clients.clear()
    if trouble == "moved":
        slot = client.keyslot(place.key[1])
        place.peers[1].script["GET"] = [f"-MOVED {slot} {HOST}:4\r\n".encode()]
    elif trouble == "lost":
        place.peers[1].cut()
    elif trouble == "refresh":
        for peer in place.peers.values():
            peer.script["CLUSTER"] = lambda *_: b"-ERR\r\n"
        client.nodes_manager.want()
        await asyncio.sleep(0.1)
    await client.get(place.key[1])
    parts = [client, client.nodes_manager, *client.get_nodes()]
    refs = [weakref.ref(part) for part in parts]
    clients = [weakref.ref(node.client) for node in client.get_nodes()]
    await client.aclose()
    del parts, client
    await asyncio.sleep(0.1)
    assert [ref() for ref in (*refs, *clients) if ref() is not None] == []


async def test_what_cannot_be_entered_is_closed(place: ClusterPlace):
    place.down |= {1, 2, 3}
    with pytest.raises(redis_exceptions.RedisClusterException):
        async with place.client():
            raise AssertionError("there is nobody to talk to")
    place.down.clear()
    place.peers[1].script["COMMAND"] = lambda *_: HANG
    client = place.client()
    entering = asyncio.create_task(client.__aenter__())
    await asyncio.sleep(0.1)
    assert place.peers[1].open
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await asyncio.sleep(0.1)
    assert not place.peers[1].open


async def test_leaving_may_be_cancelled(place: ClusterPlace):
    client = place.client(close_timeout=5)
    entered = await client.__aenter__()
    assert entered is client
    await client.start()
    place.peers[1].script["GET"] = [[1, bulk("late")]]
    late = asyncio.create_task(client.get(place.key[1]))
    await asyncio.sleep(0.01)
    leaving = asyncio.create_task(client.__aexit__(None, None, None))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await late == b"late"
    await asyncio.sleep(0.1)
    assert not any(peer.open for peer in place.peers.values())


async def test_a_subclass_is_what_its_url_makes():
    class Mine(EntraRedisCluster):
        pass

    assert type(Mine.from_url("redis://localhost:7000", recovery_timeout=3)) is Mine


async def test_a_callback_that_was_set_before_the_first_command(place: ClusterPlace):
    client = place.client(protocol=3)
    client.set_response_callback("GET", lambda reply, **_: ("mine", reply))
    client.set_response_callback("ZSCORE", lambda reply, **_: ("mine", reply))
    assert await client.get(place.key[1]) == ("mine", None)
    assert await client.get(place.key[2]) == ("mine", None)
    assert client.response_callbacks["ZSCORE"](1) == ("mine", 1)
