"""The command line: what it takes, what it refuses and how it says so."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

import aioentra_redis.cli
from aioentra_redis import __version__
from aioentra_redis.cli import _app, _emulator, _perform, main
from aioentra_redis.cli._demo import DemoOptions


def invoke(*arguments: str) -> tuple[int, str]:
    """The exit status and the output, in one line, without colours and the boxes around it."""
    result = CliRunner().invoke(_app.app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    # typer draws in colour wherever the environment speaks of GitHub Actions.
    text = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    return result.exit_code, " ".join(re.sub(r"[^ -~]", " ", text).split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--workers", "0"], "0 is not between 1 and 5000: all of them share"),
        (["demo", "--workers", "many"], "Invalid value for '--workers': "),
        (["demo", "--rotations", "-1"], "-1 is not between 1 and 1000: each takes about half"),
        (["demo", "--token-lifetime", "1"], "1 is not between 2 and 300: shorter tokens"),
        (["demo", "--token-lifetime", "nan"], "nan is not between 2 and 300"),
        (["demo", "--colour"], "No such option"),
        (["emulator", "--token-lifetime", "0"], "0 is no duration: give seconds above 0"),
        (["emulator", "--managed-identity-lifetime", "inf"], "inf is no duration"),
        (["emulator", "--refresh-in", "-5"], "-5 is no duration"),
        (["emulator", "--policy", "king"], "'king' is not one of owner, contributor, reader,"),
        (["emulator", "--profile", "aks"], "'aks' is not one of acr, amr-oss, amr-enterprise"),
        (["emulator", "--primaries", "0"], "0 is not between 1 and 20: each is a process"),
        (["emulator", "--sign-in", "magic"], "'magic' is not one of client-secret, certificate"),
        (["emulator", "--port", "65536"], "65536 is not between 0 and 65535: 0 stands for any"),
        (["dance"], "No such command 'dance'"),
    ],
)
def test_unusable_arguments_are_refused_with_a_sentence(arguments: list[str], sentence: str):
    status, output = invoke(*arguments)
    assert status == 2
    assert sentence in output


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["emulator", "--help"]])
def test_help(arguments: list[str]):
    status, output = invoke(*arguments)
    assert status == 0
    assert "Usage: " in output


def test_help_lists_the_commands():
    _, output = invoke("--help")
    assert "demo" in output
    assert "emulator" in output


def test_version():
    assert invoke("--version") == (0, f"aioentra-redis {__version__}")


def test_the_demos_options_reach_it(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []

    def perform(options: DemoOptions, *, as_json: bool) -> int:
        calls.append((options, as_json))
        return 1

    monkeypatch.setattr(_perform, "perform", perform)
    assert main(["demo"]) == 1
    assert main(["demo", "--workers", "3", "--rotations", "2", "--token-lifetime", "2.5", "--json"])
    assert calls == [(DemoOptions(50, 5, 4.0), False), (DemoOptions(3, 2, 2.5), True)]


def test_the_emulators_options_reach_it(monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(_emulator, "host", lambda **options: calls.append(options) or 0)
    assert main(["emulator", "--port", "10000", "--sign-in", "imds", "--json"]) == 0
    assert calls[0]["port"] == 10000
    assert calls[0]["kinds"] == ("imds",)
    assert calls[0]["as_json"] is True
    assert calls[0]["token_lifetime"] == 3600.0


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        aioentra_redis.cli,
        "find_spec",
        lambda name: None if name in ("typer", "jwt") else importlib.util.find_spec(name),
    )
    assert main(["demo"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "aioentra-redis needs typer, jwt, which the cli extra brings: "
        "run python -m pip install 'aioentra-redis[cli]'\n"
    )


def test_an_interruption_outside_a_command_has_no_traceback(monkeypatch: pytest.MonkeyPatch):
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_app, "run", interrupted)
    assert main(["demo"]) == 130


def test_importing_it_needs_nothing_of_the_extra():
    code = "import sys, aioentra_redis.cli; print({'typer', 'rich'} & set(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "set()\n"
