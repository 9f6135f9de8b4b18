"""Pipelines in a cluster: redis-py's class, whose commands go on each node's shared connection.

What each node gets and what it refuses is in ``_shares``, transactions are in ``_transaction``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as redis_exceptions
from redis.asyncio.cluster import ClusterPipeline

from .._multiplex._routing import Route, route, route_in_pipeline
from .._pipeline import refused_in_pipeline
from .._redis_py import annotate_in_pipeline, flag_of, is_observed, led_through, nodes_for
from .._transactions import Command
from ..errors import MaybeExecutedError
from ._commands import ClusterCommands
from ._nodes import Node
from ._plans import Plan, name_of
from ._shares import Errand, Ways, run
from ._slots import slot_of

if TYPE_CHECKING:
    from ._topology import Topology

__all__ = ["EntraClusterPipeline", "checked_route", "slot_in_plan"]


ANY: Final = "any"
"""The lane of what redis-py sends to its default node."""


class EntraClusterPipeline(ClusterPipeline):
    """redis-py's ``ClusterPipeline``: each node gets its commands in one write, all at once.

    Use it as in redis-py. A command that its node refuses to execute goes where it belongs; one
    that may have run when the connection was lost is not repeated, and its place in the results
    holds ``MaybeExecutedError``. Commands on keys of one slot keep their order. ``execute()`` that
    is cancelled takes back what was not written; the rest runs.
    """

    cluster_client: ClusterCommands
    _event_dispatcher: Any = None

    def __init__(self, client: ClusterCommands) -> None:
        self.cluster_client = client
        self.command_stack: list[Command] = []

    @property
    def nodes_manager(self) -> Topology:
        """The client's."""
        return self.cluster_client.nodes_manager

    def set_response_callback(self, command: str, callback: Any) -> None:
        """Set a response callback of the client; pipelines and clients share them."""
        self.cluster_client.set_response_callback(command, callback)

    # -- life ------------------------------------------------------------------------------------

    async def initialize(self) -> EntraClusterPipeline:
        """Have the client learn who owns which slot, if it has not."""
        client = self.cluster_client
        client._check_open()
        if client._initialize:
            await client.initialize()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.reset()

    def __len__(self) -> int:
        return len(self.command_stack)

    async def reset(self) -> None:  # type: ignore[override]
        """Forget what was queued."""
        self.command_stack = []

    # -- queueing --------------------------------------------------------------------------------

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue one command; ``target_nodes=`` names one node for it."""
        self.command_stack.append((args, options))
        return self

    if not TYPE_CHECKING:  # type checkers are to see redis-py's own signature

        @functools.wraps(ClusterPipeline.set)
        def set(self, name, value, *args, **options):
            # redis-py checks the options of SET in a decorator, for 2 us; the plain form has none.
            if args or options:
                return super().set(name, value, *args, **options)
            return self.execute_command("SET", name, value)

    def _split_command_across_slots(self, command: str, *keys: Any) -> Any:
        """What redis-py calls for DEL, EXISTS, TOUCH: one command, and reply, for each slot."""
        for of_one_slot in self.cluster_client._partition_keys_by_slot(keys).values():
            self.execute_command(command, *of_one_slot)
        return self

    def unlink(self, *names: Any) -> Any:
        """Queue UNLINK, once for each slot of ``names``."""
        return self._split_command_across_slots("UNLINK", *names)

    def mset_nonatomic(self, mapping: Mapping[Any, Any]) -> Any:
        """Queue MSET, once for each slot of the keys."""
        encode = self.cluster_client.encoder.encode
        pairs: dict[int, list[Any]] = {}
        for key, value in mapping.items():
            pairs.setdefault(slot_of(encode(key)), []).extend((key, value))  # type: ignore[no-untyped-call]
        for of_one_slot in pairs.values():
            self.execute_command("MSET", *of_one_slot)
        return self

    def multi(self) -> None:
        """Only in ``pipeline(transaction=True)``."""
        raise _only_in_transactions("multi")

    async def watch(self, *_: Any) -> Any:  # type: ignore[override]
        """Only in ``pipeline(transaction=True)``."""
        raise _only_in_transactions("watch")

    async def unwatch(self) -> Any:  # type: ignore[override]
        """Only in ``pipeline(transaction=True)``."""
        raise _only_in_transactions("unwatch")

    async def discard(self) -> None:
        """Only in ``pipeline(transaction=True)``."""
        raise _only_in_transactions("discard")

    # -- executing -------------------------------------------------------------------------------

    async def execute(
        self, raise_on_error: bool = True, allow_redirections: bool = True
    ) -> list[Any]:
        """Send what was queued and return the replies, in order.

        ``raise_on_error=False`` returns errors among the replies, lost connections too;
        ``allow_redirections=False`` leaves MOVED, ASK and TRYAGAIN to the caller. Raises redis-py's
        exceptions; ``CommandRefusedError`` before anything is sent; ``MaybeExecutedError``. When
        the first error is raised, other commands may have been executed.
        """
        if is_observed():
            way = led_through(ClusterPipeline, "execute", self, self._execute)
            return list(await way(raise_on_error, allow_redirections))
        return await self._execute(raise_on_error, allow_redirections)

    async def _execute(
        self, raise_on_error: bool = True, allow_redirections: bool = True
    ) -> list[Any]:
        stack = self.command_stack
        if not stack:
            return []
        client = self.cluster_client
        try:
            await self.initialize()
            errands = [
                Errand(number, args, dict(options) if options else options)
                for number, (args, options) in enumerate(stack, 1)
            ]
            for errand in errands:
                await self._direct(errand)
            ways = Ways(
                client.nodes_manager,
                self._choose,
                retry=client._user_retry,
                patience=client._recovery_timeout,
                redirects=allow_redirections,
                all_or_error=raise_on_error,
                total=len(errands),
            )
            await run(ways, errands, client.encoder.encode)
            results = [await errand.result() for errand in errands]
        finally:
            await self.reset()
        if raise_on_error:
            _raise_first_error(errands, results)
        return results

    async def _direct(self, errand: Errand) -> None:
        """Find out where a command goes; raises what is wrong with it."""
        client, args, options = self.cluster_client, errand.args, errand.options
        plan = errand.plan = await client._plan(args)
        errand.words = args if plan.words is None else plan.words + args[1:]
        if not plan.shared:
            errand.route = checked_route(client, args)
        named = options.pop("target_nodes", None) if options else None
        flag = named or (flag_of(client, name_of(args[0])) if plan.alone else None)
        if flag == client.DEFAULT_NODE:
            errand.lane = ANY
        elif named or plan.alone:
            nodes = await nodes_for(client, args, named)
            if not nodes:
                raise redis_exceptions.RedisClusterException(
                    f"No targets were found to execute {args} command on"
                )
            if len(nodes) > 1:
                raise redis_exceptions.RedisClusterException(f"Too many targets for command {args}")
            errand.lane = nodes[0].name
        else:
            errand.lane = await slot_in_plan(client, plan, args)
        try:
            errand.node = self._choose([errand])
        except redis_exceptions.SlotNotCoveredError:
            errand.node = None  # it may be a moment later

    def _choose(self, errands: Sequence[Errand]) -> Node:
        """The node for the commands of one lane, now."""
        lane = errands[0].lane
        topology = self.cluster_client.nodes_manager
        if isinstance(lane, int):
            if all(errand.plan.balanced for errand in errands):
                return self.cluster_client._balanced(lane)
            return topology.owners(lane)[0]
        node = topology.any_node() if lane == ANY else topology.get_node(node_name=lane)
        if node is None:
            raise redis_exceptions.RedisClusterException(
                f"{lane} is no node of this cluster, or not any more"
            )
        return node


async def slot_in_plan(client: ClusterCommands, plan: Plan, args: tuple[Any, ...]) -> int:
    """The slot of a command's keys; raises what ``ClusterCommands`` raises for it."""
    position = plan.key
    if position and (not plan.more or len(args) == position + 1):
        key = args[position]
        if key.__class__ is str:
            return slot_of(key.encode())
    return await client._slot(plan, args)


def checked_route(client: ClusterCommands, args: tuple[Any, ...]) -> Route:
    """The route of a command in a pipeline; raises ``CommandRefusedError``."""
    alone = route(args, with_tokens=client.token_source is not None, overrides=client._overrides)
    where = route_in_pipeline(args, alone)
    if where is Route.REFUSED:
        raise refused_in_pipeline(args)
    return where


def _raise_first_error(errands: Sequence[Errand], results: Sequence[Any]) -> None:
    for errand, result in zip(errands, results, strict=True):
        if isinstance(result, Exception):
            if not isinstance(result, MaybeExecutedError):  # which says it by itself
                annotate_in_pipeline(result, errand.number, errand.args)
            raise result


def _only_in_transactions(method: str) -> redis_exceptions.RedisClusterException:
    return redis_exceptions.RedisClusterException(
        f"method {method}() is not supported outside of transactional context"
    )
