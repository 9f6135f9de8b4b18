"""Credentials that are slow, or that block for ever: the event loop never waits for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from azure.core.credentials import AccessTokenInfo
from azure.identity.aio import ClientSecretCredential
from support.identity_outage import LIFE, young_heap
from support.signing_in import Traffic, Witness, client_of, secret_source, until

from aioentra_redis import (
    RefreshFailed,
    RetryConfig,
    TokenPublished,
    TokenRefreshConfig,
    TokenSource,
    TokenState,
    TokenStateChanged,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Figure = Callable[..., None]


class Lag:
    """How late the event loop is, at worst; ``async with`` it around what should not block."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def __aenter__(self) -> Lag:
        self._task = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            before = clock()
            await asyncio.sleep(0.005)
            self.worst = max(self.worst, clock() - before - 0.005)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


class Blocking:
    """A synchronous credential, as some exist in the synchronous package only."""

    def __init__(self, emulator: Emulator, loop: asyncio.AbstractEventLoop) -> None:
        self._emulator = emulator
        self._loop = loop
        self.hangs = False
        self.released = threading.Event()
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0

    def get_token_info(self, *scopes: str) -> AccessTokenInfo:
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hangs:
                self.released.wait(30)
            issuing = self._emulator.issue_token(lifetime=LIFE)
            token = asyncio.run_coroutine_threadsafe(issuing, self._loop).result(10)
            return AccessTokenInfo(token, int(time.time() + LIFE))
        finally:
            self.at_once -= 1


@pytest.mark.alone
async def test_a_synchronous_credential_that_hangs(
    entra_emulator: Emulator, figure: Figure
) -> None:
    credential = Blocking(entra_emulator, asyncio.get_running_loop())
    refresh = TokenRefreshConfig(request_timeout=0.4, retry=RetryConfig())
    witness = Witness()
    with young_heap():
        async with (
            TokenSource(credential, refresh=refresh, on_event=witness) as source,
            client_of(entra_emulator, source) as redis,
            Lag() as lag,
        ):
            held = source.current
            assert held is not None
            traffic = Traffic(redis, 5)
            credential.hangs = True
            failure = await witness.first(RefreshFailed, timeout=LIFE)
            assert "no second one is started" in str(failure.error)
            assert source.status.hung_call
            assert source.state is TokenState.DEGRADED
            await until(lambda: time.time() > held.expires_on - 0.1, timeout=LIFE)
            figure("failed commands, token valid", len(traffic.errors), target="0")
            figure("calls at once", credential.most_at_once, target="1")
            figure("calls while it hung", credential.calls - 1, target="1")
            figure("worst lag of the loop", lag.worst * 1000, "ms", target="under 50")
            assert (traffic.errors, traffic.wrong) == ([], [])
            assert (credential.calls, credential.most_at_once) == (2, 1)
            assert lag.worst < 0.5
            # Past the expiry commands fail at once; the call's end brings the token.
            await until(lambda: traffic.errors, timeout=5)
            assert source.status.hung_call
            credential.hangs = False
            done, begun = traffic.done, time.monotonic()
            credential.released.set()
            await until(lambda: traffic.done > done)
            figure("recovery", (time.monotonic() - begun) / LIFE, "of the life", target="under 0.2")
            assert time.monotonic() - begun < 2
            assert not source.status.hung_call
            await traffic.stop()
            assert max(took for _, took in traffic.failures) < 1
            # And closing does not wait for a call that hangs.
            credential.released.clear()
            credential.hangs = True
            await until(lambda: credential.at_once == 1, timeout=LIFE)
            begun = time.monotonic()
            await redis.aclose()
            await source.aclose()
            figure("close while it hangs", time.monotonic() - begun, "s", target="under 2")
            assert time.monotonic() - begun < 2.5
        credential.released.set()
        await until(lambda: credential.at_once == 0)


async def test_slow_answers_within_the_deadline(entra_emulator: Emulator, figure: Figure) -> None:
    await entra_emulator.configure(token_lifetime=10)
    witness = Witness()
    async with (
        secret_source(entra_emulator, refresh=TokenRefreshConfig(), on_event=witness) as source,
        client_of(entra_emulator, source) as redis,
    ):
        traffic = Traffic(redis, 5)
        await entra_emulator.delay_identity(1.5)
        published = await witness.at_least(3, TokenPublished, timeout=20)
        await traffic.stop()
        figure("failed commands", len(traffic.errors), target="0")
        figure("slowest acquisition", max(each.acquired_in for each in published), "s")
        assert (traffic.errors, traffic.wrong) == ([], [])
        assert witness.of(RefreshFailed) == []
        assert all(each.new is not TokenState.DEGRADED for each in witness.of(TokenStateChanged))
    assert len({each.connection for each in (await entra_emulator.log()).auths}) == 1


async def test_the_same_token_again(entra_emulator: Emulator, figure: Figure) -> None:
    """A credential object whose cache holds back what is new: no AUTH, no storm, an event."""
    await entra_emulator.configure(token_lifetime=20)
    principal = entra_emulator.service_principal
    witness = Witness()
    async with ClientSecretCredential(
        entra_emulator.tenant_id,
        principal.client_id,
        principal.secret or "",
        retry_total=0,
        **entra_emulator.credential_options,
    ) as credential:
        refresh = TokenRefreshConfig(request_timeout=2, retry=RetryConfig(max_delay=1))
        async with (
            TokenSource(credential, refresh=refresh, on_event=witness) as source,
            client_of(entra_emulator, source) as redis,
        ):
            traffic = Traffic(redis, 5)
            held = source.current
            assert held is not None
            failure = await witness.first(RefreshFailed, timeout=20)
            assert "keeps returning the same token" in str(failure.error)
            await until(lambda: time.time() > held.expires_on - 0.2, timeout=20)
            figure("failed commands", len(traffic.errors), target="0")
            figure("calls of the credential", source.status.acquisitions, target="under 15")
            assert (traffic.errors, traffic.wrong) == ([], [])
            assert source.status.acquisitions < 15
            auths = (await entra_emulator.log()).auths
            figure("AUTHs with the same token", len(auths) - 1, target="0")
            assert len(auths) == 1
            # Once it has expired the cache is no longer asked.
            await until(lambda: source.current is not held, timeout=5)
            done = traffic.done
            await until(lambda: traffic.done > done + 100)
            await traffic.stop()
            assert traffic.wrong == []
