"""A service principal's certificate in every form that is taken."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

__all__ = ["certificates"]


def certificates(path: str) -> dict[str, tuple[Any, str | bytes | None]]:
    """One certificate in each form that is taken, with its password."""
    pem = Path(path).read_bytes()
    key: Any = serialization.load_pem_private_key(pem, None)
    certificate = x509.load_pem_x509_certificate(pem)

    def archive(password: bytes | None) -> bytes:
        encryption = (
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption()
        )
        return pkcs12.serialize_key_and_certificates(b"x", key, certificate, None, encryption)

    return {
        "path": (path, None),
        "Path": (Path(path), None),
        "PEM bytes": (pem, None),
        "PKCS12 bytes": (archive(None), None),
        "PKCS12 bytes, password": (archive(b"open sesame"), "open sesame"),
        "PKCS12 base64": (base64.b64encode(archive(b"open sesame")).decode(), b"open sesame"),
    }
