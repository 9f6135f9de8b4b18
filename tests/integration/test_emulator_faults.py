"""What the emulator does to connections: black holes, half-open ones, cuts, garbage, certificates.

Told with a client without opinions; what ours makes of all this is in tests/faults.
"""

from __future__ import annotations

import asyncio
import ssl
import time

import pytest
from support.raw_client import RawClient
from support.resp import pack

from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

OK = ("+", b"OK")


@pytest.fixture(params=[False, True], ids=["plaintext", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


async def sign_in(emulator: Emulator, client: RawClient) -> int:
    """Sign the client in; returns its connection's number."""
    oid = emulator.service_principal.object_id
    assert await client.call("AUTH", oid, await emulator.issue_token()) == OK
    return (await emulator.log()).auths[-1].connection


async def silent(client: RawClient, seconds: float = 0.1) -> bool:
    """Whether nothing comes for so long."""
    try:
        async with asyncio.timeout(seconds):
            await client.reply()
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("execute", [False, True])
async def test_a_black_hole_lets_everything_pass_when_healed(
    entra_emulator: Emulator, tls: bool, execute: bool
) -> None:
    async with RawClient(entra_emulator, tls=tls) as client, RawClient(entra_emulator) as other:
        number = await sign_in(entra_emulator, client)
        await sign_in(entra_emulator, other)
        assert await entra_emulator.freeze_connections(connection=number, execute=execute) == 1
        client.send(pack("INCR", "n") + pack("INCR", "n"))
        assert await silent(client)
        assert await other.call("GET", "n") == ("$", b"2" if execute else None)
        await entra_emulator.heal()
        assert [await client.reply() for _ in range(2)] == [(":", b"1"), (":", b"2")]
        assert await client.call("PING") == ("+", b"PONG")


async def test_connections_made_into_a_black_hole(entra_emulator: Emulator, tls: bool) -> None:
    assert await entra_emulator.freeze_connections(new=True) == 0
    async with RawClient(entra_emulator, tls=tls) as client:
        client.send(pack("PING"))
        assert await silent(client)
        await entra_emulator.heal()
        assert (await client.reply())[0] == "-"  # NOAUTH
    async with RawClient(entra_emulator, tls=tls) as client:
        assert await client.call("PING")


async def test_what_expires_in_a_black_hole_is_told_when_healed(entra_emulator: Emulator) -> None:
    async with RawClient(entra_emulator) as client:
        oid = entra_emulator.service_principal.object_id
        assert await client.call("AUTH", oid, await entra_emulator.issue_token(lifetime=1)) == OK
        assert await entra_emulator.freeze_connections() == 1
        client.send(pack("PING"))
        async with asyncio.timeout(10):
            while not (await entra_emulator.log()).closes:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)
        assert await silent(client)
        await entra_emulator.heal()
        assert await client.ended()
    assert [each.reason for each in (await entra_emulator.log()).closes] == ["expiry"]


async def test_a_half_open_connection_is_reset_when_the_host_is_back(
    entra_emulator: Emulator, tls: bool
) -> None:
    async with RawClient(entra_emulator, tls=tls) as client:
        number = await sign_in(entra_emulator, client)
        assert await entra_emulator.abandon_connections(connection=number) == 1
        client.send(pack("SET", "key", "value"))
        assert await silent(client)
        await entra_emulator.heal()
        with pytest.raises(ConnectionResetError):
            await client.reply()
    async with RawClient(entra_emulator) as client:
        await sign_in(entra_emulator, client)
        assert await client.call("GET", "key") == ("$", None)


@pytest.mark.parametrize("after", [0, 1, 5, 8])
async def test_a_cut_is_at_the_byte_and_a_reset(
    entra_emulator: Emulator, tls: bool, after: int
) -> None:
    async with RawClient(entra_emulator, tls=tls) as client:
        number = await sign_in(entra_emulator, client)
        assert await entra_emulator.cut_replies(after, connection=number) == 1
        client.send(pack("ECHO", "abc") + pack("ECHO", "d"))
        got, error = await client.raw_until_error()
        assert isinstance(error, ConnectionResetError)
        assert got == b"$3\r\nabc\r\n$1\r\nd\r\n"[:after]


async def test_raw_bytes_among_the_replies(entra_emulator: Emulator, tls: bool) -> None:
    async with RawClient(entra_emulator, tls=tls) as client:
        number = await sign_in(entra_emulator, client)
        assert await entra_emulator.inject_reply(b"+\xffsurprise\r\n", connection=number) == 1
        assert await client.reply() == ("+", b"\xffsurprise")
        assert await client.call("PING") == ("+", b"PONG")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("expired", "certificate has expired"),
        ("other-name", "Hostname mismatch"),
        ("unknown-ca", "unable to get local issuer"),
    ],
)
async def test_other_certificates(entra_emulator: Emulator, kind: str, reason: str) -> None:
    async with RawClient(entra_emulator, tls=True) as open_before:
        await entra_emulator.present_certificate(kind)  # type: ignore[arg-type]
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            await RawClient(entra_emulator, tls=True).__aenter__()
        await sign_in(entra_emulator, open_before)
        await entra_emulator.heal()
        async with RawClient(entra_emulator, tls=True) as client:
            await sign_in(entra_emulator, client)


async def test_sign_ins_that_are_never_answered(entra_emulator: Emulator, tls: bool) -> None:
    oid = entra_emulator.service_principal.object_id
    token = await entra_emulator.issue_token()
    await entra_emulator.hang_auth(times=1)
    async with RawClient(entra_emulator, tls=tls) as client, RawClient(entra_emulator) as other:
        client.send(pack("AUTH", oid, token) + pack("PING"))
        assert await silent(client)
        await sign_in(entra_emulator, other)
        await entra_emulator.heal()
        assert [await client.reply(), await client.reply()] == [OK, ("+", b"PONG")]


async def test_one_who_gives_up_on_a_hanging_sign_in_is_noticed(entra_emulator: Emulator) -> None:
    await entra_emulator.hang_auth()
    async with RawClient(entra_emulator) as client:
        client.send(pack("AUTH", "somebody", "token"))
        assert await silent(client)
    async with asyncio.timeout(5):
        while await entra_emulator.connections():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def test_a_server_that_is_loading_says_so_and_then_serves(entra_emulator: Emulator) -> None:
    async with RawClient(entra_emulator) as client:
        await sign_in(entra_emulator, client)
        for number in range(500):
            client.send(pack("SET", f"key:{number}", "x" * 100))
        assert [await client.reply() for _ in range(500)] == [OK] * 500
    started = time.monotonic()
    await entra_emulator.restart_server(keep_data=True, loading=2.0)
    async with RawClient(entra_emulator) as client:
        await sign_in(entra_emulator, client)
        assert await client.call("GET", "key:1") == (
            "-",
            b"LOADING Valkey is loading the dataset in memory",
        )
        async with asyncio.timeout(10):
            while (await client.call("GET", "key:1"))[0] == "-":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert time.monotonic() - started > 1.6
        assert await client.call("DBSIZE") == (":", b"500")


async def test_bad_faults(entra_emulator: Emulator) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        await entra_emulator.cut_replies(-1)
    with pytest.raises(ValueError, match="no kind of certificate: 'nice'"):
        await entra_emulator.present_certificate("nice")  # type: ignore[arg-type]
    assert await entra_emulator.freeze_connections(connection=123456) == 0


async def test_reset_ends_every_fault(entra_emulator: Emulator) -> None:
    async with RawClient(entra_emulator) as client:
        number = await sign_in(entra_emulator, client)
        await entra_emulator.freeze_connections(new=True)
        await entra_emulator.abandon_connections(connection=number)
        await entra_emulator.hang_auth()
        await entra_emulator.present_certificate("expired")
        await entra_emulator.reset()
        assert await client.ended()
    async with RawClient(entra_emulator, tls=True) as client:
        await sign_in(entra_emulator, client)
