"""What an operator can do to the emulator's cluster: failover, migration, loss, growth."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
from redis.crc import key_slot
from support.cluster_witness import KEYS, fill, holds_everything
from support.raw_client import RawClient
from support.resp import Reply

from aioentra_redis.emulator import Emulator, EmulatorError, Node

pytestmark = pytest.mark.emulator

OK = ("+", b"OK")
TAGGED = [f"{{tag}}:{number}" for number in range(10)]
SLOT = key_slot(b"tag")


@contextlib.asynccontextmanager
async def signed_in(emulator: Emulator, node: Node | None = None) -> AsyncIterator[RawClient]:
    """A connection to a node, or to the entry, that has signed in."""
    async with RawClient(emulator, tls=True, node=node) as client:
        oid = emulator.service_principal.object_id
        assert await client.call("AUTH", oid, await emulator.issue_token()) == OK
        yield client


async def owner_and_other(emulator: Emulator) -> tuple[Node, Node]:
    """The primary of the tag's slot, and another one."""
    primaries = [each for each in await emulator.nodes() if each.role == "primary"]
    [owner] = [each for each in primaries if each.owns(SLOT)]
    return owner, next(each for each in primaries if each is not owner)


def errors(replies: Sequence[Reply]) -> list[str]:
    return [bytes(text or b"").decode() for kind, text in replies if kind == "-"]  # type: ignore[arg-type]


async def roles(emulator: Emulator) -> list[str]:
    return [each.role for each in await emulator.nodes()]


# ---------------------------------------------------------------------------------------- migration


async def test_a_migration_that_stops_half_way_and_goes_on(entra_cluster: Emulator):
    source, target = await owner_and_other(entra_cluster)
    ask = f"ASK {SLOT} {target.host}:{target.port}"
    async with (
        signed_in(entra_cluster, source) as at_source,
        signed_in(entra_cluster, target) as at_target,
    ):
        for key in TAGGED:
            assert await at_source.call("SET", key, key) == OK
        assert await entra_cluster.migrate_slots(SLOT, target.number, keys=4) == 4

        replies = {key: await at_source.call("GET", key) for key in TAGGED}
        asked = [key for key, reply in replies.items() if reply == ("-", ask.encode())]
        stayed = [key for key, reply in replies.items() if reply == ("$", key.encode())]
        assert (len(asked), len(stayed)) == (4, 6)
        for key in asked:
            assert await at_target.call("GET", key) == (
                "-",
                f"MOVED {SLOT} {source.host}:{source.port}".encode(),
            )
            assert await at_target.call("ASKING") == OK
            assert await at_target.call("GET", key) == ("$", key.encode())
        [refusal] = errors([await at_source.call("MGET", asked[0], stayed[0])])
        assert refusal.startswith("TRYAGAIN")
        assert (await owner_and_other(entra_cluster))[0] == source

        assert await entra_cluster.migrate_slots(SLOT, target.number) == 6
        assert (await owner_and_other(entra_cluster))[0].number == target.number
        for key in TAGGED:
            assert await at_target.call("GET", key) == ("$", key.encode())
            [moved] = errors([await at_source.call("GET", key)])
            assert moved == f"MOVED {SLOT} {target.host}:{target.port}"


async def test_an_open_slot_without_keys_moved(entra_cluster: Emulator):
    source, target = await owner_and_other(entra_cluster)
    async with signed_in(entra_cluster, source) as at_source:
        assert await at_source.call("SET", TAGGED[0], "x") == OK
        assert await entra_cluster.migrate_slots(SLOT, target.number, keys=0) == 0
        assert await at_source.call("GET", TAGGED[0]) == ("$", b"x")
        [asked] = errors([await at_source.call("GET", TAGGED[1])])
        assert asked.startswith("ASK ")


async def test_many_slots_with_their_keys(entra_cluster: Emulator):
    await fill(entra_cluster)
    slots = [key_slot(key.encode()) for key in KEYS]
    chosen = {*slots[:20], 0, 5460}  # of all three
    moving = [slot for slot in slots if slot in chosen and slot < 10922]  # node 3 has the rest
    assert await entra_cluster.migrate_slots(chosen, 3) == len(moving)
    nodes = await entra_cluster.nodes()
    assert all(nodes[2].owns(slot) for slot in chosen)
    assert nodes[0].owns(1)
    assert await entra_cluster.migrate_slots(chosen, 3) == 0
    assert await holds_everything(entra_cluster)


async def test_keys_that_move_one_by_one(entra_cluster: Emulator):
    source, target = await owner_and_other(entra_cluster)
    async with signed_in(entra_cluster, source) as client:
        for key in TAGGED:
            assert await client.call("SET", key, key) == OK
        moving = asyncio.create_task(entra_cluster.migrate_slots(SLOT, target.number, pace=0.05))
        seen = set()
        while not moving.done():
            replies = [await client.call("GET", key) for key in TAGGED]
            seen.add(sum(text.startswith("ASK") for text in errors(replies)))
        assert await moving == len(TAGGED)
    assert seen & set(range(1, len(TAGGED)))  # some had moved and others not


# ---------------------------------------------------------------------------------- failover, loss


async def test_a_replica_is_elected_when_its_primary_is_killed(entra_cluster: Emulator):
    await fill(entra_cluster)
    killed = (await entra_cluster.nodes())[1]
    async with signed_in(entra_cluster, killed) as connected:
        assert await connected.call("WAIT", "1", "5000") == (":", b"1")
        await entra_cluster.kill_node(2)
        assert await connected.ended()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(killed.host, killed.port)
    assert not (await entra_cluster.nodes())[1].running
    async with asyncio.timeout(30):
        while (await roles(entra_cluster))[4] != "primary":  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)

    await entra_cluster.start_node(2)
    back = (await entra_cluster.nodes())[1]
    assert (back.role, back.primary, back.port) == ("replica", 5, killed.port)
    await entra_cluster.failover(2)  # it has all data again
    assert await holds_everything(entra_cluster)


async def test_a_forced_failover_asks_nobody(entra_cluster: Emulator):
    for node in (1, 2):  # one primary of three is no majority: nobody can be elected
        await entra_cluster.kill_node(node)
    assert await entra_cluster.failover(4, force=True) == 4
    assert await entra_cluster.failover(2, force=True) == 5
    assert (await roles(entra_cluster))[3:5] == ["primary"] * 2


async def test_a_node_that_is_stopped_hands_over_first(entra_cluster: Emulator):
    await fill(entra_cluster)
    await entra_cluster.stop_node(1)
    nodes = await entra_cluster.nodes()
    assert (nodes[0].running, nodes[0].role, nodes[3].role) == (False, "replica", "primary")
    assert await holds_everything(entra_cluster)


async def test_the_entry_leads_to_a_node_that_runs(entra_cluster: Emulator):
    async with signed_in(entra_cluster) as client:
        assert (await entra_cluster.log()).auths[-1].node == 1
        await entra_cluster.kill_node(1)
        assert await client.ended()
    async with signed_in(entra_cluster):
        assert (await entra_cluster.log()).auths[-1].node == 2


async def test_restarting_one_node_or_all(entra_cluster: Emulator):
    nodes = await entra_cluster.nodes()
    async with (
        signed_in(entra_cluster, nodes[0]) as first,
        signed_in(entra_cluster, nodes[1]) as second,
    ):
        await entra_cluster.restart_server(node=2, keep_data=True)
        assert await second.ended()
        assert await first.call("PING") == ("+", b"PONG")
        await entra_cluster.restart_server()
        assert await first.ended()
    assert [each.slots for each in await entra_cluster.nodes()] == [each.slots for each in nodes]


# ------------------------------------------------------------------------------------------- growth


async def test_nodes_that_come_and_go(entra_cluster: Emulator):
    assert await entra_cluster.add_node() == 7
    assert await entra_cluster.add_node(primary=7) == 8
    nodes = await entra_cluster.nodes()
    assert (nodes[6].role, nodes[6].slots) == ("primary", ())
    assert (nodes[7].role, nodes[7].primary) == ("replica", 7)
    await fill(entra_cluster)
    slots = {key_slot(key.encode()) for key in KEYS[:10]}
    await entra_cluster.migrate_slots(slots, 7)
    with pytest.raises(ValueError, match="node 7 has slots"):
        await entra_cluster.remove_node(7)
    async with signed_in(entra_cluster, nodes[7]) as replica:
        assert await replica.call("READONLY") == OK
    assert await entra_cluster.failover(7) == 8
    await entra_cluster.migrate_slots(slots, 1)
    await entra_cluster.remove_node(7)
    await entra_cluster.remove_node(8)
    assert await holds_everything(entra_cluster)
    assert [each.number for each in await entra_cluster.nodes()] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(nodes[6].host, nodes[6].port)


# -------------------------------------------------------------------------------------------- reset


async def test_a_reset_restores_the_topology(entra_cluster: Emulator):
    before = await entra_cluster.nodes()
    await entra_cluster.failover(1)
    await entra_cluster.add_node()
    await entra_cluster.kill_node(3)
    await entra_cluster.reset()
    after = await entra_cluster.nodes()
    assert [(each.port, each.role, each.slots, each.primary, each.running) for each in after] == [
        (each.port, each.role, each.slots, each.primary, each.running) for each in before
    ]
    for node in after:
        async with signed_in(entra_cluster, node) as client:
            assert await client.call("DBSIZE") == (":", b"0")


async def test_a_reset_that_finds_the_topology_as_it_was_keeps_the_servers(
    entra_cluster: Emulator,
):
    before = await entra_cluster.nodes()
    await fill(entra_cluster)
    await entra_cluster.reset()
    assert await entra_cluster.nodes() == before  # their ids, too
    for node in before:
        async with signed_in(entra_cluster, node) as client:
            assert await client.call("DBSIZE") == (":", b"0")


async def test_a_reset_closes_slots_that_were_left_open(entra_cluster: Emulator):
    source, target = await owner_and_other(entra_cluster)
    await entra_cluster.migrate_slots(SLOT, target.number, keys=0)
    await entra_cluster.reset()
    async with signed_in(entra_cluster, source) as client:
        assert await client.call("GET", TAGGED[0]) == ("$", None)


async def test_a_reset_gives_up_what_is_under_way(entra_cluster: Emulator):
    source, target = await owner_and_other(entra_cluster)
    async with signed_in(entra_cluster, source) as client:
        for key in TAGGED:
            assert await client.call("SET", key, key) == OK
        moving = asyncio.create_task(entra_cluster.migrate_slots(SLOT, target.number, pace=60))
        async with asyncio.timeout(20):
            while not errors([await client.call("GET", key) for key in TAGGED]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    await entra_cluster.reset()
    with pytest.raises(EmulatorError, match="because the emulator was reset"):
        await moving
    async with signed_in(entra_cluster, source) as client:
        assert await client.call("GET", TAGGED[0]) == ("$", None)


async def test_a_reset_brings_back_a_node_that_was_removed(entra_cluster: Emulator):
    await entra_cluster.remove_node(4)
    assert await entra_cluster.add_node() == 7
    await entra_cluster.reset()
    nodes = await entra_cluster.nodes()
    assert [(each.number, each.primary) for each in nodes] == [
        (1, None),
        (2, None),
        (3, None),
        (4, 1),
        (5, 2),
        (6, 3),
    ]
    async with signed_in(entra_cluster, nodes[3]) as client:
        assert await client.call("READONLY") == OK


# ---------------------------------------------------------------------------------------- mistakes


async def test_what_makes_no_sense_is_refused(entra_cluster: Emulator):
    for wrong, says in (
        (entra_cluster.kill_node(9), "there is no node 9: there are 1, 2, 3, 4, 5, 6"),
        (entra_cluster.start_node(1), "node 1 runs already"),
        (entra_cluster.failover(9), "there is no node 9"),
        (entra_cluster.migrate_slots(1, 4), "node 4 is no primary"),
        (entra_cluster.migrate_slots(16384, 1), "slots are numbers from 0 to 16383"),
        (entra_cluster.migrate_slots([], 1), "slots are numbers"),
        (entra_cluster.add_node(primary=4), "node 4 is no primary"),
        (entra_cluster.remove_node(1), "node 1 has slots"),
        (entra_cluster.drop_connections(node=7), "there is no node 7"),
        (entra_cluster.refuse_auth(node=0), "there is no node 0"),
    ):
        with pytest.raises(ValueError, match=says):
            await wrong
    await entra_cluster.kill_node(4)
    with pytest.raises(ValueError, match="node 4 does not run"):
        await entra_cluster.kill_node(4)
    with pytest.raises(ValueError, match="no replica that could take over"):
        await entra_cluster.failover(1)
    await entra_cluster.kill_node(2)
    for wrong in (
        entra_cluster.failover(4),
        entra_cluster.migrate_slots(1, 2),
        entra_cluster.migrate_slots(6000, 1),
        entra_cluster.add_node(primary=2),
    ):
        with pytest.raises(ValueError, match="does not run: start it first"):
            await wrong
