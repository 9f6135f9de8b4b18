"""Asking nodes who owns which slot: one after the other, but none for long alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from redis import exceptions as redis_exceptions

from .._multiplex._ending import ignore_outcome
from .._redaction import again
from ..errors import (
    ClusterModeError,
    ClusterUnreachableError,
    LifecycleError,
    SignInRefusedError,
    TokenError,
)
from ._addresses import Advertised, Destination, Refused
from ._nodes import Node
from ._shape import Shape, shape_of

__all__ = ["ask"]

STAGGER: Final = 0.5
"""Seconds that one node may take to answer until the next one is asked as well."""

Locate = Callable[[Advertised | Refused, Node], Destination | Refused]
"""Where a node is of which another one has told."""


_TELLING: Final = (TokenError, SignInRefusedError, LifecycleError, TypeError, ValueError)


async def ask(nodes: Iterable[Node], locate: Locate) -> tuple[Shape, Node]:
    """The first answer that covers all slots, else the one that covers most; and who gave it.

    Nodes are asked in their order. Raises ``ClusterUnreachableError`` where none has answered, or
    what tells more: why a token can't be had or is refused, and redis-py's RedisClusterException
    for a server that is no cluster. Cancelling it is safe.
    """
    waiting = list(nodes)
    running: dict[asyncio.Task[Shape], Node] = {}
    best: tuple[Shape, Node] | None = None
    failures: list[BaseException] = []
    try:
        while waiting or running:
            if waiting:
                node = waiting.pop(0)
                task = asyncio.ensure_future(_answer(node, locate))
                task.add_done_callback(ignore_outcome)
                running[task] = node
            done, _ = await asyncio.wait(
                running,
                timeout=STAGGER if waiting or best is not None else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if best is not None and not (done or waiting):
                break  # those who know more, if any, take too long
            for task in done:
                node = running.pop(task)
                if (error := task.exception()) is not None:
                    failures.append(error)
                    continue
                shape = task.result()
                if best is None or shape.covered > best[0].covered:
                    best = shape, node
            if best is not None and best[0].is_whole:
                break
        if best is None:
            raise _unreachable(failures)
        return best
    finally:
        for task in running:
            task.cancel()


async def _answer(node: Node, locate: Locate) -> Shape:
    try:
        reply = await node.execute_command("CLUSTER SLOTS")
    except redis_exceptions.NoPermissionError as exc:
        raise ClusterModeError(
            f"{node.name} denies CLUSTER SLOTS ({exc}), from which a cluster's client learns "
            "who owns which slot: permit it (+cluster|slots)"
        ) from exc
    except redis_exceptions.ResponseError as exc:
        raise ClusterModeError(
            f"Cluster mode is not enabled on this node ({node.name}: {exc}): it is not a "
            "cluster, or has the Enterprise cluster policy. Leave out cluster=True, or use "
            "EntraRedis"
        ) from exc
    return shape_of(reply, lambda advertised: locate(advertised, node))


def _unreachable(failures: list[BaseException]) -> BaseException:
    """The error for an inquiry that nobody has answered; never one that a frame refers to."""
    for failure in failures:
        if isinstance(
            failure, (TokenError, SignInRefusedError, LifecycleError, TypeError, ValueError)
        ):
            return again(failure)
    last = failures[-1]
    if isinstance(last, redis_exceptions.RedisClusterException):
        return again(last)
    error = ClusterUnreachableError(
        f"Redis Cluster cannot be connected. Please provide at least one reachable node: {last}",
        stage=getattr(last, "stage", "tcp"),
        host=getattr(last, "host", None),
        port=getattr(last, "port", None),
    )
    error.__cause__ = last
    return error
