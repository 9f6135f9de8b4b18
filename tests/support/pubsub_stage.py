"""A client of a scripted server with a subscriber, whose handovers a test asks for by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from support.pubsub_peer import PubSubPeer
from support.token_fakes import Clock, Credential, source_of

from aioentra_redis import (
    EntraRedis,
    Event,
)


class ByHand:
    """The task that calls, in the place of a re-authentication task."""

    def __init__(self) -> None:
        self.task = asyncio.current_task()

    def stop(self) -> None:
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()


class Stage:
    """A client of a scripted server, its events, and one subscriber of it."""

    def __init__(self, peer: PubSubPeer, redis: EntraRedis, events: list[Event]) -> None:
        self.peer = peer
        self.redis = redis
        self.events = events
        self.pubsub = redis.pubsub()

    @property
    def connection(self) -> Any:
        return self.pubsub.connection

    @property
    def session(self) -> Any:
        return self.connection._session

    async def subscribe(self, *names: str) -> None:
        await self.pubsub.subscribe(*names)
        for _ in names:
            message = await self.pubsub.get_message(timeout=2)
            assert message is not None
            assert message["type"] == "subscribe"

    async def hand_over(self) -> None:
        """What a newer token makes of the subscription."""
        connection = self.connection
        connection._stop_reauthentication()
        connection._reauthentication = ByHand()  # it is that task which does so
        await connection._hand_over(self.session, "a test")

    async def next_data(self) -> Any:
        message = await self.pubsub.get_message(timeout=2)
        return message and message["data"]

    def of(self, kind: type[Event]) -> list[Any]:
        return [each for each in self.events if isinstance(each, kind)]

    @property
    def in_use(self) -> set[Any]:
        return self.redis.connection_pool._in_use_connections


@contextlib.asynccontextmanager
async def staged(protocol: int = 2, **options: Any) -> AsyncIterator[Stage]:
    peer = PubSubPeer(protocol)
    events: list[Event] = []
    clock = Clock()
    async with source_of(Credential(clock), clock) as source, peer.serve() as port:
        redis = EntraRedis(
            host="127.0.0.1",
            port=port,
            protocol=protocol,
            token_source=source,
            on_event=events.append,
            **options,
        )
        stage = Stage(peer, redis, events)
        try:
            yield stage
        finally:
            await stage.pubsub.aclose()
            await redis.aclose()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.002)


# -- whose it is -----------------------------------------------------------------------------------
