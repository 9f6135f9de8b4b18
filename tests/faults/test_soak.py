"""The soak in small, half a minute from start to end; ``nox -s soak`` is the long run."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from soak.findings import Kind
from soak.report import broken, table
from soak.run import Plan, Result, soak

from aioentra_redis import EntraRedis
from aioentra_redis.emulator import Emulator

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(180)]

SEED = 20261122


async def run(emulator: Emulator, **changes: Any) -> Result:
    plan = {"seconds": 20.0, "rotations": 1000, "warm_up": 30, "seed": SEED, **changes}
    return await soak(emulator, Plan(**plan))


async def test_half_a_minute_of_everything(entra_emulator: Emulator, figure) -> None:
    result = await run(entra_emulator)
    for kind in Kind:
        figure(kind.value, result.findings.counts[kind], target="0")
    figure("rotations", result.rotations, target="over 40")
    print(table(result))
    # Memory is for the long run: this is all warm-up.
    assert [row.name for row in broken(result) if "memory" not in row.name] == []
    assert result.rotations > 40
    assert result.calls > 1000
    assert result.faults.total() > 5
    for queue in result.queues:
        assert queue.elements.delivered > 50
    for channel in result.channels:
        assert channel.messages.received > 50


class DoubledWrites(EntraRedis):
    """Sends a command again now and then, as a retry that nobody asked for does."""

    _number = itertools.count(1)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        reply = await super().execute_command(*args, **options)
        if args[0] == "INCRBY" and next(self._number) % 50 == 0:
            await super().execute_command(*args, **options)
        return reply


class ForgottenWrites(EntraRedis):
    """Says that a value was set, now and then, and does nothing."""

    _number = itertools.count(1)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] == "SET" and next(self._number) % 50 == 0:
            return True
        return await super().execute_command(*args, **options)


class MixedUpReplies(EntraRedis):
    """Gives a caller what another one has asked for, now and then."""

    _number = itertools.count(1)
    _last: Any = b"nobody's"

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        reply = await super().execute_command(*args, **options)
        if args[0] == "ECHO":
            self._last, last = reply, self._last
            return last if next(self._number) % 50 == 0 else reply
        return reply


class DroppedElements(EntraRedis):
    """Takes elements, now and then, and gives them to nobody."""

    _number = itertools.count(1)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        reply = await super().execute_command(*args, **options)
        if args[0] == "BLPOP" and next(self._number) % 50 == 0:
            return None
        return reply


class UnexplainedFailures(EntraRedis):
    """Fails when nothing is wrong."""

    _number = itertools.count(1)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if next(self._number) % 500 == 0:
            raise ConnectionError("out of the blue")
        return await super().execute_command(*args, **options)


@pytest.mark.parametrize(
    ("client_class", "kind"),
    [
        (DoubledWrites, Kind.TWICE),
        (ForgottenWrites, Kind.LOST),
        (MixedUpReplies, Kind.WRONG_REPLY),
        (DroppedElements, Kind.UNDELIVERED),
        (UnexplainedFailures, Kind.UNEXPLAINED),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
async def test_a_broken_client_is_found(
    entra_emulator: Emulator, client_class: type[EntraRedis], kind: Kind
) -> None:
    result = await run(entra_emulator, seconds=6.0, quiet=True, client_class=client_class)
    assert result.findings.counts[kind] > 0
    assert broken(result)


async def test_a_client_that_dawdles_is_found(
    entra_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioentra_redis._multiplex._reauth.reauth_delay", lambda *_: 2.5)
    result = await run(entra_emulator, seconds=8.0, quiet=True)
    assert result.findings.counts[Kind.LATE_AUTH] > 0
    assert broken(result)
