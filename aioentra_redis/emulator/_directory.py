"""The tenant: which identities there are, and what happens to their tokens."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ._records import AuthAttempt, ConnectionClose, Endpoint, Identity, IdentityRequest, IssuedToken
from ._settings import Claims, Faults, Settings
from ._tokens import REDIS_APP_ID, REDIS_RESOURCE, Token, TokenIssuer

__all__ = ["TENANT_ID", "Directory", "Events", "make_identities"]

TENANT_ID = "0e11a500-0000-4000-8000-000000000000"
SUBSCRIPTION = "/subscriptions/0e11a500-0000-4000-8000-0000000000ff/resourceGroups/emulator"
MAX_EVENTS = 100_000
"""Of each kind, so that an emulator may run for weeks."""

RENEWAL_LEAD = 300.0
"""Seconds before its end at which the platform replaces a managed identity's cached token."""


def make_identities(certificate_path: str | None = None) -> dict[str, Identity]:
    """The three identities, by name. All but the secret is the same at every start."""
    return {
        "service_principal": Identity(
            client_id="0e11a500-0000-4000-8000-00000000c001",
            object_id="0e11a500-0000-4000-8000-00000000a001",
            secret=secrets.token_urlsafe(24),
            certificate_path=certificate_path,
        ),
        "system_assigned": Identity(
            client_id="0e11a500-0000-4000-8000-00000000c002",
            object_id="0e11a500-0000-4000-8000-00000000a002",
            resource_id=f"{SUBSCRIPTION}/providers/Microsoft.Compute/virtualMachines/emulator",
        ),
        "user_assigned": Identity(
            client_id="0e11a500-0000-4000-8000-00000000c003",
            object_id="0e11a500-0000-4000-8000-00000000a003",
            resource_id=(
                f"{SUBSCRIPTION}/providers/Microsoft.ManagedIdentity"
                "/userAssignedIdentities/emulator"
            ),
        ),
    }


class Events:
    """What happened, for ``Emulator.log``; the oldest is forgotten when there is too much."""

    def __init__(self) -> None:
        self.tokens: deque[IssuedToken] = deque(maxlen=MAX_EVENTS)
        self.requests: deque[IdentityRequest] = deque(maxlen=MAX_EVENTS)
        self.auths: deque[AuthAttempt] = deque(maxlen=MAX_EVENTS)
        self.closes: deque[ConnectionClose] = deque(maxlen=MAX_EVENTS)

    def clear(self) -> None:
        self.tokens.clear()
        self.requests.clear()
        self.auths.clear()
        self.closes.clear()


class Directory:
    """The identities of one tenant and the issuing of their tokens, faults included."""

    def __init__(
        self,
        identities: Iterable[Identity],
        issuer: TokenIssuer,
        *,
        settings: Settings,
        faults: Faults,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.identities = list(identities)
        self.issuer = issuer
        self.settings = settings
        self.faults = faults
        self.events = events
        self.clock = clock
        self._platform_cache: dict[tuple[str, str], Token] = {}

    @property
    def tenant_id(self) -> str:
        return self.issuer.tenant_id

    def find(self, **wanted: str) -> Identity | None:
        """The identity with this ``client_id``, ``object_id`` or ``resource_id``, any case."""
        for identity in self.identities:
            if all(
                (getattr(identity, name) or "").lower() == value.lower()
                for name, value in wanted.items()
            ):
                return identity
        return None

    def issue(
        self,
        identity: Identity,
        resource: str,
        *,
        endpoint: Endpoint,
        lifetime: float | None = None,
        by_assertion: bool = False,
    ) -> Token:
        """Issue a token for an identity and note it in the log."""
        managed = endpoint in ("imds", "app-service")
        if lifetime is None:
            settings = self.settings
            lifetime = settings.managed_identity_lifetime if managed else settings.token_lifetime
        token = self.issuer.issue(
            identity,
            audience=canonical_resource(resource),
            lifetime=lifetime,
            differing=self.faults.claims,
            managed=managed,
            by_assertion=by_assertion,
        )
        self.events.tokens.append(
            IssuedToken(
                time=token.issued_at,
                uti=token.uti,
                object_id=token.object_id,
                audience=token.audience,
                expires_on=token.expires_on,
                endpoint=endpoint,
            )
        )
        return token

    def issue_managed(self, identity: Identity, resource: str, endpoint: Endpoint) -> Token:
        """The token that a managed identity's platform gives out, which is often a cached one.

        Azure keeps it until it nears its end, and nobody can force a newer one. How near is
        ``RENEWAL_LEAD``, or half the life of a short-lived token.
        """
        key = (identity.object_id, canonical_resource(resource))
        token = self._platform_cache.get(key)
        if token is not None and self.settings.managed_identity_caching:
            lead = min(RENEWAL_LEAD, (token.expires_on - token.issued_at) / 2)
            if self.clock() < token.expires_on - lead:
                return token
        token = self.issue(identity, resource, endpoint=endpoint)
        self._platform_cache[key] = token
        return token

    def note_request(self, endpoint: Endpoint, status: int, uti: str | None) -> None:
        self.events.requests.append(IdentityRequest(self.clock(), endpoint, status, uti))

    def change_settings(self, changes: dict[str, Any]) -> None:
        """Apply ``changes``; the platform forgets its tokens, so that they take effect."""
        self.settings = self.settings.changed(changes)
        self.forget_tokens()

    def change_claims(self, changes: dict[str, Any]) -> None:
        """Make tokens issued from now on differ from good ones as ``changes`` says."""
        changes = {**changes, "without": tuple(changes.get("without", ()))}
        self.faults.claims = replace(Claims(), **changes)
        self.forget_tokens()

    def forget_tokens(self) -> None:
        """Empty the platform's cache of managed identities' tokens."""
        self._platform_cache.clear()


def canonical_resource(resource: str) -> str:
    """Entra issues tokens for Redis under its URI, by whichever of its names it is asked."""
    trimmed = resource.rstrip("/")
    return REDIS_RESOURCE if trimmed in (REDIS_APP_ID, REDIS_RESOURCE) else resource
