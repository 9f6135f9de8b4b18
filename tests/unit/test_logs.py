"""What an outage logs: aloud what is news, and reminders, but no line a second."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest
from support.token_fakes import Clock, Credential, config, source_of

from aioentra_redis import TokenExpiredError
from aioentra_redis._repeats import REMINDER, Repeats

pytestmark = pytest.mark.looptime


def aloud(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an application that logs INFO and above gets to see of us."""
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in caplog.records
        if record.name.startswith("aioentra_redis") and record.levelno >= logging.INFO
    ]


def test_repeats():
    repeats = Repeats()
    said = [repeats.level(logging.WARNING, "a", now) for now in range(130)]
    assert said.count(logging.WARNING) == 3  # at 0, 60 and 120
    assert said[0] == said[int(REMINDER)] == logging.WARNING
    assert repeats.level(logging.WARNING, "b", 130) == logging.WARNING
    assert repeats.level(logging.WARNING, "b", 131) == logging.DEBUG
    repeats.over()
    assert repeats.level(logging.INFO, "b", 132) == logging.INFO


async def test_a_rotation_is_a_few_lines_and_no_warning(caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    clock = Clock()
    async with source_of(Credential(clock, life=100), clock, factory=True):
        await asyncio.sleep(1)
        caplog.clear()
        await asyncio.sleep(60)
        assert len(aloud(caplog)) == 2
        assert all(line.startswith("INFO") for line in aloud(caplog))


async def test_an_identity_provider_that_is_away_for_minutes(caplog: pytest.LogCaptureFixture):
    """With demand all along, which means an attempt each second."""
    caplog.set_level("DEBUG")
    clock = Clock()
    credential = Credential(clock, life=100)
    async with source_of(credential, clock, factory=True, refresh=config()) as source:
        credential.answer = lambda _: ConnectionError(f"down at {clock()}")
        await asyncio.sleep(101)
        caplog.clear()
        for _ in range(180):
            with contextlib.suppress(TokenExpiredError):
                await source.get()
            await asyncio.sleep(1)
        attempts = [each for each in caplog.records if "an attempt failed" in each.getMessage()]
        assert len(attempts) > 150, "each one is there to be seen at DEBUG"
        assert len(aloud(caplog)) <= 4
        credential.answer = lambda _: credential.issue(life=100)
        with contextlib.suppress(TokenExpiredError):
            await source.get()
        await asyncio.sleep(2)
        caplog.clear()
        credential.answer = lambda _: ConnectionError("down again")
        await asyncio.sleep(55)
        assert any("down again" in line for line in aloud(caplog))
