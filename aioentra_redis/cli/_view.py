"""What the demo looks like: a live view in a terminal, plain lines elsewhere, and the summary."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from io import StringIO
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ._demo import DemoOptions, Notice, Phase, Report, Snapshot

__all__ = ["LineView", "LiveView", "View", "milliseconds", "plain", "summary", "view_for"]

FRAME: Final = 0.25
"""Seconds between two frames of the live view. Drawing one takes milliseconds in which no command
moves; this often, that touches too few of them to show in the figures."""

LINE: Final = 1.0
"""Seconds between two plain lines of figures."""

HISTORY: Final = 40
"""Frames of which the live view draws operations a second."""

NOTICES: Final = 6
"""Notices that the live view keeps in sight."""

WIDTH: Final = 100
"""Columns of plain text: there is no terminal to ask."""

LEVELS: Final = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


class View(Protocol):
    """Shows a run while it is going on; entered for as long as there is something to show."""

    interval: float

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def notice(self, notice: Notice) -> None:
        """Show that something happened."""

    def update(self, snapshot: Snapshot) -> None:
        """Show how things are; called every ``interval`` seconds."""


def view_for(stream: TextIO, options: DemoOptions) -> View:
    """A live view where ``stream`` is a terminal that can move its cursor, else plain lines."""
    if stream.isatty():
        console = Console(file=stream)
        if not console.is_dumb_terminal:
            return LiveView(console, options)
    return LineView(stream)


class LineView:
    """Plain lines, one for each notice and one a second for the figures."""

    interval = LINE

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.flush()

    def notice(self, notice: Notice) -> None:
        self._line(notice.elapsed, notice.text)

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.phase is not Phase.LOAD or snapshot.rate is None or not snapshot.commands:
            return
        self._line(
            snapshot.elapsed,
            f"token version {snapshot.token_version}, {_age(snapshot)} old | "
            f"{plural(snapshot.connections, 'connection')} | "
            f"{snapshot.rate:,.0f} operations a second | "
            f"{plural(snapshot.failures, 'failure')}",
        )

    def _line(self, elapsed: float, text: str) -> None:
        self._stream.write(f"{elapsed:6.1f} s  {text}\n")
        self._stream.flush()


class LiveView:
    """A panel that is drawn anew four times a second, and is gone when it is left."""

    interval = FRAME

    def __init__(self, console: Console, options: DemoOptions) -> None:
        self._console = console
        self._options = options
        self._notices: deque[Notice] = deque(maxlen=NOTICES)
        self._rates: deque[tuple[float, bool]] = deque(maxlen=HISTORY)
        self._last: Snapshot | None = None
        # Drawn by us, in the loop: a thread of rich's own would draw at moments of its choice.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def notice(self, notice: Notice) -> None:
        self._notices.append(notice)

    def update(self, snapshot: Snapshot) -> None:
        last, self._last = self._last, snapshot
        if last is not None and snapshot.phase is Phase.LOAD and last.phase is Phase.LOAD:
            seconds = max(snapshot.elapsed - last.elapsed, 1e-3)
            rotated = snapshot.rotations > last.rotations
            self._rates.append(((snapshot.commands - last.commands) / seconds, rotated))
        self._live.update(self.render(snapshot), refresh=True)

    def render(self, snapshot: Snapshot) -> RenderableType:
        """One frame."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(no_wrap=True, overflow="crop")
        for name, value in self._rows(snapshot):
            rows.add_row(name, value)
        notices = Table.grid(padding=(0, 2))
        notices.add_column(style="dim", justify="right", no_wrap=True)
        notices.add_column(no_wrap=True, overflow="ellipsis")
        for notice in self._notices:
            # Text, not markup: a message may hold brackets.
            notices.add_row(f"{notice.elapsed:.1f} s", Text(notice.text))
        return Panel(
            Group(rows, Text(), notices),
            title="[bold]aioentra-redis demo[/]",
            subtitle=f"{snapshot.phase.value}, {snapshot.elapsed:.0f} s, Ctrl-C ends it",
            border_style="red" if snapshot.failures else "cyan",
            padding=(0, 1),
        )

    def _rows(self, snapshot: Snapshot) -> Iterator[tuple[str, RenderableType]]:
        yield "token", self._token(snapshot)
        yield "rotations", self._rotations(snapshot)
        if snapshot.failovers is not None:
            yield "failovers", f"{snapshot.failovers}, one with every new token"
        yield (
            "connections",
            f"{snapshot.connections} open, {snapshot.connections_opened} opened so far",
        )
        rate = "-" if snapshot.rate is None else f"{snapshot.rate:,.0f} a second"
        yield "operations", Text.assemble((f"{rate:<19}", "bold"), self._sparkline())
        yield (
            "commands",
            f"{snapshot.commands:,} by {plural(self._options.workers, 'worker')}, replies checked",
        )
        yield "failures", Text(f"{snapshot.failures:,}", _verdict_style(snapshot.failures == 0))
        for name, latencies in (("inside", snapshot.inside), ("outside", snapshot.outside)):
            if latencies is not None:
                yield (
                    f"{name} rotations",
                    f"p50 {milliseconds(latencies.p50):>9}   p99 {milliseconds(latencies.p99):>9}",
                )

    def _token(self, snapshot: Snapshot) -> RenderableType:
        if snapshot.token_age is None or snapshot.token_lifetime is None:
            return Text("-")
        line = Table.grid(padding=(0, 1))
        # Age moves four times a second: fixed widths keep everything else in its place.
        line.add_row(
            f"version {snapshot.token_version:<3}",
            ProgressBar(total=snapshot.token_lifetime, completed=snapshot.token_age, width=20),
            f"{_age(snapshot)} of {snapshot.token_lifetime:.1f} s old",
        )
        return line

    def _rotations(self, snapshot: Snapshot) -> RenderableType:
        auth = (
            "" if snapshot.last_auth is None else f", last AUTH {milliseconds(snapshot.last_auth)}"
        )
        return f"{snapshot.rotations} of {self._options.rotations}{auth}"

    def _sparkline(self) -> Text:
        """Operations a second over the last frames; a frame with a rotation has its own colour."""
        line = Text()
        if self._console.options.ascii_only or not self._rates:
            return line
        highest = max(rate for rate, _ in self._rates) or 1.0
        for rate, rotated in self._rates:
            level = LEVELS[min(int(rate / highest * len(LEVELS)), len(LEVELS) - 1)]
            line.append(level, "bold magenta" if rotated else "cyan")
        return line


def summary(report: Report) -> Group:
    """The end of the demo, for a rich console; plain text where that is no terminal."""
    options = report.options
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    rate = report.commands / report.seconds if report.seconds else 0.0
    rows.add_row(
        "commands", f"{report.commands:,} in {report.seconds:.1f} s ({rate:,.0f} a second)"
    )
    rows.add_row("failures", Text(f"{report.failures:,}", _verdict_style(report.failures == 0)))
    rows.add_row("rotations", f"{report.rotations} of {options.rotations}")
    if report.failovers is not None:
        rows.add_row("failovers", f"{report.failovers}")
    rows.add_row("connections opened", f"{report.connections_opened}")
    if report.auths is not None:
        rows.add_row(
            "AUTHs", f"{report.auths} with {report.tokens} tokens, {report.auths_refused} refused"
        )
        rows.add_row("closed for expiry", f"{report.closed_for_expiry}")
    latencies = Table.grid(padding=(0, 2))
    latencies.add_column(no_wrap=True)
    for _ in range(4):
        latencies.add_column(no_wrap=True, justify="right")
    latencies.add_row("latency", "p50", "p99", "longest", "commands", style="dim")
    for name, part in (("inside rotations", report.inside), ("outside rotations", report.outside)):
        latencies.add_row(
            name,
            *(milliseconds(each) for each in (part.p50, part.p99, part.maximum)),
            f"{part.commands:,}",
        )
    return Group(Text("Summary", "bold"), rows, Text(), latencies, Text(), *_verdict(report))


def plain(renderable: RenderableType) -> str:
    """The text of something that rich would draw, without colours and without trailing blanks."""
    stream = StringIO()
    # Said out loud, because FORCE_COLOR in the environment would make a terminal of anything.
    console = Console(file=stream, width=WIDTH, force_terminal=False, no_color=True)
    console.print(renderable, highlight=False)
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def _verdict(report: Report) -> Iterator[Text]:
    for reason, count in report.reasons.items():
        yield Text(f"failed {plural(count, 'time')}: {reason}", "red")
    for each in report.disagreements:
        yield Text(f"not as it should be: {each}", "red")
    if report.interrupted is not None:
        yield Text("Interrupted: the figures are those until then.", "yellow")
    elif report.exit_status == 0:
        what = f"the token changed {plural(report.rotations, 'time')}"
        if report.failovers is not None:
            what += f" and {plural(report.failovers, 'replica')} took over from their primaries"
        yield Text(f"No command failed while {what}.", "green")
    else:
        yield Text("The demo failed.", "bold red")


def milliseconds(seconds: float | None) -> str:
    """A latency to three digits or so; a dash where there is none."""
    if seconds is None:
        return "-"
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 100 else f"{value:.2f} ms"


def plural(count: int, noun: str) -> str:
    """``1 connection``, ``2 connections``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _age(snapshot: Snapshot) -> str:
    return "-" if snapshot.token_age is None else f"{snapshot.token_age:.1f} s"


def _verdict_style(good: bool) -> str:
    return "bold green" if good else "bold red"
