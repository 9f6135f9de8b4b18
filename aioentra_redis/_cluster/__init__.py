"""``EntraRedisCluster``: the name of the cluster client, which this version does not have yet."""

from __future__ import annotations

from typing import Any

import redis.asyncio

from ..errors import ClusterModeError

__all__ = ["EntraRedisCluster", "no_cluster_client"]


def no_cluster_client(where: str) -> ClusterModeError:
    """The error for a cluster that was met before there is a client for it."""
    return ClusterModeError(
        f"{where} is a cluster, and this version of aioentra_redis has no cluster client yet. On "
        "Azure Managed Redis choose the Enterprise or the non-clustered policy, or use "
        "redis.asyncio.RedisCluster with a credential provider meanwhile"
    )


class EntraRedisCluster(redis.asyncio.RedisCluster):
    """A ``redis.asyncio.RedisCluster`` that signs in with Entra ID tokens; not available yet.

    The type is here so that programs can be written, and checked, against ``connect``'s overloads.
    Making one raises ``ClusterModeError``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise no_cluster_client("this")

    def __del__(self, *args: Any) -> None:
        """Nothing was opened."""
