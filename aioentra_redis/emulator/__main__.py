"""``python -m aioentra_redis.emulator``: run the emulator in a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ._environment import KINDS
from ._options import Options
from ._policies import POLICIES
from ._serve import serve, supervised
from ._settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run until interrupted; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m aioentra_redis.emulator",
        description="A local stand-in for Entra ID and Azure's Redis, for development only.",
    )
    add = parser.add_argument
    add("--token-lifetime", type=float, default=3600.0, metavar="SECONDS")
    add("--managed-identity-lifetime", type=float, default=86400.0, metavar="SECONDS")
    add("--refresh-in", type=float, metavar="SECONDS", help="what the endpoints advise")
    add("--policy", choices=tuple(POLICIES), default="owner", help="access policy of everybody")
    add("--server", metavar="NAME", help="valkey-server, redis-server or a path")
    add("--port", type=int, default=0, help="of Redis over TLS (any free one)")
    add("--plaintext-port", type=int, default=0, help="of Redis in clear")
    add("--authority-port", type=int, default=0, help="of the Entra authority")
    add("--managed-identity-port", type=int, default=0, help="of IMDS and App Service")
    add("--sign-in", choices=KINDS, default="client-secret", help="whose variables to print")
    add("--supervised", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.supervised:
        return supervised()
    try:
        settings = Settings(
            token_lifetime=given.token_lifetime,
            refresh_in=given.refresh_in,
            managed_identity_lifetime=given.managed_identity_lifetime,
            policy=given.policy,
        )
    except ValueError as error:
        parser.error(str(error))
    options = Options(
        settings=settings,
        server=given.server,
        port=given.port,
        plaintext_port=given.plaintext_port,
        authority_port=given.authority_port,
        managed_identity_port=given.managed_identity_port,
    )
    return serve(options, kind=given.sign_in)


if __name__ == "__main__":
    sys.exit(main())
