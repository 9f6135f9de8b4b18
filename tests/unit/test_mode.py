"""Is it a cluster? Asked with the sign-in, in its round trip; on the open connection where not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from support.scripted_peer import OK, Peer, bulk
from support.token_fakes import Clock, Credential, source_of
from support.wired import wired

from aioentra_redis import EntraRedis, TokenSource
from aioentra_redis._mode import is_cluster
from aioentra_redis._redis_py import asking
from aioentra_redis.errors import SignInRefusedError

virtual_time = pytest.mark.looptime

SLOTS = b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n" + bulk("10.0.0.1") + b":8501\r\n" + bulk("id")
NO_CLUSTER = b"-ERR This instance has cluster support disabled\r\n"
DENIED = b"-NOPERM this user has no permissions to run the 'cluster|slots' command\r\n"
ENTERPRISE = b"-ERR unknown command 'CLUSTER'\r\n"
NOT_YET = b"-NOAUTH Authentication required.\r\n"


def hello(mode: str) -> bytes:
    return b"%2\r\n" + bulk("proto") + b":3\r\n" + bulk("mode") + bulk(mode)


@pytest.mark.parametrize(
    ("slots", "said", "expected"),
    [
        ([[0, 16383]], {"mode": "standalone"}, True),
        ([], {"mode": "cluster"}, False),
        (redis_exceptions.ResponseError("cluster support disabled"), {"mode": "cluster"}, False),
        (redis_exceptions.NoPermissionError("no"), {b"mode": b"cluster"}, True),
        (redis_exceptions.NoPermissionError("no"), [b"mode", b"cluster"], True),
        (redis_exceptions.NoPermissionError("no"), {"mode": "standalone"}, False),
        (redis_exceptions.NoPermissionError("no"), {}, None),
        (redis_exceptions.NoPermissionError("no"), OSError(), None),
        (redis_exceptions.ConnectionError("lost"), {"mode": "cluster"}, None),
        (None, None, None),
    ],
)
def test_what_the_answers_mean(slots: Any, said: Any, expected: bool | None) -> None:
    assert is_cluster(slots, said) is expected


@pytest.fixture
async def source() -> AsyncIterator[TokenSource]:
    clock = Clock()
    async with source_of(Credential(clock), clock) as made:
        yield made


def client_of(peer: Peer, source: TokenSource, **options: Any) -> EntraRedis:
    pool = redis.asyncio.ConnectionPool(
        connection_class=wired(peer), host="localhost", **{"protocol": 3, **options}
    )
    return EntraRedis.from_pool(pool, token_source=source, recovery_timeout=1)


async def found_out(client: EntraRedis) -> bool:
    with asking(client.connection_pool) as answers:
        await client.start()
    return await client.is_cluster_node(answers)


def names(peer: Peer) -> list[str]:
    """Commands in order of arrival; redis-py's own of its name and version are left out."""
    return [words[0].decode() for words in peer.commands if words[0] != b"CLIENT"]


@virtual_time
@pytest.mark.parametrize(("protocol", "sign_in"), [(3, "HELLO"), (2, "AUTH")])
async def test_the_question_does_not_wait_for_the_sign_in(
    source: TokenSource, protocol: int, sign_in: str
) -> None:
    reply = hello("cluster") if protocol == 3 else OK
    # In one write: when the first of the two is looked at, the other one has arrived.
    seen: list[list[str]] = []

    def signing_in(*_: bytes) -> bytes:
        seen.append(names(peer))
        return reply

    peer = Peer(**{sign_in: signing_in}, CLUSTER=lambda *_: SLOTS)
    async with client_of(peer, source, protocol=protocol) as client:
        assert await found_out(client) is True
        assert seen == [[sign_in, "CLUSTER"]]
        assert names(peer) == [sign_in, "CLUSTER"]
        assert await client.ping()
        await client.connection_pool.disconnect()
        assert await client.ping()
    assert names(peer) == [sign_in, "CLUSTER", "PING", sign_in, "PING"], "asked once"


@virtual_time
@pytest.mark.parametrize("protocol", [3, 2])
@pytest.mark.parametrize(
    ("slots", "mode", "expected"),
    [
        (SLOTS, "standalone", True),
        (b"*0\r\n", "standalone", False),
        (NO_CLUSTER, "cluster", False),
        (ENTERPRISE, "cluster", False),
        (DENIED, "cluster", True),
        (DENIED, "standalone", False),
    ],
)
async def test_slots_count_and_the_mode_where_they_are_denied(
    source: TokenSource, protocol: int, slots: bytes, mode: str, expected: bool
) -> None:
    said = hello(mode)
    if protocol == 2:
        said = b"*4\r\n" + said.removeprefix(b"%2\r\n")
    peer = Peer(CLUSTER=lambda *_: slots, HELLO=lambda *_: said)
    async with client_of(peer, source, protocol=protocol) as client:
        assert await found_out(client) is expected
        assert await client.ping()
    # With RESP2 nobody has said HELLO: where slots are denied it is asked for.
    assert peer.seen("HELLO")[1:] == []
    assert len(peer.seen("HELLO")) == (protocol == 3 or slots is DENIED)


@virtual_time
@pytest.mark.parametrize("protocol", [3, 2])
async def test_a_server_that_had_not_finished_the_sign_in_is_asked_again(
    source: TokenSource, protocol: int
) -> None:
    said = hello("cluster") if protocol == 3 else b"*4\r\n" + hello("cluster")[4:]
    peer = Peer(CLUSTER=[NOT_YET, SLOTS], HELLO=lambda *_: said)
    async with client_of(peer, source, protocol=protocol) as client:
        assert await found_out(client) is True
        assert len(peer.seen("CLUSTER")) == 2
        assert peer.dials == 1
        assert await client.ping()


@virtual_time
@pytest.mark.parametrize(("protocol", "sign_in"), [(3, "HELLO"), (2, "AUTH")])
async def test_a_refused_sign_in_says_so(source: TokenSource, protocol: int, sign_in: str) -> None:
    refusal = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
    peer = Peer(**{sign_in: lambda *_: refusal}, CLUSTER=lambda *_: NOT_YET)
    client = client_of(peer, source, protocol=protocol)
    with pytest.raises(SignInRefusedError, match="refused the Entra token"):
        await found_out(client)
    await client.aclose()


@virtual_time
async def test_an_old_server_is_signed_in_to_in_the_old_way(source: TokenSource) -> None:
    """redis-py tries AUTH with the password alone; the answers stay in step."""
    wrong = b"-ERR wrong number of arguments for 'auth' command\r\n"
    peer = Peer(AUTH=[wrong, OK], CLUSTER=[NOT_YET, NO_CLUSTER], HELLO=lambda *_: ENTERPRISE)
    async with client_of(peer, source, protocol=2) as client:
        assert await found_out(client) is False
        assert names(peer) == ["AUTH", "CLUSTER", "AUTH", "HELLO", "CLUSTER"]
        assert await client.set("key", "value")


@virtual_time
async def test_a_connection_that_ends_at_the_question_fails_the_sign_in(
    source: TokenSource,
) -> None:
    peer = Peer(CLUSTER=lambda *_: "cut")
    client = client_of(peer, source)
    with pytest.raises(redis_exceptions.ConnectionError):
        await found_out(client)
    assert peer.open == []
    await client.aclose()
