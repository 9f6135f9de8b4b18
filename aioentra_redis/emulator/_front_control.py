"""What can be done to connections, and to signing in on them: methods of the control channel."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Callable
from typing import Any

from ._control import Method
from ._front import Chosen, Front
from ._settings import Countdown, Faults

__all__ = ["FrontControl"]


class FrontControl:
    """Faults at the front: of all nodes, or of one where ``node`` is its number.

    ``check`` raises ValueError for the number of a node that there is not.
    """

    def __init__(self, front: Front, faults: Faults, check: Callable[[int | None], None]) -> None:
        self._front = front
        self._faults = faults
        self._check = check

    def methods(self) -> dict[str, Method]:
        """What can be called, by name."""
        return {
            "abandon_connections": self.abandon_connections,
            "connections": self.connections,
            "cut_replies": self.cut_replies,
            "delay_auth": self.delay_auth,
            "drop_connections": self.drop_connections,
            "freeze_connections": self.freeze_connections,
            "hang_auth": self.hang_auth,
            "inject_reply": self.inject_reply,
            "refuse_auth": self.refuse_auth,
            "revoke": self.revoke,
        }

    def _chosen(self, connection: int | None, node: int | None) -> Chosen:
        self._check(node)
        return Chosen(connection, node)

    # ---------------------------------------------------------------------------------- signing in

    async def refuse_auth(self, *, times: int | None, node: int | None) -> None:
        self._check(node)
        self._faults.at(node).refusals = Countdown(times)

    async def delay_auth(self, *, seconds: float, node: int | None) -> None:
        self._check(node)
        self._faults.at(node).auth_delay = seconds

    async def hang_auth(self, *, times: int | None, node: int | None) -> None:
        self._check(node)
        self._faults.at(node).auth_hangs = Countdown(times)

    async def revoke(self, *, object_id: str, node: int | None) -> None:
        self._check(node)
        self._faults.at(node).revoked.add(object_id.lower())

    # --------------------------------------------------------------------------------- connections

    async def connections(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(each) for each in self._front.open_connections()]

    async def drop_connections(
        self, *, connection: int | None, object_id: str | None, node: int | None
    ) -> int:
        dropped = self._front.drop(self._chosen(connection, node), object_id=object_id)
        for _ in range(3):
            await asyncio.sleep(0)  # the sockets are closed in the loop's next turns: wait for that
        return dropped

    async def freeze_connections(
        self, *, connection: int | None, new: bool, execute: bool, node: int | None
    ) -> int:
        chosen = self._chosen(connection, node)
        if new:
            faults = self._faults.at(node)
            faults.new_frozen, faults.new_executes = True, execute
        return self._front.freeze(chosen, executes=execute)

    async def abandon_connections(self, *, connection: int | None, node: int | None) -> int:
        return self._front.abandon(self._chosen(connection, node))

    async def cut_replies(self, *, after: int, connection: int | None, node: int | None) -> int:
        if after < 0:
            raise ValueError("after= is a number of bytes, 0 or more")
        return self._front.cut_replies(after, self._chosen(connection, node))

    async def inject_reply(self, *, data: str, connection: int | None, node: int | None) -> int:
        return self._front.inject(base64.b64decode(data), self._chosen(connection, node))
