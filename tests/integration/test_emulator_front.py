"""The front enforces tokens as Azure does, and is transparent in everything else."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import AuthenticationError, NoPermissionError
from support.raw_client import RawClient
from support.resp import pack

from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

OK = ("+", b"OK")
WRONGPASS = ("-", b"WRONGPASS invalid username-password pair or user is disabled.")
NOAUTH = ("-", b"NOAUTH Authentication required.")


@pytest.fixture(params=[False, True], ids=["plaintext", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


@pytest.fixture
async def client(entra_emulator: Emulator, tls: bool) -> AsyncIterator[RawClient]:
    async with RawClient(entra_emulator, tls=tls) as client:
        yield client


@pytest.fixture
async def plain(entra_emulator: Emulator) -> AsyncIterator[RawClient]:
    async with RawClient(entra_emulator) as client:
        yield client


@pytest.fixture
def oid(entra_emulator: Emulator) -> str:
    return entra_emulator.service_principal.object_id


def hello(protocol: int, oid: str, token: str) -> tuple[str, ...]:
    return ("HELLO", str(protocol), "AUTH", oid, token)


# ------------------------------------------------------------------------------------- good tokens


@pytest.mark.parametrize("protocol", [2, 3])
async def test_sign_in(client: RawClient, entra_emulator: Emulator, oid: str, protocol: int):
    kind, _ = await client.call(*hello(protocol, oid, await entra_emulator.issue_token()))
    assert kind == ("*" if protocol == 2 else "%")
    assert await client.call("ACL", "WHOAMI") == ("$", oid.encode())
    [attempt] = (await entra_emulator.log()).auths
    assert (attempt.accepted, attempt.reason, attempt.command) == (True, None, "HELLO")
    assert attempt.object_id == oid


@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py(entra_emulator: Emulator, oid: str, tls: bool, protocol: int):
    options: dict[str, Any] = {"ssl_ca_certs": entra_emulator.ca_file} if tls else {}
    url = entra_emulator.url if tls else entra_emulator.plaintext_url
    async with redis.asyncio.Redis.from_url(
        url,
        username=oid,
        password=await entra_emulator.issue_token(),
        protocol=protocol,
        **options,
    ) as client:
        async with client.pipeline(transaction=True) as pipe:
            replies = await pipe.set("key", "value").get("key").incr("n").execute()
        assert replies == [True, b"value", 1]
        async with client.pubsub() as subscription:
            await subscription.subscribe("news")
            assert (await subscription.get_message(timeout=2))["type"] == "subscribe"
            await client.publish("news", "hello")
            assert (await subscription.get_message(timeout=2))["data"] == b"hello"


async def test_an_oid_in_capitals(client: RawClient, entra_emulator: Emulator, oid: str):
    assert await client.call("AUTH", oid.upper(), await entra_emulator.issue_token()) == OK
    assert await client.call("ACL", "WHOAMI") == ("$", oid.encode())


async def test_inline_commands(plain: RawClient, entra_emulator: Emulator, oid: str):
    plain.send(f"AUTH {oid} {await entra_emulator.issue_token()}\r\nPING\r\n".encode())
    assert [await plain.reply(), await plain.reply()] == [OK, ("+", b"PONG")]


# -------------------------------------------------------------------------------------- bad tokens

NOT_SIGNED_IN = {
    "forged": "wrong signature",
    "opaque": "not a JWT",
    "audience": "wrong audience",
    "tenant": "wrong issuer",
    "expired": "expired",
    "no oid": "no oid",
    "other oid": "the user name is not the oid",
    "other user": "the user name is not the oid",
    "unassigned": "no access policy assignment",
    "revoked": "revoked",
    "on demand": "refused on demand",
}


async def spoil(emulator: Emulator, kind: str) -> tuple[str, str]:
    """A user name and a token that must be refused."""
    oid = emulator.service_principal.object_id
    changes: dict[str, dict[str, Any]] = {
        "forged": {"forged": True},
        "opaque": {"opaque": True},
        "audience": {"audience": "https://vault.azure.net"},
        "tenant": {"tenant_id": "11111111-0000-4000-8000-000000000000"},
        "expired": {"extra": {"exp": int(time.time()) - 1}},
        "no oid": {"without": ("oid",)},
        "other oid": {"oid": emulator.user_assigned.object_id},
        "unassigned": {"oid": "11111111-0000-4000-8000-000000000001"},
    }
    await emulator.next_tokens(**changes.get(kind, {}))
    if kind == "revoked":
        await emulator.revoke(oid)
    if kind == "on demand":
        await emulator.refuse_auth()
    user = {"other user": emulator.user_assigned.object_id, "unassigned": changes["unassigned"]}
    name = user.get(kind, oid)
    return str(name["oid"] if isinstance(name, dict) else name), await emulator.issue_token()


@pytest.mark.parametrize("kind", NOT_SIGNED_IN)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_bad_tokens(
    client: RawClient, entra_emulator: Emulator, oid: str, protocol: int, kind: str
):
    user, token = await spoil(entra_emulator, kind)
    assert await client.call("HELLO", str(protocol), "AUTH", user, token) == WRONGPASS
    assert await client.call("AUTH", user, token) == WRONGPASS
    assert await client.call("GET", "key") == NOAUTH
    auths = (await entra_emulator.log()).auths
    assert [(each.accepted, each.reason) for each in auths] == [(False, NOT_SIGNED_IN[kind])] * 2
    assert [each.command for each in auths] == ["HELLO", "AUTH"]
    # The connection lives on and a good token signs it in.
    await entra_emulator.heal()
    assert await client.call("AUTH", oid, await entra_emulator.issue_token()) == OK


async def test_redis_py_sees_what_azure_users_see(entra_emulator: Emulator, oid: str):
    async with redis.asyncio.Redis.from_url(
        entra_emulator.plaintext_url, username=oid, password="no token"
    ) as client:
        with pytest.raises(AuthenticationError):
            await client.ping()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("PING",), NOAUTH),
        (("HELLO", "3"), None),
        (("AUTH", "access-key"), WRONGPASS),
        (("AUTH", "default", "x"), WRONGPASS),
        (("AUTH", "emulator", "x"), WRONGPASS),
        (("AUTH", "a", "b", "c"), ("-", b"ERR syntax error")),
    ],
)
async def test_without_a_token(
    plain: RawClient, arguments: tuple[str, ...], expected: tuple[str, bytes] | None
):
    kind, text = await plain.call(*arguments)
    assert kind == "-"
    assert (kind, text) == expected or expected is None


# ------------------------------------------------------------------------------------- permissions


@pytest.mark.parametrize(
    ("policy", "allowed", "denied"),
    [
        ("owner", ["SET", "GET", "KEYS", "INFO", "CLUSTER", "SUBSCRIBE"], []),
        ("contributor", ["SET", "GET", "CLUSTER", "SUBSCRIBE"], ["KEYS", "INFO"]),
        ("reader", ["GET", "CLUSTER"], ["SET", "INFO", "SUBSCRIBE"]),
    ],
)
async def test_policies(
    plain: RawClient,
    entra_emulator: Emulator,
    oid: str,
    policy: Any,
    allowed: list[str],
    denied: list[str],
):
    await entra_emulator.set_policy(oid, policy)
    await plain.call(*hello(3, oid, await entra_emulator.issue_token()))
    commands = {
        "SET": ("SET", "key", "value"),
        "GET": ("GET", "key"),
        "KEYS": ("KEYS", "*"),
        "INFO": ("INFO",),
        "CLUSTER": ("CLUSTER", "INFO"),
        "SUBSCRIBE": ("SUBSCRIBE", "news"),
    }
    refused = []
    for name in allowed + denied:
        kind, text = await plain.call(*commands[name])
        if kind == "-" and isinstance(text, bytes) and text.startswith(b"NOPERM"):
            refused.append(name)
    assert refused == denied


async def test_a_policy_changes_under_open_connections(entra_emulator: Emulator, oid: str):
    async with redis.asyncio.Redis.from_url(
        entra_emulator.plaintext_url, username=oid, password=await entra_emulator.issue_token()
    ) as client:
        await client.set("key", "value")
        await entra_emulator.set_policy(oid, "reader")
        with pytest.raises(NoPermissionError):
            await client.set("key", "other")
        assert await client.get("key") == b"value"


@pytest.mark.parametrize("command", ["CONFIG", "DEBUG", "SAVE", "SHUTDOWN", "MIGRATE"])
async def test_commands_that_azure_does_not_have(
    plain: RawClient, entra_emulator: Emulator, oid: str, command: str
):
    await plain.call("AUTH", oid, await entra_emulator.issue_token())
    kind, text = await plain.call(command)
    assert kind == "-"
    assert isinstance(text, bytes)
    assert text.startswith(f"ERR unknown command '{command}'".encode())


# ------------------------------------------------------------------------------- re-authentication


SHORT = 1.0
"""Seconds that a token lives whose end is waited for: some round trips fit in, however busy the
machine is."""


async def after_expiry(emulator: Emulator, number: int) -> None:
    """Wait until a token, by its place in the log, is expired, and what that ends has ended."""
    expires_on = (await emulator.log()).tokens[number].expires_on
    await asyncio.sleep(max(0.0, expires_on - time.time()) + 0.1)


async def test_expiry_closes_the_connection(
    client: RawClient, entra_emulator: Emulator, oid: str, tls: bool
):
    token = await entra_emulator.issue_token(lifetime=SHORT)
    assert await client.call("AUTH", oid, token) == OK
    assert await client.ended()
    ended = time.time()
    log = await entra_emulator.log()
    [close], [issued] = log.closes, log.tokens
    assert (close.reason, close.object_id) == ("expiry", oid)
    assert issued.expires_on <= close.time <= ended


async def test_a_newer_token_extends_in_the_middle_of_a_pipeline(
    client: RawClient, entra_emulator: Emulator, oid: str
):
    newer = await entra_emulator.issue_token(lifetime=60)
    assert await client.call("AUTH", oid, await entra_emulator.issue_token(lifetime=SHORT)) == OK
    client.send(
        pack("SET", "key", "value") + pack("AUTH", oid, newer) + pack("GET", "key") + pack("PING")
    )
    replies = [await client.reply() for _ in range(4)]
    assert replies == [OK, OK, ("$", b"value"), ("+", b"PONG")]
    await after_expiry(entra_emulator, 1)
    assert await client.call("PING") == ("+", b"PONG")
    [connection] = await entra_emulator.connections()
    assert connection.expires_on == (await entra_emulator.log()).tokens[0].expires_on


async def test_a_shorter_token_brings_the_end_nearer(
    plain: RawClient, entra_emulator: Emulator, oid: str
):
    for lifetime in (60, SHORT):
        token = await entra_emulator.issue_token(lifetime=lifetime)
        assert await plain.call("AUTH", oid, token) == OK
    assert await plain.ended()


async def test_a_refused_token_keeps_the_session_until_its_own_end(
    client: RawClient, entra_emulator: Emulator, oid: str
):
    newer = await entra_emulator.issue_token()
    assert await client.call("AUTH", oid, await entra_emulator.issue_token(lifetime=SHORT)) == OK
    await entra_emulator.refuse_auth(1)
    assert await client.call("AUTH", oid, newer) == WRONGPASS
    assert await client.call("PING") == ("+", b"PONG")
    assert await client.ended()
    assert [each.reason for each in (await entra_emulator.log()).closes] == ["expiry"]


async def test_auth_inside_multi_does_not_extend(
    plain: RawClient, entra_emulator: Emulator, oid: str
):
    newer = await entra_emulator.issue_token()
    assert await plain.call("AUTH", oid, await entra_emulator.issue_token(lifetime=SHORT)) == OK
    plain.send(pack("MULTI") + pack("AUTH", oid, newer) + pack("PING") + pack("EXEC"))
    replies = [await plain.reply() for _ in range(4)]
    assert replies == [OK, ("+", b"QUEUED"), ("+", b"QUEUED"), ("*", [OK, ("+", b"PONG")])]
    assert [each.reason for each in (await entra_emulator.log()).auths] == [
        None,
        "queued inside MULTI",
    ]
    assert await plain.ended()


async def test_auth_after_a_refused_multi_does_extend(
    plain: RawClient, entra_emulator: Emulator, oid: str
):
    # A reader may not MULTI: what follows is no transaction, whatever the client thinks.
    await entra_emulator.set_policy(oid, "reader")
    newer = await entra_emulator.issue_token()
    assert await plain.call("AUTH", oid, await entra_emulator.issue_token(lifetime=SHORT)) == OK
    plain.send(pack("MULTI") + pack("AUTH", oid, newer))
    assert (await plain.reply())[0] == "-"
    assert await plain.reply() == OK
    await after_expiry(entra_emulator, 1)
    assert await plain.call("GET", "key") == ("$", None)


async def test_a_good_token_that_the_server_refuses_does_not_extend(
    plain: RawClient, entra_emulator: Emulator, oid: str
):
    # In RESP2, a connection that has subscribed can't AUTH.
    newer = await entra_emulator.issue_token()
    assert await plain.call("AUTH", oid, await entra_emulator.issue_token(lifetime=SHORT)) == OK
    assert (await plain.call("SUBSCRIBE", "news"))[0] == "*"
    kind, text = await plain.call("AUTH", oid, newer)
    assert kind == "-"
    assert isinstance(text, bytes)
    assert text.startswith(b"ERR Can't execute 'auth'")
    assert await plain.ended()


async def test_resp3_extends_while_subscribed(plain: RawClient, entra_emulator: Emulator, oid: str):
    newer = await entra_emulator.issue_token()
    async with RawClient(entra_emulator) as other:
        await other.call("AUTH", oid, await entra_emulator.issue_token())
        await plain.call(*hello(3, oid, await entra_emulator.issue_token(lifetime=SHORT)))
        await plain.call("SUBSCRIBE", "news")
        await other.call("PUBLISH", "news", "before")
        plain.send(pack("AUTH", oid, newer))
        assert (await plain.reply())[0] == ">"
        assert await plain.reply() == OK
        await after_expiry(entra_emulator, 2)
        await other.call("PUBLISH", "news", "after")
        assert await plain.reply() == (">", [("$", b"message"), ("$", b"news"), ("$", b"after")])


async def test_monitor_never_extends(plain: RawClient, entra_emulator: Emulator, oid: str):
    newer = await entra_emulator.issue_token()
    await plain.call("AUTH", oid, await entra_emulator.issue_token(lifetime=SHORT))
    assert await plain.call("MONITOR") == OK
    plain.send(pack("AUTH", oid, newer))
    assert OK in await plain.until_end()
    assert [each.reason for each in (await entra_emulator.log()).closes] == ["expiry"]


# ------------------------------------------------------------------------------------ transparency


async def test_big_values(client: RawClient, entra_emulator: Emulator, oid: str, tls: bool):
    await client.call("AUTH", oid, await entra_emulator.issue_token())
    value = bytes(range(256)) * (200_000 if tls else 20_000)  # 51 MB, 5 MB
    assert await client.call("SET", "key", value) == OK
    _, found = await client.call("GET", "key")
    assert isinstance(found, bytes)
    assert hashlib.sha256(found).digest() == hashlib.sha256(value).digest()
    assert await client.call("AUTH", oid, await entra_emulator.issue_token()) == OK


async def test_a_reader_that_does_not_read_stops_the_server_not_the_front(
    plain: RawClient, entra_emulator: Emulator, oid: str
):
    await plain.call("AUTH", oid, await entra_emulator.issue_token())
    value = b"x" * 1_000_000
    await plain.call("SET", "key", value)
    plain.send(pack("GET", "key") * 60)
    await asyncio.sleep(0.3)
    async with RawClient(entra_emulator) as other:
        assert await other.call("AUTH", oid, await entra_emulator.issue_token()) == OK
    for _ in range(60):
        assert await plain.reply() == ("$", value)


async def test_a_long_transaction(plain: RawClient, entra_emulator: Emulator, oid: str):
    await plain.call("AUTH", oid, await entra_emulator.issue_token())
    plain.send(pack("MULTI") + pack("INCR", "n") * 5000 + pack("EXEC"))
    assert await plain.reply() == OK
    for _ in range(5000):
        assert await plain.reply() == ("+", b"QUEUED")
    assert await plain.reply() == ("*", [(":", b"%d" % n) for n in range(1, 5001)])


@pytest.mark.parametrize("garbage", [b"*1\r\n+PING\r\n", b"*x\r\n", b"*1\r\n$-5\r\n"])
async def test_bad_protocol_is_answered_by_the_server(plain: RawClient, garbage: bytes):
    plain.send(garbage)
    kind, text = await plain.reply()
    assert kind == "-"
    assert isinstance(text, bytes)
    assert b"Protocol error" in text
    assert await plain.ended()


@pytest.mark.parametrize(
    "command", [pack("QUIT"), pack("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")]
)
async def test_the_servers_own_closes(
    plain: RawClient, entra_emulator: Emulator, oid: str, command: bytes
):
    await plain.call("AUTH", oid, await entra_emulator.issue_token())
    plain.send(command)
    await plain.until_end()
    assert [each.reason for each in (await entra_emulator.log()).closes] == ["server"]


async def test_a_client_that_goes_away(entra_emulator: Emulator, oid: str):
    async with RawClient(entra_emulator, tls=True) as client:
        await client.call("AUTH", oid, await entra_emulator.issue_token())
    await until(entra_emulator, lambda closes: [each.reason for each in closes] == ["client"])


async def until(emulator: Emulator, satisfied: Callable[[list[Any]], bool]) -> None:
    async with asyncio.timeout(10):
        while not satisfied((await emulator.log()).closes):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def test_many_connections(entra_emulator: Emulator, oid: str):
    token = await entra_emulator.issue_token()

    async def one(number: int) -> None:
        async with RawClient(entra_emulator, tls=number % 10 == 0) as client:
            assert await client.call("AUTH", oid, token) == OK
            assert await client.call("ECHO", str(number)) == ("$", str(number).encode())

    await asyncio.gather(*(one(number) for number in range(100)))
    assert len((await entra_emulator.log()).auths) == 100
