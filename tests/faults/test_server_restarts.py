"""The server restarts, loads its data, or kills connections, under load: nothing is lost unsaid."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from support.load import Load
from support.signing_in import Witness, client_of, minted_source, secret_source

from aioentra_redis import ConnectionClosed, ConnectionOpened, EntraRedis, MaybeExecutedError
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]


def assert_nothing_lost(load: Load) -> None:
    """Reads succeeded, writes are there or said that they may be, no reply was another's."""
    assert load.read_errors == []
    assert load.errors == []
    assert load.wrong == []
    for text in load.texts:
        assert "may or may not have been executed" in text


class Consumer:
    """Takes what is pushed to a list, keeps what it got, and counts what it was told is lost."""

    def __init__(self, redis: EntraRedis, protocol: int) -> None:
        self._redis = redis
        self.got: list[bytes] = []
        self.told = 0
        self._task = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        while True:
            try:
                popped = await self._redis.blpop("queue", timeout=0.3)
            except MaybeExecutedError:
                self.told += 1
            else:
                if popped is not None:
                    self.got.append(popped[1])

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Listener:
    """Keeps what a subscriber gets; where it is told of a loss, as by redis-py 5, it goes on."""

    def __init__(self, subscriber: Any) -> None:
        self._subscriber = subscriber
        self.got: list[bytes] = []
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._subscriber.get_message(timeout=1.0)
            except redis_exceptions.ConnectionError:
                await asyncio.sleep(0.05)
            else:
                if message is not None:
                    self.got.append(message["data"])

    async def stop(self) -> None:
        self._task.cancel()
        [end] = await asyncio.gather(self._task, return_exceptions=True)
        assert isinstance(end, asyncio.CancelledError), end


@pytest.mark.parametrize("protocol", [2, 3])
async def test_restarts_under_load(entra_emulator: Emulator, figure: Any, protocol: int) -> None:
    """With rotations all the while, a consumer of a queue, a subscriber and pipelines."""
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source, protocol=protocol, on_event=witness) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as subscriber,
    ):
        await subscriber.subscribe("news")
        consumer, listener = Consumer(redis, protocol), Listener(subscriber)
        pushed: list[bytes] = []
        doubtful: list[bytes] = []
        published = batches = maybe_batches = 0
        stopping = False

        async def push() -> None:
            number = 0
            while not stopping:
                number += 1
                element = b"%d" % number
                try:
                    await redis.rpush("queue", element)
                    pushed.append(element)
                except MaybeExecutedError:
                    doubtful.append(element)
                await asyncio.sleep(0.005)

        async def publish() -> None:
            nonlocal published
            while not stopping:
                with contextlib.suppress(MaybeExecutedError):
                    await redis.publish("news", b"%d" % published)
                published += 1
                await asyncio.sleep(0.01)

        async def batch() -> None:
            nonlocal batches, maybe_batches
            while not stopping:
                try:
                    await redis.pipeline(transaction=True).incr("pair:a").incr("pair:b").execute()
                    batches += 1
                except MaybeExecutedError:
                    maybe_batches += 1
                await asyncio.sleep(0)

        async with Load(redis, 50) as load:
            others = [asyncio.create_task(each()) for each in (push, publish, batch, batch)]
            for downtime in (0.0, 0.3, 0.0, 0.8):
                await load.more(1500)
                await entra_emulator.restart_server(keep_data=True, downtime=downtime)
            await load.more(1500)
            got_before = len(listener.got)
            async with asyncio.timeout(10):
                while len(listener.got) < got_before + 5:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
            stopping = True
            await asyncio.gather(*others)
            async with asyncio.timeout(10):
                while await redis.llen("queue"):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
            await consumer.stop()
            await listener.stop()
        kind = f"4 restarts, RESP{protocol}"
        reads = f"{load.reads} of {load.reads + len(load.read_errors)}"
        figure(f"{kind}: reads that succeeded", reads, target="100 %")
        figure(f"{kind}: acknowledged writes lost, applied twice", len(load.wrong), target="0")
        figure(f"{kind}: writes acknowledged / may have run", f"{load.writes} / {load.maybe}")
        assert_nothing_lost(load)
        assert load.maybe > 0
        a, b = (int(each) for each in await redis.mget("pair:a", "pair:b"))
        assert a == b
        assert batches <= a <= batches + maybe_batches
        # An element is gone only if that was told: the server had popped it as it died.
        missing = set(pushed) - set(consumer.got)
        figure(f"{kind}: elements pushed / told to be lost", f"{len(pushed)} / {consumer.told}")
        assert len(missing) <= consumer.told
        assert len(consumer.got) == len(set(consumer.got))
        assert set(consumer.got) <= set(pushed) | set(doubtful)
        numbers = [int(each) for each in listener.got]
        assert numbers == sorted(set(numbers))


async def test_a_server_that_is_loading(entra_emulator: Emulator, figure: Any) -> None:
    """LOADING says that nothing was executed: commands wait for the end of it."""
    clock = asyncio.get_running_loop().time
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        await redis.mset({f"filler:{number}": "x" * 100 for number in range(1000)})
        async with Load(redis, 20) as load:
            await entra_emulator.restart_server(keep_data=True, loading=3.0)
            with pytest.raises(redis_exceptions.RedisError):  # so it does load
                await _plain_get(entra_emulator)
            popping = asyncio.create_task(redis.blpop("queue", timeout=10))
            batch = asyncio.create_task(redis.pipeline(transaction=True).incr("batch").execute())
            started = clock()
            await load.more(200)
            figure("LOADING for 3 s: commands waited", clock() - started, "s")
            assert clock() - started > 1.0
            assert await batch == [1]
            await redis.rpush("queue", "element")
            assert list(await popping) == [b"queue", b"element"]
            await load.more(500)
        figure("LOADING for 3 s: failed commands", len(load.errors + load.read_errors), target="0")
        assert_nothing_lost(load)


async def _plain_get(emulator: Emulator) -> None:
    """Ask without the client's patience."""
    import redis.asyncio
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    async with redis.asyncio.Redis.from_url(
        emulator.plaintext_url,
        username=emulator.service_principal.object_id,
        password=await emulator.issue_token(),
        retry=Retry(NoBackoff(), 0),
    ) as plain:
        await plain.get("filler:0")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_connections_that_are_killed(
    entra_emulator: Emulator, figure: Any, protocol: int
) -> None:
    """CLIENT KILL of the shared connection, of a dedicated one that waits, of a subscriber."""
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, protocol=protocol, on_event=witness) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as subscriber,
        redis.client() as own,
    ):
        await subscriber.subscribe("news")
        listener = Listener(subscriber)
        kills = 0
        async with Load(redis, 50) as load:
            for _ in range(5):
                await load.more(1000)
                assert await own.client_kill_filter(_id=await redis.client_id()) == 1
                kills += 1
            await load.more(1000)
        figure(
            f"CLIENT KILL shared, RESP{protocol}: reads failed", len(load.read_errors), target="0"
        )
        assert_nothing_lost(load)
        assert load.maybe <= 50 * kills
        assert len(witness.of(ConnectionClosed)) >= kills

        assert await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        async with asyncio.timeout(5):
            while b"after" not in listener.got:
                await redis.publish("news", "after")
                await asyncio.sleep(0.01)
        opened = [each.connection for each in witness.of(ConnectionOpened)]
        assert sum(each.startswith("subscriber") for each in opened) == 2
        await listener.stop()

        popping = asyncio.create_task(redis.blpop("queue", timeout=5))
        [waiting] = await blocked(redis)
        assert await own.client_kill_filter(_id=waiting) == 1
        with pytest.raises(MaybeExecutedError, match="may be lost"):
            await popping
        reading = asyncio.create_task(redis.xread({"stream": "0"}, block=5000))
        [waiting] = await blocked(redis)
        assert await own.client_kill_filter(_id=waiting) == 1
        await blocked(redis)  # it only reads, so it waits again
        await redis.xadd("stream", {"field": "value"})
        assert await reading
        await redis.rpush("queue", "element")
        assert list(await redis.blpop("queue", timeout=1)) == [b"queue", b"element"]


async def blocked(redis: EntraRedis) -> list[int]:
    """The IDs of clients that wait in a blocking command, once there are any."""
    async with asyncio.timeout(5):
        while True:
            rows = await redis.client_list()
            if found := [int(row["id"]) for row in rows if "b" in row["flags"]]:
                return found
            await asyncio.sleep(0.01)
