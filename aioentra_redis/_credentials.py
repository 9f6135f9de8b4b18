"""The credentials of azure-identity, one recipe for each way to sign in.

The only module that imports azure, and only inside functions that run in a thread when a
credential is first needed: that import costs up to 0.7 s. ``options`` are keyword arguments of
azure's constructors (``authority=``, ``connection_verify=``, ``proxies=``, ...).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from ._acquirer import Recipe, token_method
from ._redaction import Secret
from .errors import ConfigurationError

__all__ = [
    "Certificate",
    "client_certificate",
    "client_secret",
    "credential_factory",
    "credential_object",
    "default",
    "developer_tools",
    "environment",
    "managed_identity",
    "workload_identity",
]


def credential_object(credential: object) -> Recipe:
    """A credential that was passed in: kept, never closed. Raises :exc:`ConfigurationError`."""
    if isinstance(credential, type):
        raise ConfigurationError(
            f"credential= should be an instance: {credential.__name__}(...), not the class itself"
        )
    try:
        token_method(credential)
    except TypeError as error:
        raise ConfigurationError(
            f"{error}; pass one of azure.identity.aio, or use a TokenSource.from_...() constructor"
        ) from None
    return Recipe(
        type(credential).__name__,
        lambda: credential,
        fresh=False,
        owned=False,
        instance=credential,
    )


def credential_factory(factory: Callable[[], object]) -> Recipe:
    """A function that makes a new credential for each renewal; the instances are ours to close."""
    if not callable(factory):
        raise ConfigurationError("factory should be a function that returns a new credential")
    return Recipe(getattr(factory, "__name__", type(factory).__name__), factory, fresh=True)


def default(options: Mapping[str, Any]) -> Recipe:
    """``DefaultAzureCredential``: one object, because its chain must not be walked anew."""
    return Recipe("DefaultAzureCredential", _maker("DefaultAzureCredential", options), fresh=False)


def developer_tools(options: Mapping[str, Any]) -> Recipe:
    """The Azure CLI, then the Azure Developer CLI, as one chain."""
    chosen = _checked(options)
    # The command line tools make no HTTP requests of their own and take no such options.
    unknown = chosen.keys() - {"tenant_id", "additionally_allowed_tenants", "process_timeout"}
    if unknown:
        raise ConfigurationError(
            f"developer tools take tenant_id=, additionally_allowed_tenants= and process_timeout=,"
            f" not {', '.join(sorted(unknown))}"
        )

    def make() -> object:
        from azure.identity import aio

        return aio.ChainedTokenCredential(
            aio.AzureCliCredential(**chosen), aio.AzureDeveloperCliCredential(**chosen)
        )

    return Recipe("developer tools", make, fresh=False, tenant_id=chosen.get("tenant_id"))


def client_secret(
    tenant_id: str, client_id: str, secret: Secret, options: Mapping[str, Any]
) -> Recipe:
    """A service principal with a client secret."""
    _require_text(tenant_id=tenant_id, client_id=client_id, client_secret=secret)
    chosen = _http_options(options)

    def make() -> object:
        from azure.identity import aio

        return aio.ClientSecretCredential(tenant_id, client_id, secret.reveal(), **chosen)

    return Recipe(
        "ClientSecretCredential", make, fresh=True, tenant_id=tenant_id, client_id=client_id
    )


class Certificate:
    """A certificate with its private key, and its password, held out of sight.

    ``certificate`` is a path, bytes (PEM or PKCS12), PEM text, or base64 of a PKCS12 file. Raises
    :exc:`ConfigurationError` if it is none of these; a file is not looked at here.
    """

    __slots__ = ("_data", "_password", "path")

    def __init__(
        self, certificate: str | bytes | os.PathLike[str], password: str | bytes | None
    ) -> None:
        held, key = certificate, password
        del certificate, password
        self.path: str | None = None
        self._data: Callable[[], bytes | None] = lambda: None
        self._password: Callable[[], str | bytes | None] = lambda: key
        if not held or not isinstance(held, str | bytes | os.PathLike):
            raise ConfigurationError(
                "certificate should be a path, the bytes of a PEM or PKCS12 file, or base64 of a"
                f" PKCS12 file, not {type(held).__name__ if held else 'empty'}"
            )
        data = _certificate_data(held)
        if data is None:
            self.path = os.fspath(held)  # type: ignore[assignment]
        else:
            self._data = lambda: data

    def arguments(self) -> dict[str, Any]:
        """Return azure's keyword arguments. Keep them out of local variables."""
        return {
            "certificate_path": self.path,
            "certificate_data": self._data(),
            "password": self._password(),
        }


def client_certificate(
    tenant_id: str, client_id: str, certificate: Certificate, options: Mapping[str, Any]
) -> Recipe:
    """A service principal with a certificate."""
    _require_text(tenant_id=tenant_id, client_id=client_id)
    chosen = _http_options(options)

    def make() -> object:
        from azure.identity import aio

        return aio.CertificateCredential(tenant_id, client_id, **certificate.arguments(), **chosen)

    return Recipe(
        "CertificateCredential", make, fresh=True, tenant_id=tenant_id, client_id=client_id
    )


def managed_identity(identity: Mapping[str, str | None], options: Mapping[str, Any]) -> Recipe:
    """The managed identity of this machine; the platform caches, so one object is kept.

    ``identity`` has at most one of ``client_id``, ``object_id``, ``resource_id``; empty for the
    system-assigned one.
    """
    given = {name: value for name, value in identity.items() if value}
    if len(given) > 1:
        raise ConfigurationError(
            f"pass one of client_id=, object_id=, resource_id=, not {' and '.join(sorted(given))}"
        )
    chosen = _http_options(options)
    if "client_id" in given:
        chosen["client_id"] = given["client_id"]
    elif given:
        chosen["identity_config"] = _identity_parameter(given)
    return Recipe(
        "ManagedIdentityCredential",
        _maker("ManagedIdentityCredential", chosen),
        fresh=False,
        client_id=next(iter(given.values()), None),
    )


def workload_identity(
    tenant_id: str | None,
    client_id: str | None,
    token_file_path: str | None,
    options: Mapping[str, Any],
) -> Recipe:
    """Workload identity on Kubernetes; what is None comes from ``AZURE_*`` variables."""
    chosen = _http_options(options)

    def make() -> object:
        from azure.identity import aio

        credential = aio.WorkloadIdentityCredential(
            tenant_id=tenant_id, client_id=client_id, token_file_path=token_file_path, **chosen
        )
        # It reads the file at its first request, on the loop, and remembers the content. Here we
        # are in a thread, so let it read now; without that method it merely reads later.
        read = getattr(credential, "_get_service_account_token", None)
        if callable(read):
            read()
        return credential

    return Recipe(
        "WorkloadIdentityCredential",
        make,
        fresh=True,
        tenant_id=tenant_id or os.environ.get("AZURE_TENANT_ID"),
        client_id=client_id or os.environ.get("AZURE_CLIENT_ID"),
    )


def environment(options: Mapping[str, Any]) -> Recipe:
    """A service principal that ``AZURE_*`` environment variables describe."""
    return Recipe(
        "EnvironmentCredential",
        _maker("EnvironmentCredential", options),
        fresh=True,
        tenant_id=os.environ.get("AZURE_TENANT_ID"),
        client_id=os.environ.get("AZURE_CLIENT_ID"),
    )


def _identity_parameter(given: Mapping[str, str]) -> dict[str, str]:
    """The query parameter that names an identity; azure passes it to the platform as it is.

    The resource ID goes by ``mi_res_id`` on App Service and Container Apps, and by ``msi_res_id``
    at the endpoint of virtual machines (Microsoft, "How to use managed identities" for each).
    """
    if "resource_id" not in given:
        return dict(given)
    name = "mi_res_id" if os.environ.get("IDENTITY_ENDPOINT") else "msi_res_id"
    return {name: given["resource_id"]}


def _maker(name: str, options: Mapping[str, Any]) -> Callable[[], object]:
    chosen = _http_options(options)

    def make() -> object:
        from azure.identity import aio

        return getattr(aio, name)(**chosen)

    return make


def _http_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a credential that makes HTTP requests: the retries are ours, not azure's."""
    return {"retry_total": 0, **_checked(options)}


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    if options.get("logging_enable"):
        raise ConfigurationError(
            "logging_enable=True would write secrets and tokens to the log, unredacted"
        )
    return {name: value for name, value in options.items() if value is not None}


def _require_text(**values: object) -> None:
    for name, value in values.items():
        text = value.reveal() if isinstance(value, Secret) else value
        if not text or not isinstance(text, str):
            raise ConfigurationError(f"{name} should be a non-empty string")


def _certificate_data(certificate: str | bytes | os.PathLike[str]) -> bytes | None:
    """Return the certificate's bytes, or None if ``certificate`` is a path.

    Base64 of a PKCS12 file starts with ``MI``, because the file is DER.
    """
    if isinstance(certificate, bytes):
        if certificate.startswith(b"0") or b"-----BEGIN" in certificate:
            return certificate
        return _decoded(certificate.decode("ascii", "replace")) or certificate
    if isinstance(certificate, str):
        return certificate.encode() if "-----BEGIN" in certificate else _decoded(certificate)
    return None


def _decoded(text: str) -> bytes | None:
    compact = re.sub(r"\s+", "", text)
    if len(compact) < 200 or not compact.startswith("MI"):
        return None
    try:
        return base64.b64decode(compact, validate=True)
    except binascii.Error:
        return None
