"""What a redis-py connection owes its owner, whatever pieces its commands are sent in."""

from __future__ import annotations

import itertools

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.resp import chunks, pack

from aioentra_redis._traffic import TRANSITIONS, Mode, Traffic


def test_one_command_and_its_reply():
    traffic = Traffic()
    assert traffic.quiet
    traffic.sent(pack("GET", "k"))
    assert (traffic.owed, traffic.quiet) == (1, False)
    traffic.received()
    assert (traffic.owed, traffic.quiet) == (0, True)


@pytest.mark.parametrize(
    "sent",
    [
        [pack("SET", "k", "v")],
        pack("SET", "k", "v").decode(),
        memoryview(pack("SET", "k", "v")),
        [b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\n", memoryview(b"v"), b"\r\n"],
        (each for each in [pack("SET", "k", "v")]),
    ],
    ids=["list", "str", "memoryview", "pieces", "generator"],
)
def test_however_redis_py_hands_it_over(sent):
    traffic = Traffic()
    traffic.sent(sent)
    assert traffic.owed == 1


@given(
    commands=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), max_size=20),
    sizes=st.lists(st.integers(0, 30), max_size=30),
)
def test_pieces_do_not_matter(commands: list[list[bytes]], sizes: list[int]):
    commands = [[b"X" + words[0], *words[1:]] for words in commands]
    pieces = chunks(b"".join(pack(*words) for words in commands), sizes)
    traffic = Traffic()
    traffic.sent(pieces)
    assert traffic.owed == len(commands)
    assert traffic.mode is Mode.COMMANDS


def test_a_value_is_not_a_command():
    traffic = Traffic()
    traffic.sent(pack("SET", "k", pack("MULTI")))
    assert (traffic.owed, traffic.mode) == (1, Mode.COMMANDS)


def test_a_raw_transaction_is_not_quiet_between_its_commands():
    traffic = Traffic()
    for words in (["MULTI"], ["SET", "k", "v"], ["multi"]):
        traffic.sent(pack(*words))
        traffic.received()
        assert (traffic.owed, traffic.mode, traffic.quiet) == (0, Mode.TRANSACTION, False)
    traffic.sent(pack("exec"))
    assert not traffic.quiet
    traffic.received()
    assert traffic.quiet


def test_a_pipeline_with_a_transaction_ends_as_it_began():
    traffic = Traffic()
    traffic.sent([pack("MULTI"), pack("INCR", "k"), pack("GET", "k"), pack("EXEC")])
    assert (traffic.owed, traffic.mode) == (4, Mode.COMMANDS)
    for _ in range(4):
        assert not traffic.quiet
        traffic.received()
    assert traffic.quiet


@pytest.mark.parametrize(
    ("start", "name"), [(m, n) for m, moves in TRANSITIONS.items() for n in moves]
)
def test_each_row_of_the_table(start: Mode, name: bytes):
    entry = {moved: by for by, moved in TRANSITIONS[Mode.COMMANDS].items()}
    traffic = Traffic()
    if start is not Mode.COMMANDS:
        traffic.sent(pack(entry[start]))
    traffic.sent(pack(name.lower(), "x"))
    assert traffic.mode is TRANSITIONS[start][name]
    assert not traffic.quiet


def test_messages_that_nobody_asked_for_are_not_counted():
    traffic = Traffic()
    traffic.sent(pack("MONITOR"))
    for _ in range(5):
        traffic.received()
    assert traffic.owed == 0
    assert not traffic.quiet


@pytest.mark.parametrize("sent", [b"PING\r\n", b":1\r\n", b"*0\r\n", b"*1\r\n:1\r\n", [1]])
def test_what_is_no_command_is_never_quiet_again(sent):
    traffic = Traffic()
    traffic.sent(sent)
    assert traffic.mode is Mode.UNKNOWN
    traffic.sent(pack("RESET"))
    for _ in range(5):
        traffic.received()
    assert not traffic.quiet


def test_reset_forgets_half_a_command_and_the_mode():
    for sent in (b"*2\r\n$3\r\nGE", pack("MULTI"), pack("MONITOR"), b"PING\r\n"):
        traffic = Traffic()
        traffic.sent(sent)
        traffic.reset()
        assert traffic.quiet
        traffic.sent(hiredis.pack_command(("PING",)))
        traffic.received()
        assert traffic.quiet


def test_every_mode_has_a_row_and_leads_somewhere_known():
    assert set(TRANSITIONS) == set(Mode)
    reached = set(itertools.chain.from_iterable(moves.values() for moves in TRANSITIONS.values()))
    assert reached == set(Mode) - {Mode.UNKNOWN}
    assert "2 owed" in repr(_with(2))


def _with(owed: int) -> Traffic:
    traffic = Traffic()
    traffic.sent([pack("PING")] * owed)
    return traffic
