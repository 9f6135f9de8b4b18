"""A pytest plugin that puts other clients in the place of redis-py's asynchronous ones.

It has to be loaded with ``-p``, as the tests' own conftest already imports the class. It also
writes the outcome of each phase of each test to a file, for the comparison.
"""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import IO

import pytest
import pytest_asyncio
import redis.asyncio
import redis.asyncio.cluster

from aioentra_redis import EntraRedis, EntraRedisCluster

from .mocks import MockableNode, use_mockable_nodes
from .tokens import (
    ROTATION,
    TokenClusterSignIn,
    TokenSignIn,
    close_source,
    events,
    rotate_every,
)

PLAIN: dict[str, type] = {
    "Redis": redis.asyncio.Redis,
    "StrictRedis": redis.asyncio.Redis,
    "RedisCluster": redis.asyncio.RedisCluster,
    "ClusterNode": redis.asyncio.cluster.ClusterNode,
}
"""The classes that give way, by the names under which modules know them."""

CLIENTS: dict[str, dict[str, type]] = {
    "plain": PLAIN,
    "entra": {
        "Redis": EntraRedis,
        "StrictRedis": EntraRedis,
        "RedisCluster": EntraRedisCluster,
        "ClusterNode": MockableNode,
    },
    "tokens": {
        "Redis": TokenSignIn,
        "StrictRedis": TokenSignIn,
        "RedisCluster": TokenClusterSignIn,
        "ClusterNode": MockableNode,
    },
}


def swap(classes: Mapping[str, type]) -> None:
    """Bind every name under which redis-py's modules hold a class to ours.

    What was derived from it (redis-py's ``Pipeline``) keeps the class that it was derived from.
    """
    if classes is not PLAIN:
        use_mockable_nodes()
    for module in [each for name, each in sys.modules.items() if name.startswith("redis.")]:
        for name, ours in classes.items():
            if getattr(module, name, None) is PLAIN[name]:
                setattr(module, name, ours)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--client", choices=sorted(CLIENTS), default="plain")
    group.addoption("--rotation", type=float, default=ROTATION, help="seconds")
    group.addoption("--outcomes", required=True, help="the file for the outcomes")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    swap(CLIENTS[early_config.known_args_namespace.client])


def pytest_configure(config: pytest.Config) -> None:
    rotate_every(config.getoption("--rotation"))
    config.pluginmanager.register(Recorder(config.getoption("--outcomes")))


def pytest_report_header(config: pytest.Config) -> str:
    classes = (redis.asyncio.Redis, redis.asyncio.RedisCluster)
    return "clients: " + ", ".join(f"{each.__module__}.{each.__qualname__}" for each in classes)


class Recorder:
    """Writes each outcome when it is known, so that a run which dies leaves what it had."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def pytest_sessionstart(self) -> None:
        self._file = open(self._path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def pytest_sessionfinish(self) -> None:
        if self._file is not None:
            self._file.close()
        with open(f"{self._path}.events", "w", encoding="utf-8") as file:
            json.dump(dict(events), file)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        kind: str = report.outcome
        if hasattr(report, "wasxfail"):
            kind = "xfailed" if report.skipped else "xpassed"
        message = ""
        if report.failed:
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            message = lines[0][1:].strip() if lines else report.longreprtext[-200:]
        assert self._file is not None
        self._file.write(json.dumps([report.nodeid, kind, message]) + "\n")


# -- what would hang -----------------------------------------------------------------------------

NEVER_OVER = "::test_set_nodes_disconnects_removed_node_connections_after_use"
"""It waits for what redis-py's list of nodes would do to the connections of one."""

NEVER_OVER_WITH_TOKENS = "TestBaseException::test_base_exception["
"""It waits for what redis-py's parser would raise, which no subscriber with tokens reads from; cut
off by its timeout it would leave the parsers of all tests behind it mocked."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    endless = []
    if redis.asyncio.RedisCluster is not PLAIN["RedisCluster"]:
        endless.append(NEVER_OVER)
    if redis.asyncio.Redis is TokenSignIn:
        endless.append(NEVER_OVER_WITH_TOKENS)
    for item in items:
        if any(name in item.nodeid for name in endless):
            item.add_marker(pytest.mark.xfail(run=False, reason="it would never end"))


# -- what runs side by side ----------------------------------------------------------------------

FIXED_PORT = "test_cwe_404.py"
"""Its proxy listens on a port that is written into it: one such test at a time on a machine."""


@pytest.fixture(autouse=True)
def fixed_port(request: pytest.FixtureRequest) -> Iterator[None]:
    """Wait, no longer than another run's test takes, until the port is ours."""
    if request.node.path.name != FIXED_PORT:
        yield
        return
    with (Path(tempfile.gettempdir()) / f"{FIXED_PORT}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- tokens: one source for each test's loop, closed when the test is over -----------------------


@pytest_asyncio.fixture
async def closing_source() -> AsyncIterator[None]:
    yield
    await close_source(asyncio.get_running_loop())


@pytest.fixture(autouse=True)
def token_source(request: pytest.FixtureRequest) -> None:
    """Set up before the tests' own fixtures, so that their clients are closed first."""
    function = getattr(request, "function", None)
    if redis.asyncio.Redis is TokenSignIn and inspect.iscoroutinefunction(function):
        request.getfixturevalue("closing_source")
