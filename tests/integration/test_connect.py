"""``connect()``: what it takes, how it fails, and what it opens."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.signing_in import client_of, secret_source, until_gone

from aioentra_redis import (
    ClusterModeError,
    ConfigurationError,
    ConnectError,
    ConnectTimeoutError,
    EntraRedis,
    InsecureConnectionError,
    LifecycleError,
    RetryConfig,
    TokenRefreshConfig,
    TokenSource,
    connect,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Resolve = Callable[[str, str], None]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Let a host name mean a loopback address, in this test and process."""
    genuine = socket.getaddrinfo
    names: dict[str, str] = {}

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        return genuine(names.get(host, host), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names.__setitem__


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("REDIS_URL", "AZURE_REDIS_HOST", "REDIS_HOST"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# ------------------------------------------------------------------------------------- it works


async def test_it_can_be_awaited_or_entered_and_owns_what_it_made(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        client = await client_of(entra_emulator, source)
        assert isinstance(client, EntraRedis)
        await client.set("greeting", "hello")
        await client.aclose()
        assert source.status.oid == entra_emulator.service_principal.object_id
        async with client_of(entra_emulator, source) as redis:
            assert await redis.get("greeting") == b"hello"
    auths = (await entra_emulator.log()).auths
    assert [each.accepted for each in auths] == [True, True]
    assert {each.object_id for each in auths} == {entra_emulator.service_principal.object_id}


async def test_what_it_returns_can_be_used_once(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        connecting = client_of(entra_emulator, source)
        async with connecting:
            with pytest.raises(LifecycleError, match="before"):
                await connecting


async def test_the_url_comes_from_the_environment(
    entra_emulator: Emulator, no_environment: pytest.MonkeyPatch
) -> None:
    no_environment.setenv("REDIS_URL", entra_emulator.url)
    async with (
        secret_source(entra_emulator) as source,
        connect(token_source=source, ssl_ca_certs=entra_emulator.ca_file) as redis,
    ):
        assert await redis.ping()


async def test_plaintext_on_loopback_signs_in_too(entra_emulator: Emulator) -> None:
    async with (
        secret_source(entra_emulator) as source,
        connect(entra_emulator.plaintext_url, token_source=source) as redis,
    ):
        assert await redis.acl_whoami() in _names(entra_emulator)


def _names(emulator: Emulator) -> tuple[bytes, str]:
    name = emulator.service_principal.object_id
    return name.encode(), name


async def test_the_object_id_in_the_url_is_fine(entra_emulator: Emulator) -> None:
    oid = entra_emulator.service_principal.object_id.upper()
    url = entra_emulator.url.replace("//", f"//{oid}@")
    async with (
        secret_source(entra_emulator) as source,
        connect(url, token_source=source, ssl_ca_certs=entra_emulator.ca_file) as redis,
    ):
        assert await redis.ping()


async def test_a_thousand_coroutines_share_one_connection(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:

        async def ask(number: int) -> bool:
            await redis.set(f"key:{number}", number)
            return int(await redis.get(f"key:{number}")) == number

        assert all(await asyncio.gather(*(ask(number) for number in range(1000))))
        assert len(await entra_emulator.connections()) == 1
        assert len(redis.auth_status()) == 1
    assert len((await entra_emulator.log()).auths) == 1


async def test_a_thousand_coroutines_that_come_first_share_one_connection_too(
    entra_emulator: Emulator,
) -> None:
    async with (
        secret_source(entra_emulator) as source,
        EntraRedis.from_url(
            entra_emulator.url, token_source=source, ssl_ca_certs=entra_emulator.ca_file
        ) as redis,
    ):
        assert set(await asyncio.gather(*(redis.incr("n") for _ in range(1000)))) == set(
            range(1, 1001)
        )
        assert len(await entra_emulator.connections()) == 1


async def test_a_client_with_its_own_source_closes_it(entra_emulator: Emulator) -> None:
    from azure.identity.aio import ClientSecretCredential

    principal = entra_emulator.service_principal
    async with ClientSecretCredential(
        entra_emulator.tenant_id,
        principal.client_id,
        principal.secret or "",
        **entra_emulator.credential_options,
    ) as credential:
        async with connect(
            entra_emulator.url, credential=credential, ssl_ca_certs=entra_emulator.ca_file
        ) as redis:
            source = redis.token_source
            assert source is not None
            assert await redis.ping()
        assert source.state.value == "closed"
        # The credential is ours and still works.
        assert (await credential.get_token("https://redis.azure.com/.default")).expires_on


# ------------------------------------------------------------- refused before a byte is sent

BAD_URLS = {
    "password": ("rediss://:secret@cache.example:6380", "password"),
    "password in the query": ("rediss://cache.example:6380?password=secret", "password"),
    "unknown scheme": ("http://cache.example:6380", "scheme 'http'"),
    "port too high": ("rediss://cache.example:65536", "port '65536'"),
    "port is no number": ("rediss://cache.example:tls", "port 'tls'"),
    "port zero": ("rediss://cache.example:0", "port '0'"),
    "no port": ("rediss://cache.example", "no port"),
    "no host": ("rediss://:6380", "no host"),
    "empty": ("", "empty"),
}


@pytest.mark.parametrize(("url", "words"), BAD_URLS.values(), ids=BAD_URLS)
def test_a_bad_url_is_a_value_error_that_says_which(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        connect(url)
    assert isinstance(caught.value, ConfigurationError)
    assert "secret" not in str(caught.value)


def test_no_url_anywhere(no_environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="REDIS_URL"):
        connect()


def test_a_bad_url_in_the_environment_names_the_variable(
    no_environment: pytest.MonkeyPatch,
) -> None:
    no_environment.setenv("AZURE_REDIS_HOST", "rediss://cache.example:banana")
    with pytest.raises(ValueError, match="AZURE_REDIS_HOST"):
        connect()


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenRefreshConfig(expiration_refresh_ratio=1.01),
        lambda: TokenRefreshConfig(expiration_refresh_ratio=0),
        lambda: TokenRefreshConfig(expiration_refresh_ratio=-0.5),
        lambda: TokenRefreshConfig(request_timeout=-1),
        lambda: RetryConfig(initial_delay=-0.1),
        lambda: RetryConfig(max_delay=-1),
        lambda: RetryConfig(max_attempts=0),
        lambda: RetryConfig(jitter_percentage=2),
        lambda: RetryConfig(backoff_multiplier=0.5),
        lambda: TokenSource.from_default(scopes=()),
        lambda: TokenSource.from_default(scopes=""),
        lambda: TokenSource.from_default(scopes=["https://redis.azure.com/.default", ""]),
        lambda: connect("rediss://cache.example:1", open_timeout=0),
        lambda: connect("rediss://cache.example:1", recovery_timeout=-1),
    ],
)
def test_bad_numbers_and_scopes_are_value_errors_at_construction(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each has words of its own
        make()
    assert isinstance(caught.value, ConfigurationError)


@pytest.mark.parametrize("host", ["cache.example", "10.1.2.3", "[2001:db8::1]"])
async def test_plaintext_to_another_machine_is_refused_before_a_token_is_asked_for(
    entra_emulator: Emulator, host: str
) -> None:
    source = secret_source(entra_emulator)
    with pytest.raises(InsecureConnectionError, match="clear text") as caught:
        await connect(f"redis://{host}:6379", token_source=source)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InsecureConnectionError):
        EntraRedis.from_url(f"redis://{host}:6379", token_source=source)
    with pytest.raises(InsecureConnectionError):
        EntraRedis(host=host.strip("[]"), port=6379, token_source=source)
    log = await entra_emulator.log()
    assert (log.tokens, log.requests) == ([], [])
    await source.aclose()


WEAK_TLS: dict[str, tuple[str, dict[str, Any]]] = {
    "host name, keyword": ("", {"ssl_check_hostname": False}),
    "host name, URL": ("?ssl_check_hostname=false", {}),
    "certificate, keyword": ("", {"ssl_cert_reqs": "none"}),
    "certificate, constant": (
        "",
        {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False},
    ),
    "certificate, optional": ("", {"ssl_cert_reqs": "optional"}),
    "certificate, URL": ("?ssl_cert_reqs=none", {}),
    "TLS 1.1": ("", {"ssl_min_version": ssl.TLSVersion.TLSv1_1}),
}


@pytest.mark.parametrize(("query", "keywords"), WEAK_TLS.values(), ids=WEAK_TLS)
async def test_weakened_tls_is_refused_before_a_token_is_asked_for(
    entra_emulator: Emulator, query: str, keywords: dict[str, Any]
) -> None:
    source = secret_source(entra_emulator)
    with pytest.raises(InsecureConnectionError, match="ssl_ca_certs") as caught:
        await connect(entra_emulator.url + query, token_source=source, **keywords)
    assert isinstance(caught.value, ValueError)
    assert (await entra_emulator.log()).requests == []
    await source.aclose()


@pytest.mark.parametrize(
    ("query", "keywords"),
    [
        ("", {"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
        ("?ssl_cert_reqs=none&ssl_check_hostname=false", {}),
    ],
    ids=["keywords", "URL"],
)
async def test_weakened_tls_can_be_allowed_and_warns(
    entra_emulator: Emulator, resolve: Resolve, query: str, keywords: dict[str, Any]
) -> None:
    resolve("cache.example", "127.0.0.1")
    url = entra_emulator.url.replace("localhost", "cache.example") + query
    async with secret_source(entra_emulator) as source:
        with pytest.warns(RuntimeWarning, match="insecure TLS"):
            redis = await connect(url, token_source=source, allow_insecure_tls=True, **keywords)
        assert await redis.ping()
        await redis.aclose()


# ----------------------------------------------------------------------- which stage has failed


async def test_dns(entra_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "cache.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return genuine(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ConnectError, match=r"'cache\.invalid' can't be resolved") as caught:
            await connect("rediss://cache.invalid:10000", token_source=source)
    assert (caught.value.stage, caught.value.host, caught.value.port) == (
        "dns",
        "cache.invalid",
        10000,
    )
    assert isinstance(caught.value.__cause__, Exception)


async def test_tcp_refused(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # nobody else is given it, and it does not listen
            port = silent.getsockname()[1]
            nobody = f"nothing listens at localhost:{port}"
            with pytest.raises(ConnectError, match=nobody) as caught:
                await connect(f"rediss://localhost:{port}", token_source=source)
    assert caught.value.stage == "tcp"
    assert "10000" in str(caught.value)


async def test_tls_that_is_never_answered(entra_emulator: Emulator, deaf_port: int) -> None:
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ConnectTimeoutError, match="did not answer in time") as caught:
            await connect(
                f"rediss://127.0.0.1:{deaf_port}", token_source=source, socket_connect_timeout=0.2
            )
    assert caught.value.port == deaf_port


async def test_open_timeout_covers_everything_and_leaves_nothing_open(
    entra_emulator: Emulator, deaf_port: int
) -> None:
    async with secret_source(entra_emulator) as source:
        async with asyncio.timeout(10):
            with pytest.raises(ConnectTimeoutError, match="open_timeout") as caught:
                await connect(
                    f"rediss://127.0.0.1:{deaf_port}", token_source=source, open_timeout=0.3
                )
    assert caught.value.stage == "tcp"


async def test_tls_with_a_certificate_for_another_name(
    entra_emulator: Emulator, resolve: Resolve
) -> None:
    resolve("cache.example", "127.0.0.1")
    url = entra_emulator.url.replace("localhost", "cache.example")
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ConnectError, match="is not accepted") as caught:
            await connect(url, token_source=source, ssl_ca_certs=entra_emulator.ca_file)
    assert caught.value.stage == "tls"
    assert "cache.example" in str(caught.value)
    assert "host name" in str(caught.value)
    assert (await entra_emulator.log()).auths == []


async def test_tls_with_an_unknown_ca(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ConnectError, match="ssl_ca_certs=") as caught:
            await connect(entra_emulator.url, token_source=source)
    assert caught.value.stage == "tls"
    assert (await entra_emulator.log()).auths == []


async def test_tls_to_a_plaintext_port(entra_emulator: Emulator) -> None:
    url = entra_emulator.plaintext_url.replace("redis://", "rediss://")
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ConnectError, match=r"no TLS connection|did not answer") as caught:
            await connect(url, token_source=source, socket_connect_timeout=1)
    assert "10000" in str(caught.value)


async def test_plaintext_to_a_tls_port(entra_emulator: Emulator) -> None:
    url = entra_emulator.url.replace("rediss://", "redis://")
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ConnectError, match="rediss://") as caught:
            await connect(url, token_source=source)
    assert caught.value.host == "localhost"


async def test_cluster_true_on_a_single_endpoint(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ClusterModeError, match="Leave out cluster=True"):
            await client_of(entra_emulator, source, cluster=True)
    await until_gone(entra_emulator)


async def test_cancelling_it_leaves_nothing_open(entra_emulator: Emulator) -> None:
    await entra_emulator.delay_auth(30)
    async with secret_source(entra_emulator) as source:
        connecting = asyncio.ensure_future(_opened(client_of(entra_emulator, source)))
        async with asyncio.timeout(5):
            while not await entra_emulator.connections():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
    # That our end is closed is what the leak check looks at. The emulator does not read while it
    # dawdles over an AUTH, so a TLS goodbye would wait for its answer.


async def _opened(connecting: Any) -> Any:
    return await connecting
