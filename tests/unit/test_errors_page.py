"""``docs/errors.md`` against the code: every error, every message, every code."""

from __future__ import annotations

import ast
import builtins
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import aioentra_redis
from aioentra_redis import _entra_errors, errors
from aioentra_redis.errors import ConfigurationError, EntraRedisError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text("utf-8")
CLASSES: dict[str, type[BaseException]] = {name: getattr(errors, name) for name in errors.__all__}
STAGES = ("dns", "tcp", "tls", "token", "auth", "handshake")

NOT_RAISED_TO_ANYBODY = (
    # What a health report holds where there is nothing else to say.
    "there is no connection, and no valid token to make one with",
    # Internal: they say why something is opened again, and nobody waits for them.
    "the connection was closed at once",
)


# ------------------------------------------------------------------------------- reading the page


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of each table, without head lines."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        is_row = line.startswith("| ") and not line.startswith("| ---")
        if is_row and not "".join(lines[number + 1 : number + 2]).startswith("| ---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^\([a-z-]+\)=$|^## |\Z)", PAGE, re.M | re.S)
    assert found is not None, f"no section {title}"
    return found[1]


def quoted(cell: str) -> str:
    found = re.fullmatch(r"`(.+)`", cell)
    assert found is not None, cell
    return found[1]


OVERVIEW = {
    found[1]: (found[2], cells[1])
    for cells in rows(PAGE.partition("(entraredis-error)=")[0])
    if (found := re.fullmatch(r"\[`(\w+)`\]\(#([\w-]+)\)", cells[0]))
}
MESSAGES = [
    (name, quoted(cells[1] if name == "ConnectError" else cells[0]))
    for name in CLASSES
    for cells in rows(section(name))
    if not cells[0].startswith("AADSTS")
]


# ------------------------------------------------------------------------------- reading the code


def trees(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        if "emulator" not in path.parts and path.name != Path(__file__).name:
            yield path, ast.parse(path.read_text("utf-8"))


def text_of(node: ast.AST) -> str | None:
    """A string as it will be, with a gap where something is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
        return "".join(str(part) for part in parts)
    if isinstance(node, ast.BinOp):
        sides = [text_of(side) or "\0" for side in (node.left, node.right)]
        return "".join(sides)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return text_of(node.func.value)  # "...".rstrip()
    return None


@functools.cache
def texts(folder: Path) -> tuple[str, ...]:
    found = [text_of(node) for _, tree in trees(folder) for node in ast.walk(tree)]
    return tuple(each for each in found if each)


def raised() -> Iterator[tuple[str, str, str]]:
    """Place, class and words of each error of ours that the package makes."""
    for path, tree in trees(ROOT / "aioentra_redis"):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            names = [node.func, *node.args[:1]]  # error(ConnectError, "dns", "...")
            kinds = [each.id for each in names if isinstance(each, ast.Name) and each.id in CLASSES]
            for text in filter(None, map(text_of, node.args)):
                if kinds and " " in text:
                    yield f"{path.name}:{node.lineno}", kinds[0], text


PACKAGE = ROOT / "aioentra_redis"
TESTS = ROOT / "tests"


# ------------------------------------------------------------------------------- the tests


def test_every_error_is_there_and_no_other():
    assert set(OVERVIEW) == set(CLASSES)
    assert set(re.findall(r"^## (\w+(?:Error|Refused))$", PAGE, re.M)) == set(CLASSES)
    assert set(errors.__all__) <= set(aioentra_redis.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_its_bases_and_its_anchor(name: str):
    anchor, bases = OVERVIEW[name]
    assert f"({anchor})=\n## {name}\n" in PAGE
    told = {word.strip("`") for word in re.findall(r"(?:redis )?`\w+`", bases)}
    meant = {
        f"redis `{each.__name__}"
        if each.__module__.startswith("redis")
        else each.__name__.strip("`")
        for each in CLASSES[name].__bases__
    }
    assert told == meant


@pytest.mark.parametrize(("name", "words"), MESSAGES)
def test_each_message_is_one_of_the_code(name: str, words: str):
    assert any(words in text for text in texts(PACKAGE)), f"nothing says that of a {name}"


def test_each_error_that_the_code_makes_is_there():
    missing = []
    for place, name, text in raised():
        if name == ConfigurationError.__name__ or text in NOT_RAISED_TO_ANYBODY:
            continue
        family = {each.__name__ for each in CLASSES[name].__mro__ if issubclass(each, Exception)}
        if not any(words in text for kind, words in MESSAGES if kind in family):
            missing.append(f"{place} {name}: {text!r}")
    assert missing == []


def test_the_codes_are_those_that_have_an_advice():
    told = [cells[0] for cells in rows(section("TokenAcquisitionError")) if "AADSTS" in cells[0]]
    assert sorted(told) == sorted(_entra_errors._ADVICE)
    looked_at = {code for text in texts(TESTS) for code in re.findall(r"AADSTS\d+", text)}
    assert set(told) <= looked_at


def test_the_stages_are_those_that_the_code_names():
    told = {quoted(cells[0]) for cells in rows(section("ConnectError"))}
    assert told == set(STAGES)
    documented = set(re.findall(r'"(\w+)"', errors.ConnectError.__doc__ or ""))
    assert documented == set(STAGES)


def test_the_warnings_are_those_of_the_code():
    told = {quoted(cells[0]): quoted(cells[1]) for cells in rows(section("Warnings"))}
    for words, category in told.items():
        assert any(words in text for text in texts(PACKAGE)), words
        assert issubclass(getattr(builtins, category), Warning)
    made = [
        node
        for _, tree in trees(PACKAGE)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("warnings.warn", "_warn", "warn")
    ]
    assert len(made) == len(told)


def test_the_errors_page_and_the_overview_say_the_same():
    """`docs/index.md` has a short table of what one meets most."""
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    for name in re.findall(r"^\| `(\w+Error)` \|", index, re.M):
        assert issubclass(CLASSES[name], EntraRedisError)
