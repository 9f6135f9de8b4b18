"""Plain redis-py connections to a scripted peer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support.scripted_peer import HELLO, OK, Peer
from support.token_fakes import Clock, Credential, source_of
from support.wired import wired

from aioentra_redis import (
    entra_kwargs,
)

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"


HOUR = 3600.0


class Place:
    """A client of redis-py's on a scripted peer, and the source of its tokens."""

    def __init__(self, *, life: float = HOUR, **options: Any) -> None:
        self.peer = Peer()
        self.auths: list[tuple[float, int, bytes]] = []
        self.peer.script["AUTH"] = self.auth
        self.peer.script["HELLO"] = self.hello
        self.answers: list[Any] = []
        self.clock = Clock()
        self.credential = Credential(self.clock, life=life)
        self.source = source_of(self.credential, self.clock, factory=True)
        self.pool = ConnectionPool(
            connection_class=wired(self.peer),
            **{"protocol": 3, "retry": Retry(NoBackoff(), 0), **options},
            **entra_kwargs(self.source),
        )
        self.client = Redis(connection_pool=self.pool)

    def auth(self, *words: bytes) -> Any:
        now = asyncio.get_running_loop().time()
        assert self.source.current is not None
        self.auths.append((now, self.source.current.version, words[-1]))
        return self.answers.pop(0) if self.answers else OK

    def hello(self, *words: bytes) -> Any:
        return HELLO

    @property
    def versions(self) -> list[int]:
        return [version for _, version, _ in self.auths]

    async def close(self) -> None:
        await self.client.aclose()
        await self.pool.disconnect()
        await self.source.aclose()
        await asyncio.sleep(0)


RESP2 = pytest.mark.parametrize("place", [{"protocol": 2}], indirect=True)
