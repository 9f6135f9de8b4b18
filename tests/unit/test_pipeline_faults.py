"""Pipelines that are cancelled, lose their connection, load scripts, or go in pieces."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from support.place import Place
from support.resp import pack
from support.scripted_peer import CUT, HANG, bulk
from support.transactional import LOADING, Transactional, crowd, error_of, written

from aioentra_redis import _pipeline
from aioentra_redis._multiplex import _connection
from aioentra_redis._multiplex._session import HIGH_WATER
from aioentra_redis._pipeline import EntraPipeline
from aioentra_redis.errors import (
    CommandTimeoutError,
    MaybeExecutedError,
)

pytestmark = pytest.mark.looptime


@pytest.fixture
async def place(monkeypatch):
    made = Place(Transactional())
    monkeypatch.setattr(_connection, "dial", made.dial)
    yield made
    await made.aclose()


# ------------------------------------------------------------------------------- in pieces


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(_pipeline, "CHUNK_COMMANDS", 3)
    monkeypatch.setattr(_pipeline, "CHUNK_BYTES", 400)


@pytest.mark.usefixtures("small_pieces")
async def test_long_pipelines_go_in_pieces_one_after_the_other(place: Place):
    client = place.client()
    await client.ping()
    written(place)
    pipe = client.pipeline(transaction=False)
    for number in range(7):
        pipe.set(f"k{number}", number)
    assert await pipe.execute() == [True] * 7
    sets = [pack("SET", f"k{n}", f"{n}") for n in range(7)]
    assert written(place) == [b"".join(sets[0:3]), b"".join(sets[3:6]), sets[6]]
    for number in range(6):
        pipe.set(f"k{number}", "x" * 200)
    assert await pipe.execute() == [True] * 6
    assert [each.count(b"SET") for each in written(place)] == [2, 2, 2]


@pytest.mark.usefixtures("small_pieces")
async def test_a_transaction_is_never_cut(place: Place):
    client = place.client()
    await client.ping()
    written(place)
    pipe = client.pipeline()
    for number in range(20):
        pipe.set(f"k{number}", "x" * 300)
    assert await pipe.execute() == [True] * 20
    assert len(written(place)) == 1


@pytest.mark.usefixtures("small_pieces")
async def test_raw_replies_keep_their_places_in_pieces(place: Place):
    place.encoding = "utf-8"
    client = place.client(decode_responses=True)
    place.peer.script["DUMP"] = lambda name, key: bulk(b"\xff" + key)
    pipe = client.pipeline(transaction=False)
    expected: list[Any] = []
    for number in range(11):
        if number % 4 == 1:
            pipe.dump(f"{number}")
            expected.append(b"\xff%d" % number)
        else:
            pipe.echo(f"{number}")
            expected.append(f"{number}")
    assert await pipe.execute() == expected


@pytest.mark.usefixtures("small_pieces")
async def test_bad_input_in_the_last_piece_is_known_before_the_first_is_sent(place: Place):
    client = place.client()
    await client.ping()
    written(place)
    pipe = client.pipeline(transaction=False)
    for number in range(14):
        pipe.set(f"k{number}", number)
    pipe.set("k", None)
    assert isinstance(await error_of(pipe.execute()), redis_exceptions.DataError)
    assert written(place) == []


@pytest.mark.usefixtures("small_pieces")
async def test_others_are_served_between_pieces(place: Place):
    client = place.client()
    place.peer.script["ECHO"] = lambda name, text: [1.0, bulk(text)]
    pipe = client.pipeline(transaction=False)
    for number in range(9):
        pipe.echo(number)
    running = asyncio.ensure_future(pipe.execute())
    await asyncio.sleep(0.5)
    assert await client.get("k") is None
    assert asyncio.get_running_loop().time() == pytest.approx(3.0, abs=0.1)
    assert await running == [b"%d" % number for number in range(9)]


@pytest.mark.usefixtures("small_pieces")
async def test_a_loss_in_the_middle_piece_says_which_commands_are_in_doubt(place: Place):
    client = place.client()
    place.peer.script["INCRBY"] = [b":1\r\n", b":2\r\n", b":3\r\n", b":4\r\n", CUT]
    pipe = client.pipeline(transaction=False)
    for _ in range(8):
        pipe.incr("n")
    error = await error_of(pipe.execute())
    assert isinstance(error, MaybeExecutedError)
    assert "commands 4 to 6 of a pipeline of 8" in str(error)
    assert len(place.peer.seen("INCRBY")) == 6, "the last piece was never sent"


async def test_the_gate_is_passed_by_pipelines_too(place: Place):
    client = place.client()
    await client.ping()
    session = client._multiplexed.session
    session.pause_writing()
    pipe = asyncio.ensure_future(client.pipeline().set("k", b"x" * HIGH_WATER).execute())
    single = asyncio.ensure_future(client.get("k"))
    await asyncio.sleep(1)
    written_before = written(place)
    assert pack("GET", "k") not in b"".join(written_before)
    session.resume_writing()
    assert await pipe == [True]
    assert await single == b"x" * HIGH_WATER


# -------------------------------------------------------------------------------- cancellation


@pytest.mark.parametrize("transaction", [False, True])
async def test_cancelled_before_the_write_nothing_is_sent(place: Place, transaction: bool):
    client = place.client()
    await client.ping()
    written(place)
    session = client._multiplexed.session
    session._flush_scheduled = True  # a flush that does not come
    running = asyncio.ensure_future(client.pipeline(transaction).set("k", "v").get("k").execute())
    single = asyncio.ensure_future(client.get("o"))
    await asyncio.sleep(0.1)
    assert session.in_flight == (5 if transaction else 3)
    running.cancel()
    assert isinstance(await error_of(running), asyncio.CancelledError)
    assert session.in_flight == 1
    session._flush()
    assert await single is None
    assert written(place) == [pack("GET", "o")]


@pytest.mark.parametrize("transaction", [False, True])
async def test_cancelled_at_the_gate_nothing_is_sent_and_the_next_is_let_in(
    place: Place, transaction: bool
):
    client = place.client()
    await client.ping()
    written(place)
    client._multiplexed.session.pause_writing()
    pipe = client.pipeline(transaction).set("k", "v").get("k")
    running = asyncio.ensure_future(pipe.execute())
    behind = asyncio.ensure_future(client.pipeline(transaction).get("o").execute())
    await asyncio.sleep(0.1)
    running.cancel()
    assert isinstance(await error_of(running), asyncio.CancelledError)
    assert len(pipe) == 0
    client._multiplexed.session.resume_writing()
    assert await behind == [None]
    assert pack("SET", "k", "v") not in b"".join(written(place))


@pytest.mark.parametrize("transaction", [False, True])
async def test_cancelled_after_the_write_it_is_executed(place: Place, transaction: bool):
    client = place.client()
    place.peer.script["ECHO"] = lambda name, text: [0.2, bulk(text)]
    pipe = client.pipeline(transaction).echo("x") if not transaction else client.pipeline()
    running = asyncio.ensure_future(pipe.set("k", "v").incr("n").execute())
    while not place.peer.seen("INCRBY"):  # noqa: ASYNC110
        await asyncio.sleep(0)
    running.cancel()
    assert isinstance(await error_of(running), asyncio.CancelledError)
    assert await client.get("k") == b"v"
    assert await client.get("n") == b"1"
    assert client.auth_status()[0].in_flight == 0


# ---------------------------------------------------------------------------------------- loss


async def test_what_only_reads_is_sent_again(place: Place):
    client = place.client()
    place.peer.script["GET"] = [b"$1\r\na\r\n", CUT]
    place.peer.values[b"k"] = b"v"
    assert await client.pipeline(False).get("k").get("k").strlen("k").execute(False)
    assert place.dials == 2
    place.peer.script["GET"] = [CUT]
    assert await client.pipeline(False).get("k").get("k").execute() == [b"v", b"v"]
    assert place.dials == 3


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_write_that_may_have_run_is_not_repeated(place: Place, transaction: bool):
    client = place.client()
    place.peer.script["INCRBY"] = [CUT]
    error = await error_of(client.pipeline(transaction).get("k").incr("n").execute())
    assert isinstance(error, MaybeExecutedError)
    says = "a transaction of 2 commands" if transaction else "commands 1 to 2 of a pipeline of 2"
    assert says in str(error)
    assert len(place.peer.seen("INCRBY")) == 1
    place.peer.queued = None
    assert await client.pipeline(transaction).incr("n").execute() == [1]


async def test_the_users_retry_repeats_it(place: Place):
    client = place.client(retry=Retry(ConstantBackoff(0.1), 2))
    for transaction in (False, True):
        place.peer.script["INCRBY"] = [CUT, CUT]
        place.peer.queued = None
        results = await client.pipeline(transaction).incr("n").get("n").execute()
        assert results[0] in (1, 2)


@pytest.mark.parametrize("transaction", [False, True])
async def test_what_was_not_written_is_sent_on_the_next_connection(place: Place, transaction: bool):
    client = place.client()
    await crowd(client)
    session = client._multiplexed.session
    session._flush_scheduled = True  # a flush that does not come
    running = asyncio.ensure_future(client.pipeline(transaction).incr("n").get("n").execute())
    await asyncio.sleep(0.1)
    assert session.in_flight > 0
    session.close()
    assert await running == [1, b"1"]
    assert place.dials == 2
    assert len(place.peer.seen("INCRBY")) == 1


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_late_reply_fails_it_as_a_whole_and_once(place: Place, transaction: bool):
    client = place.client()
    place.peer.script["INCRBY"] = [[HANG, b":1\r\n"]] if not transaction else []
    if transaction:
        place.peer.script["EXEC"] = [[HANG, b"*2\r\n:1\r\n+x\r\n"]]
    assert await client.ping()
    error = await error_of(client.pipeline(transaction).get("k").incr("n").execute())
    assert isinstance(error, CommandTimeoutError)
    assert len(place.peer.seen("INCRBY")) == 1


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_server_that_loads_is_asked_again(place: Place, transaction: bool):
    client = place.client()
    refusal = b"-QUEUEING " + LOADING[1:] if transaction else LOADING
    place.peer.script["INCRBY"] = [refusal, refusal]
    place.peer.script["ECHO"] = [bulk("x")] * 3
    pipe = client.pipeline(transaction).echo("x").incr("n")
    assert await pipe.execute() == [b"x", 1]
    assert len(place.peer.seen("INCRBY")) == 3


async def test_a_server_that_loaded_half_way_is_not_asked_again(place: Place):
    """What came after the refused command has run: repeating all would repeat that."""
    client = place.client()
    place.peer.script["INCRBY"] = [LOADING]
    error = await error_of(client.pipeline(False).incr("n").incr("m").execute())
    assert isinstance(error, redis_exceptions.BusyLoadingError)
    assert place.peer.values == {b"m": b"1"}


# ------------------------------------------------------------------------------------- scripts


async def test_scripts_are_loaded_first_and_only_if_unknown(place: Place):
    client = place.client()
    known: list[bytes] = []

    def script(name: bytes, sub: bytes, *args: bytes) -> bytes:
        if sub == b"EXISTS":
            return b"*%d\r\n" % len(args) + b"".join(b":%d\r\n" % (a in known) for a in args)
        assert sub == b"LOAD"
        known.append(first.sha.encode())
        return bulk(first.sha)

    place.peer.script["SCRIPT"] = script
    place.peer.script["EVALSHA"] = lambda *words: b"+ran\r\n"
    first = client.register_script("return 1")
    for transaction in (False, True):
        pipe = client.pipeline(transaction).set("k", "v")
        await first(keys=["k"], client=pipe)
        assert await pipe.execute() == [True, b"ran"]
        assert len(place.peer.seen("SCRIPT")) == 2 + transaction
        assert not pipe.scripts
    assert place.dials == 1
    assert place.peer.connections[0].commands.count([b"SCRIPT", b"LOAD", b"return 1"]) == 1


async def test_transaction_runs_on_the_shared_connection_where_nothing_is_watched(place: Place):
    client = place.client()

    async def work(pipe: Any) -> str:
        pipe.multi()
        pipe.set("k", "v").get("k")
        return "value"

    assert await client.transaction(work) == [True, b"v"]
    assert await client.transaction(work, value_from_callable=True) == "value"
    assert place.dials == 1
    assert not client.connection_pool._in_use_connections


async def test_the_client_may_be_a_subclass_of_redis_pys_and_ours(place: Place):
    client = place.client()
    assert isinstance(client, redis.asyncio.Redis)
    assert issubclass(EntraPipeline, redis.asyncio.Redis)
