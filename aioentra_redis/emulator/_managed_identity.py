"""The managed identity endpoints of a virtual machine (IMDS) and of App Service.

Both are plain HTTP and give out the platform's tokens: system-assigned without a parameter,
user-assigned by client, object or resource ID. Their times are strings of whole seconds.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Mapping

from aiohttp import web

from ._directory import Directory
from ._endpoints import Answer, platform_error, token_endpoint
from ._records import Endpoint, Identity
from ._tokens import Token

__all__ = ["APP_SERVICE_PATH", "make_managed_identity"]

APP_SERVICE_PATH = "/msi/token"
IMDS_PATH = "/metadata/identity/oauth2/token"

SELECTORS: dict[Endpoint, dict[str, str]] = {
    "imds": {
        "client_id": "client_id",
        "object_id": "object_id",
        "msi_res_id": "resource_id",
        "mi_res_id": "resource_id",
    },
    "app-service": {
        "client_id": "client_id",
        "object_id": "object_id",
        "principal_id": "object_id",
        "mi_res_id": "resource_id",
    },
}
"""Query parameter to what it selects by. Each platform has its own spelling of the resource ID."""

KNOWN = frozenset({"api-version", "resource", "bypass_cache"})


def token_document(
    token: Token, identity: Identity, resource: str, *, now: float, refresh_in: float | None
) -> dict[str, object]:
    """What a platform answers. The SDK takes no fractions, and a number only for refresh_in."""
    expires_in = token.expires_in(now)
    # Never in the past for a token that still lives: see Token.expires_in.
    expires_on = max(math.floor(token.expires_on), math.floor(now) + 1)
    document: dict[str, object] = {
        "access_token": token.value,
        "client_id": identity.client_id,
        "expires_in": str(expires_in),
        "expires_on": str(expires_on),
        "ext_expires_in": str(expires_in),
        "not_before": str(math.floor(token.issued_at)),
        "resource": resource,
        "token_type": "Bearer",
    }
    if refresh_in is not None:
        document["refresh_in"] = int(refresh_in)
    return document


class ManagedIdentity:
    """Both endpoints over one directory."""

    def __init__(
        self,
        directory: Directory,
        *,
        system_assigned: Identity,
        user_assigned: Identity,
        identity_header: str,
    ) -> None:
        self._directory = directory
        self._system_assigned = system_assigned
        self._user_assigned = user_assigned
        self._identity_header = identity_header

    async def imds(self, request: web.Request) -> Answer:
        """Answer as the instance metadata service of a virtual machine."""
        if request.headers.get("Metadata", "").lower() != "true":
            text = "Required metadata header not specified"
            return platform_error(400, "invalid_request", text), None
        return self._answer("imds", request.query)

    async def app_service(self, request: web.Request) -> Answer:
        """Answer as App Service, whose requests prove themselves with a header."""
        given = request.headers.get("X-IDENTITY-HEADER", "")
        if not hmac.compare_digest(given.encode(), self._identity_header.encode()):
            return platform_error(401, "unauthorized", "X-IDENTITY-HEADER is not right"), None
        return self._answer("app-service", request.query)

    def _answer(self, endpoint: Endpoint, query: Mapping[str, str]) -> Answer:
        if "resource" not in query:
            text = "Required query variable 'resource' is missing"
            return platform_error(400, "invalid_request", text), None
        selectors = SELECTORS[endpoint]
        unknown = [name for name in query if name not in selectors and name not in KNOWN]
        if unknown:
            # Azure ignores what it does not know and may answer with another identity's token.
            # Nobody would find out why, so the emulator is stricter.
            text = (
                f"Unknown parameter '{unknown[0]}': this endpoint selects an identity by "
                f"{', '.join(selectors)}"
            )
            return platform_error(400, "invalid_request", text), None
        wanted = {selectors[name]: query[name] for name in query if name in selectors}
        identity = self._select(wanted)
        if identity is None:
            return platform_error(400, "invalid_request", "Identity not found"), None
        directory = self._directory
        token = directory.issue_managed(identity, query["resource"], endpoint)
        document = token_document(
            token,
            identity,
            query["resource"],
            now=directory.clock(),
            refresh_in=directory.settings.refresh_in,
        )
        document.update(directory.faults.claims.answer)
        return web.json_response(document), token.uti

    def _select(self, wanted: dict[str, str]) -> Identity | None:
        if not wanted:
            return self._system_assigned
        found = self._directory.find(**wanted)
        return found if found in (self._system_assigned, self._user_assigned) else None


def make_managed_identity(
    directory: Directory,
    *,
    system_assigned: Identity,
    user_assigned: Identity,
    identity_header: str,
) -> web.Application:
    """The application to serve over HTTP on loopback."""
    platform = ManagedIdentity(
        directory,
        system_assigned=system_assigned,
        user_assigned=user_assigned,
        identity_header=identity_header,
    )
    application = web.Application()
    application.router.add_get(IMDS_PATH, token_endpoint(directory, "imds", platform.imds))
    application.router.add_get(
        APP_SERVICE_PATH, token_endpoint(directory, "app-service", platform.app_service)
    )
    return application
