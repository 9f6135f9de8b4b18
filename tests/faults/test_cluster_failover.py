"""A primary that hands over, and one that dies: 100 workers, and a new token every second."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.cluster_clients import KINDS, OURS, cluster_client
from support.free_tokens import OID, free_source
from support.load import Load
from support.server_cluster import ClusterNode, ServerCluster

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.alone,
    pytest.mark.timeout(180),
    pytest.mark.parametrize("kind", KINDS),
]

WORKERS = 100
FAILOVERS = 4
LONGEST = 0.15
"""Seconds that the longest command may take when a primary hands over."""

DEATHS = 3
NODE_TIMEOUT = 1000
NOTICED = 0.05
"""Seconds until a client has read from the sockets of a server that is dead."""


@contextlib.asynccontextmanager
async def rotating(kind: str, cluster: ServerCluster) -> AsyncIterator[Any]:
    """A client whose tokens rotate every second, if it is ours; redis-py's has none."""
    if kind != OURS:
        async with cluster_client(kind, cluster) as client:
            yield client
        return
    async with (
        free_source(2.0) as source,
        cluster_client(kind, cluster, token_source=source) as client,
    ):
        yield client


def kinds_of(load: Load) -> str:
    counts = Counter(type(each).__name__ for each in (*load.errors, *load.read_errors))
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "0"


async def auths(cluster: ServerCluster) -> int:
    """How often anybody has signed in, on all nodes."""
    count = 0
    for node in cluster.living():
        for line in (await node.call("INFO", "commandstats")).decode().splitlines():
            if line.startswith(("cmdstat_auth:", "cmdstat_hello:")):
                count += int(line.partition("calls=")[2].partition(",")[0])
    return count


async def test_a_primary_hands_over(server_cluster: ServerCluster, kind: str, figure: Any) -> None:
    clock = asyncio.get_running_loop().time
    longest = []
    async with rotating(kind, server_cluster) as client:
        before = await auths(server_cluster)
        async with Load(client, WORKERS) as load:
            for number in range(FAILOVERS):
                await load.more(3000)
                primaries = await server_cluster.primaries()
                started = clock()
                await server_cluster.fail_over(primaries[number % len(primaries)])
                await load.more(3000)
                longest.append(load.slowest(started, clock()))
            await load.more(1000)
        signed_in = await auths(server_cluster) - before
    title = f"{FAILOVERS} CLUSTER FAILOVERs, {kind}"
    figure(f"{title}: longest command", max(longest) * 1000, "ms", target="under 150 ms")
    figure(f"{title}: errors", kinds_of(load), target="0")
    figure(f"{title}: acknowledged writes lost, applied twice", len(load.wrong), target="0")
    figure(f"{title}: writes that may have been executed", load.maybe, target="0")
    figure(f"{title}: commands, AUTHs", f"{load.done}, {signed_in}")
    assert load.wrong == []
    assert load.errors == load.read_errors == []
    assert load.maybe == 0
    assert signed_in >= 3 or kind != OURS
    assert max(longest) < LONGEST


class Watch:
    """Asks every survivor every 10 ms who owns the slots of a node that died."""

    def __init__(self, cluster: ServerCluster, victim: ClusterNode) -> None:
        self._survivors = [node for node in cluster.living() if node is not victim]
        self._victim = victim
        self._cluster = cluster

    async def replaced(self) -> float:
        """Wait until all of them name another primary; returns when that was."""
        clock = asyncio.get_running_loop().time
        async with self._cluster.links(self._survivors) as links, asyncio.timeout(30):
            while True:
                turn = clock()
                views = [(await each("CLUSTER", "NODES")).decode() for each in links]
                if not any(map(self._still_owns, views)):
                    return clock()
                await asyncio.sleep(max(0.0, turn + 0.01 - clock()))

    def _still_owns(self, view: str) -> bool:
        line = next(each for each in view.splitlines() if each.startswith(self._victim.id))
        return len(line.split()) > 8


async def test_a_primary_dies(kind: str, figure: Any) -> None:
    clock = asyncio.get_running_loop().time
    rounds = []
    async with (
        ServerCluster(node_timeout=NODE_TIMEOUT, users=[OID]) as cluster,
        rotating(kind, cluster) as client,
        Load(client, WORKERS) as load,
    ):
        for number in range(DEATHS):
            await load.more(3000)
            victim = (await cluster.primaries())[number]
            killed = clock()
            victim.kill()
            failover = await Watch(cluster, victim).replaced() - killed
            await asyncio.sleep(1.0)
            await load.more(3000)
            longest = load.slowest(killed, clock())
            late = [sent - killed for sent in load.maybe_sent if sent > killed + NOTICED]
            rounds.append((longest - failover, longest, failover, late))
            load.maybe_sent.clear()
            await cluster.restart(victim)
        await load.more(1000)
    over, longest, failover, _ = max(rounds)
    title = f"{DEATHS} x kill -9, {kind}"
    shown = f"{longest:.2f} s for {failover:.2f} s"
    figure(f"{title}: longest command, for the failover", shown, target="+ 0.5 s")
    figure(f"{title}: errors", kinds_of(load), target="0")
    figure(f"{title}: writes that may have been executed", load.maybe, target="in flight then")
    figure(f"{title}: acknowledged writes lost, applied twice", len(load.wrong), target="0")
    figure(f"{title}: commands", load.done)
    assert load.wrong == []
    assert load.errors == load.read_errors == []
    assert [late for *_, late in rounds] == [[]] * DEATHS
    assert over < 0.5
