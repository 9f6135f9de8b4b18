"""One AUTH per token and connection, counted at the server; mass connects in an orderly line."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support.signing_in import Witness, client_of, minted_source

from aioentra_redis import (
    ConnectionClosed,
    Reauthenticated,
    TokenPublished,
    TokenRefreshConfig,
    _budget,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Figure = Callable[..., None]
ROTATIONS = 5


async def test_one_auth_per_token_and_connection(entra_emulator: Emulator, figure: Figure) -> None:
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
        redis.pubsub() as pubsub,
    ):
        pool: Any = redis.connection_pool
        await pubsub.subscribe("channel")
        connections = [await pool.get_connection() for _ in range(50)]
        for connection in connections:
            await pool.release(connection)
        await witness.at_least(1 + ROTATIONS, TokenPublished, timeout=40)
        await asyncio.sleep(1.5)  # the last one's AUTHs
        await source.aclose()
        await asyncio.sleep(0.2)
        rows = redis.auth_status()
        log = await entra_emulator.log()
    pairs = Counter((each.connection, each.uti) for each in log.auths)
    in_band = [each for each in log.auths if each.command == "AUTH"]
    counted = sum(row.reauthentications for row in rows)
    figure("connections", len(rows), target="52")
    figure("AUTHs after the sign-ins", len(in_band), target=f"{counted} in the ledger")
    figure("(connection, token) pairs seen twice", len(log.auths) - len(pairs), target="0")
    assert len(rows) == 52
    assert all(each.accepted for each in log.auths)
    assert max(pairs.values()) == 1
    assert len(in_band) == counted == len(witness.of(Reauthenticated))
    assert len({each.connection for each in log.auths}) == 52
    assert counted >= 52 * (ROTATIONS - 1)


@pytest.mark.timeout(180)
async def test_a_mass_reconnect_dials_a_few_at_a_time(
    entra_emulator: Emulator, figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 clients with 10 dedicated connections each, all dropped at once."""
    # On a busy machine a dial may take longer than it counts.
    monkeypatch.setattr(_budget, "SLOT_HOLD", 30.0)
    limit = 8
    under_way = most = 0
    refresh = TokenRefreshConfig(max_concurrent_auths=limit)
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(
            minted_source(entra_emulator, believed=600.0, lifetime=600.0, refresh=refresh)
        )
        witness = Witness()
        clients = [
            await stack.enter_async_context(client_of(entra_emulator, source, on_event=witness))
            for _ in range(20)
        ]
        dialing: Any = clients[0].connection_pool.connection_class
        connect = dialing._connect

        async def counted(self: Any) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                await connect(self)
            finally:
                under_way -= 1

        monkeypatch.setattr(dialing, "_connect", counted)

        async def lease(client: Any) -> list[Any]:
            pool = client.connection_pool
            return list(await asyncio.gather(*(pool.get_connection() for _ in range(10))))

        leased = await asyncio.gather(*map(lease, clients))
        figure("at once, as pools grow", most, target=f"at most {limit}")
        assert 1 < most <= limit
        for client, connections in zip(clients, leased, strict=True):
            for connection in connections:
                await client.connection_pool.release(connection)
        most = 0
        await entra_emulator.drop_connections()
        await witness.at_least(20, ConnectionClosed, timeout=20)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(client.ping() for client in clients))
        leased = await asyncio.gather(*map(lease, clients))
        took = loop.time() - began
        for client, connections in zip(clients, leased, strict=True):
            for connection in connections:
                await client.connection_pool.release(connection)
        figure("at once, when all come back", most, target=f"at most {limit}")
        figure("until all 220 are back", took, "s", target="none (fails no caller)")
        assert 1 < most <= limit
