"""What nodes announce of their maintenance, where it is about the slots of the cluster."""

from __future__ import annotations

import weakref

from .._events import Event, EventHub, MaintenanceAnnounced, MaintenanceKind
from ._topology import Topology

__all__ = ["follow_notices"]


def follow_notices(hub: EventHub, topology: Topology) -> None:
    """Have ``topology`` refreshed when a node has said that slots have moved.

    Commands would find out, too, by a MOVED each. Every connection of the cluster is told: with the
    same number it is the same news. Neither of the two keeps the other alive.
    """
    want = weakref.WeakMethod(topology.want)
    last: int | None = None

    def heard(event: Event) -> None:
        nonlocal last
        if not isinstance(event, MaintenanceAnnounced):
            return
        if event.kind is not MaintenanceKind.SMIGRATED:
            return
        if event.sequence is not None and event.sequence == last:
            return
        last = event.sequence
        if (refresh := want()) is not None:
            refresh()

    hub.listen(heard)
