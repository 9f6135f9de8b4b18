"""The keys, certificates and files of one run, written to its private directory."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import certifi
import jwt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from ._server_control import CertificateKind

__all__ = [
    "FEDERATED_AUDIENCE",
    "FEDERATED_ISSUER",
    "FEDERATED_SUBJECT",
    "CertificateKind",
    "Certificates",
    "make_certificates",
]

FEDERATED_ISSUER = "https://oidc.emulator.invalid/"
FEDERATED_SUBJECT = "system:serviceaccount:default:emulator"
FEDERATED_AUDIENCE = "api://AzureADTokenExchange"
VALID_FOR = datetime.timedelta(days=30)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
OTHER_NAME = "other.redis.invalid"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where the files are, and the public halves that assertions are checked against.

    ``ca_file`` holds the local CA alone; ``ca_bundle`` holds it after certifi's, because
    SSL_CERT_FILE replaces a program's trust store instead of adding to it. ``server_context`` is
    for the authority, ``redis_context`` for Redis; both may present other certificates.
    """

    ca_file: Path
    ca_bundle: Path
    client_certificate_file: Path
    federated_token_file: Path
    client_certificate: x509.Certificate
    federated_key: rsa.RSAPublicKey
    server_context: ssl.SSLContext
    redis_context: ssl.SSLContext
    authority: trustme.CA
    redis_names: tuple[str, ...] = LOOPBACK_NAMES

    def present(self, kind: str, *, to: Literal["redis", "identity"] = "redis") -> None:
        """Present this certificate to whoever connects to Redis, or to the authority, from now on.

        ValueError for anything but a ``CertificateKind``.
        """
        if kind not in get_args(CertificateKind):
            raise ValueError(f"no kind of certificate: {kind!r}")
        authority = trustme.CA() if kind == "unknown-ca" else self.authority
        own = self.redis_names if to == "redis" else LOOPBACK_NAMES
        names = (OTHER_NAME,) if kind == "other-name" else own
        end = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        certificate = authority.issue_cert(*names, not_after=end if kind == "expired" else None)
        certificate.configure_cert(self.redis_context if to == "redis" else self.server_context)


def make_certificates(
    directory: Path, client_id: str, redis_names: tuple[str, ...] = LOOPBACK_NAMES
) -> Certificates:
    """Make and write everything; blocks for some tens of milliseconds.

    ``redis_names`` are what Redis's certificate is good for; the authority's is for loopback.
    """
    authority = trustme.CA(organization_name="aioentra_redis emulator")
    ca_file = directory / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    ca_bundle = directory / "ca-bundle.pem"
    ca_bundle.write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    contexts = [_server_context(authority, names) for names in (LOOPBACK_NAMES, redis_names)]

    client_certificate_file = directory / "client.pem"
    certificate, pem = _client_certificate(client_id)
    _write_private(client_certificate_file, pem)

    federated_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    federated_token_file = directory / "federated-token"
    _write_private(federated_token_file, _federated_token(federated_key))

    return Certificates(
        ca_file=ca_file,
        ca_bundle=ca_bundle,
        client_certificate_file=client_certificate_file,
        federated_token_file=federated_token_file,
        client_certificate=certificate,
        federated_key=federated_key.public_key(),
        server_context=contexts[0],
        redis_context=contexts[1],
        authority=authority,
        redis_names=redis_names,
    )


def _server_context(authority: trustme.CA, names: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    authority.issue_cert(*names).configure_cert(context)
    return context


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _client_certificate(client_id: str) -> tuple[x509.Certificate, bytes]:
    """A self-signed certificate, as uploaded to an app registration, and its PEM with the key.

    The key is RSA: azure-identity signs its assertions with PS256.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, client_id)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + VALID_FOR)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate, private + certificate.public_bytes(serialization.Encoding.PEM)


def _federated_token(key: rsa.RSAPrivateKey) -> bytes:
    """The service account token that Kubernetes would project into a pod."""
    now = datetime.datetime.now(datetime.UTC)
    claims = {
        "iss": FEDERATED_ISSUER,
        "sub": FEDERATED_SUBJECT,
        "aud": [FEDERATED_AUDIENCE],
        "iat": now,
        "exp": now + VALID_FOR,
    }
    return jwt.encode(claims, key, algorithm="RS256").encode()
