"""What becomes of arguments and replies: as with redis-py, down to what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from support.scripted_peer import Peer

from aioentra_redis import EntraRedis

KINDS = (redis.asyncio.Redis, EntraRedis)


@contextlib.asynccontextmanager
async def served(**script: Any) -> AsyncIterator[Peer]:
    peer = Peer(**script)
    async with peer.serve():
        yield peer


@contextlib.asynccontextmanager
async def client_of(kind: Any, peer: Peer, **options: Any) -> AsyncIterator[Any]:
    async with kind(host="127.0.0.1", port=peer.port, **{"protocol": 3, **options}) as client:
        yield client


# ------------------------------------------------------------------------------- bad input


class Text(str):
    __slots__ = ()


class Number(int):
    pass


ARGUMENTS = [
    *(
        None,
        True,
        False,
        {},
        [],
        (),
        set(),
        object(),
        {"a": 1},
        ["a"],
        1j,
        range(3),
        Exception("x"),
    ),
    *("", b"", "\N{SNOWMAN}", b"\xff", 0, -1, 2**70, 1.5, float("inf"), Text("t"), Number(3)),
    *(bytearray(b"ba"), memoryview(b"mv"), memoryview(b"abcd")[::2]),
]


async def outcome(client: Any, peer: Peer, *args: Any) -> Any:
    """What reaches the server, or the class of the error that kept it from that."""
    before = len(peer.commands)
    try:
        await client.execute_command(*args)
    except redis_exceptions.DataError as exc:
        assert len(peer.commands) == before, "nothing was sent"
        return type(exc)
    return peer.commands[before:]


def _without_address(value: object) -> str:
    """An id that is the same in every process, as tests on several at once need it."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


@pytest.mark.parametrize("argument", ARGUMENTS, ids=_without_address)
@pytest.mark.parametrize("where", ["first argument", "behind a good one", "as bytes"])
async def test_what_redis_py_refuses_is_refused_and_what_it_sends_is_sent(
    argument: Any, where: str
):
    """memoryviews are the exception: redis-py's packers differ on them, we send their bytes."""
    args = {
        "first argument": ("ECHO", argument),
        "behind a good one": ("SET", "k" * 7000, argument),
        "as bytes": (b"ECHO", argument),
    }[where]
    outcomes = []
    async with served(ECHO=lambda *_: b"+x\r\n") as peer:
        for kind in KINDS[isinstance(argument, memoryview) :]:
            async with client_of(kind, peer) as client:
                await client.ping()
                outcomes.append(await outcome(client, peer, *args))
                assert await client.ping() is True, "and the connection is in step"
                if kind is EntraRedis:
                    assert client.auth_status()[0].in_flight == 0
    if isinstance(argument, memoryview):
        assert outcomes[0][0][-1] == bytes(argument)
    else:
        assert outcomes[1] == outcomes[0]


@pytest.mark.parametrize(
    "name",
    [*(None, True, 5, 1.5, {}, [], ["GET"], (), object(), "", b"", "  "), memoryview(b"GET")],
    ids=_without_address,
)
async def test_a_name_that_is_none_is_refused_before_anything_is_sent(name: Any):
    """redis-py raises DataError, TypeError or hangs; a program that catches DataError finds it."""
    async with served() as peer, client_of(EntraRedis, peer) as client:
        await client.ping()
        sent = len(peer.commands)
        for _ in range(2):
            with pytest.raises(redis_exceptions.DataError, match="begins with its name"):
                await client.execute_command(name, "k")
        with pytest.raises(redis_exceptions.DataError):
            await client.pipeline(transaction=False).execute_command(name, "k").execute()
        assert len(peer.commands) == sent
        assert await client.ping() is True


async def test_no_name_at_all_is_redis_pys_error():
    async with served() as peer:
        for kind in KINDS:
            async with client_of(kind, peer) as client:
                with pytest.raises(IndexError):
                    await client.execute_command()


async def test_names_with_spaces_around_them_are_names():
    async with served() as peer:
        for kind in KINDS:
            async with client_of(kind, peer) as client:
                await client.execute_command(" GET ", "k")
                assert peer.commands[-1] == [b"GET", b"k"]


# --------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decode_responses": True},
        {"encoding": "latin-1", "decode_responses": True},
        {"encoding": "latin-1"},
        {"encoding": "cp1252", "decode_responses": True},
        {"encoding": "utf-8", "encoding_errors": "replace", "decode_responses": True},
        {"encoding": "ascii", "encoding_errors": "ignore", "decode_responses": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_each_encoding_is_redis_pys(options: dict[str, Any], protocol: int):
    results = []
    async with served(DUMP=lambda *_: b"$3\r\n\xff\xfe\x00\r\n") as peer:
        for kind in KINDS:
            async with client_of(kind, peer, protocol=protocol, **options) as client:
                result: list[Any] = []
                for text in ("plain", "\xe9"):
                    try:
                        await client.set("k", text)
                    except UnicodeEncodeError as exc:
                        result.append(type(exc))
                    result += [dict(peer.values), await client.get("k")]
                for reply in (b"\xc3\xa9", b"\xe9"):
                    try:
                        result.append(await client.execute_command("ECHO", reply))
                    except UnicodeDecodeError as exc:
                        result.append(type(exc))
                result.append(await client.execute_command("DUMP", "k", **{NEVER_DECODE: []}))
                results.append(result)
                peer.values.clear()
    assert results[1] == results[0]
    assert results[1][-1] == b"\xff\xfe\x00"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_reply_that_cannot_be_decoded_fails_its_own_caller_only(protocol: int):
    script = {"BAD": lambda *_: b"*2\r\n$2\r\n\xff\xfe\r\n$2\r\nok\r\n"}
    async with (
        served(**script) as peer,
        client_of(EntraRedis, peer, protocol=protocol, decode_responses=True) as client,
    ):
        results = await asyncio.gather(
            client.set("k", "v"),
            *[each for _ in range(20) for each in (client.execute_command("BAD"), client.get("k"))],
            return_exceptions=True,
        )
        assert all(isinstance(each, UnicodeDecodeError) for each in results[1::2])
        assert results[2::2] == ["v"] * 20
        assert len(peer.connections) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_empty_response_stands_for_an_error_reply(kind: Any):
    async with (
        served(BAD=lambda *_: b"-ERR no\r\n", GOOD=lambda *_: b"*0\r\n") as peer,
        client_of(kind, peer) as client,
    ):
        for name, expected in (("BAD", "empty"), ("GOOD", [])):
            options = {EMPTY_RESPONSE: "empty"}
            assert await client.execute_command(name, **options) == expected
        options = {EMPTY_RESPONSE: "empty", NEVER_DECODE: []}
        assert await client.execute_command("BAD", **options) == "empty"


# -------------------------------------------------------------------------------- callbacks


def marked(mark: str) -> Any:
    return lambda reply, **options: (mark, reply, options)


CHANGES: dict[str, Any] = {
    "set_response_callback": lambda client: client.set_response_callback("GET", marked("new")),
    "an item": lambda client: client.response_callbacks.__setitem__("GET", marked("new")),
    "in lower case": lambda client: client.response_callbacks.__setitem__("get", marked("new")),
    "update": lambda client: client.response_callbacks.update({"get": marked("new")}),
    "or": lambda client: client.response_callbacks.__ior__({"GET": marked("new")}),
    "pop and setdefault": lambda client: (
        client.response_callbacks.pop("get"),
        client.response_callbacks.setdefault("get", marked("new")),
    ),
    "another dictionary": lambda client: setattr(
        client, "response_callbacks", {"GET": marked("new")}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_callback_holds_from_the_next_command_on_however_it_is_set(change: str):
    async with served() as peer, client_of(EntraRedis, peer) as client:
        client.response_callbacks["GET"] = marked("old")
        await client.set("k", "v")
        assert await client.get("k") == ("old", b"v", {})
        CHANGES[change](client)
        assert await client.get("k") == ("new", b"v", {})
        assert await client.pipeline(transaction=False).get("k").execute() == [("new", b"v", {})]


REMOVALS: dict[str, Any] = {
    "del": lambda callbacks: callbacks.__delitem__("get"),
    "pop": lambda callbacks: callbacks.pop("get"),
    "popitem": lambda callbacks: callbacks.popitem(),
    "clear": lambda callbacks: callbacks.clear(),
}


@pytest.mark.parametrize("removal", REMOVALS)
async def test_a_callback_that_is_gone_is_gone(removal: str):
    async with served() as peer, client_of(EntraRedis, peer) as client:
        await client.set("k", "v")
        client.response_callbacks["GET"] = marked("old")
        assert await client.get("k") == ("old", b"v", {})
        REMOVALS[removal](client.response_callbacks)
        assert await client.get("k") == b"v"
        assert client.response_callbacks.pop("GET", "none") == "none"
        with pytest.raises(KeyError):
            client.response_callbacks.pop("GET")


def test_a_callback_that_was_there_stays_with_setdefault():
    client = EntraRedis(host="localhost")
    client.response_callbacks["X"] = marked("mine")
    mine = client.response_callbacks["X"]
    assert client.response_callbacks.setdefault("x", marked("other")) is mine
