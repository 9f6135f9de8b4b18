"""The demo's failovers: one at a time, every primary in turn, and what goes wrong is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aioentra_redis.cli._failovers import Failovers
from aioentra_redis.emulator import EmulatorError, Node


class Cluster:
    """Two primaries of so many slots, whose replicas take over when they may."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.may = asyncio.Event()
        self.error: Exception | None = None

    async def nodes(self) -> list[Node]:
        return [
            Node(1, "127.0.0.1", 1, "primary", True, ((8192, 16383),)),
            Node(2, "127.0.0.1", 2, "primary", True, ((0, 100), (102, 8191))),
            Node(3, "127.0.0.1", 3, "replica", True, primary=1),
        ]

    async def failover(self, node: int) -> int:
        self.asked.append(node)
        await self.may.wait()
        if self.error is not None:
            raise self.error
        return node + 10


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def failovers_of(cluster: Any) -> tuple[Failovers, list[str]]:
    told: list[str] = []
    return Failovers(cluster, told.append), told


async def test_one_at_a_time_and_each_in_turn(cluster: Cluster):
    failovers, told = failovers_of(cluster)
    await failovers.settled()  # there is none to wait for
    failovers.begin()
    await asyncio.sleep(0)
    failovers.begin()
    await asyncio.sleep(0)
    assert cluster.asked == [2]
    cluster.may.set()
    await failovers.settled()
    for _ in range(2):
        failovers.begin()
        await failovers.settled()
    assert cluster.asked == [2, 1, 2]
    assert failovers.count == 3
    assert failovers.failures == []
    assert told[0].startswith("failover 1: node 12 took over slots 0-100, 102-8191 from node 2 in ")


@pytest.mark.parametrize("error", [EmulatorError("no rest"), ValueError("no replica")])
async def test_one_that_does_not_happen_is_told(cluster: Cluster, error: Exception):
    failovers, told = failovers_of(cluster)
    cluster.error = error
    cluster.may.set()
    failovers.begin()
    await failovers.settled()
    assert failovers.failures == [f"a failover that was asked for did not happen: {error}"]
    assert (failovers.count, told) == (0, [])


async def test_cancelling_the_wait_ends_it(cluster: Cluster):
    failovers, _ = failovers_of(cluster)
    failovers.begin()
    waiting = asyncio.create_task(failovers.settled())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}
