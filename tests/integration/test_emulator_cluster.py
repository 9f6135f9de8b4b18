"""The emulator as Azure Managed Redis with the OSS cluster policy, seen by a plain client."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

import pytest
from redis.exceptions import NoPermissionError, ResponseError
from support.cluster_witness import KEYS, fill, holds_everything, witness

from aioentra_redis.emulator import Emulator, EmulatorError

pytestmark = pytest.mark.emulator


async def test_a_client_finds_the_nodes_from_the_entry(entra_cluster: Emulator):
    nodes = await entra_cluster.nodes()
    assert [each.number for each in nodes] == [1, 2, 3, 4, 5, 6]
    assert [each.role for each in nodes] == ["primary"] * 3 + ["replica"] * 3
    assert [each.primary for each in nodes] == [None, None, None, 1, 2, 3]
    assert sum(last - first + 1 for each in nodes for first, last in each.slots) == 16384
    entry = urlsplit(entra_cluster.url).port
    assert entry not in {each.port for each in nodes}
    await fill(entra_cluster)
    assert await holds_everything(entra_cluster)
    async with witness(entra_cluster) as client:
        assert {(each.host, each.port, each.server_type) for each in client.get_nodes()} == {
            (each.host, each.port, each.role) for each in nodes
        }
        owners = {client.get_node_from_key(key).port for key in KEYS}
    assert owners == {each.port for each in nodes if each.role == "primary"}
    log = await entra_cluster.log()
    assert {each.node for each in log.auths if each.accepted} >= {1, 2, 3}


async def test_a_failover_is_seen_by_all(entra_cluster: Emulator):
    await fill(entra_cluster)
    assert await entra_cluster.failover(2) == 5
    nodes = await entra_cluster.nodes()
    assert (nodes[4].role, nodes[1].role, nodes[1].primary) == ("primary", "replica", 5)
    assert await holds_everything(entra_cluster)
    assert await entra_cluster.failover(2) == 2
    assert await holds_everything(entra_cluster)
    assert [each.role for each in await entra_cluster.nodes()] == ["primary"] * 3 + ["replica"] * 3


async def test_the_certificate_is_the_entrys_alone(entra_cluster: Emulator):
    context = ssl.create_default_context(cafile=entra_cluster.ca_file)
    for node in await entra_cluster.nodes():
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            await asyncio.open_connection(node.host, node.port, ssl=context)
        _, writer = await asyncio.open_connection(
            node.host, node.port, ssl=context, server_hostname="localhost"
        )
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "command",
    ["SELECT 1", "SELECT 0", "PSYNC ? -1", "SYNC", "REPLCONF ACK 0", "CONFIG GET save", "MOVE a 1"],
)
async def test_commands_that_azure_blocks_are_unknown(entra_cluster: Emulator, command: str):
    async with witness(entra_cluster) as client:
        nodes = client.get_nodes()
        assert len(nodes) == 6
        for node in nodes:
            with pytest.raises(ResponseError, match="unknown command"):
                await client.execute_command(*command.split(), target_nodes=node)
        assert await client.ping(target_nodes="all")


@pytest.mark.parametrize("command", ["MEET 127.0.0.1 1", "FAILOVER", "SETSLOT 1 STABLE", "RESET"])
async def test_the_clusters_shape_is_not_the_clients_to_change(
    entra_cluster: Emulator, command: str
):
    async with witness(entra_cluster) as client:
        with pytest.raises(NoPermissionError):
            await client.execute_command(
                "CLUSTER", *command.split(), target_nodes=client.get_random_node()
            )


async def test_there_is_no_way_in_clear(entra_cluster: Emulator):
    with pytest.raises(EmulatorError, match="can't be reached in clear"):
        _ = entra_cluster.plaintext_url
