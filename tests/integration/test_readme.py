"""The examples of the README are Python, name things that exist, and the one without Azure runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from aioentra_redis import EntraRedis, EntraRedisCluster

ROOT = Path(__file__).parent.parent.parent
PAGES = (
    *("README.md", "docs/index.md", "docs/cluster.md", "docs/commands.md"),
    "docs/observability.md",
)


def examples() -> list[tuple[str, str]]:
    return [
        (page, block)
        for page in PAGES
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)
    ]


def compiled(page: str, block: str) -> Any:
    return compile(block, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize(("page", "block"), examples())
def test_examples_name_what_exists(page: str, block: str):
    compiled(page, block)
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert [each.name for each in node.names if not hasattr(module, each.name)] == []


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("page", "kind"), [("README.md", EntraRedis), ("docs/cluster.md", EntraRedisCluster)]
)
async def test_example_without_azure_runs(page: str, kind: type):
    (example,) = [each for each in examples() if each[0] == page and "Emulator(" in each[1]]
    names: dict[str, Any] = {}
    running = eval(compiled(*example), names)
    assert inspect.isawaitable(running)
    await running
    assert isinstance(names["redis"], kind)
