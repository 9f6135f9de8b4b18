"""What an emulator is started with, as it travels from its user's process to its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._policies import AZURE_BLOCKED_COMMANDS
from ._settings import Settings

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """The settings to begin with, the server, and the ports (0 for any that is free)."""

    settings: Settings = field(default_factory=Settings)
    server: str | None = None
    blocked_commands: tuple[str, ...] = AZURE_BLOCKED_COMMANDS
    port: int = 0
    plaintext_port: int = 0
    authority_port: int = 0
    managed_identity_port: int = 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Options:
        rest = {**document, "blocked_commands": tuple(document["blocked_commands"])}
        return cls(**{**rest, "settings": Settings(**document["settings"])})
