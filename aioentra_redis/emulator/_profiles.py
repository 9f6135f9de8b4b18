"""What Azure offers, as far as a client can tell the offers apart.

==================  =====================  ======================================================
Profile             Azure's name for it    What is behind the entry
==================  =====================  ======================================================
``acr``             Azure Cache for Redis  one server, 16 databases, three access policies
``amr-oss``         Azure Managed Redis,   a cluster: primaries with replicas, a port for each,
                    OSS cluster policy     IPs in the topology
``amr-enterprise``  Azure Managed Redis,   one endpoint, one database; CLUSTER is unknown. That
                    Enterprise policy      commands with keys of several slots fail is not shown
``amr-nocluster``   Azure Managed Redis,   one endpoint, one database
                    no clustering
==================  =====================  ======================================================

Source: Microsoft's "Azure Managed Redis: architecture", "Redis commands not supported" and
"Configure role-based access control with Data Access Policy".
"""

from __future__ import annotations

from dataclasses import dataclass

from ._policies import AZURE_BLOCKED_COMMANDS

__all__ = ["PROFILES", "Profile", "find_profile"]

AMR_BLOCKED_COMMANDS: tuple[str, ...] = (
    *AZURE_BLOCKED_COMMANDS,
    "MOVE",
    "PSYNC",
    "REPLCONF",
    "REPLICAOF",
    "SELECT",
    "SYNC",
)
"""What Azure Managed Redis does not know. It has no MODULE LOAD either, which servers refuse by
themselves unless they are configured otherwise."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Profile:
    """One of Azure's offers. The first of ``policies`` is the one that identities begin with.

    ``certificate_names`` are what Redis's certificate is good for: on Azure Managed Redis the
    name of the entry, and not the addresses that the topology names.
    """

    name: str
    policies: tuple[str, ...]
    blocked_commands: tuple[str, ...]
    certificate_names: tuple[str, ...]
    databases: int = 1
    clustered: bool = False


PROFILES: dict[str, Profile] = {
    each.name: each
    for each in (
        Profile(
            "acr",
            policies=("owner", "contributor", "reader"),
            blocked_commands=AZURE_BLOCKED_COMMANDS,
            certificate_names=LOOPBACK,
            databases=16,
        ),
        Profile(
            "amr-oss",
            policies=("default",),
            blocked_commands=AMR_BLOCKED_COMMANDS,
            certificate_names=("localhost",),
            clustered=True,
        ),
        Profile(
            "amr-enterprise",
            policies=("default",),
            blocked_commands=(*AMR_BLOCKED_COMMANDS, "CLUSTER"),
            certificate_names=("localhost",),
        ),
        Profile(
            "amr-nocluster",
            policies=("default",),
            blocked_commands=AMR_BLOCKED_COMMANDS,
            certificate_names=("localhost",),
        ),
    )
}
"""By name; the first is the default."""


def find_profile(name: str) -> Profile:
    """The profile of that name, or ValueError with the names there are."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: use one of {', '.join(PROFILES)}")
    return PROFILES[name]
