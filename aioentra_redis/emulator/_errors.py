"""The one exception of the emulator.

It stands beside the client's exception tree on purpose: the emulator and the client know nothing
of each other.
"""

from __future__ import annotations

import sys

__all__ = ["EmulatorError", "require_unix"]


class EmulatorError(RuntimeError):
    """The emulator could not start, has stopped, or refused a control call; the text says why."""


def require_unix() -> None:
    """Raise EmulatorError where there are no Unix sockets and no server to install."""
    if sys.platform == "win32":
        raise EmulatorError("The emulator needs Linux or macOS; the client runs on Windows too.")
