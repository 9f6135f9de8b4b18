from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import pickle
import pprint
import traceback

import hiredis
import pytest
from support.token_fakes import CANARY, EPOCH, jwt

from aioentra_redis._news import is_news
from aioentra_redis._redaction import Secret
from aioentra_redis._schedule import renewal_start
from aioentra_redis._token import REDIS_RESOURCE_ID, REDIS_SCOPE, Token, resources_of
from aioentra_redis.errors import InvalidTokenError

CLAIMS = {
    "oid": "oid-1",
    "tid": "tid-1",
    "aud": "https://redis.azure.com",
    "iat": EPOCH - 300,
    "exp": EPOCH + 3600,
}


def read(claims: dict | None = None, *, drop: str = "", **options) -> Token:
    contents = {**CLAIMS, **(claims or {})}
    contents.pop(drop, None)
    options = {"expires_on": EPOCH + 3600, "now": EPOCH, **options}
    return Token.read(Secret(jwt(contents)), **options)


def test_reads_what_auth_needs():
    token = read(refresh_on=EPOCH + 1800, version=7)
    assert token.username == token.oid == "oid-1"
    assert token.tenant_id == "tid-1"
    assert token.audience == "https://redis.azure.com"
    assert (token.expires_on, token.refresh_on) == (EPOCH + 3600, EPOCH + 1800)
    assert (token.issued_on, token.first_seen, token.version) == (EPOCH - 300, EPOCH, 7)
    assert token.lifetime == 3900
    assert token.secret.count(".") == 2


@pytest.mark.parametrize("missing", ["iss", "tid", "iat", "aud", "exp"])
def test_only_oid_is_required(missing: str):
    token = read(drop=missing)
    assert token.username == "oid-1"
    assert token.lifetime == (3600 if missing == "iat" else 3900)


@pytest.mark.parametrize(
    ("told", "claimed", "expected"),
    [(3600, 3500, 3500), (3500, 3600, 3500), (3600.5, 3601, 3600.5), (3600, None, 3600)],
)
def test_expiry_is_the_smaller_of_both(told: float, claimed: float | None, expected: float):
    claims = {"exp": EPOCH + claimed} if claimed else {}
    token = read(claims, drop="" if claimed else "exp", expires_on=EPOCH + told)
    assert token.expires_on == EPOCH + expected


def test_lifetime_without_sensible_claims_counts_from_first_seen():
    assert read({"iat": EPOCH + 9999}).lifetime == 3600
    assert read({"iat": "yesterday"}).lifetime == 3600


def test_a_machine_whose_clock_is_slow_does_not_stretch_a_token():
    """Claims are in the authority's time; what counts here is how long a token lives from now."""
    ahead = {"iat": EPOCH + 3500, "exp": EPOCH + 7100}
    # A service principal's expiry is counted from now, a managed identity's is the claim.
    for told in (EPOCH + 3600, EPOCH + 7100):
        token = read(ahead, expires_on=told)
        assert (token.expires_on, token.lifetime) == (EPOCH + 3600, 3600)
        assert renewal_start(token, 0.8) == EPOCH + 2880


def test_an_issue_past_the_expiry_tells_nothing():
    assert read({"iat": EPOCH + 9999, "exp": EPOCH + 3600}).expires_on == EPOCH + 3600


@pytest.mark.parametrize(
    ("claimed", "told", "news"),
    [
        (3601, 3601, True),
        (3601, -1000, True),  # the clock here was set back meanwhile
        (3600, 4000, False),
        (3599, 4000, False),
        (None, 3601, True),
        (None, 3600, False),
    ],
)
def test_what_is_news(claimed: float | None, told: float, news: bool):
    current = read(expires_on=EPOCH + 3600)
    now = EPOCH - 2000
    claims = {} if claimed is None else {"exp": EPOCH + claimed}
    drop = "exp" if claimed is None else ""
    token = read(claims, drop=drop, expires_on=EPOCH + told, now=now)
    assert is_news(token, current) is news
    assert not is_news(current, current)
    assert is_news(token, None)


def test_news_of_the_same_second():
    """Claims are whole seconds: tokens that rotate faster are told apart by the credential."""
    current = read({"exp": EPOCH + 3600, "uti": "a"}, expires_on=EPOCH + 60.0)
    newer = read({"exp": EPOCH + 3600, "uti": "b"}, expires_on=EPOCH + 60.4)
    assert is_news(newer, current)
    assert not is_news(current, newer)


@pytest.mark.parametrize(
    ("audience", "scope"),
    [
        ("https://redis.azure.com", REDIS_SCOPE),
        ("https://redis.azure.com/", REDIS_SCOPE),
        ("HTTPS://REDIS.AZURE.COM", REDIS_SCOPE),
        (REDIS_RESOURCE_ID, REDIS_SCOPE),
        ("https://redis.azure.com", f"{REDIS_RESOURCE_ID}/.default"),
        (REDIS_RESOURCE_ID, "https://redis.azure.us/.default"),
        ("api://my-app", "api://my-app/.default"),
        ("my-app", "api://my-app/.default"),
        (["x", "https://redis.azure.com"], REDIS_SCOPE),
        ("https://redis.azure.com", "https://redis.azure.com/user_impersonation"),
        ("https://redis.azure.com", "https://redis.azure.com//.default"),
    ],
)
def test_audience_by_uri_or_guid(audience: object, scope: str):
    read({"aud": audience}, resources=resources_of([scope]))


@pytest.mark.parametrize(
    ("claims", "drop", "options", "claim", "says"),
    [
        ({}, "oid", {}, "oid", "username="),
        ({"oid": ""}, "", {}, "oid", "username="),
        ({"oid": 5}, "", {}, "oid", "username="),
        ({"aud": "https://vault.azure.net"}, "", {}, "aud", "vault.azure.net"),
        ({"aud": ["a", "b"]}, "", {}, "aud", "scopes="),
        ({"exp": EPOCH}, "", {}, "exp", "clock"),
        ({}, "", {"expires_on": EPOCH - 1}, "exp", "clock"),
        ({}, "", {"expires_on": "soon"}, "expires_on", "str"),
        ({}, "", {"expires_on": None}, "expires_on", "NoneType"),
        ({}, "", {"expires_on": float("nan")}, "expires_on", "float"),
        ({}, "", {"expires_on": True}, "expires_on", "bool"),
        ({}, "", {"expires_on": 10**400}, "expires_on", "int"),
    ],
)
def test_refuses_what_must_not_travel(claims, drop, options, claim, says):
    with pytest.raises(InvalidTokenError, match=says) as caught:
        read(claims, drop=drop, **options)
    assert caught.value.claim == claim


@pytest.mark.parametrize("raw", ["opaque", "a.b.c", "a.!!!.c", "a.W10.c", "a.e30", ""])
def test_not_a_jwt(raw: str):
    options = {"expires_on": EPOCH + 60, "now": EPOCH}
    with pytest.raises(InvalidTokenError):
        Token.read(Secret(raw), **options)
    assert Token.read(Secret(raw), username="joe", **options).username == "joe"


def test_configured_username_is_honoured():
    assert read(username="alias").username == "alias"
    assert read(drop="oid", username="alias").oid is None


def test_equal_by_secret():
    secret = jwt(CLAIMS)
    one, two = (Token(secret, username=name, expires_on=1, first_seen=0) for name in ("one", "two"))
    assert one == two
    assert hash(one) == hash(two)
    assert one != read()
    assert one != secret


def test_immutable():
    token = read()
    with pytest.raises(AttributeError, match="immutable"):
        token.version = 2
    with pytest.raises(AttributeError, match="immutable"):
        del token.version
    assert copy.copy(token) is copy.deepcopy(token) is token
    raw = token.secret
    assert copy.copy(raw) is copy.deepcopy(raw) is raw


@dataclasses.dataclass
class Holder:
    token: Token
    secret: Secret


def test_the_secret_is_shown_nowhere(caplog: pytest.LogCaptureFixture):
    token = read()
    holder = Holder(token, Secret(token.secret))
    logging.getLogger("any").warning("%s %r %s", token, holder, token)
    shown = [
        repr(token),
        str(token),
        f"{token} {token!r} {token:>200}",
        repr(holder),
        str(dataclasses.asdict(holder)),
        pprint.pformat(holder),
        repr({name: getattr(token, name) for name in Token.__slots__ if name != "__weakref__"}),
        caplog.text,
    ]
    assert CANARY not in " ".join(shown)
    arguments = ("AUTH", token.username, token.secret)
    assert CANARY not in f"{arguments} {token.secret!r} {pprint.pformat(arguments)}"
    assert CANARY in hiredis.pack_command(arguments).decode(), "yet it is what is sent"
    assert isinstance(token.secret, str)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(token.secret)
    assert not hasattr(token, "__dict__")
    with pytest.raises(TypeError):
        json.dumps(token)
    for thing in (token, holder, Secret("x")):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(thing)


@pytest.mark.parametrize(
    ("claims", "drop"), [({}, "oid"), ({"aud": "x"}, ""), ({"exp": 1}, ""), ({"exp": []}, "oid")]
)
def test_no_traceback_with_locals_shows_it(claims: dict, drop: str):
    secret = Secret(jwt({k: v for k, v in {**CLAIMS, **claims}.items() if k != drop}))
    with pytest.raises(InvalidTokenError) as caught:
        Token.read(secret, expires_on=EPOCH + 60, now=EPOCH)
    error = caught.value
    # Not this frame, whose locals are the test's own.
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    assert CANARY not in with_locals(error)


def with_locals(error: BaseException) -> str:
    """Everything that tools print of an exception, variables of all frames included."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    text = "".join(shown.format())
    out = io.StringIO()
    traceback.print_exception(error, file=out)
    return text + out.getvalue()
