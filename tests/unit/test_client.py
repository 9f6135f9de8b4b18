"""The client: plans, routes, what is sent again and what is not, over a scripted peer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from support.place import Place
from support.scripted_peer import CUT, HANG, bulk

from aioentra_redis._commands import MAX_PLANS
from aioentra_redis._multiplex import _connection
from aioentra_redis._multiplex._session import FEW, HIGH_WATER
from aioentra_redis.errors import (
    ClusterModeError,
    CommandRefusedError,
    ConnectionLostError,
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
