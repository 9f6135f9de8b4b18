"""A server that goes on at another endpoint: a session there takes over before the old one ends.

The server says so a while ahead (``MOVING``), and redis-py has connections made at the new endpoint
from then on. What is in flight on the old session gets its replies there.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from .._events import ConnectionState, EventHub, MaintenanceAnnounced, MaintenanceKind
from ._reauth import keep_running

if TYPE_CHECKING:
    from .._supervision import Supervised
    from ._session import Session

__all__ = ["Moves"]

logger = logging.getLogger("aioentra_redis.connection")

SECONDS: Final = 30.0
"""For how long a move is tried where the server does not say when it closes the old endpoint."""

SPREAD: Final = 1.0
"""Seconds, at most and no more than a tenth of the time there is, within which clients begin to
move, each at random: all were told at the same moment."""

FIRST_DELAY: Final = 0.1
LAST_DELAY: Final = 2.0
"""Seconds between attempts: doubled from the first to the last, each shortened at random."""

Replace = Callable[["Session", str, None], Awaitable[None]]
"""Opens a session beside another one and lets it take over, for that reason, which is no token."""


class Moves:
    """The move that is under way, if there is one."""

    def __init__(self) -> None:
        self.running: Supervised | None = None
        self._what: tuple[Session, str | None] | None = None

    def announced(
        self, session: Session, notice: MaintenanceAnnounced, replace: Replace, hub: EventHub
    ) -> None:
        """Have ``session`` moved, if that is what ``notice`` is about; once, however often told."""
        if notice.kind is not MaintenanceKind.MOVING:
            return
        what = session, notice.target
        if self.running is not None:
            if what == self._what and not self.running.done():
                return
            self.running.stop()
        self._what = what
        seconds = notice.seconds if notice.seconds is not None and notice.seconds > 0 else SECONDS
        deadline = asyncio.get_running_loop().time() + seconds
        self.running = keep_running(
            lambda: _move(session, notice.target, deadline, replace), "move", hub
        )

    def over(self, session: Session) -> None:
        """``session`` has ended: there is nothing to move."""
        if self._what is not None and self._what[0] is session:
            self._what = None
            if self.running is not None:
                self.running.stop()
                self.running = None


async def _move(session: Session, target: str | None, deadline: float, replace: Replace) -> None:
    """Replace ``session`` until that has worked, it is lost, or the old endpoint's time is up."""
    loop = asyncio.get_running_loop()
    seconds = deadline - loop.time()
    wait = random.uniform(0, min(SPREAD, seconds / 10))
    if target is None:
        wait += seconds / 2  # by then the name that was connected to leads to the new endpoint
    await asyncio.sleep(wait)
    reason = f"the server goes on at {target or 'another endpoint'}"
    delay = FIRST_DELAY
    while not session.closed and session.ledger.state is not ConnectionState.DRAINING:
        try:
            await replace(session, reason, None)
        except Exception as exc:
            if loop.time() + delay > deadline:
                logger.warning("%s could not move to %s: %s", session.name, target, exc)
                return
            logger.info("%s has not moved to %s yet: %s", session.name, target, exc)
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, LAST_DELAY)
