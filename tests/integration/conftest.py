"""The emulator's fixtures, whether or not the package is installed, and a plain cluster's."""

from __future__ import annotations

import math

import pytest
from support.cluster_fixtures import server_cluster, server_cluster_process

from aioentra_redis._multiplex import _rotation
from aioentra_redis.emulator.pytest_plugin import (
    entra_cluster,
    entra_cluster_options,
    entra_cluster_process,
    entra_emulator,
    entra_emulator_options,
    entra_emulator_process,
)

__all__ = [
    "entra_cluster",
    "entra_cluster_options",
    "entra_cluster_process",
    "entra_emulator",
    "entra_emulator_options",
    "entra_emulator_process",
    "in_place",
    "server_cluster",
    "server_cluster_process",
]


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no answered AUTH count as slow: on a busy machine one is, and has a connection replaced.

    For tests that count connections; what slow servers lead to is told in ``test_slow_auth``.
    """
    monkeypatch.setattr(_rotation, "SLOW_AUTH", math.inf)
