"""How a client is built, told what it may not be, and closed."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from support.place import Place
from support.scripted_peer import CUT, HANG, OK, bulk
from support.token_fakes import Clock, Credential, source_of

from aioentra_redis import EntraRedis, TokenState
from aioentra_redis._multiplex import _connection
from aioentra_redis.errors import (
    ClosedError,
    CommandRefusedError,
    ConfigurationError,
    ConnectionLostError,
    InsecureConnectionError,
)

pytestmark = pytest.mark.looptime


@pytest.fixture
async def place(monkeypatch):
    made = Place()
    monkeypatch.setattr(_connection, "dial", made.dial)
    yield made
    await made.aclose()


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
