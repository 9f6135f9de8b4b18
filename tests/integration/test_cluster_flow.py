"""Pipelines, transactions, scripts, locks, scans and subscribers of a cluster, as tokens rotate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.exceptions
from redis.asyncio.lock import Lock
from support.signing_in import Witness, minted_source

from aioentra_redis import (
    EntraRedisCluster,
    MessagesMayBeMissing,
    ReauthenticationFailed,
    TokenPublished,
)
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]

ROTATIONS = 4


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
async def client(entra_cluster: Emulator, witness: Witness) -> AsyncIterator[EntraRedisCluster]:
    async with (
        minted_source(entra_cluster, believed=1.0) as source,
        EntraRedisCluster.from_url(
            entra_cluster.url,
            token_source=source,
            ssl_ca_certs=entra_cluster.ca_file,
            decode_responses=True,
            on_event=witness,
        ) as made,
    ):
        yield made
    assert witness.of(ReauthenticationFailed) == []


async def test_pipelines_and_transactions_do_not_notice_rotations(
    client: EntraRedisCluster, witness: Witness
) -> None:
    done, over = 0, False

    async def add(pipe):  # type: ignore[no-untyped-def]
        value = int(await pipe.get("{watched}") or 0)
        pipe.multi()
        pipe.set("{watched}", value + 1)

    async def work(number: int) -> None:
        nonlocal done
        while not over:
            pipe = client.pipeline()
            for key in range(30):
                pipe.set(f"{number}:{key}", key).get(f"{number}:{key}")
            assert await pipe.execute() == [each for key in range(30) for each in (True, str(key))]
            pipe = client.pipeline(transaction=True)
            first, second = await pipe.incr("{both}1").incr("{both}2").execute()
            assert first == second
            await client.transaction(add, "{watched}")
            done += 1

    workers = [asyncio.create_task(work(number)) for number in range(3)]
    await witness.at_least(ROTATIONS, TokenPublished, timeout=60)
    over = True
    await asyncio.gather(*workers)
    assert await client.mget("{both}1", "{both}2") == [str(done)] * 2
    assert await client.get("{watched}") == str(done)


async def test_subscribers_do_not_notice_rotations(
    client: EntraRedisCluster, witness: Witness
) -> None:
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    channels = [f"channel:{number}" for number in range(6)]
    assert len({client.keyslot(channel) // 5461 for channel in channels}) == 3
    await pubsub.subscribe("plain")
    await pubsub.ssubscribe(*channels)
    for _ in channels:
        await pubsub.get_sharded_message()
    sent: list[str] = []
    plain: list[str] = []
    sharded: list[str] = []

    async def publish() -> None:
        while len(witness.of(TokenPublished)) < ROTATIONS + 1:
            text = str(len(sent))
            await client.execute_command("PUBLISH", "plain", text)
            for channel in channels:
                await client.execute_command("SPUBLISH", channel, f"{channel} {text}")
            sent.append(text)
            await asyncio.sleep(0.01)

    async def read() -> None:
        while len(plain) < len(sent) or publishing.done() is False:
            message = await pubsub.get_message(timeout=0.2)
            if message is not None:
                plain.append(message["data"])

    async def read_sharded() -> None:
        while len(sharded) < 6 * len(sent) or publishing.done() is False:
            message = await pubsub.get_sharded_message(timeout=0.2)
            if message is not None:
                sharded.append(message["data"])

    publishing = asyncio.create_task(publish())
    async with asyncio.timeout(100):
        await asyncio.gather(publishing, read(), read_sharded())
    assert plain == sent
    for channel in channels:
        mine = [each.split()[1] for each in sharded if each.split()[0] == channel]
        assert mine == sent
    rows = [row for row in client.auth_status() if row.connection.startswith("subscriber")]
    assert len(rows) == 4
    assert min(row.token_version or 0 for row in rows) >= ROTATIONS
    assert witness.of(MessagesMayBeMissing) == []
    await pubsub.aclose()


async def test_scripts_are_loaded_where_they_run(client: EntraRedisCluster) -> None:
    script = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    keys = [f"key:{number}" for number in range(12)]
    replies = await asyncio.gather(*(script(keys=[key], args=[5]) for key in keys))
    assert replies == [5] * 12
    pipe = client.pipeline()
    for key in keys:
        pipe.execute_command("EVALSHA", script.sha, 1, key, 2)
    assert await pipe.execute() == [7] * 12
    transaction = client.pipeline(transaction=True)
    transaction.execute_command("EVALSHA", script.sha, 1, "key:1", 1).get("key:1")
    assert await transaction.execute() == [8, "8"]
    with pytest.raises(redis.exceptions.NoScriptError, match="Command # 1"):
        await client.pipeline().execute_command("EVALSHA", "0" * 40, 1, "key:1").execute()


async def test_locks_exclude_each_other(client: EntraRedisCluster) -> None:
    inside, most, turns = 0, 0, 0

    async def work() -> None:
        nonlocal inside, most, turns
        for _ in range(3):
            async with client.lock("lock", timeout=20, sleep=0.01) as lock:
                assert isinstance(lock, Lock)
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                assert await lock.extend(20)
                inside -= 1
                turns += 1

    await asyncio.gather(*(work() for _ in range(4)))
    assert (most, turns) == (1, 12)
    assert await client.exists("lock") == 0


async def test_a_scan_finds_the_keys_of_all_nodes(client: EntraRedisCluster) -> None:
    keys = {f"key:{number}" for number in range(500)}
    await client.mset_nonatomic(dict.fromkeys(keys, 1))
    found = [key async for key in client.scan_iter("key:*", count=50)]
    assert sorted(found) == sorted(keys)
    node = client.get_primaries()[0]
    mine = {key for key in keys if client.get_node_from_key(key) is node}
    assert {key async for key in client.scan_iter(target_nodes=node)} >= mine
