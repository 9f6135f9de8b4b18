"""What the emulator can do to the nodes of its Redis: failover, migration, loss, growth."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any

from ._records import Node
from ._topology import ranges

__all__ = ["ClusterControl"]


class ClusterControl(abc.ABC):
    """The part of ``Emulator`` that changes the shape of Redis. ``reset`` restores it.

    Nodes are told apart by the numbers that ``nodes`` and the log give them; where there is no
    cluster, there is node 1. Other methods raise ValueError without a cluster (``amr-oss``).
    Cancelling gives up waiting; what has begun is finished.
    """

    @abc.abstractmethod
    async def _call(self, method: str, **params: Any) -> Any:
        """Call a method of the emulator's process."""

    async def nodes(self) -> list[Node]:
        """Every node, as those that run see it, in the order of the numbers."""
        return [Node.from_json(each) for each in await self._call("nodes")]

    async def failover(self, node: int | None = None, *, force: bool = False) -> int:
        """Have a replica take over from its primary, as in planned maintenance: nothing is lost.

        ``node`` is the replica or its primary; the first primary that has a replica, if not given.
        With ``force`` the replica asks nobody (CLUSTER FAILOVER TAKEOVER), and takes over from a
        primary that is gone or knows nothing of it; writes that it has not copied are lost.
        Returns the number of the new primary, when all nodes that run know of it.
        """
        number: int = await self._call("failover", node=node, force=force)
        return number

    async def migrate_slots(
        self,
        slots: int | Iterable[int],
        to: int,
        *,
        keys: int | None = None,
        pace: float = 0.0,
    ) -> int:
        """Move slots to another primary, as operators do: open the slot on both sides, move the
        keys, tell everybody.

        While a slot is open, commands about keys that have moved are answered with ASK, and those
        about several keys, of which some have, with TRYAGAIN.

        :param keys: stop half-way, when so many keys have moved (0 for none): the slot stays open.
            Another call without it brings the migration to its end.
        :param pace: seconds between two keys, which move one by one then

        Returns how many keys have moved, when all nodes that run know of it.
        """
        chosen = [slots] if isinstance(slots, int) else list(slots)
        moved: int = await self._call(
            "migrate_slots",
            slots=ranges(chosen),  # a line of the control channel has room for those
            to=to,
            keys=keys,
            pace=pace,
        )
        return moved

    async def kill_node(self, node: int) -> None:
        """Kill a node's server as ``kill -9`` does, and refuse connections at its port.

        Its connections end, those through the entry too; the entry leads to the first node that
        runs. In a cluster a replica is elected after ``node_timeout`` and about a second more.
        """
        await self._call("kill_node", node=node)

    async def stop_node(self, node: int) -> None:
        """Take a node out of service in order: a primary hands over to a replica first, if it has
        one that runs."""
        await self._call("stop_node", node=node)

    async def start_node(self, node: int) -> None:
        """Start a node that was killed or stopped, at the same port and without its data.

        In a cluster it comes back as what it is by then, the replica of its former replica for
        instance, and has copied its primary's data when this returns. A primary that nobody has
        replaced comes back empty.
        """
        await self._call("start_node", node=node)

    async def add_node(self, *, primary: int | None = None) -> int:
        """Add a node: the replica of a ``primary``, or a primary without slots.

        Returns its number, when all nodes know it.
        """
        number: int = await self._call("add_node", primary=primary)
        return number

    async def remove_node(self, node: int) -> None:
        """Remove a node for good: a replica, or a primary without slots and replicas."""
        await self._call("remove_node", node=node)
