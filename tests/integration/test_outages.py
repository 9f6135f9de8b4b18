"""The server restarts, drops connections and comes back, under load."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from support.signing_in import Traffic, Witness, client_of, minted_source, secret_source, until

from aioentra_redis import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectTimeoutError,
    MaybeExecutedError,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


async def test_reads_and_unsent_commands_outlive_a_restart(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        await redis.mset({f"key:{number}": number for number in range(50)})
        stopping = False
        reads = 0

        async def read(number: int) -> None:
            nonlocal reads
            while not stopping:
                assert await redis.get(f"key:{number}") == b"%d" % number
                reads += 1

        readers = [asyncio.create_task(read(number)) for number in range(50)]
        await until(lambda: reads > 500)
        restart = asyncio.create_task(entra_emulator.restart_server(keep_data=True, downtime=0.5))
        await until(lambda: redis.auth_status() == [])
        # Commands that are issued while there is no connection wait for one; writes too.
        written = await asyncio.gather(*(redis.set(f"new:{n}", n) for n in range(50)))
        assert all(written)
        await restart
        after = reads
        await until(lambda: reads > after + 500)
        stopping = True
        await asyncio.gather(*readers)


async def test_writes_that_may_have_run_say_so_and_the_count_adds_up(
    entra_emulator: Emulator,
) -> None:
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        outcomes: Counter[str] = Counter()
        texts: set[str] = set()
        stopping = False

        async def write() -> None:
            while not stopping:
                try:
                    await redis.incr("count")
                except MaybeExecutedError as error:
                    outcomes["maybe"] += 1
                    texts.add(str(error))
                else:
                    outcomes["done"] += 1

        writers = [asyncio.create_task(write()) for _ in range(100)]
        # Cut under way, several times: whichever commands are in flight then.
        for cut in range(1, 6):
            before = outcomes["done"]
            await until(lambda before=before: outcomes["done"] > before + 500)  # type: ignore[misc]
            await entra_emulator.drop_connections()
            await witness.at_least(cut + 1, ConnectionOpened)
        stopping = True
        await asyncio.gather(*writers)
        count = int(await redis.get("count"))
        assert outcomes["done"] <= count <= outcomes["done"] + outcomes["maybe"]
        assert outcomes["maybe"] > 0
        assert set(outcomes) == {"done", "maybe"}
        for text in texts:
            assert text.startswith("INCRBY had been sent")
            assert "may or may not have been executed" in text


async def test_a_restart_without_data_and_with_rotations_all_the_while(
    entra_emulator: Emulator,
) -> None:
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.6) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        traffic = Traffic(redis, 50)
        for restarts in range(1, 4):
            before = traffic.done
            await until(lambda before=before: traffic.done > before + 500)  # type: ignore[misc]
            await entra_emulator.restart_server(downtime=random.uniform(0, 0.2))
            await witness.at_least(restarts + 1, ConnectionOpened)
        before = traffic.done
        await until(lambda: traffic.done > before + 500)
        await traffic.stop()
        assert {type(each) for each in traffic.errors} <= {MaybeExecutedError}
        # A value may be gone with the server's data, but it is never somebody else's.
        assert [each for each in traffic.wrong if each[2] is not None] == []  # type: ignore[index]


async def test_an_idle_connection_that_the_server_has_closed_is_not_noticed(
    entra_emulator: Emulator,
) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        for turn in range(3):
            await asyncio.sleep(0.06)  # longer than the client takes a connection to be busy
            await entra_emulator.drop_connections()
            assert await redis.incr("count") == turn + 1


async def test_recovery_timeout_bounds_the_wait_and_names_the_cause(
    entra_emulator: Emulator,
) -> None:
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, on_event=witness, recovery_timeout=1) as redis,
    ):
        restart = asyncio.create_task(entra_emulator.restart_server(downtime=3))
        await witness.first(ConnectionClosed)
        with pytest.raises(ConnectTimeoutError, match="recovery_timeout") as caught:
            await redis.get("key")
        assert caught.value.__cause__ is not None
        assert caught.value.host == "localhost"
        await restart
        await witness.at_least(2, ConnectionOpened)
        assert await redis.get("key") is None


async def test_cancelled_callers_change_nobody_elses_reply(entra_emulator: Emulator) -> None:
    random.seed(20)
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        count = 3000
        await redis.mset({f"own:{n}": f"value {n}" for n in range(count)})

        async def ask(number: int) -> object:
            match number % 3:
                case 0:
                    return await redis.get(f"own:{number}")
                case 1:
                    return (await redis.mget([f"own:{number}", "none"]))[0]
                case _:
                    return await redis.getrange(f"own:{number}", 0, -1)

        asked: set[int] = set()

        async def at_some_moment(number: int) -> object:
            await asyncio.sleep(random.uniform(0, 0.5))
            asked.add(number)
            return await ask(number)

        async def strike() -> None:
            """Cancel a third of those that wait for a reply, over and over."""
            while not all(task.done() for task in tasks):
                under_way = [n for n in asked if n in chosen and not tasks[n].done()]
                for number in under_way:
                    if random.random() < 0.5:
                        tasks[number].cancel()
                        victims.add(number)
                await asyncio.sleep(0)

        chosen = set(random.sample(range(count), count // 3))
        victims: set[int] = set()
        tasks = [asyncio.create_task(at_some_moment(number)) for number in range(count)]
        striking = asyncio.create_task(strike())
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        await striking

        cancelled = 0
        for number, reply in enumerate(replies):
            if number in victims and isinstance(reply, asyncio.CancelledError):
                cancelled += 1
            else:
                assert reply == f"value {number}".encode()
        assert cancelled > count // 10
        assert len(await entra_emulator.connections()) == 1
        assert await redis.ping()
