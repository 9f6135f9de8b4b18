"""``EntraRedisCluster``: redis-py's cluster client with every node multiplexed and signed in."""

from ._client import EntraRedisCluster

__all__ = ["EntraRedisCluster"]
