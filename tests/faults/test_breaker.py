"""A server that refuses every token: one asks for all, what works goes on, and it recovers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.signing_in import Traffic, Witness, client_of, minted_source

from aioentra_redis import (
    BreakerClosed,
    BreakerOpened,
    ConnectionClosed,
    Reauthenticated,
    SignInRefusedError,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Figure = Callable[..., None]
CONNECTIONS = 20


async def endure_refusals(emulator: Emulator, figure: Figure, seconds: float, life: float) -> None:
    """Tokens of ``life`` seconds, half of which has passed when ``seconds`` of refusals begin."""
    witness = Witness()
    async with (
        minted_source(emulator, believed=life, lifetime=life, refresh_in=life / 4) as source,
        client_of(emulator, source, on_event=witness) as redis,
    ):
        pool: Any = redis.connection_pool
        connections = [await pool.get_connection() for _ in range(CONNECTIONS)]
        for connection in connections:
            await pool.release(connection)
        await emulator.refuse_auth()
        before = await emulator.log()
        requests = source.status.acquisitions
        traffic = Traffic(redis, 20)
        refused = at_once = 0
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        await witness.first(BreakerOpened, timeout=life)
        leased = [await pool.get_connection() for _ in range(CONNECTIONS)]
        while loop.time() < ends:
            began = loop.time()
            try:  # demand for a new connection, all along
                extra = await pool.get_connection()
            except SignInRefusedError:
                refused += 1
                at_once += loop.time() - began < 0.5
            else:
                await pool.release(extra)
            await asyncio.sleep(0.25)
        log = await emulator.log()
        auths = len(log.auths) - len(before.auths)
        asked = source.status.acquisitions - requests
        for connection in leased:
            await pool.release(connection)
        await emulator.heal()
        healed = loop.time()
        await witness.first(BreakerClosed, timeout=40)
        recovery = loop.time() - healed
        await traffic.stop()
        figure("failed commands", len(traffic.errors), target="0")
        figure("identity requests", asked, target="at most 10")
        figure(f"AUTHs of {CONNECTIONS + 1} connections, and demand", auths, target="at most 30")
        figure("recovery after the server takes tokens", recovery, "s", target="at most 30")
        assert (traffic.errors, traffic.wrong) == ([], [])
        assert traffic.done > 1000
        assert asked <= 10
        assert auths <= 30
        assert refused > 0
        assert at_once >= 0.9 * refused
        assert len(witness.of(BreakerOpened)) == len(witness.of(BreakerClosed)) == 1
        assert witness.of(ConnectionClosed) == []
        await witness.first(Reauthenticated, timeout=30)


async def test_refused_for_a_while_with_short_tokens(
    entra_emulator: Emulator, figure: Figure
) -> None:
    await endure_refusals(entra_emulator, figure, seconds=8.0, life=30.0)


@pytest.mark.timeout(240)
async def test_refused_for_60_s_with_a_valid_session(
    entra_emulator: Emulator, figure: Figure
) -> None:
    await endure_refusals(entra_emulator, figure, seconds=60.0, life=180.0)


@pytest.mark.timeout(120)
async def test_an_identity_that_was_revoked_and_comes_back(
    entra_emulator: Emulator, figure: Figure
) -> None:
    """Its connections are gone, so commands fail, at once; and work again soon after it is back."""
    witness = Witness()
    loop = asyncio.get_running_loop()
    async with (
        minted_source(entra_emulator, believed=600.0, lifetime=600.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        assert await redis.ping()
        await entra_emulator.refuse_auth()
        await entra_emulator.drop_connections()
        slowest, ends = 0.0, loop.time() + 6
        while loop.time() < ends:
            began = loop.time()
            with pytest.raises(SignInRefusedError, match="WRONGPASS"):
                await redis.ping()
            slowest = max(slowest, loop.time() - began)
            await asyncio.sleep(0.05)
        await entra_emulator.heal()
        healed = loop.time()
        while True:
            try:
                assert await redis.ping()
                break
            except SignInRefusedError:
                await asyncio.sleep(0.05)
        recovery = loop.time() - healed
        auths = len((await entra_emulator.log()).auths)
        figure("slowest failure", slowest, "s", target="at once, no timeout")
        figure("recovery", recovery, "s", target="within the probe interval")
        figure("AUTHs in 6 s of demand and after", auths, target="at most 8")
        assert slowest < 2
        assert recovery < 9
        assert auths <= 8
        assert source.status.acquisitions == 1
