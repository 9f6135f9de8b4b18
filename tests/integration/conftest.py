"""The emulator's fixtures, whether or not the package is installed, and a plain cluster's."""

from __future__ import annotations

from support.cluster_fixtures import server_cluster, server_cluster_process

from aioentra_redis.emulator.pytest_plugin import (
    entra_emulator,
    entra_emulator_options,
    entra_emulator_process,
)

__all__ = [
    "entra_emulator",
    "entra_emulator_options",
    "entra_emulator_process",
    "server_cluster",
    "server_cluster_process",
]
