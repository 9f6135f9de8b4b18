"""What is known of a command by its name: where it goes, and which of its words are keys."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import DataError
from support.cluster_place import ClusterPlace

from aioentra_redis._cluster._plans import Plan, plan_for
from aioentra_redis._multiplex import _connection


def entry(first: int, last: int, step: int, *flags: str, **more: Any) -> dict[str, Any]:
    return {
        "flags": set(flags),
        "first_key_pos": first,
        "last_key_pos": last,
        "step_count": step,
        **more,
    }


COMMANDS = {
    "get": entry(1, 1, 1, "readonly"),
    "set": entry(1, 1, 1),
    "del": entry(1, -1, 1),
    "mset": entry(1, -1, 2),
    "rename": entry(1, 2, 1),
    "blpop": entry(1, -2, 1, "blocking"),
    "ping": entry(0, 0, 0),
    "eval": entry(0, 0, 0, "movablekeys"),
    "sort": entry(1, 1, 1, "movablekeys"),
    "publish": entry(0, 0, 0, "pubsub"),
    "object": entry(
        0,
        0,
        0,
        subcommands=[
            [b"object|encoding", 3, [b"readonly"], 2, 2, 1],
            [b"object|help", 2, [], 0, 0, 0],
        ],
    ),
    "xread": entry(0, 0, 0, "movablekeys"),
}


def plan(name: Any, **options: Any) -> Plan:
    return plan_for(
        name,
        **{
            "commands": COMMANDS,
            "alone": False,
            "balances": False,
            "utf8": True,
            "with_tokens": False,
            "callbacks": {"GET": str},
            **options,
        },
    )


@pytest.mark.parametrize(
    ("name", "key", "more", "args", "keys"),
    [
        ("GET", 1, False, ("GET", "a"), ("a",)),
        ("get", 1, False, ("get", "a"), ("a",)),
        (b"GET", 1, False, (b"GET", "a"), ("a",)),
        ("SET", 1, False, ("SET", "a", "v", "EX", 1), ("a",)),
        ("DEL", 1, True, ("DEL", "a", "b"), ("a", "b")),
        ("MSET", 1, True, ("MSET", "a", 1, "b", 2), ("a", "b")),
        ("RENAME", 1, True, ("RENAME", "a", "b"), ("a", "b")),
        ("BLPOP", 1, True, ("BLPOP", "a", "b", 0), ("a", "b")),
        ("OBJECT ENCODING", 1, False, ("OBJECT ENCODING", "a"), ("a",)),
        ("EVAL", 0, True, ("EVAL", "s", 1, "a", "b"), ("a",)),
        ("XREAD", 0, True, ("XREAD", "STREAMS", "a", "0"), ("a",)),
    ],
)
def test_where_the_keys_are(
    name: Any, key: int, more: bool, args: tuple[Any, ...], keys: tuple[Any, ...]
):
    found = plan(name)
    assert (found.key, found.more) == (key, more)
    assert found.find is not None
    assert tuple(found.find(args)) == keys


@pytest.mark.parametrize("name", ["PING", "SORT", "PUBLISH", "OBJECT", "OBJECT HELP", "NO.SUCH"])
def test_what_is_redis_pys_parser_to_find_out(name: str):
    found = plan(name)
    assert (found.key, found.find) == (0, None)


def test_what_follows_from_the_name():
    assert plan("GET").shared
    assert plan("GET").read_only
    assert plan("GET").callback is str
    assert plan("OBJECT ENCODING").words == ("OBJECT", "ENCODING")
    assert not plan("BLPOP").shared
    assert not plan("SET").read_only
    assert plan("GET", balances=True).balanced
    assert not plan("SET", balances=True).balanced
    assert plan("GET", utf8=False).key == 0, "keys become bytes in another way"
    assert plan("GET", alone=True).find is None, "its keys don't say where it goes"


@pytest.mark.parametrize("name", [None, 1, "", " ", object()])
def test_what_is_no_name(name: Any):
    with pytest.raises(DataError, match="begins with its name"):
        plan(name)


@pytest.mark.looptime
async def test_the_straight_way_is_taken(monkeypatch):
    place = ClusterPlace()
    monkeypatch.setattr(_connection, "dial", place.dial)
    client = place.client()
    try:
        await asyncio.gather(*(client.get(place.key[port]) for port in (1, 2, 3)))
        await client.set(place.key[1], "v")
        detours: list[tuple[Any, ...]] = []
        detour = client._detour

        async def noted(*way: Any) -> Any:
            detours.append(way[0])
            return await detour(*way)

        monkeypatch.setattr(client, "_detour", noted)
        assert await client.set(place.key[1], "w", ex=60) is True
        assert await client.set(place.key[2], "w") is True
        assert await client.get(place.key[2].encode()) == b"w"
        assert detours == []
    finally:
        await place.aclose()
