"""A server that takes seconds to validate a token: nothing fails, and soon nothing waits."""

from __future__ import annotations

import asyncio

import pytest
from support.signing_in import Traffic, Witness, client_of, minted_source

from aioentra_redis import (
    ConnectionReplaced,
    ConnectionState,
    Reauthenticated,
    ReauthenticationFailed,
)
from aioentra_redis._multiplex import _reauth
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


@pytest.fixture(autouse=True)
def _without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It spreads the AUTHs of a fleet over minutes; here there is one connection and no time."""
    monkeypatch.setattr(_reauth, "reauth_delay", lambda token, now: 0.0)


async def rotate_with_slow_auth(emulator: Emulator, seconds: float) -> None:
    """AUTH takes ``seconds`` from the first rotation on; commands run all the while."""
    clock = asyncio.get_running_loop().time
    witness = Witness()
    lifetime = 4 * seconds + 30
    async with (
        minted_source(
            emulator, believed=lifetime - 10, lifetime=lifetime, refresh_in=seconds / 2
        ) as source,
        client_of(emulator, source, on_event=witness) as redis,
    ):
        traffic = Traffic(redis, 20)
        await emulator.delay_auth(seconds)
        # The first rotation finds out: its AUTH stands in the queue of every command.
        slow = await witness.first(
            Reauthenticated, lambda each: each.latency > 0.9 * seconds, timeout=2 * seconds + 5
        )
        assert slow.latency < seconds + 2
        since = clock()
        # The second signs a replacement in beside the connection that is in use.
        replaced = await witness.first(ConnectionReplaced, timeout=2 * seconds + 5)
        assert replaced.old == slow.connection
        assert "slowly" in replaced.reason
        at_the_replacement = traffic.done
        async with asyncio.timeout(5):
            while traffic.done < at_the_replacement + 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
        assert traffic.slowest(since) < 0.5
        assert clock() - since > 0.9 * seconds  # or nothing would have been there to wait for
        [status] = [
            each for each in redis.auth_status() if each.state is not ConnectionState.DRAINING
        ]
        assert status.connection == replaced.new
        assert witness.of(ReauthenticationFailed) == []


async def test_auth_that_takes_3_s(entra_emulator: Emulator) -> None:
    await rotate_with_slow_auth(entra_emulator, 3.0)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_auth_that_takes_12_s(entra_emulator: Emulator) -> None:
    await rotate_with_slow_auth(entra_emulator, 12.0)


async def test_a_handshake_that_was_slow_is_warning_enough(entra_emulator: Emulator) -> None:
    """No command ever waits for an AUTH, not even at the first rotation."""
    clock = asyncio.get_running_loop().time
    await entra_emulator.delay_auth(1.5)
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
        assert traffic.slowest(since) < 0.5
    assert {each.command for each in (await entra_emulator.log()).auths} == {"HELLO"}


async def test_when_the_server_is_quick_again_so_are_the_rotations(
    entra_emulator: Emulator,
) -> None:
    """Make-before-break ends by itself: the replacement's own handshake tells that it is over."""
    await entra_emulator.delay_auth(0.5)
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=1.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        await witness.at_least(1, ConnectionReplaced)
        await entra_emulator.delay_auth(0)
        done = len(witness.of(Reauthenticated))
        await witness.at_least(done + 2, Reauthenticated)
        assert await redis.ping()
    assert len(witness.of(ConnectionReplaced)) <= 3
