"""The emulator's profiles with one server: what a client can tell them apart by."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

ONE_SERVER = ("acr", "amr-enterprise", "amr-nocluster")


@pytest.fixture(scope="module", params=ONE_SERVER)
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    with Emulator(profile=request.param) as running:
        yield running


@pytest.fixture
async def client(emulator: Emulator):
    await emulator.reset()
    async with Redis.from_url(
        emulator.url,
        ssl_ca_certs=emulator.ca_file,
        ssl_check_hostname=True,
        username=emulator.service_principal.object_id,
        password=await emulator.issue_token(),
        protocol=3,
    ) as redis:
        yield redis


async def unknown(client: Redis, command: str) -> bool:
    """Whether the server does not know the command."""
    try:
        await client.execute_command(*command.split())
    except ResponseError as error:
        return str(error).startswith("unknown command")
    return False


async def test_data_goes_in_and_out(emulator: Emulator, client: Redis):
    assert await client.set("key", "value")
    assert await client.get("key") == b"value"
    [node] = await emulator.nodes()
    assert (node.number, node.role, node.running, node.owns(16383)) == (1, "primary", True, True)
    assert node.port == urlsplit(emulator.url).port


async def test_databases(emulator: Emulator, client: Redis):
    """16 in Azure Cache for Redis; elsewhere there is one, and no SELECT."""
    async with client.client() as alone:
        if emulator.profile == "acr":
            await alone.execute_command("SELECT", 15)
            with pytest.raises(ResponseError, match="out of range"):
                await alone.execute_command("SELECT", 16)
        else:
            assert await unknown(alone, "SELECT 0")


@pytest.mark.parametrize("command", ["CONFIG GET save", "SHUTDOWN", "DEBUG SLEEP 0", "SLAVEOF a 1"])
async def test_what_none_of_them_knows(client: Redis, command: str):
    assert await unknown(client, command)


@pytest.mark.parametrize(
    "command", ["MOVE key 1", "PSYNC ? -1", "SYNC", "REPLCONF ACK 0", "REPLICAOF NO ONE"]
)
async def test_what_managed_redis_does_not_know_either(
    emulator: Emulator, client: Redis, command: str
):
    if emulator.profile != "acr":
        assert await unknown(client, command)
    elif command == "MOVE key 1":
        assert await client.execute_command(*command.split()) == 0


@pytest.mark.parametrize("command", ["CLUSTER INFO", "CLUSTER NODES", "CLUSTER SLOTS"])
async def test_they_are_no_clusters(emulator: Emulator, client: Redis, command: str):
    with pytest.raises(ResponseError) as refusal:
        await client.execute_command(*command.split())
    if emulator.profile == "amr-enterprise":
        assert str(refusal.value).startswith("unknown command")
    else:
        assert str(refusal.value) == "This instance has cluster support disabled"
    assert (await client.execute_command("HELLO", "3"))[b"mode"] == b"standalone"


async def test_the_certificates_names(emulator: Emulator):
    port = urlsplit(emulator.url).port
    context = ssl.create_default_context(cafile=emulator.ca_file)
    for name in ("localhost", "127.0.0.1"):
        connecting = asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        if name == "127.0.0.1" and emulator.profile != "acr":
            with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
                await connecting
        else:
            _, writer = await connecting
            writer.close()
            await writer.wait_closed()


async def test_policies(emulator: Emulator):
    oid = emulator.service_principal.object_id
    if emulator.profile == "acr":
        for policy in ("owner", "contributor", "reader"):
            await emulator.set_policy(oid, policy)
        with pytest.raises(ValueError, match="unknown access policy 'default'"):
            await emulator.set_policy(oid, "default")
    else:
        with pytest.raises(ValueError, match="unknown access policy 'owner'"):
            await emulator.set_policy(oid, "owner")


async def test_a_node_that_is_killed_and_comes_back(emulator: Emulator, client: Redis):
    await client.set("key", "value")
    await emulator.kill_node(1)
    for url in (emulator.url, emulator.plaintext_url):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    assert [each.running for each in await emulator.nodes()] == [False]
    await emulator.start_node(1)
    await client.connection_pool.disconnect()
    assert await client.get("key") is None
    await emulator.kill_node(1)
    await emulator.reset()
    await client.connection_pool.disconnect()
    assert await client.ping()


async def test_what_only_a_cluster_can_do(emulator: Emulator):
    for asked in (
        emulator.failover(),
        emulator.migrate_slots(1, 1),
        emulator.add_node(),
        emulator.remove_node(1),
    ):
        with pytest.raises(ValueError, match="there is no cluster: start the emulator with"):
            await asked


def test_options_that_do_not_go_together():
    with pytest.raises(ValueError, match="unknown profile 'aks': use one of acr, amr-oss"):
        Emulator(profile="aks")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown access policy 'owner': use one of default"):
        Emulator(profile="amr-oss", policy="owner")
    with pytest.raises(ValueError, match="it has no plaintext port"):
        Emulator(profile="amr-oss", plaintext_port=1)
    with pytest.raises(ValueError, match="1 primary or more"):
        Emulator(profile="amr-oss", primaries=0)
    with pytest.raises(ValueError, match="node_timeout must be more than 0"):
        Emulator(profile="amr-oss", node_timeout=0)
