"""Every way to sign in outlives an outage of the platform that it gets its tokens from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.identity_outage import LIFE, PATIENT, endure
from support.signing_in import Traffic, Witness, client_of

from aioentra_redis import RefreshFailed, RetryConfig, TokenPublished, TokenSource, TokenState
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Figure = Callable[..., None]


def certificate(emulator: Emulator) -> TokenSource:
    principal = emulator.service_principal
    return TokenSource.from_client_certificate(
        emulator.tenant_id,
        principal.client_id,
        principal.certificate_path or "",
        refresh=PATIENT,
        **emulator.credential_options,
    )


def workload_identity(emulator: Emulator) -> TokenSource:
    return TokenSource.from_workload_identity(
        tenant_id=emulator.tenant_id,
        client_id=emulator.service_principal.client_id,
        token_file_path=emulator.federated_token_file,
        refresh=PATIENT,
        **emulator.credential_options,
    )


def managed_identity(emulator: Emulator) -> TokenSource:
    """A fresh credential per renewal: one that is kept holds off for 30 s, five of these lives."""
    from azure.identity.aio import ManagedIdentityCredential

    return TokenSource.from_credential_factory(
        lambda: ManagedIdentityCredential(retry_total=0), refresh=PATIENT
    )


WAYS: dict[str, tuple[Any, Any]] = {
    "certificate": (certificate, None),
    "workload identity": (workload_identity, None),
    "managed identity, IMDS": (managed_identity, "imds"),
    "managed identity, App Service": (managed_identity, "app-service"),
}


@pytest.mark.parametrize("how", ["refused", "503"])
@pytest.mark.parametrize(("make", "platform"), WAYS.values(), ids=WAYS)
async def test_outage(
    entra_emulator: Emulator,
    figure: Figure,
    monkeypatch: pytest.MonkeyPatch,
    make: Any,
    platform: Any,
    how: str,
) -> None:
    if platform is not None:
        for name, value in entra_emulator.environ(platform).items():
            monkeypatch.setenv(name, value)
    await entra_emulator.configure(token_lifetime=LIFE, managed_identity_lifetime=LIFE)
    await endure(
        entra_emulator,
        make(entra_emulator),
        figure,
        begin=entra_emulator.refuse_identity if how == "refused" else entra_emulator.fail_identity,
        end=entra_emulator.heal,
        cause="no token for",
    )


@pytest.mark.parametrize("platform", ["imds", "app-service"])
async def test_past_refresh_on_with_the_platform_down(
    entra_emulator: Emulator, figure: Figure, monkeypatch: pytest.MonkeyPatch, platform: Any
) -> None:
    """The SDK raises although its token is good for hours: the source keeps that one."""
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
    from azure.identity import CredentialUnavailableError
    from azure.identity.aio import ManagedIdentityCredential

    for name, value in entra_emulator.environ(platform).items():
        monkeypatch.setenv(name, value)
    await entra_emulator.configure(
        managed_identity_lifetime=7200, refresh_in=2, managed_identity_caching=False
    )
    refresh = replace(PATIENT, retry=RetryConfig(max_delay=1))
    witness = Witness()
    async with (
        ManagedIdentityCredential(retry_total=0) as credential,
        TokenSource(credential, refresh=refresh, on_event=witness) as source,
        client_of(entra_emulator, source) as redis,
    ):
        traffic = Traffic(redis, 5)
        await entra_emulator.fail_identity(description="Down for repairs.")
        failure = await witness.first(RefreshFailed)
        assert "Down for repairs" in str(failure.error)
        refusals = (ClientAuthenticationError, HttpResponseError, CredentialUnavailableError)
        with pytest.raises(refusals):
            await credential.get_token_info("https://redis.azure.com/.default")
        assert source.state is TokenState.DEGRADED
        token = await source.get()
        assert token.expires_on - time.time() > 7000
        # A new connection signs in with it too.
        async with client_of(entra_emulator, source) as another:
            assert await another.ping()
        before = len((await entra_emulator.log()).requests)
        await asyncio.sleep(3)
        requests = len((await entra_emulator.log()).requests) - before
        figure("failed commands", len(traffic.errors), target="0")
        figure("identity requests in 3 s of it", requests, target="under 12")
        assert 1 < requests < 12
        assert (traffic.errors, traffic.wrong) == ([], [])
        await entra_emulator.configure(refresh_in=3600)
        begun = time.monotonic()
        await entra_emulator.heal()
        await witness.at_least(2, TokenPublished)
        figure("recovery", time.monotonic() - begun, "s", target="at most 1")
        assert time.monotonic() - begun < 2
        assert source.state is TokenState.FRESH
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
