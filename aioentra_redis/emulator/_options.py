"""What an emulator is started with, as it travels from its user's process to its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._policies import check_policy
from ._profiles import PROFILES, Profile, find_profile
from ._settings import Settings

__all__ = ["DEFAULT_PROFILE", "Options"]

DEFAULT_PROFILE = next(iter(PROFILES))


@dataclass(frozen=True, slots=True)
class Options:
    """The settings to begin with, the profile, the server, and the ports (0 for any that is free).

    ``blocked_commands`` are the profile's if not given. ``primaries``, ``replicas`` (of each) and
    ``node_timeout`` (seconds) are a cluster's. ValueError for what does not fit the profile.
    """

    settings: Settings = field(default_factory=Settings)
    profile: str = DEFAULT_PROFILE
    primaries: int = 3
    replicas: int = 1
    node_timeout: float = 2.0
    server: str | None = None
    blocked_commands: tuple[str, ...] | None = None
    port: int = 0
    plaintext_port: int = 0
    authority_port: int = 0
    managed_identity_port: int = 0

    def __post_init__(self) -> None:
        check_policy(self.settings.policy, self.offer.policies)
        if self.offer.clustered and self.plaintext_port:
            raise ValueError(f"{self.profile} is for TLS alone: it has no plaintext port")
        if self.primaries < 1 or self.replicas < 0:
            raise ValueError("a cluster has 1 primary or more, with 0 replicas or more each")
        if self.node_timeout <= 0:
            raise ValueError("node_timeout must be more than 0 seconds")

    @property
    def offer(self) -> Profile:
        """What of Azure's is stood in for."""
        return find_profile(self.profile)

    @property
    def blocked(self) -> tuple[str, ...]:
        """The commands that are blocked."""
        given = self.blocked_commands
        return self.offer.blocked_commands if given is None else given

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Options:
        blocked = document["blocked_commands"]
        rest = {**document, "blocked_commands": None if blocked is None else tuple(blocked)}
        return cls(**{**rest, "settings": Settings(**document["settings"])})
