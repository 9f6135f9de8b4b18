"""``aioentra-redis emulator``: what it prints, and running it in the foreground."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any, Final, TextIO

import typer

from ..emulator._environment import KINDS, Kind, environ
from ..emulator._options import DEFAULT_PROFILE, Options
from ..emulator._profiles import find_profile
from ..emulator._records import StartDetails
from ..emulator._serve import serve
from ..emulator._settings import Settings

__all__ = ["as_document", "as_text", "host"]

CREDENTIALS: Final[dict[Kind, str]] = {
    "client-secret": "ClientSecretCredential, EnvironmentCredential",
    "certificate": "CertificateCredential, EnvironmentCredential",
    "workload-identity": "WorkloadIdentityCredential",
    "imds": "ManagedIdentityCredential on a virtual machine",
    "app-service": "ManagedIdentityCredential in App Service",
}
"""Which of azure-identity's credentials read the variables of each kind."""


def host(
    *,
    as_json: bool,
    kinds: tuple[Kind, ...] = KINDS,
    token_lifetime: float,
    managed_identity_lifetime: float,
    refresh_in: float | None,
    profile: str = DEFAULT_PROFILE,
    policy: str | None = None,
    out: TextIO | None = None,
    **rest: Any,
) -> int:
    """Run an emulator until SIGINT or SIGTERM; returns the exit status, 1 if it can't start and 2
    for options that don't go together.

    ``kinds`` are the ways to sign in whose variables are printed, ``rest`` is the emulator's
    cluster, server and ports, as in ``Emulator``. Blocks, without an event loop.
    """
    try:
        options = Options(
            settings=Settings(
                token_lifetime=token_lifetime,
                managed_identity_lifetime=managed_identity_lifetime,
                refresh_in=refresh_in,
                policy=policy if policy is not None else find_profile(profile).policies[0],
            ),
            profile=profile,
            **rest,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    stream = sys.stdout if out is None else out

    def describe(details: StartDetails) -> str:
        if as_json:
            return json.dumps(as_document(details, kinds)) + "\n"
        return as_text(details, kinds, colour=stream.isatty() and "NO_COLOR" not in os.environ)

    return serve(options, out=stream, describe=describe)


def as_document(details: StartDetails, kinds: tuple[Kind, ...] = KINDS) -> dict[str, Any]:
    """What one needs to use it, for programs; ``environment`` has the variables of each kind."""
    principal = details.service_principal
    return {
        "purpose": "development only",
        "pid": os.getpid(),
        "server": details.server_version,
        "profile": details.profile,
        "url": details.url,
        "plaintext_url": details.plaintext_url,
        "authority": details.authority,
        "managed_identity_url": details.managed_identity_url,
        "ca_file": details.ca_file,
        "ca_bundle": details.ca_bundle,
        "tenant_id": details.tenant_id,
        "client_id": principal.client_id,
        "client_secret": principal.secret,
        "object_id": principal.object_id,
        "environment": {kind: environ(details, kind) for kind in kinds},
    }


def as_text(details: StartDetails, kinds: tuple[Kind, ...] = KINDS, *, colour: bool = False) -> str:
    """What one needs to use it, for people: comments and ``export`` lines, ready for a shell.

    The secrets in it are made up at each start and good for nothing else.
    """
    lines = [
        typer.style(line, dim=True) if colour and line.startswith("#") else line
        for line in _lines(details, kinds)
    ]
    return "\n".join([*lines, ""])


def _lines(details: StartDetails, kinds: tuple[Kind, ...]) -> Iterator[str]:
    principal = details.service_principal
    yield "# aioentra-redis emulator: Entra ID and a Redis that enforces its tokens."
    yield "# For development only. It listens on loopback and forgets everything at its end."
    yield "#"
    for name, value in {
        "server": details.server_version,
        "profile": details.profile,
        "Redis over TLS": details.url,
        **({"Redis in clear": details.plaintext_url} if details.plaintext_url else {}),
        "Entra authority": details.authority,
        "managed identity": details.managed_identity_url,
        "CA certificate": details.ca_file,
        "CA and certifi's": details.ca_bundle,
        "tenant": details.tenant_id,
        "client ID": principal.client_id,
        "client secret": principal.secret,
        "object ID": f"{principal.object_id} (the Redis user name)",
    }.items():
        yield f"#   {name:<18}{value}"
    every = [environ(details, kind).items() for kind in kinds]
    common = [item for item in every[0] if all(item in other for other in every)]
    yield "#"
    yield "# In the shell of your program, whatever it signs in with:"
    if len(kinds) > 1:
        yield from _exports(common)
        yield "# and one of these:"
    for kind, own in zip(kinds, every, strict=True):
        yield f"# {kind}: {CREDENTIALS[kind]}"
        yield from _exports(
            own if len(kinds) == 1 else [each for each in own if each not in common]
        )
    yield "# Ctrl-C ends it."


def _exports(variables: Any) -> Iterator[str]:
    for name, value in variables:
        yield f"export {name}={shlex.quote(value)}"
