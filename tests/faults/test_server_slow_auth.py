"""A server that takes seconds to validate a token, from one rotation on: no command fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.load import Load
from support.signing_in import Witness, client_of, minted_source

from aioentra_redis import (
    ConnectionReplaced,
    ConnectionState,
    Reauthenticated,
    ReauthenticationFailed,
)
from aioentra_redis._multiplex import _reauth
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It spreads the AUTHs of a fleet over minutes; here there is one connection and no time."""
    monkeypatch.setattr(_reauth, "reauth_delay", lambda token, now: 0.0)


@pytest.mark.parametrize("seconds", [3.0, 12.0])
async def test_auth_that_takes_seconds(
    entra_emulator: Emulator, figure: Any, seconds: float
) -> None:
    """The first rotation finds out, the next ones are make-before-break: nobody waits."""
    clock = asyncio.get_running_loop().time
    witness = Witness()
    lifetime = 4 * seconds + 30
    async with (
        minted_source(
            entra_emulator, believed=lifetime - 10, lifetime=lifetime, refresh_in=seconds / 2
        ) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        async with Load(redis, 20) as load:
            await entra_emulator.delay_auth(seconds)
            # The AUTH of the first one stands in the queue of every command.
            slow = await witness.first(
                Reauthenticated, lambda each: each.latency > 0.9 * seconds, timeout=2 * seconds + 5
            )
            assert slow.latency < seconds + 2
            since = clock()
            # The second signs a replacement in beside the connection that is in use.
            replaced = await witness.first(ConnectionReplaced, timeout=2 * seconds + 5)
            assert replaced.old == slow.connection
            assert "slowly" in replaced.reason
            await load.more(200)
        name = f"AUTH takes {seconds:g} s"
        failed = len(load.errors + load.read_errors) + load.maybe
        # What waited behind the first AUTH was sent before it was answered.
        slowest = max(took for sent, took in load.latencies if sent >= since)
        figure(f"{name}: failed commands", failed, target="0")
        figure(f"{name}: slowest command of the second rotation", slowest * 1e3, "ms")
        assert failed == 0
        assert load.wrong == []
        assert slowest < 0.5
        assert clock() - since > 0.9 * seconds  # or nothing would have been there to wait for
        [status] = [
            each for each in redis.auth_status() if each.state is not ConnectionState.DRAINING
        ]
        assert status.connection == replaced.new
        assert witness.of(ReauthenticationFailed) == []
