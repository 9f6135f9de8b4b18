"""A server that refuses a newer token on a living connection: the session goes on."""

from __future__ import annotations

import asyncio

import pytest
from support.signing_in import Traffic, Witness, client_of, minted_source, secret_source, until

from aioentra_redis import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectionState,
    ConnectionStatus,
    Event,
    Reauthenticated,
    ReauthenticationFailed,
    SignInRefusedError,
    TokenPublished,
)
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("in_place")]


async def test_refused_once_recovers_with_the_next_token_at_the_latest(
    entra_emulator: Emulator,
) -> None:
    witness = Witness()
    refusing = asyncio.Event()
    rows: dict[type[Event], ConnectionStatus] = {}

    def note(event: Event) -> None:
        """What the ledger says at the first event of each kind: a moment later it may differ."""
        if isinstance(event, Reauthenticated | ReauthenticationFailed) and type(event) not in rows:
            [rows[type(event)]] = redis.auth_status()
        witness(event)

    async with (
        minted_source(entra_emulator, believed=1.2, gate=refusing) as source,
        client_of(entra_emulator, source, on_event=note) as redis,
    ):
        traffic = Traffic(redis, 20)
        await entra_emulator.refuse_auth(times=1)
        refusing.set()
        failure = await witness.first(ReauthenticationFailed)
        assert source.current is not None
        assert 1 < failure.token_version <= source.current.version
        assert "WRONGPASS" in repr(failure.error) or "username-password" in str(failure.error)
        status = rows[ReauthenticationFailed]
        assert status.state is ConnectionState.STALE
        assert status.token_version == 1
        recovered = await witness.first(Reauthenticated)
        assert recovered.connection == failure.connection
        assert recovered.token_version >= failure.token_version
        assert rows[Reauthenticated].state is ConnectionState.AUTHENTICATED
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
    assert witness.of(ConnectionClosed)[0].error is None
    assert len(witness.of(ConnectionOpened)) == 1


async def test_commands_in_flight_are_untouched_by_a_refusal(entra_emulator: Emulator) -> None:
    """Commands stand before and behind the refused AUTH in one queue."""
    witness = Witness()
    refusing = asyncio.Event()
    async with (
        minted_source(entra_emulator, believed=1.0, gate=refusing) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        await entra_emulator.refuse_auth()
        refusing.set()
        traffic = Traffic(redis, 100)
        await witness.at_least(3, ReauthenticationFailed)
        assert (traffic.errors, traffic.wrong) == ([], [])
        await entra_emulator.heal()
        await witness.first(Reauthenticated)
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
        await until(lambda: redis.auth_status()[0].state is ConnectionState.AUTHENTICATED)
        assert len(await entra_emulator.connections()) == 1


async def test_the_same_token_is_tried_again_by_the_probe(entra_emulator: Emulator) -> None:
    """An access policy that comes into force late: no newer token is due for an hour."""
    await entra_emulator.configure(token_lifetime=3600)
    witness = Witness()
    refusing = asyncio.Event()
    async with (
        minted_source(entra_emulator, believed=3.0, lifetime=60, gate=refusing) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        await entra_emulator.refuse_auth(times=1)
        refusing.set()
        failure = await witness.first(ReauthenticationFailed)
        await entra_emulator.fail_identity()
        recovered = await witness.first(Reauthenticated)
        assert recovered.token_version >= failure.token_version
        assert await redis.ping()


async def test_refused_until_expiry_the_connection_ends_and_the_next_one_serves(
    entra_emulator: Emulator,
) -> None:
    """While the server refuses, what was connected works until its token's end."""
    await entra_emulator.configure(token_lifetime=3)
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, on_event=witness, recovery_timeout=10) as redis,
    ):
        await redis.set("key", "value")
        await entra_emulator.refuse_auth()
        await witness.first(ReauthenticationFailed)
        assert await redis.get("key") == b"value"
        await witness.first(ConnectionClosed)
        await until(lambda: redis.auth_status() == [])
        with pytest.raises(SignInRefusedError, match="WRONGPASS"):
            await redis.get("key")  # at once: waiting would not help
        await entra_emulator.heal()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await redis.get("key") == b"value"
                    break
                except SignInRefusedError:
                    await asyncio.sleep(0.05)
        await witness.at_least(2, ConnectionOpened)
        await until(lambda: redis.auth_status()[0].state is ConnectionState.AUTHENTICATED)
    closes = (await entra_emulator.log()).closes
    assert closes[0].reason == "expiry"
    assert len(witness.of(TokenPublished)) >= 1
