"""Running the emulator as a process: supervised by a parent, or in a terminal of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from ._environment import Kind, environ
from ._errors import EmulatorError, require_unix
from ._options import Options
from ._records import StartDetails

__all__ = ["serve", "supervised"]


def supervised() -> int:
    """Run for a parent process: options in from standard input, details out, until its end.

    One JSON line each way. The end of standard input is the end of the parent, however it came
    about, and so ours.
    """
    line = sys.stdin.readline()
    if not line:
        return 0  # the parent thought better of it, or died, before it said what it wants
    options = Options.from_json(json.loads(line))

    def report(details: StartDetails) -> None:
        _write_line({"details": dataclasses.asdict(details)})

    try:
        asyncio.run(_run(options, report, watch_stdin=True))
    except (EmulatorError, OSError) as error:
        _write_line({"error": str(error)})
        return 1
    return 0


def serve(
    options: Options | None = None,
    *,
    kind: Kind = "client-secret",
    out: TextIO | None = None,
    describe: Callable[[StartDetails], str] | None = None,
) -> int:
    """Run in the foreground until SIGINT or SIGTERM; the way of ``aioentra-redis emulator``.

    Prints what it is and the environment variables for signing in as ``kind``, ready for a
    shell; or what ``describe`` makes of the details. Returns the exit status: 0, or 1 with a
    message on standard error if it could not start. Blocks; needs no event loop and must not be
    called from one.
    """
    stream = out if out is not None else sys.stdout

    def report(details: StartDetails) -> None:
        stream.write(describe(details) if describe is not None else banner(details, kind))
        stream.flush()

    try:
        require_unix()
        asyncio.run(_run(options or Options(), report, watch_stdin=False))
    except (EmulatorError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def banner(details: StartDetails, kind: Kind) -> str:
    """What ``serve`` prints. The secrets in it are made up at each start and good for nothing
    else."""
    lines = [
        "# aioentra_redis emulator: Entra ID and a token-enforcing Redis, for development only.",
        f"# It listens on loopback and nowhere else. Server: {details.server_version}.",
        f"#   Profile           {details.profile}",
        f"#   Redis over TLS    {details.url}",
        *([f"#   Redis in clear    {details.plaintext_url}"] if details.plaintext_url else []),
        f"#   Entra authority   {details.authority}",
        f"#   Managed identity  {details.managed_identity_url}",
        f"#   CA certificate    {details.ca_file}",
        f"# To sign in ({kind}), in another shell:",
    ]
    lines += [f"export {name}={value}" for name, value in environ(details, kind).items()]
    return "\n".join([*lines, "# Ctrl-C ends it.", ""])


async def _run(
    options: Options, report: Callable[[StartDetails], None], *, watch_stdin: bool
) -> None:
    from ._stand_in import StandIn  # heavy: aiohttp, cryptography

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    if watch_stdin:
        loop.add_reader(sys.stdin.fileno(), _read_stdin, ended)
    stand_in = StandIn(options)
    waiting = asyncio.create_task(ended.wait())
    starting = asyncio.create_task(stand_in.start())
    try:
        await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            report(starting.result())
            await waiting
    finally:
        if watch_stdin:
            loop.remove_reader(sys.stdin.fileno())
        for task in (starting, waiting):
            task.cancel()
        await asyncio.wait([starting, waiting])  # what it has started, it stops itself
        await stand_in.aclose()


def _read_stdin(ended: asyncio.Event) -> None:
    with contextlib.suppress(BlockingIOError):
        if not os.read(sys.stdin.fileno(), 4096):
            ended.set()


def _write_line(document: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # a parent that died meanwhile
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()
