"""Clients with one defect each, of the kinds that a sequential test suite does not see.

Each breaks something now and then only, and in the way that a wrong line in the real client would.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import Any

import redis.asyncio

from aioentra_redis import EntraRedis, EntraRedisCluster
from aioentra_redis._multiplex._session import Session

__all__ = ["BROKEN", "AnotherDatabase", "SentTwice", "SwappedReplies"]


class AnotherDatabase(EntraRedis):
    """Sends a command to another database now and then, as a SELECT on a pooled connection did."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        options = {**self.connection_pool.connection_kwargs, "db": 1}
        pool = redis.asyncio.ConnectionPool(self.connection_pool.connection_class, **options)
        self._other = redis.asyncio.Redis(connection_pool=pool)
        self._number = itertools.count(1)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        waits = str(args[0]).startswith(("B", "XREAD"))  # nobody would wake it over there
        if not waits and next(self._number) % 25 == 0:
            return await self._other.execute_command(*args, **options)
        return await super().execute_command(*args, **options)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self._other.aclose(close_connection_pool=True)
        await super().aclose(close_connection_pool)


class _OwnSession(EntraRedis):
    """Does something to each session it meets."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if self._multiplexed is not None:
            await self.start()
            session = self._multiplexed.session
            if session is not None and not hasattr(session, "is_broken"):
                session.is_broken = True  # type: ignore[attr-defined]
                self.break_session(session)
        return await super().execute_command(*args, **options)

    @abstractmethod
    def break_session(self, session: Session) -> None:
        """Spoil ``session`` in the way that is to be found out."""


class SwappedReplies(_OwnSession):
    """Queues two callers in the wrong order now and then."""

    def break_session(self, session: Session) -> None:
        engine, numbers = session._engine, itertools.count(1)
        submit = session._enqueue

        def swapping(waiter: Any, packed: Any) -> None:
            submit(waiter, packed)
            waiters = engine._unwritten_waiters
            if next(numbers) % 25 == 0 and len(waiters) > 1:
                waiters[-1], waiters[-2] = waiters[-2], waiters[-1]

        session._enqueue = swapping


class ForgottenPlace(_OwnSession):
    """Takes the place of a cancelled caller away although its command was written."""

    def break_session(self, session: Session) -> None:
        withdraw = session.withdraw

        def forgetting(future: Any) -> None:
            withdraw(future)
            if future in session._engine._queue:
                session._engine._queue.remove(future)

        session.withdraw = forgetting  # type: ignore[method-assign]


class RepeatedWrites(EntraRedis):
    """Sends a command again now and then, and returns the first reply."""

    _number = itertools.count(1)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        reply = await super().execute_command(*args, **options)
        if next(self._number) % 50 == 0:
            await super().execute_command(*args, **options)
        return reply


class UndecodedOption(EntraRedis):
    """Does not know ``NEVER_DECODE``."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        options.pop("NEVER_DECODE", None)
        return await super().execute_command(*args, **options)


class TornTransactions(EntraRedis):
    """Runs what should be transactions as plain pipelines."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        return super().pipeline(transaction=False, shard_hint=shard_hint)


BROKEN = (
    AnotherDatabase,
    SwappedReplies,
    ForgottenPlace,
    RepeatedWrites,
    UndecodedOption,
    TornTransactions,
)


class SentTwice(EntraRedisCluster):
    """Sends a command again now and then, as if its node had not answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = itertools.count(1)
        super().__init__(*args, **kwargs)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        reply = await super().execute_command(*args, **options)
        waits = str(args[0]).startswith(("B", "XREAD"))
        if not waits and next(self._number) % 25 == 0:
            return await super().execute_command(*args, **options)
        return reply
