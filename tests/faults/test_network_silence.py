"""Peers that fall silent: black holes and half-open connections, under load and in rotations."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.load import Load
from support.signing_in import Witness, client_of, minted_source, secret_source

from aioentra_redis import (
    CommandTimeoutError,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReplaced,
    MaybeExecutedError,
)
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]


async def silence(emulator: Emulator, kind: str, connection: int | None = None) -> int:
    if kind == "half-open":
        return await emulator.abandon_connections(connection=connection)
    return await emulator.freeze_connections(
        connection=connection, execute=kind == "replies are lost"
    )


async def newest(emulator: Emulator) -> int:
    return max(each.connection for each in await emulator.connections())


KINDS = ["bytes are lost", "replies are lost", "half-open"]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_shared_connection_falls_silent(
    entra_emulator: Emulator, figure: Any, kind: str
) -> None:
    """What was under way is late, and says so; after that time everything goes on elsewhere."""
    clock = asyncio.get_running_loop().time
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, on_event=witness, socket_timeout=1.0) as redis,
    ):
        async with Load(redis, 20) as load:
            assert await silence(entra_emulator, kind) == 1
            started = clock()
            closed = await witness.first(ConnectionClosed)
            assert "nothing came" in str(closed.error)
            await load.more(100)
            figure(f"silent ({kind}): going on after", clock() - started, "s", target="1 to 1.5")
            assert clock() - started < 3.0
            await load.more(1000)
        failed = load.errors + load.read_errors
        figure(f"silent ({kind}): commands in flight then", len(failed) + load.maybe)
        assert {type(each) for each in failed} <= {CommandTimeoutError}
        for each in failed:
            assert "no reply from localhost" in str(each)
            assert "may still run" in str(each)
        assert 0 < len(failed) + load.maybe <= 20
        assert load.wrong == []
        assert len(witness.of(ConnectionOpened)) == 2


async def test_everything_falls_silent_and_comes_back(
    entra_emulator: Emulator, figure: Any
) -> None:
    """Old connections and new ones, as with a cable that is pulled for 4 s."""
    clock = asyncio.get_running_loop().time
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source, socket_timeout=1.0, socket_connect_timeout=1.0) as redis,
        Load(redis, 20) as load,
    ):
        await entra_emulator.freeze_connections(new=True)
        await asyncio.sleep(4)
        healed = clock()
        await entra_emulator.heal()
        await load.more(100)
        figure("everything silent for 4 s: going on after", clock() - healed, "s")
        assert clock() - healed < 4.0
        # Commands that came after the loss waited for a connection: only those in flight failed.
        failed = load.errors + load.read_errors
        figure("everything silent for 4 s: commands that failed", len(failed) + load.maybe)
        assert len(failed) + load.maybe <= 20
        assert {type(each) for each in failed} <= {CommandTimeoutError}
    assert load.wrong == []


@pytest.mark.parametrize("kind", KINDS)
async def test_the_shared_connection_falls_silent_before_a_rotation(
    entra_emulator: Emulator, figure: Any, kind: str
) -> None:
    """Its AUTH has no answer within a second: a replacement takes over, whatever the timeouts."""
    clock = asyncio.get_running_loop().time
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source, on_event=witness, socket_timeout=None) as redis,
    ):
        await redis.set("key", "value")
        assert await silence(entra_emulator, kind) == 1
        silent_at = clock()
        replaced = await witness.first(ConnectionReplaced, timeout=10)
        assert "no answer" in replaced.reason
        figure(f"silent before a rotation ({kind}): replaced after", clock() - silent_at, "s")
        assert await redis.get("key") == b"value"
        async with Load(redis, 20) as load:
            await load.more(500)
        assert (load.errors, load.read_errors, load.maybe, load.wrong) == ([], [], 0, [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_blocking_pop_falls_silent(
    entra_emulator: Emulator, figure: Any, kind: str
) -> None:
    clock = asyncio.get_running_loop().time
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, socket_timeout=0.5) as redis,
    ):
        popping = asyncio.create_task(redis.blpop("queue", timeout=1))
        await asyncio.sleep(0.2)
        started = clock()
        assert await silence(entra_emulator, kind, await newest(entra_emulator)) == 1
        with pytest.raises(MaybeExecutedError, match="may be lost"):
            await popping
        figure(f"BLPOP for 1 s falls silent ({kind}): told after", clock() - started, "s")
        assert clock() - started < 2.5
        await entra_emulator.heal()  # TLS would wait for a goodbye that a dead host never says
        await redis.rpush("queue", "element")
        assert list(await redis.blpop("queue", timeout=1)) == [b"queue", b"element"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_subscriber_falls_silent(
    entra_emulator: Emulator, figure: Any, protocol: int, kind: str
) -> None:
    """Its PING is not answered: it subscribes again, and messages come again."""
    clock = asyncio.get_running_loop().time
    async with (
        secret_source(entra_emulator) as source,
        client_of(
            entra_emulator,
            source,
            protocol=protocol,
            socket_timeout=0.5,
            health_check_interval=1,
        ) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as subscriber,
    ):
        await subscriber.subscribe("news")
        await subscriber.get_message(timeout=0.1)
        started = clock()
        assert await silence(entra_emulator, kind, await newest(entra_emulator)) == 1
        async with asyncio.timeout(20):
            while True:
                await redis.publish("news", "message")
                message = await subscriber.get_message(timeout=0.2)
                if message is not None:
                    break
        assert message["data"] == b"message"
        figure(f"RESP{protocol} subscriber silent ({kind}): messages after", clock() - started, "s")
        assert clock() - started < 5.0


async def test_a_pipeline_in_flight_falls_silent(entra_emulator: Emulator) -> None:
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, socket_timeout=0.5) as redis,
    ):
        for execute in (False, True):
            await entra_emulator.freeze_connections(execute=execute)
            batch = redis.pipeline(transaction=True).incr("a").incr("b")
            with pytest.raises((CommandTimeoutError, MaybeExecutedError)):
                await batch.execute()
            assert await redis.mget("a", "b") == ([b"1", b"1"] if execute else [None, None])
