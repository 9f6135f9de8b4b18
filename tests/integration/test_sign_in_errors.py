"""Why there is no first token, or why the server does not take it: errors at the start."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from support.signing_in import BRISK, client_of, secret_source

from aioentra_redis import (
    ConfigurationError,
    ConnectTimeoutError,
    EntraRedis,
    InvalidTokenError,
    RetryConfig,
    SignInRefusedError,
    TokenAcquisitionError,
    TokenError,
    TokenRefreshConfig,
    TokenSource,
    TokenState,
    connect,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


async def refused_at_connect(
    emulator: Emulator, kind: type[BaseException], source: TokenSource | None = None, **options: Any
) -> Any:
    """Connect, which must fail with this error; returns it."""
    async with asyncio.timeout(20):
        if source is None:
            source = secret_source(emulator)
        try:
            with pytest.raises(kind) as caught:
                await client_of(emulator, source, **options)
        finally:
            await source.aclose()
    return caught.value


# ------------------------------------------------------------------------ tokens of no use


async def test_a_token_without_oid_names_the_claim_and_the_remedy(entra_emulator: Emulator) -> None:
    await entra_emulator.next_tokens(without=["oid"])
    error = await refused_at_connect(entra_emulator, InvalidTokenError)
    assert error.claim == "oid"
    assert "'oid'" in str(error)
    assert "username=" in str(error)
    assert (await entra_emulator.log()).auths == []  # in particular none of the user `default`


async def test_what_is_not_a_jwt_names_the_remedy(entra_emulator: Emulator) -> None:
    await entra_emulator.next_tokens(opaque=True)
    error = await refused_at_connect(entra_emulator, InvalidTokenError)
    assert "not a JWT" in str(error)
    assert "username=" in str(error)
    assert (await entra_emulator.log()).auths == []


@pytest.mark.parametrize("claims", [{"opaque": True}, {"without": ["oid"]}])
async def test_with_username_such_a_token_is_sent_for_that_user(
    entra_emulator: Emulator, claims: dict[str, Any]
) -> None:
    await entra_emulator.next_tokens(**claims)
    source = secret_source(entra_emulator, username="somebody")
    await refused_at_connect(entra_emulator, SignInRefusedError, source)
    assert {each.object_id for each in (await entra_emulator.log()).auths} == {"somebody"}


async def test_a_user_name_in_the_url_that_is_not_the_oid(entra_emulator: Emulator) -> None:
    url = entra_emulator.url.replace("//", "//my-cache-user@")
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ConfigurationError, match="'my-cache-user' is not the object ID") as e:
            await connect(url, token_source=source, ssl_ca_certs=entra_emulator.ca_file)
    assert entra_emulator.service_principal.object_id in str(e.value)
    assert "leave the user name out" in str(e.value)
    assert (await entra_emulator.log()).auths == []


async def test_the_client_id_as_user_name_is_told_apart(entra_emulator: Emulator) -> None:
    client_id = entra_emulator.service_principal.client_id
    error = await refused_at_connect(entra_emulator, ConfigurationError, username=client_id)
    assert "client ID" in str(error)
    assert (await entra_emulator.log()).auths == []


async def test_a_wrong_audience_is_never_sent(entra_emulator: Emulator) -> None:
    await entra_emulator.next_tokens(audience="https://management.azure.com")
    error = await refused_at_connect(entra_emulator, InvalidTokenError)
    assert error.claim == "aud"
    assert "https://management.azure.com" in str(error)
    assert "https://redis.azure.com/.default" in str(error)
    assert (await entra_emulator.log()).auths == []


async def test_a_scope_for_something_else_is_refused_by_the_server_with_the_audience(
    entra_emulator: Emulator,
) -> None:
    source = secret_source(entra_emulator, scopes="https://vault.azure.net/.default")
    error = await refused_at_connect(entra_emulator, SignInRefusedError, source)
    assert "audience https://vault.azure.net" in str(error)


async def test_a_token_that_has_expired_is_never_sent(entra_emulator: Emulator) -> None:
    await entra_emulator.next_tokens(extra={"exp": int(time.time()) - 60})
    error = await refused_at_connect(entra_emulator, InvalidTokenError)
    assert error.claim == "exp"
    assert "clock" in str(error)
    assert (await entra_emulator.log()).auths == []


# ---------------------------------------------------------------- what the provider refuses


async def test_a_wrong_scope_has_the_providers_reason_and_the_remedy(
    entra_emulator: Emulator,
) -> None:
    source = secret_source(entra_emulator, scopes="https://redis.azure.com/user_impersonation")
    error = await refused_at_connect(entra_emulator, TokenAcquisitionError, source)
    assert error.code == "AADSTS1002012"
    assert not error.transient
    assert "AADSTS1002012" in str(error)
    assert "must end in '/.default'" in str(error)
    assert error.__cause__ is not None


async def test_a_wrong_tenant_has_the_providers_reason_and_the_remedy(
    entra_emulator: Emulator,
) -> None:
    principal = entra_emulator.service_principal
    tenant = "0e11a500-0000-4000-8000-00000000dead"
    source = TokenSource.from_client_secret(
        tenant, principal.client_id, principal.secret or "", **entra_emulator.credential_options
    )
    error = await refused_at_connect(entra_emulator, TokenAcquisitionError, source)
    assert error.code == "AADSTS90002"
    assert tenant in str(error)
    assert "tenant ID" in str(error)


async def test_a_wrong_secret_has_the_providers_reason_and_the_remedy(
    entra_emulator: Emulator,
) -> None:
    principal = entra_emulator.service_principal
    source = TokenSource.from_client_secret(
        entra_emulator.tenant_id,
        principal.client_id,
        "not-the-secret",
        **entra_emulator.credential_options,
    )
    error = await refused_at_connect(entra_emulator, TokenAcquisitionError, source)
    assert error.code == "AADSTS7000215"
    assert "Value" in str(error)
    assert "not-the-secret" not in str(error)
    # A permanent error is not tried again.
    assert len((await entra_emulator.log()).requests) == 1


# ------------------------------------------------------------- what the server refuses

CAUSES = ["no access policy", "client ID", "group", "switched off", "tenant", "clock", "minutes"]


def assert_explains_wrongpass(error: SignInRefusedError, emulator: Emulator) -> None:
    text = str(error)
    assert error.stage == "auth"
    assert emulator.url.removeprefix("rediss://") in text
    assert emulator.service_principal.object_id in text
    assert "https://redis.azure.com" in text
    assert emulator.tenant_id in text
    assert "username-password" in text or "WRONGPASS" in text
    start = text.index("The usual causes, in order")
    places = [text.index(cause, start) for cause in CAUSES]
    assert places == sorted(places)


async def test_wrongpass_names_host_oid_audience_and_causes(entra_emulator: Emulator) -> None:
    await entra_emulator.revoke(entra_emulator.service_principal.object_id)
    error = await refused_at_connect(entra_emulator, SignInRefusedError)
    assert_explains_wrongpass(error, entra_emulator)
    [attempt] = (await entra_emulator.log()).auths
    assert attempt.reason == "revoked"


async def test_a_forged_token_is_refused_with_the_same_words(entra_emulator: Emulator) -> None:
    await entra_emulator.next_tokens(forged=True)
    error = await refused_at_connect(entra_emulator, SignInRefusedError)
    assert_explains_wrongpass(error, entra_emulator)


async def test_wrongpass_at_the_first_command(entra_emulator: Emulator) -> None:
    await entra_emulator.revoke(entra_emulator.service_principal.object_id)
    async with secret_source(entra_emulator) as source:
        redis = EntraRedis.from_url(
            entra_emulator.url, token_source=source, ssl_ca_certs=entra_emulator.ca_file
        )
        # A hundred at once get an error each, from one attempt.
        outcomes = await asyncio.gather(
            *(redis.get("key") for _ in range(100)), return_exceptions=True
        )
        for each in outcomes:
            assert isinstance(each, SignInRefusedError)
            assert_explains_wrongpass(each, entra_emulator)
        assert len({id(each) for each in outcomes}) == 100
        assert len((await entra_emulator.log()).auths) == 1
        # When the assignment has come into force the same client works.
        await entra_emulator.heal()
        assert await redis.ping()
        await redis.aclose()


# ------------------------------------------------------------ an identity provider that is down


async def test_a_provider_that_answers_503_fails_with_its_reason(entra_emulator: Emulator) -> None:
    await entra_emulator.fail_identity(status=503, description="Down for repairs.")
    error = await refused_at_connect(entra_emulator, TokenAcquisitionError)
    assert "Down for repairs" in str(error)
    assert error.transient
    assert error.__cause__ is not None
    assert len((await entra_emulator.log()).requests) == BRISK.retry.max_attempts


async def test_a_provider_that_cannot_be_reached_fails_with_the_reason(
    entra_emulator: Emulator,
) -> None:
    principal = entra_emulator.service_principal
    source = TokenSource.from_client_secret(
        entra_emulator.tenant_id,
        principal.client_id,
        principal.secret or "",
        refresh=BRISK,
        authority="https://127.0.0.1:1",
        connection_verify=entra_emulator.ca_file,
    )
    started = time.monotonic()
    error = await refused_at_connect(entra_emulator, TokenAcquisitionError, source)
    assert time.monotonic() - started < 5
    assert "proxy, firewall, DNS" in str(error)
    assert error.transient


async def test_a_provider_that_hangs_fails_within_open_timeout(entra_emulator: Emulator) -> None:
    await entra_emulator.hang_identity()
    source = secret_source(entra_emulator, refresh=TokenRefreshConfig(request_timeout=30))
    started = time.monotonic()
    error = await refused_at_connect(entra_emulator, ConnectTimeoutError, source, open_timeout=0.5)
    assert 0.4 < time.monotonic() - started < 3
    assert error.stage == "token"
    assert "has not answered" in str(error)


async def test_a_provider_that_hangs_fails_after_its_attempts(entra_emulator: Emulator) -> None:
    await entra_emulator.hang_identity()
    refresh = TokenRefreshConfig(
        request_timeout=0.3, retry=RetryConfig(max_attempts=2, initial_delay=0.01)
    )
    source = secret_source(entra_emulator, refresh=refresh)
    started = time.monotonic()
    error = await refused_at_connect(entra_emulator, TokenAcquisitionError, source)
    assert 0.5 < time.monotonic() - started < 4
    assert "no answer within 0.3 s" in str(error)


async def test_a_short_failure_of_the_provider_is_not_noticed(entra_emulator: Emulator) -> None:
    await entra_emulator.fail_identity(times=1)
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        assert await redis.ping()
    assert [each.status for each in (await entra_emulator.log()).requests] == [503, 200]


async def test_a_source_that_could_not_start_can_be_started_later(entra_emulator: Emulator) -> None:
    await entra_emulator.fail_identity()
    source = secret_source(entra_emulator)
    with pytest.raises(TokenError):
        await source.start()
    assert source.state is TokenState.FAILED
    await entra_emulator.heal()
    await source.start()
    async with client_of(entra_emulator, source) as redis:
        assert await redis.ping()
    await source.aclose()
