"""Environment variables that lead unmodified Azure credentials to the emulator."""

from __future__ import annotations

from typing import Literal, get_args

from ._records import StartDetails

__all__ = ["KINDS", "Kind", "environ"]

Kind = Literal["client-secret", "certificate", "workload-identity", "imds", "app-service"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def environ(details: StartDetails, kind: Kind) -> dict[str, str]:
    """The variables for one way of signing in, REDIS_URL and SSL_CERT_FILE included.

    Set SSL_CERT_FILE before the program starts: aiohttp reads it when it is imported.
    """
    principal = details.service_principal
    common = {"REDIS_URL": details.url, "SSL_CERT_FILE": details.ca_bundle}
    application = {
        "AZURE_AUTHORITY_HOST": details.authority,
        "AZURE_TENANT_ID": details.tenant_id,
        "AZURE_CLIENT_ID": principal.client_id,
    }
    match kind:
        case "client-secret":
            own = {**application, "AZURE_CLIENT_SECRET": principal.secret or ""}
        case "certificate":
            path = principal.certificate_path or ""
            own = {**application, "AZURE_CLIENT_CERTIFICATE_PATH": path}
        case "workload-identity":
            own = {**application, "AZURE_FEDERATED_TOKEN_FILE": details.federated_token_file}
        case "imds":
            own = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": details.managed_identity_url}
        case "app-service":
            own = {
                "IDENTITY_ENDPOINT": details.app_service_url,
                "IDENTITY_HEADER": details.identity_header,
            }
        case _:
            raise ValueError(f"unknown kind {kind!r}: use one of {', '.join(KINDS)}")
    return {**common, **own}
