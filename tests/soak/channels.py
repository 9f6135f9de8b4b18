"""A publisher, and a subscriber who must be told everything, or that there is a gap."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

from aioentra_redis import Event, MessagesMayBeMissing, SubscriptionHandedOver

from .calls import Calls
from .model import Messages
from .outcomes import Outcome

__all__ = ["Channel"]

ANNOUNCED = 15.0
"""Seconds for which an event excuses a gap, or a repetition: older messages may be unread yet."""


class Channel:
    """One channel; the publisher is another client than the subscriber."""

    def __init__(self, publisher: Any, subscriber: Any, calls: Calls, name: str, seed: int) -> None:
        self._publisher, self._subscriber, self._calls = publisher, subscriber, calls
        self._name = name
        self.messages = Messages(calls.findings, name)
        self._random = random.Random(seed)
        self._published = 0
        self._ended = False
        self._gap_at = self._doubt_at = float("-inf")
        self.gaps = self.doubts = 0

    def on_event(self, event: Event) -> None:
        """Events of the subscriber's client."""
        if isinstance(event, MessagesMayBeMissing):
            self._gap_at = time.monotonic()
            self.gaps += 1
        elif isinstance(event, SubscriptionHandedOver) and event.doubt is not None:
            self._doubt_at = time.monotonic()
            self.doubts += 1

    @property
    def _excused(self) -> bool:
        return time.monotonic() - self._gap_at < ANNOUNCED

    @property
    def _doubted(self) -> bool:
        return time.monotonic() - self._doubt_at < ANNOUNCED

    async def publish(self, think: float) -> None:
        """Publish numbers until the calls stop."""
        while not self._calls.stopping:
            self._published += 1
            number = self._published
            outcome, _ = await self._calls.attempt(
                lambda number=number: self._publisher.publish(self._name, f"{self._name}|{number}"),
                may_be_cancelled=True,
            )
            if outcome is not Outcome.DONE:
                self.messages.failed(number, outcome)
            await asyncio.sleep(self._random.uniform(0, 2 * think))
        self._ended = True

    async def listen(self) -> None:
        """Take messages until the publisher has ended and for a second none has come."""
        pubsub = self._subscriber.pubsub(ignore_subscribe_messages=True)
        try:
            while (await self._calls.attempt(lambda: pubsub.subscribe(self._name)))[0] is not (
                Outcome.DONE
            ):
                pass
            idle = 0
            while not (self._ended and idle > 1):
                outcome, message = await self._calls.attempt(
                    lambda: pubsub.get_message(timeout=1.0), at_rest=False
                )
                idle = 0 if message or outcome is not Outcome.DONE else idle + 1
                if message:
                    self._take(message)
            self.messages.finish(self._published, excused=self._excused)
        finally:
            with contextlib.suppress(Exception):
                await pubsub.aclose()

    def _take(self, message: dict[str, Any]) -> None:
        name, _, number = bytes(message["data"]).rpartition(b"|")
        self._calls.expect(message["channel"], self._name.encode(), "a message's channel")
        self._calls.expect(name, self._name.encode(), "a message")
        self.messages.came(int(number), excused=self._excused, doubted=self._doubted)
