"""redis-py's own asyncio tests: where they come from, and one run of them with one client."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .compare import Outcome, merge
from .servers import serve, serve_cluster
from .tokens import OID

__all__ = ["CLUSTER_MODULES", "MODULES", "VERSION", "Run", "events", "fetch"]

VERSION = "8.1.0"
"""The redis-py whose tests are run; the same version has to be installed."""

MODULES = (
    "client",
    "command_parser",
    "commands",
    "connect",
    "connection",
    "connection_pool",
    "credentials",
    "cwe_404",
    "encoding",
    "hash",
    "himport_integration",
    "keyspace_notifications",
    "lock",
    "monitor",
    "pipeline",
    "pubsub",
    "retry",
    "scripting",
    "usage_counter",
    "utils",
    "vsets",
)
"""Those of ``tests/test_asyncio`` that need one plain server and nothing else."""

CLUSTER_MODULES = ("cluster", "cluster_transaction")
"""Those that need a cluster: three primaries with a replica each, and nothing else."""

CLUSTER_PORTS = (16_379, 16_380)
"""The ports that those modules name: of the first two nodes of whoever made them."""

MARKERS = "not redismod and not ssl and not cp_integration"

OUTCOMES = "outcomes.jsonl"
RAN = (0, 1)
"""pytest's exit codes for a run that came to its end."""


def fetch(folder: Path) -> Path:
    """Download the source distribution into ``folder``, unless it is there, and unpack its tests.

    Its package stays packed: what is tested with is the redis-py that is installed.
    """
    suite = folder / f"suite-{VERSION}"
    if suite.is_dir():
        return suite
    name = f"redis-{VERSION}"
    archive = folder / f"{name}.tar.gz"
    if not archive.is_file():
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
        wanted = ("--no-deps", "--no-binary", "redis", f"redis=={VERSION}")
        subprocess.run([*pip, "download", "--dest", str(folder), *wanted], check=True)
    unpacked = folder / f"{suite.name}.part"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as tar:
        wanted_files = [
            each
            for each in tar.getmembers()
            if each.name == f"{name}/pyproject.toml" or each.name.startswith(f"{name}/tests/")
        ]
        tar.extractall(unpacked, members=wanted_files, filter="data")
    (unpacked / name).rename(suite)
    unpacked.rmdir()
    return suite


@dataclass(frozen=True, slots=True)
class Run:
    """The tests with one client on a server, or a cluster, of their own."""

    server: str
    protocol: int
    client: str
    """One of ``plugin.CLIENTS``."""
    cluster: bool = False

    def __str__(self) -> str:
        shape = "-cluster" if self.cluster else ""
        return f"{self.server}{shape}-resp{self.protocol}-{self.client}"

    @contextlib.contextmanager
    def _served(self, suite: Path, folder: Path) -> Iterator[tuple[int, Path]]:
        """The port of a server, and the tests for it."""
        if not self.cluster:
            with serve(self.server, folder, OID) as port:
                yield port, suite
            return
        with serve_cluster(self.server, OID) as port:
            yield port, _with_ports_from(port, suite, folder / "suite")

    def outcomes(
        self, suite: Path, folder: Path, tests: Sequence[str], options: Sequence[str] = ()
    ) -> dict[str, Outcome]:
        """Run ``tests`` (files, or names as in outcomes); ``options`` go on to pytest.

        What pytest and the server printed stays in ``folder``. Raises RuntimeError if pytest
        didn't come to its end.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with self._served(suite, folder) as (port, tests_folder):
            report = folder / OUTCOMES
            other = "not onlynoncluster" if self.cluster else "not onlycluster"
            command = [
                *(sys.executable, "-m", "pytest", "-q", "-p", "conformance.plugin"),
                # The cache would be shared by runs side by side.
                *("-p", "no:cacheprovider", "-m", f"{other} and {MARKERS}"),
                *("--client", self.client, "--outcomes", str(report)),
                *("--redis-url", f"redis://localhost:{port}/0"),
                *("--protocol", str(self.protocol)),
                *options,
                *(f"tests/test_asyncio/{each}" for each in tests),
            ]
            path = str(Path(__file__).resolve().parents[1])
            if others := os.environ.get("PYTHONPATH"):
                path = os.pathsep.join((path, others))
            log = folder / "pytest.log"
            with log.open("wb") as output:
                code = subprocess.run(
                    command,
                    cwd=tests_folder,
                    env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                ).returncode
        if code not in RAN:
            raise RuntimeError(f"{self}: pytest ended with {code}, see {log}\n{_tail(log)}")
        return merge(_read(report))


def _with_ports_from(first: int, suite: Path, copy: Path) -> Path:
    """A copy of the tests that has the cluster's ports where it names those of its authors'."""
    shutil.copytree(suite, copy)
    for module in CLUSTER_MODULES:
        path = copy / "tests" / "test_asyncio" / f"test_{module}.py"
        text = path.read_text(encoding="utf-8")
        for offset, port in enumerate(CLUSTER_PORTS):
            text = text.replace(str(port), str(first + offset))
        path.write_text(text, encoding="utf-8")
    return copy


def events(folder: Path) -> dict[str, int]:
    """How often each kind of event happened in the run that left its report in ``folder``."""
    found: dict[str, int] = json.loads((folder / f"{OUTCOMES}.events").read_text())
    return found


def _read(report: Path) -> Iterator[tuple[str, Outcome]]:
    """What the plugin wrote, one phase of a test a line."""
    with report.open(encoding="utf-8") as lines:
        for line in lines:
            name, kind, message = json.loads(line)
            yield name.removeprefix("tests/test_asyncio/"), Outcome(kind, message)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-30:])
