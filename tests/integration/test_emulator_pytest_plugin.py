"""The fixtures, as somebody else's test suite uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import aioentra_redis

pytestmark = pytest.mark.emulator

ROOT = Path(aioentra_redis.__file__).parents[1]

SUITE = """
import socket

import pytest


@pytest.fixture(scope="session")
def entra_emulator_options():
    return {"token_lifetime": 7.0}


def ask(emulator, *lines):
    host, port = emulator.plaintext_url.removeprefix("redis://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\\r\\n".join([*lines, "QUIT", ""]).encode())
        return connection.makefile("rb").read().split(b"\\r\\n")


def test_synchronous(entra_emulator):
    assert ask(entra_emulator, "PING") == [b"-NOAUTH Authentication required.", b"+OK", b""]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("attempt", [1, 2])
async def test_each_test_starts_afresh(entra_emulator, attempt):
    assert (await entra_emulator.log()).auths == []
    token = await entra_emulator.issue_token()
    oid = entra_emulator.service_principal.object_id
    assert ask(entra_emulator, f"AUTH {oid} {token}", "INCR n")[:2] == [b"+OK", b":1"]
    log = await entra_emulator.log()
    assert 6.9 < log.tokens[0].expires_on - log.tokens[0].time < 7.1
    assert [each.accepted for each in log.auths] == [True]
    await entra_emulator.refuse_auth()
"""

LOADING = """
import sys
import pytest, aioentra_redis
before = set(sys.modules)
import aioentra_redis.emulator.pytest_plugin
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_a_suite_of_somebody_else(tmp_path: Path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    # Loaded by its name and not by its entry point, which is there only if we are installed.
    plugins = ["no:aioentra_redis", "aioentra_redis.emulator.pytest_plugin"]
    process = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", *(f"-p{each}" for each in plugins)),
            *("-o", "faulthandler_timeout=20", str(tmp_path)),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
    )
    assert process.returncode == 0, process.stdout
    assert "3 passed" in process.stdout


def test_loading_the_plugin_loads_nothing_of_weight():
    process = subprocess.run(
        [sys.executable, "-c", LOADING], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    loaded = set(process.stdout.split())
    assert loaded - set(sys.stdlib_module_names) <= {"aioentra_redis"}
