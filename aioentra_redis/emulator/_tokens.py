"""Issuing tokens as Entra ID does, and checking them as Azure's Redis does."""

from __future__ import annotations

import base64
import hashlib
import math
import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ._records import Identity
from ._settings import Claims

__all__ = [
    "REDIS_APP_ID",
    "REDIS_RESOURCE",
    "Token",
    "TokenIssuer",
    "TokenVerifier",
    "audience_of",
    "generate_key",
    "refusal",
]

REDIS_RESOURCE = "https://redis.azure.com"
REDIS_APP_ID = "acca5fbb-b7e4-4009-81f1-37e38fd66d78"
AUDIENCES = frozenset({REDIS_RESOURCE, REDIS_RESOURCE + "/", REDIS_APP_ID})
"""Azure's Redis is one resource with two names; real tokens carry either."""

SHORT_LIFETIME = 60.0
"""Below this many seconds ``iat`` and ``exp`` are fractions: cutting off up to a second of a token
that lives for two would make nonsense of it. Longer tokens have whole seconds, like Entra's."""

MAX_CACHED = 4096


def base64url(data: bytes) -> str:
    """Base64 for URLs, without padding, as JOSE has it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def audience_of(scope: str) -> str | None:
    """The resource that a scope (``https://redis.azure.com/.default``) is for; None if none."""
    for each in scope.split():
        if each.endswith("/.default"):
            return each.removesuffix("/.default")
    return None


@dataclass(frozen=True, slots=True)
class Token:
    """A token and what is known about it. The repr does not show the token."""

    value: str
    uti: str
    object_id: str | None
    audience: str
    issued_at: float
    expires_on: float

    def __repr__(self) -> str:
        return f"<Token {self.uti} of {self.object_id} until {self.expires_on}>"

    def expires_in(self, now: float) -> int:
        """The ``expires_in`` of a response: whole seconds, rounded down, but at least 1.

        The Azure SDK adds it to the whole second of its request and takes no fractions; 0 would
        mean a token that has expired on arrival.
        """
        return max(1, math.floor(self.expires_on - now + 1e-6))


def generate_key() -> rsa.RSAPrivateKey:
    """A new signing key; blocks for some tens of milliseconds."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class TokenIssuer:
    """Signs tokens with a key of its own, which can be rotated."""

    def __init__(self, tenant_id: str, *, clock: Callable[[], float]) -> None:
        self.tenant_id = tenant_id
        self._clock = clock
        self.public_keys: dict[str, rsa.RSAPublicKey] = {}
        """Every key that has signed tokens, by key ID; the last one is in use."""
        self._forger: rsa.RSAPrivateKey | None = None
        self.rotate(generate_key())

    def rotate(self, key: rsa.RSAPrivateKey) -> None:
        """Sign with ``key`` from now on; tokens that another key has signed remain good."""
        self._key = key
        public = key.public_key()
        der = public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.key_id = base64url(hashlib.sha256(der).digest())
        self.public_keys[self.key_id] = public

    def key_set(self) -> dict[str, list[dict[str, str]]]:
        """The JSON Web Key Set with which anybody can verify our tokens."""
        keys = []
        for key_id, public in self.public_keys.items():
            numbers = public.public_numbers()
            modulus = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")
            exponent = numbers.e.to_bytes(3, "big")
            key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": key_id}
            keys.append({**key, "n": base64url(modulus), "e": base64url(exponent)})
        return {"keys": keys}

    def issue(
        self,
        identity: Identity,
        *,
        audience: str,
        lifetime: float,
        differing: Claims,
        managed: bool = False,
        by_assertion: bool = False,
    ) -> Token:
        """Issue a token for ``lifetime`` seconds, with the claims of Entra's version 1 tokens."""
        now = self._clock()
        claims = token_claims(
            identity,
            tenant_id=differing.tenant_id or self.tenant_id,
            audience=differing.audience or audience,
            now=now,
            lifetime=lifetime,
            managed=managed,
            by_assertion=by_assertion,
        )
        if differing.oid is not None:
            claims["oid"] = claims["sub"] = differing.oid
        claims.update(differing.extra)
        for name in differing.without:
            claims.pop(name, None)
        uti = str(claims.get("uti", ""))
        if differing.opaque:
            value = base64url(secrets.token_bytes(256))
        else:
            headers = {"kid": self.key_id, "x5t": self.key_id}
            key = self._forging_key() if differing.forged else self._key
            value = jwt.encode(claims, key, algorithm="RS256", headers=headers)
        return Token(
            value=value,
            uti=uti,
            object_id=claims.get("oid"),
            audience=str(claims.get("aud", audience)),
            issued_at=now,
            expires_on=float(claims.get("exp", now + lifetime)),
        )

    def _forging_key(self) -> rsa.RSAPrivateKey:
        if self._forger is None:
            self._forger = generate_key()
        return self._forger


def token_claims(
    identity: Identity,
    *,
    tenant_id: str,
    audience: str,
    now: float,
    lifetime: float,
    managed: bool,
    by_assertion: bool,
) -> dict[str, Any]:
    """The claims of an application's access token (version 1), as Entra issues it for Redis."""
    issuer = f"https://sts.windows.net/{tenant_id}/"
    short = lifetime < SHORT_LIFETIME
    issued = now if short else math.floor(now)
    expires = now + lifetime if short else math.floor(now + lifetime)
    claims: dict[str, Any] = {
        "aud": audience,
        "iss": issuer,
        "iat": issued,
        "nbf": issued,
        "exp": expires,
        "aio": base64url(secrets.token_bytes(24)),
        "appid": identity.client_id,
        "appidacr": "2" if managed or by_assertion else "1",
        "idp": issuer,
        "idtyp": "app",
        "oid": identity.object_id,
        "rh": "1.",
        "sub": identity.object_id,
        "tid": tenant_id,
        "uti": base64url(uuid.uuid4().bytes),
        "ver": "1.0",
    }
    if managed and identity.resource_id is not None:
        claims["xms_mirid"] = identity.resource_id
    return claims


def refusal(claims: Mapping[str, Any], *, user: str, tenant_id: str, now: float) -> str | None:
    """Why a token with these verified claims does not sign ``user`` in now; None if it does."""
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if AUDIENCES.isdisjoint(named):
        return "wrong audience"
    issuers = (
        f"https://sts.windows.net/{tenant_id}/",
        f"https://login.microsoftonline.com/{tenant_id}/v2.0",
    )
    if claims.get("iss") not in issuers or claims.get("tid", tenant_id) != tenant_id:
        return "wrong issuer"
    expires = claims.get("exp")
    if not isinstance(expires, (int, float)):
        return "no expiry"
    if expires <= now:
        return "expired"
    not_before = claims.get("nbf", 0)
    if not isinstance(not_before, (int, float)) or not_before > now + 1:
        return "not valid yet"
    object_id = claims.get("oid")
    if not isinstance(object_id, str):
        return "no oid"
    if object_id.lower() != user.lower():
        return "the user name is not the oid"
    return None


class TokenVerifier:
    """Checks signatures; a token that has been checked is remembered.

    ``keys`` are the authority's, by key ID; they may become more.
    """

    def __init__(self, keys: Mapping[str, rsa.RSAPublicKey]) -> None:
        self._keys = keys
        self._checked: dict[str, dict[str, Any] | str] = {}

    def claims(self, token: str) -> dict[str, Any] | str:
        """The claims of a token that we signed, or why they can't be trusted.

        Says nothing about the claims themselves: ``refusal`` does, each time anew. Checking costs
        some 200 microseconds, remembering well under one.
        """
        known = self._checked.get(token)
        if known is None:
            known = self._verify(token)
            if len(self._checked) >= MAX_CACHED:
                self._checked.clear()
            self._checked[token] = known
        return known

    def _verify(self, token: str) -> dict[str, Any] | str:
        try:
            key = self._keys.get(jwt.get_unverified_header(token).get("kid", ""))
            if key is None:
                return "unknown signing key"
            # The claims are for `refusal`: PyJWT cuts fractions off times.
            options: Any = {
                f"verify_{each}": False
                for each in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
            }
            found: dict[str, Any] = jwt.decode(token, key, algorithms=["RS256"], options=options)
            return found
        except jwt.InvalidSignatureError:
            return "wrong signature"
        except jwt.PyJWTError:
            return "not a JWT"
