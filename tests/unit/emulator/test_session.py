"""The session knows which reply answers which sign-in, and what to make of it."""

from __future__ import annotations

import pytest
from support.resp import pack

from aioentra_redis.emulator._session import (
    REFUSED_PASSWORD,
    Effect,
    Session,
    SignIn,
    Verdict,
    credentials_index,
    next_deadline,
)

OID = "0e11a500-0000-4000-8000-00000000a001"
GOOD = Verdict(None, OID, uti="u1", expires_on=100.0)
BAD = Verdict("expired", OID, uti="u2", expires_on=50.0)
WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
AUTH = pack("AUTH", OID, "token")


def session() -> Session:
    return Session("backend-secret")


def sign_in(of: Session, data: bytes = AUTH, verdict: Verdict = GOOD) -> bytes:
    """Send bytes that end in a sign-in, and decide it; returns what goes to the server."""
    *before, attempt = of.receive_from_client(data)
    assert isinstance(attempt, SignIn)
    return b"".join(each for each in before if isinstance(each, bytes)) + of.decide(
        attempt, verdict
    )


def effects(of: Session) -> list[Effect]:
    found = [each.effect for each in of.outcomes]
    of.outcomes.clear()
    return found


def test_a_good_token_becomes_the_servers_secret():
    assert sign_in(session()) == pack("AUTH", OID, "backend-secret")


def test_a_bad_token_becomes_a_wrong_password():
    assert sign_in(session(), verdict=BAD) == pack("AUTH", OID, REFUSED_PASSWORD)


def test_hello_keeps_its_other_options():
    data = pack("HELLO", "3", "SETNAME", "AUTH", "auth", OID.upper(), "token")
    expected = pack("HELLO", "3", "SETNAME", "AUTH", "auth", OID, "backend-secret")
    assert sign_in(session(), data) == expected


@pytest.mark.parametrize(
    ("command", "arrives"),
    [
        (pack("SELECT", "1"), pack("SELECT ", "1")),
        (pack("select", "1"), pack("select ", "1")),
        (b"SYNC\r\n", pack("SYNC ")),
        (pack("SELECTED"), pack("SELECTED")),
        (pack("GET", "SELECT"), pack("GET", "SELECT")),
    ],
)
def test_a_blocked_command_reaches_no_server(command: bytes, arrives: bytes):
    """The server answers that it does not know it: what comes behind keeps its place."""
    of = Session("backend-secret", frozenset({b"SELECT", b"SYNC"}))
    assert b"".join(each for each in of.receive_from_client(command)) == arrives  # type: ignore[misc]
    assert sign_in(of) == pack("AUTH", OID, "backend-secret")
    of.receive_from_server(b"-ERR unknown command\r\n")
    assert effects(of) == []
    of.receive_from_server(b"+OK\r\n")
    assert effects(of) == [Effect.SIGNED_IN]


@pytest.mark.parametrize(
    ("command", "reply", "effect"),
    [
        pytest.param(AUTH, b"+OK\r\n", Effect.SIGNED_IN, id="auth"),
        pytest.param(AUTH, WRONGPASS, Effect.REFUSED, id="auth-refused-by-the-server"),
        pytest.param(AUTH, b"+QUEUED\r\n", Effect.UNPROVEN, id="auth-in-multi"),
        pytest.param(AUTH, b"*0\r\n", Effect.UNPROVEN, id="auth-unclear"),
        pytest.param(
            pack("HELLO", "3", "AUTH", OID, "t"),
            b"%1\r\n$5\r\nproto\r\n:3\r\n",
            Effect.SIGNED_IN,
            id="hello-3",
        ),
        pytest.param(
            pack("HELLO", "2", "AUTH", OID, "t"),
            b"*2\r\n$5\r\nproto\r\n:2\r\n",
            Effect.SIGNED_IN,
            id="hello-2",
        ),
        pytest.param(
            pack("HELLO", "9", "AUTH", OID, "t"),
            b"-NOPROTO unsupported protocol version\r\n",
            Effect.REFUSED,
            id="hello-9",
        ),
    ],
)
def test_the_reply_decides(command: bytes, reply: bytes, effect: Effect):
    of = session()
    sign_in(of, command)
    for byte in reply[:-1]:
        of.receive_from_server(bytes([byte]))
    assert effects(of) == []
    of.receive_from_server(reply[-1:])
    assert effects(of) == [effect]


def test_a_refusal_of_ours_keeps_its_reason():
    of = session()
    sign_in(of, verdict=BAD)
    of.receive_from_server(WRONGPASS)
    assert [(each.effect, each.reason) for each in of.outcomes] == [(Effect.REFUSED, "expired")]


def test_a_refusal_of_the_servers_gives_its_text():
    of = session()
    sign_in(of)
    of.receive_from_server(b"-ERR Can't execute 'auth': not now\r\n")
    assert [each.reason for each in of.outcomes] == ["ERR Can't execute 'auth': not now"]


def test_a_refused_token_that_was_queued_is_refused():
    of = session()
    sign_in(of, verdict=BAD)
    of.receive_from_server(b"+QUEUED\r\n")
    assert effects(of) == [Effect.REFUSED]


def test_replies_before_the_sign_ins_own_are_counted_off():
    of = session()
    sign_in(of, pack("GET", "a") * 3 + pack("CLIENT", "ID") + pack("HELLO") + AUTH)
    of.receive_from_client(pack("GET", "b"))
    of.receive_from_server(b"$2\r\nOK\r\n" + b"+OK\r\n" * 2 + b":1\r\n%1\r\n+a\r\n*1\r\n+OK\r\n")
    assert effects(of) == []
    of.receive_from_server(b"+OK\r\n")
    assert effects(of) == [Effect.SIGNED_IN]
    of.receive_from_server(b"$1\r\n2\r\n")
    sign_in(of, verdict=BAD)
    of.receive_from_server(WRONGPASS)
    assert effects(of) == [Effect.REFUSED]


def test_counting_goes_on_between_sign_ins():
    of = session()
    for _ in range(3):
        of.receive_from_client(pack("PING") * 5)
        of.receive_from_server(b"+PONG\r\n" * 3)
        sign_in(of)
        of.receive_from_server(b"+PONG\r\n" * 2)
        assert effects(of) == []
        of.receive_from_server(b"+OK\r\n")
        assert effects(of) == [Effect.SIGNED_IN]


def confirmation(kind: str, channel: str, count: int) -> bytes:
    return b">3\r\n" + pack(kind, channel)[4:] + b":%d\r\n" % count


def test_pushes_are_no_replies():
    of = session()
    of.receive_from_client(pack("SUBSCRIBE", "a", "b") + pack("PING"))
    of.receive_from_server(confirmation("subscribe", "a", 1))
    sign_in(of)
    of.receive_from_server(confirmation("subscribe", "b", 2))
    of.receive_from_server(confirmation("message", "a", 0) * 2)
    assert effects(of) == []
    of.receive_from_server(b"+PONG\r\n")
    of.receive_from_server(confirmation("message", "a", 0) + b"+OK\r\n")
    assert effects(of) == [Effect.SIGNED_IN]


@pytest.mark.parametrize("answer", [b"-NOPERM no\r\n", b"+QUEUED\r\n"], ids=["error", "queued"])
def test_a_subscription_may_be_answered_by_a_reply(answer: bytes):
    of = session()
    of.receive_from_client(pack("SUBSCRIBE", "a", "b"))
    sign_in(of)
    of.receive_from_server(answer)
    assert effects(of) == []
    of.receive_from_server(b"+OK\r\n")
    assert effects(of) == [Effect.SIGNED_IN]


def test_unsubscribing_from_everything_confirms_any_number_of_times():
    of = session()
    of.receive_from_client(pack("UNSUBSCRIBE"))
    sign_in(of)
    for left in (2, 1, 0):
        of.receive_from_server(confirmation("unsubscribe", "a", left))
    of.receive_from_server(b"+OK\r\n")
    assert effects(of) == [Effect.SIGNED_IN]


@pytest.mark.parametrize(
    ("departure", "replies"),
    [
        pytest.param(pack("MONITOR"), b'+OK\r\n+1.0 [0 unix:/x] "PING"\r\n', id="monitor"),
        pytest.param(pack("CLIENT", "REPLY", "off"), b"+OK\r\n", id="client-reply"),
        pytest.param(
            pack("SUBSCRIBE", "a"), b"*3\r\n+subscribe\r\n+a\r\n:1\r\n", id="resp2-pubsub"
        ),
        pytest.param(pack("PING"), b"no RESP\r\n", id="no-resp"),
        pytest.param(b"", b"+OK\r\n+OK\r\n", id="more-replies-than-commands"),
    ],
)
def test_without_counting_nothing_is_proven(departure: bytes, replies: bytes):
    of = session()
    sign_in(of)
    of.receive_from_client(departure)
    of.receive_from_server(b"+OK\r\n")
    assert effects(of) == [Effect.SIGNED_IN]
    of.receive_from_server(replies)
    sign_in(of)
    of.receive_from_server(b"+OK\r\n")
    assert effects(of) == [Effect.UNPROVEN]
    sign_in(of, verdict=BAD)
    assert effects(of) == [Effect.REFUSED]


def test_losing_count_settles_what_is_pending():
    of = session()
    of.receive_from_client(pack("MONITOR"))
    sign_in(of)
    sign_in(of, verdict=BAD)
    of.receive_from_server(b"+OK\r\n")
    assert effects(of) == [Effect.UNPROVEN, Effect.REFUSED]


def test_client_reply_on_is_an_ordinary_command():
    of = session()
    of.receive_from_client(pack("CLIENT", "REPLY", "ON"))
    sign_in(of)
    of.receive_from_server(b"+OK\r\n+OK\r\n")
    assert effects(of) == [Effect.SIGNED_IN]


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("AUTH user token", 1),
        ("auth user token", 1),
        ("AUTH password", None),
        ("AUTH a b c", None),
        ("AUTH", None),
        ("HELLO", None),
        ("HELLO 3", None),
        ("HELLO 3 AUTH u p", 3),
        ("HELLO 3 SETNAME AUTH auth u p", 5),
        ("HELLO 3 AUTH u p SETNAME n", 3),
        ("HELLO 3 SETNAME", None),
        ("HELLO 3 AUTH u", None),
        ("HELLO 3 WHAT AUTH u p", None),
    ],
)
def test_where_the_credentials_are(words: str, index: int | None):
    assert credentials_index([each.encode() for each in words.split()]) == index


@pytest.mark.parametrize(
    ("current", "effect", "expires_on", "expected"),
    [
        (None, Effect.SIGNED_IN, 10.0, 10.0),
        (5.0, Effect.SIGNED_IN, 10.0, 10.0),
        (20.0, Effect.SIGNED_IN, 10.0, 10.0),
        (None, Effect.REFUSED, 10.0, None),
        (5.0, Effect.REFUSED, 10.0, 5.0),
        (None, Effect.UNPROVEN, 10.0, 10.0),
        (5.0, Effect.UNPROVEN, 10.0, 5.0),
        (20.0, Effect.UNPROVEN, 10.0, 10.0),
        (5.0, Effect.SIGNED_IN, None, 5.0),
    ],
)
def test_next_deadline(
    current: float | None, effect: Effect, expires_on: float | None, expected: float | None
):
    assert next_deadline(current, effect, expires_on) == expected
