"""Tokens are replaced while a cluster works: every node's connections get each of them, in time."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from redis.cluster import LoadBalancingStrategy
from support.signing_in import Traffic, Witness, minted_source, secret_source, until

from aioentra_redis import (
    EntraRedisCluster,
    Reauthenticated,
    ReauthenticationFailed,
    TokenPublished,
    TokenSource,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


def cluster_of(emulator: Emulator, source: TokenSource, **options: object) -> EntraRedisCluster:
    made = EntraRedisCluster.from_url(
        emulator.url, token_source=source, ssl_ca_certs=emulator.ca_file, **options
    )
    assert isinstance(made, EntraRedisCluster)
    return made


def late(traffic: Traffic) -> list[tuple[str, str, bytes]]:
    """What was read and not what had been written: whose it was, and both of them."""
    return [each for each in traffic.wrong if isinstance(each, tuple)]


async def test_every_node_is_given_every_token_under_load(entra_cluster: Emulator) -> None:
    """Ledger and server agree: one AUTH for each token on each of six connections, none refused."""
    witness = Witness()
    async with (
        minted_source(entra_cluster, believed=1.0) as source,
        cluster_of(
            entra_cluster,
            source,
            on_event=witness,
            load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN,
        ) as client,
    ):
        await client.start()
        assert len(client.auth_status()) == 6
        traffic = Traffic(client, 50)
        await witness.at_least(6, TokenPublished, timeout=30)
        await until(lambda: min(row.token_version or 0 for row in client.auth_status()) >= 5)
        await traffic.stop()
        rows = {row.connection: row for row in client.auth_status()}
        log = await entra_cluster.log()
    assert traffic.errors == []
    # Replicas may be behind; but each worker reads what it wrote itself.
    assert all(read.decode().split("/")[0] == name.split(":")[1] for name, _, read in late(traffic))
    assert traffic.done > 1000
    assert witness.of(ReauthenticationFailed) == []
    assert len(rows) == 6
    seen = defaultdict(list)
    for each in log.auths:
        assert each.accepted
        seen[each.connection].append(each.uti)
    assert {each.node for each in log.auths} == {1, 2, 3, 4, 5, 6}
    assert len(seen) == 6
    for tokens in seen.values():
        assert len(tokens) == len(set(tokens)) >= 5
    told = defaultdict(set)
    for event in witness.of(Reauthenticated):
        told[event.token_version].add(event.connection)
    assert all(names <= rows.keys() for names in told.values())
    assert told[4] == told[5] == set(rows)


async def test_waits_at_several_nodes_outlast_their_tokens(entra_cluster: Emulator) -> None:
    await entra_cluster.configure(token_lifetime=3)
    async with secret_source(entra_cluster) as source, cluster_of(entra_cluster, source) as client:
        keys = [f"queue:{number}" for number in range(6)]
        assert len({client.keyslot(key) // 5461 for key in keys}) == 3
        waits = [asyncio.create_task(client.blpop(key, timeout=30)) for key in keys]
        await asyncio.sleep(5)
        assert not any(task.done() for task in waits)
        await asyncio.gather(*(client.rpush(key, "element") for key in keys))
        found = await asyncio.gather(*waits)
    assert [list(each) for each in found] == [[key.encode(), b"element"] for key in keys]
    log = await entra_cluster.log()
    assert all(each.accepted for each in log.auths)


async def test_a_failover_between_two_tokens(entra_cluster: Emulator) -> None:
    witness = Witness()
    async with (
        minted_source(entra_cluster, believed=0.6) as source,
        cluster_of(entra_cluster, source, on_event=witness) as client,
    ):
        traffic = Traffic(client, 50)
        await witness.at_least(2, TokenPublished, timeout=30)
        primary = next(each for each in await entra_cluster.nodes() if each.role == "primary")
        await entra_cluster.failover(primary.number)
        count = len(witness.of(TokenPublished))
        await witness.at_least(count + 3, TokenPublished, timeout=30)
        await traffic.stop()
    assert (traffic.errors, traffic.wrong) == ([], [])
    assert witness.of(ReauthenticationFailed) == []
