"""A dedicated connection that ends under a pipeline: WatchError would invite to repeat it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, WatchError
from support.pooled import Place
from support.scripted_peer import CUT, OK

from aioentra_redis.errors import MaybeExecutedError

pytestmark = pytest.mark.looptime


@pytest.fixture
async def place():
    made = Place()
    made.peer.script.update(
        WATCH=lambda *_: OK,
        UNWATCH=lambda *_: OK,
        MULTI=lambda *_: OK,
        GET=lambda *_: b"$1\r\n1\r\n",
        SET=lambda *_: b"+QUEUED\r\n",
        EXEC=lambda *_: CUT,
    )
    yield made
    await made.close()


async def watched(place: Place, *commands: str, **options: Any) -> list[Any]:
    async with place.client(place.pool(**options)).pipeline() as pipe:
        await pipe.watch("k")
        assert await pipe.get("k") == b"1"
        pipe.multi()
        for name in commands:
            pipe.execute_command(name, "k", *(["2"] if name == "SET" else []))
        return list(await pipe.execute())


async def test_a_transaction_that_was_sent_may_have_run(place: Place):
    with pytest.raises(MaybeExecutedError, match=r"pipeline of 2 commands .* look before"):
        await watched(place, "SET", "SET")
    assert len(place.peer.seen("EXEC")) == 1


async def test_the_transaction_helper_does_not_repeat_it(place: Place):
    async def change(pipe: Any) -> None:
        pipe.multi()
        pipe.set("k", "2")

    with pytest.raises(MaybeExecutedError):
        await place.client().transaction(change, "k")
    assert len(place.peer.seen("EXEC")) == 1


async def test_one_that_only_reads_may_be_repeated(place: Place):
    place.peer.script["GET"] = [b"$1\r\n1\r\n", b"+QUEUED\r\n"]
    with pytest.raises(WatchError, match="occurred"):
        await watched(place, "GET")


async def test_who_has_asked_for_repetitions_is_told_to_repeat(place: Place):
    with pytest.raises(WatchError, match="occurred"):
        await watched(place, "SET", retry=Retry(NoBackoff(), 3))
    assert len(place.peer.seen("EXEC")) == 1


async def test_what_was_lost_before_it_was_sent_has_not_run(place: Place):
    async with place.client().pipeline() as pipe:
        await pipe.watch("k")
        pipe.multi()
        pipe.set("k", "2")
        place.peer.cut()
        await asyncio.sleep(0)
        with pytest.raises(WatchError, match="occurred"):
            await pipe.execute()


async def test_a_change_by_somebody_else_is_a_watch_error_as_ever(place: Place):
    place.peer.script["EXEC"] = [b"_\r\n"]
    with pytest.raises(WatchError, match="changed"):
        await watched(place, "SET")


async def test_a_write_between_watch_and_multi_may_have_run(place: Place):
    place.peer.script["SET"] = lambda *_: CUT

    async def change(pipe: Any) -> None:
        await pipe.set("k", "2")

    with pytest.raises(MaybeExecutedError, match=r"SET had been sent"):
        await place.client().transaction(change, "k")
    assert len(place.peer.seen("SET")) == 1


@pytest.mark.parametrize("command", ["GET", "WATCH"])
async def test_what_changes_nothing_between_watch_and_multi_may_be_repeated(
    place: Place, command: str
):
    async with place.client().pipeline() as pipe:
        await pipe.watch("k")
        place.peer.script[command] = lambda *_: CUT
        with pytest.raises(WatchError, match="occurred"):
            await pipe.execute_command(command, "k")


@pytest.mark.parametrize("transaction", [True, False])
@pytest.mark.parametrize("options", [{}, {"retry": Retry(NoBackoff(), 1)}])
async def test_a_pipeline_with_a_blocking_command_may_have_run(
    place: Place, transaction: bool, options: dict[str, Any]
):
    queued = b"+QUEUED\r\n" if transaction else OK
    place.peer.script.update(SET=lambda *_: queued, BLPOP=lambda *_: queued if transaction else CUT)
    async with place.client(place.pool(**options)).pipeline(transaction=transaction) as pipe:
        pipe.set("k", "2")
        pipe.blpop(["q"], timeout=1)
        with pytest.raises(MaybeExecutedError, match="of 2 commands had been sent"):
            await pipe.execute()
    # redis-py 5 wants retry_on_error=, too.
    repeated = bool(options) and not redis.__version__.startswith("5.")
    assert len(place.peer.seen("SET")) == 1 + repeated


async def test_a_pipeline_that_no_connection_could_be_had_for_has_not_run(place: Place):
    client = place.client(place.pool(max_connections=1))
    async with client.pipeline() as holds, client.pipeline() as pipe:
        await holds.watch("k")
        pipe.blpop(["q"], timeout=1)
        with pytest.raises(ConnectionError) as caught:
            await pipe.execute()
    assert not isinstance(caught.value, MaybeExecutedError)


async def test_a_single_command_on_a_connection_of_its_own_may_have_run(place: Place):
    place.peer.script.update({name: lambda *_: CUT for name in ("SET", "GET", "MY.WRITE")})
    client = place.client(place.pool(), routes={"MY.WRITE": "dedicated"})
    with pytest.raises(MaybeExecutedError, match=r"MY\.WRITE had been sent"):
        await client.execute_command("MY.WRITE", "k")
    assert len(place.peer.seen("MY.WRITE")) == 1
    async with client.client() as own:
        with pytest.raises(MaybeExecutedError, match="SET had been sent"):
            await own.set("k", "2")
        with pytest.raises(ConnectionError) as caught:
            await own.get("k")
    assert not isinstance(caught.value, MaybeExecutedError)
