"""Slots that move under load: every command runs once, on whoever has its key."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from support.cluster_clients import KINDS, cluster_client
from support.counting import Counting
from support.server_cluster import ServerCluster
from support.slot_migration import Migration, slot_of

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.timeout(180),
    pytest.mark.parametrize("kind", KINDS),
]

MIGRATIONS = 20


def kinds_of(errors: list[Exception]) -> str:
    counts = Counter(type(each).__name__ for each in errors)
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "0"


async def test_slots_move_back_and_forth_under_incr(
    server_cluster: ServerCluster, kind: str, figure: Any
) -> None:
    slot = slot_of("{moves}")
    home = await server_cluster.owner(slot)
    away = next(node for node in await server_cluster.primaries() if node is not home)
    keys = [f"{{moves}}{number}" for number in range(50)]
    elsewhere = [f"stays:{number}" for number in range(50)]
    async with cluster_client(kind, server_cluster) as client:
        async with Counting(client, keys + elsewhere, workers=20) as counting:
            for number in range(MIGRATIONS):
                await counting.more(200)
                target = home if number % 2 else away
                migration = await Migration.begin(server_cluster, slot, target)
                await counting.more(50)
                await migration.move(*keys[: len(keys) // 2])
                await counting.more(50)
                await migration.move_all()
                await counting.more(50)
                await migration.finish()
            await counting.more(400)
        wrong = await counting.differences(client)
    extra = sum(each for each in wrong.values() if each > 0)
    lost = -sum(each for each in wrong.values() if each < 0)
    title = f"{MIGRATIONS} migrations, {kind}"
    figure(f"{title}: INCRs applied twice, lost", f"{extra}, {lost}", target="0, 0")
    figure(f"{title}: errors", kinds_of(counting.errors), target="0")
    figure(f"{title}: INCRs acknowledged", counting.done)
    figure(f"{title}: longest INCR", counting.longest * 1000, "ms")
    assert wrong == {}
    assert counting.strange == []
    assert counting.errors == []
    assert counting.maybe == {}


WORKERS = 8
COMMANDS = 25


async def test_ask_with_eight_workers(
    server_cluster: ServerCluster, kind: str, figure: Any
) -> None:
    slot = slot_of("{asked}")
    source = await server_cluster.owner(slot)
    target = next(node for node in await server_cluster.primaries() if node is not source)
    keys = [f"{{asked}}{number}" for number in range(WORKERS)]
    answered: list[Any] = []
    errors: list[Exception] = []

    async def work(key: str) -> None:
        for number in range(COMMANDS):
            try:
                answered.append((key, number + 2, await client.incr(key)))
            except Exception as error:
                errors.append(error)

    async with cluster_client(kind, server_cluster) as client:
        for key in keys:
            await source.call("SET", key, 1)
        # Connections to both nodes, and with redis-py as many as there are workers.
        its_slots = (await target.view())[target.id].slots
        other = next(key for key in map(str, range(1000)) if slot_of(key) in its_slots)
        await asyncio.gather(*(client.get(key) for key in (*keys, *[other] * WORKERS)))
        migration = await Migration.begin(server_cluster, slot, target)
        await migration.move_all()
        await asyncio.gather(*map(work, keys))
        title = f"ASK, {WORKERS} workers, {kind}"
        right = sum(number == reply for _key, number, reply in answered)
        all_of_them = WORKERS * COMMANDS
        figure(f"{title}: commands answered", f"{right} of {all_of_them}", target="200 of 200")
        figure(f"{title}: errors", kinds_of(errors), target="0")
        await migration.finish()
        assert errors == []
        assert right == len(answered) == all_of_them
        assert [int(each) for each in await client.mget(keys)] == [COMMANDS + 1] * WORKERS


SPLIT = 1.0
"""Seconds for which a slot stays half-moved."""


async def test_commands_of_several_keys_wait_until_all_have_moved(
    server_cluster: ServerCluster, kind: str, figure: Any
) -> None:
    slot = slot_of("{split}")
    source = await server_cluster.owner(slot)
    target = next(node for node in await server_cluster.primaries() if node is not source)
    keys = [f"{{split}}{number}" for number in range(10)]
    async with cluster_client(kind, server_cluster) as client:
        for key in keys:
            await client.set(key, key)
        migration = await Migration.begin(server_cluster, slot, target)
        await migration.move(*keys[:5])
        reads = [asyncio.create_task(client.mget(keys)) for _ in range(20)]
        await asyncio.sleep(SPLIT)
        waited = sum(not each.done() for each in reads)
        await migration.move_all()
        await migration.finish()
        replies = await asyncio.gather(*reads, return_exceptions=True)
    whole = sum(reply == [key.encode() for key in keys] for reply in replies)
    errors = [each for each in replies if isinstance(each, Exception)]
    figure(f"TRYAGAIN for {SPLIT} s, {kind}: MGETs answered", f"{whole} of 20", target="20 of 20")
    figure(f"TRYAGAIN for {SPLIT} s, {kind}: errors", kinds_of(errors), target="0")
    assert waited == 20
    assert whole == 20
