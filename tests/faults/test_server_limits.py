"""A server that is busy with a script, has no memory left, or sends 100 MB: who waits for what."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import resource
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from support.load import Load
from support.signing_in import Witness, client_of, minted_source

from aioentra_redis import ConnectionOpened, Reauthenticated
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]

MB = 1 << 20
ENDLESS = "while true do end"


@pytest.fixture(scope="module")
def entra_emulator_options() -> dict[str, Any]:
    """With CONFIG, which Azure does not have."""
    return {"blocked_commands": ()}


@pytest.fixture(scope="module")
def entra_emulator_process(entra_emulator_options: dict[str, Any]) -> Any:
    with Emulator(**entra_emulator_options) as emulator:
        yield emulator


@contextlib.asynccontextmanager
async def configured(redis: Any, **settings: Any) -> AsyncIterator[None]:
    """The server's settings, for a while."""
    names = {name: name.replace("_", "-") for name in settings}
    before = {name: (await redis.config_get(name))[name] for name in names.values()}
    for name, value in settings.items():
        await redis.config_set(names[name], value)
    try:
        yield
    finally:
        for name, value in before.items():
            await redis.config_set(name, value)


async def test_a_script_that_does_not_end(entra_emulator: Emulator, figure: Any) -> None:
    """Others are told BUSY; tokens rotate; SCRIPT KILL passes; nothing is out of step after it."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
        configured(redis, busy_reply_threshold=100),
    ):
        async with Load(redis, 20) as load:
            own = redis.client()
            running = asyncio.create_task(own.eval(ENDLESS, 0))
            async with asyncio.timeout(10):
                while not load.errors or not load.read_errors:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            rotations = len(witness.of(Reauthenticated))
            await witness.at_least(rotations + 1, Reauthenticated)
            batch = (
                await redis.pipeline(transaction=False)
                .get("a")
                .incr("b")
                .execute(raise_on_error=False)
            )
            assert all("BUSY" in str(each) for each in batch)
            with pytest.raises(redis_exceptions.ResponseError, match="BUSY"):
                await redis.blpop("queue", timeout=1)
            assert await redis.script_kill()
            with pytest.raises(redis_exceptions.ResponseError, match="killed by user"):
                await running
            await own.aclose()
            await load.more(500)
        told = load.errors + load.read_errors
        figure("BUSY: commands that were told so", len(told))
        assert all("BUSY" in str(each) for each in told)
        assert (load.maybe, load.wrong) == (0, [])
        shared = [each.connection for each in witness.of(ConnectionOpened)]
        assert sum(name.startswith("connection") for name in shared) == 1


async def test_a_server_without_memory(entra_emulator: Emulator, figure: Any) -> None:
    """Writes are told OOM and not executed; reads, rotations, waits and what frees memory go on."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        await redis.rpush("queue", "element")
        async with Load(redis, 20) as load:
            async with configured(redis, maxmemory=1):
                async with asyncio.timeout(10):
                    while len(load.errors) < 200:  # noqa: ASYNC110 - nothing tells
                        await asyncio.sleep(0.01)
                rotations = len(witness.of(Reauthenticated))
                await witness.at_least(rotations + 2, Reauthenticated)
                with pytest.raises(redis_exceptions.OutOfMemoryError):
                    await redis.pipeline(transaction=True).set("a", 1).get("b").execute()
                batch = (
                    await redis.pipeline(transaction=False)
                    .set("a", 1)
                    .get("b")
                    .execute(raise_on_error=False)
                )
                assert isinstance(batch[0], redis_exceptions.OutOfMemoryError)
                assert batch[1] is None
                assert list(await redis.blpop("queue", timeout=1)) == [b"queue", b"element"]
            await load.more(500)
        figure("OOM: writes that were told so", len(load.errors))
        figure("OOM: reads that failed", len(load.read_errors), target="0")
        assert {type(each) for each in load.errors} == {redis_exceptions.OutOfMemoryError}
        assert "maxmemory" in str(load.errors[0])
        assert (load.read_errors, load.maybe, load.wrong) == ([], 0, [])
        shared = [each.connection for each in witness.of(ConnectionOpened)]
        assert sum(name.startswith("connection") for name in shared) == 1


async def lap(laps: list[float]) -> None:
    """Note how long each turn of the loop takes, until cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        at = clock()
        await asyncio.sleep(0)
        laps.append(clock() - at)


@pytest.mark.alone
async def test_a_reply_of_100_mb(entra_emulator: Emulator, figure: Any) -> None:
    """On the shared connection others wait for it, and no longer; on a dedicated one hardly."""
    clock = asyncio.get_running_loop().time
    block = hashlib.sha256(b"seed").digest() * (MB // 32)
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source) as redis,
    ):
        for number in range(100):
            await redis.setrange("large", number * MB, block)
        async with Load(redis, 10) as load:
            for way in ("shared", "dedicated"):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                laps: list[float] = []
                lapping = asyncio.create_task(lap(laps))
                started = clock()
                if way == "shared":
                    value = await redis.get("large")
                else:
                    async with redis.client() as own:
                        value = await own.get("large")
                took = clock() - started
                lapping.cancel()
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
                assert len(value) == 100 * MB
                view = memoryview(value)
                assert all(view[at : at + MB] == block for at in range(0, len(value), MB))
                del view, value
                await load.more(200)  # those that waited are told of now
                slowest = load.slowest(started, started + took)
                figure(f"100 MB, {way}: took", took, "s")
                figure(f"100 MB, {way}: slowest other command", slowest, "s")
                figure(f"100 MB, {way}: loop held at most", max(laps) * 1e3, "ms")
                figure(f"100 MB, {way}: peak memory grew by", grown, "MB")
                assert slowest < took + 0.5
                assert grown < 250  # what was received so far, and the reply that is made of it
        assert (load.errors, load.read_errors, load.maybe, load.wrong) == ([], [], 0, [])
