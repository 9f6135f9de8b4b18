"""A pipeline in a cluster: what each node gets of it, and what becomes of what a node refuses.

Every node gets its share in one write, and all shares are written before the first reply is
awaited. Commands that a server has refused to execute, and those that it never saw, go on by slot,
in their order, each slot on a journey of its own: their new owners need not be one node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as redis_exceptions

from .._multiplex._engine import Packed
from .._multiplex._routing import Route, command_words
from .._multiplex._session import Session
from .._pipeline import CHUNK_BYTES, CHUNK_COMMANDS
from .._recovery import maybe_executed
from .._redis_py import EMPTY_RESPONSE, NEVER_DECODE, command_options, recording
from ..errors import ConnectionLostError, MaybeExecutedError
from ._journey import Journey, Start
from ._nodes import Node, NotConnectedError
from ._plans import Plan, awaited
from ._redirects import Action, judge

if TYPE_CHECKING:
    from .._redis_py import Address
    from ._topology import Topology

__all__ = ["Errand", "Ways", "run"]

_ASKING: Final = ("ASKING",)

_REFUSALS: Final = frozenset((Action.MOVED, Action.ASK, Action.AGAIN, Action.REFRESH))
_REDIRECTIONS: Final = (redis_exceptions.AskError, redis_exceptions.TryAgainError)
"""What redis-py's ``allow_redirections=False`` leaves to the caller; MovedError is an AskError."""

_NOT_YET: Final = object()


class Errand:
    """One command of a pipeline, and what came of it."""

    __slots__ = (
        *("args", "options", "number", "plan", "words", "route", "lane", "node", "reply"),
        "finished",
    )

    args: tuple[Any, ...]
    options: dict[str, Any]
    number: int
    """Its place in the pipeline, from 1 on."""
    plan: Plan
    words: tuple[Any, ...]
    route: Route
    lane: int | str
    """Its slot, or the name of the node that it is for."""
    node: Node | None
    """Where it is sent first, None where nobody owns its slot at present."""
    reply: Any

    def __init__(self, number: int, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.number, self.args, self.options = number, args, options
        self.route = Route.SHARED
        self.reply = _NOT_YET
        self.finished = False

    @property
    def waits(self) -> bool:
        """Whether it has not come to an end."""
        return self.reply is _NOT_YET

    def finish(self, reply: Any) -> None:
        """Take a reply that has been through the response callback, or an error."""
        self.reply, self.finished = reply, True

    async def result(self) -> Any:
        """The reply, or the error that it got, as redis-py returns it."""
        reply, options = self.reply, self.options
        if isinstance(reply, Exception):
            if isinstance(reply, redis_exceptions.ResponseError) and EMPTY_RESPONSE in options:
                return options[EMPTY_RESPONSE]
            return reply
        if self.finished or self.plan.callback is None:
            return reply
        if options:
            command_options(options)
        try:
            return await awaited(self.plan.callback(reply, **options))
        except Exception as exc:  # as redis-py, whatever a callback raises
            return exc


class Ways:
    """What shares need of their client.

    ``choose(errands)`` names the node for commands of one lane now, and may raise redis-py's
    SlotNotCoveredError; ``retry`` and ``patience`` are as for ``Journey``; ``redirects`` is
    redis-py's ``allow_redirections``; ``all_or_error`` says that the first error is raised, so that
    nobody waits for more than that.
    """

    def __init__(
        self,
        topology: Topology,
        choose: Callable[[Sequence[Errand]], Node],
        *,
        retry: Any,
        patience: float,
        redirects: bool,
        all_or_error: bool,
        total: int,
    ) -> None:
        self.topology = topology
        self.choose = choose
        self.retry = retry
        self.patience = patience
        self.redirects = redirects
        self.all_or_error = all_or_error
        self.total = total

    def refused(self, reply: Exception) -> bool:
        """Whether an error reply says that a command was not executed, and may be elsewhere."""
        if not self.redirects and isinstance(reply, _REDIRECTIONS):
            return False
        return judge(reply).action in _REFUSALS

    def name(self, errand: Errand) -> str:
        """What a command is called in errors."""
        return f"{command_words(errand.args)} (command {errand.number} of {self.total})"


async def run(ways: Ways, errands: Sequence[Errand], encode: Callable[[Any], Any]) -> None:
    """Give every command its reply or its error.

    ``encode`` is redis-py's, for what may not be packed before there is a connection. Raises
    redis-py's DataError before anything is sent, and what is nobody's reply. Cancelling it takes
    back what was not written; the rest may still run.
    """
    groups: dict[Node, list[Errand]] = {}
    for errand in errands:
        if errand.node is not None:
            groups.setdefault(errand.node, []).append(errand)
    shares = [Share(ways, node, group) for node, group in groups.items()]
    if not all([share.pack() for share in shares]):
        for errand in errands:
            for word in errand.words:
                if word.__class__ is not str:
                    encode(word)
    try:
        for share in shares:
            share.submit()
        later = [share for share in shares if not await share.is_answered()]
        await _all(share.go_on() for share in later)
        failures: dict[Node | None, Exception | None]
        failures = {share.node: share.failure for share in shares}
        lanes: dict[int | str, Lane] = {}
        for errand in errands:
            if errand.waits:
                lane = lanes.get(errand.lane)
                if lane is None:
                    lane = lanes[errand.lane] = Lane(ways)
                lane.add(errand, failures.get(errand.node))
        await _all(lane.travel() for lane in lanes.values())
        for share in shares:
            await share.recorded()
    finally:
        for share in shares:
            share.withdraw()
            share.failure = None  # which refers to our frames, and so to us


async def _all(ways: Iterable[Any]) -> None:
    """Go all of them at once; the first failure, which is no command's, ends the others."""
    coroutines = list(ways)
    if len(coroutines) < 2:
        for each in coroutines:
            await each
        return
    try:
        async with asyncio.TaskGroup() as group:
            for each in coroutines:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        failure = failures.exceptions[0]
        raise failure from failure.__cause__


class Chunk:
    """Commands that go to a node in one write: as many of them as are sent at once."""

    def __init__(
        self, session: Session, errands: Sequence[Errand], *, asking: bool = False
    ) -> None:
        """Pack them; redis-py's DataError."""
        self.session = session
        self.asking = asking
        self.packed: list[Packed] = []
        pack = session.pack
        size = number = 0
        asks = pack(_ASKING) if asking else b""
        for number, errand in enumerate(errands, 1):
            if asking:
                self.packed.append(asks)
            packed = pack(errand.words)
            self.packed.append(packed)
            size += len(packed) if isinstance(packed, bytes) else sum(map(len, packed))
            if size >= CHUNK_BYTES or number == CHUNK_COMMANDS:
                break
        self.errands = errands[:number]

    def submit(self) -> asyncio.Future[list[Any]]:
        """Queue them as one piece; what ``Session.submit_batch`` raises."""
        step, first = (2, 1) if self.asking else (1, 0)
        raw = [
            index * step + first
            for index, errand in enumerate(self.errands)
            if errand.options and NEVER_DECODE in errand.options
        ]
        return self.session.submit_batch(self.packed, raw)

    def sort(self, replies: list[Any], ways: Ways) -> Exception | None:
        """Give the commands their replies; the first refusal, whose command goes on waiting."""
        allowed: list[Any] = []
        if self.asking:
            allowed, replies = replies[::2], replies[1::2]
        refusal = None
        failed = any(issubclass(kind, Exception) for kind in set(map(type, replies)))
        for index, errand in enumerate(self.errands):
            reply = replies[index]
            if failed and isinstance(reply, Exception):
                if allowed and isinstance(allowed[index], Exception):
                    reply = allowed[index]  # which is why
                if ways.refused(reply):
                    refusal = refusal or reply
                    continue
            errand.reply = reply
        return refusal


class Share:
    """What one node gets of a pipeline. ``failure`` is why it did not come to its end there."""

    def __init__(self, ways: Ways, node: Node, errands: list[Errand]) -> None:
        self._ways = ways
        self.node = node
        self.errands = errands
        self.failure: Exception | None = None
        self._shared = all(errand.route is Route.SHARED for errand in errands)
        self._chunk: Chunk | None = None
        self._future: asyncio.Future[list[Any]] | None = None
        self._record = recording("PIPELINE", self, in_cluster=True)

    def pack(self) -> bool:
        """Pack what is sent first, if it can be at once; redis-py's DataError of all of it."""
        session = self.node.multiplexed.session
        if not self._shared or session is None or session.closed:
            return False
        self._chunk = Chunk(session, self.errands)
        # What can't be packed is to be known before any is sent; all of it packed may be more than
        # fits in memory.
        for errand in self.errands[len(self._chunk.errands) :]:
            session.pack(errand.words)
        return True

    def submit(self) -> None:
        """Queue the first piece, unless that has to wait."""
        chunk = self._chunk
        if chunk is None or chunk.session.congested:
            return
        try:
            self._future = chunk.submit()
        except ConnectionLostError as exc:
            self.failure = exc

    def withdraw(self) -> None:
        """Take back what nobody waits for any more."""
        future = self._future
        if future is not None and (future.cancelled() or not future.done()):
            assert self._chunk is not None
            self._chunk.session.withdraw(future)

    async def is_answered(self) -> bool:
        """Wait for the first piece; whether there is nothing left to do for the share here."""
        if self._future is not None:
            assert self._chunk is not None
            try:
                replies = await self._future
            except redis_exceptions.RedisError as exc:
                self.failure = exc
            else:
                self.failure = self._chunk.sort(replies, self._ways)
        return self.failure is not None or not self._left()

    @property
    def address(self) -> Address | None:
        """Where its connection leads, None where there never was one."""
        return self.node.multiplexed.address if self.node.was_connected else None

    def _left(self) -> list[Errand]:
        return [errand for errand in self.errands if errand.waits]

    async def recorded(self) -> None:
        """Have redis-py's metrics know of it, if there are any."""
        record, self._record = self._record, None  # which refers to us
        if record is None:
            return
        errors = (each.reply for each in self.errands if isinstance(each.reply, Exception))
        await record.ended(next(errors, None))

    async def go_on(self) -> None:
        """Send the rest, if there is a connection, piece by piece."""
        try:
            if not self._shared:
                await send_alone(self._ways, self.node, self._left())
            elif self.node.is_connected:
                await send(self._ways, self.node, self._left(), asking=False)
        except redis_exceptions.RedisError as exc:
            self.failure = exc


async def send(ways: Ways, node: Node, errands: Sequence[Errand], *, asking: bool) -> None:
    """Send commands on the node's shared connection, until some are refused.

    Raises the first refusal, and what sending raises; the commands concerned go on waiting.
    """
    left = list(errands)
    while left:
        session = await node.client.admission()
        try:
            chunk = Chunk(session, left, asking=asking)
            future = chunk.submit()
        finally:
            session.admitted()
        try:
            replies = await future
        except asyncio.CancelledError:
            session.withdraw(future)
            raise
        if (refusal := chunk.sort(replies, ways)) is not None:
            raise refusal
        del left[: len(chunk.errands)]


async def send_alone(ways: Ways, node: Node, errands: Sequence[Errand]) -> None:
    """Send commands together on a connection of the node's pool; their replies are finished.

    Raises the first refusal, and what a lost connection is raised as.
    """
    pipe = node.client.pipeline(transaction=False)
    for errand in errands:
        pipe.execute_command(*errand.args, **errand.options)
    replies = await pipe.execute(raise_on_error=False)
    refusal = None
    for errand, reply in zip(errands, replies, strict=True):
        if isinstance(reply, Exception) and ways.refused(reply):
            refusal = refusal or reply
        else:
            errand.finish(reply)
    if refusal is not None:
        raise refusal


class Lane:
    """The commands of one slot that have not found their node, or of a node that was named."""

    def __init__(self, ways: Ways) -> None:
        self._ways = ways
        self._errands: list[Errand] = []
        self._failure: Exception | None = None
        self._at: Node | None = None

    def add(self, errand: Errand, failure: Exception | None) -> None:
        """One more, in their order; ``failure`` is what it met, if it was sent."""
        self._errands.append(errand)
        if self._failure is None and failure is not None:
            self._failure, self._at = failure, errand.node

    async def travel(self) -> None:
        """Bring all of them to their end."""
        start = Start(self._at, self._failure)
        try:
            while left := self._left():
                await self._go(left, start)
                start = Start(None)
        finally:
            self._failure = None  # which refers to our frames, and so to us

    async def _go(self, left: Sequence[Errand], start: Start) -> None:
        ways = self._ways
        journey = Journey(
            ways.topology,
            lambda: ways.choose(self._left()),
            name=lambda: ways.name(self._left()[0]),
            repeatable=all(errand.plan.read_only for errand in left),
            retry=ways.retry,
            patience=ways.patience,
        )
        try:
            await journey.run(self._attempt, start)
        except MaybeExecutedError as exc:
            self._may_have_run(exc)
        except redis_exceptions.RedisError as exc:
            for errand in self._left():
                errand.reply = exc

    def _left(self) -> list[Errand]:
        return [errand for errand in self._errands if errand.waits]

    def _may_have_run(self, error: MaybeExecutedError) -> None:
        """The connection was lost: writes end here, reads do if an error is raised anyway."""
        left = self._left()
        writes = [errand for errand in left if not errand.plan.read_only]
        for errand in left if self._ways.all_or_error and writes else writes:
            failure = self._failure
            errand.reply = (
                maybe_executed(self._ways.name(errand), failure)
                if isinstance(failure, ConnectionLostError) and not errand.plan.read_only
                else error
            )

    async def _attempt(self, node: Node, asking: bool) -> None:
        left = self._left()
        try:
            if all(errand.route is Route.SHARED for errand in left):
                await send(self._ways, node, left, asking=asking)
            else:
                await self._one_by_one(node, left, asking)
        except NotConnectedError:
            raise
        except redis_exceptions.RedisError as exc:
            self._failure = exc
            raise

    async def _one_by_one(self, node: Node, errands: Sequence[Errand], asking: bool) -> None:
        for errand in errands:
            try:
                reply = await node.client.attempt(errand.args, errand.options, asking=asking)
                errand.finish(reply)
            except redis_exceptions.ResponseError as exc:
                if self._ways.refused(exc):
                    raise
                errand.reply = exc
