"""The wall clock of this machine is stepped by an hour, with a valid token and with an expired one.

The step is seen by everything in this process, azure-identity included; the authority and the
server, in a process of their own, go on by the true time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from azure.identity.aio import ClientSecretCredential
from support.identity_outage import LIFE, PATIENT, Attempts
from support.signing_in import Traffic, Witness, client_of, until

from aioentra_redis import TokenExpiredError, TokenPublished, TokenSource, TokenState
from aioentra_redis._credentials import credential_factory
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Figure = Callable[..., None]
HOUR = 3600.0
true_time = time.time


class SteppedClock:
    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return true_time() + self.offset


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SteppedClock:
    clock = SteppedClock()
    monkeypatch.setattr(time, "time", clock)
    return clock


def source_by(clock: SteppedClock, emulator: Emulator) -> TokenSource:
    principal = emulator.service_principal

    def make() -> ClientSecretCredential:
        return ClientSecretCredential(
            emulator.tenant_id,
            principal.client_id,
            principal.secret or "",
            retry_total=0,
            **emulator.credential_options,
        )

    return TokenSource(credential_factory(make), refresh=PATIENT, _clock=clock)


async def expiry_of_last_token(emulator: Emulator) -> float:
    return (await emulator.log()).tokens[-1].expires_on


async def test_back_with_a_valid_token(
    entra_emulator: Emulator, figure: Figure, clock: SteppedClock
) -> None:
    await entra_emulator.configure(token_lifetime=LIFE)
    witness = Witness()
    source = source_by(clock, entra_emulator)
    source.listen(witness)
    async with source, client_of(entra_emulator, source) as redis:
        traffic = Traffic(redis, 5)
        clock.offset = -HOUR
        await witness.at_least(4, TokenPublished, timeout=4 * LIFE)
        await until(lambda: redis.auth_status()[0].token_version == 4)
        await traffic.stop()
        figure("failed commands", len(traffic.errors), target="0")
        assert (traffic.errors, traffic.wrong) == ([], [])
    log = await entra_emulator.log()
    ends = {each.uti: each.expires_on for each in log.tokens}
    answered = [
        (ends[before.uti or ""] - after.time) / LIFE
        for before, after in zip(log.auths, log.auths[1:], strict=False)
    ]
    figure("AUTH before expiry, latest", min(answered), "of the life", target="over 0.3")
    assert min(answered) > 0.1
    assert len({each.connection for each in log.auths}) == 1


async def test_forth_and_put_right_with_a_valid_token(
    entra_emulator: Emulator, figure: Figure, clock: SteppedClock
) -> None:
    """Whatever the authority issues has expired by this clock: there is nothing to sign in with."""
    await entra_emulator.configure(token_lifetime=LIFE)
    source = source_by(clock, entra_emulator)
    async with source, client_of(entra_emulator, source) as redis:
        traffic = Traffic(redis, 5)
        clock.offset = HOUR
        assert source.state is TokenState.EXPIRED
        # The server knows better, and so does the session that it has.
        left = await expiry_of_last_token(entra_emulator) - true_time()
        await asyncio.sleep(left - 0.2)
        figure("failed commands, session valid", len(traffic.errors), target="0")
        assert (traffic.errors, traffic.wrong) == ([], [])
        await until(lambda: traffic.errors)
        await asyncio.sleep(1.5)
        with pytest.raises(TokenExpiredError, match="set this machine's clock"):
            await redis.ping()
        done, begun = traffic.done, time.monotonic()
        clock.offset = 0.0
        await until(lambda: traffic.done > done)
        recovery = time.monotonic() - begun
        figure("recovery, clock right", recovery / LIFE, "of the life", target="under 0.25")
        assert recovery < 2
        await traffic.stop()
        assert traffic.wrong == []


async def test_back_with_an_expired_token(
    entra_emulator: Emulator, figure: Figure, clock: SteppedClock
) -> None:
    """It looks valid now, but the server takes it no longer."""
    await entra_emulator.configure(token_lifetime=LIFE)
    source = source_by(clock, entra_emulator)
    async with source, client_of(entra_emulator, source) as redis:
        await entra_emulator.fail_identity(description="Down for repairs.")
        await until(lambda: source.state is TokenState.EXPIRED, timeout=2 * LIFE)
        await until(lambda: not redis.auth_status(), timeout=LIFE)
        with pytest.raises(TokenExpiredError, match="Down for repairs"):
            await redis.ping()
        clock.offset = -HOUR
        traffic, attempts = Traffic(redis, 5), Attempts(source)
        await asyncio.sleep(3)
        starts = [each.started for each in attempts.all]
        figure("attempts in 3 s of demand", len(starts), target="3")
        assert 2 <= len(starts) <= 4
        begun = time.monotonic()
        await entra_emulator.heal()
        await until(lambda: traffic.done > 0)
        recovery = time.monotonic() - begun
        figure("recovery", recovery / LIFE, "of the life", target="under 0.5")
        assert recovery < 3
        await traffic.stop()
        await attempts.stop()
        assert traffic.wrong == []


async def test_forth_with_an_expired_token(
    entra_emulator: Emulator, figure: Figure, clock: SteppedClock
) -> None:
    await entra_emulator.configure(token_lifetime=LIFE)
    source = source_by(clock, entra_emulator)
    async with source, client_of(entra_emulator, source) as redis:
        await entra_emulator.fail_identity(description="Down for repairs.")
        await until(lambda: not redis.auth_status(), timeout=2 * LIFE)
        clock.offset = HOUR
        traffic = Traffic(redis, 5)
        await asyncio.sleep(0.5)
        slowest = max(took for _, took in traffic.failures)
        figure("slowest command to fail", slowest * 1000, "ms", target="at once")
        assert slowest < 1
        assert {type(each) for each in traffic.errors} == {TokenExpiredError}
        await entra_emulator.heal()
        await until(lambda: "clock" in str(source.status.last_error))
        begun = time.monotonic()
        clock.offset = 0.0
        await until(lambda: traffic.done > 0)
        recovery = time.monotonic() - begun
        figure("recovery, clock right", recovery / LIFE, "of the life", target="under 0.25")
        assert recovery < 2
        await traffic.stop()


async def test_a_clock_that_is_an_hour_slow_from_the_start(
    entra_emulator: Emulator, figure: Figure, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens come from the future; a managed identity's even name their expiry in it."""
    clock.offset = -HOUR
    for name, value in entra_emulator.environ("imds").items():
        monkeypatch.setenv(name, value)
    await entra_emulator.configure(managed_identity_lifetime=90, token_lifetime=LIFE)
    async with TokenSource.from_system_assigned_managed_identity() as managed:
        status = managed.status
    assert status.remaining is not None
    figure("90 s of a managed identity, believed", status.remaining, "s", target="90")
    assert 85 < status.remaining < 91

    witness = Witness()
    source = source_by(clock, entra_emulator)
    source.listen(witness)
    async with source, client_of(entra_emulator, source) as redis:
        traffic = Traffic(redis, 5)
        published: list[Any] = await witness.at_least(3, TokenPublished, timeout=3 * LIFE)
        await traffic.stop()
        figure("failed commands", len(traffic.errors), target="0")
        assert (traffic.errors, traffic.wrong) == ([], [])
        assert all(LIFE - 1 <= each.lifetime <= LIFE for each in published)
