"""Checking client assertions: certificates (PS256, RS256) and federated credentials."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from ._certificates import FEDERATED_AUDIENCE, FEDERATED_ISSUER, FEDERATED_SUBJECT

__all__ = ["check_assertion"]

SKEW = 300.0
"""Seconds that clocks may differ by."""

PADDINGS: dict[str, padding.AsymmetricPadding] = {
    "PS256": padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32),
    "RS256": padding.PKCS1v15(),
}

Rejection = tuple[int, str]
"""The number behind AADSTS and the text."""


def check_assertion(
    assertion: str,
    *,
    client_id: str,
    token_url: str,
    certificate: x509.Certificate,
    federated_key: rsa.RSAPublicKey,
    now: float,
) -> Rejection | None:
    """Why Entra would reject this assertion of ``client_id``, or None if it is good.

    An assertion is the application's own, signed with its certificate's key and addressed to
    ``token_url``, or one of the federated issuer. Azure's SDK leaves base64 padding in the parts
    of the former, which PyJWT would not take.
    """
    try:
        head, body, signature = assertion.split(".")
        header = _decode_json(head)
        claims = _decode_json(body)
        signed = _decode(signature)
    except ValueError:
        return 50027, "JWT token is invalid or malformed."
    scheme = PADDINGS.get(str(header.get("alg")))
    if scheme is None:
        return 5002738, f"The algorithm '{header.get('alg')}' is not supported."
    if claims.get("iss") == FEDERATED_ISSUER:
        rejection = _check_federated(claims)
        key = federated_key
    else:
        rejection = _check_own(claims, header, client_id, token_url, certificate)
        certified = certificate.public_key()
        if not isinstance(certified, rsa.RSAPublicKey):
            raise TypeError("the client certificate must have an RSA key")
        key = certified
    if rejection is not None:
        return rejection
    try:
        key.verify(signed, f"{head}.{body}".encode(), scheme, hashes.SHA256())
    except InvalidSignature:
        return 700027, "Client assertion failed signature validation."
    if not _within(claims.get("nbf", now), now, claims.get("exp")):
        return 700024, "Client assertion is not within its valid time range."
    return None


def _within(begins: object, now: float, ends: object) -> bool:
    if not isinstance(begins, (int, float)) or not isinstance(ends, (int, float)):
        return False
    return begins - SKEW <= now <= ends + SKEW


def _check_federated(claims: Mapping[str, Any]) -> Rejection | None:
    subject, audience = claims.get("sub"), claims.get("aud")
    if subject != FEDERATED_SUBJECT:
        return 700213, (
            "No matching federated identity record found for presented assertion subject "
            f"'{subject}'."
        )
    if FEDERATED_AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
        return 700212, (
            "No matching federated identity record found for presented assertion audience "
            f"'{audience}'."
        )
    return None


def _check_own(
    claims: Mapping[str, Any],
    header: Mapping[str, Any],
    client_id: str,
    token_url: str,
    certificate: x509.Certificate,
) -> Rejection | None:
    if not claims.get("iss") == claims.get("sub") == client_id:
        return 700023, "Client assertion issuer and subject must be the client ID."
    if claims.get("aud") != token_url:
        return 700023, f"Client assertion audience '{claims.get('aud')}' is not {token_url}."
    der = certificate.public_bytes(serialization.Encoding.DER)
    thumbprints = {
        "x5t": hashlib.sha1(der).digest(),
        "x5t#S256": hashlib.sha256(der).digest(),
    }
    for name, thumbprint in thumbprints.items():
        expected = base64.urlsafe_b64encode(thumbprint).decode().rstrip("=")
        if name in header and str(header[name]).rstrip("=") != expected:
            return 700027, (
                "The certificate with identifier used to sign the client assertion is not "
                "registered on application."
            )
    return None


def _decode(segment: str) -> bytes:
    stripped = segment.rstrip("=")
    return base64.urlsafe_b64decode(stripped + "=" * (-len(stripped) % 4))


def _decode_json(segment: str) -> dict[str, Any]:
    """A JWT segment; ValueError if it is no JSON object."""
    document = json.loads(_decode(segment))
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the assertion is malformed
    return document
