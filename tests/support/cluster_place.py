"""Cluster clients over scripted peers, without sockets: for tests in virtual time.

Who owns what is a matter of ``shape``: rows of first slot, last slot, and the ports of the primary
and its replicas. Every peer answers CLUSTER SLOTS by it, unless the test says otherwise.
"""

from __future__ import annotations

import asyncio
from typing import Any

from support.scripted_peer import Peer, bulk

from aioentra_redis import EntraRedisCluster
from aioentra_redis._cluster._slots import slot_of
from aioentra_redis._redis_py import packer

__all__ = ["ClusterPlace", "key_in", "slots_reply"]

HOST = "10.0.0.1"
Row = tuple[int, ...]

_KNOWN = (("get", 1), ("set", 1), ("incr", 1), ("del", -1), ("blpop", -2))


def slots_reply(shape: list[Row], host: str = HOST) -> bytes:
    """The answer to CLUSTER SLOTS."""
    rows = b""
    for first, last, *ports in shape:
        rows += b"*%d\r\n:%d\r\n:%d\r\n" % (2 + len(ports), first, last)
        for port in ports:
            rows += b"*3\r\n" + bulk(host) + b":%d\r\n" % port + bulk(f"id{port}")
    return b"*%d\r\n" % len(shape) + rows


def key_in(first: int, last: int, start: str = "key") -> str:
    """A key whose slot is one of these."""
    return next(
        key for n in range(100_000) if first <= slot_of((key := f"{start}{n}").encode()) <= last
    )


def _commands(*_: bytes) -> bytes:
    each = b"*7\r\n%b:-2\r\n*0\r\n:1\r\n:%d\r\n:1\r\n*0\r\n"
    return b"*%d\r\n" % len(_KNOWN) + b"".join(each % (bulk(n), last) for n, last in _KNOWN)


class ClusterPlace:
    """Three nodes, ports 1 to 3, and clients of them; ``down`` are the ports that refuse."""

    def __init__(self) -> None:
        self.shape: list[Row] = [(0, 5000, 1), (5001, 10000, 2), (10001, 16383, 3)]
        self.peers = {port: self._peer(port) for port in (1, 2, 3, 4)}
        self.down: set[int] = set()
        self.silent: set[int] = set()
        self.dials: list[int] = []
        self.hosts: list[str] = []
        self.clients: list[EntraRedisCluster] = []
        a, b, c = (key_in(first, last) for first, last, *_ in self.shape)
        self.key = {1: a, 2: b, 3: c}
        """For each port a key of its."""

    def _peer(self, port: int) -> Peer:
        return Peer(CLUSTER=lambda *words: self.cluster(port, *words), COMMAND=_commands)

    def cluster(self, port: int, *words: bytes) -> Any:
        if words[1:2] == [b"MYID"] or words[1] == b"MYID":
            return bulk(f"id{port}")
        return slots_reply(self.shape)

    async def dial(self, pool: Any) -> Any:
        port = pool.connection_kwargs["port"]
        self.dials.append(port)
        self.hosts.append(pool.connection_kwargs["host"])
        await asyncio.sleep(0)
        if port in self.silent:
            await asyncio.sleep(10)
        if port in self.down or port in self.silent:
            raise ConnectionRefusedError(111, "Connect call failed")
        connection = pool.connection_class(**pool.connection_kwargs)
        return self.peers[port].dialed(
            pack=packer(connection),
            reply_error=connection._parser.parse_error,  # that of redis-py 5 is clusters' own
        )

    def client(self, port: int = 1, **options: Any) -> EntraRedisCluster:
        made = EntraRedisCluster(HOST, port, **{"close_timeout": 0.01, **options})
        self.clients.append(made)
        return made

    def fail(self, port: int) -> None:
        """The node is gone: its connections end, and it takes no new ones."""
        self.down.add(port)
        self.peers[port].cut()

    def seen(self, name: str) -> dict[int, int]:
        """How many commands of that name each node has seen, where there were any."""
        found = {port: len(peer.seen(name)) for port, peer in self.peers.items()}
        return {port: number for port, number in found.items() if number}

    async def aclose(self) -> None:
        for client in self.clients:
            await client.aclose()
