"""Pipelines on a real cluster: each node its share, in order, through every change of owners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.exceptions
from redis.asyncio.cluster import RedisCluster
from support.server_cluster import ClusterNode, ServerCluster
from support.slot_migration import Migration, slot_of

from aioentra_redis import EntraRedisCluster
from aioentra_redis.errors import CommandRefusedError, MaybeExecutedError

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]

MANY = 300


@pytest.fixture
async def client(server_cluster: ServerCluster) -> AsyncIterator[EntraRedisCluster]:
    host, port = server_cluster.startup
    async with EntraRedisCluster(host=host, port=port, decode_responses=True) as made:
        yield made


async def other_primary(cluster: ServerCluster, node: ClusterNode) -> ClusterNode:
    return next(each for each in await cluster.primaries() if each is not node)


async def commands_of(node: ClusterNode) -> dict[str, int]:
    """How often a node has executed which command."""
    lines = (await node.call("INFO", "commandstats")).decode().splitlines()
    stats = (line.removeprefix("cmdstat_").split(":", 1) for line in lines if ":calls=" in line)
    return {name: int(rest.split("calls=")[1].split(",")[0]) for name, rest in stats}


async def test_replies_come_in_order_whatever_nodes_they_are_from(
    client: EntraRedisCluster,
) -> None:
    pipe = client.pipeline()
    for number in range(MANY):
        pipe.set(f"key:{number}", number)
        pipe.incr(f"key:{number}")
    replies = await pipe.execute()
    assert replies == [reply for number in range(MANY) for reply in (True, number + 1)]
    assert len(pipe) == 0
    assert await client.mget_nonatomic([f"key:{number}" for number in range(MANY)]) == [
        str(number + 1) for number in range(MANY)
    ]


async def test_each_node_gets_one_connection_and_its_share_at_once(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    for _ in range(3):
        pipe = client.pipeline()
        for number in range(MANY):
            pipe.set(f"key:{number}", number)
        assert await pipe.execute() == [True] * MANY
    for node in client.get_primaries():
        server = server_cluster.at(node.port)
        clients = (await server.call("CLIENT", "LIST", "TYPE", "NORMAL")).decode().splitlines()
        ours = [line for line in clients if "lib-name=redis-py" in line]
        assert len(ours) == 1, clients


@pytest.mark.filterwarnings("ignore:Call to '__init__' function with deprecated:DeprecationWarning")
async def test_the_shapes_are_those_of_redis_py(server_cluster: ServerCluster) -> None:
    def queued(pipe):  # type: ignore[no-untyped-def]
        pipe.set("A", 1).get("A").hset("K", "F", "V").hgetall("K")
        pipe.mset_nonatomic({"A": 2, "B": 3}).get("A").get("B")
        pipe.zadd("Z", {"a": 1.5}).zrange("Z", 0, -1, withscores=True).lpush("A", 1)
        return pipe.exists("A", "B", "K").touch("A", "B").delete("A", "B", "K", "Z")

    host, port = server_cluster.startup
    options: dict[str, Any] = {"host": host, "port": port, "protocol": 3, "decode_responses": True}
    async with RedisCluster(**options) as plain, EntraRedisCluster(**options) as client:
        expected = await queued(plain.pipeline()).execute(raise_on_error=False)
        replies = await queued(client.pipeline()).execute(raise_on_error=False)
        assert [repr(reply) for reply in replies] == [repr(reply) for reply in expected]
        texts = []
        for each in (plain, client):
            with pytest.raises(redis.exceptions.ResponseError) as caught:
                await queued(each.pipeline()).execute()
            texts.append(str(caught.value))
        assert texts[0] == texts[1]
        assert texts[0].startswith("Command # 11 (LPUSH A 1) of pipeline caused error: ")


async def test_an_error_ends_no_other_command(client: EntraRedisCluster) -> None:
    pipe = client.pipeline()
    pipe.set("a", "x").incr("a").set("b", 1)
    with pytest.raises(redis.exceptions.ResponseError, match=r"Command # 2 \(INCRBY a 1\)"):
        await pipe.execute()
    assert await client.get("b") == "1"
    assert await pipe.get("b").execute() == ["1"]  # it can be used again


async def test_a_stale_owner_is_corrected_for_its_commands_only(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.initialize()
    slot = slot_of("{moving}")
    target = await other_primary(server_cluster, await server_cluster.owner(slot))
    assert await Migration.whole(server_cluster, slot, target) == 0
    pipe = client.pipeline()
    for number in range(MANY):
        pipe.incr("{moving}").incr(f"key:{number}").incr("{moving}x")
    replies = await pipe.execute()
    assert replies == [reply for number in range(MANY) for reply in (number + 1, 1, number + 1)]
    assert client.nodes_manager.slots_cache[slot][0].port == target.port


async def test_redirections_may_be_left_to_the_caller(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.initialize()
    slot = slot_of("{moving}")
    target = await other_primary(server_cluster, await server_cluster.owner(slot))
    await Migration.whole(server_cluster, slot, target)
    replies = await client.pipeline().get("{moving}").execute(False, allow_redirections=False)
    assert isinstance(replies[0], redis.exceptions.MovedError)
    with pytest.raises(redis.exceptions.MovedError):
        await client.pipeline().get("{moving}").execute(allow_redirections=False)


async def test_ask_is_answered_with_asking_in_the_same_write(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    slot = slot_of("{moving}")
    await client.mset({f"{{moving}}{number}": number for number in range(20)})
    owner = await server_cluster.owner(slot)
    target = await other_primary(server_cluster, owner)
    migration = await Migration.begin(server_cluster, slot, target)
    await migration.move(*(f"{{moving}}{number}" for number in range(0, 20, 2)))

    async def once() -> None:
        pipe = client.pipeline()
        for number in range(20):
            pipe.get(f"{{moving}}{number}")
        assert await pipe.execute() == [str(number) for number in range(20)]

    await asyncio.gather(*(once() for _ in range(8)))
    assert client.nodes_manager.slots_cache[slot][0].port == owner.port


async def test_a_command_waits_until_all_of_its_keys_have_moved(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    slot = slot_of("{moving}")
    await client.mset({"{moving}a": 1, "{moving}b": 2})
    target = await other_primary(server_cluster, await server_cluster.owner(slot))
    migration = await Migration.begin(server_cluster, slot, target)
    await migration.move("{moving}a")
    pipe = client.pipeline()
    pipe.execute_command("MGET", "{moving}a", "{moving}b")
    pipe.set("elsewhere", 1)
    running = asyncio.create_task(pipe.execute())
    while "mget" not in await commands_of(migration.source):  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    assert not running.done()
    await migration.move_all()
    await migration.finish()
    assert await running == [["1", "2"], True]


async def test_migrations_under_pipelines_lose_and_double_nothing(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    keys = [f"{{moving}}{number}" for number in range(10)] + [f"key:{n}" for n in range(10)]
    counts = dict.fromkeys(keys, 0)
    over = False

    async def work() -> None:
        while not over:
            pipe = client.pipeline()
            for key in keys:
                pipe.incr(key)
            for key, _ in zip(keys, await pipe.execute(), strict=True):
                counts[key] += 1

    workers = [asyncio.create_task(work()) for _ in range(5)]
    slot = slot_of("{moving}")
    for _ in range(4):
        target = await other_primary(server_cluster, await server_cluster.owner(slot))
        await Migration.whole(server_cluster, slot, target)
    over = True
    await asyncio.gather(*workers)
    stored = await client.mget_nonatomic(keys)
    assert {key: int(value) for key, value in zip(keys, stored, strict=True)} == counts
    assert min(counts.values()) > 0


async def test_a_planned_failover_under_pipelines_loses_nothing(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    keys = [f"key:{number}" for number in range(30)]
    counts = dict.fromkeys(keys, 0)
    over = False

    async def work() -> None:
        while not over:
            pipe = client.pipeline()
            for key in keys:
                pipe.incr(key)
            await pipe.execute()
            for key in keys:
                counts[key] += 1

    workers = [asyncio.create_task(work()) for _ in range(5)]
    await asyncio.sleep(0.1)
    primary = (await server_cluster.primaries())[0]
    await server_cluster.fail_over(primary)
    await server_cluster.converged()
    over = True
    await asyncio.gather(*workers)
    stored = await client.mget_nonatomic(keys)
    assert {key: int(value) for key, value in zip(keys, stored, strict=True)} == counts


async def test_large_shares_are_sent_in_pieces(client: EntraRedisCluster) -> None:
    pipe = client.pipeline()
    for number in range(12_000):
        pipe.rpush(f"{{list}}{number % 3}", number)
    for number in range(3):
        pipe.set(f"big:{number}", "x" * 700_000)
        pipe.strlen(f"big:{number}")
    replies = await pipe.execute()
    assert replies[:12_000] == [number // 3 + 1 for number in range(12_000)]
    assert replies[12_000:] == [True, 700_000] * 3
    expected = [str(number) for number in range(0, 12_000, 3)]
    assert await client.lrange("{list}0", 0, -1) == expected


async def test_what_can_not_be_sent_keeps_everything_back(client: EntraRedisCluster) -> None:
    for connected in (False, True):
        pipe = client.pipeline()
        for number in range(10):
            pipe.set(f"key:{number}", 1)
        pipe.set("nothing", None)
        with pytest.raises(redis.exceptions.DataError):
            await pipe.execute()
        assert await client.exists(*(f"key:{number}" for number in range(10))) == 0, connected


async def test_refused_commands_keep_everything_back(client: EntraRedisCluster) -> None:
    pipe = client.pipeline()
    pipe.set("a", 1)
    pipe.execute_command("CLIENT REPLY", "OFF")
    with pytest.raises(CommandRefusedError, match="CLIENT REPLY"):
        await pipe.execute()
    assert await client.get("a") is None
    with pytest.raises(redis.exceptions.RedisClusterException, match="is blocked"):
        client.pipeline().ping()
    with pytest.raises(redis.exceptions.RedisClusterException, match="Too many targets"):
        await client.pipeline().execute_command("DBSIZE", target_nodes="primaries").execute()
    with pytest.raises(redis.exceptions.RedisClusterException, match="shard_hint"):
        client.pipeline(shard_hint="x")


async def test_what_may_not_be_shared_goes_on_a_connection_of_its_own(
    client: EntraRedisCluster,
) -> None:
    pipe = client.pipeline()
    pipe.rpush("{q}", 1, 2).blpop("{q}", timeout=1).lrange("{q}", 0, -1).set("other", 1)
    pushed, popped, left, other = await pipe.execute()
    assert (pushed, list(popped), left, other) == (2, ["{q}", "1"], ["2"], True)


async def test_what_has_no_key_goes_to_a_node_that_is_named_or_any(
    client: EntraRedisCluster,
) -> None:
    await client.initialize()
    node = client.get_primaries()[1]
    pipe = client.pipeline()
    pipe.execute_command("CONFIG GET", "port", target_nodes=node)
    pipe.execute_command("PUBLISH", "channel", "nobody")
    assert await pipe.execute() == [{"port": str(node.port)}, 0]


async def test_a_write_that_may_have_run_is_not_repeated(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    victim = await server_cluster.owner(slot_of("lost"))
    other = await other_primary(server_cluster, victim)
    slots = (await server_cluster.view())[other.id].slots
    healthy = next(key for n in range(100) if slot_of(key := f"key:{n}") in slots)
    await client.set("lost", 1)
    await client.set(healthy, 1)
    victim.pause()
    pipe = client.pipeline()
    pipe.incr("lost").get("lost").incr(healthy)
    running = asyncio.create_task(pipe.execute(raise_on_error=False))
    while await other.call("GET", healthy) != b"2":  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    before = client.nodes_manager.get_node(host="127.0.0.1", port=victim.port)
    assert before is not None
    before.multiplexed.session.close()  # the connection ends, the commands were written
    victim.go_on()
    lost, read, done = await running
    assert isinstance(lost, MaybeExecutedError)
    assert "INCRBY (command 1 of 3) had been sent when the connection ended" in str(lost)
    assert int(read) in (1, 2)  # the read was repeated
    assert done == 2
    assert await client.get(healthy) == "2"


async def test_multi_key_methods_go_by_slot(client: EntraRedisCluster) -> None:
    pairs = {f"key:{number}": str(number) for number in range(50)}
    assert set(await client.mset_nonatomic(pairs)) == {True}
    assert await client.mget_nonatomic(list(pairs)) == list(pairs.values())
    assert await client.exists(*pairs) == 50
    assert await client.touch(*list(pairs)[:10]) == 10
    assert await client.delete(*list(pairs)[:20]) == 20
    assert await client.unlink(*list(pairs)[15:]) == 30
    assert await client.delete("key:0") == 0


async def test_a_cancelled_pipeline_changes_nobody_elses_reply(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.set("a", 1)
    victim = await server_cluster.owner(slot_of("a"))
    victim.pause()
    pipe = client.pipeline()
    pipe.incr("a").incr("a")
    running = asyncio.create_task(pipe.execute())
    reading = asyncio.create_task(client.get("a"))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    victim.go_on()
    assert await reading == "3"
    assert len(pipe) == 0
