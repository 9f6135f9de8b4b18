"""What credentials keep shows nowhere: secrets, certificates' passwords and keys, federated tokens.

Azure's own credentials sign in to the emulator, and fail there in every way that says something.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support.canary import Canary
from support.certificate_forms import certificates
from support.signing_in import BRISK, Witness, client_of, until

from aioentra_redis import EntraCredentialProvider, EntraRedisError, TokenSource, _metrics
from aioentra_redis._metrics import Instruments
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]

Make = Callable[[Emulator, Canary], TokenSource]


def client_secret(emulator: Emulator, canary: Canary) -> TokenSource:
    principal = emulator.service_principal
    canary.add(principal.secret or "")
    return TokenSource.from_client_secret(
        emulator.tenant_id,
        principal.client_id,
        principal.secret or "",
        refresh=BRISK,
        **emulator.credential_options,
    )


def certificate(emulator: Emulator, canary: Canary) -> TokenSource:
    principal = emulator.service_principal
    pem = Path(principal.certificate_path or "").read_text()
    key = pem.partition("PRIVATE KEY-----")[2].strip().splitlines()
    forms = certificates(principal.certificate_path or "")
    made, password = forms["PKCS12 bytes, password"]
    for each in (str(password), *key[:3]):
        canary.add(each)
    return TokenSource.from_client_certificate(
        emulator.tenant_id,
        principal.client_id,
        made,
        password=password,
        refresh=BRISK,
        **emulator.credential_options,
    )


def workload_identity(emulator: Emulator, canary: Canary) -> TokenSource:
    canary.add(Path(emulator.federated_token_file).read_text().strip())
    return TokenSource.from_workload_identity(
        tenant_id=emulator.tenant_id,
        client_id=emulator.service_principal.client_id,
        token_file_path=emulator.federated_token_file,
        refresh=BRISK,
        **emulator.credential_options,
    )


WAYS = pytest.mark.parametrize("make", [client_secret, certificate, workload_identity])


@pytest.fixture
def canary() -> Canary:
    return Canary()


@pytest.fixture(autouse=True)
async def listening(canary: Canary) -> AsyncIterator[None]:
    root = logging.getLogger()
    level = root.level
    root.addHandler(canary)
    root.setLevel(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    root.removeHandler(canary)
    root.setLevel(level)
    for each in caught:
        canary.look("a warning", str(each.message))


async def failing(emulator: Emulator, how: str) -> None:
    if how == "refused by Entra":
        await emulator.fail_identity(status=401, error="invalid_client", code=7000215)
    elif how == "no answer":
        await emulator.hang_identity()
    elif how == "half an answer":
        await emulator.cut_identity(20)
    else:
        await emulator.refuse_auth()


@WAYS
@pytest.mark.parametrize("how", ["refused by Entra", "no answer", "half an answer", "by Redis"])
async def test_a_renewal_that_fails_shows_no_secret(
    entra_emulator: Emulator, canary: Canary, make: Make, how: str
) -> None:
    """And the metrics of it all show none either."""
    await entra_emulator.configure(token_lifetime=4)
    reader, errors = InMemoryMetricReader(), list[BaseException]()
    meters = MeterProvider([reader])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_metrics, "_made", Instruments(meters.get_meter("t"), Observation))
        witness = Witness()
        source = make(entra_emulator, canary)
        source.listen(witness)
        async with source, client_of(entra_emulator, source, on_event=witness) as redis:
            assert source.current is not None
            canary.add(source.current.secret)
            canary.show(source, how)
            await failing(entra_emulator, how)
            seen = len(witness.events)
            await until(lambda: len(witness.events) > seen + 3, timeout=20)
            await redis.connection_pool.disconnect()
            with contextlib.suppress(EntraRedisError):
                await redis.ping()
            if source.current is not None:
                canary.add(source.current.secret)
            for thing in (source, source.status, redis, redis.auth_status(), await redis.health()):
                canary.show(thing, how)
            errors += [each for each in (source.status.last_error,) if each is not None]
            canary.look("metrics", str(reader.get_metrics_data()))
        for event in witness.events:
            canary.show(event, how)
        for error in errors:
            canary.show(error, how)
    meters.shutdown()
    gc.collect()
    assert canary.leaks == []
    assert canary.looks > 50
    assert {"aioentra_redis", "azure"} <= canary.loggers


@WAYS
async def test_a_start_that_fails_shows_no_secret(
    entra_emulator: Emulator, canary: Canary, make: Make
) -> None:
    await failing(entra_emulator, "refused by Entra")
    source = make(entra_emulator, canary)
    with pytest.raises(EntraRedisError) as caught:
        await source.start()
    canary.show(caught.value, "a start")
    await source.aclose()
    assert canary.leaks == []
    assert canary.looks > 10


async def test_the_thread_of_a_synchronous_provider_shows_no_token(
    entra_emulator: Emulator, canary: Canary
) -> None:
    def factory() -> TokenSource:
        return client_secret(entra_emulator, canary)

    async with EntraCredentialProvider.in_thread(factory) as provider:
        _, token = await asyncio.to_thread(provider.get_credentials)
        canary.add(token)
        canary.show(provider, "the provider")
        await failing(entra_emulator, "refused by Entra")
    async with EntraCredentialProvider.in_thread(factory) as provider:
        with pytest.raises(EntraRedisError) as caught:
            await asyncio.to_thread(provider.get_credentials)
        canary.show(caught.value, "its error")
        canary.show(provider, "the provider that fails")
    assert canary.leaks == []


async def test_the_demo_shows_no_token(canary: Canary) -> None:
    """Its tokens are made in another process, so it is known by how every JWT begins."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aioentra_redis.cli", "demo"),
        *("--rotations", "2", "--token-lifetime", "3"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    assert "rotation" in output.lower()
    assert "eyJ" not in output


async def test_the_canary_sings(entra_emulator: Emulator, canary: Canary) -> None:
    source = client_secret(entra_emulator, canary)
    secret = entra_emulator.service_principal.secret
    logging.getLogger("somebody.else").info("client_secret=%s", secret)
    canary.show(ValueError(f"bad {secret}"), "an error")
    await source.aclose()
    assert len(canary.leaks) >= 2
