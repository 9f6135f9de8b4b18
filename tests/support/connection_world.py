"""Multiplexed connections over scripted dials, with a token source of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio
from support.scripted_peer import Peer
from support.token_fakes import EPOCH

from aioentra_redis._broadcast import Broadcast, Subscription
from aioentra_redis._events import (
    Event,
    EventHub,
    TokenState,
)
from aioentra_redis._multiplex._connection import MultiplexedConnection
from aioentra_redis._servers import Servers
from aioentra_redis._token import Token
from aioentra_redis.errors import (
    TokenExpiredError,
)

virtual_time = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


class Source:
    """A token source without a credential."""

    def __init__(self) -> None:
        self.broadcast = Broadcast()
        self._servers = Servers(8, lambda event: None)
        self.state = TokenState.FRESH
        self.gets = 0
        self.publish(1)

    def publish(self, version: int, life: float = 3600.0) -> None:
        at = EPOCH + now()
        self.broadcast.publish(
            Token(f"s{version}", username="u", expires_on=at + life, first_seen=at, version=version)
        )

    @property
    def current(self) -> Token | None:
        return self.broadcast.current

    async def get(self) -> Token:
        self.gets += 1
        if self.state is TokenState.EXPIRED:
            raise TokenExpiredError("expired, and no newer one")
        assert self.current is not None
        return self.current

    def subscribe(self, after: int | None = None) -> Subscription:
        return self.broadcast.subscribe(after)

    def now(self, _token: object = None) -> float:
        return EPOCH + now()


class World:
    """A multiplexed connection over a scripted peer, whose dials the test decides about."""

    def __init__(self, source: Source | None = None, **script: Any) -> None:
        self.peer = Peer(**script)
        self.source = source
        self.pool = redis.asyncio.ConnectionPool(host="peer", port=7)
        self.dials: list[float] = []
        self.dial_seconds = 0.1
        self.refusals: list[Exception] = []
        self.down: Exception | None = None
        self.handshake_seconds = 0.01
        self.ends_at_once = False
        self.socket_timeout: float | None = 5.0
        self.open_dials = 0
        self.events: list[Event] = []
        self.hub = EventHub()
        self.hub.listen(self.events.append)
        self.multiplexed = MultiplexedConnection(
            self.pool,
            source=source,  # type: ignore[arg-type]
            recovery_timeout=30,
            close_timeout=5,
            hub=self.hub,
        )

    async def dial(self, pool: Any) -> Any:
        assert pool is self.pool
        self.dials.append(round(now(), 2))
        self.open_dials += 1
        try:
            token = await self.source.get() if self.source is not None else None
            await asyncio.sleep(self.dial_seconds)
            if self.refusals:
                raise self.refusals.pop(0)
            if self.down is not None:
                raise self.down
        finally:
            self.open_dials -= 1
        dialed = self.peer.dialed(
            token=token,
            handshake_seconds=self.handshake_seconds,
            socket_timeout=self.socket_timeout,
        )
        if self.ends_at_once:
            dialed.transport.end()  # type: ignore[attr-defined]
        return dialed

    async def command(self, *words: Any) -> Any:
        session = await self.multiplexed.admit()
        try:
            future = session.submit(words)
        finally:
            session.admitted()
        return await future

    def seen(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]
