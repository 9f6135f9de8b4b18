"""Credentials: how they are called, made and closed, and what their failures are turned into."""

from __future__ import annotations

import asyncio
import base64
import functools
import http.server
import json
import threading
import time
import traceback
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from azure.core.credentials import AccessToken, AccessTokenInfo
from support.token_fakes import CANARY, jwt

from aioentra_redis import _credentials as credentials
from aioentra_redis._acquirer import Acquirer, Fetched
from aioentra_redis._redaction import Secret
from aioentra_redis._source import TokenSource
from aioentra_redis._threads import call_in_thread
from aioentra_redis.errors import ConfigurationError, TokenAcquisitionError

RAW = jwt({"oid": "o"})


INFO = AccessTokenInfo(RAW, 2_000_000_000, refresh_on=1_900_000_000)


def acquirer(credential: object) -> Acquirer:
    return Acquirer(credentials.credential_object(credential), ("scope",), "resource")


# ------------------------------------------------------------------------------------ calling


class Both:
    def get_token(self, *scopes: str) -> AccessToken:
        raise AssertionError("get_token_info is preferred")

    async def get_token_info(self, *scopes: str) -> AccessTokenInfo:
        assert scopes == ("scope",)
        return INFO


class OnlyGetToken:
    async def get_token(self, *scopes: str) -> AccessToken:
        return AccessToken(RAW, 2_000_000_000)


class Synchronous:
    def get_token(self, *scopes: str) -> AccessToken:
        assert threading.current_thread() is not threading.main_thread()
        return AccessToken(RAW, 2_000_000_000)


class ReturnsAwaitable:
    def get_token_info(self, *scopes: str) -> Any:
        return Both().get_token_info(*scopes)


class Partial:
    def __init__(self) -> None:
        self.get_token_info = functools.partial(Both.get_token_info, self)


class CallableObject:
    class get_token_info:
        async def __call__(self, *scopes: str) -> AccessTokenInfo:
            assert threading.current_thread() is threading.main_thread()
            return INFO

    get_token_info = get_token_info()  # type: ignore[assignment]


@pytest.mark.parametrize(
    "credential",
    [
        Both(),
        OnlyGetToken(),
        Synchronous(),
        ReturnsAwaitable(),
        Partial(),
        CallableObject(),
        SimpleNamespace(get_token=AsyncMock(return_value=AccessToken(RAW, 2_000_000_000))),
        SimpleNamespace(get_token=Mock(return_value=AccessToken(RAW, 2_000_000_000))),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_every_kind_of_credential(credential: object):
    fetched = await acquirer(credential).acquire(1)
    assert fetched.secret.reveal() == RAW
    assert fetched.expires_on == 2_000_000_000
    assert CANARY not in repr(fetched)


@pytest.mark.parametrize("answer", [None, RAW, 5, SimpleNamespace(token=None), AccessToken("", 1)])
async def test_not_a_token(answer: object):
    with pytest.raises(TokenAcquisitionError, match="AccessTokenInfo") as caught:
        await acquirer(SimpleNamespace(get_token=AsyncMock(return_value=answer))).acquire(1)
    assert not caught.value.transient
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_cancelled_from_within():
    async def get_token(*scopes: str) -> AccessToken:
        raise asyncio.CancelledError

    with pytest.raises(TokenAcquisitionError):
        await acquirer(SimpleNamespace(get_token=get_token)).acquire(1)


async def test_threads_bring_back_every_outcome():
    assert await call_in_thread(lambda: 5, "t") == 5
    with pytest.raises(KeyError):
        await call_in_thread(lambda: {}["x"], "t")
    for odd in (SystemExit(3), StopIteration()):

        def fail(error: BaseException = odd) -> None:
            raise error

        with pytest.raises(RuntimeError, match=type(odd).__name__):
            await call_in_thread(fail, "t")


async def test_a_factory_that_returns_the_same_object_each_time():
    credential = SimpleNamespace(get_token_info=AsyncMock(return_value=INFO), close=AsyncMock())
    factory = Acquirer(credentials.credential_factory(lambda: credential), ("scope",), "resource")
    for _ in range(3):
        await factory.acquire(1)
        await factory.settle(accepted=True)
    credential.close.assert_not_awaited()
    await factory.aclose()
    credential.close.assert_awaited_once()


async def test_a_synchronous_close_runs_in_the_thread():
    closed_in: list[str] = []
    credential = SimpleNamespace(
        get_token=lambda *scopes: AccessToken(RAW, 2_000_000_000),
        close=lambda: closed_in.append(threading.current_thread().name),
    )
    factory = Acquirer(credentials.credential_factory(lambda: credential), ("scope",), "resource")
    await factory.acquire(1)
    await factory.settle(accepted=False)
    assert len(closed_in) == 1
    assert closed_in != [threading.main_thread().name]


# ------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("recipe", "kind", "fresh"),
    [
        (lambda: credentials.default({}), "DefaultAzureCredential", False),
        (lambda: credentials.developer_tools({}), "ChainedTokenCredential", False),
        (
            lambda: credentials.client_secret("t", "c", Secret("s"), {}),
            "ClientSecretCredential",
            True,
        ),
        (lambda: credentials.managed_identity({}, {}), "ManagedIdentityCredential", False),
        (
            lambda: credentials.managed_identity({"object_id": "x"}, {}),
            "ManagedIdentityCredential",
            False,
        ),
        (
            lambda: credentials.managed_identity({"client_id": "x", "object_id": None}, {}),
            "ManagedIdentityCredential",
            False,
        ),
        (lambda: credentials.environment({}), "EnvironmentCredential", True),
    ],
)
async def test_recipes_make_what_they_say(recipe, kind: str, fresh: bool):
    made = recipe()
    assert made.fresh is fresh
    assert made.owned
    credential = await call_in_thread(made.make, "t")
    assert type(credential).__name__ == kind
    await credential.close()


async def test_workload_identity_reads_its_file_off_the_loop(tmp_path):
    file = tmp_path / "token"
    file.write_text("assertion")
    made = credentials.workload_identity("t", "c", str(file), {"authority": "login.example"})
    assert made.fresh
    assert (made.tenant_id, made.client_id) == ("t", "c")
    credential = await call_in_thread(made.make, "t")
    file.unlink()
    assert credential._get_service_account_token() == "assertion"
    await credential.close()
    with pytest.raises(FileNotFoundError):
        await call_in_thread(made.make, "t")


@pytest.fixture(scope="module")
def pkcs12() -> bytes:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
    from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "app")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return serialize_key_and_certificates(
        b"app", key, certificate, None, BestAvailableEncryption(b"password")
    )


@pytest.mark.parametrize("form", ["path", "string path", "bytes", "base64", "base64 bytes"])
async def test_every_form_of_certificate(form: str, pkcs12: bytes, tmp_path):
    file = tmp_path / "app.pfx"
    file.write_bytes(pkcs12)
    certificate = {
        "path": file,
        "string path": str(file),
        "bytes": pkcs12,
        "base64": base64.encodebytes(pkcs12).decode(),
        "base64 bytes": base64.b64encode(pkcs12),
    }[form]
    for password in ("password", b"password"):
        held = credentials.Certificate(certificate, password)
        assert (held.path is not None) == ("path" in form)
        made = credentials.client_certificate("t", "c", held, {})
        assert made.fresh
        credential = await call_in_thread(made.make, "t")
        await credential.close()
    source = TokenSource.from_client_certificate("t", "c", certificate, password="wrong")
    with pytest.raises(TokenAcquisitionError, match="PEM or PKCS12") as caught:
        await source.start()
    assert not caught.value.transient


def test_pem_text_is_a_certificate_too():
    held = credentials.Certificate("-----BEGIN PRIVATE KEY-----\nMII...", None)
    assert held.path is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TokenSource.from_client_secret("t", "c", ""), "client_secret"),
        (lambda: TokenSource.from_client_secret("t", "c", None), "client_secret"),
        (lambda: TokenSource.from_client_secret("", "c", "s"), "tenant_id"),
        (lambda: TokenSource.from_client_secret("t", None, "s"), "client_id"),
        (lambda: TokenSource.from_client_certificate("t", "c", b""), "certificate"),
        (lambda: TokenSource.from_client_certificate("t", "c", 5), "int"),
        (lambda: TokenSource.from_client_certificate("", "c", "/p"), "tenant_id"),
        (lambda: TokenSource.from_user_assigned_managed_identity(), "say which"),
        (
            lambda: TokenSource.from_user_assigned_managed_identity(client_id="a", object_id="b"),
            "client_id and object_id",
        ),
        (lambda: TokenSource.from_credential_factory(5), "factory"),
        (lambda: TokenSource.from_default(logging_enable=True), "unredacted"),
        (lambda: TokenSource.from_developer_tools(proxies={}), "proxies"),
    ],
)
def test_unusable_arguments(make, says: str):
    with pytest.raises(ConfigurationError, match=says):
        make()


def test_the_constructors_take_the_common_arguments():
    source = TokenSource.from_client_secret(
        "t", "c", "s3cr3t", scopes="x/.default", name="n", username="u", authority="login.example"
    )
    assert source.name == "n"
    assert "tenant t, client c" in source.describe()
    assert "x" in source.describe()
    for each in (source, source._refresher, source._refresher._acquirer):
        assert "s3cr3t" not in repr(each) + repr(vars(each))


def test_retries_are_ours_alone():
    for recipe in (
        credentials.default({}),
        credentials.client_secret("t", "c", Secret("s"), {}),
        credentials.managed_identity({}, {}),
        credentials.environment({}),
    ):
        options = dict(zip(recipe.make.__code__.co_freevars, recipe.make.__closure__, strict=True))
        assert options["chosen"].cell_contents["retry_total"] == 0


# ------------------------------------------------------------------------------------ for real


class Authority(http.server.BaseHTTPRequestHandler):
    """Answers as IMDS does, on the port that AZURE_POD_IDENTITY_AUTHORITY_HOST names."""

    status = 200
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        now = int(time.time())
        claims = {"oid": "mi", "aud": "https://redis.azure.com", "exp": now + 3600}
        body: dict[str, Any] = {"error": "invalid_request", "error_description": "no identity"}
        if self.status == 200:
            body = {
                "access_token": jwt(claims),
                "expires_on": str(now + 3600),
                "resource": "https://redis.azure.com",
                "token_type": "Bearer",
            }
        payload = json.dumps(body).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        if self.status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Authority]]:
    handler = type("Handler", (Authority,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    host = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", host)
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


async def test_managed_identity_through_azure_identity(imds: type[Authority]):
    async with TokenSource.from_system_assigned_managed_identity() as source:
        assert (source.current.username, source.current.lifetime) == (
            "mi",
            pytest.approx(3600, abs=2),
        )
    assert imds.asked == 1


@pytest.mark.parametrize(
    ("status", "asked", "says"), [(400, 1, "Assign the identity"), (429, 3, "fewer requests")]
)
async def test_managed_identity_that_is_refused(imds, status: int, asked: int, says: str):
    imds.status = status
    from aioentra_redis._schedule import RetryConfig, TokenRefreshConfig

    refresh = TokenRefreshConfig(retry=RetryConfig(initial_delay=0, max_delay=10))
    source = TokenSource.from_system_assigned_managed_identity(refresh=refresh)
    if status == 429:
        # It asks for 7 s: too long to wait for here, long enough to be noticed.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await source.start()
        assert source.status.last_error.retry_after == 7
        assert says in str(source.status.last_error)
        asked = 1
    else:
        with pytest.raises(TokenAcquisitionError, match=says):
            await source.start()
    assert imds.asked == asked  # azure's own retries are off
    await source.aclose()


def test_fetched_wraps_at_once():
    fetched = Fetched.of(INFO)
    assert (fetched.expires_on, fetched.refresh_on) == (2_000_000_000, 1_900_000_000)
    assert Fetched.of(AccessToken(RAW, 5)).refresh_on is None
