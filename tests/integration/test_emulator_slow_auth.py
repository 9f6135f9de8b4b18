"""Sign-ins that the front is told to delay hold up what follows on their connection only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from support.raw_client import RawClient
from support.resp import pack

from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

OK = ("+", b"OK")
WRONGPASS = ("-", b"WRONGPASS invalid username-password pair or user is disabled.")


@pytest.fixture(params=[False, True], ids=["plaintext", "tls"])
async def client(
    entra_emulator: Emulator, request: pytest.FixtureRequest
) -> AsyncIterator[RawClient]:
    async with RawClient(entra_emulator, tls=request.param) as client:
        yield client


@pytest.fixture
async def plain(entra_emulator: Emulator) -> AsyncIterator[RawClient]:
    async with RawClient(entra_emulator) as client:
        yield client


@pytest.fixture
def oid(entra_emulator: Emulator) -> str:
    return entra_emulator.service_principal.object_id


def hello(oid: str, token: str) -> bytes:
    return pack("HELLO", "2", "AUTH", oid, token)


@pytest.mark.parametrize("command", ["AUTH", "HELLO"])
async def test_a_slow_sign_in_holds_up_what_follows_and_nobody_else(
    client: RawClient, entra_emulator: Emulator, oid: str, command: str
):
    token = await entra_emulator.issue_token()
    async with RawClient(entra_emulator) as other:
        for each in (client, other):
            assert await each.call("AUTH", oid, token) == OK
        await entra_emulator.delay_auth(3600)
        sign_in = pack("AUTH", oid, token) if command == "AUTH" else hello(oid, token)
        client.send(pack("INCR", "n") * 3 + sign_in + pack("INCR", "n") * 3)
        await asyncio.sleep(0.05)
        client.send(pack("INCR", "n"))
        assert [await client.reply() for _ in range(3)] == [(":", b"1"), (":", b"2"), (":", b"3")]
        assert await other.call("INCR", "n") == (":", b"4")
        assert len((await entra_emulator.log()).auths) == 2  # it is still being delayed
        await entra_emulator.heal()
        assert (await client.reply())[0] in "+*"
        assert [await client.reply() for _ in range(4)] == [
            (":", b"5"),
            (":", b"6"),
            (":", b"7"),
            (":", b"8"),
        ]


@pytest.mark.parametrize("command", ["AUTH", "HELLO"])
async def test_slow_sign_ins_in_a_row(
    plain: RawClient, entra_emulator: Emulator, oid: str, command: str
):
    token = await entra_emulator.issue_token()
    await entra_emulator.delay_auth(0.1)
    sign_in = pack("AUTH", oid, token) if command == "AUTH" else hello(oid, token)
    begin = time.perf_counter()
    plain.send((sign_in + pack("PING")) * 3)
    for _ in range(3):
        assert (await plain.reply())[0] in "+*"
        assert await plain.reply() == ("+", b"PONG")
    assert time.perf_counter() - begin >= 0.3


async def test_healing_ends_a_delay(plain: RawClient, entra_emulator: Emulator, oid: str):
    await entra_emulator.delay_auth(3600)
    plain.send(pack("AUTH", oid, await entra_emulator.issue_token()) + pack("PING"))
    await asyncio.sleep(0.05)
    await entra_emulator.heal()
    assert [await plain.reply(), await plain.reply()] == [OK, ("+", b"PONG")]


async def test_a_delay_outlasts_the_token(plain: RawClient, entra_emulator: Emulator, oid: str):
    await entra_emulator.delay_auth(0.3)
    assert await plain.call("AUTH", oid, await entra_emulator.issue_token(lifetime=0.2)) == (
        WRONGPASS
    )
    assert [each.reason for each in (await entra_emulator.log()).auths] == ["expired"]
