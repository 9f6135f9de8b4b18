"""Commands, pipelines, transactions and scripts, each with a reply that names its caller."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

from redis.exceptions import WatchError

from .calls import Calls
from .findings import Kind
from .model import Count, Register, Total
from .outcomes import Outcome

__all__ = ["Shared", "Worker"]

BIG = 300_000
"""Bytes of a big value: more than one TLS record, one chunk, or one read."""

SCRIPT = "return {redis.call('INCR', KEYS[1]), ARGV[1]}"


class Shared:
    """What the workers of one client change together."""

    def __init__(self, calls: Calls, client: str) -> None:
        self.watched = Total(calls.findings, f"{client}:watched")
        self.left = Total(calls.findings, f"{client}:left")
        self.right = Total(calls.findings, f"{client}:right")

    async def look(self, calls: Calls, admin: Any) -> None:
        """Compare with what the server has; nobody else is at work any more."""
        left, right = await admin.mget(self.left.name, self.right.name)
        if left != right:
            calls.findings.add(Kind.LOST, f"torn transactions: {left!r} and {right!r}")
        for each in (self.watched, self.left, self.right):
            each.read(int(await admin.get(each.name) or 0))


class Worker:
    """Does one thing after another, on keys of its own and on the shared ones.

    ``plain`` for a client of redis-py's own, which is asked for less.
    """

    def __init__(
        self, redis: Any, calls: Calls, name: str, shared: Shared, seed: int, *, plain: bool = False
    ) -> None:
        self._redis, self._calls, self._name, self._shared = redis, calls, name, shared
        self._random = random.Random(seed)
        self._tags = itertools.count(1)
        findings = calls.findings
        self.counts = {
            what: Count(findings, f"{name}:{what}") for what in ("count", "piped", "scripted")
        }
        self.registers = {
            what: Register(findings, f"{name}:{what}") for what in ("value", "queued", "big", "own")
        }
        self._script = redis.register_script(SCRIPT)
        common = [(self._set_and_get, 6), (self._incr, 6), (self._echo, 4), (self._pipeline, 4)]
        ours = [
            *((self._transaction, 4), (self._script_call, 4), (self._watch, 2)),
            *((self._big, 1), (self._connection, 1)),
        ]
        chosen = [*common, (self._transaction, 4)] if plain else [*common, *ours]
        self._deeds = [deed for deed, _ in chosen]
        self._weights = [weight for _, weight in chosen]

    async def run(self, think: float) -> None:
        """Work until the calls stop, with pauses of ``think`` seconds on average."""
        while not self._calls.stopping:
            (deed,) = self._random.choices(self._deeds, self._weights)
            await deed()
            await asyncio.sleep(self._random.uniform(0, 2 * think))

    async def look(self, admin: Any) -> None:
        """Compare with what the server has; this worker has ended."""
        for count in self.counts.values():
            count.read(int(await admin.get(count.name) or 0))
        for register in self.registers.values():
            self._compare(register, await admin.get(register.name))

    # -- values that name their key --------------------------------------------------------------

    def _value(self, register: Register, number: int, size: int = 0) -> bytes:
        text = f"{register.name}|{number}|".encode()
        return text.ljust(size, b"%d" % (number % 10))

    def _compare(self, register: Register, reply: Any) -> None:
        """A GET was answered with ``reply``."""
        if reply is None:
            return register.read(0)
        name, _, rest = reply.partition(b"|") if isinstance(reply, bytes) else (b"", b"", b"")
        number, _, padding = rest.partition(b"|")
        if name != register.name.encode() or padding.strip(number[-1:]):
            shown = f"GET {register.name}: {str(reply)[:100]}"
            return self._calls.findings.add(Kind.WRONG_REPLY, shown)
        return register.read(int(number))

    def _tag(self) -> bytes:
        return f"{self._name}#{next(self._tags)}".encode()

    # -- deeds -----------------------------------------------------------------------------------

    async def _set_and_get(self) -> None:
        await self._set(self.registers["value"])

    async def _big(self) -> None:
        await self._set(self.registers["big"], BIG)

    async def _set(self, register: Register, size: int = 0) -> None:
        number = register.next()
        value = self._value(register, number, size)
        outcome, reply = await self._calls.attempt(
            lambda: self._redis.set(register.name, value), may_be_cancelled=True
        )
        register.tell(number, outcome)
        if outcome is Outcome.DONE:
            self._calls.expect(reply, True, f"SET {register.name}")
        outcome, reply = await self._calls.attempt(
            lambda: self._redis.get(register.name), may_be_cancelled=True
        )
        if outcome is Outcome.DONE:
            self._compare(register, reply)

    async def _incr(self) -> None:
        count = self.counts["count"]
        outcome, reply = await self._calls.attempt(
            lambda: self._redis.incr(count.name), may_be_cancelled=True
        )
        self._counted(count, outcome, reply)

    def _counted(self, count: Count, outcome: Outcome, reply: Any) -> None:
        if outcome is not Outcome.DONE:
            count.failed(outcome)
        elif isinstance(reply, int):
            count.replied(reply)
        else:
            self._calls.expect(reply, "a number", f"INCR {count.name}")

    async def _echo(self) -> None:
        tag = self._tag()
        outcome, reply = await self._calls.attempt(
            lambda: self._redis.echo(tag), may_be_cancelled=True
        )
        if outcome is Outcome.DONE:
            self._calls.expect(reply, tag, "ECHO")

    async def _pipeline(self) -> None:
        tag, count, register = self._tag(), self.counts["piped"], self.registers["queued"]
        number = register.next()

        async def pipeline() -> Any:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.echo(tag).set(register.name, self._value(register, number))
                return await pipe.incr(count.name).get(register.name).execute()

        outcome, reply = await self._calls.attempt(pipeline, may_be_cancelled=True)
        register.tell(number, outcome)
        if outcome is not Outcome.DONE:
            return count.failed(outcome)
        self._calls.expect(reply[:2], [tag, True], "a pipeline")
        self._counted(count, outcome, reply[2])
        return self._compare(register, reply[3])

    async def _transaction(self) -> None:
        tag, shared = self._tag(), self._shared

        async def transaction() -> Any:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.incr(shared.left.name).echo(tag).incr(shared.right.name)
                return await pipe.execute()

        outcome, reply = await self._calls.attempt(transaction, may_be_cancelled=True)
        shared.left.tell(outcome)
        shared.right.tell(outcome)
        if outcome is Outcome.DONE:
            self._calls.expect(reply[1], tag, "a transaction")
            self._calls.expect(reply[0], reply[2], "a transaction, torn")

    async def _script_call(self) -> None:
        tag, count = self._tag(), self.counts["scripted"]
        outcome, reply = await self._calls.attempt(
            lambda: self._script(keys=[count.name], args=[tag]), may_be_cancelled=True
        )
        self._counted(count, outcome, reply[0] if reply else None)
        if outcome is Outcome.DONE:
            self._calls.expect(reply[1], tag, "a script")

    async def _watch(self) -> None:
        """Count by hand: what the others of this client do, too."""
        total = self._shared.watched

        async def watch() -> bool:
            async with self._redis.pipeline() as pipe:
                await pipe.watch(total.name)
                value = int(await pipe.get(total.name) or 0)
                await asyncio.sleep(self._random.uniform(0, 0.02))
                pipe.multi()
                pipe.set(total.name, value + 1)
                try:
                    await pipe.execute()
                except WatchError:
                    return False
            return True

        outcome, reply = await self._calls.attempt(watch)
        if outcome is not Outcome.DONE or reply:
            total.tell(outcome)

    async def _connection(self) -> None:
        """Several commands on a connection of one's own."""
        tag, register = self._tag(), self.registers["own"]
        number = register.next()
        is_set = False

        async def on_it() -> Any:
            nonlocal is_set
            async with self._redis.client() as own:
                first = await own.echo(tag)
                await own.set(register.name, self._value(register, number))
                is_set = True
                await asyncio.sleep(self._random.uniform(0, 0.05))
                return first, await own.get(register.name)

        outcome, reply = await self._calls.attempt(on_it)
        register.tell(number, Outcome.DONE if is_set else outcome)  # what follows may fail
        if outcome is Outcome.DONE:
            self._calls.expect(reply[0], tag, "client()")
            self._compare(register, reply[1])
