"""``aioentra-redis``: the commands of this package in a terminal.

``aioentra-redis demo`` shows tokens rotating under load, ``aioentra-redis emulator`` runs the local
stand-in for Entra ID and Azure's Redis. Both need the ``cli`` extra; importing this module doesn't.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

__all__ = ["main"]

NEEDED = ("typer", "rich", "cryptography", "jwt", "trustme")
"""Modules that the ``cli`` extra brings. The server's wheel is not among them: one on PATH will do,
and the emulator says so itself."""

ADVICE = "python -m pip install 'aioentra-redis[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, ours by default, and return its exit status.

    0 is success, 1 that what was run failed, 2 that it could not be run as asked, and 128 plus a
    signal's number (130 for Ctrl-C) that it was interrupted.
    """
    missing = list(_missing())
    if missing:
        print(
            f"aioentra-redis needs {', '.join(missing)}, which the cli extra brings: run {ADVICE}",
            file=sys.stderr,
        )
        return 2
    if sys.platform == "win32":
        print(
            "aioentra-redis runs a local Redis server, for which it needs Linux or macOS: use WSL",
            file=sys.stderr,
        )
        return 2
    try:
        from ._app import run

        return run(arguments)
    except KeyboardInterrupt:  # between the moments in which a command watches for it
        return 130


def _missing() -> Iterator[str]:
    for name in NEEDED:
        if find_spec(name) is None:
            yield name
