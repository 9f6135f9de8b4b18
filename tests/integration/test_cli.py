"""The commands as people run them: in processes of their own, with pipes and with terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from support.command_line import COMMAND, assert_gone, descendants, run, running

from aioentra_redis import EntraRedis, TokenSource, connect
from aioentra_redis.cli._demo import DemoOptions
from aioentra_redis.cli._perform import perform

pytestmark = pytest.mark.emulator

SHORT = ["--rotations", "2", "--token-lifetime", "4"]
"""As short as it is sure that no third rotation begins before the end, on a busy machine either."""


# ------------------------------------------------------------------------------- the demo


def test_demo_without_a_terminal():
    ended = run("demo", *SHORT)
    assert ended.stderr == ""
    assert ended.returncode == 0, ended.stdout
    assert "\x1b" not in ended.stdout
    for expected in (
        r"^ +\d+\.\d s  50 workers begin; 2 rotations of tokens that live 4 s take about \d s$",
        r"^ +\d+\.\d s  rotation 2 of 2: connection-1 took token version 3, AUTH answered in ",
        r"^ +\d+\.\d s  token version \d, \d\.\d s old \| 1 connection \| [\d,]+ operations a "
        r"second \| 0 failures$",
        r"^commands  +[\d,]{4,} in \d+\.\d s",
        r"^failures  +0$",
        r"^rotations  +2 of 2$",
        r"^connections opened  1$",
        r"^AUTHs  +3 with 3 tokens, 0 refused$",
        r"^closed for expiry  +0$",
        r"^inside rotations  +\d+(\.\d+)? ms  +\d+(\.\d+)? ms  +\d+(\.\d+)? ms  +[\d,]+$",
        r"^outside rotations  +\d+(\.\d+)? ms  +\d+(\.\d+)? ms  +\d+(\.\d+)? ms  +[\d,]{4,}$",
        r"^No command failed while the token changed 2 times\.$",
    ):
        assert re.search(expected, ended.stdout, re.MULTILINE), (expected, ended.stdout)


def test_demo_as_json():
    ended = run("demo", *SHORT, "--workers", "7", "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["options"] == {
        "workers": 7,
        "rotations": 2,
        "token_lifetime": 4.0,
        "profile": "acr",
    }
    assert report["failures"] == report["closed_for_expiry"] == report["auths_refused"] == 0
    assert report["auths"] == report["tokens"] == 3
    assert report["commands"] == report["inside"]["commands"] + report["outside"]["commands"]
    assert "rotation 2 of 2" in ended.stderr


def in_terminal(*arguments: str, interrupt_at: str | None = None) -> tuple[int, str]:
    """Run a command in a terminal of 80 by 24; returns its exit status and what it drew.

    SIGINT is sent when ``interrupt_at`` has appeared.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    drawn = b""
    with subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        try:
            deadline = time.monotonic() + 50
            while time.monotonic() < deadline:
                if interrupt_at is not None and interrupt_at.encode() in drawn:
                    process.send_signal(signal.SIGINT)
                    interrupt_at = None
                if not select.select([ours], [], [], 0.1)[0]:
                    continue
                try:
                    chunk = os.read(ours, 65536)
                except OSError:  # Linux's way to say that the other side is closed
                    break
                if not chunk:
                    break
                drawn += chunk
            process.wait(5)
        finally:
            process.kill()  # does nothing to one that has ended
            os.close(ours)
    return process.returncode, drawn.decode("utf-8")


def test_demo_in_a_terminal():
    status, drawn = in_terminal("demo", *SHORT)
    assert status == 0, drawn
    assert drawn.count("aioentra-redis demo") > 8, "drawn again and again"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    for expected in (
        r"token +version 3 ",
        r"\d\.\d s of [34]\.\d s old",
        r"rotations +2 of 2, last AUTH ",
        r"connections +1 open, 1 opened so far",
        r"operations +[\d,]+ a second",
        r"failures +0",
        r"No command failed while the token changed 2 times\.",
    ):
        assert re.search(expected, text), expected
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l"), "the cursor is back"


def test_demo_interrupted_in_a_terminal_ends_with_a_summary():
    status, drawn = in_terminal("demo", interrupt_at="1 of 5, last AUTH")
    assert status == 130
    assert "Interrupted: the figures are those until then." in drawn
    assert "Summary" in drawn
    assert "Traceback" not in drawn


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_demo_interrupted_under_load(number: int, status: int):
    with running("demo") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "operations a second" in line:
                break
        children = descendants(process.pid)
        assert children
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert errors == ""
    assert "Interrupted: the figures are those until then." in rest
    assert re.search(r"^failures  +0$", rest, re.MULTILINE)
    assert_gone(children)


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.4])
def test_demo_interrupted_while_it_starts(delay: float):
    with running("demo") as process:
        assert process.stdout is not None
        assert "starting the emulator" in process.stdout.readline()
        time.sleep(delay)  # to meet different steps of it
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    if "workers begin" in rest:  # a fast machine, where it had started by then
        assert errors == ""
    else:
        assert errors == "Interrupted before the first command.\n"
    assert_gone(children)


def test_demo_whose_reader_goes_away_ends_quietly():
    with running("demo") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) == 1
        assert "Traceback" not in process.stderr.read()


# ------------------------------------------------------------------------------- the demo can fail


class Spoiled:
    """A factory of genuine clients whose ``command`` goes wrong once, in the way of ``spoil``."""

    def __init__(self, command: str, spoil: Any) -> None:
        self._command = command
        self._spoil = spoil

    @asynccontextmanager
    async def __call__(
        self, url: str, *, token_source: TokenSource, **options: Any
    ) -> AsyncIterator[EntraRedis]:
        async with connect(url, token_source=token_source, **options) as redis:
            genuine = getattr(redis, self._command)
            pending = True

            async def once(*arguments: Any) -> Any:
                nonlocal pending
                reply = await genuine(*arguments)
                if not pending:
                    return reply
                pending = False
                if isinstance(self._spoil, Exception):
                    raise self._spoil
                return self._spoil

            setattr(redis, self._command, once)
            yield redis


@pytest.mark.parametrize(
    ("command", "spoil", "reason"),
    [
        ("get", RedisConnectionError("made up"), "GET raised ConnectionError: made up"),
        ("get", b"somebody else's", 'returned b"somebody else\'s" instead of'),
        ("incr", 7, "returned 7 instead of its next value"),
    ],
)
def test_a_single_failed_command_fails_the_demo(command: str, spoil: Any, reason: str):
    out = StringIO()
    status = perform(
        DemoOptions(workers=3, rotations=1, token_lifetime=2.0),
        client_factory=Spoiled(command, spoil),
        out=out,
    )
    assert status == 1
    text = out.getvalue()
    assert re.search(r"^failures  +1$", text, re.MULTILINE)
    assert text.count("failed 1 time: ") == 1
    assert reason in text
    assert text.endswith("The demo failed.\n")


def test_a_demo_that_cannot_begin_says_why():
    @asynccontextmanager
    async def refused(url: str, **options: Any) -> AsyncIterator[None]:
        raise RedisConnectionError("made up")
        yield

    out, err = StringIO(), StringIO()
    assert perform(DemoOptions(rotations=1), client_factory=refused, out=out, err=err) == 1
    assert err.getvalue() == "The demo could not go on: ConnectionError: made up\n"


# ------------------------------------------------------------------------------- the emulator


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_emulator_prints_what_one_needs_and_ends_with_its_children(number: int):
    with running("emulator", "--json", "--token-lifetime", "60") as process:
        assert process.stdout is not None
        document = json.loads(process.stdout.readline())
        assert document["pid"] == process.pid
        assert os.path.isfile(document["ca_file"])
        children = descendants(process.pid)
        assert children
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "", "")
    assert_gone(children)
    assert not os.path.exists(os.path.dirname(document["ca_file"]))


def test_emulators_variables_lead_a_program_to_it():
    program = """
import asyncio
from aioentra_redis import TokenSource, connect

async def main():
    async with TokenSource.from_environment() as source:
        async with connect(token_source=source, cluster=False) as redis:
            print(await redis.ping(), round(source.current.lifetime / 10))

asyncio.run(main())
"""
    with running("emulator", "--sign-in", "client-secret", "--token-lifetime", "60") as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        ended = subprocess.run(
            ["/bin/sh", "-c", "".join(lines) + 'exec "$0" -c "$1"', sys.executable, program],
            capture_output=True,
            text=True,
            timeout=30,
        )
        process.send_signal(signal.SIGINT)
        process.wait(20)
    assert ended.stdout == "True 6\n", ended.stderr


def test_emulator_that_cannot_start_says_why():
    ended = run("emulator", "--server", "no-such-server")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "no-such-server" in ended.stderr
    assert "Traceback" not in ended.stderr
