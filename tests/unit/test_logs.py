"""What an outage logs: aloud what is news, and reminders, but no line a second."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest
from support.place import Place as PlainPlace
from support.pooled import LIFE, Place
from support.scripted_peer import bulk
from support.token_fakes import Clock, Credential, config, source_of

from aioentra_redis import CommandTimeoutError, ConnectTimeoutError, TokenExpiredError
from aioentra_redis._multiplex import _connection
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


# ------------------------------------------------------------------------------------ connections


async def test_a_server_that_is_away_for_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level("DEBUG")
    place = PlainPlace()
    monkeypatch.setattr(_connection, "dial", place.dial)
    client = place.client(recovery_timeout=1)
    await client.ping()

    async def refused(_: object) -> None:
        raise ConnectionRefusedError(f"nobody there at {asyncio.get_running_loop().time()}")

    monkeypatch.setattr(_connection, "dial", refused)
    place.peer.cut()
    for _ in range(150):
        with pytest.raises(ConnectTimeoutError):
            await client.ping()
    attempts = [each for each in caplog.records if "no connection to" in each.getMessage()]
    assert len(attempts) >= 150
    assert [line.split()[0] for line in aloud(caplog)] == ["INFO"] + ["WARNING"] * 3
    monkeypatch.setattr(_connection, "dial", place.dial)
    await asyncio.sleep(2)
    await client.ping()
    caplog.clear()
    monkeypatch.setattr(_connection, "dial", refused)
    place.peer.cut()
    with pytest.raises(ConnectTimeoutError):
        await client.ping()
    await asyncio.sleep(0)
    assert [line.split()[0] for line in aloud(caplog)] == ["INFO", "WARNING"], "news again"
    monkeypatch.setattr(_connection, "dial", place.dial)
    await asyncio.sleep(2)
    await place.aclose()


async def test_commands_log_nothing(caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    place = Place()
    client = place.client()
    await client.ping()
    caplog.clear()
    for _ in range(100):
        await client.get("k")
    place.peer.script["BLPOP"] = lambda _, key, timeout: b"*2\r\n" + bulk(key) + bulk("job")
    await client.blpop(["q"], timeout=1)
    caplog.clear()
    for _ in range(20):
        await client.blpop(["q"], timeout=1)
    assert caplog.records == []
    await place.close()


async def test_a_rotation_of_many_connections_is_no_news(caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    place = Place()
    client = place.client()
    await place.idle(client, 20)
    caplog.clear()
    await asyncio.sleep(LIFE * 0.65)
    assert {row.token_version for row in client.auth_status()} == {2}
    assert len(aloud(caplog)) == 2  # those of the source
    await place.close()


async def test_a_server_that_is_slow_for_minutes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level("DEBUG")
    place = PlainPlace()
    monkeypatch.setattr(_connection, "dial", place.dial)
    place.peer.script["GET"] = lambda *_: [1.0, b"_\r\n"]
    client = place.client()
    place.on_dial = lambda dialed: setattr(dialed.connection, "socket_timeout", 5.0)

    async def ask() -> None:
        with contextlib.suppress(CommandTimeoutError):
            await client.get("k")

    asking = []
    for _ in range(100):
        asking.append(asyncio.create_task(ask()))
        await asyncio.sleep(0.5)
    late = [each for each in caplog.records if "got no reply" in each.getMessage()]
    assert len(late) > 30
    assert len([line for line in aloud(caplog) if "got no reply" in line]) == 1
    for task in asking:
        task.cancel()
    await place.aclose()
