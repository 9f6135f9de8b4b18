"""Failovers in the middle of the demo: each new token meets a cluster that changes its shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

from ..emulator import Emulator, EmulatorError, Node

__all__ = ["Failovers"]


class Failovers:
    """Has one primary after the other replaced, one at a time, and tells of it.

    Leaving it waits for the one that is under way; what failed is in ``failures``.
    """

    def __init__(self, emulator: Emulator, notify: Callable[[str], None]) -> None:
        self._emulator = emulator
        self._notify = notify
        self._running: asyncio.Task[None] | None = None
        self._next_shard = 0
        self.count = 0
        self.failures: list[str] = []

    def begin(self) -> None:
        """Begin the next one, unless one is under way. Returns at once."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._fail_over(), name="demo-failover")

    async def settled(self) -> None:
        """Wait for the end of the one that is under way. Cancelling it cancels that, too."""
        if self._running is not None:
            await asyncio.gather(self._running)

    async def _fail_over(self) -> None:
        try:
            primaries = sorted(
                (each for each in await self._emulator.nodes() if each.role == "primary"),
                key=lambda each: each.slots,
            )
            leaving = primaries[self._next_shard % len(primaries)]
            self._next_shard += 1
            begun = perf_counter()
            taking_over = await self._emulator.failover(leaving.number)
        except (EmulatorError, ValueError) as error:
            self.failures.append(f"a failover that was asked for did not happen: {error}")
            return
        self.count += 1
        self._notify(
            f"failover {self.count}: node {taking_over} took over {_slots(leaving)} "
            f"from node {leaving.number} in {(perf_counter() - begun) * 1000:.0f} ms"
        )


def _slots(node: Node) -> str:
    return "slots " + ", ".join(f"{first}-{last}" for first, last in node.slots)
