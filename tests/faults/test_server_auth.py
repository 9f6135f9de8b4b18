"""The server refuses AUTH, never answers it, or takes rights away: what goes on, what is said."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from support.load import Load
from support.signing_in import (
    BRISK,
    Mint,
    Witness,
    client_of,
    minted_source,
    secret_source,
    until,
)

from aioentra_redis import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReplaced,
    ConnectionState,
    Reauthenticated,
    ReauthenticationFailed,
    SignInRefusedError,
    TokenSource,
)
from aioentra_redis._multiplex import _reauth
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


@pytest.fixture
def _without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It spreads the AUTHs of a fleet over minutes; here there is one connection and no time."""
    monkeypatch.setattr(_reauth, "reauth_delay", lambda token, now: 0.0)


async def test_refused_once(entra_emulator: Emulator, figure: Any) -> None:
    clock = asyncio.get_running_loop().time
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=30.0, refresh_in=1.0, lifetime=60) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
        Load(redis, 20) as load,
    ):
        await entra_emulator.refuse_auth(times=1)
        failure = await witness.first(ReauthenticationFailed, timeout=15)
        failed_at = clock()
        again = await witness.first(Reauthenticated, timeout=15)
        figure("refused once: accepted again after", clock() - failed_at, "s")
        assert again.connection == failure.connection
        await load.more(200)
        figure("refused once: failed commands", _failed(load), target="0")
    assert _failed(load) == 0
    assert len(witness.of(ConnectionOpened)) == 1


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("_without_jitter")
async def test_refused_for_60_s_with_a_session_that_lives_on(
    entra_emulator: Emulator, figure: Any
) -> None:
    witness = Witness()
    mint = Mint(entra_emulator, believed=200.0, lifetime=200.0, refresh_in=1.0)
    async with (
        TokenSource.from_credential_factory(mint, refresh=BRISK) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
        Load(redis, 20) as load,
    ):
        mint._refresh_in = None
        await entra_emulator.refuse_auth()
        await witness.first(ReauthenticationFailed)
        asked = mint.asked
        await asyncio.sleep(60)
        refused = len([each for each in (await entra_emulator.log()).auths if not each.accepted])
        await entra_emulator.heal()
        await witness.first(Reauthenticated, timeout=40)
        await load.more(200)
        figure("refused for 60 s: failed commands", _failed(load), target="0")
        figure("refused for 60 s: identity requests", mint.asked - asked, target="at most 10")
        figure("refused for 60 s: AUTHs sent", refused)
    assert _failed(load) == 0
    assert mint.asked - asked <= 10
    assert len(witness.of(ConnectionOpened)) == 1


@pytest.mark.parametrize("how", ["refused", "revoked"])
async def test_refused_for_ever(entra_emulator: Emulator, figure: Any, how: str) -> None:
    """No command fails before the token's end; from there on each says why, at once."""
    clock = asyncio.get_running_loop().time
    await entra_emulator.configure(token_lifetime=6)
    oid = entra_emulator.service_principal.object_id
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        if how == "refused":
            await entra_emulator.refuse_auth()
        else:
            await entra_emulator.revoke(oid)
        load = Load(redis, 20, check_at_end=False)
        async with load:
            await witness.first(ReauthenticationFailed)
            await witness.first(ConnectionClosed)
            ended = clock()
            await until(lambda: _failed(load), timeout=10)
            figure(f"{how} for ever: first error after expiry", clock() - ended, "s")
            load.stopping = True
        early = [sent for sent, took in load.latencies if sent + took < ended - 0.1]
        assert len(early) > 100
        assert load.wrong == []
        # Told again, at once, each time.
        await asyncio.sleep(1)
        slowest = 0.0
        for _ in range(10):
            started = clock()
            with pytest.raises(SignInRefusedError) as caught:
                await redis.get("key")
            slowest = max(slowest, clock() - started)
            await asyncio.sleep(0.05)
        figure(f"{how} for ever: slowest error", slowest * 1e3, "ms", target="at once")
        assert slowest < 0.5
        assert oid in str(caught.value)
        assert "access policy assignment" in str(caught.value)
        await entra_emulator.heal()
        async with asyncio.timeout(40):
            while True:
                try:
                    await redis.set("key", "again")
                    break
                except SignInRefusedError:
                    await asyncio.sleep(0.05)
    assert {each.reason for each in (await entra_emulator.log()).closes} <= {"expiry", "client"} | {
        "dropped"
    }


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("_without_jitter")
@pytest.mark.parametrize("times", [1, None], ids=["once", "every"])
async def test_auth_that_is_never_answered(
    entra_emulator: Emulator, figure: Any, times: int | None
) -> None:
    """What stands behind it in the queue waits; everything else goes on over a replacement.

    After the time that an AUTH has, reads are sent again there, and writes may have run.
    Where no replacement is answered either, nothing can go on: that is told by timeouts, and ends
    with the fault.
    """
    clock = asyncio.get_running_loop().time
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=100.0, refresh_in=1.0, lifetime=200.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
        Load(redis, 20) as load,
    ):
        await entra_emulator.hang_auth(times=times)
        if times is None:
            await asyncio.sleep(8)
            await entra_emulator.heal()
            healed = clock()
            await load.more(500)
            figure("AUTH hangs 8 s everywhere: going on after", clock() - healed, "s")
            figure("AUTH hangs 8 s everywhere: failed commands", _failed(load), target="0")
            assert _failed(load) == 0
        else:
            replaced = await witness.first(ConnectionReplaced, timeout=15)
            assert "no answer" in replaced.reason
            since = clock()
            # Those in the old connection's queue are as good as lost; the session ends at last.
            closed = await witness.first(
                ConnectionClosed, lambda each: each.connection == replaced.old, timeout=40
            )
            assert closed.error is not None
            figure("AUTH never answered: stuck commands end after", clock() - since, "s")
            await load.more(500)
            figure("AUTH never answered: failed reads", _failed(load), target="0")
            figure("AUTH never answered: writes in its queue, which may have run", load.maybe)
            assert _failed(load) == 0
            assert load.maybe <= 20
            [status] = redis.auth_status()
            assert status.state is ConnectionState.AUTHENTICATED
    assert load.wrong == []


async def test_fewer_rights_fail_only_the_commands_concerned(
    entra_emulator: Emulator, figure: Any
) -> None:
    oid = entra_emulator.service_principal.object_id
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=3.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        async with Load(redis, 20, check_at_end=False) as load:
            await entra_emulator.set_policy(oid, "reader")
            await until(lambda: len(load.errors) > 200)
            rotations = len(witness.of(Reauthenticated))
            await witness.at_least(rotations + 2, Reauthenticated)
            await entra_emulator.set_policy(oid, "owner")
            await until(lambda: load.errors)
            await asyncio.sleep(0.1)
            denied = len(load.errors)
            await load.more(500)
            assert len(load.errors) == denied
        figure("fewer rights: reads that failed", len(load.read_errors), target="0")
        assert {type(each) for each in load.errors} == {redis_exceptions.NoPermissionError}
        for each in load.errors[:20]:
            assert oid in str(each)
            assert "'set'" in str(each) or "'incrby'" in str(each)
        assert (load.read_errors, load.wrong) == ([], [])
        assert len(witness.of(ConnectionOpened)) == 1
        # A batch and a wait tell it as well, and leave their connections usable.
        await entra_emulator.set_policy(oid, "reader")
        replies = (
            await redis.pipeline(transaction=False)
            .get("load:0")
            .set("a", 1)
            .execute(raise_on_error=False)
        )
        assert isinstance(replies[1], redis_exceptions.NoPermissionError)
        assert isinstance(replies[0], bytes)
        with pytest.raises(redis_exceptions.NoPermissionError, match="blpop"):
            await redis.blpop("queue", timeout=1)
        await entra_emulator.set_policy(oid, "owner")
        assert await redis.blpop("queue", timeout=0.05) is None
        assert len(witness.of(ConnectionOpened)) == 2


def _failed(load: Load) -> int:
    """Commands that raised, but for writes that may have been executed."""
    return len(load.errors) + len(load.read_errors)
