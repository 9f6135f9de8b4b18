"""What redis-py's cluster tests mock, done to our nodes.

Those tests replace what redis-py's ``ClusterNode`` sends and reads with: its ``execute_command``,
its ``parse_response``, the connections in its ``_free``, methods of ``Connection``. Ours sends on a
multiplexed connection, which knows none of these. So that such a test still says something of our
way of a command (where it is sent, and sent again), a node that a test has mocked sends as
redis-py's own does, for as long as it is mocked; every other node is as in the product.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection

from aioentra_redis._cluster import _client
from aioentra_redis._cluster._nodes import _NOT_CONNECTED, Node
from aioentra_redis._redis_py import lease_now

__all__ = ["MockableNode", "use_mockable_nodes"]

STOCK = ClusterNode
WATCHED = ("execute_command", "parse_response")
ORIGINAL = {name: getattr(Connection, name) for name in ("send_command", "read_response")}


class MockableNode(Node):
    """A node that goes redis-py's way while a test mocks something of that way."""

    execute_pipeline = STOCK.execute_pipeline
    parse_response = STOCK.parse_response

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.is_mocked:
            return await STOCK.execute_command(self, *args, **options)
        return await Node.execute_command(self, *args, **options)

    @property
    def is_mocked(self) -> bool:
        """Whether a test has put mocks where redis-py's node would use them."""
        if any(isinstance(each, mock.NonCallableMock) for each in self._free):
            return True
        if any(getattr(MockableNode, name) is not it for name, it in UNTOUCHED.items()):
            return True
        return any(getattr(Connection, name) is not it for name, it in ORIGINAL.items())

    # -- what the product asks a node ------------------------------------------------------------

    @property
    def multiplexed(self) -> Any:
        return _NOT_CONNECTED if self.is_mocked else self._multiplexed

    @multiplexed.setter
    def multiplexed(self, it: Any) -> None:
        self._multiplexed = it

    @property
    def is_connected(self) -> bool:
        return self.is_mocked or super().is_connected

    @property
    def client(self) -> Any:
        return StandIn(self) if self.is_mocked else self._own_client

    @property
    def _own_client(self) -> Any:
        return super().client

    # -- what redis-py's own way asks of one -----------------------------------------------------

    def acquire_connection(self) -> Any:
        if self._free:
            return self._free.popleft()
        return lease_now(self._own_client.connection_pool)

    def release(self, connection: Any) -> None:
        if isinstance(connection, mock.NonCallableMock):
            self._free.append(connection)
        else:
            super().release(connection)


UNTOUCHED = {name: getattr(MockableNode, name) for name in WATCHED}


class StandIn:
    """What stands in for the client of a node that is mocked."""

    def __init__(self, node: MockableNode) -> None:
        self._node = node

    async def attempt(
        self, plan: Any, args: tuple[Any, ...], options: dict[str, Any], *, asking: bool
    ) -> Any:
        if asking:
            await self._node.execute_command("ASKING")
        return await self._node.execute_command(*args, **options)


def use_mockable_nodes() -> None:
    """Have our cluster clients make such nodes from now on."""
    _client.Node = MockableNode  # type: ignore[misc]
