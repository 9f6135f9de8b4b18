"""The one exception of the emulator.

It stands beside the client's exception tree on purpose: the emulator and the client know nothing
of each other.
"""

from __future__ import annotations

__all__ = ["EmulatorError"]


class EmulatorError(RuntimeError):
    """The emulator could not start, has stopped, or refused a control call; the text says why."""
