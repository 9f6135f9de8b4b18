"""What an operator can do to the servers: methods of the control channel."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ._cluster import Cluster
from ._control import Method
from ._errors import EmulatorError
from ._fleet import Fleet
from ._records import Node
from ._topology import SLOTS

__all__ = ["Operations"]


class Operations:
    """Failover, migration of slots, and nodes that go and come.

    ``policies`` are what a node that is added begins with.
    """

    def __init__(self, fleet: Fleet, policies: Mapping[str, str]) -> None:
        self._fleet = fleet
        self._policies = policies
        self._under_way: set[asyncio.Future[Any]] = set()

    def methods(self) -> dict[str, Method]:
        """What can be called, by name."""
        methods: dict[str, Method] = {
            "add_node": self.add_node,
            "failover": self.failover,
            "kill_node": self.kill_node,
            "migrate_slots": self.migrate_slots,
            "nodes": self.nodes,
            "remove_node": self.remove_node,
            "restart_server": self.restart_server,
            "start_node": self.start_node,
            "stop_node": self.stop_node,
        }
        return {name: self._until_given_up(method) for name, method in methods.items()}

    def _until_given_up(self, method: Method) -> Method:
        async def call(**params: Any) -> Any:
            work = asyncio.ensure_future(method(**params))
            self._under_way.add(work)
            try:
                await asyncio.wait([work])
            finally:
                self._under_way.discard(work)
            if work.cancelled():
                raise EmulatorError("it was given up, because the emulator was reset")
            return work.result()

        return call

    async def give_up(self) -> bool:
        """End what is under way; whoever has asked for it may be gone. Whether there was any."""
        under_way = list(self._under_way)
        for work in under_way:
            work.cancel()
        if under_way:
            await asyncio.wait(under_way)
        return bool(under_way)

    def _require_cluster(self) -> Cluster:
        if self._fleet.cluster is None:
            raise ValueError("there is no cluster: start the emulator with profile='amr-oss'")
        return self._fleet.cluster

    async def nodes(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(each) for each in await self._fleet.nodes()]

    async def _node(self, number: int) -> Node:
        self._fleet.check(number)
        return next(each for each in await self._fleet.nodes() if each.number == number)

    async def _require_primary(self, number: int, why: str) -> None:
        if (await self._node(number)).role != "primary":
            raise ValueError(f"node {number} is no primary: {why}")
        self._fleet.check(number, running=True)

    # ---------------------------------------------------------------------------------- node loss

    async def restart_server(
        self, *, keep_data: bool, downtime: float, loading: float, node: int | None
    ) -> None:
        await self._fleet.restart(node, keep_data=keep_data, downtime=downtime, loading=loading)

    async def kill_node(self, *, node: int) -> None:
        await self._fleet.kill_node(node)

    async def stop_node(self, *, node: int) -> None:
        stopped = await self._node(node)
        if stopped.running and stopped.role == "primary" and await self._replicas(node):
            await self.failover(node=node, force=False)
        await self._fleet.kill_node(node)

    async def start_node(self, *, node: int) -> None:
        await self._fleet.start_node(node)

    async def add_node(self, *, primary: int | None) -> int:
        self._require_cluster()
        if primary is not None:
            await self._require_primary(primary, "a replica copies one")
        return await self._fleet.add_node(primary, self._policies)

    async def remove_node(self, *, node: int) -> None:
        self._require_cluster()
        removed = await self._node(node)
        if removed.slots:
            raise ValueError(f"node {node} has slots: migrate them first")
        if await self._replicas(node):
            raise ValueError(f"node {node} has replicas: remove them first")
        await self._fleet.remove_node(node)

    # ----------------------------------------------------------------------------------- failover

    async def _replicas(self, primary: int) -> list[int]:
        """The replicas of a primary that run."""
        return [
            each.number
            for each in await self._fleet.nodes()
            if each.primary == primary and each.running
        ]

    async def failover(self, *, node: int | None, force: bool) -> int:
        """Have a replica take over: that node, one of that node's, or one of the first primary
        that has any."""
        cluster = self._require_cluster()
        self._fleet.check(node)
        for each in await self._fleet.nodes():
            if node not in (None, each.number):
                continue
            if each.role == "replica":
                if node is None:
                    continue
                self._fleet.check(each.number, running=True)
                taking_over = each.number
            else:
                replicas = await self._replicas(each.number)
                if not replicas:
                    continue
                taking_over = replicas[0]
            await cluster.failover(taking_over, *(["TAKEOVER"] if force else []))
            return taking_over
        raise ValueError("there is no replica that could take over")

    # ---------------------------------------------------------------------------------- migration

    async def migrate_slots(
        self, *, slots: Iterable[tuple[int, int]], to: int, keys: int | None, pace: float
    ) -> int:
        cluster = self._require_cluster()
        wanted = [slot for first, last in slots for slot in range(first, last + 1)]
        if not wanted or not (wanted[0] >= 0 and wanted[-1] < SLOTS):
            raise ValueError(f"slots are numbers from 0 to {SLOTS - 1}")
        await self._require_primary(to, "slots belong to one")
        moved = 0
        for node in await self._fleet.nodes():
            chosen = [slot for slot in wanted if node.number != to and node.owns(slot)]
            if chosen:
                self._fleet.check(node.number, running=True)
                left = None if keys is None else keys - moved
                moved += await cluster.migrate(chosen, node.number, to, keys=left, pace=pace)
        if keys is None:
            view_id = cluster.node_id(to)
            await cluster.until(
                lambda view: all(view[view_id].owns(slot) for slot in wanted),
                f"all nodes know that the slots are node {to}'s",
            )
        return moved
