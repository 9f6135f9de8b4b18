"""A RESP3 subscriber between AUTHs: whose reply is the next plain one?"""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioentra_redis._traffic import Mode, Subscriptions, Traffic


def words(line: str) -> list[bytes]:
    return line.encode().split()


def test_a_subscription_is_owed_until_all_of_it_is_confirmed():
    subscriptions = Subscriptions()
    subscriptions.sent(words("SUBSCRIBE a b"))
    subscriptions.pushed([b"subscribe", b"a", 1])
    subscriptions.pushed([b"message", b"a", b"hello"])
    assert not subscriptions.quiet
    subscriptions.pushed([b"subscribe", b"b", 2])
    assert subscriptions.quiet


def test_decoded_pushes_count_the_same():
    subscriptions = Subscriptions()
    subscriptions.sent(words("psubscribe a*"))
    subscriptions.pushed(["psubscribe", "a*", 1])
    assert subscriptions.quiet


def test_unsubscribing_from_all_is_over_when_none_is_left():
    subscriptions = Subscriptions()
    subscriptions.sent(words("SUBSCRIBE a b"))
    subscriptions.sent(words("UNSUBSCRIBE"))
    subscriptions.pushed([b"subscribe", b"a", 1])
    subscriptions.pushed([b"subscribe", b"b", 2])
    subscriptions.pushed([b"unsubscribe", b"a", 1])
    assert not subscriptions.quiet
    subscriptions.pushed([b"unsubscribe", b"b", 0])
    assert subscriptions.quiet


def test_unsubscribing_from_all_of_nothing_is_confirmed_once():
    subscriptions = Subscriptions()
    subscriptions.sent(words("PUNSUBSCRIBE"))
    subscriptions.pushed([b"punsubscribe", None, 0])
    assert subscriptions.quiet


def test_a_refused_subscription_is_answered_by_its_error():
    subscriptions = Subscriptions()
    subscriptions.sent(words("SUBSCRIBE a b"))
    assert subscriptions.replied() is None
    assert subscriptions.quiet


def test_each_plain_reply_goes_to_the_command_it_answers():
    subscriptions = Subscriptions()
    mark = object()
    subscriptions.expect(mark)
    subscriptions.sent(words("PING"))
    assert subscriptions.replied() is mark
    assert subscriptions.replied() is None
    assert subscriptions.quiet


@pytest.mark.parametrize("push", [[], [b"subscribe"], [7, b"a"], [b"invalidate", None], ["x", "y"]])
def test_other_pushes_change_nothing(push: list[Any]):
    subscriptions = Subscriptions()
    subscriptions.sent(words("SUBSCRIBE a"))
    subscriptions.pushed(push)
    assert not subscriptions.quiet


def test_a_sharded_channel_that_the_server_takes_away_confirms_nothing():
    subscriptions = Subscriptions()
    subscriptions.sent(words("SSUBSCRIBE a"))
    subscriptions.pushed([b"ssubscribe", b"a", 1])
    subscriptions.sent(words("SSUBSCRIBE b"))
    subscriptions.pushed([b"sunsubscribe", b"a", 0])
    assert not subscriptions.quiet
    subscriptions.pushed([b"ssubscribe", b"b", 1])
    assert subscriptions.quiet


def test_traffic_tells_the_subscriber_from_the_first_subscription_on():
    traffic = Traffic()
    traffic.sent(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n")
    assert traffic.mode is Mode.SUBSCRIBED
    assert not traffic.subscriptions.quiet
    traffic.subscriptions.pushed([b"subscribe", b"a", 1])
    assert traffic.subscriptions.quiet
    traffic.reset()
    assert traffic.subscriptions.quiet


class Server:
    """What a RESP3 server answers a subscriber, in order."""

    def __init__(self) -> None:
        self.channels: dict[str, list[bytes]] = {"": [], "P": [], "S": []}
        self.out: deque[Any] = deque()

    def run(self, command: list[bytes], denied: bool) -> None:
        name = command[0].decode()
        if denied:
            self.out.append(("error", command))
            return
        if "SUBSCRIBE" not in name:
            self.out.append(("plain", command))
            return
        away = "UNSUB" in name
        kind = name.removesuffix("UNSUBSCRIBE").removesuffix("SUBSCRIBE")
        channels = self.channels[kind]
        for channel in command[1:] or (list(channels) if away else []) or [None]:
            if away and channel in channels:
                channels.remove(channel)
            elif not away and channel not in channels:
                channels.append(channel)
            self.out.append(("push", [name.lower().encode(), channel, 0]))


names = st.sampled_from(["", "P", "S"])
channels = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=3)
steps = st.one_of(
    st.tuples(st.just("sub"), names, channels.filter(bool), st.booleans()),
    st.tuples(st.just("unsub"), names, channels, st.booleans()),
    st.tuples(st.just("ping"), st.booleans()),
    st.tuples(st.just("auth"), st.booleans()),
    st.tuples(st.just("read")),
)


@given(st.lists(steps, max_size=60))
def test_no_auth_is_taken_for_another_whatever_happens(program: list[Any]):
    """AUTH is sent only when quiet; every plain reply finds its command, and in the end all is."""
    subscriptions, server = Subscriptions(), Server()
    auths = 0

    def read() -> None:
        kind, what = server.out.popleft()
        if kind == "push":
            subscriptions.pushed(what)
            return
        mark = subscriptions.replied()
        if what[0] == b"AUTH":
            assert mark == ("auth", what[1])
        else:
            assert mark is None

    for step in program:
        if step[0] == "read":
            if server.out:
                read()
        elif step[0] == "auth":
            if subscriptions.quiet:
                auths += 1
                subscriptions.expect(("auth", b"%d" % auths))
                server.run([b"AUTH", b"%d" % auths], step[1])
        else:
            if step[0] == "ping":
                command = [b"PING"]
            else:
                name = step[1] + ("SUBSCRIBE" if step[0] == "sub" else "UNSUBSCRIBE")
                command = [name.encode(), *step[2]]
            subscriptions.sent(command)
            server.run(command, step[-1])
    while server.out:
        read()
    assert subscriptions.quiet
