"""From what a dial raises to an error that says which stage failed, where, and what to do."""

from __future__ import annotations

import copy
import pickle
import socket
import ssl
from typing import Any

import pytest
from redis import exceptions as redis_exceptions

from aioentra_redis._diagnosis import explain
from aioentra_redis._redaction import again
from aioentra_redis._token import Token
from aioentra_redis.errors import (
    ConnectError,
    ConnectTimeoutError,
    EntraRedisError,
    InsecureConnectionError,
    SignInRefusedError,
    TokenExpiredError,
)

TOKEN = Token(
    "eyJhbGciOi.eyJvaWQiOi.c4n4ry",
    username="oid-1",
    tenant_id="tid-1",
    audience="aud-1",
    expires_on=2.0,
    first_seen=1.0,
)


def raised(error: BaseException, cause: BaseException | None = None) -> Exception:
    """``error`` as redis-py raises it: some causes are explicit, others only contexts."""
    try:
        try:
            if cause is not None:
                raise cause
        finally:
            raise error
    except Exception as exc:
        return exc


def explained(error: Exception, **where: Any) -> EntraRedisError:
    where = {"host": "cache.example", "port": 7, "tls": True, "token": TOKEN, **where}
    return explain(error, **where)


bad_certificate = ssl.SSLCertVerificationError(1, "certificate verify failed")
bad_certificate.verify_message = "Hostname mismatch"
Wrapped = redis_exceptions.ConnectionError


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (9, "this machine's clock"),
        (10, "has to renew it"),
        (20, "ssl_ca_certs="),
        (62, "by the host name"),
        (64, "not by an IP address"),
    ],
)
def test_what_is_wrong_with_a_certificate_decides_the_remedy(code: int, remedy: str):
    cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
    cause.verify_code, cause.verify_message = code, "as OpenSSL says it"
    error = explain(raised(Wrapped("x"), cause), host="cache", port=7, tls=True, token=None)
    assert isinstance(error, ConnectError)
    assert error.stage == "tls"
    assert "as OpenSSL says it" in str(error)
    assert remedy in str(error)


@pytest.mark.parametrize(
    ("error", "kind", "stage", "says"),
    [
        (
            raised(Wrapped("Error -2"), socket.gaierror(-2, "Name or service not known")),
            ConnectError,
            "dns",
            ["'cache.example'", "Name or service not known", "spelling", "private endpoint"],
        ),
        (
            raised(Wrapped("x"), bad_certificate),
            ConnectError,
            "tls",
            ["certificate of cache.example:7", "Hostname mismatch", "ssl_ca_certs="],
        ),
        (
            raised(Wrapped("x"), ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version")),
            ConnectError,
            "tls",
            ["no TLS connection to cache.example:7", "WRONG_VERSION_NUMBER", "TLS port", "10000"],
        ),
        (
            redis_exceptions.AuthenticationError("WRONGPASS invalid username-password pair"),
            SignInRefusedError,
            "auth",
            ["oid-1", "tid-1", "aud-1", "WRONGPASS", "access policy assignment", "clock"],
        ),
        (
            redis_exceptions.NoPermissionError("NOPERM no permissions to run 'select'"),
            SignInRefusedError,
            "auth",
            ["oid-1", "access policy is too narrow", "select"],
        ),
        (
            raised(redis_exceptions.TimeoutError("Timeout connecting"), TimeoutError()),
            ConnectTimeoutError,
            "tcp",
            ["cache.example:7 did not answer in time", "firewall"],
        ),
        (
            raised(Wrapped("x"), ConnectionRefusedError(111, "Connection refused")),
            ConnectError,
            "tcp",
            ["nothing listens at cache.example:7"],
        ),
        (
            raised(Wrapped("x"), OSError(101, "Network is unreachable")),
            ConnectError,
            "tcp",
            ["the connection to cache.example:7 failed", "unreachable"],
        ),
        (
            Wrapped("Bad response"),
            ConnectError,
            "handshake",
            ["answered the handshake with 'Bad response'"],
        ),
        (RuntimeError(), ConnectError, "handshake", ["'RuntimeError'"]),
    ],
)
def test_each_stage(error: Exception, kind: type, stage: str, says: list[str]):
    result = explained(error)
    assert type(result) is kind
    assert isinstance(result, ConnectError)
    assert (result.stage, result.host, result.port) == (stage, "cache.example", 7)
    for text in says:
        assert text in str(result)
    assert result.__cause__ is error
    assert error.__traceback__ is None
    assert "c4n4ry" not in str(result)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (
            "Error 111 connecting to c:7. Connect call failed",
            ConnectionRefusedError(111, "refused"),
        ),
        ("Error 2 connecting to /run/sock. No such file", FileNotFoundError(2, "No such file")),
        ("Error connecting to c:7. Unreachable", OSError("Unreachable")),
    ],
)
def test_redis_pys_own_words_come_first(words: str, cause: OSError):
    result = str(explained(raised(Wrapped(f"{words}."), cause)))
    assert result.startswith(f"{words}: ")
    assert "cache.example:7" in result
    assert "Wrapped" not in result


def test_without_a_token_it_is_the_password():
    error = redis_exceptions.AuthenticationError("WRONGPASS")
    assert "check the user name and password" in str(explained(error, token=None))
    error = redis_exceptions.NoPermissionError("NOPERM")
    assert "the configured user" in str(explained(error, token=None))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"host": "c.redis.azure.net", "port": 6380}, "listens for TLS on 10000, not on 6380"),
        ({"host": "c.redis.cache.windows.net", "port": 10000}, "on 6380, not on 10000"),
        ({"tls": False}, "rediss://"),
        ({}, "Azure Managed Redis: 10000"),
        (
            {"host": "/run/redis.sock", "port": 0, "tls": False},
            "nothing listens at /run/redis.sock. Is the server's `unixsocket` this path",
        ),
    ],
)
def test_the_hint_about_the_port(where: dict[str, Any], says: str):
    assert says in str(explained(ConnectionRefusedError(), **where))


@pytest.mark.parametrize(
    "ours", [TokenExpiredError("expired"), InsecureConnectionError("in clear")]
)
def test_errors_of_ours_stay_what_they_are_also_in_redis_pys_wrapping(ours: EntraRedisError):
    assert explained(ours) is ours
    wrapped = Wrapped(ours)
    wrapped.__cause__ = ours
    assert explained(wrapped) is ours


def test_a_token_in_a_reason_is_blotted_out():
    text = "server said eyJhbGciOi.eyJvaWQiOi.c4n4ry"
    assert "c4n4ry" not in str(explained(Wrapped(text)))


def test_a_chain_that_bites_its_tail():
    one, two = Wrapped("one"), Wrapped("two")
    one.__cause__, two.__cause__ = two, one
    assert "two" in str(explained(one))


@pytest.mark.parametrize("way", [again, copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_each_waiter_can_have_an_error_of_its_own(way: Any):
    error = ConnectTimeoutError("late", stage="tls", host="h", port=7)
    twin = way(error)
    assert twin is not error
    assert type(twin) is ConnectTimeoutError
    assert str(twin) == "late"
    assert (twin.stage, twin.host, twin.port) == ("tls", "h", 7)


def test_the_errors_are_what_users_of_redis_py_catch():
    refused = explained(redis_exceptions.AuthenticationError("WRONGPASS"))
    assert isinstance(refused, redis_exceptions.AuthenticationError)
    assert isinstance(refused, redis_exceptions.ConnectionError)
    late = explained(TimeoutError())
    assert isinstance(late, redis_exceptions.TimeoutError)
