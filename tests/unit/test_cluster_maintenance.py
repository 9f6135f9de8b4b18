"""Maintenance in a cluster: slots that are said to have moved are looked up, and nobody waits."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.scripted_peer import Peer, bulk

from aioentra_redis import EntraRedisCluster, MaintenanceAnnounced, MaintenanceKind
from aioentra_redis.errors import CommandTimeoutError

pytestmark = pytest.mark.capability("maintenance_notifications")


def pushed(*words: Any) -> bytes:
    parts = [b":%d\r\n" % word if isinstance(word, int) else bulk(word) for word in words]
    return b">%d\r\n" % len(words) + b"".join(parts)


def migrated(sequence: int) -> bytes:
    rows = b"*1\r\n*3\r\n" + bulk("127.0.0.1:1") + bulk("127.0.0.1:2") + bulk("1-100")
    return b">3\r\n" + bulk("SMIGRATED") + b":%d\r\n" % sequence + rows


class OneNode(Peer):
    """A cluster of one node, which knows GET and SET."""

    def __init__(self) -> None:
        super().__init__(CLUSTER=self.slots, COMMAND=self.known)

    def slots(self, *_: bytes) -> bytes:
        node = bulk("127.0.0.1") + b":%d\r\n" % self.port + bulk("id")
        return b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n" + node

    def known(self, *_: bytes) -> bytes:
        one = b"*10\r\n%b:-2\r\n*0\r\n:1\r\n:1\r\n:1\r\n" + 4 * b"*0\r\n"
        return b"*2\r\n" + one % bulk("get") + one % bulk("set")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)  # and no more than that


async def test_slots_that_have_moved_are_looked_up_once() -> None:
    peer, events = OneNode(), list[Any]()
    async with peer.serve() as port:
        client = EntraRedisCluster("127.0.0.1", port, on_event=events.append)
        assert await client.set("key", "value")
        before = len(peer.seen("CLUSTER"))
        for _ in range(3):
            peer.push(migrated(7))
        await until(lambda: len(peer.seen("CLUSTER")) == before + 1)
        peer.push(migrated(8))
        await until(lambda: len(peer.seen("CLUSTER")) == before + 2)
        peer.push(pushed("SMIGRATING", 9, "1-100"))
        assert await client.get("key") == b"value"
        assert len(peer.seen("CLUSTER")) == before + 2
        seen = [event for event in events if isinstance(event, MaintenanceAnnounced)]
        assert [event.sequence for event in seen] == [7, 7, 7, 8, 9]
        assert seen[0].moves == (("127.0.0.1:1", "127.0.0.1:2", "1-100"),)
        assert seen[-1].kind is MaintenanceKind.SMIGRATING
        await client.aclose()


async def test_a_failover_that_is_announced_is_waited_for_as_the_user_said() -> None:
    from redis.maint_notifications import MaintNotificationsConfig

    peer = OneNode()
    config = MaintNotificationsConfig(enabled=True, relaxed_timeout=1.5)
    async with peer.serve() as port:
        client = EntraRedisCluster(
            "127.0.0.1", port, socket_timeout=0.2, maint_notifications_config=config
        )
        assert await client.set("key", "value")
        assert [b"CLIENT", b"MAINT_NOTIFICATIONS", b"ON"] in [
            words[:3] for words in peer.seen("CLIENT")
        ]
        peer.push(pushed("FAILING_OVER", 1, 20))
        peer.script["GET"] = [[0.6, bulk("late")], [0.6, bulk("late")]]
        assert await client.get("key") == b"late"
        peer.push(pushed("FAILED_OVER", 1))
        await asyncio.sleep(0.05)
        with pytest.raises(CommandTimeoutError):
            await client.get("key")
        await client.aclose()


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
async def test_a_closed_client_is_gone_without_the_garbage_collector() -> None:
    peer = OneNode()
    async with peer.serve() as port:
        client = EntraRedisCluster("127.0.0.1", port)
        assert await client.set("key", "value")
        peer.push(migrated(7))
        await until(lambda: len(peer.seen("CLUSTER")) == 2)
        await client.aclose()
        gone, topology = weakref.ref(client), weakref.ref(client.nodes_manager)
        del client
        await asyncio.sleep(0.05)
        assert gone() is None
        assert topology() is None
