"""Faults and policies at one node of the emulator's cluster, and what tokens do at each."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from support.raw_client import RawClient
from support.resp import pack

from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

OK = ("+", b"OK")
PONG = ("+", b"PONG")


@pytest.fixture
async def clients(entra_cluster: Emulator):
    """A connection to each node that has not signed in, by the node's number."""
    async with contextlib.AsyncExitStack() as stack:
        yield {
            node.number: await stack.enter_async_context(
                RawClient(entra_cluster, tls=True, node=node)
            )
            for node in await entra_cluster.nodes()
        }


async def sign_in(emulator: Emulator, client: RawClient, *, lifetime: float | None = None) -> bool:
    token = await emulator.issue_token(lifetime=lifetime)
    reply = await client.call("AUTH", emulator.service_principal.object_id, token)
    assert reply == OK or bytes(reply[1]).startswith(b"WRONGPASS")
    return reply == OK


async def all_sign_in(emulator: Emulator, clients: dict[int, RawClient]) -> None:
    for client in clients.values():
        assert await sign_in(emulator, client)


async def test_the_log_names_the_node(entra_cluster: Emulator, clients: dict[int, RawClient]):
    await all_sign_in(entra_cluster, clients)
    assert [each.node for each in (await entra_cluster.log()).auths] == list(clients)
    assert [each.node for each in await entra_cluster.connections()] == list(clients)
    assert await entra_cluster.drop_connections(node=3) == 1
    assert await clients[3].ended()
    [close] = (await entra_cluster.log()).closes
    assert (close.node, close.reason) == (3, "dropped")
    assert await clients[2].call("PING") == PONG


async def test_a_token_ends_connections_at_every_node(
    entra_cluster: Emulator, clients: dict[int, RawClient]
):
    for number, client in clients.items():
        assert await sign_in(entra_cluster, client, lifetime=60 if number == 2 else 1)
    for number, client in clients.items():
        if number != 2:
            assert await client.ended()
    assert await clients[2].call("PING") == PONG
    closes = (await entra_cluster.log()).closes
    assert sorted((each.node, each.reason) for each in closes) == [
        (number, "expiry") for number in clients if number != 2
    ]


async def test_tokens_can_be_refused_at_one_node(
    entra_cluster: Emulator, clients: dict[int, RawClient]
):
    await entra_cluster.refuse_auth(1, node=2)
    assert await sign_in(entra_cluster, clients[1])
    assert not await sign_in(entra_cluster, clients[2])
    assert await sign_in(entra_cluster, clients[2])
    await entra_cluster.refuse_auth(1)  # the first that comes, wherever
    assert not await sign_in(entra_cluster, clients[4])
    assert await sign_in(entra_cluster, clients[5])
    await entra_cluster.refuse_auth(node=6)
    await entra_cluster.heal()
    assert await sign_in(entra_cluster, clients[6])


async def test_sign_ins_can_be_slow_or_hang_at_one_node(
    entra_cluster: Emulator, clients: dict[int, RawClient]
):
    await entra_cluster.hang_auth(node=1)
    await entra_cluster.delay_auth(0.3, node=2)
    hanging = asyncio.create_task(sign_in(entra_cluster, clients[1]))
    begin = time.perf_counter()
    assert await sign_in(entra_cluster, clients[2])
    assert time.perf_counter() - begin >= 0.3
    assert await sign_in(entra_cluster, clients[3])
    assert not hanging.done()
    await entra_cluster.heal()
    assert await hanging


async def test_connections_of_one_node_can_be_damaged(
    entra_cluster: Emulator, clients: dict[int, RawClient]
):
    await all_sign_in(entra_cluster, clients)
    assert await entra_cluster.freeze_connections(node=1, new=True) == 1
    assert await entra_cluster.abandon_connections(node=2) == 1
    assert await entra_cluster.cut_replies(3, node=3) == 1
    assert await entra_cluster.inject_reply(b"+unasked\r\n", node=4) == 1
    clients[1].send(pack("PING"))
    clients[2].send(pack("PING"))
    clients[3].send(pack("PING"))
    assert await clients[3].ended()
    assert await clients[4].call("PING") == ("+", b"unasked")
    assert await clients[5].call("PING") == PONG
    node = (await entra_cluster.nodes())[0]
    async with RawClient(entra_cluster, tls=True, node=node) as frozen:
        frozen.send(pack("PING"))
        await entra_cluster.heal()
        assert await clients[1].reply() == PONG
        kind, _ = await frozen.reply()
        assert kind == "-"  # it has not signed in
    assert await clients[2].ended()


async def test_an_identity_can_be_revoked_at_one_node(
    entra_cluster: Emulator, clients: dict[int, RawClient]
):
    oid = entra_cluster.service_principal.object_id
    await entra_cluster.revoke(oid, node=3)
    assert await sign_in(entra_cluster, clients[1])
    assert not await sign_in(entra_cluster, clients[3])
    await entra_cluster.set_policy(oid, "default", node=3)
    assert await sign_in(entra_cluster, clients[3])


async def test_an_assignment_that_one_node_has_heard_of(
    entra_cluster: Emulator, clients: dict[int, RawClient]
):
    oid = "11111111-0000-4000-8000-000000000001"
    await entra_cluster.set_policy(oid, "default", node=2)
    await entra_cluster.next_tokens(oid=oid)
    token = await entra_cluster.issue_token()
    assert await clients[2].call("AUTH", oid, token) == OK
    kind, text = await clients[1].call("AUTH", oid, token)
    assert kind == "-"
    assert bytes(text).startswith(b"WRONGPASS")
    await entra_cluster.set_policy(oid, "default")
    assert await clients[1].call("AUTH", oid, token) == OK
    await entra_cluster.restart_server(node=1)
    await entra_cluster.reset()
    await entra_cluster.next_tokens(oid=oid)
    node = (await entra_cluster.nodes())[1]
    async with RawClient(entra_cluster, tls=True, node=node) as late:
        kind, _ = await late.call("AUTH", oid, await entra_cluster.issue_token())
        assert kind == "-"


async def test_there_is_one_policy(entra_cluster: Emulator):
    oid = entra_cluster.service_principal.object_id
    with pytest.raises(ValueError, match="unknown access policy 'reader': use one of default"):
        await entra_cluster.set_policy(oid, "reader")
