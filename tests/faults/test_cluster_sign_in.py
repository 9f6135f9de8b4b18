"""Every node of a cluster is signed in again with each token, and primaries change meanwhile."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.cluster import LoadBalancingStrategy
from support.load import Load
from support.signing_in import Witness, minted_source

from aioentra_redis import EntraRedisCluster, Reauthenticated, ReauthenticationFailed, TokenSource
from aioentra_redis._multiplex import _rotation
from aioentra_redis.emulator import AuthAttempt, Emulator, Log

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(180)]

ROTATIONS = 6
FAILOVERS = 3


@pytest.fixture
async def source(entra_cluster: Emulator) -> AsyncIterator[TokenSource]:
    """A new token every second, good for 30: what is late is seen in the log, not as an error."""
    async with minted_source(entra_cluster, believed=2.0) as made:
        yield made


def client_of(emulator: Emulator, source: TokenSource, **options: Any) -> EntraRedisCluster:
    return EntraRedisCluster.from_url(
        emulator.url, token_source=source, ssl_ca_certs=emulator.ca_file, **options
    )


def by_connection(log: Log) -> dict[int, list[AuthAttempt]]:
    found: dict[int, list[AuthAttempt]] = defaultdict(list)
    for each in log.auths:
        found[each.connection].append(each)
    return found


async def test_every_node_is_signed_in_again_with_each_token(
    entra_cluster: Emulator,
    source: TokenSource,
    figure: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine an AUTH may be slow, and would have its connection replaced.
    monkeypatch.setattr(_rotation, "SLOW_AUTH", math.inf)
    witness = Witness()
    async with client_of(
        entra_cluster,
        source,
        load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN,
        on_event=witness,
    ) as client:
        await client.start()
        async with Load(client, 50, check_at_end=False) as load:
            await witness.at_least(6 * ROTATIONS, Reauthenticated, timeout=60)
        # The ledger at one moment, and what the emulator has seen by then.
        while True:
            ledger = {row.host: row for row in client.auth_status()}
            log = await entra_cluster.log()
            if ledger == {row.host: row for row in client.auth_status()}:
                break
        nodes = {f"{each.host}:{each.port}": each.number for each in await entra_cluster.nodes()}
        errors = load.errors + load.read_errors
    auths = by_connection(log)
    # The connection through the entry goes on as that of the node behind it.
    nodes[urlsplit(entra_cluster.url).netloc] = auths[min(auths)][0].node
    seen = {each[0].node: each for each in auths.values()}
    figure("nodes with one connection, signed in", f"{len(auths)} of 6", target="6 of 6")
    figure("commands, errors", f"{load.done}, {len(errors)}", target="0 errors")
    assert errors == []
    assert witness.of(ReauthenticationFailed) == []
    assert sorted(nodes[host] for host in ledger) == [1, 2, 3, 4, 5, 6]
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert len(auths) == 6

    issued = [each.uti for each in log.tokens]
    agreed = 0
    for host, row in ledger.items():
        attempts = seen[nodes[host]]
        assert all(each.accepted for each in attempts)
        assert [each.command for each in attempts] == ["HELLO"] + ["AUTH"] * (len(attempts) - 1)
        # One AUTH for each token, in the order of their issue, none left out.
        first = issued.index(attempts[0].uti)
        assert [each.uti for each in attempts] == issued[first : first + len(attempts)]
        assert row.reauthentications == len(attempts) - 1 >= ROTATIONS - 1
        assert row.last_auth_at is not None
        assert abs(row.last_auth_at - attempts[-1].time) < 0.5
        agreed += 1
    figure("nodes of which ledger and emulator's log agree", f"{agreed} of 6", target="6 of 6")

    spreads = []
    for uti in issued[1:]:
        times = [each.time for each in log.auths if each.uti == uti and each.command == "AUTH"]
        if len(times) == 6:
            spreads.append(max(times) - min(times))
    spread = statistics.median(spreads)
    figure("AUTHs with one token on 6 nodes are apart", spread * 1000, "ms", target="jittered")
    assert len(spreads) >= ROTATIONS - 2
    assert spread > 0.01


async def test_primaries_hand_over_while_tokens_rotate(
    entra_cluster: Emulator, source: TokenSource, figure: Any
) -> None:
    """Over TLS, with tokens that are checked, as on Azure Managed Redis.

    How long the longest command may take is in ``test_cluster_failover``: here the emulator's
    fronts take turns with the client.
    """
    clock = asyncio.get_running_loop().time
    witness = Witness()
    longest = []
    async with client_of(entra_cluster, source, on_event=witness) as client:
        await client.start()
        async with Load(client, 100) as load:
            for number in range(FAILOVERS):
                await load.more(2000)
                rotated = len(witness.of(Reauthenticated))
                started = clock()
                await entra_cluster.failover(number + 1)
                await load.more(1000)
                longest.append(load.slowest(started, clock()))
                await witness.at_least(rotated + 3, Reauthenticated, timeout=30)
            await load.more(1000)
        errors = load.errors + load.read_errors
    log = await entra_cluster.log()
    title = f"{FAILOVERS} failovers with tokens, TLS"
    figure(f"{title}: longest command", max(longest) * 1000, "ms")
    figure(f"{title}: errors", len(errors), target="0")
    figure(f"{title}: acknowledged writes lost, applied twice", len(load.wrong), target="0")
    figure(f"{title}: writes that may have been executed", load.maybe, target="0")
    figure(f"{title}: commands, AUTHs", f"{load.done}, {len(log.auths)}")
    assert errors == []
    assert load.wrong == []
    assert load.maybe == 0
    assert all(each.accepted for each in log.auths)
    assert [each for each in log.closes if each.reason == "expiry"] == []
