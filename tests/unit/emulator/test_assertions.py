"""Client assertions are checked part by part."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from aioentra_redis.emulator._assertions import check_assertion
from aioentra_redis.emulator._certificates import (
    FEDERATED_AUDIENCE,
    FEDERATED_ISSUER,
    FEDERATED_SUBJECT,
    Certificates,
    make_certificates,
)

NOW = 1_800_000_000.0
CLIENT = "client"
URL = "https://localhost:1/tenant/oauth2/v2.0/token"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"), CLIENT)


@pytest.fixture(scope="module")
def key(certificates: Certificates) -> rsa.RSAPrivateKey:
    pem = certificates.client_certificate_file.read_bytes()
    found = serialization.load_pem_private_key(pem, None)
    assert isinstance(found, rsa.RSAPrivateKey)
    return found


@pytest.fixture(scope="module")
def federated_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def thumbprint(certificates: Certificates) -> str:
    der = certificates.client_certificate.public_bytes(serialization.Encoding.DER)
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode()


def check(certificates: Certificates, federated: rsa.RSAPrivateKey, assertion: str) -> Any:
    return check_assertion(
        assertion,
        client_id=CLIENT,
        token_url=URL,
        certificate=certificates.client_certificate,
        federated_key=federated.public_key(),
        now=NOW,
    )


OWN = {"iss": CLIENT, "sub": CLIENT, "aud": URL, "nbf": NOW, "exp": NOW + 600}
FEDERATED = {"iss": FEDERATED_ISSUER, "sub": FEDERATED_SUBJECT, "exp": NOW + 600}


@pytest.mark.parametrize(
    ("changes", "headers", "algorithm", "code"),
    [
        ({}, {}, "PS256", None),
        ({}, {}, "RS256", None),
        ({}, {}, "PS384", 5002738),
        ({"iss": "another"}, {}, "PS256", 700023),
        ({"sub": "another"}, {}, "PS256", 700023),
        ({"aud": "https://elsewhere"}, {}, "PS256", 700023),
        ({"exp": NOW - 301}, {}, "PS256", 700024),
        ({"exp": "soon"}, {}, "PS256", 700024),
        ({"nbf": NOW + 301}, {}, "PS256", 700024),
        ({"nbf": "now"}, {}, "PS256", 700024),
        ({}, {"x5t#S256": "AAAA"}, "PS256", 700027),
        ({}, {"x5t": "!"}, "PS256", 700027),
    ],
)
def test_the_applications_own_assertion(
    certificates: Certificates,
    key: rsa.RSAPrivateKey,
    federated_key: rsa.RSAPrivateKey,
    changes: dict[str, Any],
    headers: dict[str, str],
    algorithm: str,
    code: int | None,
):
    good = {"x5t#S256": thumbprint(certificates)}
    assertion = jwt.encode(
        {**OWN, **changes}, key, algorithm=algorithm, headers={**good, **headers}
    )
    rejection = check(certificates, federated_key, assertion)
    assert (rejection and rejection[0]) == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"aud": FEDERATED_AUDIENCE}, None),
        ({"aud": [FEDERATED_AUDIENCE]}, None),
        ({"aud": "another"}, 700212),
        ({"aud": FEDERATED_AUDIENCE, "sub": "another"}, 700213),
    ],
)
def test_a_federated_assertion(
    certificates: Certificates,
    federated_key: rsa.RSAPrivateKey,
    changes: dict[str, Any],
    code: int | None,
):
    assertion = jwt.encode({**FEDERATED, **changes}, federated_key, algorithm="RS256")
    rejection = check(certificates, federated_key, assertion)
    assert (rejection and rejection[0]) == code


def test_a_wrong_signature(
    certificates: Certificates, federated_key: rsa.RSAPrivateKey, key: rsa.RSAPrivateKey
):
    forged = jwt.encode(OWN, federated_key, algorithm="RS256")
    assert check(certificates, federated_key, forged)[0] == 700027


def test_padding_is_tolerated(
    certificates: Certificates, federated_key: rsa.RSAPrivateKey, key: rsa.RSAPrivateKey
):
    # azure-identity signs over padded parts; a part without need of padding stays as it is.
    head, body, signature = jwt.encode(OWN, key, algorithm="RS256").split(".")
    assert check(certificates, federated_key, f"{head}.{body}.{signature}==") is None


@pytest.mark.parametrize("malformed", ["", "a.b", "a.b.c", "!.!.!", "W10.W10.W10"])
def test_what_is_no_jwt(
    certificates: Certificates, federated_key: rsa.RSAPrivateKey, malformed: str
):
    assert check(certificates, federated_key, malformed)[0] == 50027


def test_files_with_secrets_are_private(certificates: Certificates):
    for path in (certificates.client_certificate_file, certificates.federated_token_file):
        assert Path(path).stat().st_mode & 0o077 == 0
    bundle = certificates.ca_bundle.read_text()
    assert bundle.count("BEGIN CERTIFICATE") > 50
    assert bundle.endswith(certificates.ca_file.read_text())
