"""Running the demo for an audience: its view, its log messages, Ctrl-C, and what it ends with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from typing import Final, TextIO

from rich.console import Console

from .. import connect
from ._demo import ClientFactory, Demo, DemoOptions, Notice, Report
from ._view import View, plain, summary, view_for

__all__ = ["perform"]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def perform(
    options: DemoOptions,
    *,
    as_json: bool = False,
    client_factory: ClientFactory = connect,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Run the demo with a view and a summary on ``out``; returns the exit status.

    With ``as_json`` the report is all that ``out`` gets, and the view is on ``err``. Errors are
    sentences on ``err``, never tracebacks. Blocks; must not be called from an event loop.
    """
    out = sys.stdout if out is None else out
    err = sys.stderr if err is None else err
    view = view_for(err if as_json else out, options)
    demo, error = asyncio.run(_watch(options, client_factory, view))
    if isinstance(error, BrokenPipeError):
        raise error  # nobody reads what we write: typer ends quietly then
    return _conclude(demo.report(), error, as_json=as_json, out=out, err=err)


async def _watch(
    options: DemoOptions, client_factory: ClientFactory, view: View
) -> tuple[Demo, BaseException | None]:
    """Run the demo under its view; returns it and what it raised, if anything."""
    demo = Demo(options, client_factory=client_factory, notify=view.notice)
    loop = asyncio.get_running_loop()
    task = loop.create_task(demo.run(), name="demo")

    def interrupt(number: int) -> None:
        if not demo.interrupt(number):
            task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, interrupt, number)
    messages = Messages(view, demo)
    logging.getLogger().addHandler(messages)
    try:
        with view:
            while not task.done():
                view.update(demo.snapshot())
                await asyncio.wait({task}, timeout=view.interval)
    finally:
        # The view may fail (a closed pipe); the emulator must end all the same.
        task.cancel()
        await asyncio.wait({task})
        logging.getLogger().removeHandler(messages)
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    if task.cancelled():
        return demo, asyncio.CancelledError()
    return demo, task.exception()


class Messages(logging.Handler):
    """Shows warnings as notices: on standard error they would tear the live view apart."""

    def __init__(self, view: View, demo: Demo) -> None:
        super().__init__(logging.WARNING)
        self._view = view
        self._demo = demo

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()} of {record.name}: {record.getMessage()}"
        with contextlib.suppress(OSError):  # nobody may be reading any more
            self._view.notice(Notice(self._demo.elapsed, text))


def _conclude(
    report: Report, error: BaseException | None, *, as_json: bool, out: TextIO, err: TextIO
) -> int:
    """Print what there is to say at the end; returns the exit status."""
    if error is not None and not isinstance(error, asyncio.CancelledError):
        print(f"The demo could not go on: {type(error).__name__}: {error}", file=err)
        return 1
    if as_json:
        print(json.dumps(report.to_json(), indent=2), file=out)
    elif report.commands:
        print(file=out)
        if out.isatty():
            Console(file=out, highlight=False).print(summary(report))
        else:
            out.write(plain(summary(report)))
    else:
        print("Interrupted before the first command.", file=err)
    out.flush()
    return report.exit_status
