"""``connect``: what it refuses, what it owns, and what it leaves when it is cancelled anywhere."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from redis.cluster import LoadBalancingStrategy
from support.scripted_peer import HANG, Peer, bulk
from support.token_fakes import Clock, Credential, source_of

from aioentra_redis import EntraRedis, EntraRedisCluster, TokenSource, connect
from aioentra_redis._connect import Connecting
from aioentra_redis._events import ConnectionClosed, ConnectionOpened, TokenPublished
from aioentra_redis._multiplex import _connection
from aioentra_redis.errors import (
    ClusterModeError,
    ConfigurationError,
    ConnectError,
    ConnectTimeoutError,
    InsecureConnectionError,
    LifecycleError,
    SignInRefusedError,
    TokenError,
)

virtual_time = pytest.mark.looptime

URL = "redis://localhost:7"
NO_CLUSTER = b"-ERR This instance has cluster support disabled\r\n"


class Place:
    """One scripted peer behind every dial, and a credential whose answers the test chooses."""

    def __init__(self) -> None:
        self.peer = Peer(CLUSTER=lambda *_: NO_CLUSTER)
        self.clock = Clock()
        self.credential = Credential(self.clock)
        self.dial_seconds = 0.0
        self.refusal: Exception | None = None
        self.open_dials = 0

    async def dial(self, pool: Any) -> Any:
        self.open_dials += 1
        try:
            await asyncio.sleep(self.dial_seconds)
            if self.refusal is not None:
                raise self.refusal
            sign_in = pool.connection_kwargs["credential_provider"].for_one_connection()
            await sign_in.get_credentials_async()
            return self.peer.dialed(token=sign_in.token)
        finally:
            self.open_dials -= 1

    def source(self) -> TokenSource:
        return source_of(self.credential, self.clock)


@pytest.fixture
def place(monkeypatch) -> Place:
    made = Place()
    monkeypatch.setattr(_connection, "dial", made.dial)
    # connect() makes sources of its own; they are to live in virtual time, too.
    monkeypatch.setattr(
        Connecting,
        "_own_source",
        lambda self: source_of(self._credential, made.clock, username=self._username),
    )
    return made


# ------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"url": "rediss://h"}, "names no port"),
        ({"credential": object(), "token_source": object()}, "not both"),
        ({"cluster": "maybe"}, "'maybe'"),
        ({"open_timeout": 0}, "open_timeout"),
        ({"open_timeout": None}, "open_timeout"),
        ({"close_timeout": -1}, "close_timeout"),
        ({"recovery_timeout": float("nan")}, "recovery_timeout"),
        ({"recovery_timeout": "30"}, "recovery_timeout"),
    ],
)
def test_what_cannot_work_is_a_value_error_at_once(arguments: dict[str, Any], says: str):
    with pytest.raises(ConfigurationError, match=says):
        connect(**{"url": URL, **arguments})


def test_plaintext_to_another_machine_is_refused_at_once():
    with pytest.raises(InsecureConnectionError, match="allow_plaintext"):
        connect("redis://cache.example:6379")
    connect("redis://cache.example:6379", allow_plaintext=True)


@virtual_time
async def test_wrong_options_of_redis_py_show_before_a_token_is_asked_for(place: Place):
    with pytest.raises(TypeError, match="no_such_option"):
        await connect(URL, credential=place.credential, cluster=False, no_such_option=1)
    assert place.credential.calls == []


# ----------------------------------------------------------------------------------- connected


@virtual_time
@pytest.mark.parametrize("cluster", [False, "auto"])
async def test_it_returns_when_the_connection_is_authenticated(place: Place, cluster: Any):
    events: list[Any] = []
    connecting = connect(URL, credential=place.credential, cluster=cluster, on_event=events.append)
    async with connecting as client:
        assert isinstance(client, EntraRedis)
        (row,) = client.auth_status()
        assert row.token_version == 1
        assert bool(place.peer.seen("CLUSTER")) is (cluster == "auto")
        assert await client.ping() is True
        source = client.token_source
    assert [type(event) for event in events].count(ConnectionOpened) == 1
    assert source is not None
    assert source.state.value == "closed"
    assert place.peer.open == []
    assert place.credential.closed == 0, "it is its maker's to close"
    for again in (connecting.__aenter__, connecting._open):
        with pytest.raises(LifecycleError, match="awaited or entered before"):
            await again()


@virtual_time
async def test_a_source_that_was_passed_in_stays_open(place: Place):
    async with place.source() as source:
        events: list[Any] = []
        client = await connect(URL, token_source=source, cluster=False, on_event=events.append)
        await client.aclose()
        assert source.state.value == "fresh"
        assert not any(isinstance(event, TokenPublished) for event in events)


@virtual_time
async def test_cluster_true_where_there_is_none_leaves_nothing_open(place: Place):
    with pytest.raises(ClusterModeError, match="Leave out cluster=True") as caught:
        await connect(URL, credential=place.credential, cluster=True)
    assert "localhost:7" in str(caught.value)
    assert isinstance(caught.value, redis_exceptions.RedisClusterException)
    assert place.peer.open == []


CLUSTER = b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n" + bulk("localhost") + b":7\r\n" + bulk("id")
COMMANDS = b"*2\r\n" + b"".join(
    b"*10\r\n" + bulk(name) + b":-2\r\n*0\r\n:1\r\n:1\r\n:1\r\n" + 4 * b"*0\r\n"
    for name in ("get", "set")
)


@virtual_time
@pytest.mark.parametrize("cluster", [True, "auto"])
async def test_a_cluster_gets_a_client_for_clusters(place: Place, cluster: Any):
    place.peer.script.update(CLUSTER=lambda *_: CLUSTER, COMMAND=lambda *_: COMMANDS)
    events: list[Any] = []
    async with connect(
        URL,
        credential=place.credential,
        cluster=cluster,
        on_event=events.append,
        require_full_coverage=True,
        recovery_timeout=3,
    ) as client:
        assert isinstance(client, EntraRedisCluster)
        assert await client.set("key", "value")
        assert await client.get("key") == b"value"
        source = client.token_source
        # The one that has found out goes on.
        assert len(place.peer.open) == len(place.peer.connections) == 1
        assert len(client.auth_status()) == 1
    assert source is not None
    assert source.state.value == "closed"
    assert len(place.credential.calls) == 1
    assert place.peer.open == []
    kinds = [type(event) for event in events]
    for each in (ConnectionOpened, ConnectionClosed, TokenPublished):
        assert kinds.count(each) == 1


@virtual_time
async def test_where_replicas_are_read_the_first_connection_is_closed_again(place: Place):
    place.peer.script.update(CLUSTER=lambda *_: CLUSTER, COMMAND=lambda *_: COMMANDS)
    balanced: Any = {"load_balancing_strategy": LoadBalancingStrategy.ROUND_ROBIN}
    connecting = connect(URL, credential=place.credential, **balanced)
    async with connecting as client:
        assert isinstance(client, EntraRedisCluster)
        assert await client.get("key") is None
        assert len(place.peer.connections) == 2
        assert len(place.peer.open) == 1
    assert place.peer.open == []


@virtual_time
async def test_keywords_for_clusters_are_no_matter_where_there_is_none(place: Place):
    options: Any = {"reinitialize_steps": 3, "node_tls_names": "advertised"}
    async with connect(URL, credential=place.credential, **options) as client:
        assert isinstance(client, EntraRedis)
    with pytest.raises(TypeError, match="reinitialize_steps"):
        await connect(URL, credential=place.credential, cluster=False, **options)


@virtual_time
async def test_keywords_that_a_cluster_does_not_have_are_named(place: Place):
    place.peer.script.update(CLUSTER=lambda *_: CLUSTER, COMMAND=lambda *_: COMMANDS)
    with pytest.raises(ConfigurationError, match="whose client has no retry_on_timeout=: leave"):
        await connect(URL, credential=place.credential, retry_on_timeout=True)
    assert place.peer.open == []
    assert place.credential.closed == 0


@pytest.mark.parametrize("url", ["unix:///run/redis.sock", "redis://localhost:7/1"])
def test_a_cluster_is_reached_over_tcp_and_has_one_database(url: str):
    with pytest.raises(ConfigurationError, match="has database 0 only"):
        connect(url, cluster=True)
    connect("redis://localhost:7/0", cluster=True)


@virtual_time
async def test_a_user_name_that_is_not_the_tokens_is_refused(place: Place):
    async with place.source() as source:
        with pytest.raises(ConfigurationError, match="'me' is not the object ID"):
            await connect(URL, token_source=source, username="me", cluster=False)


# --------------------------------------------------------------------------------------- fails


@virtual_time
async def test_no_token_is_a_token_error(place: Place):
    place.credential.answer = lambda call: OSError("no identity endpoint")
    with pytest.raises(TokenError, match="no identity endpoint"):
        await connect(URL, credential=place.credential, cluster=False)
    assert place.open_dials == 0
    assert place.peer.connections == []


@virtual_time
async def test_a_refused_token_is_a_connect_error_of_stage_auth(place: Place):
    place.refusal = redis_exceptions.AuthenticationError("WRONGPASS")
    with pytest.raises(SignInRefusedError, match="oid-1") as caught:
        await connect(URL, credential=place.credential, cluster=False)
    assert caught.value.stage == "auth"


@virtual_time
@pytest.mark.parametrize(
    ("hangs", "stage", "says"),
    [
        ("token", "token", "the first token was not there within 3 s"),
        ("dial", "tcp", "an authenticated connection to localhost:7 was not there within 3 s"),
        ("mode", "tcp", "an authenticated connection to localhost:7"),
        ("commands", "tcp", "an authenticated connection to localhost:7"),
    ],
)
@pytest.mark.parametrize("cluster", [True, "auto"])
async def test_open_timeout_covers_every_step(
    place: Place, hangs: str, stage: str, says: str, cluster: Any
):
    stall(place, hangs)
    times: Any = {"open_timeout": 3, "close_timeout": 0.1}
    with pytest.raises(ConnectTimeoutError, match=says) as caught:
        await connect(URL, credential=place.credential, cluster=cluster, **times)
    assert asyncio.get_running_loop().time() <= 3.2
    error = caught.value
    assert (error.stage, error.host, error.port) == (stage, "localhost", 7)
    assert "(open_timeout)" in str(error)
    assert place.peer.open == []
    assert place.open_dials == 0


@virtual_time
@pytest.mark.parametrize("step", ["token", "dial", "mode", "commands"])
@pytest.mark.parametrize(("entered", "cluster"), [(False, True), (False, "auto"), (True, "auto")])
async def test_cancelling_it_at_any_step_leaves_nothing_open(
    place: Place, step: str, entered: bool, cluster: Any
):
    stall(place, step)
    before = asyncio.all_tasks()
    connecting = connect(URL, credential=place.credential, cluster=cluster, close_timeout=0.1)

    async def wait() -> None:
        if entered:
            async with connecting:
                raise AssertionError("it is not connected")
        await connecting

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(1)
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert place.peer.open == []
    assert place.open_dials == 0
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


def stall(place: Place, step: str) -> None:
    """Make one step take for ever."""
    if step == "token":
        place.credential.delay = 1e6
    elif step == "dial":
        place.dial_seconds = 1e6
    elif step == "mode":
        place.peer.script["CLUSTER"] = lambda *_: HANG
    else:
        place.peer.script.update(CLUSTER=lambda *_: CLUSTER, COMMAND=lambda *_: HANG)


@virtual_time
async def test_the_connection_ends_while_its_mode_is_asked_for(place: Place):
    place.peer.script["CLUSTER"] = lambda *_: [0.1, "cut"]
    with pytest.raises((ConnectError, redis_exceptions.ConnectionError)):
        await connect(URL, credential=place.credential)
    assert place.peer.open == []


@virtual_time
async def test_hello_says_the_mode_where_slots_are_denied(place: Place):
    place.peer.script["CLUSTER"] = lambda *_: b"-NOPERM no\r\n"
    place.peer.script["HELLO"] = lambda *_: b"%1\r\n" + bulk("mode") + bulk("cluster")
    with pytest.raises(ClusterModeError, match="denies CLUSTER SLOTS"):
        await connect(URL, credential=place.credential)
    assert place.peer.open == []
