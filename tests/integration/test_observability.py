"""The examples of ``docs/observability.md`` run, against the emulator."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter
from support.signing_in import Witness, client_of, minted_source, secret_source

import aioentra_redis
from aioentra_redis import Reauthenticated
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

PAGE = Path(aioentra_redis.__file__).parent.parent / "docs" / "observability.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)


def example(part: str) -> dict[str, Any]:
    """What the one block defines that has ``part`` in it."""
    (block,) = [each for each in blocks() if part in each]
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    return names


USED = (
    "def show",
    "def with_a_callback",
    "def watch",
    "def readyz",
    "set_meter_provider",
    "setLevel",
)


def test_every_block_is_run_below():
    assert len(blocks()) == len(USED)
    assert [len([each for each in blocks() if part in each]) for part in USED] == [1] * len(USED)


async def test_status(entra_emulator: Emulator, capsys: pytest.CaptureFixture[str]):
    show = example("def show")["show"]
    async with secret_source(entra_emulator, name="mine") as source:
        await show(source)
    shown = capsys.readouterr().out
    assert "mine fresh version 1\n" in shown
    assert "0 failures in a row, the last one: None\n" in shown


async def test_events_by_callback(entra_emulator: Emulator, capsys: pytest.CaptureFixture[str]):
    names = example("def with_a_callback")
    async with secret_source(entra_emulator) as source:
        options = {"ssl_ca_certs": entra_emulator.ca_file, "cluster": False}
        await names["with_a_callback"](entra_emulator.url, source, **options)
    error = ValueError("no")
    names["on_event"](
        aioentra_redis.ReauthenticationFailed("connection-1", "peer", 2, error),
    )
    assert "connection-1 to peer goes on" in capsys.readouterr().out


async def test_events_by_iterator(entra_emulator: Emulator, capsys: pytest.CaptureFixture[str]):
    watch = example("def watch")["watch"]
    witness, listening = Witness(), asyncio.Event()
    async with minted_source(entra_emulator, believed=0.8, gate=listening) as source:
        async with client_of(entra_emulator, source, on_event=witness) as redis:
            watching = [asyncio.create_task(watch(redis)), asyncio.create_task(watch(source))]
            await asyncio.sleep(0)  # they begin: an iterator hears what happens from then on
            listening.set()
            await witness.first(Reauthenticated)
        await watching[0]
        assert not watching[1].done()
    await watching[1]
    assert "version 2 took" in capsys.readouterr().out


async def test_health(entra_emulator: Emulator):
    readyz = example("def readyz")["readyz"]
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source) as redis,
    ):
        code, body = await readyz(redis)
        assert (code, body["state"], body["token_state"]) == (200, "healthy", "fresh")
        assert body["token_expires_in"] > 0
    code, body = await readyz(redis)
    assert (code, body["state"]) == (503, "unhealthy")


def test_metrics(monkeypatch: pytest.MonkeyPatch):
    """All of it but its last step, for the whole process, which can't be undone."""
    providers: list[Any] = []
    monkeypatch.setattr(metrics, "set_meter_provider", providers.append)
    monkeypatch.setattr(ConsoleMetricExporter, "export", lambda *_, **__: None)
    example("set_meter_provider")
    (provider,) = providers
    provider.shutdown()


def test_logs():
    logger = logging.getLogger("aioentra_redis")
    before = logger.level
    with contextlib.ExitStack() as stack:
        stack.callback(logger.setLevel, before)
        example("setLevel")
        assert logger.level == logging.WARNING
