"""A sans-I/O engine for a connection that subscribes: what was read, and to whom it belongs.

On such a connection most of what arrives was not asked for. What was asked for still comes in the
order of asking, so there is a queue of what the server owes, and each entry says of what kind:

- a (un)subscribing command owes *confirmations*, one for each name, which look like messages
  (pushes with RESP3, arrays with RESP2);
- its refusal is one plain error, which is not to be taken for the answer to an AUTH that stands
  behind it in the queue;
- every other command (AUTH, PING) owes one plain reply.

Where an entry has a waiter, the waiter gets the outcome and the reader nothing of it; all else is
the reader's. Nothing here knows of sockets or event loops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..errors import ConnectionLostError
from ._engine import ProtocolViolation, Reader, Waiter

__all__ = ["MARKER_PREFIX", "Backlog", "Realm", "Subscriber", "resubscription"]

MARKER_PREFIX: Final = b"__aioentra_redis:handover:"
"""How the channels begin that mark the moment of a handover; no reader gets a message of them."""

ITEM_OVERHEAD: Final = 256
"""Bytes that one message takes in memory besides its contents: a list of three or four objects."""

Realm = bytes
"""What a name subscribes to: ``b""`` a channel, ``b"p"`` a pattern, ``b"s"`` a sharded channel."""


class Change(NamedTuple):
    """A kind of command that changes subscriptions."""

    realm: Realm
    adds: bool


CHANGES: Final[Mapping[bytes, Change]] = {
    prefix + (b"subscribe" if adds else b"unsubscribe"): Change(prefix, adds)
    for prefix in (b"", b"p", b"s")
    for adds in (True, False)
}
"""By the command's name, which is also what its confirmations begin with."""

MESSAGES: Final[Mapping[bytes, int]] = {b"message": 1, b"pmessage": 2, b"smessage": 1}
"""What messages begin with, and where in them their channel stands."""


class Backlog:
    """What was read and not yet consumed; ``size`` is its measure in bytes of memory, roughly."""

    def __init__(self) -> None:
        self._items: deque[tuple[Any, int]] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any) -> None:
        """Add ``item`` behind the others."""
        size = ITEM_OVERHEAD
        if isinstance(item, list):
            size += sum(len(part) for part in item if part.__class__ is bytes)
        self.size += size
        self._items.append((item, size))

    def take(self) -> Any:
        """Remove and return the oldest item."""
        item, size = self._items.popleft()
        self.size -= size
        return item

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self.size = 0

    def pour_into(self, other: Backlog) -> None:
        """Move everything to the end of ``other``."""
        while self._items:
            other.put(self.take())


@dataclass(slots=True)
class Owed:
    """What the server owes to one command.

    ``left`` counts the confirmations that are still to come; None until the first has come, for a
    command that names nothing and so ends every subscription of its realm.
    """

    change: Change | None
    left: int | None
    waiter: Waiter | None


class Subscriber:
    """The queue of what is owed, and the subscriptions that the server has confirmed.

    ``deliver`` gets what is for the reader, ``on_marker`` the channel of each marker that was
    published. Replies are parsed as bytes, whatever the connection decodes: a name that can't be
    decoded must not put the queue out of step.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        not_enough: object,
        push_type: type | None,
        resp3: bool,
        deliver: Callable[[Any], None],
        on_marker: Callable[[bytes], None],
    ) -> None:
        self._reader = reader
        self._not_enough = not_enough
        self._push_type = push_type
        self._pushes_are_lists = not resp3 or push_type is None
        self._deliver = deliver
        self._on_marker = on_marker
        self._queue: deque[Owed] = deque()
        self.subscriptions: dict[Realm, set[bytes]] = {b"": set(), b"p": set(), b"s": set()}
        self.awaited = 0

    @property
    def in_flight(self) -> int:
        """How many commands are owed something; ``awaited`` of them have a waiter."""
        return len(self._queue)

    def expect(self, words: tuple[Any, ...], waiter: Waiter | None = None) -> None:
        """Note that a command was sent; the waiter of a change is told when all is confirmed."""
        name = words[0].encode() if isinstance(words[0], str) else bytes(words[0])
        change = CHANGES.get(name.lower())
        self._queue.append(Owed(change, len(words) - 1 or None, waiter))
        if waiter is not None:
            self.awaited += 1

    def receive(self, data: bytes) -> None:
        """Give everything in ``data`` to whom it belongs.

        Raises ``ProtocolViolation`` when the connection can't be used any more; what came before
        the offending bytes has been delivered.
        """
        reader = self._reader
        try:
            reader.feed(data)
            while (item := reader.gets(False)) is not self._not_enough:
                if item.__class__ is self._push_type or self._is_push(item):
                    self._out_of_band(item)
                else:
                    self._reply(item)
        except ProtocolViolation:
            raise
        except Exception as exc:
            raise ProtocolViolation(f"unreadable reply: {exc}") from exc

    def _is_push(self, item: Any) -> bool:
        if not self._pushes_are_lists or item.__class__ is not list or not item:
            return False
        kind = item[0]
        return kind.__class__ is bytes and (kind in MESSAGES or kind in CHANGES)

    def _out_of_band(self, item: Any) -> None:
        kind = item[0]
        if (index := MESSAGES.get(kind)) is not None:
            channel = item[index]
            if channel.startswith(MARKER_PREFIX):
                if index == 1:  # a pattern that matches it gets a second copy
                    self._on_marker(channel)
                return
        elif (change := CHANGES.get(kind)) is not None and self._confirmed(change, item[1]):
            return
        self._deliver(item)

    def _confirmed(self, change: Change, name: bytes | None) -> bool:
        """Count a confirmation; returns whether it is a waiter's and not for the reader.

        One that answers no command is a sharded channel that has moved to another node.
        """
        names = self.subscriptions[change.realm]
        owed = self._queue[0] if self._queue else None
        expected = owed is not None and owed.change == change
        if owed is not None and expected and owed.left is None:
            owed.left = max(1, len(names))  # before the first of them is taken out
        if name is not None:
            (names.add if change.adds else names.discard)(name)
        if owed is None or not expected or owed.left is None:
            return False
        owed.left -= 1
        if owed.left == 0:
            self._queue.popleft()
            if owed.waiter is not None:
                self._settle(owed.waiter, None)
        return owed.waiter is not None

    def _reply(self, item: Any) -> None:
        refusal = isinstance(item, Exception)
        if not self._queue or (self._queue[0].change is not None and not refusal):
            shown = str(item) if refusal else repr(item)
            raise ProtocolViolation(f"a reply that nobody asked for: {shown:.120}")
        owed = self._queue.popleft()
        if owed.waiter is None:
            self._deliver(item)
        else:
            self._settle(owed.waiter, item)

    def _settle(self, waiter: Waiter, outcome: Any) -> None:
        self.awaited -= 1
        if waiter.done():
            return
        if isinstance(outcome, Exception):
            waiter.set_exception(outcome)
        else:
            waiter.set_result(outcome)

    def connection_lost(self, make_error: Callable[[bool], ConnectionLostError]) -> None:
        """Tell every waiter that its answer will not come."""
        queue, self._queue = self._queue, deque()
        for owed in queue:
            if owed.waiter is not None:
                self._settle(owed.waiter, make_error(True))


def resubscription(subscriptions: Mapping[Realm, set[bytes]]) -> Iterator[tuple[bytes, ...]]:
    """The commands that subscribe another connection to the same.

    Sharded channels one by one: where the server is a node of a cluster, names of different slots
    may not stand in one command.
    """
    for realm in (b"", b"p"):
        if names := subscriptions[realm]:
            yield (realm + b"subscribe", *sorted(names))
    for name in sorted(subscriptions[b"s"]):
        yield (b"ssubscribe", name)
