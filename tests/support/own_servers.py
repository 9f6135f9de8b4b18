"""A server of a test's own, on a port that nobody else has been given meanwhile."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

from aioentra_redis.emulator._server import find_server

__all__ = ["start_server"]

HOST = "127.0.0.1"


def _free_port() -> int:
    """A port that nobody listened on a moment ago; any process may take it in the next one."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def start_server(
    arguments: Callable[[int], Sequence[str]],
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the emulator's server on a free port, and wait until it answers there; blocks.

    ``arguments`` is given the port. Where somebody else was faster, the server ends by itself and
    another port is tried.
    """
    for _ in range(10):
        port = _free_port()
        command = [str(find_server(None)), *arguments(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            if _answers(process, port):
                return process, port
        except BaseException:
            process.kill()
            process.wait()
            raise
    raise AssertionError(f"{command[0]} ended ten times")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether it is this process that answers at the port; False if it has ended."""
    deadline = time.monotonic() + 30
    while process.poll() is None:
        if _process_at(port) == process.pid:
            return True
        assert time.monotonic() < deadline, f"the server does not answer at port {port}"
        time.sleep(0.02)
    return False


def _process_at(port: int) -> int | None:
    """The process that says it serves this port."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((HOST, port), timeout=5) as wire,
    ):
        wire.sendall(b"INFO server\r\n")
        answer = b""
        while more := wire.recv(1 << 16):
            answer += more
            if found := re.search(rb"process_id:(\d+)\r", answer):
                return int(found[1])
            if answer.startswith(b"-"):
                return None
    return None
