"""Finding the processes of an emulator by the private directory that they work in; Linux only."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

__all__ = ["emulator_pid", "processes", "until_gone"]


def processes(directory: str) -> list[int]:
    """Processes that work in the emulator's private directory: servers and their supervisors."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if Path(os.readlink(entry / "cwd")).is_relative_to(directory):
                found.append(int(entry.name))
    return found


def until_gone(directory: str, *, files: bool = True) -> None:
    """Wait until nothing works in the directory any more and, with ``files``, until it is gone."""
    deadline = time.monotonic() + 5
    while processes(directory) or (files and Path(directory).exists()):
        assert time.monotonic() < deadline, f"{directory} is still in use"
        time.sleep(0.02)


def emulator_pid(directory: str) -> int:
    """The process whose children work in the directory."""
    workers = processes(directory)
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in workers]
    [parent] = {int(stat.rpartition(")")[2].split()[1]) for stat in stats} - set(workers)
    return parent
