"""Imports go downward only, and each outside thing has one module that may touch it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import aioentra_redis

PACKAGE = "aioentra_redis"

LEVELS: tuple[frozenset[str], ...] = tuple(
    frozenset(level.split())
    for level in (
        "errors",
        "_event_streams _events _lifecycle _maintenance _metrics _redaction _repeats _threads",
        "_token _token_states _schedule _broadcast _options _tls _tls_names _traffic",
        "_breaker _budget _supervision _multiplex._attributes _multiplex._engine"
        " _multiplex._outage _multiplex._rotation"
        " _multiplex._routing",
        "_entra_errors _diagnosis",
        "_acquirer _news _servers",
        "_credentials _refresher",
        "_constructors",
        "_source",
        "_token_thread",
        "_redis_py",
        "_multiplex._ending _multiplex._ledger _multiplex._moves _multiplex._reauth"
        " _multiplex._session",
        "_multiplex",
        "_health _mode _plans _recovery _renewal",
        "_azure_events _blocking _client _commands _dedicated _held _lease _losses _pipeline"
        " _pubsub _subscriber_connection _transactions",
        "_cluster _adapters",
        "_connect",
        "fastapi cli",
    )
)
"""Bottom first. A module imports from lower levels, or from its own as long as there is no circle.

A package stands for its modules, unless those have a line of their own.
"""

OUTSIDE = frozenset({"emulator"})
"""Beside the levels: it imports nothing of the rest, and of the rest only ``cli`` imports it."""

MAY_IMPORT_EMULATOR = frozenset({"cli"})

REDIS_PRIVATE = frozenset({"_buffer", "_parser", "_reader", "_stream", "_writer"})
"""Attributes of redis-py's connections and parsers, looked for on anything but ``self``."""


def level_of(module: str) -> int | None:
    """The level of a module, by its own line or the nearest package's."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for number, level in enumerate(LEVELS):
            if name in level:
                return number
    return None


def top(module: str) -> str:
    return module.partition(".")[0]


def imports(module: str, source: str, *, package: bool) -> Iterator[tuple[str, str, int]]:
    """Yield (imported module, imported name or "", line) of every import statement, nested too."""
    path = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if package else node.level
                start = path[: len(path) - up]
                base = ".".join([*start, base] if base else start)
            for alias in node.names:
                yield base, alias.name, node.lineno


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks the rules, one line each; ``sources`` maps a module's dotted name below the
    package (packages end in ``.__init__``) to its text."""
    names = {name.removesuffix(".__init__") for name in sources}
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        module = name.removesuffix(".__init__")
        if module == "__init__":
            continue  # the package itself gathers the public names
        outside = top(module) in OUTSIDE
        level = level_of(module)
        if level is None and not outside:
            found.append(f"{module} has no level: add it to LEVELS")
            continue
        graph.setdefault(module, set())
        for base, imported, line in imports(module, source, package=name.endswith(".__init__")):
            where = f"{module}:{line}"
            root = top(base)
            if root == "azure" and module != "_credentials":
                found.append(f"{where} imports azure; only _credentials does")
            if root == "asyncio" and module == "_multiplex._engine":
                found.append(f"{where} imports asyncio; the engine does no I/O")
            if root == "redis" and top(module) != "_redis_py":
                parts = [*base.split("."), imported]
                private = [p for p in parts if p.startswith("_") and not p.startswith("__")]
                if private:
                    found.append(f"{where} imports redis-py's {private[0]}; only _redis_py does")
            if root != PACKAGE:
                continue
            target = base.removeprefix(PACKAGE).removeprefix(".")
            if f"{target}.{imported}".removeprefix(".") in names:
                target = f"{target}.{imported}".removeprefix(".")
            if not target:
                if level != len(LEVELS) - 1:
                    found.append(f"{where} imports the package itself, which is above it")
                continue
            if top(target) in OUTSIDE or outside:
                if top(target) != top(module) and top(module) not in MAY_IMPORT_EMULATOR:
                    found.append(f"{where} imports {target}; emulator and client are strangers")
                continue
            goal = level_of(target)
            if goal is None:
                found.append(f"{where} imports {target}, which has no level")
            elif level is not None and goal > level:
                found.append(f"{where} imports {target}, which is above it")
            elif target != module:
                graph[module].add(target)
        if top(module) != "_redis_py" and not outside:
            found += private_attributes(module, source)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("circle: " + " -> ".join(error.args[1]))
    return found


def private_attributes(module: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in REDIS_PRIVATE
            and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
        ):
            yield f"{module}:{node.lineno} touches .{node.attr}; only _redis_py does"


def own_sources() -> dict[str, str]:
    root = Path(aioentra_redis.__file__).parent
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text("utf-8")
        for path in sorted(root.rglob("*.py"))
    }


def test_the_package_keeps_the_rules():
    assert violations(own_sources()) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        pytest.param(
            {"_token": "from . import _source", "_source": ""}, "above it", id="relative-up"
        ),
        pytest.param(
            {"_events": "from aioentra_redis._client import EntraRedis"},
            "above it",
            id="absolute-up",
        ),
        pytest.param(
            {"_token": "def lazy():\n    import aioentra_redis._connect"}, "above it", id="nested"
        ),
        pytest.param(
            {"_multiplex._engine": "from .._client import EntraRedis"},
            "above it",
            id="out-of-a-package",
        ),
        pytest.param(
            {"_client": "from . import _pipeline", "_pipeline": "from ._client import EntraRedis"},
            "circle",
            id="circle",
        ),
        pytest.param({"_source": "from . import connect"}, "above it", id="package-itself"),
        pytest.param({"_new": ""}, "no level", id="unknown-module"),
        pytest.param({"_source": "import azure.identity"}, "azure", id="azure"),
        pytest.param(
            {"_client": "from redis._parsers import Encoder"}, "_parsers", id="redis-private-module"
        ),
        pytest.param(
            {"_client": "from redis.asyncio import _x"}, "redis-py's _x", id="redis-private-name"
        ),
        pytest.param(
            {"_client": "def f(conn):\n    conn._writer.close()"}, "._writer", id="redis-attribute"
        ),
        pytest.param({"_multiplex._engine": "import asyncio"}, "no I/O", id="engine-io"),
        pytest.param(
            {"emulator.front": "from .._token import Token"}, "strangers", id="emulator-to-client"
        ),
        pytest.param(
            {"fastapi": "from .emulator import start"}, "strangers", id="client-to-emulator"
        ),
    ],
)
def test_each_rule_can_be_broken(sources: dict[str, str], expected: str):
    found = violations(sources)
    assert len(found) == 1
    assert expected in found[0]


def test_what_is_allowed():
    assert (
        violations(
            {
                "__init__": "from ._connect import connect\nfrom .emulator import run",
                "_client": "from . import errors\nfrom ._multiplex._connection import Connection",
                "_credentials": "import azure.identity.aio",
                "_redis_py": "from redis._parsers import Encoder\nx = c._writer",
                "_multiplex.__init__": "from ._connection import MultiplexedConnection",
                "_multiplex._connection": "from ._engine import Engine\nimport asyncio",
                "_multiplex._engine": "from ..errors import ClosedError\nimport hiredis",
                "cli.__init__": "from .demo import run",
                "cli.demo": "from ..emulator import run\nfrom .. import connect",
                "emulator.__init__": "from .front import Front\nself._writer = 1",
                "emulator.front": "from aioentra_redis.emulator import profiles",
                "emulator.profiles": "",
                "errors": "from redis.exceptions import RedisError",
            }
        )
        == []
    )
