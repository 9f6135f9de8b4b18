"""The rows of the usual stack's failures that are about tokens: getting them, and being refused.

Each test is named after its row, and its figure's target says what was measured there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import redis.asyncio
from azure.core.credentials import AccessToken
from support import token_rows
from support.plain_clients import WAYS, client_by, until_refused
from support.signing_in import BRISK, Mint, Witness, until

from aioentra_redis import EntraCredentialProvider, TokenSource
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

BY = pytest.mark.parametrize("way", WAYS)


@BY
async def test_row_04_a_provider_that_fails_for_300_ms(
    entra_emulator: Emulator, way: str, figure: Any
) -> None:
    found = await token_rows.a_provider_that_fails_for_a_moment(way, entra_emulator)
    figure("until the next token", found["seconds"], "s", target="under 2; there never")
    figure("failed commands", found["failed"], target="0")
    assert found["seconds"] < 2


# -- row 10 ----------------------------------------------------------------------------------------


class Slow:
    """Takes half a second for each token, or all the time there is, one way or the other."""

    def __init__(self, emulator: Emulator) -> None:
        self._mint = Mint(emulator, believed=1.0, lifetime=30)
        self.end = threading.Event()
        self.hangs = False
        self.asked: list[float] = []

    async def issue(self) -> AccessToken:
        info = await self._mint.get_token_info()
        return AccessToken(info.token, info.expires_on)


class Asynchronous(Slow):
    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.asked.append(time.monotonic())
        while self.hangs:  # noqa: ASYNC110 - for ever
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        return await self.issue()


class Synchronous(Slow):
    """As ``AzureCliCredential`` of ``azure.identity`` is: it blocks the thread that calls it."""

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.asked.append(time.monotonic())
        if self.hangs:
            self.end.wait(30)
        time.sleep(0.5)
        return asyncio.run(self.issue())


@pytest.mark.alone
@pytest.mark.parametrize("hangs", [False, True], ids=["0.5 s", "no answer"])
@pytest.mark.parametrize("kind", [Asynchronous, Synchronous])
@pytest.mark.parametrize("way", [*WAYS, "in_thread"])
async def test_row_10_a_slow_identity_endpoint(
    entra_emulator: Emulator, way: str, kind: type[Slow], hangs: bool, figure: Any
) -> None:
    """The loop goes on, and so do commands, while a token takes half a second or never comes."""
    if way == "in_thread" and kind is Asynchronous:
        pytest.skip("it would belong to the loop of the thread")

    async def use(credential: Slow) -> None:
        async with TokenSource(credential, refresh=BRISK) as source:
            if way == "in_thread":
                await work(credential, *provider_client(entra_emulator, credential))
                return
            async with client_by(way, entra_emulator, source) as client:
                await work(credential, client)

    async def work(credential: Slow, client: Any, *closes: Any) -> None:
        await client.ping()
        credential.hangs = hangs
        asked = len(credential.asked)
        ends = time.monotonic() + 2
        while time.monotonic() < ends:
            assert await client.ping()
        if way != "in_thread":
            await until(lambda: len(credential.asked) > asked)
        credential.hangs = False
        credential.end.set()
        for each in closes:
            await each.aclose()

    lags = []
    for _ in range(3):
        credential = kind(entra_emulator)
        using = asyncio.create_task(use(credential))
        lags.append(await token_rows.loop_lag(using))
        await using
    figure("loop held up", min(lags) * 1e3, "ms", target="under 50; there 505, or for good")
    assert min(lags) < 0.05


def provider_client(emulator: Emulator, credential: Slow) -> tuple[Any, ...]:
    provider = EntraCredentialProvider.in_thread(lambda: credential)
    client = redis.asyncio.Redis.from_url(
        emulator.url,
        credential_provider=provider,
        ssl_ca_certs=emulator.ca_file,
        ssl_check_hostname=True,
    )
    return client, client, provider


# -- row 11 ----------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [Asynchronous, Synchronous])
@BY
async def test_row_11_a_credential_without_a_cache(
    entra_emulator: Emulator, way: str, kind: type[Slow], figure: Any
) -> None:
    """50 connections, and each call starts a program: one call per rotation serves them all."""
    credential = kind(entra_emulator)

    def make(witness: Witness) -> TokenSource:
        return TokenSource(credential, refresh=BRISK, on_event=witness)

    calls, lag = await token_rows.acquisitions_per_rotation(
        way, entra_emulator, make, credential.asked
    )
    figure("acquisitions per rotation", calls, target="1; there 12 with 10 connections")
    figure("loop held up", lag * 1e3, "ms", target="there 7,900")
    assert calls == 1


# -- rows 17 and 19 --------------------------------------------------------------------------------


@BY
async def test_row_17_the_sdk_returns_its_cached_token(
    entra_emulator: Emulator, way: str, figure: Any
) -> None:
    auths = await token_rows.one_token_again_and_again(way, entra_emulator, seconds=3.0)
    figure("AUTHs per token and connection", auths, target="1; there three")
    assert auths == 1


@pytest.mark.parametrize("protocol", [2, 3])
@BY
async def test_row_19_auth_refused_for_a_while(
    entra_emulator: Emulator, way: str, protocol: int, figure: Any
) -> None:
    found = await token_rows.auth_refused_for_a_while(way, entra_emulator, protocol=protocol)
    figure("commands", found["commands"])
    figure("failed", found["failed"], target="0; there every GET, for about 4 s")
    figure("identity requests", found["requests"], target="under 40; there over 300")
    assert found["requests"] < 40


@pytest.mark.timeout(240)
@BY
async def test_row_19_auth_refused_for_60_s(
    entra_emulator: Emulator, way: str, figure: Any
) -> None:
    """From the first refusal on; the sessions' own tokens outlive it, and three newer ones come
    meanwhile by plan."""

    async def a_minute_of_refusals() -> None:
        # The first newer token comes after 20 s, and each AUTH with it within 53 s more.
        await until_refused(entra_emulator, 1, within=80)
        await asyncio.sleep(60)

    found = await token_rows.auth_refused_for_a_while(
        way,
        entra_emulator,
        until_healed=a_minute_of_refusals,
        refresh_in=20,
        believed=180,
        refusals_at_least=4,
    )
    figure("commands", found["commands"])
    figure("failed", found["failed"], target="0")
    figure("identity requests", found["requests"], target="at most 10; there over 300")
    figure("refused AUTHs", found["refused"])
    assert found["requests"] <= 10
