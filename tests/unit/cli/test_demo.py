"""What the demo makes of events and of the emulator's log, without either."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from aioentra_redis import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReplaced,
    Event,
    Reauthenticated,
    ReauthenticationFailed,
    RefreshFailed,
    TokenPublished,
    TokenState,
)
from aioentra_redis.cli import _demo
from aioentra_redis.cli._demo import Demo, DemoOptions, Notice, Phase
from aioentra_redis.emulator import AuthAttempt, ConnectionClose, Log

OPENED = ConnectionOpened("connection-1", "localhost", 1, 0.05)
REAUTHENTICATED = Reauthenticated("connection-1", "localhost", 2, 0.002)
AGAIN = Reauthenticated("connection-1", "localhost", 3, 0.002)
SECOND = ConnectionOpened("connection-2", "localhost", 2, 0.05)


def log(*, accepted: int = 0, refused: int = 0, expired: int = 0) -> Log:
    attempts = [
        AuthAttempt(0.0, 1, "AUTH", "oid", each, None if each else "no", None, None)
        for each in [True] * accepted + [False] * refused
    ]
    closes = [ConnectionClose(0.0, 1, "expiry", None) for _ in range(expired)]
    return Log([], [], attempts, [*closes, ConnectionClose(0.0, 2, "client", None)])


class Logs:
    """An emulator of which nothing is left but its logs, one for each time it is asked."""

    def __init__(self, *logs: Log) -> None:
        self.logs = list(logs)

    async def log(self) -> Log:
        return self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]


def told(*events: Event) -> tuple[Demo, list[str]]:
    notices: list[Notice] = []
    demo = Demo(DemoOptions(rotations=2), notify=notices.append)
    for each in events:
        demo._on_event(each)
    return demo, [notice.text for notice in notices]


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (
            [TokenPublished("s", 2, "oid", 0.0, 4.0, 0.01)],
            "token version 2 was acquired in 10.0 ms",
        ),
        ([OPENED], "connection-1 opened and signed in with token version 1 in 50.0 ms"),
        ([OPENED, REAUTHENTICATED], "rotation 1 of 2: connection-1 took token version 2"),
        (
            [OPENED, SECOND, ConnectionReplaced("connection-1", "connection-2", "h", "slow")],
            "rotation 1 of 2: connection-2 took over from connection-1: slow",
        ),
        ([ConnectionClosed("a", "h", OSError("reset"))], "a was lost: reset"),
        ([ReauthenticationFailed("a", "h", 2, OSError("no"))], "a kept its former token: no"),
        (
            [RefreshFailed("s", OSError("no"), 3, 1.0, TokenState.DEGRADED)],
            "no newer token, next try in 1.0 s",
        ),
    ],
)
async def test_each_event_is_told(events: list[Event], text: str):
    _, notices = told(*events)
    assert len(notices) == len(events)
    assert notices[-1].startswith(text)


async def test_a_rotation_is_over_when_all_connections_have_the_token():
    other = ConnectionOpened("connection-2", "localhost", 1, 0.05)
    demo, notices = told(OPENED, other, REAUTHENTICATED)
    assert demo.snapshot().rotations == 0
    assert notices[-1].startswith("connection-1 took token version 2")
    demo._on_event(ConnectionOpened("connection-3", "localhost", 2, 0.05))
    demo._on_event(ConnectionClosed("connection-2", "localhost", None))
    assert demo.snapshot().rotations == 1
    demo._on_event(AGAIN)
    assert demo.snapshot().rotations == 1
    demo._on_event(Reauthenticated("connection-3", "localhost", 3, 0.002))
    assert demo.snapshot().rotations == 2
    assert demo._enough.is_set()


async def test_a_connection_that_we_closed_is_no_news():
    assert told(ConnectionClosed("a", "h", None))[1] == []


async def test_counts():
    demo, _ = told(OPENED, REAUTHENTICATED, AGAIN)
    snapshot = demo.snapshot()
    assert (snapshot.rotations, snapshot.connections_opened) == (2, 1)
    assert snapshot.last_auth == 0.002
    assert demo._enough.is_set()


@pytest.mark.parametrize(
    ("seen", "disagreements"),
    [
        (log(accepted=2), []),
        (log(accepted=3), ["the emulator accepted 3 AUTHs, the client knows of 2"]),
        (log(accepted=2, refused=1), ["AUTHs that the emulator refused: 1"]),
        (
            log(accepted=2, expired=1),
            ["connections that the emulator closed because their tokens expired: 1"],
        ),
    ],
)
async def test_the_emulator_has_a_say(
    seen: Log, disagreements: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_demo, "AGREEMENT", 0.0)
    demo, _ = told(OPENED, REAUTHENTICATED)
    emulator: Any = Logs(seen)
    await demo._compare(emulator)
    report = demo.report()
    assert list(report.disagreements) == disagreements
    assert report.exit_status == bool(disagreements)


async def test_an_auth_under_way_is_no_disagreement():
    demo, _ = told(OPENED, REAUTHENTICATED)
    emulator: Any = Logs(log(accepted=1), log(accepted=2))
    await demo._compare(emulator)
    assert demo.report().disagreements == ()


async def test_rotations_that_do_not_come_are_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_demo, "GRACE", 0.0)
    monkeypatch.setattr(_demo, "CALM", 0.0)
    demo = Demo(DemoOptions(rotations=2, token_lifetime=0.001))
    await demo._until_enough()
    assert demo.report().disagreements == ("only 0 of 2 rotations within 0 s",)
    assert demo.report().exit_status == 1


async def test_an_interruption_ends_the_load_once():
    demo, _ = told()
    demo.phase = Phase.LOAD
    assert demo.interrupt(signal.SIGINT)
    await demo._until_enough()
    assert demo.report().exit_status == 130
    assert not demo.interrupt(signal.SIGINT)


async def test_before_the_load_an_interruption_has_to_cancel():
    demo, _ = told()
    assert not demo.interrupt(signal.SIGTERM)
    assert demo.report().exit_status == 143


async def test_the_rate_is_that_of_the_last_second():
    demo, _ = told()
    demo._load_begun = 100.0
    rates = [demo._rate(now, count) for now, count in ((100.5, 50), (101.0, 100), (103.0, 500))]
    assert rates == [100.0, 100.0, 200.0]


async def test_the_default_fits_into_a_minute():
    assert DemoOptions().expected < 20
    assert DemoOptions().patience < 50
