"""Pipelines and transactions of the client on its shared connection, over a scripted peer."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from redis.asyncio.client import Pipeline
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from support.place import Place
from support.resp import pack
from support.scripted_peer import OK, bulk
from support.token_fakes import Clock, Credential, source_of
from support.transactional import ABORTED, LOADING, Transactional, crowd, error_of, written

from aioentra_redis._multiplex import _connection
from aioentra_redis._pipeline import EntraPipeline
from aioentra_redis.errors import (
    ClosedError,
    ClusterModeError,
    CommandRefusedError,
)

pytestmark = pytest.mark.looptime

MULTI, EXEC = pack("MULTI"), pack("EXEC")
MOVED = b"-MOVED 3999 10.0.0.9:7001\r\n"


@pytest.fixture
async def place(monkeypatch):
    made = Place(Transactional())
    monkeypatch.setattr(_connection, "dial", made.dial)
    yield made
    await made.aclose()


# --------------------------------------------------------------------------------- on the wire


async def test_a_pipeline_is_one_write(place: Place):
    client = place.client()
    await client.ping()
    written(place)
    pipe = client.pipeline(transaction=False)
    pipe.set("k", 1).incr("k").get("k").execute_command("CONFIG RESETSTAT").set("e", "v", ex=5)
    assert len(pipe) == 5
    place.peer.script["CONFIG"] = [OK]
    assert await pipe.execute() == [True, 2, b"2", True, True]
    words = ["SET", "k", "1"], ["INCRBY", "k", "1"], ["GET", "k"], ["CONFIG", "RESETSTAT"]
    assert written(place) == [
        b"".join(pack(*each) for each in words) + pack("SET", "e", "v", "EX", "5")
    ]
    assert len(pipe) == 0
    assert pipe
    assert await pipe.execute() == []
    assert written(place) == []


async def test_a_transaction_is_one_write_between_multi_and_exec(place: Place):
    client = place.client()
    await client.ping()
    written(place)
    async with client.pipeline() as pipe:
        assert await pipe.set("k", 1).incr("k").execute() == [True, 2]
        pipe.multi()  # without WATCH it says nothing new
        assert await pipe.get("k").execute() == [b"2"]
    body = pack("SET", "k", "1") + pack("INCRBY", "k", "1")
    assert written(place) == [MULTI + body + EXEC, MULTI + pack("GET", "k") + EXEC]


async def test_neighbours_never_come_between(place: Place):
    client = place.client()
    await crowd(client)
    written(place)
    results = await asyncio.gather(
        client.get("a"),
        client.pipeline().set("k", "v").get("k").execute(),
        client.get("k"),
        client.pipeline(transaction=False).get("k").incr("n").execute(),
        client.incr("n"),
    )
    assert results == [None, [True, b"v"], b"v", [b"v", 1], 2]
    assert written(place) == [
        pack("GET", "a")
        + MULTI
        + pack("SET", "k", "v")
        + pack("GET", "k")
        + EXEC
        + pack("GET", "k")
        + pack("GET", "k")
        + pack("INCRBY", "n", "1")
        + pack("INCRBY", "n", "1")
    ]


async def test_the_object_is_redis_pys(place: Place):
    client = place.client()
    pipe = client.pipeline()
    assert isinstance(pipe, EntraPipeline)
    assert isinstance(pipe, Pipeline)
    assert await pipe is pipe
    assert bool(pipe)
    assert len(pipe) == 0
    pipe.get("k")
    await pipe.reset()
    assert len(pipe) == 0
    pipe.get("k")
    await pipe.aclose()
    assert len(pipe) == 0
    pipe.multi()
    with pytest.raises(redis_exceptions.RedisError, match="nested"):
        pipe.multi()
    with pytest.raises(redis_exceptions.RedisError, match="WATCH after a MULTI"):
        await pipe.watch("k")
    await pipe.reset()
    pipe.get("k")
    with pytest.raises(redis_exceptions.RedisError, match="already been issued"):
        pipe.multi()
    assert await pipe.unwatch() is True


async def test_a_client_on_one_connection_keeps_redis_pys_own(place: Place):
    client = place.client(single_connection_client=True)
    try:
        assert type(client.pipeline()) is Pipeline
    finally:
        await client.aclose()
        place.clients.clear()


async def test_it_keeps_its_client_open(place: Place):
    pipe = place.client().pipeline().get("k")
    place.clients.clear()
    gc.collect()
    assert await pipe.execute() == [None]
    await pipe._client.aclose()


async def test_a_closed_client_sends_nothing(place: Place):
    clock = Clock()  # with tokens closing is final
    client = place.client(token_source=source_of(Credential(clock), clock), allow_plaintext=True)
    pipe, watching = client.pipeline().get("k"), client.pipeline()
    await client.aclose()
    assert isinstance(await error_of(pipe.execute()), ClosedError)
    assert isinstance(await error_of(watching.watch("k")), ClosedError)
    with pytest.raises(ClosedError):
        client.pipeline()
    assert place.dials == 0


async def test_without_tokens_a_closed_client_may_be_used_again(place: Place):
    client = place.client()
    pipe = client.pipeline().set("k", "v")
    await client.ping()
    await client.aclose()
    assert await pipe.execute() == [True]
    assert place.dials == 2


# ------------------------------------------------------------------------------------ replies


async def test_callbacks_are_redis_pys_and_may_be_awaitable(place: Place):
    client = place.client()

    async def later(reply: Any, **options: Any) -> Any:
        await asyncio.sleep(0.01)
        return [reply, options]

    client.set_response_callback("GET", later)
    for transaction in (False, True):
        pipe = client.pipeline(transaction)
        pipe.execute_command("GET", "k", keys=["k"], extra=1)
        assert await pipe.execute() == [[None, {"extra": 1}]]
        pipe.set_response_callback("GET", lambda reply, **options: "new")
        assert await pipe.get("k").execute() == ["new"]
        assert await client.get("k") == "new", "client and pipelines share them"
        client.set_response_callback("GET", later)


async def test_empty_responses_are_redis_pys(place: Place):
    """In a transaction the command isn't sent at all; without, the value replaces an error."""
    client = place.client()
    for empty in ([], None, "nothing"):
        pipe = client.pipeline(transaction=False)
        pipe.execute_command("NONSENSE", **{EMPTY_RESPONSE: empty}).get("k")
        assert await pipe.execute() == [empty, None]
        pipe.execute_command("GET", "k", **{EMPTY_RESPONSE: empty})
        assert await pipe.execute() == [None]
        written(place)
        pipe = client.pipeline()
        pipe.set("k", "v").execute_command("MGET", **{EMPTY_RESPONSE: empty}).get("k")
        assert await pipe.execute() == [True, empty, b"v"]
        assert written(place) == [MULTI + pack("SET", "k", "v") + pack("GET", "k") + EXEC]
        place.peer.values.clear()


async def test_replies_stay_bytes_one_by_one(place: Place):
    place.encoding = "utf-8"
    client = place.client(decode_responses=True)
    place.peer.script["DUMP"] = [bulk(b"\xff\x00"), bulk(b"\xff\x01")]
    pipe = client.pipeline(transaction=False)
    pipe.set("k", "v").dump("k").get("k").execute_command("DUMP", "k", **{NEVER_DECODE: True})
    assert await pipe.get("k").execute() == [True, b"\xff\x00", "v", b"\xff\x01", "v"]


async def test_a_reply_that_cannot_be_decoded_is_its_own_callers_error(place: Place):
    place.encoding = "utf-8"
    client = place.client(decode_responses=True)
    await client.ping()
    place.peer.values[b"bad"] = b"\xff"
    pipe = client.pipeline(transaction=False).get("bad").set("k", "v")
    results = await asyncio.gather(
        pipe.execute(), client.get("k"), client.pipeline().get("bad").execute(), client.get("k"),
        return_exceptions=True,
    )  # fmt: skip
    assert isinstance(results[0], UnicodeDecodeError)
    assert results[1] == "v"
    assert isinstance(results[2], UnicodeDecodeError)
    assert results[3] == "v"


async def test_errors_are_annotated_as_redis_py_annotates_them(place: Place):
    client = place.client()
    for transaction in (False, True):
        pipe = client.pipeline(transaction)
        error = await error_of(pipe.set("k", "v").execute_command("NONSENSE", "a b").execute())
        assert isinstance(error, redis_exceptions.ResponseError)
        assert str(error).startswith("Command # 2 (NONSENSE a b) of pipeline caused error:")
        assert len(pipe) == 0
        results = await pipe.get("k").execute_command("NONSENSE").get("k").execute(False)
        assert (results[0], results[2]) == (b"v", b"v")
        assert isinstance(results[1], redis_exceptions.ResponseError)
        assert str(results[1]) == "unknown command"


async def test_a_callback_that_raises_a_response_error_is_an_error_reply(place: Place):
    """LOCK and scripting helpers do so; redis-py's pipelines take it for one, too."""

    def refuse(reply: Any, **options: Any) -> Any:
        raise redis_exceptions.ResponseError("no good")

    client = place.client()
    client.set_response_callback("ECHO", refuse)
    pipe = client.pipeline(transaction=False)
    error = await error_of(pipe.get("k").echo("x").execute())
    assert str(error).startswith("Command # 2 (ECHO x) of pipeline caused error")
    results = await pipe.echo("x").get("k").execute(raise_on_error=False)
    assert [type(each) for each in results] == [redis_exceptions.ResponseError, type(None)]


async def test_a_command_refused_while_it_was_queued_is_the_error(place: Place):
    client = place.client()
    place.peer.script["BAD"] = lambda *words: b"-QUEUEING ERR no such thing\r\n"
    pipe = client.pipeline().set("k", "v")
    error = await error_of(pipe.execute_command("BAD", "x").execute_command("BAD", "y").execute())
    assert str(error).startswith("Command # 2 (BAD x) of pipeline caused error: ")
    assert isinstance(error.__cause__, redis_exceptions.ExecAbortError)
    place.peer.script["EXEC"] = [ABORTED]
    assert isinstance(await error_of(pipe.get("k").execute()), redis_exceptions.ExecAbortError)


async def test_a_transaction_without_multi_says_so(place: Place):
    """Where an ACL denies MULTI the commands run all the same; redis-py does no better."""
    client = place.client()
    place.peer.script["MULTI"] = [b"-NOPERM no permissions to run the 'multi' command\r\n"]
    error = await error_of(client.pipeline().set("k", "v").get("k").execute())
    assert isinstance(error, redis_exceptions.ResponseError)
    assert "EXEC without MULTI" in str(error)
    assert await client.get("k") == b"v"


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (b"_\r\n", redis_exceptions.WatchError, "Watched variable changed"),
        (b"*-1\r\n", redis_exceptions.WatchError, "Watched variable changed"),
        (b"*1\r\n+OK\r\n", redis_exceptions.ResponseError, "Wrong number of response items"),
        (b"-NOAUTH Authentication required.\r\n", redis_exceptions.AuthenticationError, "requ"),
        (b"*2\r\n" + LOADING + b"+OK\r\n", redis_exceptions.BusyLoadingError, "loading"),
    ],
)
async def test_odd_answers_to_exec(place: Place, answer: bytes, error: type, says: str):
    client = place.client()
    place.peer.script["EXEC"] = [answer]
    place.peer.queued = None
    raise_on_error = error is not redis_exceptions.BusyLoadingError
    got = await error_of(client.pipeline().set("k", "v").get("k").execute(raise_on_error))
    assert type(got) is error
    assert says in str(got)
    place.peer.queued = None
    assert await client.echo("in step") == b"in step"


@pytest.mark.parametrize("transaction", [False, True])
async def test_what_is_no_answer_to_a_command_is_raised(place: Place, transaction: bool):
    client = place.client()
    place.peer.script["GET"] = [b"-QUEUEING NOAUTH Authentication required.\r\n"]
    if not transaction:
        place.peer.script["GET"] = [b"-NOAUTH Authentication required.\r\n"]
    error = await error_of(client.pipeline(transaction).set("a", 1).get("k").execute(False))
    assert type(error) is redis_exceptions.AuthenticationError
    assert await client.get("k") is None


@pytest.mark.parametrize("transaction", [False, True])
async def test_moved_means_that_this_is_the_wrong_client(place: Place, transaction: bool):
    client = place.client()
    moved = b"-QUEUEING " + MOVED[1:] if transaction else MOVED
    place.peer.script["INCRBY"] = lambda *words: moved
    error = await error_of(client.pipeline(transaction).get("a").incr("k").execute())
    assert isinstance(error, ClusterModeError)
    assert "cluster=True" in str(error)
    assert "MOVED" in str(error.__cause__) or "3999" in str(error.__cause__)
    if not transaction:
        results = await client.pipeline(False).get("a").incr("k").execute(raise_on_error=False)
        assert results[0] is None
        assert isinstance(results[1], ClusterModeError)


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("SELECT", 1), "db="),
        (("CLIENT", "REPLY", "OFF"), "every reply"),
        (("CLIENT REPLY", "SKIP"), "every reply"),
        (("client tracking", "on"), "redis.client()"),
        (("SUBSCRIBE", "c"), "pubsub()"),
        (("MONITOR",), "monitor()"),
        (("MULTI",), "transaction"),
        (("exec",), "transaction"),
        (("watch", "k"), "transaction"),
        (("HELLO", 2), "by itself"),
        (("RESET",), "by itself"),
        (("QUIT",), "by itself"),
        (("SHUTDOWN",), "by itself"),
    ],
)
async def test_refused_before_anything_is_sent(
    place: Place, words: Any, remedy: str, transaction: bool
):
    client = place.client()
    await client.ping()
    written(place)
    pipe = client.pipeline(transaction).set("k", "v")
    pipe.execute_command(*words)
    error = await error_of(pipe.get("k").execute())
    assert isinstance(error, CommandRefusedError)
    assert remedy in str(error)
    assert written(place) == []
    assert place.dials == 1
    assert len(pipe) == 0
    assert await pipe.get("k").execute() == [None]


async def test_refused_on_the_connection_of_a_watch_too(place: Place):
    pipe = place.client().pipeline()
    for words in (("SELECT", 3), ("CLIENT", "REPLY", "OFF"), ("QUIT",), ("MULTI",)):
        assert isinstance(
            await error_of(pipe.immediate_execute_command(*words)), CommandRefusedError
        )
    assert pipe.connection is None


@pytest.mark.parametrize("wrong", [None, True, object(), [1], "\ud800"])
@pytest.mark.parametrize("transaction", [False, True])
async def test_bad_input_is_refused_before_anything_is_sent(
    place: Place, wrong: Any, transaction: bool
):
    client = place.client()
    await client.ping()
    written(place)
    pipe = client.pipeline(transaction).set("k", "v").get("k").set("k", wrong).get("k")
    error = await error_of(pipe.execute())
    assert isinstance(error, (redis_exceptions.DataError, UnicodeEncodeError))
    assert written(place) == []
    assert client.auth_status()[0].in_flight == 0
    assert len(pipe) == 0
