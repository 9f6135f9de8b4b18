"""A sans-I/O engine: which reply belongs to which caller on one shared Redis connection.

RESP has no request numbers. The server answers in the order of the requests, so the whole state
of a connection is two queues::

      submit() -->  [ unwritten ]  -- data_to_send() -->  [ written ]  --> a reply pops the oldest

Rules that keep the queues in step with the server, whatever callers do:

- one submit is one contiguous write, with a place in the queues for each reply it is owed: one,
  or, where several commands are submitted together, one for each of them;
- a caller that goes away leaves its place behind if its bytes were written, so that the reply
  meets a finished waiter and is dropped; if they were not written the place is removed;
- an attribute (RESP3) is no reply, though hiredis returns it as one;
- a reply without a place among the written, or bytes that are not RESP, end the connection;
- when the connection ends, every waiter gets an exception of its own, which says whether the
  bytes of its command had been written.

Nothing here knows of sockets, event loops or tokens. ``asyncio.Future`` serves as a waiter as it
is, which saves an object for every command.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from ..errors import CommandTimeoutError, ConnectionLostError
from ._attributes import Attributes

__all__ = ["Engine", "Packed", "Patient", "ProtocolViolation", "Raw", "Reader", "Waiter"]

Packed = bytes | list[bytes]
"""One command ready for the wire; a list where large arguments are passed on uncopied."""


class Waiter(Protocol):
    """Who waits for a reply; ``asyncio.Future`` is one."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Exception, /) -> None: ...


class Reader(Protocol):
    """The part of ``hiredis.Reader`` that is used here."""

    def feed(self, data: bytes, /) -> None: ...
    def gets(self, decode: bool = True, /) -> Any: ...
    def has_data(self) -> bool: ...


class ProtocolViolation(Exception):
    """The peer sent something that leaves the replies without known owners."""


class Raw:
    """A waiter whose reply is wanted as bytes although the connection decodes its replies."""

    __slots__ = ("done", "set_exception", "set_result", "waiter")

    def __init__(self, waiter: Waiter) -> None:
        self.done = waiter.done
        self.set_result = waiter.set_result
        self.set_exception = waiter.set_exception
        self.waiter = waiter


class Patient:
    """A waiter that is never late: the answer to AUTH says which token the server holds."""

    __slots__ = ("_waiter", "done", "set_result")

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        self.done = waiter.done
        self.set_result = waiter.set_result

    def set_exception(self, exception: Exception) -> None:
        if not isinstance(exception, CommandTimeoutError):
            self._waiter.set_exception(exception)


class Batch:
    """The waiter of several commands that were submitted together, at the last one's place.

    It hands the list of their replies to ``waiter``. Error replies are among them as values: one
    command that fails does not undo the others. What happens to the connection happens to all of
    them, so ``waiter`` gets that instead, once; from then on it is done, and the replies that
    still come are dropped.
    """

    __slots__ = ("done", "replies", "waiter")

    def __init__(self, waiter: Waiter, replies: list[Any]) -> None:
        self.waiter = waiter
        self.done = waiter.done
        self.replies = replies

    def set_result(self, reply: Any) -> None:
        self.replies.append(reply)
        self.waiter.set_result(self.replies)

    def set_exception(self, exception: Exception) -> None:
        if isinstance(exception, _FOR_ALL):
            self.waiter.set_exception(exception)
        else:
            self.set_result(exception)


class BatchPart(Batch):
    """The waiter at every place of a batch but the last."""

    __slots__ = ("set_result",)

    def __init__(self, waiter: Waiter, replies: list[Any]) -> None:
        super().__init__(waiter, replies)
        # A frame of ours for every reply would cost more than the rest of its way.
        self.set_result = replies.append  # type: ignore[assignment]


_FOR_ALL = (ConnectionLostError, CommandTimeoutError)


class Engine:
    """The queues of one connection.

    ``reader`` parses replies, ``not_enough`` is what it returns while a reply is incomplete,
    ``push_type`` the class of its out-of-band messages, which go to ``on_push``.
    """

    __slots__ = (
        "_attributes",
        "_not_enough",
        "_on_push",
        "_push_type",
        "_queue",
        "_raw",
        "_reader",
        "_unwritten",
        "_unwritten_waiters",
        "_writes",
        "_written_total",
    )

    def __init__(
        self,
        reader: Reader,
        *,
        not_enough: object,
        push_type: type | None,
        on_push: Callable[[Any], None],
    ) -> None:
        self._reader = reader
        self._not_enough = not_enough
        self._push_type = push_type
        self._on_push = on_push
        self._queue: deque[Waiter] = deque()  # of what was written
        self._unwritten: list[Packed] = []
        self._unwritten_waiters: list[Waiter] = []
        self._raw = 0
        self._attributes = Attributes()
        # Positions count the places of all time. When it was is kept per write, not per command:
        # the hot path reads no clock.
        self._written_total = 0
        self._writes: deque[tuple[int, float]] = deque()

    # -- sending ---------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many replies are owed, to commands written or not."""
        return len(self._queue) + len(self._unwritten)

    @property
    def unwritten(self) -> int:
        """How many commands wait to be written."""
        return len(self._unwritten)

    @property
    def position(self) -> int:
        """The position that the next submitted command gets."""
        return self._written_total + len(self._unwritten)

    def submit(self, waiter: Waiter, packed: Packed) -> None:
        """Queue one command; its reply goes to ``waiter``."""
        self._unwritten_waiters.append(waiter)
        self._unwritten.append(packed)

    def submit_raw(self, waiter: Waiter, packed: Packed) -> None:
        """Queue one command whose reply must not be decoded."""
        self._raw += 1
        self.submit(Raw(waiter), packed)

    def submit_batch(
        self, waiter: Waiter, packed: Sequence[Packed], raw: Collection[int] = ()
    ) -> None:
        """Queue one command or more behind each other; the list of replies goes to ``waiter``.

        ``raw`` holds the indexes of those whose replies must not be decoded.
        """
        replies: list[Any] = []
        last = len(packed) - 1
        places: list[Waiter] = [BatchPart(waiter, replies)] * last
        places.append(Batch(waiter, replies))
        if raw:
            for index, each in enumerate(places):
                if index in raw:
                    self._raw += 1
                    places[index] = Raw(each)
        self._unwritten_waiters += places
        self._unwritten += packed

    def withdraw(self, waiter: Waiter) -> list[Packed]:
        """Take back what ``waiter`` waits for, if it was not written yet.

        Returns its bytes, command by command, none if it was written: a batch goes as a whole.
        """
        waiters = self._unwritten_waiters
        first = next((i for i, each in enumerate(waiters) if _whose(each) is waiter), None)
        if first is None:
            return []
        end = first + 1
        while end < len(waiters) and _whose(waiters[end]) is waiter:
            end += 1
        self._raw -= sum(each.__class__ is Raw for each in waiters[first:end])
        packed = self._unwritten[first:end]
        del waiters[first:end], self._unwritten[first:end]
        return packed

    def data_to_send(self, now: float) -> list[Packed]:
        """Everything that was submitted since the last call; from ``now`` on it is written."""
        unwritten = self._unwritten
        if not unwritten:
            return []
        if not self._queue:
            self._writes.clear()  # nothing older is owed a reply
        self._queue.extend(self._unwritten_waiters)
        self._unwritten, self._unwritten_waiters = [], []
        self._written_total += len(unwritten)
        self._writes.append((self._written_total, now))
        return unwritten

    # -- receiving -------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Hand each reply in ``data`` to its waiter.

        Raises ``ProtocolViolation`` when the connection can't be used any more; replies before
        the offending bytes have been delivered.
        """
        reader = self._reader
        gets, has_data = reader.gets, reader.has_data
        queue = self._queue
        popleft = queue.popleft
        not_enough, push_type = self._not_enough, self._push_type
        raw = self._raw
        attributes = self._attributes
        kept = attributes.kept
        try:
            reader.feed(data)
            marks = attributes.look(data) if kept or b"|" in data else None
            while has_data():
                try:
                    # The decode flag acts in the middle of a reply too, so it is taken from the
                    # head of the queue each time.
                    reply = gets() if not raw else gets(not (queue and queue[0].__class__ is Raw))
                except UnicodeDecodeError as exc:
                    reply = exc  # hiredis has consumed this one reply: only its caller fails
                if reply is not_enough:
                    attributes.unfinished(data)
                    return
                if marks and marks.popleft():
                    continue  # an attribute of the reply behind it
                if reply.__class__ is push_type:  # before anything else: it subclasses list
                    self._on_push(reply)
                    raw = self._raw  # a handler may have queued commands
                    continue
                waiter = popleft()
                if raw and waiter.__class__ is Raw:
                    raw = self._raw = raw - 1
                if waiter.done():
                    continue  # cancelled or timed out: its place was kept for this reply
                if isinstance(reply, Exception):
                    waiter.set_exception(reply)
                else:
                    waiter.set_result(reply)
            if kept and data:
                attributes.finished()
        except IndexError:
            shown = str(reply) if isinstance(reply, Exception) else repr(reply)
            text = f"a reply that nobody asked for: {shown:.120}"
            raise ProtocolViolation(text) from None
        except ProtocolViolation:
            raise
        except Exception as exc:
            raise ProtocolViolation(f"unreadable reply: {exc}") from exc

    # -- time ------------------------------------------------------------------------------------

    def oldest_written_at(self) -> float | None:
        """When the oldest command that is still owed a reply was written; None if there is none.

        A place whose caller is gone counts: its reply is due all the same.
        """
        self._forget_answered_writes()
        return self._writes[0][1] if self._writes else None

    def expire(
        self,
        written_before: float,
        *,
        ahead_of: int | None,
        make_error: Callable[[], CommandTimeoutError],
    ) -> int:
        """Fail the callers of commands written before that moment; their places stay.

        ``ahead_of`` is the position of an unanswered AUTH: what stands behind it is not late.
        Returns how many callers failed.
        """
        self._forget_answered_writes()
        end = 0
        for end_of_write, written_at in self._writes:
            if written_at > written_before:
                break
            end = end_of_write
        if ahead_of is not None:
            end = min(end, ahead_of)
        first = self._written_total - len(self._queue)
        failed = 0
        for index in range(end - first):
            waiter = self._queue[index]
            if not waiter.done():
                waiter.set_exception(make_error())
                failed += 1
        return failed

    def restart_clock_behind(self, position: int, now: float) -> None:
        """Count the waiting time of everything behind ``position`` from ``now``: AUTH answered."""
        self._writes = deque(
            (end, now if end > position else written_at) for end, written_at in self._writes
        )

    def _forget_answered_writes(self) -> None:
        answered = self._written_total - len(self._queue)
        writes = self._writes
        while writes and writes[0][0] <= answered:
            writes.popleft()

    # -- the end ---------------------------------------------------------------------------------

    def connection_lost(self, make_error: Callable[[bool], ConnectionLostError]) -> None:
        """Give every waiter an error of its own; ``make_error`` is told whether it was written.

        Nothing is received any more.
        """
        self._on_push = _ignore  # the owner's method: nothing is to refer to who is gone
        written, unwritten = self._queue, self._unwritten_waiters
        self._queue = deque()
        self._unwritten, self._unwritten_waiters = [], []
        self._writes.clear()
        self._raw = 0
        for waiters, was_written in ((written, True), (unwritten, False)):
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(make_error(was_written))


def _ignore(_push: Any) -> None:
    """A push that comes when all is over."""


def _whose(waiter: Waiter) -> Waiter:
    """Who waits behind a waiter of ours."""
    while isinstance(waiter, Raw | Batch):
        waiter = waiter.waiter
    return waiter
