"""Who owns which slot, and how that is found out anew: from one task, whoever wants to know.

A refresh keeps the nodes that are still there, with their connections; those that are not drain
and are closed. While somebody waits for an owner that can be reached, one refresh follows the
other with a growing pause in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from redis import exceptions as redis_exceptions

from .._events import EventHub
from .._redis_py import (
    PRIMARY,
    REPLICA,
    ROUND_ROBIN,
    TopologyBase,
    node_name,
)
from .._repeats import Repeats
from .._supervision import Supervised
from .._tls_names import TLSNames
from ..errors import ClosedError, LifecycleError
from ._addresses import Advertised, Destination, Refused, destination
from ._inquiry import ask
from ._nodes import Node
from ._redirects import Redirect, judge
from ._shape import EMPTY, Address, Shape
from ._shared import SharedWork
from ._slots import SLOTS

__all__ = ["Topology"]

logger = logging.getLogger("aioentra_redis.cluster")

FIRST_DELAY: Final = 0.05
LAST_DELAY: Final = 0.25
"""Seconds between refreshes while somebody waits for an owner that can be reached: doubled from
the first to the last, each shortened by up to half at random. One is a command to one node."""

GUEST_LIFE: Final = 60.0
"""Seconds that a node is kept which only ASK has named: it owns no slot yet."""


class Topology(TopologyBase):
    """The nodes of a cluster and their slots. Belongs to the event loop of its first refresh.

    ``make_node`` makes the node at an address, ``names`` says what its certificate must be for;
    ``steps`` is redis-py's ``reinitialize_steps=``.
    """

    slots_cache: dict[int, list[Any]]
    nodes_cache: dict[str, Any]
    startup_nodes: dict[str, Any]
    default_node: Any

    def __init__(
        self,
        stock: Any,
        seeds: Iterable[tuple[str, int]],
        *,
        make_node: Callable[[Destination, str | None], Node],
        names: TLSNames,
        hub: EventHub,
        steps: int,
    ) -> None:
        self._seeds = list(dict.fromkeys(seeds))
        self._make_node = make_node
        self._names = names
        self._entries: dict[str, Node] = {}
        super().__init__(stock, [self._entry(host, port) for host, port in self._seeds])
        self._hub = hub
        self._steps = steps
        self._moves = 0
        self._shape = EMPTY
        self._guests: dict[str, tuple[Node, float]] = {}
        self._refreshing = SharedWork()
        self._following: Supervised | None = None
        self._changed: asyncio.Future[None] | None = None
        self._wanting = 0
        self._retiring: set[asyncio.Task[None]] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self._repeats = Repeats()
        self.closed: bool = False

    # -- questions -------------------------------------------------------------------------------

    def owners(self, slot: int) -> list[Node]:
        """The nodes of a slot, its primary first; redis-py's SlotNotCoveredError."""
        try:
            return self.slots_cache[slot]
        except KeyError:
            raise redis_exceptions.SlotNotCoveredError(
                f'Slot "{slot}" is not covered by the cluster.'
            ) from None

    def get_node_from_slot(
        self,
        slot: int,
        read_from_replicas: bool = False,
        load_balancing_strategy: Any = None,
        *_: Any,
    ) -> Node:
        """The node to send a command to: the primary, or the next one of the strategy."""
        nodes = self.owners(slot)
        strategy = load_balancing_strategy or (ROUND_ROBIN if read_from_replicas else None)
        if strategy is None or len(nodes) < 2:
            return nodes[0]
        index = self.read_load_balancer.get_server_index(nodes[0].name, len(nodes), strategy)
        return nodes[index]

    def any_node(self, instead_of: Node | None = None) -> Node:
        """redis-py's default node; another primary takes its place where that can't be reached.

        ``instead_of`` is a node that has just failed.
        """
        node: Node = self.default_node
        if node is not instead_of and node.is_promising:
            return node
        others = [
            each
            for each in self.nodes_cache.values()
            if each.server_type == PRIMARY and each is not node and each.is_promising
        ]
        if others:
            node = self.default_node = random.choice(others)
        return node

    def balanced(self, slot: int, strategy: Any) -> Node:
        """The next node of the strategy that may be read; the primary where none is promising."""
        nodes = self.owners(slot)
        for _ in nodes:
            node = self.get_node_from_slot(slot, False, strategy)
            if node.is_promising:
                return node
        return nodes[0]

    def get_node(
        self, host: str | None = None, port: int | None = None, node_name: str | None = None
    ) -> Node | None:
        """A node by its address or name; "localhost" may be the one that is called 127.0.0.1."""
        if host and port:
            for each in (host, "127.0.0.1", "::1") if host == "localhost" else (host,):
                if (node := self._known(_name(each, port))) is not None:
                    return node
            return None
        if not node_name:
            raise redis_exceptions.DataError(
                "get_node requires one of the following: 1. node name 2. host and port"
            )
        return self._known(node_name)

    def _known(self, name: str) -> Node | None:
        guest = self._guests.get(name)
        return self.nodes_cache.get(name) or (guest[0] if guest is not None else None)

    @property
    def seeds(self) -> list[str]:
        """The names of the addresses to begin with."""
        return [_name(*each) for each in self._seeds]

    def all_nodes(self) -> list[Node]:
        """Every node that may have connections, each once."""
        nodes = (
            *self.nodes_cache.values(),
            *self.startup_nodes.values(),
            *self._entries.values(),
            *(node for node, _ in self._guests.values()),
        )
        return list({id(node): node for node in nodes}.values())

    # -- what servers say ------------------------------------------------------------------------

    def moved(self, redirect: Redirect, said_by: Node) -> Node:
        """Learn from a MOVED reply, and return the owner.

        Every ``steps`` times a refresh follows, since a slot seldom moves alone.
        """
        owner, is_news = self._learn(redirect, said_by)
        if is_news:
            task = asyncio.ensure_future(self.tell_of_refresh())
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        return owner

    async def move_slot(self, error: Any) -> None:
        """``moved`` under redis-py's name, with an exception of its."""
        _, is_news = self._learn(judge(error), self.default_node)
        if is_news:
            await self.tell_of_refresh()

    def _learn(self, redirect: Redirect, said_by: Node) -> tuple[Node, bool]:
        owner = self._redirected(redirect, said_by)
        if owner.name in self._guests:
            self._adopt_guest(owner)
        is_news = self._patch(redirect.slot, owner)
        self._moves += 1
        if self._steps and self._moves % self._steps == 0:
            self.want()
        return owner, is_news

    def asked(self, redirect: Redirect, said_by: Node) -> Node:
        """The node that an ASK reply names, which may own no slot yet."""
        return self._redirected(redirect, said_by)

    def _redirected(self, redirect: Redirect, said_by: Node) -> Node:
        where = self._locate(redirect.to, said_by)
        if isinstance(where, Refused):
            raise redis_exceptions.ClusterError(
                f"{said_by.name} says that slot {redirect.slot} is elsewhere, but nothing is sent "
                f"there: {where.reason}"
            )
        node = self._known(_name(where.host, where.port))
        if node is None:
            node = self._make_node(where, PRIMARY)
        if node.name not in self.nodes_cache:
            self._guests[node.name] = node, time.monotonic()
        return node

    def _locate(self, advertised: Advertised | Refused, said_by: Node) -> Destination | Refused:
        return destination(
            advertised, asked=said_by.host, names=self._names, remap=self.address_remap
        )

    def _adopt_guest(self, node: Node) -> None:
        del self._guests[node.name]
        self.nodes_cache[node.name] = node

    def _patch(self, slot: int, owner: Node) -> bool:
        """One slot belongs to ``owner``, by a failover or because it has moved; whether it did
        not before."""
        nodes = self.slots_cache.get(slot, [])
        owner.server_type = PRIMARY
        if nodes and nodes[0] is owner:
            return False
        if owner in nodes:  # a replica has taken over, with all slots that share the list
            former = nodes[0]
            former.server_type = REPLICA
            nodes[:] = [owner, *(node for node in nodes if node is not owner)]
            if self.default_node is former:
                self.default_node = owner
        else:
            self.slots_cache[slot] = [owner]
        self._shape = EMPTY  # what the next refresh finds is news
        self._tell_of_change()
        return True

    # -- waiting ---------------------------------------------------------------------------------

    def want(self) -> None:
        """Have the topology refreshed in the background, unless that is under way."""
        if self._following is None and not self.closed:
            self._following = Supervised(
                self._follow, name="aioentra_redis-topology", hub=self._hub
            )

    @contextlib.contextmanager
    def wanted(self) -> Iterator[None]:
        """For as long as somebody can't do without: refreshes follow each other."""
        self._wanting += 1
        try:
            self.want()
            yield
        finally:
            self._wanting -= 1

    def next_change(self) -> asyncio.Future[None]:
        """Ends when a slot gets another owner, or at the end; shared, so not to be cancelled."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def _tell_of_change(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    # -- refreshing ------------------------------------------------------------------------------

    async def initialize(self, *_: Any, **__: Any) -> None:
        """``refresh``, under redis-py's name."""
        await self.refresh()

    async def refresh(self) -> None:
        """Learn the topology anew; who comes meanwhile waits for the same answer.

        Raises ``ClusterUnreachableError`` where no node could be asked, ``ClosedError``, what
        keeps from signing in, and redis-py's RedisClusterException for a cluster with uncovered
        slots (``require_full_coverage=``) and for a server that is no cluster. Cancelling it stops
        nobody else's refresh.
        """
        if self.closed:
            raise ClosedError("the client of this cluster has been closed; that is final")
        await self._refreshing.done(self._refresh)

    async def _follow(self) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                await self.refresh()
            except (redis_exceptions.RedisError, OSError, LifecycleError) as exc:
                level = self._repeats.level(logging.WARNING, type(exc), time.monotonic())
                # Its text: a handler that keeps records would keep its frames, and so us.
                logger.log(level, "the topology could not be refreshed: %s", str(exc))
            else:
                self._repeats.over()
            if not self._wanting:
                break
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(delay * 2, LAST_DELAY)
            if not self._wanting:
                break
        self._following = None  # not where it was cancelled: then it is started again

    async def _refresh(self) -> None:
        shape, asked = await ask(self._whom_to_ask(), self._locate)
        partly = shape.ranges and (self.slots_cache or not self.require_full_coverage)
        if not (shape.is_whole or partly):
            raise redis_exceptions.RedisClusterException(
                "All slots are not covered after query all startup_nodes. "
                f"{shape.covered} of {SLOTS} covered..."
            )
        await self._recognize(asked, shape)
        if self._install(shape):
            await self.tell_of_refresh()

    def _whom_to_ask(self) -> list[Node]:
        """Those that answer at once first, each group in an order of chance."""
        nodes = dict(self.nodes_cache)
        for host, port in self._seeds:  # which remain when all others have gone
            name = _name(host, port)
            if name not in nodes:
                nodes[name] = self._entry(host, port)
        order = list(nodes.values())
        random.shuffle(order)
        return sorted(order, key=lambda node: (not node.is_connected, node.was_connected))

    def entry(self) -> Node:
        """The node at the first address of the user's."""
        return self._entry(*self._seeds[0])

    def _entry(self, host: str, port: int) -> Node:
        """The node at an address of the user's, whose name may lead to any of them."""
        node = self._entries.get(name := _name(host, port))
        if node is None or node.retired:
            at = Destination(host, port, self._names.name_of(host, port) or host)
            node = self._entries[name] = self._make_node(at, None)
        return node

    # -- installing ------------------------------------------------------------------------------

    def _install(self, shape: Shape) -> bool:
        """Go by ``shape`` from now on; whether that is news."""
        if shape == self._shape:
            for node in self._entries.values():
                if node.has_client:
                    self._let_go(node)  # it was needed once more, and is no node
            return False
        for reason in shape.refused:
            logger.warning("a node of the cluster is left out: %s", reason)
        nodes: dict[str, Node] = {}
        for server_type, group in ((REPLICA, shape.replicas()), (PRIMARY, shape.primaries())):
            for address in group:
                node = nodes.get(address.name) or self._node_at(address)
                node.server_type = server_type
                nodes[address.name] = node
        primaries = {each.name: nodes[each.name] for each in shape.primaries()}
        nodes = {**primaries, **nodes}
        slots: dict[int, list[Node]] = {}
        for first, last, addresses in shape.ranges:
            owners = [nodes[each.name] for each in addresses]
            slots.update(dict.fromkeys(range(first, last + 1), owners))
        before = self.all_nodes()
        self.read_load_balancer.reset()
        self.nodes_cache, self.slots_cache, self._shape = nodes, slots, shape
        horizon = time.monotonic() - GUEST_LIFE
        self._guests = {
            name: (node, at)
            for name, (node, at) in self._guests.items()
            if name not in nodes and at > horizon
        }
        self._entries.clear()
        if self.dynamic_startup_nodes:
            self.startup_nodes = dict(nodes)
        else:
            seeds = (self._known(_name(*each)) or self._entry(*each) for each in self._seeds)
            self.startup_nodes = {node.name: node for node in seeds}
        if self.default_node not in primaries.values() or not self.default_node.is_connected:
            self.default_node = self._default_among(list(primaries.values()))
        kept = {
            id(node) for node in (*nodes.values(), *(node for node, _ in self._guests.values()))
        }
        for node in before:
            if id(node) not in kept:
                self._let_go(node)
        self._tell_of_change()
        return True

    @staticmethod
    def _default_among(primaries: list[Node]) -> Node:
        return next((node for node in primaries if node.is_connected), primaries[0])

    async def _recognize(self, asked: Node, shape: Shape) -> None:
        """Find out which node of ``shape`` was asked at another address, and keep its connection.

        The entry's host name may lead to any of them.
        """
        addresses = [*shape.primaries(), *shape.replicas()]
        if asked.name in self.nodes_cache or any(each.name == asked.name for each in addresses):
            return
        if self.address_remap is not None:
            return  # the user has a say in where nodes are reached
        peer, its_id = asked.peer, ""
        if not any((each.at.host, each.at.port) == peer for each in addresses):
            # What it says counts for which address it has, no more: its certificate was verified.
            with contextlib.suppress(redis_exceptions.RedisError):
                said = await asked.execute_command("CLUSTER MYID", connect=False)
                its_id = said.decode() if isinstance(said, bytes) else str(said)
        for each in addresses:
            is_it = (each.at.host, each.at.port) == peer or (its_id and each.id == its_id)
            if is_it and self._known(each.name) is None and each.at.tls_name == asked.tls_name:
                asked.move_to(*each.at)
                self.nodes_cache[asked.name] = asked
                return

    def _node_at(self, address: Address) -> Node:
        node = self._known(address.name) or self._entries.get(address.name)
        if node is None or node.retired:
            node = self._make_node(address.at, None)
        return node

    def _let_go(self, node: Node) -> None:
        """``node`` has left the cluster: what is in flight may finish."""
        node.retired = True
        if node.has_client:
            task = asyncio.ensure_future(node.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a node that had left could not be closed: %r", error)

    # -- the end ---------------------------------------------------------------------------------

    async def aclose(self, attr: str = "") -> None:
        """Close every node; what is in flight may finish within ``close_timeout``."""
        self.closed = True
        self._tell_of_change()
        ending = [*self._refreshing.cancel(), *self._telling]
        for telling in self._telling:
            telling.cancel()
        if self._following is not None and (task := self._following.stop()) is not None:
            ending.append(task)
        nodes = self.all_nodes()
        retiring = [node.retire() for node in nodes]
        outcomes = await asyncio.gather(*retiring, *self._retiring, return_exceptions=True)
        if ending:
            await asyncio.wait(ending)
        self._forget()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def _forget(self) -> None:
        """Know nothing but where to begin."""
        self._following = None
        self.default_node = None
        self.nodes_cache, self.slots_cache, self._guests = {}, {}, {}
        self._shape = EMPTY
        self._entries.clear()
        self.startup_nodes = {_name(*each): self._entry(*each) for each in self._seeds}

    def reopen(self) -> None:
        """Undo ``aclose``: the next refresh begins anew."""
        self.closed = False

    def abandon(self) -> bool:
        """Let go of everything, from any thread; whether anything was open."""
        self.closed = True
        following = self._following
        if following is not None and following.task is not None:
            loop = following.task.get_loop()
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(following.stop)
        return any([node.abandon() for node in self.all_nodes()])


def _name(host: str, port: int) -> str:
    return node_name(host, port)
