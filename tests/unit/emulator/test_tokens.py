"""Tokens are issued as Entra does and judged as Azure does."""

from __future__ import annotations

from typing import Any

import jwt
import pytest

from aioentra_redis.emulator._directory import TENANT_ID, make_identities
from aioentra_redis.emulator._gate import Gate
from aioentra_redis.emulator._settings import Claims, Faults
from aioentra_redis.emulator._tokens import (
    MAX_CACHED,
    REDIS_APP_ID,
    REDIS_RESOURCE,
    Token,
    TokenIssuer,
    TokenVerifier,
    audience_of,
    generate_key,
    refusal,
    token_claims,
)

NOW = 1_800_000_000.75
IDENTITY = make_identities()["service_principal"]
OID = IDENTITY.object_id


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def module_issuer() -> TokenIssuer:
    return TokenIssuer(TENANT_ID, clock=Clock())


@pytest.fixture
def issuer(module_issuer: TokenIssuer, clock: Clock) -> TokenIssuer:
    module_issuer._clock = clock  # making keys is slow: one issuer serves all tests
    return module_issuer


def issue(issuer: TokenIssuer, lifetime: float = 3600.0, **differing: Any) -> Token:
    return issuer.issue(
        IDENTITY, audience=REDIS_RESOURCE, lifetime=lifetime, differing=Claims(**differing)
    )


def claims(**changes: Any) -> dict[str, Any]:
    good = token_claims(
        IDENTITY,
        tenant_id=TENANT_ID,
        audience=REDIS_RESOURCE,
        now=NOW,
        lifetime=3600.0,
        managed=False,
        by_assertion=False,
    )
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"aud": REDIS_APP_ID}, None),
        ({"aud": REDIS_RESOURCE + "/"}, None),
        ({"aud": ["https://other", REDIS_APP_ID]}, None),
        ({"aud": "https://vault.azure.net"}, "wrong audience"),
        ({"aud": None}, "wrong audience"),
        ({"iss": f"https://login.microsoftonline.com/{TENANT_ID}/v2.0"}, None),
        ({"iss": "https://sts.windows.net/another/"}, "wrong issuer"),
        ({"iss": None}, "wrong issuer"),
        ({"tid": "another"}, "wrong issuer"),
        ({"tid": None}, None),
        ({"exp": None}, "no expiry"),
        ({"exp": "soon"}, "no expiry"),
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 0.001}, "expired"),
        ({"exp": NOW + 0.001}, None),
        ({"nbf": NOW + 0.9}, None),
        ({"nbf": NOW + 60}, "not valid yet"),
        ({"nbf": "now"}, "not valid yet"),
        ({"oid": None}, "no oid"),
        ({"oid": 7}, "no oid"),
        ({"oid": "another"}, "the user name is not the oid"),
        ({"oid": OID.upper()}, None),
    ],
)
def test_what_is_refused(changes: dict[str, Any], reason: str | None):
    assert refusal(claims(**changes), user=OID, tenant_id=TENANT_ID, now=NOW) == reason


def test_a_token_carries_the_claims_of_entra(issuer: TokenIssuer):
    token = issue(issuer)
    found = jwt.decode(token.value, options={"verify_signature": False})
    assert found["oid"] == found["sub"] == OID
    assert found["appid"] == IDENTITY.client_id
    assert found["aud"] == REDIS_RESOURCE
    assert found["iss"] == f"https://sts.windows.net/{TENANT_ID}/"
    assert found["exp"] - found["iat"] == 3600
    assert found["uti"] == token.uti
    assert found["ver"] == "1.0"


def test_long_tokens_have_whole_seconds_and_short_ones_fractions(issuer: TokenIssuer):
    assert issue(issuer, 3600.0).expires_on == 1_800_003_600.0
    assert issue(issuer, 2.5).expires_on == NOW + 2.5
    assert issue(issuer, 0.25).expires_on == NOW + 0.25


@pytest.mark.parametrize(
    ("lifetime", "expires_in"), [(3600.0, 3599), (2.0, 2), (2.5, 2), (0.25, 1)]
)
def test_expires_in_is_what_the_sdk_can_read(issuer: TokenIssuer, lifetime: float, expires_in: int):
    # Entra too answers 3599 for an hour.
    assert issue(issuer, lifetime).expires_in(NOW) == expires_in


def test_the_key_set_verifies_our_tokens(issuer: TokenIssuer):
    [key] = jwt.PyJWKSet.from_dict(issuer.key_set()).keys
    token = issue(issuer)
    assert jwt.get_unverified_header(token.value)["kid"] == key.key_id
    jwt.decode(
        token.value,
        key.key,
        algorithms=["RS256"],
        options={
            "verify_exp": False,
            "verify_aud": False,
            "verify_iat": False,
            "verify_nbf": False,
        },
    )


@pytest.mark.parametrize(
    ("differing", "reason"),
    [
        ({}, None),
        ({"oid": "another"}, "the user name is not the oid"),
        ({"tenant_id": "another"}, "wrong issuer"),
        ({"audience": "https://vault.azure.net"}, "wrong audience"),
        ({"audience": REDIS_APP_ID}, None),
        ({"without": ("oid",)}, "no oid"),
        ({"without": ("iss", "tid")}, "wrong issuer"),
        ({"opaque": True}, "not a JWT"),
        ({"forged": True}, "wrong signature"),
        ({"extra": {"exp": NOW - 1}}, "expired"),
    ],
)
def test_tokens_can_be_spoilt(
    issuer: TokenIssuer, clock: Clock, differing: dict[str, Any], reason: str | None
):
    token = issue(issuer, **differing)
    assert gate(issuer, clock).judge(OID, token.value).reason == reason


def gate(issuer: TokenIssuer, clock: Clock, faults: Faults | None = None) -> Gate:
    return Gate(
        TokenVerifier(issuer.public_keys),
        {OID: "owner"},
        faults or Faults(),
        tenant_id=TENANT_ID,
        clock=clock,
    )


def test_a_token_of_another_authority_is_refused(issuer: TokenIssuer, clock: Clock):
    other = TokenIssuer(TENANT_ID, clock=clock)
    assert gate(issuer, clock).judge(OID, issue(other).value).reason == "unknown signing key"


def test_a_rotated_key_leaves_older_tokens_good(clock: Clock):
    issuer = TokenIssuer(TENANT_ID, clock=clock)
    judge = gate(issuer, clock).judge
    old = issue(issuer).value
    issuer.rotate(generate_key())
    new = issue(issuer).value
    kids = [jwt.get_unverified_header(token)["kid"] for token in (old, new)]
    assert kids[0] != kids[1] == issuer.key_id
    assert [each["kid"] for each in issuer.key_set()["keys"]] == kids
    assert [judge(OID, token).reason for token in (old, new)] == [None, None]


def test_the_verdict_tells_about_the_token(issuer: TokenIssuer, clock: Clock):
    token = issue(issuer, 2.5)
    verdict = gate(issuer, clock).judge(OID.upper(), token.value)
    assert verdict.reason is None
    assert (verdict.object_id, verdict.uti) == (OID, token.uti)
    assert verdict.expires_on == token.expires_on


def test_a_checked_token_expires_all_the_same(issuer: TokenIssuer, clock: Clock):
    judge = gate(issuer, clock).judge
    token = issue(issuer, 2.5).value
    assert judge(OID, token).reason is None
    clock.now += 2.5
    assert judge(OID, token).reason == "expired"


def test_faults_of_auth(issuer: TokenIssuer, clock: Clock):
    faults = Faults()
    judge = gate(issuer, clock, faults).judge
    token = issue(issuer).value
    faults.at(None).refusals.times = 2
    reasons = [judge(OID, token).reason for _ in range(3)]
    assert reasons == ["refused on demand", "refused on demand", None]
    faults.at(None).revoked.add(OID)
    assert judge(OID, token).reason == "revoked"
    faults.heal()
    assert judge(OID, token).reason is None


def test_an_identity_without_a_policy_is_refused(issuer: TokenIssuer, clock: Clock):
    token = issue(issuer, oid="another").value
    assert gate(issuer, clock).judge("another", token).reason == "no access policy assignment"


def test_the_verifiers_memory_is_bounded(issuer: TokenIssuer):
    verifier = TokenVerifier(issuer.public_keys)
    for number in range(MAX_CACHED + 5):
        assert verifier.claims(f"token {number}") == "not a JWT"
    assert len(verifier._checked) <= MAX_CACHED


def test_a_token_does_not_show_in_its_repr(issuer: TokenIssuer):
    token = issue(issuer)
    assert token.value not in repr(token)
    assert IDENTITY.secret is not None
    assert IDENTITY.secret not in repr(IDENTITY)


@pytest.mark.parametrize(
    ("scope", "audience"),
    [
        ("https://redis.azure.com/.default", "https://redis.azure.com"),
        (f"openid {REDIS_APP_ID}/.default", REDIS_APP_ID),
        ("https://redis.azure.com", None),
        ("", None),
    ],
)
def test_audience_of_a_scope(scope: str, audience: str | None):
    assert audience_of(scope) == audience
