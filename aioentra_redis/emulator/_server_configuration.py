"""What a server is told at its start: its configuration file, as text. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ._policies import CLUSTER_RULES, POLICIES, password_hash

__all__ = ["MASTER", "Membership", "configuration"]

MASTER = "emulator"
"""The server's user that only we know the password of."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What makes a server the node of a cluster.

    It talks to its peers at ``port`` and ``bus_port`` of loopback, in clear; clients are told to
    come to ``client_port``, where its front is. ``secret`` is what peers sign in with.
    ``node_timeout`` is in seconds.
    """

    port: int
    bus_port: int
    client_port: int
    secret: str
    node_timeout: float

    @property
    def lines(self) -> list[str]:
        return [
            f"port {self.port}",
            "bind 127.0.0.1",
            "cluster-enabled yes",
            f"cluster-port {self.bus_port}",
            f"cluster-node-timeout {round(self.node_timeout * 1000)}",
            "cluster-announce-ip 127.0.0.1",
            # Peers can't copy from the front, which wants TLS and a token.
            f"cluster-announce-client-port {self.client_port}",
            # One shard that is lost is no reason for the others to stop.
            "cluster-require-full-coverage no",
            # A replica stays with its primary, however few others there are, and always stands
            # for election: what happens is what a test asked for.
            "cluster-allow-replica-migration no",
            "cluster-replica-validity-factor 0",
            "repl-diskless-sync-delay 0",
            f"masteruser {MASTER}",
            f"masterauth {self.secret}",
        ]


def configuration(
    *,
    directory: Path,
    socket: Path,
    master_secret: str,
    secret: str,
    policies: Mapping[str, str],
    names: Mapping[str, str],
    databases: int,
    membership: Membership | None = None,
    load_delay: int = 0,
) -> str:
    """The text of a configuration file; ``names`` maps commands to what they are called instead."""
    lines = [
        f'unixsocket "{socket}"',
        "unixsocketperm 700",
        f'dir "{directory}"',
        'save ""',
        "appendonly no",
        "daemonize no",
        "loglevel warning",
        f"databases {databases}",
        # Azure's policies say nothing of channels: they are open to everybody.
        "acl-pubsub-default allchannels",
        "user default off",
        f"user {MASTER} on {password_hash(master_secret)} +@all ~* &*",
        *(membership.lines if membership is not None else ["port 0"]),
        *_users(policies, secret, CLUSTER_RULES if membership is not None else ""),
        *(f'rename-command {name} "{new}"' for name, new in names.items() if new != name),
    ]
    if load_delay:
        lines.append(f"key-load-delay {load_delay}")
        lines.append("loading-process-events-interval-bytes 1024")  # to answer between keys
    return "\n".join(lines) + "\n"


def _users(policies: Mapping[str, str], secret: str, more: str) -> Iterable[str]:
    for object_id, policy in policies.items():
        yield f"user {object_id} on {password_hash(secret)} &* {POLICIES[policy]} {more}".rstrip()
