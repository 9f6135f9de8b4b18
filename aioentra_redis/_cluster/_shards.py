"""Sharded channels: each is subscribed to at a node of its slot, wherever that goes.

A server ends the subscriptions to the channels of a slot that leaves it, and says so; a lost
connection ends them, too. A task notices either, and subscribes anew at a node that serves the slot
by then. What was published meanwhile is missed, and ``MessagesMayBeMissing`` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any, Final

from redis import exceptions as redis_exceptions

from .._events import MessagesMayBeMissing
from .._multiplex._ending import ignore_outcome
from .._multiplex._subscriber_session import Inbox
from .._subscriber_connection import SubscriberConnection
from .._supervision import Supervised
from ..errors import ClosedError, ConnectionLostError
from ._nodes import Node
from ._redirects import Action, judge
from ._slots import slot_of
from ._subscribers import ClusterSubscribers, Spot

__all__ = ["Shards"]

FIRST_PAUSE: Final = 0.02
LAST_PAUSE: Final = 0.5
"""Seconds until a channel is tried again that no node would take: doubled from first to last."""

SHARDED: Final = b"s"
"""How the engine calls the realm of sharded channels."""

_ENDED: Final = b"sunsubscribe"


class Bell:
    """Rings for whoever waits at that moment."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake everybody who waits for ``next()``."""
        future, self._next = self._next, None
        if future is not None and not future.done():
            future.set_result(None)

    def next(self) -> asyncio.Future[None]:
        """Ends when it rings; shared, so not to be cancelled."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next


class HomeInbox(Inbox):
    """The messages from one node; ``bell`` rings for the reader, ``alarm`` for the task."""

    def __init__(self, bell: Bell, alarm: Bell) -> None:
        super().__init__()
        self._bell, self._alarm = bell, alarm

    def put(self, item: Any) -> None:
        """Add ``item``; that a server has ended a subscription is no message."""
        if isinstance(item, list) and item[0] == _ENDED:
            self._alarm.ring()
            return
        super().put(item)
        self._bell.ring()

    def wake(self) -> None:
        """Have everybody look again: the connection may be lost."""
        super().wake()
        self._bell.ring()
        self._alarm.ring()


class Home:
    """A connection to one node, and the channels that are subscribed to there."""

    def __init__(self, owner: ClusterSubscribers, node: Node, inbox: HomeInbox) -> None:
        self.node = node
        self.inbox = inbox
        self._spot = Spot(owner, node, moves=False, inbox=inbox)
        self.connection: SubscriberConnection | None = None
        self._connecting: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether messages can arrive."""
        return self.connection is not None and self.connection.is_connected

    def has(self, channel: bytes) -> bool:
        """Whether the server delivers what is published on ``channel``."""
        if self.connection is None or not self.connection.is_connected:
            return False
        session = self.connection.session
        return session is not None and channel in session.subscriptions[SHARDED]

    def connected(self) -> asyncio.Task[None]:
        """Ends when there is a connection, or with the reason why not; shared by who wait."""
        task = self._connecting
        if task is None or task.done():
            task = self._connecting = asyncio.ensure_future(self._connect())
            task.add_done_callback(ignore_outcome)
        return task

    async def _connect(self) -> None:
        if self.connection is None:
            self.connection = await self._spot.get_connection()
        else:
            await self.connection.connect()

    async def ask(self, command: str, channel: bytes) -> None:
        """Have the server change a subscription; raises its refusal, ``ConnectionLostError``."""
        if self.connection is None:
            raise ConnectionLostError(f"there is no connection to {self.node.name}")
        await self.connection.ask(command, channel)

    async def aclose(self) -> None:
        """Give the connection back. What was read can still be had."""
        task, self._connecting = self._connecting, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task})
        if self.connection is not None:
            await self._spot.release(self.connection)

    def abandon(self) -> None:
        """The reader was dropped without being closed; may be called from any thread."""
        if self.connection is not None:
            self.connection.abandon()
            self._spot.connections.discard(self.connection)


class Shards:
    """The sharded channels of one subscriber, and the task that follows their slots.

    ``patience`` is in seconds: so long a channel may be without a node until the reader is told.
    """

    def __init__(self, owner: ClusterSubscribers, *, patience: float) -> None:
        self._owner = owner
        self._topology = owner.topology
        self._patience = patience
        self._bell, self._alarm = Bell(), Bell()
        self._homes: dict[Node, Home] = {}
        self._drained: deque[Home] = deque()
        self._places: dict[bytes, Home | None] = {}
        self._missed: dict[bytes, Exception] = {}
        self._lock = asyncio.Lock()
        self._following: Supervised | None = None
        self._trouble: Exception | None = None

    # -- what the user asks for ------------------------------------------------------------------

    async def subscribe(self, channel: bytes) -> None:
        """Subscribe; returns when a node of the slot has confirmed it.

        Raises its refusal, or after ``patience`` what kept all from it. Cancelling it may leave
        the channel subscribed.
        """
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._patience, FIRST_PAUSE
        self._places.setdefault(channel, None)
        try:
            while True:
                changed = self._topology.next_change()
                async with self._lock:
                    failure = await self._place(channel)
                if failure is None:
                    break
                if not _passes(failure) or loop.time() >= deadline:
                    raise failure
                self._topology.want()
                await asyncio.wait({changed}, timeout=pause)
                pause = min(pause * 2, LAST_PAUSE)
        except Exception:
            self._places.pop(channel, None)
            raise
        if self._following is None:
            self._following = Supervised(
                self._follow, name="aioentra_redis-shards", hub=self._owner.hub
            )

    async def unsubscribe(self, channel: bytes) -> None:
        """Unsubscribe; returns when that is confirmed, or the connection was lost."""
        async with self._lock:
            home = self._places.pop(channel, None)
            self._missed.pop(channel, None)
            if home is not None and home.has(channel):
                with contextlib.suppress(redis_exceptions.ConnectionError):
                    await home.ask("SUNSUBSCRIBE", channel)
            await self._leave_empty_homes()

    # -- reading ---------------------------------------------------------------------------------

    async def next(self, deadline: float | None, at: str | None = None) -> Any:
        """The next message, None if none came until that moment of the loop (None: for ever).

        ``at`` is the name of the only node to look at. Raises what a channel has been without a
        node for. Cancelling it loses no message.
        """
        while True:
            bell = self._bell.next()
            homes = list(self._homes.values())
            for home in (*self._drained, *homes):
                if at is not None and home.node.name != at:
                    continue
                if home.inbox and home.connection is not None:
                    return await self._taken(home)
            if self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                raise trouble
            self._owner.check()
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                return None
            await asyncio.wait({bell}, timeout=left)

    async def _taken(self, home: Home) -> Any:
        assert home.connection is not None
        if self._homes.get(home.node) is home:  # each in its turn
            del self._homes[home.node]
            self._homes[home.node] = home
        elif len(home.inbox) == 1:
            self._drained.remove(home)
        return await home.connection.read_response(timeout=0)

    # -- where channels are ----------------------------------------------------------------------

    async def _follow(self) -> None:
        """Keep every channel subscribed to at a node of its slot."""
        loop = asyncio.get_running_loop()
        since, pause = 0.0, FIRST_PAUSE
        while not self._owner.closed:
            alarm, changed = self._alarm.next(), self._topology.next_change()
            async with self._lock:
                outcomes = await asyncio.gather(*map(self._place, list(self._places)))
                self._tell_of_gaps()
                await self._leave_empty_homes()
            failure = next(filter(None, outcomes), None)
            timeout = None
            if failure is None:
                since, pause = 0.0, FIRST_PAUSE
            else:
                since = since or loop.time()
                timeout, pause = pause, min(pause * 2, LAST_PAUSE)
                self._topology.want()
                if not _passes(failure) or loop.time() - since >= self._patience:
                    self._trouble, since = failure, 0.0
                    self._bell.ring()
            await asyncio.wait(
                {changed, alarm}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )

    async def _place(self, channel: bytes) -> Exception | None:
        """Have ``channel`` at a node of its slot; what keeps it from there."""
        try:
            nodes = self._topology.owners(slot_of(channel))
            former = self._places.get(channel)
            if former is not None and former.has(channel):
                if former.node in nodes:
                    return None  # a replica has all messages, too
            elif former is not None:
                self._missed.setdefault(channel, _reason(channel, former))
            home = self._home(nodes[0])
            if not await self._subscribed(home, channel):
                return ConnectionLostError(f"the slot of {channel!r} may have another owner by now")
        except redis_exceptions.RedisError as exc:
            return exc
        except ClosedError as exc:  # of a node that has left
            return exc
        if channel in self._places:
            self._places[channel] = home
            if former is not None and former is not home and former.has(channel):
                await former.ask("SUNSUBSCRIBE", channel)
        return None

    def _home(self, node: Node) -> Home:
        home = self._homes.get(node)
        if home is None:
            home = self._homes[node] = Home(self._owner, node, HomeInbox(self._bell, self._alarm))
        return home

    async def _subscribed(self, home: Home, channel: bytes) -> bool:
        """Subscribe at ``home``; False where slots have other owners before that is confirmed.

        Raises why it can't be done there.
        """
        changed = self._topology.next_change()
        if not home.is_connected:
            connected = home.connected()
            await asyncio.wait({connected, changed}, return_when=asyncio.FIRST_COMPLETED)
            if not connected.done():
                return False
            connected.result()
        asking = asyncio.ensure_future(home.ask("SSUBSCRIBE", channel))
        try:
            await asyncio.wait({asking, changed}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return False
            asking.result()
        except redis_exceptions.AskError as exc:
            if (redirect := judge(exc)).action is Action.MOVED:
                self._topology.moved(redirect, home.node)
            raise
        finally:
            asking.cancel()
            asking.add_done_callback(ignore_outcome)
        return True

    def _tell_of_gaps(self) -> None:
        """Say which connections have missed something, now that their channels are placed."""
        gaps: dict[Home, Exception] = {}
        for channel, reason in list(self._missed.items()):
            home = self._places.get(channel)
            if home is not None and home.has(channel):
                del self._missed[channel]
                gaps.setdefault(home, reason)
            elif channel not in self._places:
                del self._missed[channel]
        for home, reason in gaps.items():
            session = home.connection.session if home.connection is not None else None
            if session is not None:
                self._owner.hub.emit(MessagesMayBeMissing(session.name, session.host, reason))

    async def _leave_empty_homes(self) -> None:
        """Give back the connections that no channel needs any more."""
        needed = set(self._places.values())
        for node, home in list(self._homes.items()):
            if home not in needed and None not in needed:
                del self._homes[node]
                if home.inbox:
                    self._drained.append(home)
                await home.aclose()

    # -- the end ---------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Unsubscribe from everything, and give the connections back."""
        following, self._following = self._following, None
        if following is not None and (task := following.stop()) is not None:
            await asyncio.wait({task})
        self._places.clear()
        self._missed.clear()
        homes, self._homes = list(self._homes.values()), {}
        self._drained.clear()
        self._bell.ring()
        for home in homes:
            await asyncio.shield(home.aclose())

    def abandon(self) -> None:
        """The reader was dropped without being closed; may be called from any thread."""
        following, self._following = self._following, None
        if following is not None and following.task is not None:
            with contextlib.suppress(RuntimeError):
                following.task.get_loop().call_soon_threadsafe(following.stop)
        for home in self._homes.values():
            home.abandon()


def _passes(failure: Exception) -> bool:
    """Whether a channel that met ``failure`` is to be tried again."""
    return isinstance(failure, ClosedError) or judge(failure).action is not Action.RAISE


def _reason(channel: bytes, former: Home) -> Exception:
    if former.is_connected:
        return ConnectionLostError(f"the slot of {channel!r} has left {former.node.name}")
    return ConnectionLostError(f"the connection to {former.node.name} was lost")
