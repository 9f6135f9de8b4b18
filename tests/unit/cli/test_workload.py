"""Workers notice every kind of wrong answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from aioentra_redis.cli import _workload
from aioentra_redis.cli._statistics import Recorder
from aioentra_redis.cli._workload import Tally, Workload


class Store:
    """A client that holds its data itself; ``spoil`` maps a command to what happens once."""

    def __init__(self, **spoil: Any) -> None:
        self.data: dict[str, bytes] = {}
        self.spoil = spoil

    async def _answer(self, name: str, reply: Any) -> Any:
        await asyncio.sleep(0)
        spoiled = self.spoil.pop(name, None)
        if isinstance(spoiled, Exception):
            raise spoiled
        return reply if spoiled is None else spoiled

    async def incr(self, key: str) -> Any:
        value = int(self.data.get(key, b"0")) + 1
        self.data[key] = b"%d" % value
        return await self._answer("incr", value)

    async def set(self, key: str, value: bytes) -> Any:
        self.data[key] = value
        return await self._answer("set", True)

    async def get(self, key: str) -> Any:
        return await self._answer("get", self.data.get(key))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)


async def work(store: Store, *, workers: int = 3, failures: int = 0) -> Workload:
    """Let workers do a few rounds, and fail so often, and look at what is there in the end."""
    workload = Workload(store, workers, Recorder())
    enough = until(lambda: workload.commands > 10 * workers and workload.failures >= failures)
    await workload.run(enough)
    await workload.verify()
    return workload


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workload, "PAUSE_AFTER_FAILURE", 0.001)


async def test_a_faithful_server_is_not_accused():
    workload = await work(Store())
    assert workload.failures == 0
    assert workload.commands > 10
    assert not workload.reasons


@pytest.mark.parametrize("name", ["incr", "set", "get"])
async def test_a_command_that_raises_is_one_failure(name: str):
    workload = await work(Store(**{name: RedisConnectionError("made up")}))
    assert workload.failures == 1
    assert workload.reasons == {f"{name.upper()} raised ConnectionError: made up": 1}


@pytest.mark.parametrize(
    ("name", "reply", "reason"),
    [
        ("incr", b"somebody else's", "instead of its next value"),
        ("set", b"OK", "SET demo:value:"),
        ("get", b"somebody else's", 'returned b"somebody else\'s" instead of'),
    ],
)
async def test_a_wrong_reply_is_one_failure(name: str, reply: Any, reason: str):
    workload = await work(Store(**{name: reply}))
    assert workload.failures == 1
    assert reason in next(iter(workload.reasons))


async def test_a_lost_increment_shows_at_the_end():
    store = Store()
    workload = Workload(store, 2, Recorder())
    await workload.run(until(lambda: int(store.data.get("demo:counter:1", b"0")) > 2))
    store.data["demo:counter:1"] = b"1"
    await workload.verify()
    assert workload.failures == 1
    assert "demo:counter:1 is 1, but" in next(iter(workload.reasons))


async def test_a_counter_that_cannot_be_read_at_the_end_is_a_failure():
    store = Store()
    workload = Workload(store, 1, Recorder())
    await workload.run(until(lambda: workload.commands > 10))
    store.spoil["get"] = RedisConnectionError("made up")
    await workload.verify()
    assert workload.failures == 1


async def test_a_command_without_an_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_workload, "PATIENCE", 0.02)
    hanging = 0

    class Hanging(Store):
        async def set(self, key: str, value: bytes) -> Any:
            nonlocal hanging
            hanging += 1
            await asyncio.Event().wait()

    workload = Workload(Hanging(), 4, Recorder())
    await workload.run(until(lambda: hanging == 4))
    assert workload.errors == 4


async def test_cancelling_ends_the_workers():
    workload = Workload(Store(), 5, Recorder())
    task = asyncio.create_task(workload.run(asyncio.Event().wait()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [each for each in asyncio.all_tasks() if each.get_name().startswith("demo-worker")]


async def test_reasons_that_differ_each_time_do_not_fill_memory():
    class Failing(Store):
        async def get(self, key: str) -> Any:
            raise RedisConnectionError(f"number {id(object())} {len(self.data)} {key} {self.n()}")

        def n(self) -> int:
            self.count = getattr(self, "count", 0) + 1
            return self.count

    workload = await work(Failing(), workers=50, failures=_workload.MAX_KINDS + 1)
    assert workload.failures > _workload.MAX_KINDS
    assert len(workload.reasons) == _workload.MAX_KINDS


@pytest.mark.parametrize(
    ("uncertain", "reply", "right"),
    [(0, 1, True), (0, 2, False), (1, 1, True), (1, 2, True), (1, 3, False), (0, "1", False)],
)
def test_tally(uncertain: int, reply: Any, right: bool):
    tally = Tally("key")
    tally.uncertain = uncertain
    assert tally.take(reply) is right
