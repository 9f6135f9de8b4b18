"""The way of a command in a cluster, from redis-py's method to the node that owns its key.

The plan of the command's name says which argument is the key; its slot says which node; from there
on it is submitted as on a single server. What goes wrong is in ``_journey``, and to which nodes a
command without a key goes is redis-py's decision.
"""

from __future__ import annotations

import asyncio
import functools
import random
from abc import abstractmethod
from binascii import crc_hqx
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as redis_exceptions
from redis.asyncio.cluster import RedisCluster

from .._blocking import Wait, wait_of
from .._multiplex._routing import Route, command_words, route
from .._plans import Callbacks
from .._redis_py import (
    EMPTY_RESPONSE,
    NEVER_DECODE,
    ROUND_ROBIN,
    command_options,
    flag_of,
    has_policy,
    is_observed,
    led_through,
    recording,
    unwrapped,
)
from ..errors import ConnectionLostError
from ._journey import Journey, Start
from ._nodes import Node
from ._plans import FINAL, Plan, awaited, name_of, plan_for
from ._slots import SLOTS, slot_of
from ._topology import Topology

if TYPE_CHECKING:
    from .._source import TokenSource

__all__ = ["ClusterCommands"]

MAX_PLANS: Final = 4096
"""Command names that plans are kept for; a program that makes up names must not fill memory."""


class ClusterCommands(RedisCluster):
    """redis-py's cluster client, with commands that share one connection for each node."""

    nodes_manager: Topology
    _plans: dict[Any, Plan]
    _overrides: Mapping[str, Route]
    _initialize: bool
    _recovery_timeout: float
    _utf8: bool

    def _check_open(self) -> None:
        """Raise ``ClosedError`` after ``aclose()``."""

    @property
    @abstractmethod
    def token_source(self) -> TokenSource | None:
        """What this client signs in with, None if it does so in redis-py's own ways."""

    @property
    @abstractmethod
    def _user_retry(self) -> Any:
        """The user's own ``retry=`` for what may have run, None without one."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return its reply, as every method of this class does.

        ``target_nodes`` is as in redis-py. Cancelling it changes nobody else's reply; a command
        that was written may still run. Raises redis-py's exceptions; ``MaybeExecutedError`` where
        the connection ended under a command that is not known to be read-only;
        ``CommandRefusedError``.
        """
        try:
            plan = self._plans.get(args[0])
        except TypeError:  # what can't be looked up is no name: DataError
            plan = None
        if plan is None or not plan[0] or "target_nodes" in options or NEVER_DECODE in options:
            return await self._detour(args, options)
        _, words, callback, _, position, more, find, balanced, _ = plan
        try:
            if position and (not more or len(args) == position + 1):
                key = args[position]
                if key.__class__ is str:
                    key = key.encode()
                elif key.__class__ is not bytes:
                    key = self._bytes_of(key)
                slot = slot_of(key) if b"{" in key else crc_hqx(key, 0) & 16383
            elif find is not None:
                slot = self._slot_of_all(args, find(args))
            else:
                return await self._detour(args, options)
            nodes = self.nodes_manager.slots_cache[slot]
        except (LookupError, ValueError):
            return await self._detour(args, options)
        node = nodes[0] if not balanced else self._balanced(slot)
        session = node.multiplexed.straight
        if session is None or session.congested:
            return await self._detour(args, options, node)
        try:
            future = session.submit(args if words is None else words + args[1:])
        except ConnectionLostError:
            return await self._detour(args, options)
        try:
            reply = await future
        except asyncio.CancelledError:
            session.withdraw(future)
            raise
        except redis_exceptions.RedisError as exc:
            del future  # it refers to the error, and the error to this frame
            return await self._after_error(exc, plan, args, options, slot, node)
        if callback is None:
            return reply
        if options:
            command_options(options)
        reply = callback(reply, **options)
        # isawaitable() costs 0.4 us; what callbacks nearly always return is known not to be.
        return reply if reply.__class__ in FINAL else await awaited(reply)

    if not TYPE_CHECKING:  # type checkers are to see redis-py's own signature

        @functools.wraps(RedisCluster.set)
        def set(self, name, value, *args, **options):
            # redis-py checks the options of SET in a decorator, for 2 us; the plain form has none.
            if args or options:
                return super().set(name, value, *args, **options)
            return self.execute_command("SET", name, value)

    # -- plans and slots -------------------------------------------------------------------------

    @property
    def response_callbacks(self) -> Callbacks:
        """redis-py's response callbacks; a change holds from the next command on."""
        return self._callbacks

    @response_callbacks.setter
    def response_callbacks(self, callbacks: Mapping[Any, Any]) -> None:
        self._callbacks = Callbacks(callbacks, self._plans.clear)
        self._plans.clear()

    async def _plan(self, args: tuple[Any, ...]) -> Plan:
        try:
            plan = self._plans.get(args[0])
        except TypeError:
            plan = None
        return plan or await self._make_plan(args[0])

    async def _make_plan(self, name: Any) -> Plan:
        text = name_of(name)
        alone = flag_of(self, text) is not None or text in self.result_callbacks
        plan = plan_for(
            name,
            commands=self.commands_parser.commands,
            alone=alone or await has_policy(self, text),
            balances=self._balances,
            utf8=self._utf8,
            with_tokens=self.token_source is not None,
            callbacks=self.response_callbacks,
            overrides=self._overrides,
        )
        if len(self._plans) < MAX_PLANS:
            self._plans[name] = plan
        return plan

    @property
    def _balances(self) -> bool:
        return bool(self.read_from_replicas or self.load_balancing_strategy)

    def _balanced(self, slot: int) -> Node:
        return self.nodes_manager.balanced(slot, self.load_balancing_strategy or ROUND_ROBIN)

    def _bytes_of(self, key: Any) -> bytes:
        """A key as it is sent; raises redis-py's DataError for what is none."""
        return bytes(self.encoder.encode(key))  # type: ignore[no-untyped-call]

    def _slot_of_all(self, args: Any, keys: Any) -> int:
        """The one slot of ``keys``; of none: any slot, a script without keys runs anywhere.

        Raises redis-py's RedisClusterException where they are in several.
        """
        if not keys:
            return random.randrange(SLOTS)
        slots = {slot_of(self._bytes_of(key)) for key in keys}
        if len(slots) > 1:
            raise redis_exceptions.RedisClusterException(
                f"{args[0]} - all keys must map to the same key slot"
            )
        return slots.pop()

    async def _slot(self, plan: Plan, args: tuple[Any, ...]) -> int:
        """The slot of a command's keys; what can't be told from its plan the server is asked."""
        if plan.find is not None:
            try:
                return self._slot_of_all(args, plan.find(args))
            except (LookupError, ValueError):
                pass  # redis-py knows the words for it
        name = args[0] if isinstance(args[0], str) else name_of(args[0])
        slot: int = await self._determine_slot(name, *args[1:])
        return slot

    # -- every way but the straight one ----------------------------------------------------------

    async def _detour(
        self, args: tuple[Any, ...], options: dict[str, Any], chosen: Node | None = None
    ) -> Any:
        """Every way but the straight one; ``chosen`` is the node that it has come to."""
        if is_observed():
            way = led_through(RedisCluster, "execute_command", self, self._long_way)
            return await way(*args, **options)
        return await self._long_way(*args, _chosen=chosen, **options)

    async def _long_way(self, *args: Any, _chosen: Node | None = None, **options: Any) -> Any:
        self._check_open()
        if self._initialize:
            await self.initialize()
        plan = await self._plan(args)
        if plan.alone or options.get("target_nodes"):
            return await self._where_redis_py_says(plan, args, options)
        options.pop("target_nodes", None)
        slot = await self._slot(plan, args)
        return await self._on_slot(plan, args, options, slot, Start(_chosen))

    async def _where_redis_py_says(
        self, plan: Plan, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """On the nodes that were named, or that redis-py names: one, or several at once."""
        name = args[0] if isinstance(args[0], str) else name_of(args[0])
        flag = options.get("target_nodes") or flag_of(self, name)
        if flag == self.DEFAULT_NODE:
            options.pop("target_nodes", None)
            return await self._on_any_node(plan, name, args, options)
        if isinstance(flag, str) and "target_nodes" in options:
            options["target_nodes"] = nodes = self._flagged(flag)
            if not nodes:
                raise redis_exceptions.RedisClusterException(
                    f"No targets were found to execute {args} command on"
                )
        # Whoever has wrapped it has been led through already.
        way = unwrapped(RedisCluster, "execute_command")
        return await way(self, name, *args[1:], **options)

    async def _on_any_node(
        self, plan: Plan, name: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """On the default node, or on another primary if that can't be reached."""
        chosen: list[Node] = []

        def choose() -> Node:
            chosen.append(self.nodes_manager.any_node(chosen[-1] if chosen else None))
            return chosen[-1]

        reply = await self._travel(plan, args, options, choose)
        callback = self.result_callbacks.get(name)
        if callback is None:
            return reply
        return callback(name, {chosen[-1].name: reply}, **options)

    def _flagged(self, flag: str) -> list[Any]:
        """The nodes that a node flag stands for; raises redis-py's TypeError for another word."""
        if flag == self.RANDOM:
            return [random.choice(self.get_primaries())]
        kinds = {
            self.PRIMARIES: self.get_primaries,
            self.REPLICAS: self.get_replicas,
            self.ALL_NODES: self.get_nodes,
        }
        return kinds[flag]() if flag in kinds else self._parse_target_nodes(flag)

    async def _execute_command(self, target_node: Any, *args: Any, **options: Any) -> Any:
        """What redis-py calls for one node, with a node of ours or one that only names it."""
        plan = await self._plan(args)
        name = target_node.name

        def choose() -> Node:
            node = self.nodes_manager.get_node(node_name=name)
            if node is None:
                raise redis_exceptions.RedisClusterException(
                    f"{name} is no node of this cluster, or not any more"
                )
            return node

        return await self._travel(plan, args, options, choose)

    async def _on_slot(
        self,
        plan: Plan,
        args: tuple[Any, ...],
        options: dict[str, Any],
        slot: int,
        start: Start,
    ) -> Any:
        """On the node that owns ``slot``, now or by the time that it can be reached."""

        def choose() -> Node:
            if plan.balanced:
                return self._balanced(slot)
            return self.nodes_manager.owners(slot)[0]

        return await self._travel(plan, args, options, choose, start)

    async def _travel(
        self,
        plan: Plan,
        args: tuple[Any, ...],
        options: dict[str, Any],
        choose: Callable[[], Node],
        start: Start | None = None,
    ) -> Any:
        journey = Journey(
            self.nodes_manager,
            choose,
            name=lambda: command_words(args),
            repeatable=plan.read_only,
            retry=self._user_retry,
            patience=self._recovery_timeout,
        )
        wait = None if plan.shared else wait_of(args)
        ends = _end_of(wait)

        async def attempt(node: Node, asking: bool) -> Any:
            words = args if wait is None else _rest_of(wait, ends)
            try:
                if asking:
                    return await node.execute_command(*words, connect=False, asking=True, **options)
                return await node.execute_command(*words, connect=False, **options)
            except redis_exceptions.TimeoutError as exc:
                if wait is None or isinstance(exc, redis_exceptions.ConnectionError):
                    raise
                # It has waited for longer than it asked to, and has not popped anything.
                raise ConnectionLostError(str(exc)) from exc

        record = None
        if plan.shared or self._route(args) is not Route.DEDICATED:  # else redis-py records it
            record = recording(args[0], journey, in_cluster=True)
        try:
            if record is None:
                return await journey.run(attempt, start)
            journey.on_repeat = record.repeated
            return await record.around(journey.run(attempt, start))
        except redis_exceptions.ResponseError:
            if EMPTY_RESPONSE in options:
                return options[EMPTY_RESPONSE]
            raise

    def _route(self, args: tuple[Any, ...]) -> Route:
        return route(args, with_tokens=self.token_source is not None, overrides=self._overrides)

    async def _after_error(
        self,
        exc: redis_exceptions.RedisError,
        plan: Plan,
        args: tuple[Any, ...],
        options: dict[str, Any],
        slot: int,
        node: Node,
    ) -> Any:
        """What becomes of a command that got an error instead of a reply."""
        start = Start(node, exc)
        del exc  # it would refer to this frame, and the frame to it
        return await self._on_slot(plan, args, options, slot, start)


def _end_of(wait: Wait | None) -> float | None:
    """The loop's time at which a blocking command is to end, None for never."""
    if wait is None or not wait.seconds:
        return None
    return asyncio.get_running_loop().time() + wait.seconds


def _rest_of(wait: Wait, ends: float | None) -> tuple[Any, ...]:
    """A blocking command, for as long as it may still block."""
    left = ends - asyncio.get_running_loop().time() if ends is not None else wait.seconds
    if ends is None or wait.seconds - left < 0.001:
        return wait.words  # the user's own
    return wait.for_seconds(max(left, 0.001))
