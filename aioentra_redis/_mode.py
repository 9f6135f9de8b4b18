"""Which mode the server is in: one endpoint, or a node of a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

from redis import exceptions as redis_exceptions

from ._multiplex._connection import MultiplexedConnection
from ._redis_py import server_mode
from .errors import ConnectionLostError

__all__ = ["is_cluster_node"]


async def is_cluster_node(multiplexed: MultiplexedConnection) -> bool:
    """Whether the server is a node of an OSS cluster.

    Asked with CLUSTER SLOTS, whose answer counts; where it is denied, HELLO's ``mode`` does.
    """
    mode: Any = None
    nodes: Any = None
    for _ in range(3):  # both only ask, so a lost connection is no answer
        session = await multiplexed.admit()
        try:
            hello, slots = session.submit(("HELLO",)), session.submit(("CLUSTER", "SLOTS"))
        except ConnectionLostError as exc:
            nodes = exc
            continue
        finally:
            session.admitted()
        mode, nodes = await asyncio.gather(hello, slots, return_exceptions=True)
        if not isinstance(nodes, ConnectionLostError):
            break
    if isinstance(nodes, list):
        return bool(nodes)
    if isinstance(nodes, redis_exceptions.NoPermissionError):
        return server_mode(mode) == "cluster"
    if isinstance(nodes, redis_exceptions.ResponseError):
        return False
    raise nodes
