"""Pipelines and transactions on the shared connection: one write, n replies, one caller.

What redis-py keeps per connection goes where redis-py puts it, on a connection of the pool: WATCH
and everything between it and EXEC, and pipelines with a command that can't be shared. All else is
queued among everybody's commands as one piece, so that a transaction holds up nobody: nothing of
another caller comes between MULTI and EXEC, because both are in the same write.

The replies are treated as redis-py treats them, down to the text of its errors.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.client import Pipeline

from ._lease import ReturningPipeline
from ._losses import Flight, is_harmless
from ._multiplex._connection import MultiplexedConnection
from ._multiplex._engine import Packed
from ._multiplex._routing import (
    Route,
    command_words,
    is_read_only,
    remedy,
    route_in_pipeline,
)
from ._multiplex._session import HIGH_WATER, Session
from ._plans import Plan
from ._recovery import answered, maybe_executed, sent_elsewhere
from ._redis_py import (
    EMPTY_RESPONSE,
    NEVER_DECODE,
    Recording,
    command_options,
    is_observed,
    led_through,
    pool_retry,
    recording,
    unwrapped,
)
from ._transactions import EXEC, MULTI, Command, Reading, has_errors, is_sent
from .errors import CommandRefusedError

__all__ = ["CHUNK_BYTES", "CHUNK_COMMANDS", "EntraPipeline", "refused_in_pipeline"]

CHUNK_COMMANDS: Final = 5000
CHUNK_BYTES: Final = HIGH_WATER
"""The largest piece of a pipeline without a transaction that is written at once. The next one is
written when this one is answered: what others send in between does not wait for all of it."""

_LOSSES: Final = (redis_exceptions.WatchError, redis_exceptions.ConnectionError)
"""How redis-py tells of a lost connection: while it watches, and else."""


class Client(Protocol):
    """What a pipeline needs of the client that made it."""

    connection_pool: redis.asyncio.ConnectionPool
    response_callbacks: MutableMapping[Any, Any]
    _multiplexed: MultiplexedConnection | None
    _plans: dict[Any, Plan]

    def _check_open(self) -> None: ...
    def _make_plan(self, args: tuple[Any, ...]) -> Plan: ...
    def _route(self, args: tuple[Any, ...]) -> Route: ...
    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]: ...
    def set_response_callback(self, command: str, callback: Any) -> None: ...


class EntraPipeline(ReturningPipeline):
    """redis-py's ``Pipeline``, whose commands go on the client's shared connection.

    Use it as in redis-py. ``execute()`` that is cancelled before its write takes all commands
    back; after the write the server runs them to the end, a transaction included. Without a
    transaction, a pipeline of more than 5,000 commands or 1 MB is sent in pieces, between which
    commands of others may run.
    """

    def __init__(self, client: Client, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self._client = client  # also keeps it from being collected, and so closed, meanwhile
        self._record: Recording | None = None
        self._flight = Flight()

    # -- queueing --------------------------------------------------------------------------------

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue one command; after ``watch()``, and before ``multi()``, send it at once."""
        if (self.watching or args[0] == "WATCH") and not self.explicit_transaction:
            return self.immediate_execute_command(*args, **options)
        self.command_stack.append((args, options))
        return self

    if not TYPE_CHECKING:  # type checkers are to see redis-py's own signature

        @functools.wraps(Pipeline.set)
        def set(self, name, value, *args, **options):
            # redis-py checks the options of SET in a decorator, for 2 us; the plain form has none.
            if args or options:
                return super().set(name, value, *args, **options)
            return self.execute_command("SET", name, value)

    def set_response_callback(self, command: str, callback: Any) -> None:
        """Set a response callback of the client; pipelines and clients share them."""
        self._client.set_response_callback(command, callback)

    # -- on a connection of the pool -------------------------------------------------------------

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command now, on the connection of the pool that this pipeline then keeps."""
        self._client._check_open()
        if self._client._route(args) is not Route.SHARED:
            self._may_be_shared(args, immediate=True)
        await self.settled()
        self._flight = Flight()
        try:
            return await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except _LOSSES as exc:
            words = command_words(args)
            raise self._explained_loss(exc, words, is_harmless(words)) from exc.__cause__
        except redis_exceptions.ResponseError as exc:
            raise self._explained(exc)  # noqa: B904 - most often it is the same one

    async def load_scripts(self) -> None:
        """Make sure that the server knows the scripts that are about to be run."""
        scripts = list(self.scripts)
        known = await self._client.execute_command("SCRIPT EXISTS", *(each.sha for each in scripts))
        for script, is_known in zip(scripts, known, strict=True):
            if not is_known:
                script.sha = await self._client.execute_command("SCRIPT LOAD", script.script)

    async def _on_a_connection_of_its_own(
        self, stack: Sequence[Command], repeatable: bool, raise_on_error: bool
    ) -> list[Any]:
        """redis-py's own way, with our errors for a loss."""
        self._flight = Flight()
        try:
            # Whoever has wrapped redis-py's has been led through already.
            return list(await unwrapped(Pipeline, "execute")(self, raise_on_error))
        except _LOSSES as exc:
            name = f"a pipeline of {len(stack)} commands"
            raise self._explained_loss(exc, name, repeatable) from exc.__cause__
        except redis_exceptions.ResponseError as exc:
            raise self._explained(exc)  # noqa: B904 - most often it is the same one

    def _explained_loss(
        self, error: redis_exceptions.RedisError, name: str, repeatable: bool
    ) -> redis_exceptions.RedisError:
        """The error for what ended in ``error``: redis-py's WatchError invites to repeat it."""
        lost = self._flight.lost
        if lost is None or repeatable:
            return error
        wanted = pool_retry(self.connection_pool) is not None
        if wanted and isinstance(error, redis_exceptions.WatchError):
            return error
        return maybe_executed(name, lost)

    # What redis-py calls with the connection in hand, which it replaces before it raises.

    async def _send_command_parse_response(self, conn: Any, *args: Any, **options: Any) -> Any:
        way = super()._send_command_parse_response
        return await self._flight.under(conn, way(conn, *args, **options))  # type: ignore[no-untyped-call]

    async def _execute_transaction(self, connection: Any, *args: Any) -> Any:
        return await self._flight.under(connection, super()._execute_transaction(connection, *args))

    async def _execute_pipeline(self, connection: Any, *args: Any) -> Any:
        return await self._flight.under(connection, super()._execute_pipeline(connection, *args))

    # -- executing -------------------------------------------------------------------------------

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send what was queued and return the replies, in order.

        ``raise_on_error=False`` returns error replies among the others. Raises what redis-py's
        ``execute`` raises; ``CommandRefusedError`` before anything is sent; ``MaybeExecutedError``
        where the connection ended after the write, with WATCH too, where redis-py would raise
        WatchError. Cancelling it changes nobody else's reply.
        """
        if self._place.straight is None and is_observed():
            execute = led_through(Pipeline, "execute", self, self._execute)
            return list(await execute(raise_on_error))
        return await self._execute(raise_on_error)

    @property
    def _place(self) -> MultiplexedConnection:
        return self._client._multiplexed  # type: ignore[return-value]  # else redis-py's own pipeline

    async def _execute(self, raise_on_error: bool = True) -> list[Any]:
        stack: Any = self.command_stack
        if not stack and not self.watching:
            return []
        self._client._check_open()
        await self.settled()
        if self.scripts:
            await self.load_scripts()
        try:
            wire, shared, repeatable = self._prepare(stack)
            if not shared:
                return await self._on_a_connection_of_its_own(stack, repeatable, raise_on_error)
            in_transaction = self.is_transaction or self.explicit_transaction
            run = self._transaction if in_transaction else self._pipeline
            self._record = record = None
            if self._place.straight is None:
                name = "MULTI" if in_transaction else "PIPELINE"
                self._record = record = recording(name, self._place)
            results = run(stack, wire, repeatable, raise_on_error)
            return await (results if record is None else record.around(results))
        finally:
            await self.reset()

    def _prepare(self, stack: Sequence[Command]) -> tuple[list[tuple[Any, ...]], bool, bool]:
        """The commands as words, whether they may be shared, and whether they may be repeated.

        Raises ``CommandRefusedError``.
        """
        plans, make_plan = self._client._plans, self._client._make_plan
        shared = self.connection is None and not self.watching
        repeatable = True
        wire = []
        for args, _ in stack:
            try:
                known, words, _, read_only = plans.get(args[0]) or make_plan(args)
            except TypeError:  # what can't be looked up is no name: DataError
                known, words, _, read_only = make_plan(args)
            if not known and not self._may_be_shared(args):
                shared = False
            if not read_only:
                repeatable = False
            wire.append(args if words is None else words + args[1:])
        return wire, shared, repeatable

    def _may_be_shared(self, args: tuple[Any, ...], *, immediate: bool = False) -> bool:
        """Whether a command whose name does not say so may go on the shared connection.

        Raises ``CommandRefusedError``.
        """
        where = route_in_pipeline(args, self._client._route(args), immediate=immediate)
        if where is Route.REFUSED:
            raise refused_in_pipeline(args)
        return where is Route.SHARED

    async def _submit(
        self,
        submit: Callable[[Session], asyncio.Future[list[Any]]],
        name: Callable[[], str],
        repeatable: bool,
        accept: Callable[[list[Any]], None],
    ) -> list[Any]:
        replies: list[Any] = await answered(
            self._place,
            submit,
            name=name,
            repeatable=repeatable,
            retry=pool_retry(self.connection_pool),
            on_repeat=self._record.repeated if self._record is not None else None,
            accept=accept,
        )
        return replies

    # -- without a transaction -------------------------------------------------------------------

    async def _pipeline(
        self,
        stack: Sequence[Command],
        wire: Sequence[tuple[Any, ...]],
        repeatable: bool,
        raise_on_error: bool,
    ) -> list[Any]:
        raw = [index for index, (_, options) in enumerate(stack) if NEVER_DECODE in options]
        start, end = 0, 0

        def submit(session: Session) -> asyncio.Future[list[Any]]:
            nonlocal end
            packed = _pack_chunk(session, wire, start)
            end = start + len(packed)
            if start == 0 and end < len(wire):
                for words in wire[end:]:  # what can't be packed is to be known before any is sent,
                    session.pack(words)  # and all of them packed may be more than fits in memory
            return session.submit_batch(packed, [i - start for i in raw if start <= i < end])

        def name() -> str:
            return f"commands {start + 1} to {end} of a pipeline of {len(wire)}"

        def accept(replies: list[Any]) -> None:
            if redis_exceptions.BusyLoadingError in set(map(type, replies)):
                _raise_if_nothing_ran(wire[start:end], replies)

        replies: list[Any] = []
        while end < len(wire):
            start = end
            replies += await self._submit(submit, name, repeatable, accept)
        return await self._pipeline_results(stack, replies, raise_on_error)

    async def _pipeline_results(
        self, stack: Sequence[Command], replies: list[Any], raise_on_error: bool
    ) -> list[Any]:
        callbacks = self.response_callbacks
        failed = has_errors(replies)
        for index, (args, options) in enumerate(stack):
            reply = replies[index]
            if failed and isinstance(reply, Exception):
                if not isinstance(reply, redis_exceptions.ResponseError):
                    raise reply  # NOAUTH and the like, a reply that is not UTF-8
                replies[index] = (
                    options[EMPTY_RESPONSE] if EMPTY_RESPONSE in options else self._explained(reply)
                )
                continue
            callback = callbacks.get(args[0])
            if callback is None:
                continue
            if options:
                command_options(options)
            try:
                reply = callback(reply, **options)
                replies[index] = await reply if inspect.isawaitable(reply) else reply
            except redis_exceptions.ResponseError as exc:
                replies[index] = exc
                failed = True
        if failed and raise_on_error:
            self._reading.raise_first_error(stack, replies)
        return replies

    def _explained(self, error: redis_exceptions.ResponseError) -> Exception:
        return sent_elsewhere(error, self._place) or error

    @property
    def _reading(self) -> Reading:
        return Reading(self.response_callbacks, self._explained, self.annotate_exception)

    # -- with a transaction ----------------------------------------------------------------------

    async def _transaction(
        self,
        stack: Sequence[Command],
        wire: Sequence[tuple[Any, ...]],
        repeatable: bool,
        raise_on_error: bool,
    ) -> list[Any]:
        # What has an answer ready for the case that there is none is not sent, as in redis-py.
        sent = [words for words, (_, options) in zip(wire, stack, strict=True) if is_sent(options)]

        def submit(session: Session) -> asyncio.Future[list[Any]]:
            return session.submit_batch([MULTI, *map(session.pack, sent), EXEC])

        replies = await self._submit(
            submit, lambda: f"a transaction of {len(sent)} commands", repeatable, _accept_exec
        )
        return await self._reading.results(stack, replies, raise_on_error)


def refused_in_pipeline(args: tuple[Any, ...]) -> CommandRefusedError:
    """The error for a command that a pipeline can't hold."""
    words = command_words(args)
    return CommandRefusedError(
        f"{words} can't be sent in a pipeline, whose connection others use too, at the "
        f"same time or after it: {remedy(words)}"
    )


def _pack_chunk(session: Session, wire: Sequence[tuple[Any, ...]], start: int) -> list[Packed]:
    """The commands from ``start`` on, packed: all, or as many as are sent at once."""
    chunk: list[Packed] = []
    size = 0
    pack = session.pack
    for index in range(start, len(wire)):
        packed = pack(wire[index])
        chunk.append(packed)
        size += len(packed) if isinstance(packed, bytes) else sum(map(len, packed))
        if size >= CHUNK_BYTES or len(chunk) == CHUNK_COMMANDS:
            break
    return chunk


def _raise_if_nothing_ran(wire: Sequence[tuple[Any, ...]], replies: Sequence[Any]) -> None:
    """Raise BusyLoadingError where it is the answer to everything that could change something."""
    loading = None
    for words, reply in zip(wire, replies, strict=True):
        if isinstance(reply, redis_exceptions.BusyLoadingError):
            loading = loading or reply
        elif not is_read_only(command_words(words)):
            return
    if loading is not None:
        raise loading


def _accept_exec(replies: Sequence[Any]) -> None:
    """Raise BusyLoadingError where a transaction was not executed because of it."""
    if isinstance(replies[-1], redis_exceptions.ExecAbortError):
        for reply in replies:
            if isinstance(reply, redis_exceptions.BusyLoadingError):
                raise reply
