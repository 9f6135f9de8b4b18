"""What a cluster client costs in connections, handshakes and objects."""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from redis.cluster import LoadBalancingStrategy
from support.server_cluster import ServerCluster
from support.signing_in import minted_source
from support.slot_migration import Migration, slot_of

from aioentra_redis import EntraRedisCluster
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]

KEYS = [f"key:{number}" for number in range(1000)]


async def clients_of(cluster: ServerCluster) -> Counter[str]:
    """Connections of clients to each node, our own question not included.

    Nor those by which nodes have moved keys to each other: they stay for some ten seconds.
    """
    found: Counter[str] = Counter()
    for node in cluster.nodes:
        lines = (await node.call("CLIENT", "LIST", "TYPE", "NORMAL")).decode().splitlines()
        found[node.name] = sum(" cmd=restore" not in line for line in lines) - 1
    return found


@pytest.mark.parametrize("n", [1, 10, 100, 1000])
async def test_one_connection_for_each_primary_at_any_n(
    server_cluster: ServerCluster, n: int
) -> None:
    primaries = {node.name for node in await server_cluster.primaries()}

    async def work(key: str) -> None:
        for turn in range(3):
            assert await client.set(key, turn)
            assert await client.get(key) == b"%d" % turn

    async with EntraRedisCluster(*server_cluster.startup) as client:
        await client.start()
        await asyncio.gather(*map(work, KEYS[:n]))
        clients = await clients_of(server_cluster)
        assert {clients[name] for name in primaries} == {1}
        # A replica may have been the first to be asked for the topology.
        assert all(count <= 1 for count in clients.values())
    assert sum((await clients_of(server_cluster)).values()) == 0


@pytest.fixture
def ca_loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What SSL contexts were told to verify with, call by call."""
    loads: list[Any] = []
    load = ssl.SSLContext.load_verify_locations

    def counted(context: ssl.SSLContext, *args: Any, **options: Any) -> None:
        loads.append((args, options))
        load(context, *args, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", counted)
    return loads


async def test_opening_six_nodes_costs_six_handshakes_and_one_ca_load(
    entra_cluster: Emulator, ca_loads: list[Any]
) -> None:
    async with (
        minted_source(entra_cluster, believed=20) as source,
        EntraRedisCluster.from_url(
            entra_cluster.url,
            token_source=source,
            ssl_ca_certs=entra_cluster.ca_file,
            load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN,
        ) as client,
    ):
        await client.start()
        await asyncio.gather(*(client.set(key, 1) for key in KEYS))
        await asyncio.gather(*(client.get(key) for key in KEYS + KEYS))
        log = await entra_cluster.log()
        open_now = await entra_cluster.connections()
    assert len(ca_loads) == 1
    assert sorted(each.node for each in open_now) == [1, 2, 3, 4, 5, 6]
    assert len(log.auths) == 6
    assert {each.command for each in log.auths} == {"HELLO"}


def ours() -> Counter[str]:
    """Living objects of this package and of redis-py, by class.

    Some of asyncio's own stay until a collection: a transport and its method refer to each other.
    """
    # A class may have a descriptor there, such as those of wrapt's proxies.
    kinds = ((str(type(each).__module__), type(each).__qualname__) for each in gc.get_objects())
    return Counter(
        f"{module}.{name}"
        for module, name in kinds
        if module.startswith(("aioentra_redis", "redis"))
    )


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No garbage collection: what is referred to in a cycle stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
async def test_closed_clients_are_gone_without_a_garbage_collection(
    server_cluster: ServerCluster,
) -> None:
    async def one(number: int) -> None:
        async with EntraRedisCluster(*server_cluster.startup) as client:
            await asyncio.gather(*(client.set(key, number) for key in KEYS[:50]))
            assert await client.get(KEYS[0]) == b"%d" % number
            await client.nodes_manager.initialize()

    for number in range(3):  # whatever is made once
        await one(number)
    before = ours()
    for number in range(20):
        await one(number)
    assert ours() - before == Counter()


@pytest.mark.usefixtures("no_collection")
async def test_refreshes_leave_nothing_behind(server_cluster: ServerCluster) -> None:
    """With nodes that stay, and with slots that move: what has been replaced goes at once."""
    slot = slot_of("{refreshed}")
    home = await server_cluster.owner(slot)
    away = next(node for node in await server_cluster.primaries() if node is not home)
    async with EntraRedisCluster(*server_cluster.startup) as client:

        async def refresh(turns: int) -> None:
            for turn in range(turns):
                if turn % 10 == 0:
                    target = away if await server_cluster.owner(slot) is home else home
                    await Migration.whole(server_cluster, slot, target)
                    await client.set("{refreshed}", turn)
                await client.nodes_manager.initialize()
                await asyncio.gather(*(client.get(key) for key in KEYS[:20]))

        await refresh(20)
        before = ours()
        await refresh(100)
        assert ours() - before == Counter()
