"""``docs/observability.md`` says what the code does: events, records, metrics, loggers."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import aioentra_redis
from aioentra_redis import (
    AuthTrigger,
    ConnectionState,
    ConnectionStatus,
    Event,
    Health,
    HealthState,
    TokenStatus,
    _events,
)
from aioentra_redis._metrics import METRICS

PACKAGE = Path(aioentra_redis.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "observability.md").read_text("utf-8")


def tables(section: str) -> list[list[list[str]]]:
    """The tables of a section: their rows, without the head; cells without backticks."""
    text = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert text is not None
    found: list[list[list[str]]] = []
    before = ""
    for line in text[1].splitlines():
        if line.startswith("| "):
            if not before.startswith("|"):
                found.append([])
            cells = [cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")]
            found[-1].append(cells)
        before = line
    return [table[2:] for table in found]


def fields(record: type) -> list[str]:
    return [field.name for field in dataclasses.fields(record)]


def test_the_table_of_events_is_complete_and_true():
    (rows,) = tables("Events")
    assert {name: names.split(", ") for name, names, _ in rows} == {
        each.__name__: fields(each) for each in Event.__subclasses__()
    }
    assert all(when for _, _, when in rows)


def test_every_event_is_public_and_exported():
    for each in Event.__subclasses__():
        assert each.__name__ in _events.__all__
        assert each.__name__ in aioentra_redis.__all__
        assert each.__doc__
        assert dataclasses.fields(each)


def test_the_tables_of_status_and_health_are_complete():
    token, connection = tables("Status")
    assert [row[0] for row in token] == fields(TokenStatus)
    assert [row[0] for row in connection] == fields(ConnectionStatus)
    (health,) = tables("Health")
    assert [row[0] for row in health] == fields(Health)


@pytest.mark.parametrize("kind", [ConnectionState, HealthState, AuthTrigger])
def test_every_state_is_named(kind: type[ConnectionState]):
    assert [each.name for each in kind if f"`{each.name}`" not in PAGE] == []


def test_the_table_of_metrics_is_that_of_the_code():
    (rows,) = tables("Metrics")
    assert [row[:3] + row[4:] for row in rows] == [
        [metric.name, metric.kind, metric.unit, metric.description] for metric in METRICS
    ]
    assert [tuple(row[3].split(", ")) for row in rows] == [metric.attributes for metric in METRICS]


def test_the_metrics_have_the_names_that_dashboards_use():
    assert {metric.name for metric in METRICS} == {
        "aioentra.token.acquire.duration",
        "aioentra.token.refreshes",
        "aioentra.token.remaining",
        "aioentra.connection.reauths",
        "aioentra.connection.reauth.duration",
        "aioentra.connections.stale",
    }


def loggers() -> set[str]:
    """The name of every ``logging.getLogger(...)`` in the package."""
    names: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "getLogger"
                and node.args  # without a name it is the root logger, which ``cli`` listens to
            ):
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}: not a plain name"
                names.add(name.value)
    return names


def test_the_table_of_loggers_is_complete():
    (rows,) = tables("Logs")
    assert [row[0] for row in rows if not row[1]] == []
    assert {row[0] for row in rows} == loggers()
    assert all(name.startswith("aioentra_redis.") for name in loggers())


def test_nothing_is_logged_but_through_those_loggers():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "logging":
                    assert node.func.attr == "getLogger", f"{path}:{node.lineno}"
