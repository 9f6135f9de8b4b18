"""The tests' own cluster: it forms, moves slots, fails over, loses nodes, and leaves nothing."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio.cluster import RedisCluster
from support.cluster_links import Link
from support.server_cluster import ServerCluster
from support.slot_migration import Migration, slot_of

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]


async def test_it_serves_and_its_nodes_agree(server_cluster: ServerCluster) -> None:
    primaries = await server_cluster.primaries()
    view = await server_cluster.view()
    assert len(primaries) == 3
    assert sum(len(view[node.id].slots) for node in primaries) == 16_384
    for primary in primaries:
        (replica,) = await server_cluster.replicas_of(primary)
        assert view[replica.id].slots == frozenset()
    host, port = server_cluster.startup
    async with RedisCluster(host=host, port=port) as client:
        for number in range(100):
            assert await client.set(f"key:{number}", number)
        assert await client.dbsize(target_nodes=RedisCluster.PRIMARIES) == 100


async def test_a_slot_moves_step_by_step(server_cluster: ServerCluster) -> None:
    slot = slot_of("{moving}")
    source = await server_cluster.owner(slot)
    target = next(node for node in await server_cluster.primaries() if node is not source)
    await source.call("MSET", "{moving}a", 1, "{moving}b", 2, "{moving}c", 3)
    migration = await Migration.begin(server_cluster, slot, target)
    await migration.move("{moving}a")
    with pytest.raises(Link.Error, match=f"^ASK {slot} 127.0.0.1:{target.port}"):
        await source.call("GET", "{moving}a")
    with pytest.raises(Link.Error, match=r"^TRYAGAIN"):
        await source.call("MGET", "{moving}a", "{moving}b")
    assert await source.call("GET", "{moving}b") == b"2"
    assert await migration.move_all() == 2
    await migration.finish()
    await server_cluster.converged()
    assert await server_cluster.owner(slot) is target
    assert await target.call("MGET", "{moving}a", "{moving}b", "{moving}c") == [b"1", b"2", b"3"]
    with pytest.raises(Link.Error, match=r"^MOVED"):
        await source.call("GET", "{moving}a")


async def test_what_is_left_half_way_is_mended(server_cluster: ServerCluster) -> None:
    slot = slot_of("half")
    source = await server_cluster.owner(slot)
    target = next(node for node in await server_cluster.primaries() if node is not source)
    await source.call("SET", "half", 1)
    await Migration.begin(server_cluster, slot, target)
    (victim,) = await server_cluster.replicas_of(source)
    victim.kill()
    with pytest.raises(ConnectionRefusedError):
        await victim.call("PING")
    await server_cluster.tidy()
    for node in server_cluster.nodes:
        assert (await node.view())[node.id].open_slots == ()
        assert await node.call("DBSIZE") == 0


async def test_roles_change_with_a_failover_and_with_a_death() -> None:
    async with ServerCluster(primaries=3, replicas=1, node_timeout=1000) as cluster:
        first, second, _third = await cluster.primaries()
        (replica,) = await cluster.replicas_of(first)
        assert await cluster.fail_over(first) is replica
        view = await cluster.converged()
        assert view[first.id].primary == replica.id
        (heir,) = await cluster.replicas_of(second)
        second.kill()
        async with asyncio.timeout(30):
            while (await heir.call("ROLE"))[0] != b"master":  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.05)
        await cluster.converged()
        assert heir in await cluster.primaries()
        await cluster.restart(second)
        assert await cluster.replicas_of(heir) == [second]
        folder, processes = cluster.nodes[0].folder.parent, [n.process for n in cluster.nodes]
    assert not folder.exists()
    assert [process.poll() is not None for process in processes if process] == [True] * 6


async def test_other_shapes_settings_and_users() -> None:
    cluster = ServerCluster(1, 0, users=["somebody"], settings={"maxclients": "77"})
    async with cluster:
        (node,) = cluster.nodes
        assert await node.call("CONFIG", "GET", "maxclients") == [b"maxclients", b"77"]
        assert await node.call("AUTH", "somebody", "any password") == b"OK"
        assert await node.call("CONFIG", "GET", "port") == [b"port", str(node.port).encode()]


async def test_a_cluster_that_cannot_start_says_why() -> None:
    cluster = ServerCluster(1, 0, settings={"maxmemory-policy": "nonsense"})
    with pytest.raises(RuntimeError, match="don't agree: ConnectionRefusedError"):
        await cluster.start(timeout=0.5)
    assert not any(node.alive for node in cluster.nodes)
