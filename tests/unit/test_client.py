"""The client: plans, routes, what is sent again and what is not, over a scripted peer."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.credentials import UsernamePasswordCredentialProvider
from support.place import Place
from support.scripted_peer import CUT, HANG, OK, bulk
from support.token_fakes import Clock, Credential, source_of

from aioentra_redis import EntraRedis, TokenState
from aioentra_redis._commands import MAX_PLANS
from aioentra_redis._multiplex import _connection
from aioentra_redis._multiplex._session import FEW, HIGH_WATER
from aioentra_redis.errors import (
    ClosedError,
    ClusterModeError,
    CommandRefusedError,
    ConfigurationError,
    ConnectionLostError,
    InsecureConnectionError,
    MaybeExecutedError,
)

pytestmark = pytest.mark.looptime

LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"
MOVED = b"-MOVED 3999 10.0.0.9:7001\r\n"


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
async def place(monkeypatch):
    made = Place()
    monkeypatch.setattr(_connection, "dial", made.dial)
    yield made
    await made.aclose()


# -------------------------------------------------------------------------------------- plain


async def test_commands_share_one_connection(place: Place):
    client = place.client()
    await client.set("k", "v")
    await client.set("n", "1", ex=60)
    assert await asyncio.gather(*[client.get("k") for _ in range(50)]) == [b"v"] * 50
    assert place.dials == 1
    assert "1 connection(s)" in repr(client)
    (row,) = client.auth_status()
    assert row.in_flight == 0
    assert row.token_version is None
    assert client.token_source is None
    assert await client.start() is client


async def test_names_with_a_space_are_two_words(place: Place):
    place.peer.script["CONFIG"] = lambda *words: b"%1\r\n+a\r\n" + bulk(b" ".join(words))
    client = place.client()
    assert list((await client.config_get("x")).values()) in (["CONFIG GET x"], [b"CONFIG GET x"])
    assert place.peer.seen("CONFIG")[0] == [b"CONFIG", b"GET", b"x"]
    assert await client.execute_command(b"CONFIG GET", "y") is not None
    assert place.peer.seen("CONFIG")[-1] == [b"CONFIG", b"GET", b"y"]


async def test_made_up_names_do_not_fill_the_memory(place: Place):
    client = place.client()
    for number in range(MAX_PLANS + 10):
        client._make_plan((f"NAME{number}",))
    assert len(client._plans) == MAX_PLANS
    with pytest.raises(redis_exceptions.ResponseError, match="unknown command"):
        await client.execute_command("ONEMORE")


async def test_a_data_error_leaves_nothing_in_the_queue(place: Place):
    client = place.client()
    await client.ping()
    commands = len(place.peer.commands)
    for wrong in (None, True, object(), [1]):
        with pytest.raises(redis_exceptions.DataError):
            await client.set("k", wrong)
    assert client.auth_status()[0].in_flight == 0
    assert len(place.peer.commands) == commands
    assert await client.get("k") is None


async def test_a_data_error_behind_the_gate_lets_the_next_one_in(place: Place):
    client = place.client()
    await client.ping()
    session = client._multiplexed.session
    session.pause_writing()
    wrong = asyncio.ensure_future(client.set("k", None))
    right = asyncio.ensure_future(client.set("k", b"x" * HIGH_WATER))
    await asyncio.sleep(0.01)
    session.resume_writing()
    with pytest.raises(redis_exceptions.DataError):
        await wrong
    assert await asyncio.wait_for(right, 1) is True


async def test_a_cancelled_caller_changes_nobody_elses_reply(place: Place):
    place.peer.script["GET"] = lambda name, key: [0.1, bulk(key)]
    client = place.client()
    tasks = [asyncio.ensure_future(client.get(f"k{n}")) for n in range(9)]
    await asyncio.sleep(0.25)
    for task in tasks[3::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for n, result in enumerate(results):
        expected = asyncio.CancelledError if n in (3, 6) else bytes
        assert isinstance(result, expected)
        assert n in (3, 6) or result == b"k%d" % n


# ---------------------------------------------------------------------------------- callbacks


async def test_callbacks_may_be_awaitable_and_set_later(place: Place):
    place.peer.values[b"k"] = b"v"
    client = place.client()
    assert await client.get("k") == b"v"
    client.set_response_callback("GET", lambda reply, **options: ("sync", reply, options))
    assert await client.get("k") == ("sync", b"v", {})

    async def later(reply: Any, **options: Any) -> Any:
        await asyncio.sleep(0.01)
        return ("async", reply, options)

    client.set_response_callback("GET", later)
    assert await client.get("k") == ("async", b"v", {})
    assert await client.execute_command("GET", "k", keys=["k"], extra=1) == (
        "async",
        b"v",
        {"extra": 1},
    )


async def test_never_decode_and_everybody_else(place: Place):
    place.encoding = "utf-8"
    place.peer.script["DUMP"] = lambda *_: b"$2\r\n\xff\xfe\r\n"
    place.peer.values[b"k"] = "\N{SNOWMAN}".encode()
    place.peer.values[b"bad"] = b"\xff"
    client = place.client(decode_responses=True)
    results = await asyncio.gather(
        client.get("k"),
        client.execute_command("DUMP", "k", **{NEVER_DECODE: []}),
        client.get("bad"),
        client.get("k"),
        return_exceptions=True,
    )
    assert results[:2] == ["\N{SNOWMAN}", b"\xff\xfe"]
    assert isinstance(results[2], UnicodeDecodeError)
    assert results[3] == "\N{SNOWMAN}"


@pytest.mark.parametrize("straight", [True, False])
async def test_empty_response(place: Place, straight: bool):
    place.peer.script["BAD"] = lambda *_: b"-ERR no\r\n"
    client = place.client()
    await client.ping()
    if not straight:
        client._multiplexed.session.congested = True
    assert await client.execute_command("BAD", **{EMPTY_RESPONSE: ["empty"]}) == ["empty"]
    with pytest.raises(redis_exceptions.ResponseError, match="no"):
        await client.execute_command("BAD")


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("SELECT", 1), "db="),
        (("MULTI",), "pipeline"),
        (("WATCH", "k"), "pipeline"),
        (("SUBSCRIBE", "c"), "pubsub"),
        (("CLIENT REPLY", "SKIP"), "every reply"),
        (("CLIENT", "REPLY", "OFF"), "every reply"),
        ((b"client", b"reply", b"skip"), "every reply"),
        (("MONITOR",), "monitor"),
        (("WAIT", 1, 0), "connection of your own"),
    ],
)
async def test_refused_commands_say_what_to_use(place: Place, words: tuple[Any, ...], remedy: str):
    client = place.client()
    await client.ping()
    with pytest.raises(CommandRefusedError, match=remedy):
        await client.execute_command(*words)
    assert len(place.peer.commands) == 1


async def test_moved_means_the_wrong_mode(place: Place):
    place.peer.script["GET"] = lambda *_: MOVED
    client = place.client()
    for _ in range(2):
        with pytest.raises(ClusterModeError, match="cluster=True") as caught:
            await client.get("k")
        assert "3999 10.0.0.9:7001" in str(caught.value)
        assert isinstance(caught.value.__cause__, redis_exceptions.ResponseError)


# --------------------------------------------------------------------------------- sent again


async def test_a_read_whose_reply_was_lost_is_sent_again(place: Place):
    place.peer.script["GET"] = [CUT, CUT]
    place.peer.values[b"k"] = b"v"
    client = place.client()
    assert await client.get("k") == b"v"
    assert len(place.peer.seen("GET")) == 3
    assert place.dials == 3


async def test_a_write_that_may_have_run_is_not_sent_again(place: Place):
    place.peer.script["INCR"] = [CUT]
    client = place.client()
    await client.ping()
    with pytest.raises(MaybeExecutedError) as caught:
        await client.execute_command("INCR", "n")
    assert caught.value.written
    assert isinstance(caught.value, redis_exceptions.ConnectionError)
    text = str(caught.value)
    assert text.startswith("INCR had been sent when the connection ended")
    assert "closed by the server" in text
    assert "retry=" in text
    assert isinstance(caught.value.__cause__, ConnectionLostError)
    assert len(place.peer.seen("INCR")) == 1
    assert await client.execute_command("INCR", "n") == 1


async def test_the_users_retry_sends_writes_again_as_often_as_it_says(place: Place):
    place.peer.script["INCR"] = [CUT, CUT, CUT, CUT, CUT]
    client = place.client(retry=Retry(ConstantBackoff(0.5), 2))
    await client.ping()
    started = now()
    with pytest.raises(MaybeExecutedError):
        await client.execute_command("INCR", "n")
    assert len(place.peer.seen("INCR")) == 3
    assert now() - started >= 1.0
    place.peer.script["INCR"] = [CUT, CUT]
    assert await client.execute_command("INCR", "n") == 1, "each command has attempts of its own"


async def test_what_was_not_written_is_sent_again(place: Place):
    client = place.client()
    await asyncio.gather(*[client.ping() for _ in range(FEW + 2)])
    task = asyncio.ensure_future(client.execute_command("INCR", "n"))
    if not client._multiplexed.session.in_flight:  # an eager task has submitted already
        await asyncio.sleep(0)
    client._multiplexed.session.close()
    assert await task == 1
    assert len(place.peer.seen("INCR")) == 1
    assert place.dials == 2


async def test_what_can_never_be_written_ends_with_the_recovery_timeout(place: Place):
    """Every connection ends before anything is written on it."""
    client = place.client(recovery_timeout=5)
    await asyncio.gather(*[client.ping() for _ in range(FEW + 2)])
    place.on_dial = lambda dialed: (
        setattr(dialed.transport, "get_extra_info", lambda name: None) or dialed.transport.end()
    )
    client._multiplexed.session.close()
    started = now()
    with pytest.raises(redis_exceptions.ConnectionError):
        await client.execute_command("INCR", "n")
    assert now() - started < 11
    assert place.dials < 30


async def test_loading_waits(place: Place):
    place.peer.script["SET"] = [LOADING] * 4
    client = place.client()
    await client.ping()
    started = now()
    assert await client.set("k", "v") is True
    assert now() - started == pytest.approx(0.4, abs=0.05)


async def test_loading_does_not_wait_for_ever(place: Place):
    place.peer.script["SET"] = lambda *_: LOADING
    client = place.client(recovery_timeout=3)
    with pytest.raises(redis_exceptions.BusyLoadingError):
        await client.set("k", "v")
    assert now() == pytest.approx(3.1, abs=0.2)


async def test_cancelled_while_it_is_sent_again(place: Place):
    place.peer.script["GET"] = [CUT, HANG]
    client = place.client()
    task = asyncio.ensure_future(client.get("k"))
    await asyncio.sleep(1)
    assert len(place.peer.seen("GET")) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    place.peer.go_on()
    client._multiplexed.session.close()
    assert await client.ping() is True


# ---------------------------------------------------------------------------- mode of the server


@pytest.mark.parametrize(
    ("slots", "mode", "expected"),
    [
        (b"*1\r\n*3\r\n:0\r\n:1\r\n*0\r\n", "standalone", True),
        (b"*0\r\n", "cluster", False),
        (b"-ERR This instance has cluster support disabled\r\n", "standalone", False),
        (b"-NOPERM no\r\n", "cluster", True),
        (b"-NOPERM no\r\n", "standalone", False),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_cluster_slots_count_and_hello_where_they_are_denied(
    place: Place, slots: bytes, mode: str, expected: bool, protocol: int
):
    map_of_one = b"%1\r\n" if protocol == 3 else b"*2\r\n"
    place.peer.script["CLUSTER"] = lambda *_: slots
    place.peer.script["HELLO"] = lambda *_: map_of_one + bulk("mode") + bulk(mode)
    assert await place.client().is_cluster_node() is expected


@pytest.mark.parametrize("losses", [1, 2, 3])
async def test_a_loss_while_asking_is_no_answer(place: Place, losses: int):
    answers = [CUT] * losses + [b"*1\r\n*0\r\n"]
    place.peer.script["CLUSTER"] = lambda *_: answers.pop(0)
    client = place.client()
    if losses < 3:
        assert await client.is_cluster_node() is True
    else:
        with pytest.raises(ConnectionLostError):
            await client.is_cluster_node()


async def test_a_closing_that_was_cancelled_goes_on_and_is_waited_for(place: Place):
    clock = Clock()
    client = place.client(credential=Credential(clock), allow_plaintext=True)
    await client.ping()
    source = client.token_source
    assert source is not None
    first = asyncio.ensure_future(client.aclose())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await client.aclose()
    assert client.auth_status() == []
    assert source.state is TokenState.CLOSED


# ---------------------------------------------------------------------------------------- life


def with_tokens() -> dict[str, Any]:
    """What makes closing final; the scripted peer asks for no token."""
    clock = Clock()
    return {"token_source": source_of(Credential(clock), clock), "allow_plaintext": True}


async def test_closing_is_final_and_idempotent(place: Place):
    client = place.client(**with_tokens())
    await client.ping()
    await client.aclose()
    await client.aclose()
    for words in (("PING",), ("GET", "k"), ("BLPOP", "k", 0)):
        with pytest.raises(ClosedError, match="final"):
            await client.execute_command(*words)
    with pytest.raises(ClosedError):
        await client.start()
    assert client.auth_status() == []


async def test_what_is_ours_is_closed_and_what_is_not_is_not(place: Place):
    clock = Clock()
    credential = Credential(clock)
    shared = source_of(Credential(clock), clock)
    events: list[Any] = []
    ours = place.client(credential=credential, allow_plaintext=True, on_event=events.append)
    theirs = place.client(token_source=shared, allow_plaintext=True)
    own_source = ours.token_source
    assert own_source is not None
    assert theirs.token_source is shared
    await shared.start()
    await own_source.start()
    assert events, "the source's events, too"
    assert "token for" in repr(ours)
    await ours.aclose()
    await theirs.aclose()
    assert own_source.state.value == "closed"
    assert shared.state.value == "fresh"
    assert credential.closed == 0
    await shared.aclose()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"token_source": object(), "credential": object()}, "not both"),
        ({"credential": object(), "password": "p"}, "password="),
        ({"credential": object(), "redis_connect_func": print}, "redis_connect_func="),
        ({"token_source": "nonsense"}, "token_source= is a TokenSource"),
        ({"recovery_timeout": -1}, "recovery_timeout="),
        ({"close_timeout": "x"}, "close_timeout="),
        ({"credential": object(), "credential_provider": object()}, "credential_provider="),
    ],
)
def test_contradictory_options(options: dict[str, Any], text: str):
    with pytest.raises(ConfigurationError, match=text):
        EntraRedis(host="localhost", **options)


def test_wrong_arguments_are_one_error_not_two():
    with pytest.raises(TypeError, match="positional argument"):
        EntraRedis("localhost")  # type: ignore[misc]
    gc.collect()  # an exception in __del__ would fail this test


def pool_of(*, host: str = "localhost", **options: Any) -> redis.asyncio.ConnectionPool:
    return redis.asyncio.ConnectionPool(host=host, **options)


def test_one_pool_signs_in_with_one_source():
    clock, pool = Clock(), pool_of()
    source = source_of(Credential(clock), clock)
    first = EntraRedis(connection_pool=pool, token_source=source)
    second = EntraRedis(connection_pool=pool, token_source=source)
    assert first._multiplexed is second._multiplexed
    other = source_of(Credential(clock), clock)
    with pytest.raises(ConfigurationError, match="sign in in another way already"):
        EntraRedis(connection_pool=pool, token_source=other)
    assert first.token_source is second.token_source is source


@pytest.mark.parametrize("used_by", ["a plain client", "another provider"])
def test_a_pool_that_signs_in_otherwise_is_left_as_it_is(used_by: str):
    provider = UsernamePasswordCredentialProvider("u", "p")
    pool = pool_of(credential_provider=provider if used_by == "another provider" else None)
    plain = EntraRedis(connection_pool=pool) if used_by == "a plain client" else None
    before = dict(pool.connection_kwargs), pool.connection_class
    with pytest.raises(ConfigurationError, match="make another pool"):
        EntraRedis(connection_pool=pool, credential=Credential(Clock()))
    assert (dict(pool.connection_kwargs), pool.connection_class) == before
    assert plain is None or plain.token_source is None


def test_from_pool_takes_our_keywords_and_the_pool():
    client = EntraRedis.from_pool(pool_of(), credential=Credential(Clock()))
    assert client.token_source is not None
    assert client.auto_close_connection_pool


async def test_without_tokens_a_closed_client_may_be_used_again_as_in_redis_py(place: Place):
    events: list[Any] = []
    client = place.client(on_event=events.append)
    for turn in range(1, 4):
        assert await client.ping()
        assert (place.dials, len(client.auth_status())) == (turn, 1)
        assert [type(each).__name__ for each in events].count("ConnectionOpened") == turn
        await client.aclose()
        assert client.auth_status() == []
    assert await client.start() is client
    assert place.dials == 4


async def test_a_client_that_is_being_closed_is_not_opened_again(place: Place):
    client = place.client(close_timeout=1)
    place.peer.script["GET"] = lambda *_: HANG
    under_way = asyncio.ensure_future(client.get("k"))
    await asyncio.sleep(0.1)
    closing = asyncio.ensure_future(client.aclose())
    await asyncio.sleep(0.1)
    with pytest.raises(ClosedError, match="being closed"):
        await client.get("k")
    with pytest.raises(ClosedError):
        await under_way
    await closing
    assert await client.ping()


async def test_clients_of_one_pool_close_and_open_one_by_one(place: Place):
    pool = pool_of(host="peer")
    first, second = EntraRedis(connection_pool=pool), EntraRedis(connection_pool=pool)
    place.clients += [first, second]
    await first.ping()
    await first.aclose()
    assert await second.ping()
    assert await first.ping(), "it has its share again"
    await second.aclose()
    assert await first.ping()
    assert place.dials == 1
    await first.aclose()
    assert await second.ping()
    assert place.dials == 2


class Lender:
    """What redis-py asks of a pool: it lends connections, and doesn't say how to make them."""

    connection_kwargs: dict[str, Any] = {}  # noqa: RUF012 - as redis-py has it

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.lent = 0

    async def get_connection(self) -> Any:
        self.lent += 1
        return self.connection

    async def release(self, connection: Any) -> None:
        assert connection is self.connection

    def get_encoder(self) -> Any:
        return None

    def get_protocol(self) -> int:
        return 3


class OneConnection:
    """A connection that answers every command with the command."""

    host, port, db, retry = "peer", 1, 0, Retry(NoBackoff(), 0)
    credential_provider = None

    def __init__(self) -> None:
        self.sent: tuple[Any, ...] = ()

    async def send_command(self, *words: Any) -> None:
        self.sent = words

    async def read_response(self, **options: Any) -> Any:
        return list(self.sent)

    def should_reconnect(self) -> bool:
        return False


async def test_a_pool_that_only_lends_connections_is_used_as_redis_py_uses_it(place: Place):
    pool: Any = Lender(OneConnection())
    client = EntraRedis(connection_pool=pool)
    for turn in (1, 2):
        assert await client.execute_command("ECHO", "a") == ["ECHO", "a"]
        assert pool.lent == turn
    assert client.token_source is None
    assert client.auth_status() == []
    assert await client.start() is client
    assert place.dials == 0
    await client.aclose()
    with pytest.raises(ConfigurationError, match="how to connect"):
        EntraRedis(connection_pool=pool, credential=Credential(Clock()))


async def test_a_connection_put_into_the_clients_hand_takes_every_command(place: Place):
    client = place.client()
    assert await client.execute_command("ECHO", "shared") != ["ECHO", "shared"]
    mine: Any = OneConnection()
    client.connection = mine
    assert await client.execute_command("ECHO", "mine") == ["ECHO", "mine"]
    await client.execute_command("READONLY")  # it is the owner's to change
    client.connection = None
    assert await client.execute_command("ECHO", "shared") != ["ECHO", "shared"]
    with pytest.raises(CommandRefusedError):
        await client.execute_command("READONLY")
    assert mine.sent == ("READONLY",)


async def test_from_url_deprecates_what_redis_py_deprecates():
    for owns in (True, False):
        with pytest.warns(DeprecationWarning, match="auto_close_connection_pool"):
            client = EntraRedis.from_url("redis://peer", auto_close_connection_pool=owns)
        assert client.auto_close_connection_pool is owns
    assert EntraRedis.from_url("redis://peer").auto_close_connection_pool is True


async def test_a_closed_client_takes_no_connection_from_the_pool(place: Place):
    client = place.client(**with_tokens())
    await client.ping()
    await client.aclose()
    for take in (client.pipeline, client.pubsub, client.monitor, client.client):
        with pytest.raises(ClosedError, match="final"):
            take()
    assert place.dials == 1


async def test_a_client_on_one_connection_closes_its_source_too(place: Place):
    clock = Clock()
    client = EntraRedis(credential=Credential(clock), single_connection_client=True)
    source = client.token_source
    assert source is not None
    await source.get()
    await client.aclose()
    assert source.state is TokenState.CLOSED


async def test_set_retry_is_the_users_word(place: Place):
    place.peer.script["INCR"] = [CUT]
    client = place.client()
    client.set_retry(Retry(NoBackoff(), 1))
    assert await client.execute_command("INCR", "n") == 1


def test_nothing_is_repeated_by_default_on_the_pool_either():
    assert EntraRedis(host="localhost").connection_pool.connection_kwargs["retry"]._retries == 0
    mine = Retry(NoBackoff(), 2)
    pool = EntraRedis(host="localhost", retry=mine).connection_pool
    assert pool.connection_kwargs["retry"]._retries == 2


def test_a_token_does_not_travel_in_clear():
    with pytest.raises(InsecureConnectionError, match=r"cache\.example in clear text"):
        EntraRedis(host="cache.example", credential=Credential(Clock()))
    EntraRedis(host="localhost", credential=Credential(Clock()))


async def test_ok_is_what_redis_py_makes_of_it(place: Place):
    place.peer.script["FLUSHDB"] = lambda *_: OK
    assert await place.client().flushdb() is True
