"""Connections whose server must be somebody else than the host that is dialled, as a cluster's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
import trustme
from support.eavesdropper import Eavesdropper, certified
from support.scripted_peer import Peer
from support.token_fakes import CANARY, Clock, Credential, source_of

from aioentra_redis import EntraRedis, TokenSource
from aioentra_redis._cluster._addresses import Destination, destination, in_slots
from aioentra_redis._tls_names import tls_names
from aioentra_redis.errors import ConnectError

ENTRY = "cache.example"


@pytest.fixture
async def source() -> AsyncIterator[TokenSource]:
    clock = Clock()
    async with source_of(Credential(clock), clock) as made:
        yield made


@pytest.fixture
def authority(tmp_path: Any) -> tuple[trustme.CA, str]:
    made = trustme.CA()
    file = tmp_path / "ca.pem"
    made.cert_pem.write_to_path(file)
    return made, str(file)


@contextlib.asynccontextmanager
async def client_at(
    where: Destination, ca_file: str, source: TokenSource
) -> AsyncIterator[EntraRedis]:
    """What a node's client is: the host that was advertised, and the name to verify."""
    pool = redis.asyncio.ConnectionPool(
        connection_class=redis.asyncio.SSLConnection,
        host=where.host,
        port=where.port,
        tls_name=where.tls_name,
        ssl_ca_certs=ca_file,
        ssl_check_hostname=True,
        protocol=3,
    )
    async with EntraRedis.from_pool(pool, token_source=source, recovery_timeout=2) as client:
        yield client


def advertised(host: str, port: int, rule: Any = "entry") -> Destination:
    """Where a client of the entry goes for a node of CLUSTER SLOTS."""
    names = tls_names([ENTRY], rule)
    found = destination(in_slots([host.encode(), port, b"id"]), asked="127.0.0.1", names=names)
    assert isinstance(found, Destination)
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
async def test_a_node_shows_the_certificate_of_the_entry(
    source: TokenSource, authority: tuple[trustme.CA, str], host: str
) -> None:
    ca, ca_file = authority
    peer = Peer()
    async with (
        peer.serve(certified(ca, ENTRY)) as port,
        client_at(advertised(host, port), ca_file, source) as client,
    ):
        assert await client.set("key", "value")
        # Connections of the pool are verified in the same way as the shared one.
        async with client.client() as alone:
            assert await alone.get("key") == b"value"
    assert len(peer.connections) == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
async def test_a_host_with_a_certificate_of_its_own_gets_no_token(
    source: TokenSource, authority: tuple[trustme.CA, str], host: str
) -> None:
    """A topology reply names a stranger whose certificate is perfectly valid, for itself."""
    ca, ca_file = authority
    stranger = Eavesdropper()
    context = certified(ca, "127.0.0.1", "localhost", "evil.example")
    async with stranger.listening(context):
        where = advertised(host, stranger.port)
        async with client_at(where, ca_file, source) as client:
            for _ in range(2):
                with pytest.raises(ConnectError) as caught:
                    await client.get("key")
                assert caught.value.stage == "tls"
                assert f"It had to be for '{ENTRY}'" in str(caught.value)
                assert "node_tls_names=" in str(caught.value)
            with pytest.raises(ConnectError, match="It had to be for"):
                async with client.client() as alone:
                    await alone.get("key")
        assert bytes(stranger.heard) == b""
        # It would have taken one: who trusts replies without limit sends it.
        where = advertised(host, stranger.port, "advertised")
        async with client_at(where, ca_file, source) as client:
            with pytest.raises(ConnectError):
                await client.get("key")
        assert CANARY.encode() in stranger.heard


async def test_names_below_the_entry_are_verified_as_themselves(
    source: TokenSource, authority: tuple[trustme.CA, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, ca_file = authority
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        return await resolve("127.0.0.1" if host == "n1." + ENTRY else host, *args, **options)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    peer, entry_only = Peer(), Eavesdropper()
    async with (
        peer.serve(certified(ca, "n1." + ENTRY)) as port,
        client_at(advertised("n1." + ENTRY, port), ca_file, source) as client,
    ):
        assert await client.ping()
    async with entry_only.listening(certified(ca, ENTRY)):
        where = advertised("n1." + ENTRY, entry_only.port)
        async with client_at(where, ca_file, source) as client:
            with pytest.raises(ConnectError, match="Hostname mismatch"):
                await client.ping()
    assert bytes(entry_only.heard) == b""


@pytest.mark.parametrize(
    "rule",
    ["advertised", lambda host, port: "localhost", ["localhost"]],
    ids=["advertised", "callable", "names"],
)
async def test_nodes_with_certificates_of_their_own_need_the_users_word(
    source: TokenSource, authority: tuple[trustme.CA, str], rule: Any
) -> None:
    ca, ca_file = authority
    peer = Peer()
    async with (
        peer.serve(certified(ca, "localhost")) as port,
        client_at(advertised("localhost", port, rule), ca_file, source) as client,
    ):
        assert await client.ping()
