"""How two runs of the same tests are compared, and the list of tests that may differ."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conformance.compare import Comparison, Outcome, lost, merge, read_reasons, stale, table

CONFORMANCE = Path(__file__).parents[1] / "conformance"


def outcomes(**kinds: str) -> dict[str, Outcome]:
    return {f"test_x.py::{name}": Outcome(kind) for name, kind in kinds.items()}


def comparison(plain: dict[str, Outcome], ours: dict[str, Outcome], alone: str = "") -> Comparison:
    names = lost(plain, ours)
    confirmed = [name for name in names if name != f"test_x.py::{alone}"]
    together = [name for name in names if name not in confirmed]
    return Comparison("valkey", 3, plain, ours, confirmed, together)


def test_the_worst_phase_of_a_test_is_its_outcome() -> None:
    phases = [
        ("a", Outcome("passed")),
        ("a", Outcome("failed", "in teardown")),
        ("b", Outcome("skipped")),
        ("c", Outcome("failed", "in the test")),
        ("c", Outcome("passed")),
    ]
    assert merge(phases) == {
        "a": Outcome("failed", "in teardown"),
        "b": Outcome("skipped"),
        "c": Outcome("failed", "in the test"),
    }


@pytest.mark.parametrize(
    ("plain", "ours", "is_lost"),
    [
        ("passed", "passed", False),
        ("passed", "failed", True),
        ("passed", "skipped", True),
        ("passed", "xfailed", True),
        ("xpassed", "xfailed", True),
        ("xpassed", "passed", False),
        ("failed", "failed", False),
        ("failed", "passed", False),
        ("skipped", "failed", False),
    ],
)
def test_what_is_lost(plain: str, ours: str, is_lost: bool) -> None:
    assert bool(lost(outcomes(t=plain), outcomes(t=ours))) is is_lost


def test_a_test_that_was_not_run_is_lost() -> None:
    assert lost(outcomes(t="passed"), {}) == ["test_x.py::t"]


def test_an_entry_explains_a_test_with_or_without_its_parameters() -> None:
    names = {"test_x.py::a[pool]": Outcome("passed"), "test_x.py::b[pool]": Outcome("passed")}
    bad = {name: Outcome("failed") for name in names}
    both = comparison(names, bad)
    assert both.unlisted({}) == list(names)
    assert both.unlisted({"test_x.py::a": "why"}) == ["test_x.py::b[pool]"]
    assert both.unlisted({"test_x.py::a[pool]": "why", "test_x.py::b": "why"}) == []
    assert both.unlisted({"test_x.py::a[single]": "why"}) == list(names)


def test_an_entry_that_no_run_needs_is_stale() -> None:
    reasons = {f"test_x.py::{name}": "why" for name in ("good", "bad", "flaky", "elsewhere")}
    plain = outcomes(good="passed", bad="passed", flaky="passed")
    ours = outcomes(good="passed", bad="failed", flaky="failed")
    everywhere = comparison(plain, plain)
    somewhere = comparison(plain, ours, alone="flaky")
    assert stale([somewhere, everywhere], reasons) == ["test_x.py::good"]
    assert stale([everywhere], reasons) == [f"test_x.py::{n}" for n in ("good", "bad", "flaky")]


def test_the_table_gives_the_figures_of_both() -> None:
    plain = outcomes(a="passed", b="passed", c="failed", d="skipped", e="xpassed")
    ours = outcomes(a="passed", b="failed", c="failed", d="skipped", e="passed")
    assert table([comparison(plain, ours)]).splitlines()[2] == (
        "| valkey | 3 | 2 / 1 / 1 (1 xpassed) | 2 / 2 / 1 | 1 | 0 |"
    )


@pytest.mark.parametrize("tokens", [False, True])
def test_the_list_is_well_formed(tokens: bool) -> None:
    reasons = read_reasons(CONFORMANCE / "exceptions.toml", tokens=tokens)
    for name in reasons:
        assert re.fullmatch(r"test_\w+\.py(::\w+)+(\[.+\])?", name)


@pytest.mark.parametrize("entry", ['"test_x.py::t" = " "', '"test_x" = "why"'])
def test_a_list_without_names_or_reasons_is_refused(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "exceptions.toml"
    path.write_text(f"[always]\n{entry}\n[tokens]\n")
    with pytest.raises(ValueError, match="no test's name or lacks a reason"):
        read_reasons(path, tokens=False)
