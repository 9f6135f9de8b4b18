"""``connect`` finds a cluster of real servers, by itself or because it was told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from support.server_cluster import ClusterNode, ServerCluster
from support.slot_migration import Migration, slot_of
from support.token_fakes import Clock, Credential, source_of

from aioentra_redis import (
    ClusterModeError,
    ConnectionOpened,
    EntraRedis,
    EntraRedisCluster,
    TokenSource,
    connect,
)


@pytest.fixture
async def source(server_cluster: ServerCluster) -> AsyncIterator[TokenSource]:
    """Its tokens are good for the cluster: each node has a user who needs no password."""
    clock = Clock()
    async with source_of(Credential(clock), clock) as made:
        user = (await made.get()).username
        for node in server_cluster.nodes:
            async with redis.asyncio.Redis(port=node.port) as admin:
                await admin.execute_command(
                    "ACL", "SETUSER", user, "reset", "on", "nopass", "+@all", "~*"
                )
        yield made
        for node in server_cluster.nodes:
            async with redis.asyncio.Redis(port=node.port) as admin:
                await admin.execute_command("ACL", "DELUSER", user)


def url_of(server_cluster: ServerCluster, **_: Any) -> str:
    return f"redis://localhost:{server_cluster.nodes[0].port}"


@pytest.mark.parametrize("cluster", [True, "auto"])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_cluster_is_found_and_its_keys_are(
    server_cluster: ServerCluster, source: TokenSource, cluster: Any, protocol: int
) -> None:
    events: list[Any] = []
    entry, *_ = await server_cluster.primaries()  # other tests change who is one
    url = f"redis://localhost:{entry.port}"
    connecting = connect(
        url, token_source=source, cluster=cluster, on_event=events.append, protocol=protocol
    )
    async with connecting as client:
        assert isinstance(client, EntraRedisCluster)
        for number in range(50):
            assert await client.set(f"key-{number}", number)
        assert await client.get("key-17") == b"17"
        opened = [event for event in events if isinstance(event, ConnectionOpened)]
        assert len(opened) == 3, "one for each primary; the one that has found out goes on"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_what_has_found_out_follows_slots_that_move(
    server_cluster: ServerCluster, source: TokenSource, protocol: int
) -> None:
    """Its connection was made for a single endpoint, and has to know a cluster's errors."""
    entry, elsewhere = (await server_cluster.primaries())[:2]
    url = f"redis://localhost:{entry.port}"
    key = await _key_of(server_cluster, entry)
    async with connect(url, token_source=source, protocol=protocol) as client:
        assert isinstance(client, EntraRedisCluster)
        assert await client.set(key, "before")
        await Migration.whole(server_cluster, slot_of(key), elsewhere)
        try:
            assert await client.get(key) == b"before"
            assert client.get_node_from_key(key).port == elsewhere.port
        finally:
            await Migration.whole(server_cluster, slot_of(key), entry)


async def _key_of(server_cluster: ServerCluster, node: ClusterNode) -> str:
    for number in range(100):
        if await server_cluster.owner(slot_of(f"moving-{number}")) is node:
            return f"moving-{number}"
    raise AssertionError(f"{node.name} owns nothing")


async def test_a_client_for_one_endpoint_says_what_to_do_where_it_is_sent_elsewhere(
    server_cluster: ServerCluster, source: TokenSource
) -> None:
    async with connect(url_of(server_cluster), token_source=source, cluster=False) as client:
        assert isinstance(client, EntraRedis)
        elsewhere = await _key_of_another_node(client)
        for attempt in (
            client.get(elsewhere),
            client.blpop([elsewhere], timeout=0.01),
            _in_a_transaction(client, elsewhere),
            _in_a_pipeline(client, elsewhere),
            _on_a_connection_of_its_own(client, elsewhere),
        ):
            with pytest.raises(ClusterModeError, match="connect with cluster=True"):
                await attempt


async def _key_of_another_node(client: EntraRedis) -> str:
    for number in range(100):
        try:
            await client.get(f"key-{number}")
        except ClusterModeError:
            return f"key-{number}"
    raise AssertionError("one node owns them all")


async def _in_a_transaction(client: EntraRedis, key: str) -> None:
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch(key)
        pipe.multi()
        await pipe.set(key, 1).execute()


async def _in_a_pipeline(client: EntraRedis, key: str) -> None:
    async with client.pipeline(transaction=False) as pipe:
        await pipe.set(key, 1).execute()


async def _on_a_connection_of_its_own(client: EntraRedis, key: str) -> None:
    async with client.client() as alone:
        await alone.get(key)
