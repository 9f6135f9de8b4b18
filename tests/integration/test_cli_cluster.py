"""The commands with a cluster: what they print, and that they leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from support.command_line import assert_gone, descendants, run, running

pytestmark = pytest.mark.emulator

CLUSTER = ["--profile", "amr-oss"]


def test_demo_rotates_tokens_and_replaces_primaries_at_once():
    ended = run("demo", *CLUSTER, "--rotations", "2", "--workers", "10")
    assert ended.stderr == ""
    assert ended.returncode == 0, ended.stdout
    for expected in (
        r"answers at rediss://localhost:\d+ \(amr-oss\), the authority at ",
        r"^ +\d+\.\d s  failover 1: node 4 took over slots 0-5460 from node 1 in \d+ ms$",
        r"^ +\d+\.\d s  failover 2: node 5 took over slots 5461-10921 from node 2 in \d+ ms$",
        r"^ +\d+\.\d s  rotation 2 of 2: connection-\d ",
        r"^failures  +0$",
        r"^failovers  +\d$",
        r"^closed for expiry  +0$",
        r"^No command failed while the token changed \d times and \d replicas took over from ",
    ):
        assert re.search(expected, ended.stdout, re.MULTILINE), (expected, ended.stdout)


def test_demo_as_json_counts_failovers():
    ended = run("demo", *CLUSTER, "--rotations", "1", "--workers", "3", "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["options"]["profile"] == "amr-oss"
    assert report["failures"] == report["closed_for_expiry"] == report["auths_refused"] == 0
    assert report["failovers"] >= 1
    # Each connection's handshake, and the AUTHs after that, of which the emulator knows as well.
    assert report["auths"] >= report["connections_opened"] >= 4


@pytest.mark.parametrize("profile", ["amr-enterprise", "amr-nocluster"])
def test_demo_of_one_endpoint(profile: str):
    ended = run("demo", "--profile", profile, "--rotations", "1", "--token-lifetime", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["options"]["profile"], report["failovers"]) == (profile, None)
    assert report["failures"] == 0


def test_emulator_of_a_cluster_ends_with_all_of_its_servers():
    with running("emulator", *CLUSTER, "--replicas", "0", "--json") as process:
        assert process.stdout is not None
        document = json.loads(process.stdout.readline())
        assert document["profile"] == "amr-oss"
        assert document["plaintext_url"] is None
        children = descendants(process.pid)
        assert len(children) == 3 * 2  # servers and the shells that watch over them
        assert ssl.get_server_certificate(
            ("localhost", urlsplit(document["url"]).port or 0), ca_certs=document["ca_file"]
        )
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "", "")
    assert_gone(children)
    assert not os.path.exists(os.path.dirname(document["ca_file"]))


def test_emulator_says_what_it_stands_in_for():
    with running("emulator", *CLUSTER, "--primaries", "1", "--replicas", "0") as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        process.send_signal(signal.SIGINT)
        process.wait(20)
    text = "".join(lines)
    assert re.search(r"^#   profile  +amr-oss$", text, re.MULTILINE)
    assert "Redis in clear" not in text


def test_emulator_interrupted_at_its_start_leaves_nothing():
    with running("emulator", *CLUSTER) as process:
        while len(children := descendants(process.pid)) < 4:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert out == "" or "Ctrl-C" in out
    assert_gone(children)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--policy", "owner"], "unknown access policy 'owner': use one of default"),
        (["--plaintext-port", "7000"], "amr-oss is for TLS alone: it has no plaintext port"),
    ],
)
@pytest.mark.parametrize("module", ["aioentra_redis.cli", "aioentra_redis.emulator"])
def test_options_that_do_not_go_together(module: str, arguments: list[str], sentence: str):
    command = [sys.executable, "-m", module]
    if module == "aioentra_redis.cli":
        command.append("emulator")
    ended = subprocess.run(
        [*command, *CLUSTER, *arguments], capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
