"""A connection that ends under WATCH and EXEC: WatchError would say that nothing was executed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import WatchError
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
    with pytest.raises(MaybeExecutedError, match=r"transaction of 2 commands .* look before"):
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
