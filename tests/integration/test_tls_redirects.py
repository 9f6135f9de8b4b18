"""Who sends a client elsewhere does not get its token there: redirects, topology, maintenance."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
import trustme
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from support.eavesdropper import Eavesdropper, certified
from support.scripted_peer import HELLO, OK, Peer
from support.token_fakes import CANARY, Clock, Credential, source_of

from aioentra_redis import EntraRedis, TokenSource, entra_kwargs
from aioentra_redis.errors import ClusterModeError

NAMES = ("ours", "plain")


def options() -> dict[str, Any]:
    return {"retry": Retry(NoBackoff(), 0), "protocol": 3}


@pytest.fixture
async def source() -> AsyncIterator[TokenSource]:
    clock = Clock()
    async with source_of(Credential(clock), clock) as made:
        yield made


@contextlib.asynccontextmanager
async def client_of(kind: str, source: TokenSource, port: int, **more: Any) -> AsyncIterator[Any]:
    where = {"host": "127.0.0.1", "port": port, **options(), **more}
    made: Any
    if kind == "ours":
        made = EntraRedis(token_source=source, recovery_timeout=2, **where)
    else:
        made = Redis(**where, **entra_kwargs(source))
    try:
        yield made
    finally:
        with contextlib.suppress(redis.RedisError):
            await made.aclose()


@pytest.mark.parametrize("word", ["MOVED", "ASK"])
@pytest.mark.parametrize("kind", NAMES)
async def test_a_redirect_is_an_error_and_nobody_is_dialed(
    source: TokenSource, kind: str, word: str
) -> None:
    stranger = Eavesdropper()
    async with stranger.listening(None):
        answer = f"-{word} 1234 127.0.0.1:{stranger.port}\r\n".encode()
        peer = Peer(GET=lambda *_: answer)
        async with peer.serve() as port, client_of(kind, source, port) as client:
            moved = kind == "ours" and word == "MOVED"
            expected = ClusterModeError if moved else redis.ResponseError
            with pytest.raises(expected):
                await client.get("key")
            assert await client.ping()
    assert bytes(stranger.heard) == b""
    assert stranger.dials == 0


@pytest.mark.parametrize("kind", NAMES)
async def test_a_loopback_name_that_leads_elsewhere(
    source: TokenSource, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is what counts: asked for by name, and looked at on the open connection."""
    looked_at: list[str] = []

    def is_loopback(host: str) -> bool:
        looked_at.append(host)
        return False

    monkeypatch.setattr("aioentra_redis._redis_py._peer.is_loopback", is_loopback)
    stranger = Eavesdropper()
    async with stranger.listening(None), client_of(kind, source, stranger.port) as client:
        for _ in range(2):
            with pytest.raises((redis.ConnectionError, ValueError), match="not this machine"):
                await client.ping()
    assert set(looked_at) == {"127.0.0.1"}
    assert bytes(stranger.heard) == b""


async def test_sentinel_names_a_master_whose_certificate_is_for_another(
    source: TokenSource, tmp_path: Any
) -> None:
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    stranger = Eavesdropper()

    class Lying:
        sentinels = ()

        async def discover_master(self, name: str) -> tuple[str, int]:
            return ("localhost", stranger.port)

    async with stranger.listening(certified(authority, "cache.example")):
        tls = {"ssl": True, "ssl_ca_certs": str(ca_file)}
        pool = SentinelConnectionPool("cache", Lying(), **options(), **tls)
        async with EntraRedis.from_pool(pool, token_source=source, recovery_timeout=1) as client:
            with pytest.raises(redis.ConnectionError, match="Hostname mismatch"):
                await client.ping()
    assert bytes(stranger.heard) == b""


# ------------------------------------------------------------------------------- maintenance

MOVING = b">4\r\n$6\r\nMOVING\r\n:1\r\n:60\r\n$%d\r\n%b\r\n"
"""Server to client: connect to that endpoint within 60 s."""


def moving(host: str, port: int) -> bytes:
    endpoint = f"{host}:{port}".encode()
    return MOVING % (len(endpoint), endpoint)


async def until_moved(client: Any, host: str) -> None:
    """redis-py has heard of it: its pool makes connections to the other host from now on."""
    async with asyncio.timeout(5):
        while client.connection_pool.connection_kwargs["host"] != host:
            with contextlib.suppress(redis.RedisError):
                await client.ping()
            await asyncio.sleep(0.01)


async def reconnect(client: Any) -> Any:
    """Have every connection made anew; returns what that ends with."""
    await client.connection_pool.disconnect()
    try:
        return await client.ping()
    except Exception as error:
        return error


@pytest.mark.capability("maintenance_notifications")
@pytest.mark.parametrize("kind", NAMES)
async def test_a_server_in_clear_moves_its_clients_to_another_machine(
    source: TokenSource, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioentra_redis._redis_py._peer.is_loopback", lambda host: host != "::1")
    heard: list[bytes] = []
    peer = Peer(HELLO=lambda *_: HELLO, CLIENT=lambda *_: OK)

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1 << 16))
        writer.transport.abort()

    async with peer.serve() as port:
        try:
            stranger = await asyncio.start_server(take, "::1", port)
        except OSError:
            pytest.skip("no IPv6 here")
        async with stranger, client_of(kind, source, port) as client:
            assert await client.ping()
            peer.push(moving("::1", port))
            await until_moved(client, "::1")
            error = await reconnect(client)
            assert "not this machine" in str(error), error
    assert CANARY.encode() not in b"".join(heard)


@pytest.mark.capability("maintenance_notifications")
@pytest.mark.parametrize("kind", NAMES)
async def test_a_server_with_tls_moves_its_clients_where_the_certificate_does_not_fit(
    source: TokenSource, kind: str, tmp_path: Any
) -> None:
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    peer, stranger = Peer(HELLO=lambda *_: HELLO, CLIENT=lambda *_: OK), Eavesdropper()
    tls = {"ssl": True, "ssl_ca_certs": str(ca_file)}
    # What a client of redis-py's verifies is the endpoint that the server has named; ours, that it
    # is who was connected to: a valid certificate of somebody else's will not do.
    theirs = certified(authority, "127.0.0.2" if kind == "ours" else "127.0.0.1")
    async with (
        peer.serve(certified(authority, "127.0.0.1")) as port,
        stranger.listening(theirs, "127.0.0.2", port),
        client_of(kind, source, port, **tls) as client,
    ):
        assert await client.ping()
        peer.push(moving("127.0.0.2", port))
        await until_moved(client, "127.0.0.2")
        error = await reconnect(client)
        assert "IP address mismatch" in str(error), error
    assert bytes(stranger.heard) == b""


@pytest.mark.capability("maintenance_notifications")
async def test_a_server_with_tls_moves_its_clients_to_another_address_of_its_own(
    source: TokenSource, tmp_path: Any
) -> None:
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    tls = {"ssl": True, "ssl_ca_certs": str(ca_file)}
    old, new = Peer(CLIENT=lambda *_: OK), Peer(CLIENT=lambda *_: OK)
    context = certified(authority, "127.0.0.1")
    async with (
        old.serve(context) as port,
        new.serve(context, "127.0.0.2", port),
        client_of("ours", source, port, **tls) as client,
    ):
        assert await client.ping()
        old.push(moving("127.0.0.2", port))
        async with asyncio.timeout(10):
            while old.open:
                assert await client.ping()
                await asyncio.sleep(0.01)
        assert await client.ping()
        assert len(new.open) == len(old.connections) == 1
