"""Events as an async iterator, for those who would rather have a loop than a callback.

A stream listens and keeps what it hears until it is read. Nobody but its reader holds it: a stream
that is dropped takes its listeners along.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol, Self

from ._events import Event, EventCallback, EventsDropped

__all__ = ["EventStream", "EventStreams"]

CAPACITY: Final = 1000
"""Events that a stream keeps for its reader: hours of an ordinary life, seconds of a bad one."""


class Emitter(Protocol):
    """What events come from: a hub, or a token source."""

    def listen(self, callback: EventCallback) -> Callable[[], None]: ...


class EventStream(AsyncIterator[Event]):
    """An async iterator over the events of a client or token source, from its making on.

    It ends when the client or source is closed and everything before that has been read, or by
    :meth:`close`. It never makes anybody wait: a thousand unread events are kept, then the oldest
    are dropped, and an :class:`EventsDropped` comes in their place. Cancelling a wait loses
    nothing. Any number of streams may be open, each gets every event; one task at a time may wait
    on each. To be used in the event loop of the client or source.
    """

    def __init__(self, *emitters: Emitter) -> None:
        self.dropped: int = 0
        """How many events were dropped so far because they were not read in time."""
        self._untold = 0
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        ref = weakref.ref(self)

        def deliver(event: Event) -> None:
            stream = ref()
            if stream is not None:
                stream._put(event)

        stops = [each.listen(deliver) for each in emitters]
        self._stop = weakref.finalize(self, _call_all, stops)
        self._stop.atexit = False

    def _put(self, event: Event) -> None:
        if len(self._events) == CAPACITY:
            self._events.popleft()
            self._untold += 1
            self.dropped += 1
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        """Have the reader look again; a collected client closes its streams in any thread."""
        waiter = self._waiter
        if waiter is None:
            return
        loop = waiter.get_loop()
        if asyncio._get_running_loop() is loop:
            _finish(waiter)
        else:
            with contextlib.suppress(RuntimeError):  # it may be closed
                loop.call_soon_threadsafe(_finish, waiter)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._untold:
                count, self._untold = self._untold, 0
                return EventsDropped(count)
            if self._events:
                return self._events.popleft()
            if self._closed:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("another task is already waiting on this stream of events")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                if not (self._events or self._closed):  # another thread may have been here
                    await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        """Listen no more; what has been heard can still be read, then the iteration ends."""
        self._closed = True
        self._stop()
        self._wake()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<EventStream {state}, {len(self._events)} unread, {self.dropped} dropped>"


class EventStreams:
    """The streams that end together, because what they tell of does."""

    def __init__(self) -> None:
        self._refs: dict[int, weakref.ref[EventStream]] = {}
        self._closed = False

    def open(self, *emitters: Emitter) -> EventStream:
        """A stream of what ``emitters`` tell; after :meth:`close` one that has ended."""
        stream = EventStream(*emitters)
        if self._closed:
            stream.close()
        else:
            refs, key = self._refs, id(stream)
            refs[key] = weakref.ref(stream, lambda _: refs.pop(key, None) and None)
        return stream

    def close(self) -> None:
        """End all streams, now and later."""
        self._closed = True
        for ref in list(self._refs.values()):
            if (stream := ref()) is not None:
                stream.close()
        self._refs.clear()


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _call_all(stops: list[Callable[[], None]]) -> None:
    for stop in stops:
        stop()
