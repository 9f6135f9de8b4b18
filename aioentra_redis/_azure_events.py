"""Azure's announcements of maintenance, which Azure Cache for Redis publishes on a channel.

Reading it takes a connection, so it is for those who ask for it (``azure_events=True``). What it
says is told as events and has no other effect: a planned failover ends connections, and what
becomes of commands then is the same with and without an announcement.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import weakref
from collections.abc import Callable
from typing import Any, Final

from redis import exceptions as redis_exceptions

from ._events import ConnectionOpened, Event, EventHub
from ._maintenance import AZURE_CHANNEL, azure_event_in
from ._repeats import Repeats
from ._supervision import Supervised
from .errors import LifecycleError

__all__ = ["AzureEvents"]

logger = logging.getLogger("aioentra_redis.pubsub")

FIRST_PAUSE: Final = 5.0
LAST_PAUSE: Final = 60.0
"""Seconds until a subscription that has failed is tried anew, what redis-py does about a lost
connection having not helped: doubled from the first to the last, shortened by up to half at random.
A subscription that lasts as long as the last begins with the first again."""


class AzureEvents:
    """Reads the channel from the first connection of a client on, until ``aclose``.

    ``pubsub`` is the client's bound method, held weakly: this must not keep the client alive.
    """

    def __init__(self, pubsub: Callable[..., Any], hub: EventHub, host: str) -> None:
        self._pubsub = weakref.WeakMethod(pubsub)
        self._hub = hub
        self._host = host
        self._repeats = Repeats()
        self._reading: Supervised | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def heard(self, event: Event) -> None:
        """Begin with the first connection: from then on there is an event loop, and a sign-in."""
        if isinstance(event, ConnectionOpened) and self._reading is None:
            self._loop = asyncio.get_running_loop()
            self._reading = Supervised(
                self._read, name="aioentra_redis-azure-events", hub=self._hub
            )

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while (open_one := self._pubsub()) is not None:
            began = loop.time()
            try:
                subscriber = open_one(ignore_subscribe_messages=True)
            except LifecycleError:
                return  # closed meanwhile
            del open_one
            try:
                await subscriber.subscribe(AZURE_CHANNEL)
                async for message in subscriber.listen():
                    self._hub.emit(azure_event_in(message["data"], host=self._host))
            except redis_exceptions.NoPermissionError as exc:
                logger.warning(
                    "no announcements of maintenance: %s does not permit this user to subscribe "
                    "to %s (%s)",
                    self._host,
                    AZURE_CHANNEL,
                    exc,
                )
                return
            except LifecycleError:
                return
            except (redis_exceptions.RedisError, OSError) as exc:
                level = self._repeats.level(logging.WARNING, type(exc), loop.time())
                logger.log(level, "no announcements of maintenance for now: %s", exc)
            finally:
                await subscriber.aclose()
            del subscriber
            if loop.time() - began > LAST_PAUSE:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LAST_PAUSE)

    async def aclose(self) -> None:
        """End the subscription; the next connection of the client begins another one."""
        reading, self._reading = self._reading, None
        if reading is not None and (task := reading.stop()) is not None:
            await asyncio.wait({task})

    def abandon(self) -> None:
        """The client was dropped without being closed; may be called from any thread."""
        reading, self._reading = self._reading, None
        if reading is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(reading.stop)
