"""A slot that moves from one primary to another, step by step, and may be left half-way."""

from __future__ import annotations

from binascii import crc_hqx

from .server_cluster import SLOTS, ClusterNode, ServerCluster

__all__ = ["Migration", "slot_of"]


def slot_of(key: str) -> int:
    """The slot of a key; only what is in the first braces counts, if there is anything in them."""
    start = key.find("{")
    end = key.find("}", start + 1)
    if start >= 0 and end > start + 1:
        key = key[start + 1 : end]
    return crc_hqx(key.encode(), 0) % SLOTS


class Migration:
    """``await Migration.begin(cluster, slot, target)``, then the other steps, or none of them.

    While it lasts, the source answers with ASK for the keys that it doesn't have, and TRYAGAIN
    where it has some of a command's keys and not all.
    """

    def __init__(
        self, cluster: ServerCluster, slot: int, source: ClusterNode, target: ClusterNode
    ) -> None:
        self._cluster = cluster
        self.slot = slot
        self.source = source
        self.target = target

    @classmethod
    async def begin(cls, cluster: ServerCluster, slot: int, target: ClusterNode) -> Migration:
        """The slot is marked on both sides; no key has moved."""
        made = cls(cluster, slot, await cluster.owner(slot), target)
        assert made.source is not target, f"{target.name} has slot {slot} already"
        await target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", made.source.id)
        await made.source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return made

    async def move(self, *keys: str) -> None:
        """Move these keys."""
        host, port = self._cluster.host, self.target.port
        await self.source.call("MIGRATE", host, port, "", 0, 5000, "KEYS", *keys)

    async def move_all(self) -> int:
        """Move whatever keys the source still has; returns how many. Nobody can add any to it."""
        moved = 0
        async with self.source.link() as call:
            while keys := await call("CLUSTER", "GETKEYSINSLOT", self.slot, 100):
                host, port = self._cluster.host, self.target.port
                await call("MIGRATE", host, port, "", 0, 5000, "KEYS", *keys)
                moved += len(keys)
        return moved

    async def finish(self) -> None:
        """The slot is the target's, and every primary is told so at once."""
        told = [self.target, self.source]
        told += [node for node in await self._cluster.primaries() if node not in told]
        for node in told:
            await node.call("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.id)

    async def abandon(self) -> None:
        """Both sides forget of it; keys that have moved are lost to sight."""
        for node in (self.target, self.source):
            await node.call("CLUSTER", "SETSLOT", self.slot, "STABLE")

    @classmethod
    async def whole(cls, cluster: ServerCluster, slot: int, target: ClusterNode) -> int:
        """All steps; returns how many keys have moved."""
        made = await cls.begin(cluster, slot, target)
        moved = await made.move_all()
        await made.finish()
        return moved
