"""Commands on a cluster: where they go, and that their replies are redis-py's."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from redis._parsers import Encoder
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.cluster import LoadBalancingStrategy
from support.server_cluster import ServerCluster
from support.slot_migration import Migration, slot_of

from aioentra_redis import CommandRefusedError, EntraRedisCluster

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]


@pytest.fixture(params=[2, 3])
async def client(
    server_cluster: ServerCluster, request: pytest.FixtureRequest
) -> AsyncIterator[EntraRedisCluster]:
    host, port = server_cluster.startup
    async with EntraRedisCluster(host, port, protocol=request.param) as made:
        yield made


async def calls(cluster: ServerCluster, command: str) -> list[int]:
    """How often each primary was asked to execute ``command``, since the last CONFIG RESETSTAT."""
    found = []
    for node in await cluster.primaries():
        text = (await node.call("INFO", "commandstats")).decode()
        line = next((x for x in text.splitlines() if x.startswith(f"cmdstat_{command}:")), "")
        found.append(int(line.partition("calls=")[2].partition(",")[0] or 0))
    return found


# ------------------------------------------------------------------------------- by key


async def test_every_key_is_where_it_belongs_on_one_connection_for_each_node(
    client: EntraRedisCluster, server_cluster: ServerCluster
):
    await asyncio.gather(*(client.set(f"key:{n}", n) for n in range(300)))
    assert await asyncio.gather(*(client.get(f"key:{n}") for n in range(300))) == [
        b"%d" % n for n in range(300)
    ]
    sizes = [await node.call("DBSIZE") for node in await server_cluster.primaries()]
    assert sum(sizes) == 300
    assert min(sizes) > 50
    assert len(client.auth_status()) == 3


async def test_several_keys_of_one_slot(client: EntraRedisCluster):
    assert await client.mset({"{t}a": 1, "{t}b": 2})
    assert await client.mget("{t}a", "{t}b", "{t}c") == [b"1", b"2", None]
    assert await client.delete("{t}a", "{t}b") == 2
    with pytest.raises(redis_exceptions.RedisClusterException, match="same key slot"):
        await client.execute_command("MGET", "a", "b")


class Word(enum.IntEnum):
    SEVEN = 7


def is_encoded(value: Any) -> bool:
    """Whether redis-py takes it: bytearrays not before version 7."""
    try:
        Encoder("utf-8", "strict", False).encode(value)
    except redis_exceptions.DataError:
        return False
    return True


@pytest.mark.parametrize(
    "key", [b"k", bytearray(b"k"), memoryview(b"k"), 7, 1.5, Word.SEVEN, "\N{SNOWMAN}", "{x}y"]
)
async def test_keys_of_all_kinds(client: EntraRedisCluster, key: Any):
    if not is_encoded(key):
        with pytest.raises(redis_exceptions.DataError):
            await client.set(key, "v")
        return
    assert await client.set(key, "v")
    assert await client.get(key) == b"v"
    assert await client.execute_command(b"GET", key) == b"v"
    assert await client.execute_command("get", key) == b"v"
    assert await client.execute_command("DEL", key, key) == 1


@pytest.mark.parametrize("key", [None, True, object()])
async def test_what_is_no_key(client: EntraRedisCluster, key: Any):
    with pytest.raises(redis_exceptions.DataError):
        await client.get(key)


async def test_scripts(client: EntraRedisCluster):
    read = "return redis.call('GET', KEYS[1])"
    await client.set("k", "v")
    assert await client.eval(read, 1, "k") == b"v"
    assert await client.eval("return ARGV[1]", 0, "argument") == b"argument"
    assert await client.register_script(read)(keys=["k"]) == b"v"
    with pytest.raises(redis_exceptions.RedisClusterException, match="same key slot"):
        await client.eval(read, 2, "a", "b")


async def test_keys_that_can_move_cost_no_question(
    client: EntraRedisCluster, server_cluster: ServerCluster
):
    await client.zadd("{z}a", {"m": 1})
    await client.zadd("{z}b", {"m": 2})
    await client.config_resetstat(target_nodes=client.ALL_NODES)
    assert await client.zunionstore("{z}to", ["{z}a", "{z}b"]) == 1
    assert await client.zunion(["{z}a", "{z}b"]) == [b"m"]
    identifier = await client.xadd("s", {"f": "v"})
    found = await client.xread({"s": 0})
    assert identifier in str(found).encode()
    assert await calls(server_cluster, "command|getkeys") == [0, 0, 0]


async def test_keys_behind_a_subcommand(client: EntraRedisCluster):
    await client.set("k", 12345)
    assert await client.object("ENCODING", "k") == b"int"
    assert await client.memory_usage("k") > 10
    await client.xadd("s", {"f": "v"})
    assert await client.xgroup_create("s", "g")
    assert len(await client.xinfo_groups("s")) == 1
    assert await client.execute_command("OBJECT", "ENCODING", "k") == b"int"


async def test_commands_that_cannot_be_sent_anywhere(client: EntraRedisCluster):
    with pytest.raises(redis_exceptions.RedisClusterException, match="Missing key"):
        await client.execute_command("GET")
    with pytest.raises(redis_exceptions.RedisError, match="doesn't exist in Redis commands"):
        await client.execute_command("NO.SUCH", "k")
    await client.rpush("l", 1)
    with pytest.raises(redis_exceptions.ResponseError, match="wrong kind of value"):
        await client.get("l")


@pytest.mark.parametrize("words", [("MULTI",), ("SELECT", 1), ("CLIENT", "REPLY", "OFF")])
async def test_refused_commands_say_what_to_use(client: EntraRedisCluster, words: Any):
    with pytest.raises(CommandRefusedError, match="all coroutines share"):
        await client.execute_command(*words, target_nodes=client.RANDOM)


# ------------------------------------------------------------------------------- without a key


async def test_target_nodes(client: EntraRedisCluster, server_cluster: ServerCluster):
    names = {node.name for node in await server_cluster.primaries()}
    assert await client.ping(target_nodes=client.PRIMARIES)
    infos = await client.info(target_nodes=client.PRIMARIES)
    assert set(infos) == names
    node = client.get_primaries()[0]
    assert (await client.info(target_nodes=node))["tcp_port"] == node.port
    assert set(await client.info(target_nodes=[*client.get_primaries()[:2]])) < names
    named = {each.name: each for each in client.get_primaries()}
    assert set(await client.info(target_nodes=named)) == names
    same = ClusterNode(node.host, node.port)
    assert (await client.info(target_nodes=same))["tcp_port"] == node.port
    assert (await client.info(target_nodes=client.RANDOM))["tcp_port"]
    assert await client.echo("word", target_nodes=client.DEFAULT_NODE) == b"word"
    assert set((await client.echo("w", target_nodes=client.ALL_NODES)).values()) == {b"w"}


async def test_nodes_that_are_none(client: EntraRedisCluster):
    with pytest.raises(redis_exceptions.RedisClusterException, match="no node of this cluster"):
        await client.ping(target_nodes=ClusterNode("127.0.0.1", 1))
    with pytest.raises(TypeError, match="target_nodes"):
        await client.ping(target_nodes="nonsense")


async def test_replies_of_all_primaries_are_put_together(client: EntraRedisCluster):
    await asyncio.gather(*(client.set(f"key:{n}", n) for n in range(50)))
    assert len(await client.keys("*", target_nodes=client.PRIMARIES)) == 50
    assert len([key async for key in client.scan_iter()]) == 50
    assert await client.script_exists("f" * 40) == [False]
    assert await client.flushall()
    assert await client.dbsize(target_nodes=client.PRIMARIES) == 0
    assert (await client.cluster_info())["cluster_state"] == "ok"


# ------------------------------------------------------------------------------- replies


async def test_a_response_callback_may_come_later(client: EntraRedisCluster):
    await client.set("k", "v")
    assert await client.get("k") == b"v"
    client.set_response_callback("GET", lambda reply, **options: ("mine", reply))
    assert await client.get("k") == ("mine", b"v")
    assert await client.execute_command("GET", "k", target_nodes=client.get_node_from_key("k")) == (
        "mine",
        b"v",
    )


async def test_decoded_replies(server_cluster: ServerCluster):
    host, port = server_cluster.startup
    async with EntraRedisCluster(host, port, decode_responses=True) as client:
        await client.set("k", "\N{SNOWMAN}")
        assert await client.get("k") == "\N{SNOWMAN}"
        dump = await client.dump("k")
        assert isinstance(dump, bytes)
        assert await client.restore("copy", 0, dump)
        assert await client.get("copy") == "\N{SNOWMAN}"
        assert await client.execute_command("GET", "k", **{NEVER_DECODE: True}) == (
            "\N{SNOWMAN}".encode()
        )


async def test_an_answer_for_the_case_that_there_is_none(client: EntraRedisCluster):
    await client.rpush("l", 1)
    assert await client.execute_command("GET", "l", **{EMPTY_RESPONSE: []}) == []


# ------------------------------------------------------------------------------- blocking


async def test_blocking_commands_hold_up_nobody(client: EntraRedisCluster):
    waiting = asyncio.create_task(client.blpop(["{q}a", "{q}b"], timeout=10))
    await asyncio.sleep(0.05)
    assert await client.set("{q}other", 1)
    assert await client.rpush("{q}b", "element") in (0, 1)
    assert list(await waiting) == [b"{q}b", b"element"]
    assert await client.blpop("{q}a", timeout=0.1) is None
    assert not await client.xread({"{q}s": "$"}, block=50)


async def test_a_wait_follows_its_slot(client: EntraRedisCluster, server_cluster: ServerCluster):
    """The server ends a wait with MOVED when its slot moves away."""
    slot = slot_of("{w}")
    source = await server_cluster.owner(slot)
    target = next(node for node in await server_cluster.primaries() if node is not source)
    loop = asyncio.get_running_loop()
    started = loop.time()
    waiting = asyncio.create_task(client.blpop("{w}q", timeout=8))
    patient = asyncio.create_task(client.blpop("{w}empty", timeout=1.0))
    await asyncio.sleep(0.3)
    await Migration.whole(server_cluster, slot, target)
    await client.rpush("{w}q", "element")
    assert list(await waiting) == [b"{w}q", b"element"]
    assert await patient is None
    assert loop.time() - started > 0.95


async def test_a_wait_behind_asking(client: EntraRedisCluster, server_cluster: ServerCluster):
    slot = slot_of("{b}")
    source = await server_cluster.owner(slot)
    target = next(node for node in await server_cluster.primaries() if node is not source)
    migration = await Migration.begin(server_cluster, slot, target)
    waiting = asyncio.create_task(client.blpop("{b}q", timeout=8))
    await asyncio.sleep(0.1)
    await client.rpush("{b}q", "element")
    assert list(await waiting) == [b"{b}q", b"element"]
    await migration.finish()


# ------------------------------------------------------------------------------- replicas


@pytest.mark.parametrize("strategy", ["round_robin_replicas", "random_replica"])
async def test_reads_go_to_replicas(server_cluster: ServerCluster, strategy: str):
    await server_cluster.converged()
    host, port = server_cluster.startup
    chosen = LoadBalancingStrategy(strategy)
    async with EntraRedisCluster(host, port, load_balancing_strategy=chosen) as client:
        await client.start()
        await client.set("k", "v")
        owner = await server_cluster.owner(slot_of("k"))
        (replica,) = await server_cluster.replicas_of(owner)
        async with asyncio.timeout(10), replica.link() as call:
            await call("READONLY")
            while await call("GET", "k") != b"v":  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)
        await client.config_resetstat(target_nodes=client.ALL_NODES)
        assert await asyncio.gather(*(client.get("k") for _ in range(20))) == [b"v"] * 20
        assert await calls(server_cluster, "get") == [0, 0, 0]
        assert len(client.auth_status()) == 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # redis-py 7 warns of itself
async def test_a_plain_client_and_ours_know_the_same_nodes(
    client: EntraRedisCluster, server_cluster: ServerCluster
):
    host, port = server_cluster.startup
    await server_cluster.converged()
    await client.nodes_manager.initialize()
    async with RedisCluster(host=host, port=port) as plain:

        def seen(each: Any) -> set[tuple[str, str]]:
            return {(node.name, node.server_type) for node in each.get_nodes()}

        assert seen(client) == seen(plain)
        for slot in (0, 8000, 16383):
            names = [
                {node.name for node in each.nodes_manager.slots_cache[slot]}
                for each in (client, plain)
            ]
            assert names[0] == names[1]
