"""Live frames, plain lines and the summary, drawn onto strings."""

from __future__ import annotations

import dataclasses
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from aioentra_redis.cli._demo import DemoOptions, Notice, Phase, Report, Snapshot
from aioentra_redis.cli._statistics import Latencies
from aioentra_redis.cli._view import LineView, LiveView, milliseconds, plain, summary, view_for

SNAPSHOT = Snapshot(
    phase=Phase.LOAD,
    elapsed=3.04,
    token_version=2,
    token_age=1.23,
    token_lifetime=4.0,
    connections=1,
    connections_opened=1,
    rotations=1,
    last_auth=0.00123,
    commands=123456,
    rate=41203.4,
    failures=0,
    inside=Latencies(100, 0.001, 0.002, 0.003),
    outside=Latencies(123356, 0.0005, 0.0012, 0.04),
)

REPORT = Report(
    options=DemoOptions(),
    seconds=10.0,
    commands=1_000_000,
    failures=0,
    rotations=5,
    connections_opened=1,
    inside=Latencies(500, 0.0008, 0.00143, 0.00143),
    outside=Latencies(999_500, 0.0004, 0.0023, 0.1234),
    auths=6,
    auths_refused=0,
    closed_for_expiry=0,
    tokens=6,
)


class Terminal(StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def console(width: int = 80, **options: Any) -> Console:
    return Console(file=Terminal(), width=width, height=24, force_terminal=True, **options)


def frame(view: LiveView, snapshot: Snapshot = SNAPSHOT) -> str:
    return plain(view.render(snapshot))


def test_a_terminal_gets_the_live_view(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(view_for(Terminal(), DemoOptions()), LiveView)


def test_a_pipe_gets_plain_lines():
    assert isinstance(view_for(StringIO(), DemoOptions()), LineView)


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(Terminal(), DemoOptions()), LineView)


def test_plain_lines():
    stream = StringIO()
    with LineView(stream) as view:
        view.notice(Notice(0.04, "starting [the] emulator"))
        view.update(dataclasses.replace(SNAPSHOT, phase=Phase.CONNECTING))
        view.update(dataclasses.replace(SNAPSHOT, commands=0))
        view.update(SNAPSHOT)
        view.update(dataclasses.replace(SNAPSHOT, failures=1, connections=2))
    assert stream.getvalue().splitlines() == [
        "   0.0 s  starting [the] emulator",
        "   3.0 s  token version 2, 1.2 s old | 1 connection | 41,203 operations a second"
        " | 0 failures",
        "   3.0 s  token version 2, 1.2 s old | 2 connections | 41,203 operations a second"
        " | 1 failure",
    ]


def test_a_frame_holds_what_one_wants_to_see():
    text = frame(LiveView(console(), DemoOptions()))
    for expected in (
        "aioentra-redis demo",
        "version 2",
        "1.2 s of 4.0 s old",
        "1 of 5, last AUTH 1.23 ms",
        "1 open, 1 opened so far",
        "41,203 a second",
        "123,456 by 50 workers",
        "running, 3 s",
    ):
        assert expected in text


def test_a_frame_before_anything_is_known():
    text = frame(LiveView(console(), DemoOptions()), Snapshot(Phase.EMULATOR, 0.1))
    assert "starting the emulator" in text
    assert "token" in text


def test_a_frame_fits_into_a_small_terminal():
    view = LiveView(console(), DemoOptions())
    for number in range(20):
        view.notice(Notice(float(number), "a notice that is wider than the terminal " * 5))
    view.update(SNAPSHOT)
    small = console()
    small.print(view.render(SNAPSHOT))
    assert isinstance(small.file, Terminal)
    assert len(small.file.getvalue().splitlines()) < 24


def test_notices_are_text_and_not_markup():
    view = LiveView(console(), DemoOptions())
    view.notice(Notice(1.0, "closed by peer [/bold] [red]"))
    assert "closed by peer [/bold] [red]" in frame(view)


def test_operations_of_the_last_frames_are_drawn():
    view = LiveView(console(), DemoOptions())
    for number in range(100):
        view.update(dataclasses.replace(SNAPSHOT, elapsed=number / 4, commands=number * 1000))
    text = frame(view)
    assert "\u2588" * 40 in text
    assert "\u2588" * 41 not in text


def test_a_terminal_without_utf_8_gets_no_blocks():
    ascii_only = Terminal()
    ascii_only.encoding = "ascii"
    view = LiveView(Console(file=ascii_only, width=80, force_terminal=True), DemoOptions())
    for number in range(10):
        view.update(dataclasses.replace(SNAPSHOT, elapsed=number / 4, commands=number * 1000))
    assert "\u2588" not in ascii_only.getvalue()


def test_the_live_view_leaves_the_cursor_visible():
    terminal = console()
    with LiveView(terminal, DemoOptions()) as view:
        view.update(SNAPSHOT)
    assert isinstance(terminal.file, Terminal)
    written = terminal.file.getvalue()
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_summary():
    assert plain(summary(REPORT)).splitlines() == [
        "Summary",
        "commands            1,000,000 in 10.0 s (100,000 a second)",
        "failures            0",
        "rotations           5 of 5",
        "connections opened  1",
        "AUTHs               6 with 6 tokens, 0 refused",
        "closed for expiry   0",
        "",
        "latency                p50      p99  longest  commands",
        "inside rotations   0.80 ms  1.43 ms  1.43 ms       500",
        "outside rotations  0.40 ms  2.30 ms   123 ms   999,500",
        "",
        "No command failed while the token changed 5 times.",
    ]


def test_failovers_are_shown_where_there_are_any():
    text = frame(LiveView(console(), DemoOptions(profile="amr-oss")))
    assert "failovers" not in text
    snapshot = dataclasses.replace(SNAPSHOT, failovers=2)
    assert "2, one with every new token" in frame(LiveView(console(), DemoOptions()), snapshot)
    text = plain(summary(dataclasses.replace(REPORT, failovers=3)))
    assert "failovers           3\n" in text
    assert (
        "No command failed while the token changed 5 times and 3 replicas took over from their "
        "primaries."
    ) in " ".join(text.split())
    assert "failovers" not in plain(summary(REPORT))


def test_summary_of_failures():
    report = dataclasses.replace(
        REPORT, failures=2, reasons={"GET raised [x]": 2}, disagreements=("too few rotations",)
    )
    lines = plain(summary(report)).splitlines()
    assert lines[-3:] == [
        "failed 2 times: GET raised [x]",
        "not as it should be: too few rotations",
        "The demo failed.",
    ]


def test_summary_of_an_interrupted_run():
    report = dataclasses.replace(REPORT, interrupted=2, auths=None, seconds=0.0)
    text = plain(summary(report))
    assert text.endswith("Interrupted: the figures are those until then.\n")
    assert "AUTHs" not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.00042, "0.42 ms"), (0.1234, "123 ms")]
)
def test_milliseconds(seconds: float | None, text: str):
    assert milliseconds(seconds) == text
