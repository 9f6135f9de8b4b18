"""``entra_kwargs``: what a token is not sent to, and what a sign-in that fails says."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
from redis.asyncio import Redis
from support.plain_clients import (
    client_for,
    no_retries,
    tls,
)
from support.scripted_peer import Peer
from support.signing_in import (
    secret_source,
)

from aioentra_redis import (
    ConfigurationError,
    ConnectError,
    InsecureConnectionError,
    SignInRefusedError,
    entra_kwargs,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


async def test_no_token_goes_to_a_server_whose_name_is_not_checked(
    entra_emulator: Emulator,
) -> None:
    """Whatever redis-py's version checks by itself; the certificate is for localhost only."""
    url = entra_emulator.url.replace("localhost", "127.0.0.2")
    async with secret_source(entra_emulator) as source:
        client = Redis.from_url(url, **tls(entra_emulator), **no_retries(), **entra_kwargs(source))
        with pytest.raises(redis.ConnectionError):
            await client.ping()
        await client.aclose()
    assert (await entra_emulator.log()).auths == []


@pytest.mark.parametrize(
    "weakness",
    [
        pytest.param({"ssl_cert_reqs": "none"}, id="any certificate"),
        pytest.param({"ssl_cert_reqs": "optional"}, id="optional"),
        pytest.param({"ssl_min_version": ssl.TLSVersion.TLSv1_1}, id="TLS 1.1"),
        pytest.param(
            {"ssl_check_hostname": False},
            id="host name",
            marks=pytest.mark.skipif(
                redis.VERSION < (6,), reason="its default, so it is put right in silence"
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
async def test_weak_tls_is_refused_before_the_token_is_sent(
    entra_emulator: Emulator, weakness: dict[str, Any]
) -> None:
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source, **weakness)
        for _ in range(2):
            with pytest.raises(InsecureConnectionError):
                await client.ping()
        await client.aclose()
        assert (await entra_emulator.log()).auths == []

        options = {**tls(entra_emulator), **weakness}
        client = Redis.from_url(
            entra_emulator.url, **options, **entra_kwargs(source, allow_insecure_tls=True)
        )
        with pytest.warns(RuntimeWarning, match="insecure TLS allowed"):
            assert await client.ping()
        await client.aclose()


async def test_connections_that_connect_again_share_one_context(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source)
        pool = client.connection_pool
        connections = [await pool.get_connection() for _ in range(3)]
        assert len({id(each.ssl_context.context) for each in connections}) == 1
        for each in connections:
            await each.disconnect()
            await pool.release(each)
        assert await client.ping()
        await client.aclose()


async def test_the_context_that_a_class_brings_is_nobody_elses(entra_emulator: Emulator) -> None:
    """It may hold a client certificate."""

    class Own(redis.asyncio.connection.SSLConnection):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context.context = ssl.create_default_context(cafile=entra_emulator.ca_file)

    async with secret_source(entra_emulator) as source:
        shared = entra_kwargs(source)
        port = urlsplit(entra_emulator.url).port
        options = {"host": "localhost", "port": port, **tls(entra_emulator)}
        own, usual = (
            redis.asyncio.ConnectionPool(connection_class=kind, **options, **no_retries(), **shared)
            for kind in (Own, redis.asyncio.SSLConnection)
        )
        contexts = []
        for _ in range(2):
            for pool in (own, usual):
                connection = await pool.get_connection()
                contexts.append(connection.ssl_context.context)
                await connection.disconnect()
                await pool.release(connection)
        assert contexts[0] is contexts[2]
        assert contexts[1] is contexts[3]
        assert contexts[0] is not contexts[1]


async def test_a_password_or_provider_besides_is_refused_and_nothing_sent(
    entra_emulator: Emulator,
) -> None:
    async with secret_source(entra_emulator) as source:
        provider = redis.UsernamePasswordCredentialProvider("user", "pass")
        for options in ({"password": "pass"}, {"credential_provider": provider}):
            client = client_for(entra_emulator, source, **options)
            for _ in range(2):
                with pytest.raises(ConfigurationError, match="can't be combined"):
                    await client.ping()
            await client.aclose()
        client = client_for(entra_emulator, source, username="me@example.com")
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="not the object ID"):
                await client.ping()
        await client.aclose()
    assert (await entra_emulator.log()).auths == []


async def test_a_refused_sign_in_says_why_and_leaves_no_open_connection(
    entra_emulator: Emulator,
) -> None:
    async with secret_source(entra_emulator) as source:
        await entra_emulator.refuse_auth(1)
        client = client_for(entra_emulator, source)
        with pytest.raises(SignInRefusedError, match="no access policy assignment"):
            await client.ping()
        assert await client.ping()
        await client.aclose()


async def test_a_wrong_port_is_named_as_such(entra_emulator: Emulator) -> None:
    """A handshake that is answered with something else than expected."""
    peer = Peer(HELLO=lambda *_: b"-ERR unknown command\r\n", AUTH=lambda *_: b"-ERR no\r\n")
    async with secret_source(entra_emulator) as source, peer.serve() as port:
        client = Redis(port=port, host="127.0.0.1", **no_retries(), **entra_kwargs(source))
        with pytest.raises(ConnectError):
            await client.ping()
        await client.aclose()
