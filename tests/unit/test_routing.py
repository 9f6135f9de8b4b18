"""Where each command goes: the tables, and every way to spell a name."""

from __future__ import annotations

from typing import Any

import pytest

from aioentra_redis._multiplex._routing import (
    READ_ONLY,
    REMEDIES,
    Route,
    command_words,
    is_read_only,
    remedy,
    route,
    static_route,
)

BLOCKING = [
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BLMOVE",
    "BLMPOP",
    "BLMOVEM",
    "BZPOPMIN",
    "BZPOPMAX",
    "BZMPOP",
]
OUT_OF_BAND = [
    "SCRIPT KILL",
    "FUNCTION KILL",
    "FUNCTION STATS",
    "CLIENT UNPAUSE",
    "CLIENT UNBLOCK",
    "CLIENT KILL",
]
REFUSED = [
    "SELECT",
    "MULTI",
    "EXEC",
    "DISCARD",
    "WATCH",
    "UNWATCH",
    "SUBSCRIBE",
    "PSUBSCRIBE",
    "SSUBSCRIBE",
    "UNSUBSCRIBE",
    "PUNSUBSCRIBE",
    "SUNSUBSCRIBE",
    "MONITOR",
    "SYNC",
    "PSYNC",
    "REPLCONF",
    "ASKING",
    "READONLY",
    "READWRITE",
    "WAIT",
    "WAITAOF",
    "CLIENT REPLY",
    "CLIENT TRACKING",
    "CLIENT CACHING",
    "SCRIPT DEBUG",
    "HIMPORT PREPARE",
    "HIMPORT DISCARD",
    "HIMPORT DISCARDALL",
]


def spellings(name: str) -> list[tuple[Any, ...]]:
    """The ways in which redis-py and its users pass a name."""
    words = name.split()
    apart = tuple(words)
    return [
        (name, "x"),
        (*apart, "x"),
        (*(word.lower() for word in apart), "x"),
        (*(word.encode() for word in apart), b"x"),
        (name.lower().encode(), "x"),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, Route.DEDICATED) for name in [*BLOCKING, *OUT_OF_BAND, "HIMPORT SET"]),
        *((name, Route.REFUSED) for name in REFUSED),
        *((name, Route.LAST) for name in ("HELLO", "QUIT", "RESET", "SHUTDOWN")),
        *(
            (name, Route.SHARED)
            for name in (
                "GET",
                "SET",
                "CLIENT ID",
                "CLIENT SETNAME",
                "SCRIPT LOAD",
                "FUNCTION LOAD",
                "HIMPORT X",
                "EVAL",
                "FT.SEARCH",
                "SOMETHING.NEW",
                "WATCHDOG",
                "CONFIG GET",
                "LPOP",
            )
        ),
    ],
)
def test_the_table(name: str, expected: Route):
    for args in spellings(name):
        assert route(args) is expected, args
        words = command_words(args)
        assert static_route(words) in (expected, None)
        if expected is Route.REFUSED:
            assert remedy(words)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("XREAD", "COUNT", 1, "STREAMS", "s", "0"), Route.SHARED),
        (("XREAD", "COUNT", 1, "BLOCK", 100, "STREAMS", "s", "0"), Route.DEDICATED),
        (("XREAD", b"block", 0, "STREAMS", "s", "$"), Route.DEDICATED),
        (("XREAD", "STREAMS", "BLOCK", "0"), Route.SHARED),
        (("XREAD", "streams", b"block", "0"), Route.SHARED),
        (("XREADGROUP", "GROUP", "g", "c", "BLOCK", 1, "STREAMS", "s", ">"), Route.DEDICATED),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"), Route.SHARED),
        (("XREAD BLOCK", 5, "STREAMS", "s", "0"), Route.DEDICATED),
        ((b"xread", memoryview(b"BLOCK"), 5), Route.DEDICATED),
        (("XREADGROUP", "GROUP", "streams", "c", "BLOCK", 1, "STREAMS", "s", ">"), Route.DEDICATED),
        (("XREADGROUP", "GROUP", "block", "block", "STREAMS", "s", ">"), Route.SHARED),
        (("TS.READ", "BLOCK", 1), Route.DEDICATED),
        (("XREAD",), Route.SHARED),
        (("CLIENT",), Route.SHARED),
    ],
)
def test_reading_streams_is_shared_unless_it_blocks(args: tuple[Any, ...], expected: Route):
    assert route(args) is expected
    words = command_words(args[:1])
    assert static_route(words) is None, "its arguments decide"


def test_read_only_commands_are_not_among_the_refused():
    assert READ_ONLY.isdisjoint(REMEDIES)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("GET", True),
        ("XREAD", True),
        ("CLIENT LIST", True),
        ("CONFIG GET", True),
        ("MEMORY USAGE", True),
        ("XINFO STREAM", True),
        # What follows may write, and must not be run twice.
        ("SET", False),
        ("INCR", False),
        ("GETDEL", False),
        ("GETEX", False),
        ("XREADGROUP", False),
        ("EVAL", False),
        ("FCALL", False),
        ("SORT", False),
        ("GEORADIUS", False),
        ("BITFIELD", False),
        ("CONFIG SET", False),
        ("CONFIG", False),
        ("ACL SETUSER", False),
        ("CLIENT KILL", False),
        ("SCRIPT LOAD", False),
        ("PFMERGE", False),
        ("SPOP", False),
        ("TOUCH", False),
        ("PUBLISH", False),
        ("FT.SEARCH", False),
        ("UNKNOWN", False),
    ],
)
def test_what_may_be_sent_again(words: str, expected: bool):
    assert is_read_only(words) is expected
