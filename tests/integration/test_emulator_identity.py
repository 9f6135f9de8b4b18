"""Unmodified Azure credentials get their tokens from the emulator, and its faults reach them."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jwt
import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import ClientSecretCredential as SyncClientSecretCredential
from azure.identity import CredentialUnavailableError
from azure.identity.aio import (
    CertificateCredential,
    ClientAssertionCredential,
    ClientSecretCredential,
    ManagedIdentityCredential,
)
from support.azure_sign_in import SCOPE, Spec, sign_in_elsewhere

from aioentra_redis.emulator import Emulator, Identity
from aioentra_redis.emulator._environment import KINDS

pytestmark = pytest.mark.emulator


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def secret_credential(emulator: Emulator, **options: Any) -> ClientSecretCredential:
    principal = emulator.service_principal
    assert principal.secret is not None
    return ClientSecretCredential(
        emulator.tenant_id,
        principal.client_id,
        options.pop("secret", principal.secret),
        **{**emulator.credential_options, "retry_total": 0, **options},
    )


@pytest.fixture
async def credential(entra_emulator: Emulator) -> AsyncIterator[ClientSecretCredential]:
    async with secret_credential(entra_emulator) as credential:
        yield credential


@pytest.fixture
def imds(entra_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in entra_emulator.environ("imds").items():
        if name.startswith("AZURE_"):
            monkeypatch.setenv(name, value)


# --------------------------------------------------------------------------------------- sign-in


def by_environment(emulator: Emulator) -> list[tuple[str, dict[str, str], list[Spec]]]:
    """Name, environment and credentials, each list to run in one child."""
    user = emulator.user_assigned
    selected = [
        ("ManagedIdentityCredential", {"client_id": user.client_id}),
        ("ManagedIdentityCredential", {"identity_config": {"object_id": user.object_id}}),
        ("ManagedIdentityCredential", {"identity_config": {"mi_res_id": user.resource_id}}),
    ]
    system: Spec = ("ManagedIdentityCredential", {})
    specs: dict[str, list[Spec]] = {
        "client-secret": [("EnvironmentCredential", {}), ("DefaultAzureCredential", {})],
        "certificate": [("EnvironmentCredential", {})],
        "workload-identity": [("WorkloadIdentityCredential", {}), ("DefaultAzureCredential", {})],
        "imds": [
            *selected,
            ("ManagedIdentityCredential", {"identity_config": {"msi_res_id": user.resource_id}}),
            system,
            ("DefaultAzureCredential", {}),
        ],
        "app-service": [*selected, system, ("DefaultAzureCredential", {})],
    }
    return [(kind, emulator.environ(kind), specs[kind]) for kind in KINDS]


async def test_credentials_that_find_their_settings_in_the_environment(entra_emulator: Emulator):
    runs = by_environment(entra_emulator)
    results = await asyncio.gather(*(sign_in_elsewhere(env, *specs) for _, env, specs in runs))
    for (kind, _, specs), found in zip(runs, results, strict=True):
        for (name, options), result in zip(specs, found, strict=True):
            assert "error" not in result, (kind, name, result)
            got = claims(result["token"])
            if kind in ("imds", "app-service"):
                expected = (
                    entra_emulator.user_assigned if options else entra_emulator.system_assigned
                )
                assert 86300 < result["expires_on"] - time.time() <= 86400
            else:
                expected = entra_emulator.service_principal
                assert 3500 < result["expires_on"] - time.time() <= 3600
            assert (got["oid"], got["appid"]) == (expected.object_id, expected.client_id)
            assert got["aud"] == "https://redis.azure.com"
            assert got["tid"] == entra_emulator.tenant_id


async def test_client_secret(entra_emulator: Emulator, credential: ClientSecretCredential):
    info = await credential.get_token_info(SCOPE)
    assert claims(info.token)["oid"] == entra_emulator.service_principal.object_id
    [issued] = (await entra_emulator.log()).tokens
    assert issued.uti == claims(info.token)["uti"]
    assert issued.endpoint == "token"
    assert info.token not in repr(await entra_emulator.log())


async def test_certificate(entra_emulator: Emulator):
    principal = entra_emulator.service_principal
    async with CertificateCredential(
        entra_emulator.tenant_id,
        principal.client_id,
        principal.certificate_path,
        **entra_emulator.credential_options,
    ) as credential:
        token = (await credential.get_token(SCOPE)).token
    assert claims(token)["appidacr"] == "2"


async def test_client_assertion(entra_emulator: Emulator):
    def assertion() -> str:
        with open(entra_emulator.federated_token_file) as file:
            return file.read()

    async with ClientAssertionCredential(
        entra_emulator.tenant_id,
        entra_emulator.service_principal.client_id,
        assertion,
        **entra_emulator.credential_options,
    ) as credential:
        token = (await credential.get_token(SCOPE)).token
    assert claims(token)["oid"] == entra_emulator.service_principal.object_id


async def test_a_synchronous_credential(entra_emulator: Emulator):
    principal = entra_emulator.service_principal
    assert principal.secret is not None
    with SyncClientSecretCredential(
        entra_emulator.tenant_id,
        principal.client_id,
        principal.secret,
        disable_instance_discovery=True,
        **entra_emulator.credential_options,
    ) as credential:
        token = await asyncio.to_thread(credential.get_token, SCOPE)
    assert claims(token.token)["oid"] == principal.object_id


async def test_the_resource_by_its_guid(
    entra_emulator: Emulator, credential: ClientSecretCredential
):
    scope = "acca5fbb-b7e4-4009-81f1-37e38fd66d78/.default"
    token = (await credential.get_token(scope)).token
    assert claims(token)["aud"] == "https://redis.azure.com"


# -------------------------------------------------------------------------------------- rejection


@pytest.mark.parametrize(
    ("options", "scope", "code"),
    [
        ({"secret": "wrong"}, SCOPE, "AADSTS7000215"),
        ({}, "https://redis.azure.com", "AADSTS1002012"),
    ],
)
async def test_rejected(entra_emulator: Emulator, options: dict[str, str], scope: str, code: str):
    async with secret_credential(entra_emulator, **options) as credential:
        with pytest.raises(ClientAuthenticationError, match=code):
            await credential.get_token(scope)
    assert (await entra_emulator.log()).tokens == []


@pytest.mark.parametrize(
    ("tenant", "client", "code"),
    [("another", None, "AADSTS90002"), (None, "another", "AADSTS700016")],
)
async def test_unknown(entra_emulator: Emulator, tenant: str | None, client: str | None, code: str):
    async with ClientSecretCredential(
        tenant or entra_emulator.tenant_id,
        client or entra_emulator.service_principal.client_id,
        "secret",
        **entra_emulator.credential_options,
    ) as credential:
        with pytest.raises(ClientAuthenticationError, match=code):
            await credential.get_token(SCOPE)


async def post(emulator: Emulator, **form: str) -> dict[str, Any]:
    url = f"{emulator.authority}/{emulator.tenant_id}/oauth2/v2.0/token"
    context = ssl.create_default_context(cafile=emulator.ca_file)
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=form, ssl=context) as response,
    ):
        document: dict[str, Any] = await response.json()
    return document


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"grant_type": "password"}, 70003),
        ({"client_assertion": "a.b.c"}, 900144),
        (
            {
                "client_assertion": "a.b.c",
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            },
            50027,
        ),
    ],
)
async def test_malformed_requests(entra_emulator: Emulator, form: dict[str, str], code: int):
    good = {
        "grant_type": "client_credentials",
        "client_id": entra_emulator.service_principal.client_id,
        "scope": SCOPE,
    }
    assert (await post(entra_emulator, **{**good, **form}))["error_codes"] == [code]


async def test_managed_identity_requests_must_prove_themselves(entra_emulator: Emulator):
    base = entra_emulator.managed_identity_url
    cases = [
        (f"{base}/metadata/identity/oauth2/token?resource=x", {}, 400),
        (f"{base}/metadata/identity/oauth2/token", {"Metadata": "true"}, 400),
        (f"{base}/msi/token?resource=x", {"X-IDENTITY-HEADER": "guess"}, 401),
        (
            f"{base}/metadata/identity/oauth2/token?resource=x&resource_id=y",
            {"Metadata": "true"},
            400,
        ),
    ]
    async with aiohttp.ClientSession() as session:
        for url, headers, status in cases:
            async with session.get(url, headers=headers) as response:
                assert response.status == status, url
    assert [each.status for each in (await entra_emulator.log()).requests] == [400, 400, 401, 400]


@pytest.mark.usefixtures("imds")
async def test_only_managed_identities_are_on_the_platform(entra_emulator: Emulator):
    client_id = entra_emulator.service_principal.client_id
    async with ManagedIdentityCredential(client_id=client_id) as credential:
        with pytest.raises(CredentialUnavailableError, match="Identity not found"):
            await credential.get_token(SCOPE)


# ---------------------------------------------------------------------------------- time and advice


async def test_short_and_fractional_lifetimes(entra_emulator: Emulator):
    for lifetime in (2.0, 2.5, 0.5):
        await entra_emulator.configure(token_lifetime=lifetime)
        async with secret_credential(entra_emulator) as credential:
            before = time.time()
            info = await credential.get_token_info(SCOPE)
        got = claims(info.token)
        assert got["exp"] - got["iat"] == pytest.approx(lifetime, abs=1e-4)
        assert info.expires_on == int(before) + max(1, int(lifetime))


@pytest.mark.usefixtures("imds")
async def test_lifetimes_of_managed_identities(entra_emulator: Emulator):
    await entra_emulator.configure(managed_identity_lifetime=2.5)
    async with ManagedIdentityCredential() as credential:
        info = await credential.get_token_info(SCOPE)
    exp = claims(info.token)["exp"]
    assert info.expires_on == int(exp)
    assert 2.0 < exp - time.time() <= 2.5


@pytest.mark.usefixtures("imds")
async def test_advice_when_to_refresh(entra_emulator: Emulator, credential: ClientSecretCredential):
    await entra_emulator.configure(refresh_in=900)
    async with ManagedIdentityCredential() as managed:
        for each in (credential, managed):
            info = await each.get_token_info(SCOPE)
            assert info.refresh_on is not None
            assert 890 < info.refresh_on - time.time() <= 900
    await entra_emulator.configure(refresh_in=None)
    async with secret_credential(entra_emulator) as fresh:
        assert (await fresh.get_token_info(SCOPE)).refresh_on is None


@pytest.mark.usefixtures("imds")
@pytest.mark.parametrize("caching", [True, False])
async def test_the_platform_caches(entra_emulator: Emulator, caching: bool):
    await entra_emulator.configure(managed_identity_caching=caching)
    tokens = set()
    for _ in range(3):
        async with ManagedIdentityCredential() as credential:
            tokens.add((await credential.get_token(SCOPE)).token)
    log = await entra_emulator.log()
    assert len(tokens) == len(log.tokens) == (1 if caching else 3)
    assert len(log.requests) == 3
    assert {each.uti for each in log.requests} == {each.uti for each in log.tokens}


# ------------------------------------------------------------------------------------------ faults


async def test_failing_a_number_of_times(
    entra_emulator: Emulator, credential: ClientSecretCredential
):
    await entra_emulator.fail_identity(
        2, status=401, error="invalid_client", code=7000222, description="The secret has expired."
    )
    for _ in range(2):
        with pytest.raises(ClientAuthenticationError, match="AADSTS7000222: The secret has exp"):
            await credential.get_token(SCOPE)
    assert (await credential.get_token(SCOPE)).token
    assert [each.status for each in (await entra_emulator.log()).requests] == [401, 401, 200]


async def fetch_managed(emulator: Emulator) -> tuple[int, str | None, str]:
    url = f"{emulator.managed_identity_url}/metadata/identity/oauth2/token?resource=x"
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers={"Metadata": "true"}) as response,
    ):
        return response.status, response.headers.get("Retry-After"), await response.text()


async def test_failing_until_healed(entra_emulator: Emulator):
    await entra_emulator.fail_identity(status=429, error="too_many", retry_after=1.5)
    for _ in range(3):
        status, retry_after, text = await fetch_managed(entra_emulator)
        assert (status, retry_after) == (429, "1.5")
        assert json.loads(text)["error"] == "too_many"
    await entra_emulator.heal()
    assert (await fetch_managed(entra_emulator))[0] == 200


@pytest.mark.parametrize("body", ["<html>gateway</html>", '{"odd": true}', ""])
async def test_failing_with_a_body_of_ones_own(entra_emulator: Emulator, body: str):
    await entra_emulator.fail_identity(1, status=502, body=body)
    assert await fetch_managed(entra_emulator) == (502, None, body)


async def test_failing_at_one_endpoint(
    entra_emulator: Emulator, credential: ClientSecretCredential
):
    await entra_emulator.fail_identity(endpoint="imds")
    assert (await credential.get_token(SCOPE)).token
    assert (await fetch_managed(entra_emulator))[0] == 503


async def test_slow(entra_emulator: Emulator, credential: ClientSecretCredential):
    await entra_emulator.delay_identity(0.2)
    begin = time.perf_counter()
    await credential.get_token(SCOPE)
    assert time.perf_counter() - begin >= 0.2


async def test_hanging_until_healed(entra_emulator: Emulator, credential: ClientSecretCredential):
    await entra_emulator.hang_identity()
    waiting = asyncio.create_task(credential.get_token(SCOPE))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await asyncio.shield(waiting)
    await entra_emulator.heal()
    assert (await waiting).token


async def test_hanging_once(entra_emulator: Emulator, credential: ClientSecretCredential):
    await entra_emulator.hang_identity(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await credential.get_token(SCOPE)
    assert (await credential.get_token(SCOPE)).token


@pytest.mark.parametrize(
    ("differing", "expected"),
    [
        ({"oid": "another"}, {"oid": "another"}),
        ({"tenant_id": "another"}, {"tid": "another", "iss": "https://sts.windows.net/another/"}),
        ({"audience": "https://vault.azure.net"}, {"aud": "https://vault.azure.net"}),
        ({"without": ("oid", "iss")}, {"oid": None, "iss": None}),
        ({"extra": {"exp": 7, "colour": "red"}}, {"exp": 7, "colour": "red"}),
    ],
)
async def test_other_claims(
    entra_emulator: Emulator, differing: dict[str, Any], expected: dict[str, Any]
):
    await entra_emulator.next_tokens(**differing)
    async with secret_credential(entra_emulator) as credential:
        got = claims((await credential.get_token(SCOPE)).token)
    assert {name: got.get(name) for name in expected} == expected
    await entra_emulator.next_tokens()
    token = await entra_emulator.issue_token()
    assert claims(token)["oid"] == entra_emulator.service_principal.object_id


async def test_a_token_that_is_no_jwt(entra_emulator: Emulator, credential: ClientSecretCredential):
    await entra_emulator.next_tokens(opaque=True)
    token = (await credential.get_token(SCOPE)).token
    with pytest.raises(jwt.DecodeError):
        claims(token)


async def test_tokens_for_each_identity_without_a_credential(entra_emulator: Emulator):
    for identity in (entra_emulator.system_assigned, entra_emulator.user_assigned):
        got = claims(await entra_emulator.issue_token(identity, lifetime=7.5))
        assert got["oid"] == identity.object_id
        assert got["exp"] - got["iat"] == pytest.approx(7.5)
    stranger = Identity(client_id="x", object_id="y")
    with pytest.raises(ValueError, match="there is no identity with the object ID y"):
        await entra_emulator.issue_token(stranger)


def test_discovery(entra_emulator: Emulator):
    context = ssl.create_default_context(cafile=entra_emulator.ca_file)

    def get(url: str) -> Any:
        with urllib.request.urlopen(url, context=context) as response:
            return json.load(response)

    base = f"{entra_emulator.authority}/{entra_emulator.tenant_id}"
    document = get(f"{base}/v2.0/.well-known/openid-configuration")
    assert document["token_endpoint"] == f"{base}/oauth2/v2.0/token"
    assert get(document["jwks_uri"])["keys"][0]["alg"] == "RS256"
