"""Fixtures of the emulator, for anybody's tests; loaded by pytest through an entry point.

``entra_emulator``
    a running emulator, fresh for each test: no faults, no data, no connections, an empty log.
    The process behind it is shared by the session.
``entra_emulator_options``
    override this (session scope) to start it with other keyword arguments of ``Emulator``.
``entra_cluster``, ``entra_cluster_options``
    the same with a cluster, as Azure Managed Redis has it (``profile="amr-oss"``). A test that
    has changed its topology costs the next one about two seconds.

Importing this module costs next to nothing: the emulator is imported when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ._emulator import Emulator

__all__ = [
    "entra_cluster",
    "entra_cluster_options",
    "entra_cluster_process",
    "entra_emulator",
    "entra_emulator_options",
    "entra_emulator_process",
]


@pytest.fixture(scope="session")
def entra_emulator_options() -> dict[str, Any]:
    """Keyword arguments of the session's ``Emulator``."""
    return {}


@pytest.fixture(scope="session")
def entra_emulator_process(entra_emulator_options: dict[str, Any]) -> Iterator[Emulator]:
    """The session's emulator as the last test left it; ``entra_emulator`` is what tests want."""
    from ._emulator import Emulator

    with Emulator(**entra_emulator_options) as emulator:
        yield emulator


@pytest.fixture
def entra_emulator(entra_emulator_process: Emulator) -> Emulator:
    """A running emulator in its initial state."""
    entra_emulator_process.reset_blocking()
    return entra_emulator_process


@pytest.fixture(scope="session")
def entra_cluster_options() -> dict[str, Any]:
    """Keyword arguments of the session's ``Emulator`` with a cluster, but for the profile."""
    return {}


@pytest.fixture(scope="session")
def entra_cluster_process(entra_cluster_options: dict[str, Any]) -> Iterator[Emulator]:
    """The session's cluster as the last test left it; ``entra_cluster`` is what tests want."""
    from ._emulator import Emulator

    with Emulator(profile="amr-oss", **entra_cluster_options) as emulator:
        yield emulator


@pytest.fixture
def entra_cluster(entra_cluster_process: Emulator) -> Emulator:
    """A running emulator of a cluster in its initial state."""
    entra_cluster_process.reset_blocking()
    return entra_cluster_process
