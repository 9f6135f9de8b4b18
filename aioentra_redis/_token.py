"""The access token: what AUTH sends, for whom it was issued and until when it is good.

A token's claims are read, not verified: verifying is the server's business. They are needed here
because Azure wants the object ID (``oid``) as the user name, and because a token for another
resource or one that has expired must not travel at all.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from ._redaction import Secret, Veiled
from .errors import InvalidTokenError

__all__ = ["REDIS_RESOURCE", "REDIS_RESOURCE_ID", "REDIS_SCOPE", "Token", "resources_of"]

REDIS_RESOURCE = "https://redis.azure.com"
REDIS_RESOURCE_ID = "acca5fbb-b7e4-4009-81f1-37e38fd66d78"
"""The same resource by application ID; a token of version 2.0 names its audience this way."""
REDIS_SCOPE = f"{REDIS_RESOURCE}/.default"

_REDIS_AUDIENCES = frozenset({REDIS_RESOURCE, REDIS_RESOURCE_ID})


class Token:
    """An immutable access token that never shows its secret.

    Times are seconds since the epoch, as floats; ``lifetime`` is in seconds. ``repr()``,
    ``str()`` and ``format()`` show the user name, version and expiry only; pickling raises
    :exc:`TypeError`; copying returns the same object. Two tokens are equal if their secrets are.
    """

    __slots__ = (
        "__weakref__",
        "_secret",
        "audience",
        "claimed_expiry",
        "expires_on",
        "first_seen",
        "issued_on",
        "oid",
        "refresh_on",
        "seen_at",
        "tenant_id",
        "username",
        "version",
    )

    username: str
    """What AUTH sends as the user name: the object ID, unless one was configured."""
    oid: str | None
    tenant_id: str | None
    audience: str | None
    expires_on: float
    """The smaller of what the credential said and the ``exp`` claim.

    By this machine's clock: where that is behind the authority's, which the ``iat`` claim gives
    away, it is as long after ``first_seen`` as the claims say that the token lives.
    """
    claimed_expiry: float | None
    """The ``exp`` claim, by the authority's clock."""
    refresh_on: float | None
    """When the identity provider wants the token renewed, where it says so."""
    issued_on: float | None
    """The ``iat`` claim."""
    first_seen: float
    """When this process got the token, by the source's wall clock."""
    seen_at: float | None
    """The same moment by the event loop's clock, which nobody steps."""
    version: int
    """1, 2, 3 ... for the tokens that one source publishes."""

    def __init__(
        self,
        secret: str | Secret,
        *,
        username: str,
        expires_on: float,
        first_seen: float,
        version: int = 1,
        oid: str | None = None,
        tenant_id: str | None = None,
        audience: str | None = None,
        refresh_on: float | None = None,
        issued_on: float | None = None,
        claimed_expiry: float | None = None,
        seen_at: float | None = None,
    ) -> None:
        values = {
            "_secret": secret if isinstance(secret, Secret) else Secret(secret),
            "username": username,
            "oid": oid,
            "tenant_id": tenant_id,
            "audience": audience,
            "expires_on": expires_on,
            "refresh_on": refresh_on,
            "issued_on": issued_on,
            "claimed_expiry": claimed_expiry,
            "first_seen": first_seen,
            "seen_at": seen_at,
            "version": version,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def read(
        cls,
        secret: Secret,
        *,
        expires_on: object,
        refresh_on: object = None,
        now: float,
        seen_at: float | None = None,
        version: int = 1,
        resources: Iterable[str] = (REDIS_RESOURCE,),
        username: str | None = None,
    ) -> Token:
        """Make a token from what a credential returned.

        ``expires_on`` and ``refresh_on`` are the credential's values in seconds since the epoch,
        int or float; ``seen_at`` is the loop's time of ``now``;
        ``resources`` what the token was requested for. Only ``oid`` is required of
        the claims, and not even that if a ``username`` is configured, which then is used as it
        is. Raises :exc:`InvalidTokenError`, whose ``claim`` names the culprit.
        """
        claims = _claims(secret)
        if claims is None and username is None:
            raise InvalidTokenError(
                "the credential returned something that is not a JWT, so the object ID that Azure"
                " expects as the user name can't be read from it. Pass username= if the server"
                " knows this user by another name, or check which credential is in use.",
            )
        claims = claims or {}
        oid = _text(claims, "oid")
        user = username or oid
        if user is None:
            raise InvalidTokenError(
                "the token has no 'oid' claim, and Azure expects the object ID as the user name."
                f" {_whose(claims)} Use a credential of a user, service principal or managed"
                " identity, or pass username= with the object ID that the access policy names.",
                claim="oid",
            )
        audience = _checked_audience(claims, frozenset(resources))
        expiry = _expiry(claims, expires_on, now)
        if expiry <= now:
            raise InvalidTokenError(
                f"the credential returned a token that expired at {_clock_time(expiry)}, and it is"
                f" {_clock_time(now)} here. If that is not the right time, set this machine's"
                " clock; otherwise the credential's cache is stale: sign in again.",
                claim="exp",
            )
        return cls(
            secret,
            username=user,
            oid=oid,
            tenant_id=_text(claims, "tid"),
            audience=audience,
            expires_on=expiry,
            refresh_on=_number(refresh_on),
            issued_on=_number(claims.get("iat")),
            claimed_expiry=_number(claims.get("exp")),
            first_seen=now,
            seen_at=seen_at,
            version=version,
        )

    @property
    def secret(self) -> str:
        """The raw token, to be sent to the server and nowhere else; its ``repr()`` is veiled."""
        return Veiled(self._secret.reveal())  # type: ignore[attr-defined]

    @property
    def lifetime(self) -> float:
        """How long the token lives, in seconds: the L of all lead times.

        ``exp - iat`` where both are known, else expiry minus first seen; that as well if ``iat``
        lies ahead, because this machine's clock is behind the authority's.
        """
        issue = self.first_seen if self.issued_on is None else self.issued_on
        return max(0.0, self.expires_on - min(issue, self.first_seen))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a token is immutable; can't set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a token is immutable; can't delete {name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Token):
            return NotImplemented
        return bool(self._secret == other._secret)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self._secret)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return (
            f"<Token {self.version} of {self.username!r},"
            f" expires {_clock_time(self.expires_on)}, secret hidden>"
        )

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __copy__(self) -> Token:
        return self

    def __deepcopy__(self, memo: object) -> Token:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a token can't be pickled: it would leave the process in clear")


def resources_of(scopes: Iterable[str]) -> frozenset[str]:
    """Return the resources that ``scopes`` name, in lower case, without a trailing slash.

    ``https://redis.azure.com/.default`` names ``https://redis.azure.com``, and a delegated scope
    such as ``https://redis.azure.com/user_impersonation`` names the same.
    """
    resources = set()
    for scope in scopes:
        resource = scope.strip().lower()
        if resource.endswith("/.default"):
            resource = resource.removesuffix("/.default")
        elif resource.count("/") > 2:
            resource = resource.rpartition("/")[0]
        resources.add(resource.rstrip("/"))
    return frozenset(resources)


def _checked_audience(claims: Mapping[str, Any], requested: frozenset[str]) -> str | None:
    """Return the ``aud`` claim if it is what was requested, by URI or by GUID; else raise."""
    claimed = claims.get("aud")
    names = claimed if isinstance(claimed, list) else [claimed]
    audiences = [name for name in names if isinstance(name, str) and name]
    if not audiences:
        return None
    allowed = {resource.strip().lower().rstrip("/") for resource in requested}
    allowed |= {resource.removeprefix("api://") for resource in allowed}
    # The sovereign clouds' URIs stand for the same application, and so for the same GUID.
    if any(name in _REDIS_AUDIENCES or "://redis.azure." in name for name in allowed):
        allowed |= _REDIS_AUDIENCES
    for audience in audiences:
        plain = audience.strip().lower().rstrip("/")
        if plain in allowed or plain.removeprefix("api://") in allowed:
            return audience
    raise InvalidTokenError(
        f"the token is for {', '.join(map(repr, audiences))} ('aud'), but was requested for"
        f" {', '.join(map(repr, sorted(requested)))}; it was not sent. {_whose(claims)} Check"
        f" scopes= (default {REDIS_SCOPE!r}) and what the credential does with them.",
        claim="aud",
    )


def _expiry(claims: Mapping[str, Any], expires_on: object, now: float) -> float:
    told = _number(expires_on)
    if told is None:
        raise InvalidTokenError(
            f"the credential returned expires_on of type {type(expires_on).__name__}; it should be"
            " a number of seconds since the epoch.",
            claim="expires_on",
        )
    claimed, issued = _number(claims.get("exp")), _number(claims.get("iat"))
    if claimed is None:
        return told
    if issued is not None and now < issued < claimed:
        claimed -= issued - now  # the authority's clock is ahead of this one by that much
    return min(told, claimed)


def _claims(secret: Secret) -> Mapping[str, Any] | None:
    """Return the claims of a JWT, or None if ``secret`` is none.

    It does not raise, so that no traceback ever has a frame with the raw token in its locals.
    """
    parts = secret.reveal().split(".")
    if len(parts) not in (2, 3):
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = json.loads(payload)
    except (binascii.Error, ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    return value if isinstance(value, str) and value else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _whose(claims: Mapping[str, Any]) -> str:
    known = [f"{n} {v!r}" for n in ("oid", "appid", "azp", "tid") if (v := _text(claims, n))]
    return f"(Token of {', '.join(known)}.)" if known else "(It names no identity.)"


def _clock_time(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (OverflowError, ValueError, OSError):
        return f"{seconds!r} s since the epoch"
