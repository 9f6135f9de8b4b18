"""Certificates that are not accepted: what is said at connect, and how a living client recovers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.load import Load
from support.signing_in import Witness, client_of, minted_source, secret_source

from aioentra_redis import ConnectError, ConnectionOpened, ConnectTimeoutError
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(60)]

KINDS = {
    "expired": ("certificate has expired", "has to renew it"),
    "other-name": ("not valid for", "host name that the certificate is for"),
    "unknown-ca": ("unable to get local issuer", "ssl_ca_certs="),
}
"""What is wrong with each, in the words of TLS, and the remedy."""


def assert_explains(error: Any, emulator: Emulator, kind: str) -> None:
    reason, remedy = KINDS[kind]
    assert error.stage == "tls"
    assert emulator.url.removeprefix("rediss://") in str(error)
    assert reason in str(error)
    assert remedy in str(error)


@pytest.mark.parametrize("kind", KINDS)
async def test_at_connect(entra_emulator: Emulator, kind: Any) -> None:
    """It fails at once, with the reason and what to do, and the token is not sent."""
    await entra_emulator.present_certificate(kind)
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ConnectError) as caught:
            await client_of(entra_emulator, source)
        assert_explains(caught.value, entra_emulator, kind)
        assert not isinstance(caught.value, ConnectTimeoutError)
        assert (await entra_emulator.log()).auths == []
        await entra_emulator.heal()
        async with client_of(entra_emulator, source) as redis:
            assert await redis.ping()


@pytest.mark.parametrize("kind", KINDS)
async def test_on_a_dedicated_connection_and_a_subscriber(
    entra_emulator: Emulator, kind: Any
) -> None:
    """They say the same, and what is connected goes on."""
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source) as redis,
    ):
        await entra_emulator.present_certificate(kind)
        with pytest.raises(ConnectError) as caught:
            await redis.blpop("queue", timeout=1)
        assert_explains(caught.value, entra_emulator, kind)
        async with redis.pubsub() as subscriber:
            with pytest.raises(ConnectError) as caught:
                await subscriber.subscribe("news")
        assert_explains(caught.value, entra_emulator, kind)
        assert await redis.set("key", "value")
        await entra_emulator.heal()
        assert await redis.blpop("queue", timeout=0.05) is None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_living_client_goes_on_with_the_first_good_one(
    entra_emulator: Emulator, figure: Any, kind: Any
) -> None:
    """Commands wait meanwhile; a rotation does not need a new connection."""
    clock = asyncio.get_running_loop().time
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        await redis.set("key", "value")
        async with Load(redis, 20) as load:
            await entra_emulator.present_certificate(kind)
            await load.more(1000)  # who is connected stays so
            assert len(witness.of(ConnectionOpened)) == 1
            await entra_emulator.drop_connections()
            waiting = [asyncio.create_task(redis.get("key")) for _ in range(20)]
            await asyncio.sleep(2.0)
            assert not any(task.done() for task in waiting)
            healed = clock()
            await entra_emulator.present_certificate("good")
            assert await asyncio.gather(*waiting) == [b"value"] * 20
            figure(f"certificate {kind}: going on after a good one", clock() - healed, "s")
            assert clock() - healed < 3.0
            await load.more(500)
        figure(f"certificate {kind}: failed commands", len(load.errors + load.read_errors))
        assert (load.errors, load.read_errors, load.wrong) == ([], [], [])
    auths = (await entra_emulator.log()).auths
    assert all(each.accepted for each in auths)


@pytest.mark.parametrize("kind", KINDS)
async def test_past_the_recovery_timeout_the_certificate_is_named(
    entra_emulator: Emulator, kind: Any
) -> None:
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, recovery_timeout=0.8) as redis,
    ):
        await entra_emulator.present_certificate(kind)
        await entra_emulator.drop_connections()
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectTimeoutError, match="recovery_timeout") as caught:
            await redis.get("key")
        assert_explains(caught.value, entra_emulator, kind)
