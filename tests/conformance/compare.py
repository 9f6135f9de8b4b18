"""Two runs of the same tests compared, one by one; and the list of those that may differ.

Pure functions and values: what runs the tests is in ``suite``.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Comparison",
    "Outcome",
    "Outcomes",
    "entry_for",
    "lost",
    "merge",
    "read_reasons",
    "stale",
    "table",
]

GOOD = frozenset(("passed", "xpassed"))
SEVERITY = ("passed", "xpassed", "skipped", "xfailed", "failed")
"""What a test's phases (setup, call, teardown) add up to is the last of these that occurred."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test, or one of its phases, ended; ``message`` is the failure's last line."""

    kind: str
    message: str = ""


Outcomes = Mapping[str, Outcome]
"""By the test's name: its file, class, function and parameters, as pytest spells them."""


def merge(phases: Iterable[tuple[str, Outcome]]) -> dict[str, Outcome]:
    """One outcome per test from those of its phases: the worst one."""
    found: dict[str, Outcome] = {}
    for name, outcome in phases:
        known = found.get(name)
        if known is None or SEVERITY.index(outcome.kind) > SEVERITY.index(known.kind):
            found[name] = outcome
    return found


def lost(plain: Outcomes, ours: Outcomes) -> list[str]:
    """The tests that pass with redis-py's own client and don't with ours, not run included."""
    missing = Outcome("missing")
    return [
        name
        for name, outcome in plain.items()
        if outcome.kind in GOOD and ours.get(name, missing).kind not in GOOD
    ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out for one server and protocol."""

    server: str
    protocol: int
    plain: Outcomes
    ours: Outcomes
    confirmed: Collection[str]
    """Lost in the whole run and again when run alone."""
    only_together: Collection[str]
    """Lost in the whole run only: alone they pass with ours, or fail with redis-py's own too."""
    cluster: bool = False

    def unlisted(self, reasons: Mapping[str, str]) -> list[str]:
        """The confirmed ones that no entry of ``reasons`` explains."""
        return [name for name in self.confirmed if entry_for(name, reasons) is None]


def entry_for(name: str, reasons: Mapping[str, str]) -> str | None:
    """The entry for a test: its full name, or that without its parameters."""
    for candidate in (name, name.partition("[")[0]):
        if candidate in reasons:
            return candidate
    return None


def stale(comparisons: Iterable[Comparison], reasons: Mapping[str, str]) -> list[str]:
    """The entries of ``reasons`` whose tests were run and were lost nowhere."""
    ran: set[str] = set()
    needed: set[str] = set()
    for each in comparisons:
        ran.update(entry for name in each.ours if (entry := entry_for(name, reasons)))
        for name in (*each.confirmed, *each.only_together):
            if entry := entry_for(name, reasons):
                needed.add(entry)
    return [entry for entry in reasons if entry in ran - needed]


def read_reasons(path: Path, *, tokens: bool) -> dict[str, str]:
    """The tests that may differ, each with its reason; those of the token mode come on top."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    listed = {**tables["always"], **(tables["tokens"] if tokens else {})}
    reasons = {name: " ".join(reason.split()) for name, reason in listed.items()}
    for name, reason in reasons.items():
        if "::" not in name or not reason:
            raise ValueError(f"{path.name}: {name!r} is no test's name or lacks a reason")
    return reasons


def table(comparisons: Iterable[Comparison]) -> str:
    """The figures as a Markdown table."""
    head = (
        "| server | RESP | redis.asyncio: passed / failed / skipped "
        "| ours: passed / failed / skipped | lost | lost only together |"
    )
    rows = [head, "| --- | --- | --- | --- | --- | --- |"]
    for each in comparisons:
        cells = (
            each.server,
            each.protocol,
            _figures(each.plain),
            _figures(each.ours),
            len(each.confirmed),
            len(each.only_together),
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def _figures(outcomes: Outcomes) -> str:
    counts = Counter(outcome.kind for outcome in outcomes.values())
    figures = f"{counts['passed']} / {counts['failed']} / {counts['skipped']}"
    expected = [f"{counts[kind]} {kind}" for kind in ("xpassed", "xfailed") if counts[kind]]
    return figures + (f" ({', '.join(expected)})" if expected else "")
