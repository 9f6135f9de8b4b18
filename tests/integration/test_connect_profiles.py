"""``connect`` to each of Azure's kinds of Redis, over TLS and with tokens: it finds out which."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.signing_in import secret_source

from aioentra_redis import (
    ClusterModeError,
    ConnectionOpened,
    EntraRedis,
    EntraRedisCluster,
    Reauthenticated,
    connect,
)
from aioentra_redis._redis_py import SharedTLS
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("profile", ["acr", "amr-enterprise", "amr-nocluster"])
async def test_one_endpoint(profile: str, protocol: int) -> None:
    async with Emulator(profile=profile) as emulator, secret_source(emulator) as source:
        options: Any = {
            "token_source": source,
            "ssl_ca_certs": emulator.ca_file,
            "protocol": protocol,
        }
        async with connect(emulator.url, **options) as client:
            assert isinstance(client, EntraRedis)
            assert await client.set("key", "value")
            assert len(await emulator.connections()) == 1
        with pytest.raises(ClusterModeError, match="Leave out cluster=True"):
            await connect(emulator.url, cluster=True, **options)
        assert await emulator.connections() == []


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("cluster", [True, "auto"])
@pytest.mark.usefixtures("in_place")
async def test_a_cluster(
    entra_cluster: Emulator, protocol: int, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a sign-in for each primary, the entry's among them, and one look at the CAs."""
    loads: list[Any] = []
    build = SharedTLS._build

    def counted(self: SharedTLS, connection: Any, key: Any) -> Any:
        if key not in self._contexts:
            loads.append(connection)
        return build(self, connection, key)

    monkeypatch.setattr(SharedTLS, "_build", counted)
    events: list[Any] = []
    async with (
        secret_source(entra_cluster) as source,
        connect(
            entra_cluster.url,
            token_source=source,
            cluster=cluster,
            on_event=events.append,
            ssl_ca_certs=entra_cluster.ca_file,
            protocol=protocol,
        ) as client,
    ):
        assert isinstance(client, EntraRedisCluster)
        for number in range(30):
            assert await client.set(f"key-{number}", number)
        primaries = len(client.get_primaries())
        assert primaries == 3
        opened = [event for event in events if isinstance(event, ConnectionOpened)]
        assert len(opened) == primaries
        assert len(loads) == 1
    assert await entra_cluster.connections() == []


@pytest.mark.usefixtures("in_place")
async def test_what_has_found_out_is_a_connection_like_any_other(entra_cluster: Emulator) -> None:
    """Each newer token reaches it, and each is told of once."""
    await entra_cluster.configure(token_lifetime=6)
    events: list[Any] = []
    async with (
        secret_source(entra_cluster) as source,
        connect(
            entra_cluster.url,
            token_source=source,
            on_event=events.append,
            ssl_ca_certs=entra_cluster.ca_file,
        ) as client,
    ):
        assert isinstance(client, EntraRedisCluster)
        async with asyncio.timeout(60):
            while min(row.reauthentications for row in client.auth_status()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        renewed = [event for event in events if isinstance(event, Reauthenticated)]
        told = [(event.connection, event.token_version) for event in renewed]
        assert len(told) == len(set(told))
        assert {name for name, _ in told} == {row.connection for row in client.auth_status()}
