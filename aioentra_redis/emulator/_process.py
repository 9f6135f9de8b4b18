"""Starting and stopping the emulator's process from its user's. Blocking; needs no event loop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

from ._errors import EmulatorError, require_unix
from ._options import Options
from ._records import StartDetails

__all__ = ["EmulatorProcess"]

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 60.0
"""Seconds; a single server takes half of one, a cluster 2, on a machine that is busy more."""

STOP_TIMEOUT = 5.0


class EmulatorProcess:
    """One run of the emulator.

    The child ends when its standard input does, so it can't outlive us, however we end. Its
    session is its own: a Ctrl-C in our terminal is ours to handle.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._directory: str | None = None

    def start(self) -> StartDetails:
        """Start and wait until it is ready; EmulatorError says why it is not."""
        require_unix()
        with self._lock:
            if self._stopped:
                raise EmulatorError("the emulator was stopped while it was starting")
            self._process = process = subprocess.Popen(
                # -P: what lies in the current directory is not ours to import.
                [sys.executable, "-P", "-m", "aioentra_redis.emulator", "--supervised"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_child_environ(),
                start_new_session=True,
                text=True,
                encoding="utf-8",
            )
        watchdog = threading.Timer(START_TIMEOUT, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            return self._handshake(process)
        except BaseException:
            self.stop()
            raise
        finally:
            watchdog.cancel()

    def _handshake(self, process: subprocess.Popen[str]) -> StartDetails:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(self._options.to_json()) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise EmulatorError(
                f"the emulator's process ended with status {process.wait()} before it was ready; "
                "its standard error says more"
            )
        document = json.loads(line)
        if "error" in document:
            raise EmulatorError(document["error"])
        details = StartDetails.from_json(document["details"])
        self._directory = details.directory
        return details

    def stop(self) -> None:
        """End the process and wait for it; does nothing if there is none (any more)."""
        with self._lock:
            self._stopped = True
            process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        if self._directory is not None:  # usually gone already, by the process itself
            shutil.rmtree(self._directory, ignore_errors=True)


def _child_environ() -> dict[str, str]:
    """Our environment, with this package where the child finds it, installed or not.

    An installed one needs no help, and site-packages in PYTHONPATH would come before the standard
    library.
    """
    environ = dict(os.environ)
    if str(ROOT) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        given = environ.get("PYTHONPATH")
        environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{given}" if given else str(ROOT)
    return environ
