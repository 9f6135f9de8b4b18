"""Entra ID's token endpoint and its discovery documents, as an aiohttp application."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from aiohttp import web

from ._assertions import check_assertion
from ._certificates import Certificates
from ._directory import Directory
from ._endpoints import Answer, entra_error, token_endpoint
from ._records import Identity
from ._tokens import audience_of

__all__ = ["make_authority"]

JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Rejected(Exception):
    """A token request that Entra turns down: status, error, AADSTS number, description."""

    def __init__(self, status: int, error: str, code: int, description: str) -> None:
        super().__init__(description)
        self.response = (status, error, code, description)


class Authority:
    """The client credentials flow, with a secret or an assertion, and OpenID discovery."""

    def __init__(self, directory: Directory, certificates: Certificates, base_url: str) -> None:
        self._directory = directory
        self._certificates = certificates
        self._base_url = base_url
        self._token_url = f"{base_url}/{directory.tenant_id}/oauth2/v2.0/token"

    async def token(self, request: web.Request) -> Answer:
        """Answer a token request."""
        form = {name: value for name, value in (await request.post()).items()}
        try:
            return self._issue(request.match_info["tenant"], form)
        except Rejected as rejected:
            return entra_error(*rejected.response), None

    def _issue(self, tenant: str, form: Mapping[str, object]) -> Answer:
        def field(name: str) -> str:
            value = form.get(name, "")
            return value if isinstance(value, str) else ""

        directory = self._directory
        if tenant != directory.tenant_id:
            raise Rejected(400, "invalid_request", 90002, f"Tenant '{tenant}' not found.")
        if field("grant_type") != "client_credentials":
            grant = field("grant_type")
            raise Rejected(
                400, "unsupported_grant_type", 70003, f"The grant type '{grant}' is not supported."
            )
        identity = directory.find(client_id=field("client_id"))
        if identity is None or identity.secret is None:
            raise Rejected(
                400,
                "unauthorized_client",
                700016,
                f"Application with identifier '{field('client_id')}' was not found in the "
                f"directory '{tenant}'.",
            )
        resource = audience_of(field("scope"))
        if resource is None:
            raise Rejected(
                400,
                "invalid_scope",
                1002012,
                f"The provided value for scope {field('scope')} is not valid. Client credential "
                "flows must have a scope value with /.default suffixed to the resource "
                "identifier (application ID URI).",
            )
        by_assertion = "client_assertion" in form
        if by_assertion:
            self._check_assertion(
                identity, field("client_assertion_type"), field("client_assertion")
            )
        elif not hmac.compare_digest(field("client_secret").encode(), identity.secret.encode()):
            raise Rejected(401, "invalid_client", 7000215, "Invalid client secret provided.")
        token = directory.issue(identity, resource, endpoint="token", by_assertion=by_assertion)
        expires_in = token.expires_in(token.issued_at)
        document: dict[str, object] = {
            "token_type": "Bearer",
            "expires_in": expires_in,
            "ext_expires_in": expires_in,
            "access_token": token.value,
        }
        if directory.settings.refresh_in is not None:
            document["refresh_in"] = int(directory.settings.refresh_in)
        document.update(directory.faults.claims.answer)
        return web.json_response(document), token.uti

    def _check_assertion(self, identity: Identity, kind: str, assertion: str) -> None:
        if kind != JWT_BEARER:
            raise Rejected(
                400, "invalid_request", 900144, f"'client_assertion_type' must be {JWT_BEARER}."
            )
        rejection = check_assertion(
            assertion,
            client_id=identity.client_id,
            token_url=self._token_url,
            certificate=self._certificates.client_certificate,
            federated_key=self._certificates.federated_key,
            now=self._directory.clock(),
        )
        if rejection is not None:
            raise Rejected(401, "invalid_client", *rejection)

    async def openid_configuration(self, request: web.Request) -> web.Response:
        """The discovery document, which MSAL reads and azure.identity.aio does not."""
        base = f"{self._base_url}/{request.match_info['tenant']}"
        return web.json_response(
            {
                "issuer": f"{self._base_url}/{self._directory.tenant_id}/v2.0",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "jwks_uri": f"{base}/discovery/v2.0/keys",
                "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
                "response_types_supported": ["code"],
                "subject_types_supported": ["pairwise"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )

    async def keys(self, request: web.Request) -> web.Response:
        """The public keys of our tokens."""
        return web.json_response(self._directory.issuer.key_set())


def make_authority(
    directory: Directory, certificates: Certificates, base_url: str
) -> web.Application:
    """The application to serve over TLS at ``base_url``."""
    authority = Authority(directory, certificates, base_url)
    application = web.Application()
    application.router.add_post(
        "/{tenant}/oauth2/v2.0/token", token_endpoint(directory, "token", authority.token)
    )
    application.router.add_get(
        "/{tenant}/v2.0/.well-known/openid-configuration", authority.openid_configuration
    )
    application.router.add_get("/{tenant}/discovery/v2.0/keys", authority.keys)
    return application
