"""Runs a program on a client and takes down every reply."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from .program import (
    Blocked,
    Call,
    Cancelled,
    Copied,
    Locked,
    OwnConnection,
    Pause,
    Pipeline,
    Program,
    Scripted,
    Step,
    Transaction,
    Watched,
    resolve,
)

__all__ = ["CANCELLED", "Counts", "Reply", "Run", "fresh_space", "run"]

CANCELLED = object()
"""The reply of a call that was cancelled before it had one."""

RESOLVE = 0.02
"""Seconds until what was cancelled and goes on is cancelled again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call came to: a value, an exception, ``CANCELLED``."""

    call: Call | str
    value: Any


@dataclass(slots=True)
class Counts:
    """How much of what was run."""

    commands: int = 0
    pipelines: int = 0
    transactions: int = 0
    scripts: int = 0
    blocking: int = 0
    own_connections: int = 0
    cancellations: int = 0
    cancelled_calls: int = 0
    cancelled_in_time: int = 0
    cancellations_lost: int = 0


@dataclass(slots=True)
class Run:
    """The replies of each coroutine, a row per step."""

    replies: list[list[list[Reply]]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


async def run(client: Any, program: Program, *, cancelling: bool) -> Run:
    """Run a program; where not ``cancelling``, what is to be cancelled runs to its end."""
    result = Run()
    scenes = [
        _Scene(client, number, steps, cancelling, result.counts)
        for number, steps in enumerate(program.workers())
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(scene.play()) for scene in scenes]
    result.replies = [task.result() for task in tasks]
    return result


async def observe(call: Call | str, awaitable: Awaitable[Any]) -> Reply:
    """The value or the exception that an awaitable comes to."""
    try:
        return Reply(call, await awaitable)
    except Exception as exc:
        return Reply(call, exc)


class _Scene:
    """One coroutine of a program."""

    def __init__(
        self, client: Any, number: int, steps: tuple[Step, ...], cancelling: bool, counts: Counts
    ) -> None:
        self._client = client
        self._number = number
        self._space = f"{{w{number}}}"  # in a cluster, one slot
        self._steps = steps
        self._cancelling = cancelling
        self._counts = counts

    async def play(self) -> list[list[Reply]]:
        replies = []
        for at, step in enumerate(self._steps):
            self._fresh = fresh_space(self._number, at)
            try:
                replies.append(await self._act(step))
            except Exception as exc:
                replies.append([Reply("step", exc)])
        return replies

    async def _act(self, step: Step) -> list[Reply]:
        match step:
            case Call():
                return [await self._call(step)]
            case Pause(turns):
                await take_turns(turns)
                return []
            case Pipeline():
                return await self._pipeline(step)
            case Watched():
                return await self._watched(step)
            case Transaction():
                return await self._transaction(step)
            case Scripted():
                return await self._scripted(step)
            case Blocked():
                return await self._blocked(step)
            case Cancelled():
                return await self._cancelled(step)
            case OwnConnection(calls):
                self._counts.own_connections += 1
                async with self._client.client() as client:
                    return [await self._call(each, client) for each in calls]
            case Copied():
                return await self._copied(step)
            case Locked():
                return await self._locked(step)

    # -- calls -----------------------------------------------------------------------------------

    def _invoke(self, call: Call, on: Any = None, space: str | None = None) -> Any:
        """Call the method; what it returns is to be awaited, iterated, or is a pipeline."""
        self._counts.commands += 1
        space = space or self._space
        method = getattr(self._client if on is None else on, call.method)
        return method(*resolve(call.args, space), **resolve(call.options, space))

    async def _call(self, call: Call, on: Any = None, space: str | None = None) -> Reply:
        async def made() -> Any:
            result = self._invoke(call, on, space)
            if inspect.isasyncgen(result):
                return [each async for each in result]
            return await result

        return await observe(call, made())

    async def _executed(
        self,
        pipe: Any,
        calls: tuple[Call, ...],
        raise_on_error: bool = False,
        spaces: list[str] | None = None,
    ) -> list[Reply]:
        """Queue the calls, of which redis-py refuses some at once, and execute the pipeline."""
        queued, refused = [], []
        for number, call in enumerate(calls):
            try:
                self._invoke(call, pipe, spaces[number] if spaces else None)
                queued.append(call)
            except Exception as exc:
                refused.append(Reply(call, exc))
        outcome = await observe("execute", pipe.execute(raise_on_error=raise_on_error))
        if isinstance(outcome.value, list) and len(outcome.value) == len(queued):
            return [*refused, *map(Reply, queued, outcome.value)]
        return [*refused, outcome]

    # -- pipelines and transactions --------------------------------------------------------------

    async def _pipeline(self, step: Pipeline) -> list[Reply]:
        if step.transaction:
            self._counts.transactions += 1
        else:
            self._counts.pipelines += 1
        async with self._client.pipeline(transaction=step.transaction) as pipe:
            return await self._executed(pipe, step.calls, step.raise_on_error)

    async def _watched(self, step: Watched) -> list[Reply]:
        self._counts.transactions += 1
        replies = []
        async with self._client.pipeline() as pipe:
            await pipe.watch(*(resolve(key, self._space) for key in step.keys))
            replies += [await self._call(each, pipe) for each in step.reads]
            if step.meanwhile is not None:
                replies.append(await self._call(step.meanwhile))
            pipe.multi()
            return [*replies, *await self._executed(pipe, step.calls)]

    async def _transaction(self, step: Transaction) -> list[Reply]:
        self._counts.transactions += 1
        key = resolve(step.key, self._space)
        tries = 0

        async def add(pipe: Any) -> None:
            nonlocal tries
            tries += 1
            value = int(await pipe.get(key) or 0)
            if tries <= step.spoiled:
                await self._client.incr(key, 100)
            pipe.multi()
            pipe.set(key, value + 1)
            pipe.get(key)
            self._counts.commands += 3

        outcome = await observe("transaction", self._client.transaction(add, key))
        return [outcome, Reply("tries", tries)]

    async def _scripted(self, step: Scripted) -> list[Reply]:
        self._counts.scripts += 1
        self._counts.commands += 1
        # Of its own for each coroutine, so that others' runs don't decide whether it is loaded.
        script = self._client.register_script(f"{step.source} -- {self._space}")
        keys, args = resolve(step.keys, self._space), resolve(step.args, self._space)
        if step.transaction is None:
            return [await observe("script", script(keys=keys, args=args))]
        async with self._client.pipeline(transaction=step.transaction) as pipe:
            pipe.get(keys[0])
            await script(keys=keys, args=args, client=pipe)
            pipe.get(keys[0])
            return [await observe("script in a pipeline", pipe.execute(raise_on_error=False))]

    # -- blocking and cancelling -----------------------------------------------------------------

    async def _blocked(self, step: Blocked) -> list[Reply]:
        self._counts.blocking += 1
        waiting = asyncio.create_task(self._call(step.waiting, space=self._fresh))
        await take_turns(step.turns)
        woken = await self._call(step.waking, space=self._fresh)
        if isinstance(woken.value, Exception):  # nothing will wake it
            await cancel(waiting)
            return [woken]
        return [await waiting, woken]

    async def _cancelled(self, step: Cancelled) -> list[Reply]:
        spaces = [f"{self._fresh}:{number}" for number in range(len(step.calls))]
        self._counts.cancellations += 1
        self._counts.cancelled_calls += len(step.calls) + 2 * bool(step.transaction)
        if not self._cancelling and not step.may_run:
            return [Reply(step.calls[0], CANCELLED)]
        task = asyncio.create_task(self._all(step.calls, spaces, step.transaction))
        if not self._cancelling:
            return await task
        await take_turns(step.turns)
        self._counts.cancellations_lost += await cancel(task) - 1
        if task.cancelled():
            self._counts.cancelled_in_time += 1
            return [Reply("cancelled", CANCELLED)]
        return task.result()

    async def _all(
        self, calls: tuple[Call, ...], spaces: list[str], transaction: bool | None
    ) -> list[Reply]:
        if transaction is None:
            return [await self._call(calls[0], space=spaces[0])]
        async with self._client.pipeline(transaction=transaction) as pipe:
            return await self._executed(pipe, calls, spaces=spaces)

    # -- the rest --------------------------------------------------------------------------------

    async def _copied(self, step: Copied) -> list[Reply]:
        source, target = resolve(step.source, self._space), resolve(step.target, self._space)
        client, value = self._client, resolve(step.value, self._space)
        stored = await observe("set", client.set(source, value))
        dumped = await observe("dump", client.dump(source))
        if isinstance(dumped.value, Exception):
            return [stored, dumped]
        restored = await observe("restore", client.restore(target, 0, dumped.value, replace=True))
        self._counts.commands += 4
        return [stored, dumped, restored, await observe("get", client.get(target))]

    async def _locked(self, step: Locked) -> list[Reply]:
        name = resolve(step.key, self._space)
        lock, other = (self._client.lock(name, timeout=1000) for _ in range(2))
        steps: tuple[Callable[[], Awaitable[Any]], ...] = (
            lambda: lock.acquire(blocking=False),
            lambda: other.acquire(blocking=False),
            lock.owned,
            lambda: lock.extend(1000),
            lock.release,
            lock.locked,
        )
        self._counts.commands += len(steps)
        return [await observe("lock", each()) for each in steps]


async def cancel(task: asyncio.Task[Any]) -> int:
    """Cancel a task until it ends; returns how often that took.

    Up to Python 3.11 ``wait_for()``, in which redis-py writes, loses a cancellation that comes
    just as it ends.
    """
    times = 0
    while not task.done():
        times += 1
        task.cancel()
        await asyncio.wait({task}, timeout=RESOLVE)
    return max(times, 1)


async def take_turns(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def fresh_space(worker: int, step: int) -> str:
    """Where the keys of a blocking or cancelled step are, which nothing else touches."""
    return f"{{x{worker}:{step}}}"
