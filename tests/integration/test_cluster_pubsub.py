"""Subscribers of a real cluster: they outlive nodes, and sharded channels follow their slots."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.exceptions
from support.cluster_links import Link
from support.server_cluster import ClusterNode, ServerCluster
from support.slot_migration import Migration, slot_of

from aioentra_redis import EntraRedisCluster, MessagesMayBeMissing
from aioentra_redis.errors import ClosedError, ConnectionLostError

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]


@pytest.fixture
async def client(server_cluster: ServerCluster) -> AsyncIterator[EntraRedisCluster]:
    host, port = server_cluster.startup
    async with EntraRedisCluster(host=host, port=port, decode_responses=True) as made:
        made.gaps = []  # type: ignore[attr-defined]
        made._hub.listen(
            lambda event: (
                made.gaps.append(event)  # type: ignore[attr-defined]
                if isinstance(event, MessagesMayBeMissing)
                else None
            )
        )
        yield made


async def other_primary(cluster: ServerCluster, node: ClusterNode) -> ClusterNode:
    return next(each for each in await cluster.primaries() if each is not node)


async def move(cluster: ServerCluster, key: str) -> ClusterNode:
    target = await other_primary(cluster, await cluster.owner(slot_of(key)))
    await Migration.whole(cluster, slot_of(key), target)
    return target


async def message_of(pubsub: Any, timeout: float = 20) -> Any:
    """The next message that is one."""
    async with asyncio.timeout(timeout):
        while True:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
            if message is not None:
                return message["data"]


async def sharded_message_of(pubsub: Any, timeout: float = 20) -> Any:
    async with asyncio.timeout(timeout):
        while True:
            message = await pubsub.get_sharded_message(ignore_subscribe_messages=True, timeout=1)
            if message is not None:
                return message["data"]


async def heard(pubsub: Any, cluster: ServerCluster, channel: str, data: str) -> None:
    """Publish on a sharded channel until the subscriber gets it; it may get it more than once."""

    async def read() -> None:
        while await sharded_message_of(pubsub) != data:
            pass

    reading = asyncio.create_task(read())
    while not reading.done():
        for node in await cluster.primaries():
            with contextlib.suppress(Link.Error, OSError):  # MOVED, or a node that is dead
                await node.call("SPUBLISH", channel, data)
        await asyncio.wait({reading}, timeout=0.05)
    await reading


async def gaps_of(client: EntraRedisCluster, count: int) -> list[Any]:
    """What the client has told of gaps, once it is so much."""
    gaps: list[Any] = client.gaps  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while len(gaps) < count:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    return gaps


# -- channels and patterns -----------------------------------------------------------------------


async def test_what_is_published_anywhere_arrives(client: EntraRedisCluster) -> None:
    pubsub = client.pubsub()
    assert pubsub.get_pubsub_node() is None
    await pubsub.subscribe("channel")
    await pubsub.psubscribe("pattern:*")
    assert pubsub.get_pubsub_node() == client.get_node_from_key("channel")
    for number in range(2):
        message = await pubsub.get_message(timeout=5)
        assert message["type"] == ("subscribe", "psubscribe")[number]
    for node in client.get_primaries():
        await client.execute_command("PUBLISH", "channel", node.name, target_nodes=node)
        assert await message_of(pubsub) == node.name
    await client.execute_command("PUBLISH", "pattern:1", "x")
    assert await message_of(pubsub) == "x"
    await pubsub.aclose()
    assert not pubsub.subscribed


async def test_a_node_can_be_named(client: EntraRedisCluster) -> None:
    await client.initialize()
    node = client.get_primaries()[1]
    assert client.pubsub(node=node).get_pubsub_node() is node
    pubsub = client.pubsub(host=node.host, port=node.port)
    await pubsub.subscribe("x")
    assert len(await client.execute_command("PUBSUB CHANNELS", target_nodes=node)) == 1
    await pubsub.aclose()
    with pytest.raises(redis.exceptions.DataError, match="both host and port"):
        client.pubsub(host="127.0.0.1")
    with pytest.raises(redis.exceptions.RedisClusterException, match="doesn't exist"):
        client.pubsub(host="127.0.0.1", port=1)


async def test_a_subscriber_goes_to_another_node_when_its_own_is_lost(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.ping(target_nodes=EntraRedisCluster.ALL_NODES)
    pubsub = client.pubsub()
    await pubsub.subscribe("channel")
    await pubsub.psubscribe("pattern")
    await client.execute_command("PUBLISH", "channel", "before")
    assert await message_of(pubsub) == "before"

    async def read_on() -> Any:
        """As with redis-py's subscriber: the loss may be raised, and the next read goes on."""
        while True:
            try:
                return await message_of(pubsub)
            except ConnectionLostError:
                await asyncio.sleep(0.05)

    reading = asyncio.create_task(read_on())
    victim = server_cluster.at(pubsub.get_pubsub_node().port)
    victim.kill()
    node = server_cluster.living()[0]
    async with asyncio.timeout(20):
        while not reading.done():
            await node.call("PUBLISH", "channel", "after")
            await asyncio.sleep(0.05)
    assert await reading == "after"
    assert pubsub.get_pubsub_node().port != victim.port
    assert len(await gaps_of(client, 1)) == 1
    await pubsub.aclose()


# -- sharded channels ----------------------------------------------------------------------------


async def test_sharded_channels_of_all_nodes_are_read_from_one_place(
    client: EntraRedisCluster,
) -> None:
    channels = [f"channel:{number}" for number in range(30)]
    pubsub = client.pubsub()
    await pubsub.ssubscribe(*channels)
    for number, channel in enumerate(channels, 1):
        message = await pubsub.get_sharded_message(timeout=1)
        assert message == {
            "type": "ssubscribe",
            "pattern": None,
            "channel": channel,
            "data": number,
        }
    for channel in channels:
        assert await client.execute_command("SPUBLISH", channel, f"to {channel}") == 1
    got = {await sharded_message_of(pubsub) for _ in channels}
    assert got == {f"to {channel}" for channel in channels}
    assert await pubsub.get_sharded_message(timeout=0.01) is None
    await pubsub.sunsubscribe(*channels[:29])
    kinds = [(await pubsub.get_sharded_message(timeout=1))["type"] for _ in range(29)]
    assert kinds == ["sunsubscribe"] * 29
    assert list(pubsub.shard_channels) == channels[29:]
    rows = client.auth_status()
    assert len(rows) == len({row.host for row in rows}) + 1  # one for each node, and one subscriber
    assert len(rows) <= 3 + 1 + 1  # the entry may be a replica by now
    await pubsub.sunsubscribe()
    await pubsub.get_sharded_message(timeout=1)
    assert not pubsub.subscribed
    await pubsub.aclose()


async def test_handlers_get_the_messages_of_their_channels(client: EntraRedisCluster) -> None:
    got: list[Any] = []

    async def later(message: Any) -> None:
        await asyncio.sleep(0)
        got.append(("later", message["data"]))

    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.ssubscribe(a=lambda message: got.append(("a", message["data"])), b=later)
    await client.execute_command("SPUBLISH", "a", "1")
    await client.execute_command("SPUBLISH", "b", "2")
    async with asyncio.timeout(10):
        while len(got) < 2:
            assert await pubsub.get_sharded_message(timeout=1) is None
    assert sorted(got) == [("a", "1"), ("later", "2")]
    await pubsub.aclose()


async def test_one_node_may_be_looked_at_alone(client: EntraRedisCluster) -> None:
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    channels = [f"channel:{number}" for number in range(20)]
    await pubsub.ssubscribe(*channels)
    for channel in channels:
        await client.execute_command("SPUBLISH", channel, channel)
    await asyncio.sleep(0.1)
    (one, *_) = client.get_primaries()
    mine = [each for each in channels if client.get_node_from_key(each) is one]
    for _ in channels:
        await pubsub.get_sharded_message()  # the confirmations
    got = []
    while (message := await pubsub.get_sharded_message(timeout=0.1, target_node=one)) is not None:
        got.append(message["data"])
    assert got == mine
    await pubsub.aclose()


async def test_a_sharded_channel_follows_its_slot(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    pubsub = client.pubsub()
    await pubsub.ssubscribe("{moving}", "staying")
    for round in range(4):
        await move(server_cluster, "{moving}")
        await heard(pubsub, server_cluster, "{moving}", f"moved {round}")
        assert len(await gaps_of(client, round + 1)) == round + 1
    assert "has left" in str(client.gaps[0].error)  # type: ignore[attr-defined]
    await heard(pubsub, server_cluster, "staying", "here")
    await pubsub.aclose()


async def test_messages_read_before_a_slot_moves_are_not_lost(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.ssubscribe("{moving}")
    for number in range(100):
        await client.execute_command("SPUBLISH", "{moving}", str(number))
    await move(server_cluster, "{moving}")
    got = [await sharded_message_of(pubsub) for _ in range(100)]
    assert got == [*map(str, range(100))]
    await heard(pubsub, server_cluster, "{moving}", "last")
    await pubsub.aclose()


async def test_a_sharded_channel_is_subscribed_to_where_its_slot_has_gone(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.initialize()
    await move(server_cluster, "{moving}")
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.ssubscribe("{moving}")
    await client.execute_command("SPUBLISH", "{moving}", "x")
    assert await sharded_message_of(pubsub) == "x"
    await pubsub.aclose()


@pytest.mark.parametrize("planned", [True, False])
async def test_a_sharded_channel_outlives_its_primary(
    client: EntraRedisCluster, server_cluster: ServerCluster, planned: bool
) -> None:
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.ssubscribe("channel")
    primary = await server_cluster.owner(slot_of("channel"))
    (replica,) = await server_cluster.replicas_of(primary)
    if planned:
        await server_cluster.fail_over(primary)
    else:
        primary.kill()
        await replica.call("CLUSTER", "FAILOVER", "TAKEOVER")
    await heard(pubsub, server_cluster, "channel", "after")
    await pubsub.aclose()


async def test_a_lost_connection_is_made_anew(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.ssubscribe("channel")
    owner = await server_cluster.owner(slot_of("channel"))
    await owner.call("CLIENT", "KILL", "TYPE", "pubsub")
    await heard(pubsub, server_cluster, "channel", "after")
    (gap,) = await gaps_of(client, 1)
    assert "was lost" in str(gap.error)
    await pubsub.aclose()


# -- keyspace notifications ---------------------------------------------------------------------


@pytest.mark.capability("keyspace_notifications")
async def test_keyspace_notifications_come_from_all_primaries(
    client: EntraRedisCluster,
) -> None:
    await client.config_set("notify-keyspace-events", "KEA", target_nodes="all")
    try:
        async with client.keyspace_notifications() as notifications:
            await notifications.subscribe_keyspace("key:*")
            keys = {f"key:{number}" for number in range(10)}
            for key in keys:
                await client.set(key, 1)
            heard = set()
            async with asyncio.timeout(20):
                while heard != keys:
                    if (told := await notifications.get_message(timeout=1)) is not None:
                        heard.add(told.key)
            rows = [row.connection for row in client.auth_status()]
            assert sum(name.startswith("subscriber") for name in rows) == 3
    finally:
        await client.config_set("notify-keyspace-events", "", target_nodes="all")


# -- the end -------------------------------------------------------------------------------------


async def test_closing_the_client_ends_its_subscribers(client: EntraRedisCluster) -> None:
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.ssubscribe("channel")
    await pubsub.get_sharded_message()
    reading = asyncio.create_task(pubsub.get_sharded_message(timeout=None))
    await asyncio.sleep(0.05)
    await client.aclose()
    with pytest.raises(ClosedError):
        await reading
    await pubsub.aclose()


async def test_a_dropped_subscriber_leaves_nothing(client: EntraRedisCluster) -> None:
    pubsub = client.pubsub()
    await pubsub.ssubscribe("channel")
    await pubsub.subscribe("channel")
    gone = weakref.ref(pubsub)
    before = len(client.auth_status())
    del pubsub
    gc.collect()
    assert gone() is None
    async with asyncio.timeout(5):
        while len(client.auth_status()) > before - 2:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
