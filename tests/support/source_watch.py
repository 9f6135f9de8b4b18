"""What tests of token sources share."""

from __future__ import annotations

import asyncio

from aioentra_redis._events import (
    Event,
    TokenState,
    TokenStateChanged,
)


async def at(seconds: float) -> None:
    """Sleep until that many seconds after the test's start."""
    await asyncio.sleep(seconds - asyncio.get_running_loop().time())


def states(events: list[Event]) -> list[TokenState]:
    return [event.new for event in events if isinstance(event, TokenStateChanged)]
