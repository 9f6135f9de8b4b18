"""What the emulator tells its users: identities, details of a start, and the log.

All are frozen dataclasses that travel as JSON between the emulator's process and its user's.
Times are seconds since the epoch, as ``time.time()`` gives them. No record carries a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "AuthAttempt",
    "CloseReason",
    "ConnectionClose",
    "Endpoint",
    "Identity",
    "IdentityRequest",
    "IssuedToken",
    "Listener",
    "Log",
    "Node",
    "OpenConnection",
    "StartDetails",
]

Endpoint = Literal["token", "imds", "app-service", "control"]
"""Where a token came from: the authority's token endpoint, IMDS, App Service, or
``Emulator.issue_token``."""

Listener = Literal["tls", "plaintext"]

CloseReason = Literal["expiry", "dropped", "client", "server"]
"""Why a connection ended: its token expired, ``drop_connections``, the client went away, or the
server did (a restart, QUIT, CLIENT KILL, a protocol error)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A security principal that the emulator knows.

    ``object_id`` is the user name to sign in to Redis with; ``client_id`` is the application's.
    Which of the rest is set depends on the kind: a service principal has a secret and a
    certificate, a user-assigned managed identity has a resource ID.
    """

    client_id: str
    object_id: str
    resource_id: str | None = None
    secret: str | None = field(default=None, repr=False)
    certificate_path: str | None = None


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token that was signed. ``uti`` is the token's own identifier, as in its claims."""

    time: float
    uti: str
    object_id: str | None
    audience: str
    expires_on: float
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class IdentityRequest:
    """A token request that was answered, well or badly; ``uti`` names the token it got.

    A managed identity's platform answers many requests with one cached token, and failures issue
    none, so there may be more requests than tokens.
    """

    time: float
    endpoint: Endpoint
    status: int
    uti: str | None


@dataclass(frozen=True, slots=True)
class AuthAttempt:
    """An AUTH, or HELLO with AUTH, whose outcome is known.

    ``connection`` is the front's own number of the connection, ``node`` that of the node it leads
    to. ``object_id`` is the user name that was given, ``uti`` and ``expires_on`` come from the
    token where it could be verified. ``reason`` says why it was refused (``None`` if it was not).
    """

    time: float
    connection: int
    command: Literal["AUTH", "HELLO"]
    object_id: str
    accepted: bool
    reason: str | None
    uti: str | None
    expires_on: float | None
    node: int = 1


@dataclass(frozen=True, slots=True)
class ConnectionClose:
    """A connection that ended; ``object_id`` is who was signed in on it, if anybody."""

    time: float
    connection: int
    reason: CloseReason
    object_id: str | None
    node: int = 1


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """A connection that is open now and when its token ends it."""

    connection: int
    listener: Listener
    object_id: str | None
    expires_on: float | None
    node: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """One server, as those that run see it, or as they last saw it.

    ``number`` begins at 1 and never changes. ``host`` and ``port`` are what the topology names and
    where the node's front listens. ``slots`` are ranges, both ends included; ``primary`` is the
    number of the node that a replica copies. Where there is no cluster, node 1 has all slots.
    """

    number: int
    host: str
    port: int
    role: Literal["primary", "replica"]
    running: bool
    slots: tuple[tuple[int, int], ...] = ()
    primary: int | None = None
    node_id: str | None = None

    def owns(self, slot: int) -> bool:
        """Whether the slot is this node's."""
        return any(first <= slot <= last for first, last in self.slots)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Node:
        slots = tuple((first, last) for first, last in document["slots"])
        return cls(**{**document, "slots": slots})


@dataclass(frozen=True, slots=True)
class Log:
    """Everything that happened since the start or the last ``reset``, oldest first."""

    tokens: list[IssuedToken]
    requests: list[IdentityRequest]
    auths: list[AuthAttempt]
    closes: list[ConnectionClose]

    @classmethod
    def from_json(cls, document: Mapping[str, list[dict[str, Any]]]) -> Log:
        return cls(
            tokens=[IssuedToken(**each) for each in document["tokens"]],
            requests=[IdentityRequest(**each) for each in document["requests"]],
            auths=[AuthAttempt(**each) for each in document["auths"]],
            closes=[ConnectionClose(**each) for each in document["closes"]],
        )


@dataclass(frozen=True, slots=True)
class StartDetails:
    """What a started emulator reports to its parent: addresses, files and identities."""

    url: str
    plaintext_url: str | None
    authority: str
    managed_identity_url: str
    app_service_url: str
    identity_header: str = field(repr=False)
    control_path: str
    directory: str
    ca_file: str
    ca_bundle: str
    federated_token_file: str
    tenant_id: str
    service_principal: Identity
    system_assigned: Identity
    user_assigned: Identity
    server_version: str
    profile: str = "acr"

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StartDetails:
        identities = {
            name: Identity(**document[name])
            for name in ("service_principal", "system_assigned", "user_assigned")
        }
        return cls(**{**document, **identities})
