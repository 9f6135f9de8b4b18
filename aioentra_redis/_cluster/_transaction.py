"""Transactions in a cluster: all keys in one slot, so one node runs them.

Without WATCH they are one piece among everybody's commands on the node's shared connection. WATCH,
and everything up to EXEC, goes on a connection of the node's pool, which ``EntraPipeline`` does;
what a cluster adds is that a slot may move meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

from redis import exceptions as redis_exceptions

from .._multiplex._routing import Route
from .._pipeline import EntraPipeline
from .._redis_py import CrossSlotTransactionError, annotate_in_transaction, recording
from .._transactions import EXEC, MULTI, Command, Reading, is_sent
from ._commands import ClusterCommands
from ._journey import Journey
from ._nodes import Node, NodeClient
from ._pipeline import EntraClusterPipeline, checked_route, slot_in_plan
from ._redirects import Action, judge

__all__ = ["EntraClusterTransaction"]

PAUSE: Final = 0.05
"""Seconds until WatchError is raised for a node that is not ready: who watches tries at once."""

_ASKING: Final = ("ASKING",)

_REFUSALS: Final = frozenset((Action.MOVED, Action.ASK, Action.AGAIN, Action.REFRESH))
_ELSEWHERE: Final = frozenset((Action.MOVED, Action.ASK))


class EntraClusterTransaction(EntraClusterPipeline):
    """A pipeline whose commands one node runs as a transaction, with redis-py's WATCH.

    Use it as in redis-py. A slot that moves ends what was watched with WatchError, and a
    transaction without WATCH goes where the slot is. ``MaybeExecutedError`` says that the
    connection was lost under EXEC. ``execute()`` that is cancelled before its write takes all
    commands back; after the write the server runs them to the end.
    """

    def __init__(self, client: ClusterCommands) -> None:
        super().__init__(client)
        self.explicit_transaction = False
        self._slot: int | None = None
        self._watches: _NodePipeline | None = None

    @property
    def watching(self) -> bool:
        """Whether keys are watched, on a connection that this pipeline keeps."""
        return self._watches is not None

    async def reset(self) -> None:  # type: ignore[override]
        """Forget what was queued and watched, and return the connection.

        Cancelling it closes the connection, which ends a WATCH as well.
        """
        self.command_stack = []
        self.explicit_transaction = False
        await self._stop_watching()

    async def _stop_watching(self) -> None:
        self._slot = None
        watches, self._watches = self._watches, None
        if watches is not None:
            await watches.reset()

    # -- queueing --------------------------------------------------------------------------------

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue one command; after ``watch()``, and before ``multi()``, send it at once."""
        if (self.watching or args[0] in ("WATCH", "UNWATCH")) and not self.explicit_transaction:
            return self._at_once(args, options)
        self.command_stack.append((args, options))
        return self

    def _split_command_across_slots(self, command: str, *keys: Any) -> Any:
        """One command: all keys have to be in one slot."""
        return self.execute_command(command, *keys)

    def mset_nonatomic(self, _: Any) -> Any:
        """Not in a transaction, which is atomic; redis-py's own error for it."""
        raise NotImplementedError("Method is not supported in transactional context.")

    def multi(self) -> None:
        """Queue what follows, after WATCH and what was to be read."""
        if self.explicit_transaction:
            raise redis_exceptions.RedisError("Cannot issue nested calls to MULTI")
        if self.command_stack:
            raise redis_exceptions.RedisError(
                "Commands without an initial WATCH have already been issued"
            )
        self.explicit_transaction = True

    async def watch(self, *names: Any) -> Any:  # type: ignore[override]
        """Watch keys, which have to be in one slot, on a connection that this pipeline keeps."""
        if self.explicit_transaction:
            raise redis_exceptions.RedisError("Cannot issue a WATCH after a MULTI")
        return await self.execute_command("WATCH", *names)

    async def unwatch(self) -> Any:  # type: ignore[override]
        """Forget what was watched."""
        return await self.execute_command("UNWATCH") if self.watching else True

    async def discard(self) -> None:
        """Forget everything; ``reset()``."""
        await self.reset()

    # -- while keys are watched ------------------------------------------------------------------

    async def _at_once(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        await self.initialize()
        if args[0] == "UNWATCH":
            await self._stop_watching()  # which says so to the server
            return True
        client = self.cluster_client
        slot = await slot_in_plan(client, await client._plan(args), args)
        if self._slot is not None and slot != self._slot:
            raise CrossSlotTransactionError("Cannot watch or send commands on different slots")
        if self._watches is None:
            return await self._begin_to_watch(args, options, slot)
        try:
            return await self._watches.execute_command(*args, **options)
        except redis_exceptions.RedisError as exc:
            await self._start_over(exc)
            raise

    async def _begin_to_watch(
        self, args: tuple[Any, ...], options: dict[str, Any], slot: int
    ) -> Any:
        """WATCH on the node that owns ``slot``, now or by the time that it can be reached."""

        async def attempt(node: Node, asking: bool) -> Any:
            pipe = _NodePipeline(node.client, asking=asking)
            try:
                reply = await pipe.execute_command(*args, **options)
            except BaseException:
                await pipe.reset()
                raise
            self._watches, self._slot = pipe, slot
            return reply

        return await self._journey(slot, name="WATCH", repeatable=True).run(attempt)

    async def _start_over(self, error: redis_exceptions.RedisError) -> None:
        """Raise WatchError where ``error`` says that a watched slot is not served as before."""
        action = judge(error).action
        if isinstance(error, redis_exceptions.WatchError):
            await self._stop_watching()
        elif action in _REFUSALS:
            await self._stop_watching()
            if action not in _ELSEWHERE:
                await asyncio.sleep(PAUSE)
            raise redis_exceptions.WatchError(
                f"Slot rebalancing occurred while watching keys: {error}"
            ) from error

    # -- executing -------------------------------------------------------------------------------

    async def _execute(
        self, raise_on_error: bool = True, allow_redirections: bool = True
    ) -> list[Any]:
        stack = self.command_stack
        if not stack and not self.watching:
            self.explicit_transaction = False
            return []
        try:
            await self.initialize()
            slot, wire, shared, repeatable = await self._prepare(stack)
            if self._watches is not None:
                return await self._with_watches(self._watches, stack, raise_on_error)
            journey = self._journey(
                slot, name=f"a transaction of {len(stack)} commands", repeatable=repeatable
            )
            if not shared:
                return list(await journey.run(self._alone(stack, raise_on_error)))
            sent = [words for words, (_, each) in zip(wire, stack, strict=True) if is_sent(each)]

            async def attempt(node: Node, asking: bool) -> list[Any]:
                return await _submitted(node, sent, asking)

            replies = journey.run(attempt)
            record = recording("TRANSACTION", journey, in_cluster=True)
            reading = Reading(
                self.cluster_client.response_callbacks, lambda error: error, annotate_in_transaction
            )
            results = reading.results(
                stack, await (replies if record is None else record.around(replies)), raise_on_error
            )
            return await results
        finally:
            await self.reset()

    async def _prepare(
        self, stack: Sequence[Command]
    ) -> tuple[int, list[tuple[Any, ...]], bool, bool]:
        """The slot, the commands as words, whether they may be shared, and may be repeated.

        Raises ``CommandRefusedError``, redis-py's CrossSlotTransactionError, and its
        RedisClusterException where no command has a key.
        """
        client = self.cluster_client
        slots = set() if self._slot is None else {self._slot}
        shared = repeatable = True
        wire = []
        for args, _ in stack:
            plan = await client._plan(args)
            if not plan.shared and checked_route(client, args) is not Route.SHARED:
                shared = False
            repeatable = repeatable and plan.read_only
            wire.append(args if plan.words is None else plan.words + args[1:])
            if plan.find is not None:
                with contextlib.suppress(LookupError, ValueError):
                    if not plan.find(args):
                        continue  # a script that has no keys runs anywhere
            slots.add(await slot_in_plan(client, plan, args))
        if len(slots) > 1:
            raise CrossSlotTransactionError(
                "All keys involved in a cluster transaction must map to the same slot"
            )
        if not slots:
            raise redis_exceptions.RedisClusterException(
                "At least a command with a key is needed to identify a node"
            )
        return slots.pop(), wire, shared, repeatable

    def _journey(self, slot: int, *, name: str, repeatable: bool) -> Journey:
        client, topology = self.cluster_client, self.nodes_manager
        return Journey(
            topology,
            lambda: topology.owners(slot)[0],
            name=lambda: name,
            repeatable=repeatable,
            retry=client._user_retry,
            patience=client._recovery_timeout,
        )

    async def _with_watches(
        self, pipe: _NodePipeline, stack: Sequence[Command], raise_on_error: bool
    ) -> list[Any]:
        try:
            return await _run_on(pipe, stack, raise_on_error)
        except redis_exceptions.RedisError as exc:
            await self._start_over(exc)
            raise

    def _alone(self, stack: Sequence[Command], raise_on_error: bool) -> Any:
        """An attempt on a connection of the pool: a command among them may not be shared."""

        async def attempt(node: Node, asking: bool) -> list[Any]:
            pipe = _NodePipeline(node.client, asking=asking)
            try:
                return await _run_on(pipe, stack, raise_on_error)
            except redis_exceptions.AskError as exc:
                raise type(exc)(exc.message) from exc  # without the annotation
            finally:
                await pipe.reset()

        return attempt


class _NodePipeline(EntraPipeline):
    """A transaction on a connection of one node's pool; ``asking`` puts ASKING in front."""

    def __init__(self, client: NodeClient, *, asking: bool) -> None:
        super().__init__(client, True, None)
        self._asking = asking

    def _explained(self, error: redis_exceptions.ResponseError) -> Exception:
        return error  # MOVED is what it says

    def annotate_exception(self, exception: Any, number: int, command: Any) -> None:
        annotate_in_transaction(exception, number, command)

    async def _ask(self, connection: Any) -> None:
        if self._asking:
            await connection.send_command(*_ASKING)
            await connection.read_response()

    async def _send_command_parse_response(self, conn: Any, *args: Any, **options: Any) -> Any:
        await self._ask(conn)
        return await super()._send_command_parse_response(conn, *args, **options)

    async def _execute_transaction(self, connection: Any, *args: Any) -> Any:
        await self._ask(connection)
        return await super()._execute_transaction(connection, *args)


async def _run_on(pipe: _NodePipeline, stack: Sequence[Command], raise_on_error: bool) -> list[Any]:
    if not pipe.explicit_transaction:
        pipe.multi()  # type: ignore[no-untyped-call]
    for args, options in stack:
        pipe.execute_command(*args, **options)
    return await pipe.execute(raise_on_error)


async def _submitted(node: Node, sent: Sequence[tuple[Any, ...]], asking: bool) -> list[Any]:
    """The replies of one attempt, in one write; raises what says that nothing was executed."""
    session = await node.client.admission()
    try:
        head = [session.pack(_ASKING), MULTI] if asking else [MULTI]
        future = session.submit_batch([*head, *map(session.pack, sent), EXEC])
    finally:
        session.admitted()
    try:
        replies = await future
    except asyncio.CancelledError:
        session.withdraw(future)
        raise
    if asking:  # it holds up to EXEC
        del replies[0]
    outcome = replies[-1]
    if isinstance(outcome, redis_exceptions.ExecAbortError):
        for reply in replies:
            if isinstance(reply, Exception) and judge(reply).action in _REFUSALS:
                raise reply
    elif isinstance(outcome, Exception) and judge(outcome).action in _REFUSALS:
        raise outcome
    return replies
