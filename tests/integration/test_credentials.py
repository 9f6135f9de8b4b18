"""Every way to sign in through ``connect()``, with azure-identity's credentials as they are."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import pytest
from support.certificate_forms import certificates
from support.signing_in import client_of

from aioentra_redis import TokenSource, connect
from aioentra_redis.emulator import Emulator, Identity

pytestmark = pytest.mark.emulator


async def signs_in_as(emulator: Emulator, source: TokenSource, identity: Identity) -> None:
    """Connect with a source of this process, and see as whom."""
    async with source, client_of(emulator, source) as redis:
        assert (await redis.acl_whoami()) in (identity.object_id, identity.object_id.encode())
        assert source.status.oid == identity.object_id
    log = await emulator.log()
    assert [(each.object_id, each.accepted) for each in log.auths] == [(identity.object_id, True)]


# ------------------------------------------------------------------------- named in the program


async def test_client_secret(entra_emulator: Emulator) -> None:
    principal = entra_emulator.service_principal
    source = TokenSource.from_client_secret(
        entra_emulator.tenant_id,
        principal.client_id,
        principal.secret or "",
        **entra_emulator.credential_options,
    )
    await signs_in_as(entra_emulator, source, principal)


@pytest.mark.parametrize(
    "form",
    [
        "path",
        "Path",
        "PEM bytes",
        "PKCS12 bytes",
        "PKCS12 bytes, password",
        "PKCS12 base64",
    ],
)
async def test_client_certificate(entra_emulator: Emulator, form: str) -> None:
    principal = entra_emulator.service_principal
    certificate, password = certificates(principal.certificate_path or "")[form]
    source = TokenSource.from_client_certificate(
        entra_emulator.tenant_id,
        principal.client_id,
        certificate,
        password=password,
        **entra_emulator.credential_options,
    )
    await signs_in_as(entra_emulator, source, principal)


async def test_workload_identity(entra_emulator: Emulator) -> None:
    source = TokenSource.from_workload_identity(
        tenant_id=entra_emulator.tenant_id,
        client_id=entra_emulator.service_principal.client_id,
        token_file_path=entra_emulator.federated_token_file,
        **entra_emulator.credential_options,
    )
    await signs_in_as(entra_emulator, source, entra_emulator.service_principal)


async def test_a_factory(entra_emulator: Emulator) -> None:
    from azure.identity.aio import ClientSecretCredential

    principal = entra_emulator.service_principal
    source = TokenSource.from_credential_factory(
        lambda: ClientSecretCredential(
            entra_emulator.tenant_id,
            principal.client_id,
            principal.secret or "",
            **entra_emulator.credential_options,
        )
    )
    await signs_in_as(entra_emulator, source, principal)


async def test_a_synchronous_credential(entra_emulator: Emulator) -> None:
    from azure.identity import ClientSecretCredential

    principal = entra_emulator.service_principal
    with ClientSecretCredential(
        entra_emulator.tenant_id,
        principal.client_id,
        principal.secret or "",
        disable_instance_discovery=True,  # it would ask the public cloud about this authority
        **entra_emulator.credential_options,
    ) as credential:
        async with connect(
            entra_emulator.url, credential=credential, ssl_ca_certs=entra_emulator.ca_file
        ) as redis:
            assert await redis.ping()


IDENTITIES: dict[str, dict[str, str]] = {
    "client ID": {"client_id": "client_id"},
    "object ID": {"object_id": "object_id"},
    "resource ID": {"resource_id": "resource_id"},
}


@pytest.mark.parametrize("platform", ["imds", "app-service"])
@pytest.mark.parametrize("chosen", ["system-assigned", *IDENTITIES])
async def test_managed_identity(
    entra_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, platform: Any, chosen: str
) -> None:
    for name, value in entra_emulator.environ(platform).items():
        monkeypatch.setenv(name, value)
    identity = entra_emulator.user_assigned
    if chosen == "system-assigned":
        identity = entra_emulator.system_assigned
        source = TokenSource.from_system_assigned_managed_identity()
    else:
        arguments = {name: getattr(identity, name) for name in IDENTITIES[chosen]}
        source = TokenSource.from_user_assigned_managed_identity(**arguments)
    await signs_in_as(entra_emulator, source, identity)
    assert {each.endpoint for each in (await entra_emulator.log()).tokens} == {platform}


async def test_a_managed_identitys_renewal_follows_the_platforms_advice(
    entra_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in entra_emulator.environ("imds").items():
        monkeypatch.setenv(name, value)
    await entra_emulator.configure(managed_identity_lifetime=7200, refresh_in=1800)
    async with TokenSource.from_system_assigned_managed_identity() as source:
        assert source.status.next_attempt_in is not None
        assert 1790 < source.status.next_attempt_in < 1801


# ---------------------------------------------------------------------- found in the environment

PROGRAM = """
import asyncio, json, sys
from aioentra_redis import TokenSource, connect

async def main():
    make = sys.argv[1]
    source = getattr(TokenSource, make)() if make else None
    # REDIS_URL says where, SSL_CERT_FILE whom to trust; with no source it is the default one.
    async with connect(token_source=source) as redis:
        print(json.dumps([str(await redis.execute_command("ACL WHOAMI")), redis.token_source.name]))
    if source is not None:
        await source.aclose()

asyncio.run(main())
"""
WAYS = [
    ("client-secret", "from_environment", "service_principal"),
    ("certificate", "from_environment", "service_principal"),
    ("client-secret", "from_default", "service_principal"),
    ("workload-identity", "from_workload_identity", "service_principal"),
    ("workload-identity", "from_default", "service_principal"),
    ("imds", "from_default", "system_assigned"),
    ("app-service", "from_default", "system_assigned"),
    ("app-service", "from_system_assigned_managed_identity", "system_assigned"),
    ("client-secret", "", "service_principal"),
]
AMBIENT = ("AZURE_", "IDENTITY_", "IMDS_", "MSI_", "SSL_CERT_", "REDIS_")


async def test_whatever_the_environment_describes(entra_emulator: Emulator) -> None:
    """In programs of their own, four at a time: SSL_CERT_FILE is read when aiohttp is imported."""
    four = asyncio.Semaphore(4)

    async def run(kind: Any, make: str, identity: str) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(AMBIENT)}
        async with four, asyncio.timeout(40):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-W",
                "error",
                "-c",
                PROGRAM,
                make,
                env={**environ, **entra_emulator.environ(kind)},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            output, errors = await process.communicate()
        assert process.returncode == 0, (kind, make, errors.decode())
        who, name = json.loads(output)
        assert getattr(entra_emulator, identity).object_id in who, (kind, make)
        assert make or name == "DefaultAzureCredential"

    await asyncio.gather(*(run(*way) for way in WAYS))
    auths = (await entra_emulator.log()).auths
    assert len(auths) == len(WAYS)
    assert all(each.accepted for each in auths)
