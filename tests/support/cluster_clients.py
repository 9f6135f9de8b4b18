"""redis-py's cluster client and ours, made alike: what is proved of ours is measured of both."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from aioentra_redis import EntraRedisCluster

from .server_cluster import ServerCluster

__all__ = ["KINDS", "OURS", "PLAIN", "cluster_client"]

OURS = "ours"
PLAIN = "redis-py"
KINDS = (
    pytest.param(
        PLAIN,
        marks=[
            pytest.mark.xfail(strict=False, reason="the baseline: what redis-py's own client does"),
            pytest.mark.filterwarnings("ignore"),
        ],
    ),
    OURS,
)
"""redis-py's is the baseline: its figures are shown, and how it ended decides nothing."""


def cluster_client(kind: str, cluster: ServerCluster, **options: Any) -> RedisCluster:
    """A client of one of ``KINDS``, to enter or to await."""
    host, port = cluster.startup
    if kind == OURS:
        return EntraRedisCluster(host, port, **options)
    return RedisCluster(host, port, **{"protocol": 3, **options})
