"""The emulator's fixtures, whether or not the package is installed with its entry points."""

from __future__ import annotations

from aioentra_redis.emulator.pytest_plugin import (
    entra_emulator,
    entra_emulator_options,
    entra_emulator_process,
)

__all__ = ["entra_emulator", "entra_emulator_options", "entra_emulator_process"]
