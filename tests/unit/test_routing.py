"""Where each command goes: the tables, and every way to spell a name."""

from __future__ import annotations

from typing import Any

import pytest

from aioentra_redis._multiplex._routing import (
    READ_ONLY,
    REMEDIES,
    REMEDIES_WITH_TOKENS,
    Route,
    checked_overrides,
    command_words,
    is_read_only,
    remedy,
    route,
    route_in_pipeline,
    static_route,
)
from aioentra_redis.errors import ConfigurationError

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
        *((name, Route.DEDICATED) for name in [*BLOCKING, *OUT_OF_BAND, "HIMPORT SET", "DEBUG"]),
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


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("words", sorted(REMEDIES))
def test_each_refusal_says_what_to_use_instead(words: str):
    """A call of ours, an argument, or why there is no use for it at all."""
    text = remedy(words)
    assert any(hint in text for hint in ("redis.", "`db=", "himport_", "have no use")), text


@pytest.mark.parametrize("words", ["WAIT", "WAITAOF"])
def test_durability_is_asked_where_the_writes_were(words: str):
    assert "redis.pipeline(transaction=False)" in remedy(words)
    assert "redis.client()" in remedy(words)


def test_what_is_refused_with_tokens_only():
    for words in REMEDIES_WITH_TOKENS:
        assert route((words, "x")) is Route.SHARED
        assert route((words, "x"), with_tokens=True) is Route.REFUSED
        assert "another client" in remedy(words)


# ----------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("routes", "args", "expected"),
    [
        ({"MY.BLOCKING": "dedicated"}, ("MY.BLOCKING", "k"), Route.DEDICATED),
        ({"my.blocking": "dedicated"}, (b"My.Blocking", "k"), Route.DEDICATED),
        ({"MY.BLOCKING": "dedicated"}, ("MY.OTHER", "k"), Route.SHARED),
        ({"EVAL": "dedicated"}, ("EVAL", "return 1", 0), Route.DEDICATED),
        ({"XREAD": "dedicated"}, ("XREAD", "STREAMS", "s", "0"), Route.DEDICATED),
        ({"XREADGROUP": "dedicated"}, ("XREAD", "STREAMS", "s", "0"), Route.SHARED),
        # A subcommand, in both spellings; a container stands for all of its subcommands.
        ({"CONFIG GET": "dedicated"}, ("CONFIG GET", "x"), Route.DEDICATED),
        ({"CONFIG GET": "dedicated"}, ("CONFIG", b"get", "x"), Route.DEDICATED),
        ({"CONFIG GET": "dedicated"}, ("CONFIG", "SET", "x", 1), Route.SHARED),
        ({"CONFIG GET": "dedicated"}, ("CONFIG",), Route.SHARED),
        ({"CONFIG": "dedicated"}, ("CONFIG", "SET", "x", 1), Route.DEDICATED),
        ({"CONFIG": "dedicated"}, ("CONFIG GET", "x"), Route.DEDICATED),
        ({"SCRIPT": "dedicated"}, ("SCRIPT", "EXISTS", "x"), Route.DEDICATED),
        ({"SCRIPT": "dedicated"}, ("SCRIPT",), Route.DEDICATED),
        ({"SCRIPT": "dedicated", "SCRIPT EXISTS": "shared"}, ("SCRIPT EXISTS", "x"), Route.SHARED),
        ({"SCRIPT": "dedicated", "SCRIPT EXISTS": "shared"}, ("SCRIPT", "LOAD"), Route.DEDICATED),
        # What the tables forbid stays forbidden, whatever is said of the container.
        ({"SCRIPT": "dedicated"}, ("SCRIPT", "DEBUG", "YES"), Route.REFUSED),
        ({"CLIENT": "dedicated"}, ("CLIENT REPLY", "OFF"), Route.REFUSED),
        ({"CLIENT": "shared"}, ("CLIENT", "KILL", "x"), Route.DEDICATED),
        ({"HIMPORT": "shared"}, ("HIMPORT", "SET", "k", "f", 1), Route.DEDICATED),
        ({"GET": "shared"}, ("GET", "k"), Route.SHARED),
        ({"BLPOP": "dedicated"}, ("BLPOP", "k", 0), Route.DEDICATED),
        (None, ("MY.BLOCKING", "k"), Route.SHARED),
    ],
)
def test_the_users_routes(routes: Any, args: tuple[Any, ...], expected: Route):
    overrides = checked_overrides(routes)
    assert route(args, overrides=overrides) is expected
    by_name = static_route(command_words(args[:1]), overrides=overrides)
    assert by_name in (expected, None)


@pytest.mark.parametrize(
    ("routes", "text"),
    [
        *(({name: "shared"}, "everybody's commands waiting") for name in BLOCKING),
        *(({name: "shared"}, "everybody's") for name in ("XREAD", "XREADGROUP", "TS.READ")),
        *(({name: "shared"}, "must not stand behind") for name in OUT_OF_BAND),
        ({"HIMPORT SET": "shared"}, "prepared for each connection"),
        ({"DEBUG PROTOCOL": "shared"}, "no reply, which would shift everybody's"),
        *(({name: "shared"}, "redis|db=|himport|no use") for name in REFUSED),
        *(({name: "dedicated"}, "redis|db=|himport|no use") for name in REFUSED),
        *(
            ({name: goal}, "ends or resets its connection")
            for name in ("HELLO", "QUIT", "RESET", "SHUTDOWN")
            for goal in ("shared", "dedicated")
        ),
        ({"AUTH": "dedicated"}, "another client for another user"),
        ({"multi": "shared"}, "can't make MULTI shared"),
        ({"GET": "refused"}, '"shared" or "dedicated", not to .refused'),
        ({"GET": True}, "not to True"),
        ({"": "shared"}, "names of commands"),
        ({b"GET": "shared"}, "names of commands"),
        ({"A B C": "shared"}, "names of commands"),
        (["GET"], "is a mapping"),
    ],
)
def test_routes_that_would_break_the_shared_connection_are_refused(routes: Any, text: str):
    with pytest.raises(ConfigurationError, match=text):
        checked_overrides(routes)


@pytest.mark.parametrize(
    ("args", "queued", "immediate"),
    [
        (("GET", "k"), Route.SHARED, Route.SHARED),
        (("MY.MODULE",), Route.SHARED, Route.SHARED),
        (("BLPOP", "k", 0), Route.DEDICATED, Route.DEDICATED),
        (("XREAD", "BLOCK", 0, "STREAMS", "s", 0), Route.DEDICATED, Route.DEDICATED),
        (("HIMPORT SET", "k", "f"), Route.DEDICATED, Route.DEDICATED),
        (("WAIT", 1, 0), Route.DEDICATED, Route.DEDICATED),
        (("waitaof", 1, 0, 0), Route.DEDICATED, Route.DEDICATED),
        (("UNWATCH",), Route.DEDICATED, Route.DEDICATED),
        (("DISCARD",), Route.DEDICATED, Route.DEDICATED),
        (("WATCH", "k"), Route.REFUSED, Route.DEDICATED),
        *(((name,), Route.REFUSED, Route.REFUSED) for name in ("MULTI", "EXEC", "SELECT")),
        *(((name,), Route.REFUSED, Route.REFUSED) for name in ("QUIT", "RESET", "SHUTDOWN")),
        (("CLIENT", "REPLY", "OFF"), Route.REFUSED, Route.REFUSED),
        (("HELLO", 3), Route.REFUSED, Route.REFUSED),
        (("AUTH", "user", "token"), Route.REFUSED, Route.REFUSED),
    ],
)
def test_routes_in_pipelines(args: tuple[Any, ...], queued: Route, immediate: Route):
    """What would change a connection that goes back to the pool is refused there, too."""
    alone = route(args, with_tokens=True)
    assert route_in_pipeline(args, alone) is queued
    assert route_in_pipeline(args, alone, immediate=True) is immediate
    if Route.REFUSED in (queued, immediate):
        assert remedy(command_words(args))
