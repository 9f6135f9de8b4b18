"""A server that takes seconds to validate a token: nothing fails, and soon nothing waits."""

from __future__ import annotations

import asyncio

import pytest
from support.signing_in import Traffic, Witness, client_of, minted_source

from aioentra_redis import (
    ConnectionReplaced,
    Reauthenticated,
)
from aioentra_redis._multiplex import _reauth, _rotation
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


@pytest.fixture(autouse=True)
def _without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It spreads the AUTHs of a fleet over minutes; here there is one connection and no time."""
    monkeypatch.setattr(_reauth, "reauth_delay", lambda token, now: 0.0)


async def test_a_handshake_that_was_slow_is_warning_enough(entra_emulator: Emulator) -> None:
    """No command ever waits for an AUTH, not even at the first rotation."""
    clock, delay = asyncio.get_running_loop().time, 1.5
    await entra_emulator.delay_auth(delay)
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=20.0, refresh_in=1.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        since = clock()
        traffic = Traffic(redis, 20)
        await witness.at_least(2, ConnectionReplaced)
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
        assert traffic.slowest(since) < delay
    assert {each.command for each in (await entra_emulator.log()).auths} == {"HELLO"}


async def test_when_the_server_is_quick_again_so_are_the_rotations(
    entra_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make-before-break ends by itself: the replacement's own handshake tells that it is over."""
    monkeypatch.setattr(_rotation, "SLOW_AUTH", 0.8)  # a busy machine takes some tenths by itself
    await entra_emulator.delay_auth(1.0)
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=10.0, refresh_in=1.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        await witness.at_least(1, ConnectionReplaced)
        await entra_emulator.delay_auth(0)
        done = len(witness.of(Reauthenticated))
        await witness.at_least(done + 2, Reauthenticated)
        assert await redis.ping()
    assert len(witness.of(ConnectionReplaced)) <= 3
