"""``python -m aioentra_redis.emulator``: run the emulator in a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ._environment import KINDS
from ._options import DEFAULT_PROFILE, Options
from ._policies import POLICIES
from ._profiles import PROFILES
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
    add("--profile", choices=tuple(PROFILES), default=DEFAULT_PROFILE, help="Azure's offer")
    add("--primaries", type=int, default=3, metavar="N", help="of a cluster")
    add("--replicas", type=int, default=1, metavar="N", help="of each primary")
    add("--node-timeout", type=float, default=2.0, metavar="SECONDS", help="until one is lost")
    add("--policy", choices=tuple(POLICIES), help="access policy of everybody")
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
            policy=given.policy or PROFILES[given.profile].policies[0],
        )
        options = Options(
            settings=settings,
            profile=given.profile,
            primaries=given.primaries,
            replicas=given.replicas,
            node_timeout=given.node_timeout,
            server=given.server,
            port=given.port,
            plaintext_port=given.plaintext_port,
            authority_port=given.authority_port,
            managed_identity_port=given.managed_identity_port,
        )
    except ValueError as error:
        parser.error(str(error))
    return serve(options, kind=given.sign_in)


if __name__ == "__main__":
    sys.exit(main())
