"""Which mode the server is in: one endpoint, or a node of a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

from redis import exceptions as redis_exceptions

from ._multiplex._connection import MultiplexedConnection
from ._redis_py import Answers, server_mode
from .errors import ConnectionLostError

__all__ = ["is_cluster", "is_cluster_node"]


def is_cluster(slots: Any, hello: Any) -> bool | None:
    """What the replies to CLUSTER SLOTS, or its error, and to HELLO say; None: nothing yet.

    Slots count. Where they are denied, HELLO's ``mode`` does, which is a hint only: what Redis
    Enterprise says there is not documented.
    """
    if isinstance(slots, list):
        return bool(slots)
    if isinstance(slots, redis_exceptions.NoPermissionError):
        mode = server_mode(hello)
        return None if mode is None else mode == "cluster"
    if isinstance(slots, redis_exceptions.ResponseError):
        return False
    return None


async def is_cluster_node(multiplexed: MultiplexedConnection, answers: Answers | None) -> bool:
    """Whether the server is a node of an OSS cluster, by its ``answers`` if it gave any.

    Else it is asked, on the connection that stands. Raises what that raises; cancelling it is safe.
    """
    said = None if answers is None else is_cluster(answers.slots, answers.hello)
    if said is not None:
        return said
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
    said = is_cluster(nodes, mode)
    denied = isinstance(nodes, redis_exceptions.NoPermissionError)
    if said is None and isinstance(nodes, Exception) and not denied:
        raise nodes
    return bool(said)
