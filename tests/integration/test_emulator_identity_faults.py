"""The emulator's identity endpoints refuse, break off and contradict themselves when told to."""

from __future__ import annotations

import asyncio
import email.utils
import json
import ssl
import time
from typing import Any

import aiohttp
import jwt
import pytest
from azure.identity.aio import ClientSecretCredential
from support.azure_sign_in import SCOPE

from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


async def fetch(emulator: Emulator, endpoint: str) -> tuple[int, Any, bytes]:
    """Status, headers and body of an answer; raises what aiohttp raises."""
    principal = emulator.service_principal
    context = ssl.create_default_context(cafile=emulator.ca_file)
    async with aiohttp.ClientSession() as session:
        if endpoint == "token":
            request = session.post(
                f"{emulator.authority}/{emulator.tenant_id}/oauth2/v2.0/token",
                data={
                    "grant_type": "client_credentials",
                    "client_id": principal.client_id,
                    "client_secret": principal.secret,
                    "scope": SCOPE,
                },
                ssl=context,
            )
        else:
            request = session.get(
                f"{emulator.managed_identity_url}/metadata/identity/oauth2/token",
                params={"resource": "https://redis.azure.com"},
                headers={"Metadata": "true"},
            )
        async with request as response:
            return response.status, response.headers, await response.read()


BOTH = pytest.mark.parametrize("endpoint", ["token", "imds"])


@BOTH
async def test_refused_connections_until_healed(entra_emulator: Emulator, endpoint: str):
    await entra_emulator.refuse_identity()
    for _ in range(2):
        with pytest.raises(aiohttp.ClientConnectorError, match=r"refused|Connect call failed"):
            await fetch(entra_emulator, endpoint)
    await entra_emulator.heal()
    assert (await fetch(entra_emulator, endpoint))[0] == 200
    assert len((await entra_emulator.log()).requests) == 1


@BOTH
async def test_an_answer_cut_in_the_middle_of_its_body(entra_emulator: Emulator, endpoint: str):
    await entra_emulator.cut_identity(100, 1)
    with pytest.raises(aiohttp.ClientPayloadError):
        await fetch(entra_emulator, endpoint)
    assert (await fetch(entra_emulator, endpoint))[0] == 200


@BOTH
async def test_no_answer_at_all(entra_emulator: Emulator, endpoint: str):
    await entra_emulator.cut_identity(None)
    for _ in range(2):
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await fetch(entra_emulator, endpoint)
    await entra_emulator.heal()
    assert (await fetch(entra_emulator, endpoint))[0] == 200


@BOTH
async def test_a_broken_document_that_claims_to_be_whole(entra_emulator: Emulator, endpoint: str):
    await entra_emulator.cut_identity(100, then="end")
    status, headers, body = await fetch(entra_emulator, endpoint)
    assert (status, headers["Content-Length"], len(body)) == (200, "100", 100)
    assert headers["Content-Type"].startswith("application/json")
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)


@BOTH
async def test_an_answer_that_stops_until_healed(entra_emulator: Emulator, endpoint: str):
    await entra_emulator.cut_identity(100, 1, then="hang")
    waiting = asyncio.create_task(fetch(entra_emulator, endpoint))
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    await entra_emulator.heal()
    with pytest.raises(aiohttp.ClientPayloadError):
        await waiting


async def test_cutting_at_one_endpoint(entra_emulator: Emulator):
    await entra_emulator.cut_identity(0, endpoint="token")
    assert (await fetch(entra_emulator, "imds"))[0] == 200
    with pytest.raises(aiohttp.ClientPayloadError):
        await fetch(entra_emulator, "token")


async def test_bad_cuts_are_refused(entra_emulator: Emulator):
    with pytest.raises(ValueError, match="negative"):
        await entra_emulator.cut_identity(-1)


@pytest.mark.parametrize("kind", ["expired", "other-name", "unknown-ca"])
async def test_another_certificate_of_the_authority(entra_emulator: Emulator, kind: Any):
    await entra_emulator.present_identity_certificate(kind)
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await fetch(entra_emulator, "token")
    await entra_emulator.heal()
    assert (await fetch(entra_emulator, "token"))[0] == 200
    with pytest.raises(ValueError, match="no kind of certificate"):
        await entra_emulator.present_identity_certificate("forged")  # type: ignore[arg-type]


async def test_retry_after_as_a_date(entra_emulator: Emulator):
    date = email.utils.formatdate(time.time() + 5, usegmt=True)
    await entra_emulator.fail_identity(status=429, retry_after=date)
    status, headers, _ = await fetch(entra_emulator, "imds")
    assert (status, headers["Retry-After"]) == (429, date)


@BOTH
async def test_answers_that_contradict_their_token(entra_emulator: Emulator, endpoint: str):
    await entra_emulator.next_tokens(answer={"expires_in": 7, "colour": "red"})
    document = json.loads((await fetch(entra_emulator, endpoint))[2])
    assert (document["expires_in"], document["colour"]) == (7, "red")
    await entra_emulator.next_tokens()
    document = json.loads((await fetch(entra_emulator, endpoint))[2])
    assert int(document["expires_in"]) > 3000
    assert "colour" not in document


async def test_a_rotated_signing_key(entra_emulator: Emulator):
    principal = entra_emulator.service_principal
    kids = []
    for turn in range(2):
        if turn:
            await entra_emulator.rotate_signing_key()
        async with ClientSecretCredential(
            entra_emulator.tenant_id,
            principal.client_id,
            principal.secret or "",
            **entra_emulator.credential_options,
        ) as credential:
            token = (await credential.get_token(SCOPE)).token
        kids.append(jwt.get_unverified_header(token)["kid"])
    assert kids[0] != kids[1]
    keys = f"{entra_emulator.authority}/{entra_emulator.tenant_id}/discovery/v2.0/keys"
    context = ssl.create_default_context(cafile=entra_emulator.ca_file)
    async with aiohttp.ClientSession() as session, session.get(keys, ssl=context) as response:
        published = [each["kid"] for each in (await response.json())["keys"]]
    assert published[-2:] == kids
