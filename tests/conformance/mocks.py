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

__all__ = ["MockableNode", "use_mockable_nodes"]

STOCK = ClusterNode


class MockableNode(Node):
    """A node that goes redis-py's way while a test mocks something of that way."""

    parse_response = STOCK.parse_response

    async def execute_command(
        self, *args: Any, asking: bool = False, connect: bool = True, **options: Any
    ) -> Any:
        if not self.is_mocked:
            return await Node.execute_command(
                self, *args, asking=asking, connect=connect, **options
            )
        if asking and args[0] != "HIMPORT SET":  # which redis-py puts ASKING in front of itself
            await STOCK.execute_command(self, "ASKING")
            asking = False
        return await STOCK.execute_command(self, *args, asking=asking, **options)

    async def execute_pipeline(self, commands: Any) -> bool:
        if not self.is_mocked:
            return await Node.execute_pipeline(self, commands)
        return await STOCK.execute_pipeline(self, commands)

    @property
    def is_mocked(self) -> bool:
        """Whether a test has put mocks where redis-py's node would use them.

        One that no client of ours has made is redis-py's own as a whole.
        """
        if self._common is None:
            return True
        if any(isinstance(each, mock.NonCallableMock) for each in self._free):
            return True
        return any(
            getattr(owner, name) is not it
            for owner, names in UNTOUCHED.items()
            for name, it in names.items()
        )

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
    def was_connected(self) -> bool:
        return self.is_mocked or super().was_connected

    # -- what redis-py's own way asks of one -----------------------------------------------------

    def acquire_connection(self) -> Any:
        if self._common is None:
            return STOCK.acquire_connection(self)
        return self._free.popleft() if self._free else super().acquire_connection()

    def release(self, connection: Any) -> None:
        if self._common is None:
            STOCK.release(self, connection)
        elif isinstance(connection, mock.NonCallableMock):
            self._free.append(connection)
        else:
            super().release(connection)


UNTOUCHED: dict[type, dict[str, Any]] = {
    MockableNode: {
        name: getattr(MockableNode, name) for name in ("execute_command", "parse_response")
    },
    Connection: {name: getattr(Connection, name) for name in ("send_command", "read_response")},
}
"""What tests replace."""


def use_mockable_nodes() -> None:
    """Have our cluster clients make such nodes from now on."""
    _client.Node = MockableNode  # type: ignore[misc]
