"""Access policies as access control lists, word for word as Azure Cache for Redis defines them.

Source: Microsoft's "Configure role-based access control with Data Access Policy". Azure Managed
Redis has one policy, ``default``, which allows the same as Data Owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = [
    "AZURE_BLOCKED_COMMANDS",
    "CLUSTER_RULES",
    "POLICIES",
    "acl_rules",
    "check_policy",
    "password_hash",
]

POLICIES: dict[str, str] = {
    "owner": "+@all allkeys",
    "contributor": ("+@all -@dangerous +cluster|info +cluster|nodes +cluster|slots allkeys"),
    "reader": "+@read +@connection +cluster|info +cluster|nodes +cluster|slots allkeys",
    "default": "+@all allkeys",
}
"""Name to ACL rules. Channels are not mentioned: on Azure they are open to everybody, which
``acl-pubsub-default allchannels`` reproduces."""

AZURE_BLOCKED_COMMANDS: tuple[str, ...] = (
    "BGREWRITEAOF",
    "BGSAVE",
    "CONFIG",
    "DEBUG",
    "MIGRATE",
    "SAVE",
    "SHUTDOWN",
    "SLAVEOF",
)
"""What Azure Cache for Redis answers with ``ERR unknown command``."""


CLUSTER_RULES = "-cluster " + " ".join(
    f"+cluster|{name}"
    for name in (
        "countkeysinslot",
        "getkeysinslot",
        "help",
        "info",
        "keyslot",
        "links",
        "myid",
        "nodes",
        "replicas",
        "shards",
        "slaves",
        "slots",
    )
)
"""Rules behind a policy's own where there is a cluster, whose shape is not a client's to change."""


def check_policy(policy: str, known: Iterable[str] = tuple(POLICIES)) -> str:
    """Return the policy's name, or raise ValueError with the names there are."""
    if policy not in known:
        raise ValueError(f"unknown access policy {policy!r}: use one of {', '.join(known)}")
    return policy


def password_hash(secret: str) -> str:
    """The form in which an ACL holds a password without revealing it."""
    return "#" + hashlib.sha256(secret.encode()).hexdigest()


def acl_rules(policy: str, secret: str, more: str = "") -> list[str]:
    """The rules of ``ACL SETUSER`` that make a user of this policy, whatever it was before.

    The rules in ``more`` come last.
    """
    rules = f"{POLICIES[check_policy(policy)]} {more}".split()
    return ["reset", "on", password_hash(secret), *rules]
