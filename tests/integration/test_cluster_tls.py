"""A cluster that names strangers: in its topology, in a MOVED, in an ASK. None gets a token."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trustme
from redis import exceptions as redis_exceptions
from redis.cluster import LoadBalancingStrategy
from support.eavesdropper import Eavesdropper, certified
from support.scripted_peer import Peer, bulk
from support.token_fakes import CANARY, Clock, Credential, source_of

from aioentra_redis import EntraRedisCluster, TokenSource
from aioentra_redis.errors import ConnectError

LOW, HIGH = "{b}", "{a}"  # keys of slots 3300 and 15495


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


class Entry(Peer):
    """The node that a client knows, called localhost; whom else it names, ``other`` says."""

    def __init__(self) -> None:
        super().__init__(COMMAND=self.known, CLUSTER=self.slots, READONLY=lambda *_: b"+OK\r\n")
        self.other: tuple[str, int] | None = None
        self.as_replica = False

    def slots(self, *words: bytes) -> bytes:
        if words[1].upper() != b"SLOTS":
            return bulk("id-of-the-entry")
        mine = b"*3\r\n" + bulk("127.0.0.1") + b":%d\r\n" % self.port + bulk("id-of-the-entry")
        if self.other is None:
            return b"*1\r\n*3\r\n:0\r\n:16383\r\n" + mine
        host, port = self.other
        others = b"*3\r\n" + bulk(host) + b":%d\r\n" % port + bulk("id-of-another")
        if self.as_replica:
            return b"*1\r\n*4\r\n:0\r\n:16383\r\n" + mine + others
        low, high = b"*3\r\n:0\r\n:8191\r\n" + mine, b"*3\r\n:8192\r\n:16383\r\n" + others
        return b"*2\r\n" + low + high

    def known(self, *_: bytes) -> bytes:
        one = b"*10\r\n%b:-2\r\n*1\r\n+%b\r\n:1\r\n:1\r\n:1\r\n" + 4 * b"*0\r\n"
        return b"*2\r\n" + one % (bulk("get"), b"readonly") + one % (bulk("set"), b"write")


@contextlib.asynccontextmanager
async def cluster_of(
    entry: Entry,
    authority: tuple[trustme.CA, str],
    source: TokenSource,
    name: str = "localhost",
    **options: Any,
) -> AsyncIterator[EntraRedisCluster]:
    ca, ca_file = authority
    async with entry.serve(certified(ca, "localhost", name)) as port:
        tls = {"ssl": True, "ssl_ca_certs": ca_file}
        async with EntraRedisCluster(
            "localhost", port, token_source=source, recovery_timeout=6, **tls, **options
        ) as client:
            yield client


def topology(entry: Entry, host: str, port: int) -> None:
    entry.other = (host, port)


def replica(entry: Entry, host: str, port: int) -> None:
    entry.other, entry.as_replica = (host, port), True


def redirect(word: str) -> Callable[[Entry, str, int], None]:
    def redirects(entry: Entry, host: str, port: int) -> None:
        entry.script["GET"] = lambda *_: f"-{word} 15495 {host}:{port}\r\n".encode()

    redirects.__name__ = word.lower()
    return redirects


NAMED = [topology, replica, redirect("MOVED"), redirect("ASK")]


@pytest.mark.parametrize("named", NAMED, ids=lambda each: each.__name__)
async def test_a_stranger_with_a_valid_certificate_of_its_own_gets_no_token(
    source: TokenSource, authority: tuple[trustme.CA, str], named: Any
) -> None:
    entry, stranger = Entry(), Eavesdropper()
    options: dict[str, Any] = {}
    if named is replica:
        options["load_balancing_strategy"] = LoadBalancingStrategy.ROUND_ROBIN
    async with stranger.listening(certified(authority[0], "127.0.0.1")):
        named(entry, "127.0.0.1", stranger.port)
        async with cluster_of(entry, authority, source, **options) as client:
            for _ in range(2 if named is replica else 1):
                with contextlib.suppress(redis_exceptions.RedisError):
                    await client.get(HIGH)
            assert await client.set(LOW, "value")
        assert bytes(stranger.heard) == b""


async def test_the_error_says_what_the_certificate_had_to_be_for(
    source: TokenSource, authority: tuple[trustme.CA, str]
) -> None:
    entry, stranger = Entry(), Eavesdropper()
    async with stranger.listening(certified(authority[0], "127.0.0.1")):
        topology(entry, "127.0.0.1", stranger.port)
        async with cluster_of(entry, authority, source) as client:
            with pytest.raises(ConnectError, match="It had to be for 'localhost'"):
                await client.get(HIGH)
            assert await client.get(LOW) is None
    assert bytes(stranger.heard) == b""


@pytest.mark.parametrize("named", NAMED[:1] + NAMED[2:], ids=lambda each: each.__name__)
async def test_who_takes_every_name_for_true_would_have_sent_it(
    source: TokenSource, authority: tuple[trustme.CA, str], named: Any
) -> None:
    """So the tests above can fail."""
    entry, stranger = Entry(), Eavesdropper()
    async with stranger.listening(certified(authority[0], "127.0.0.1")):
        named(entry, "127.0.0.1", stranger.port)
        anybody: Any = {"name": "127.0.0.1", "node_tls_names": "advertised"}
        async with cluster_of(entry, authority, source, **anybody) as client:
            with pytest.raises(redis_exceptions.RedisError):
                await client.get(HIGH)
    assert CANARY.encode() in stranger.heard


@pytest.mark.parametrize("named", NAMED[:1] + NAMED[2:], ids=lambda each: each.__name__)
async def test_a_node_that_proves_to_be_the_entry_is_used(
    source: TokenSource, authority: tuple[trustme.CA, str], named: Any
) -> None:
    entry, other = Entry(), Peer(ASKING=lambda *_: b"+OK\r\n", CLUSTER=lambda *_: bulk("other"))
    other.values[HIGH.encode()] = b"found"
    async with other.serve(certified(authority[0], "localhost")) as port:
        named(entry, "127.0.0.1", port)
        async with cluster_of(entry, authority, source) as client:
            assert await client.get(HIGH) == b"found"
