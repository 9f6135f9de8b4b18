"""The fault suite: what can go wrong, done to a living client, and what came of it in figures.

It is left out of the everyday suite and run by ``nox -s faults``. A test marked ``alone`` measures
times of milliseconds, so it runs when no other test does.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cluster_fixtures import server_cluster, server_cluster_process

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
    "server_cluster",
    "server_cluster_process",
]

HERE = Path(__file__).parent

Figure = Callable[..., None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def nothing_of_the_baseline_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """What redis-py's client leaves open is collected in its own test, where it is excused."""
    yield
    if request.node.get_closest_marker("xfail") is not None:
        gc.collect()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Call it as ``figure("slowest GET", 3.2, "ms", target="under 50")``, before the assertion.

    The table at the end of the run shows it, with how the test ended (``tests/conftest.py``).
    """

    def note(name: str, value: object, unit: str = "", *, target: str = "") -> None:
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
        row = {"name": name, "value": f"{shown} {unit}".strip(), "target": target}
        request.node.user_properties.append(("figure", row))

    return note
