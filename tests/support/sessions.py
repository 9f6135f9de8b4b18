"""What tests of sessions share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from support.scripted_peer import Wire
from support.token_fakes import EPOCH

from aioentra_redis._multiplex._session import Session
from aioentra_redis._token import Token

TOKEN = Token("s3cret", username="user-1", expires_on=EPOCH + 3600, first_seen=EPOCH)


class Owner:
    """Who makes a session and hears of its end."""

    def __init__(self) -> None:
        self.lost: list[tuple[Session, Exception | None]] = []

    def __call__(self, session: Session, cause: Exception | None) -> None:
        self.lost.append((session, cause))


Open = Callable[..., tuple[Session, Wire]]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def outcome(future: asyncio.Future[Any]) -> Any:
    """What became of the future, as a value."""
    try:
        return await future
    except Exception as exc:
        return exc
