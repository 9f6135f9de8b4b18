"""Bad days of the identity provider while a client is at work: degraded, expired, recovered."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from support.signing_in import (
    BRISK,
    Mint,
    Traffic,
    Witness,
    client_of,
    minted_source,
    secret_source,
    until,
)

from aioentra_redis import (
    ConnectionClosed,
    ConnectionState,
    IdentityChangedError,
    InvalidTokenError,
    RefreshFailed,
    RetryConfig,
    TokenExpiredError,
    TokenPublished,
    TokenSource,
    TokenState,
    TokenStateChanged,
)
from aioentra_redis._credentials import credential_factory
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("in_place")]

OTHER: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "oid": ({"oid": "0e11a500-0000-4000-8000-00000000beef"}, IdentityChangedError),
    "tenant": ({"tenant_id": "0e11a500-0000-4000-8000-00000000dead"}, IdentityChangedError),
    "audience": ({"audience": "https://management.azure.com"}, InvalidTokenError),
    "no oid": ({"without": ["oid"]}, InvalidTokenError),
}


@pytest.mark.parametrize(("claims", "kind"), OTHER.values(), ids=OTHER)
async def test_a_renewal_for_somebody_else_is_never_published_nor_sent(
    entra_emulator: Emulator, claims: dict[str, Any], kind: type[Exception]
) -> None:
    witness = Witness()
    others = asyncio.Event()
    async with minted_source(entra_emulator, believed=2.4, gate=others, on_event=witness) as source:
        subscription = source.subscribe(after=1)
        async with client_of(entra_emulator, source) as redis:
            traffic = Traffic(redis, 5)
            await entra_emulator.next_tokens(**claims)
            others.set()
            failure = await witness.first(RefreshFailed)
            assert isinstance(failure.error, kind)
            assert failure.state is TokenState.DEGRADED
            assert source.state is TokenState.DEGRADED
            assert isinstance(await anext(subscription), RefreshFailed)
            assert source.current is not None
            assert source.current.version == 1
            # The right identity is back, and so is the client, by itself.
            await entra_emulator.next_tokens()
            await witness.at_least(2, TokenPublished)
            await traffic.stop()
            assert (traffic.errors, traffic.wrong) == ([], [])
        assert [each.new for each in witness.of(TokenStateChanged)][:4] == [
            TokenState.FRESH,
            TokenState.DUE,
            TokenState.DEGRADED,
            TokenState.FRESH,
        ]
    log = await entra_emulator.log()
    strange = {
        each.uti
        for each in log.tokens
        if each.object_id != entra_emulator.service_principal.object_id
        or each.audience != "https://redis.azure.com"
    }
    assert not strange & {each.uti for each in log.auths}
    assert {each.object_id for each in log.auths} == {entra_emulator.service_principal.object_id}
    assert all(each.accepted for each in log.auths)


@pytest.mark.parametrize("how", ["503", "hanging"])
async def test_provider_down_later_commands_go_on_and_it_recovers(
    entra_emulator: Emulator, how: str
) -> None:
    await entra_emulator.configure(token_lifetime=8)
    witness = Witness()
    refresh = replace(BRISK, request_timeout=0.6)
    async with (
        secret_source(entra_emulator, refresh=refresh, on_event=witness) as source,
        client_of(entra_emulator, source) as redis,
    ):
        traffic = Traffic(redis, 5)
        if how == "503":
            await entra_emulator.fail_identity()
        else:
            await entra_emulator.hang_identity()
        failure = await witness.first(RefreshFailed)
        assert failure.state is TokenState.DEGRADED
        assert source.status.last_error is not None
        assert source.status.consecutive_failures >= 1
        before = traffic.done
        await until(lambda: traffic.done > before + 100)
        await entra_emulator.heal()
        await witness.at_least(2, TokenPublished)
        assert source.state is TokenState.FRESH
        assert source.status.last_error is None
        await until(lambda: redis.auth_status()[0].token_version == 2)
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
    assert len({each.connection for each in (await entra_emulator.log()).auths}) == 1


async def test_provider_down_past_expiry_commands_raise_at_once_then_recover(
    entra_emulator: Emulator,
) -> None:
    await entra_emulator.configure(token_lifetime=3)
    witness = Witness()
    refresh = replace(BRISK, retry=RetryConfig(max_attempts=1, max_delay=30))
    async with (
        secret_source(entra_emulator, refresh=refresh) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        await redis.set("key", "value")
        await entra_emulator.fail_identity(status=503, description="Down for repairs.")
        await witness.first(ConnectionClosed)
        await witness.first(TokenStateChanged, lambda each: each.new is TokenState.EXPIRED)

        took = []
        for _ in range(20):
            started = time.monotonic()
            with pytest.raises(TokenExpiredError, match=r"Down for repairs") as caught:
                await redis.get("key")
            took.append(time.monotonic() - started)
            assert "Down for repairs" in str(caught.value.__cause__)
            await asyncio.sleep(0.06)
        assert sorted(took)[10] < 0.5  # most: the machine may take a pause of its own
        # Those were demand, but not as many requests: they start a second apart.
        log = await entra_emulator.log()
        expiry, now = log.tokens[0].expires_on, time.time()
        late = [each.time for each in log.requests if each.time > expiry]
        assert 1 <= len(late) <= 2 + now - expiry

        await entra_emulator.heal()
        published = await _recovered(redis)
        assert published < 2.0
        assert await redis.get("key") == b"value"
        assert source.state is TokenState.FRESH
        assert redis.auth_status()[0].state is ConnectionState.AUTHENTICATED
    closes = (await entra_emulator.log()).closes
    assert closes[0].reason == "expiry"


async def _recovered(redis: Any) -> float:
    """How long commands went on raising TokenExpiredError, and nothing else."""
    started = time.monotonic()
    async with asyncio.timeout(10):
        while True:
            try:
                await redis.ping()
            except TokenExpiredError:
                await asyncio.sleep(0.02)
            else:
                return time.monotonic() - started


async def test_a_suspended_machine_gets_a_token_at_its_first_command(
    entra_emulator: Emulator,
) -> None:
    """The wall clock has jumped past the expiry, the connection is gone, nothing has failed yet."""
    suspended = 0.0

    def clock() -> float:
        return time.time() + suspended

    mint = Mint(entra_emulator, believed=10_000, lifetime=3600)
    async with (
        TokenSource(credential_factory(mint), _clock=clock) as source,
        client_of(entra_emulator, source) as redis,
    ):
        await redis.set("key", "value")
        suspended = 3700.0
        mint.lifetime = 7200.0
        assert source.state is TokenState.EXPIRED
        await entra_emulator.drop_connections()
        assert await redis.get("key") == b"value"
        assert source.state is TokenState.FRESH
        assert redis.auth_status()[0].token_version == 2
