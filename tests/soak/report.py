"""The table at the end: every figure beside its target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .findings import Kind
from .measures import Span, span
from .run import Result

__all__ = ["Row", "broken", "rows", "table"]

GROWTH = 2.0
"""MB that memory may grow by over 2,000 rotations."""

SPREAD = 4
"""Tasks and sockets by which two looks at a client at rest may differ: what is on its way home."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure; ``good`` is None where there is no target."""

    name: str
    value: str
    target: str = ""
    good: bool | None = None


def rows(result: Result) -> Iterator[Row]:
    """The figures of a soak."""
    plan = result.plan
    reached = result.rotations >= plan.rotations
    yield Row(
        "rotations, over all sources", f"{result.rotations:,}", f"{plan.rotations:,}", reached
    )
    yield Row("minutes", f"{result.took / 60:.1f}")
    yield Row("calls", f"{result.calls:,}")
    yield Row("... cancelled under way", f"{result.cancelled:,}")
    failures = ", ".join(f"{name} {n:,}" for name, n in result.failures.most_common())
    yield Row("... failed", failures or "none")
    yield Row("slowest call that succeeded", f"{result.slowest:.2f} s")
    yield Row("faults", f"{result.faults.total():,}")
    for name, count in sorted(result.faults.items()):
        yield Row(f"... {name}", f"{count:,}")
    for kind in Kind:
        count = result.findings.counts[kind]
        yield Row(kind.value, f"{count:,}", "0", not count)
    yield from _delivery(result)
    yield from _auth(result)
    yield from _flatness(result)


def _delivery(result: Result) -> Iterator[Row]:
    for queue in result.queues:
        elements = queue.elements
        yield Row(f"elements of {elements.name}", f"{elements.delivered:,} of {elements.sent:,}")
        if elements.lossy:
            yield Row(
                "... lost with a connection that ended under the pop",
                f"{elements.lost_to_deaths:,} in {elements.deaths:,} such ends",
            )
    for channel in result.channels:
        messages = channel.messages
        yield Row(f"messages of {messages.name}", f"{messages.received:,}")
        yield Row("... missed, in announced gaps", f"{messages.missed:,} in {channel.gaps:,}")
        doubts = f"{messages.repeated:,} after {channel.doubts:,}"
        yield Row("... repeated, after handovers in doubt", doubts)


def _auth(result: Result) -> Iterator[Row]:
    yield Row("tokens that connections held", f"{result.tokens_held:,}")
    yield Row("... while a fault excused a late AUTH", f"{result.excused_auths:,}")
    yield Row("nearest of the others to its deadline", f"{-result.closest:.2f} s before it")
    yield Row("expiries while the identity provider was gone", f"{result.excused_expiries:,}")
    closes = ", ".join(f"{reason} {n:,}" for reason, n in sorted(result.closes.items()))
    yield Row("connections closed, by the server's reason", closes or "none")
    for name, count in sorted(result.events.items()):
        yield Row(f"events: {name}", f"{count:,}")


def _flatness(result: Result) -> Iterator[Row]:
    memory = {
        "resident": "resident memory, MB",
        "heap": "given out by C's allocator, MB",
        "traced": "given out by Python's allocators, MB",
    }
    objects = {"blocks": "blocks of Python's allocator", "objects": "objects of the collector"}
    # Connections that were cut are opened again when they are wanted: their number goes down and
    # up. A leak would let it go up only.
    leased = {"tasks": "tasks", "files": "sockets and files"}
    for figure, name in {**memory, **objects, **leased}.items():
        found = span(result.samples, figure, result.plan.warm_up)
        if found is None or not found.highest:
            continue
        label = f"{name}: first, last, median, highest"
        if figure in memory:
            target, good = f"growth under {GROWTH:g}", found.growth < GROWTH
        elif figure in leased:
            label += " (upper quartile of the last third - of the first)"
            target, good = f"under {SPREAD:g}", found.rise < SPREAD
        else:
            target, good = "", None
        yield Row(
            label, _shown(found, found.rise if figure in leased else found.growth), target, good
        )


def _shown(found: Span, change: float) -> str:
    figures = (found.first, found.last, found.median, found.highest)
    text = ", ".join(f"{each:,.1f}" if each % 1 else f"{each:,.0f}" for each in figures)
    return f"{text} ({change:+,.2f})"


def broken(result: Result) -> list[Row]:
    """The rows that miss their target; rotations that time did not suffice for are none."""
    return [row for row in rows(result) if row.good is False and "rotations" not in row.name]


def table(result: Result) -> str:
    """All rows, as Markdown."""
    lines = ["| figure | measured | target | |", "| --- | --- | --- | --- |"]
    for row in rows(result):
        verdict = {None: "", True: "met", False: "MISSED"}[row.good]
        lines.append(f"| {row.name} | {row.value} | {row.target} | {verdict} |")
    for kind in Kind:
        lines += [f"\n{kind.value}: {text}" for text in result.findings.of(kind)]
    return "\n".join(lines)
