"""A soak from its beginning to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aioentra_redis import EntraRedis
from aioentra_redis.emulator import Emulator

from .calls import Calls
from .channels import Channel
from .findings import Findings, Kind
from .ledger import auth_times, expiries
from .load import Shared, Worker
from .measures import Sample, measure
from .parties import Observer, Parties, parties
from .queues import ByMove, ByPop, ByStream, Queue
from .schedule import Fault, Windows, faults
from .strikes import Strikes

__all__ = ["Plan", "Result", "soak"]

REST = 5.0
"""Seconds that the calls under way get to end, before the client is looked at."""

WIND_UP = 30.0
"""Seconds that the consumers get at the end to empty the queues."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how much, and what goes wrong; times in seconds.

    It ends ``rotations`` after the first ``warm_up``, in which caches and buffers reach the size
    that they keep, or after ``seconds`` if that comes first. A sample is taken every ``every``
    rotations. ``quiet`` leaves the faults out. ``workers`` are per client and pause for ``think``
    on average. ``client_class`` is a class to be found broken.
    """

    seconds: float
    rotations: int
    seed: int
    warm_up: int = 300
    quiet: bool = False
    workers: int = 5
    think: float = 0.03
    every: int = 20
    client_class: type[EntraRedis] | None = None


@dataclass(slots=True)
class Result:
    """What came of it."""

    plan: Plan
    findings: Findings
    took: float = 0.0
    rotations: int = 0
    calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    cancelled: int = 0
    slowest: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    queues: list[Queue] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    tokens_held: int = 0
    closest: float = float("-inf")
    """Seconds that the latest AUTH, of those that no fault excuses, came after its deadline."""
    excused_auths: int = 0
    excused_expiries: int = 0
    closes: Counter[str] = field(default_factory=Counter)


Progress = Callable[[str], None]


async def soak(emulator: Emulator, plan: Plan, progress: Progress = lambda _: None) -> Result:
    """Run it; whatever was found is in the result."""
    findings, windows = Findings(progress), Windows()
    result = Result(plan, findings)
    calls = Calls(findings, windows, plan.seed)
    observer = Observer(findings, windows)
    with _complaints(findings):
        channels: list[Channel] = []

        def listener(number: int) -> Callable[[Any], None]:
            return lambda event: channels[number].on_event(event) if channels else None

        listeners = (listener(0), listener(1))
        async with parties(emulator, observer, *listeners, plan.client_class) as them:
            started = time.monotonic()
            load = Load(them, calls, plan)
            channels += load.channels
            try:
                await load.start()
                await _through(emulator, them, load, plan, windows, observer, result, progress)
            finally:
                await load.stop()
            result.took = time.monotonic() - started
            result.rotations = observer.rotations
            await load.look(them.admin)
            judge_log(await emulator.log(), time.time(), them, windows, result)
    result.calls, result.failures = calls.total, calls.failures
    result.cancelled, result.slowest = calls.cancelled, calls.slowest
    result.events = observer.counts
    result.queues, result.channels = load.queues, load.channels
    return result


async def _through(
    emulator: Emulator,
    them: Parties,
    load: Load,
    plan: Plan,
    windows: Windows,
    observer: Observer,
    result: Result,
    progress: Progress,
) -> None:
    """Strike, and look at the client at rest, until there were enough rotations."""
    loop = asyncio.get_running_loop()
    end = loop.time() + plan.seconds
    strikes = Strikes(emulator, them.admin, windows)
    schedule: Iterator[Fault] = faults(plan.seed)
    look_at = 0
    while observer.rotations < plan.warm_up + plan.rotations and loop.time() < end:
        if plan.quiet:
            await asyncio.sleep(1.0)
        else:
            fault = next(schedule)
            await asyncio.sleep(fault.after)
            await strikes.strike(fault)
        if observer.rotations >= look_at:
            look_at = observer.rotations + plan.every
            if await load.calls.gate.shut(REST):
                await asyncio.sleep(0.1)
                result.samples.append(sample := measure(observer.rotations))
                progress(
                    f"{sample.rotations:5} rotations, {load.calls.total:7} calls, "
                    f"{sample.resident:6.1f} MB, {sample.tasks} tasks, {sample.files} files, "
                    f"{len(load.calls.findings)} findings"
                )
            load.calls.gate.open()
    result.faults = strikes.counts


class Load:
    """Everybody who calls."""

    def __init__(self, them: Parties, calls: Calls, plan: Plan) -> None:
        self.calls = calls
        self._plan = plan
        seeds = iter(range(plan.seed * 1000, plan.seed * 1000 + 1000))
        self._shared: list[Shared] = []
        self._workers: list[Worker] = []
        for name in ("commands", "more", "plain"):
            shared = Shared(calls, name)
            self._shared.append(shared)
            plain = name == "plain"
            self._workers += [
                Worker(getattr(them, name), calls, f"{name}:{n}", shared, next(seeds), plain=plain)
                for n in range(2 if plain else plan.workers)
            ]
        self._stream = ByStream(them.queues, calls, "queues", next(seeds))
        self.queues: list[Queue] = [
            ByPop(them.queues, calls, "queues", next(seeds)),
            ByMove(them.queues, calls, "queues", next(seeds)),
            self._stream,
        ]
        self.channels = [
            Channel(them.commands, them.resp3, calls, "channel:resp3", next(seeds)),
            Channel(them.commands, them.resp2, calls, "channel:resp2", next(seeds)),
        ]
        self._endless: list[asyncio.Task[None]] = []
        self._ending: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Let everybody begin."""
        await self._stream.open()
        think = self._plan.think
        self._ending = [asyncio.create_task(each.listen()) for each in self.channels]
        await asyncio.sleep(0.5)  # what is published before somebody listens does not count
        self._endless = [
            *_tasks(each.run(think) for each in self._workers),
            *_tasks(each.produce(think) for each in self.queues),
            *_tasks(each.publish(think) for each in self.channels),
        ]
        self._ending += _tasks(each.consume() for each in self.queues)

    async def stop(self) -> None:
        """Let everybody end, the consumers and subscribers when nothing is left for them."""
        self.calls.stopping = True
        self.calls.gate.open()
        for tasks, timeout in ((self._endless, WIND_UP + 30), (self._ending, WIND_UP)):
            if not tasks:
                continue
            done, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
                self.calls.findings.add(Kind.UNEXPLAINED, f"did not end: {task.get_coro()!r}")
            if late:
                await asyncio.wait(late)
            for task in done:
                if (error := task.exception()) is not None:
                    raise error

    async def look(self, admin: Any) -> None:
        """Compare everything with what the server has."""
        for each in (*self._workers, *self._shared):
            if isinstance(each, Worker):
                await each.look(admin)
            else:
                await each.look(self.calls, admin)
        for queue in self.queues:
            queue.elements.finish()


def _tasks(coroutines: Any) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(each) for each in coroutines]


def judge_log(log: Any, end: float, them: Parties, windows: Windows, result: Result) -> None:
    """What the server has seen of tokens: nothing too late, nothing expired, unless excused."""
    findings = result.findings
    result.closes = Counter(each.reason for each in log.closes if each.object_id not in them.exempt)
    for each in auth_times(log, exempt=them.exempt, end=end):
        result.tokens_held += 1
        if windows.excuses(each.since, each.due, lambda kind: kind.holds_up_auth):
            result.excused_auths += 1
            continue
        result.closest = max(result.closest, each.late)
        if each.late > 0:
            text = f"connection {each.connection} had its next token {each.late:.3f} s late"
            if each.next_issued is not None:
                text += f"; that was issued {each.due - each.next_issued:.3f} s before the deadline"
            faults = ", ".join(windows.between(each.since, each.until)) or "none"
            findings.add(Kind.LATE_AUTH, f"{text}; faults meanwhile: {faults}")
    for at, connection in expiries(log, exempt=them.exempt):
        if windows.excuses(at, at, lambda kind: kind.without_identity):
            result.excused_expiries += 1
        else:
            findings.add(Kind.EXPIRED, f"connection {connection} at {at:.3f}")


@contextlib.contextmanager
def _complaints(findings: Findings) -> Iterator[None]:
    """What is logged as an error, or lost in a task, is a finding, too."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            findings.add(Kind.UNEXPLAINED, f"logged: {record.getMessage()[:300]}")

    listener = Listener(logging.ERROR)
    names = ("aioentra_redis", "asyncio")
    for name in names:
        logging.getLogger(name).addHandler(listener)
    try:
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(listener)
