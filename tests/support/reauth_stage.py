"""One connection with its re-authentication task, between fakes on both sides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from redis.exceptions import AuthenticationError
from support.token_fakes import EPOCH

from aioentra_redis._broadcast import Broadcast, Subscription
from aioentra_redis._events import (
    ConnectionState,
    Event,
    EventHub,
    RefreshFailed,
    TokenState,
)
from aioentra_redis._multiplex._ledger import Ledger
from aioentra_redis._multiplex._reauth import Reauthenticator
from aioentra_redis._multiplex._rotation import Rotation
from aioentra_redis._servers import Servers
from aioentra_redis._token import Token
from aioentra_redis.errors import ConnectionLostError

S = ConnectionState


def now() -> float:
    return asyncio.get_running_loop().time()


def token(version: int, *, life: float = 10.0) -> Token:
    """A token that is issued now."""
    at = EPOCH + (now() if asyncio._get_running_loop() else 0.0)
    return Token(
        f"secret-{version}",
        username="u",
        expires_on=at + life,
        issued_on=at,
        first_seen=at,
        version=version,
    )


class Source:
    """A token source without a credential."""

    def __init__(self) -> None:
        self.broadcast = Broadcast()
        self._servers = Servers(8, lambda event: None)

    @property
    def current(self) -> Token | None:
        return self.broadcast.current

    def subscribe(self, after: int | None = None) -> Subscription:
        return self.broadcast.subscribe(after)

    def now(self, _token: object = None) -> float:
        return EPOCH + now()


class Connection:
    """A connection whose AUTHs the test answers, and which the test replaces or ends."""

    name = "connection-1"
    host = "peer"
    closed = False
    held_up = False
    paces_itself = False

    def withdraw_auth(self) -> None: ...

    def __init__(self, held: Token, latency: float = 0.01) -> None:
        self.ledger = Ledger(self.name, held, latency)
        self.auths: list[tuple[float, Token, asyncio.Future[Any]]] = []
        self.answer: Callable[[asyncio.Future[Any]], Any] = lambda future: None

    def authenticate(self, token: Token) -> asyncio.Future[Any]:
        if self.closed:
            raise ConnectionLostError("closed")
        future = asyncio.get_running_loop().create_future()
        self.auths.append((now(), token, future))
        self.answer(future)
        return future

    @property
    def versions(self) -> list[int]:
        return [token.version for _, token, _ in self.auths]

    @property
    def times(self) -> list[float]:
        return [round(at, 2) for at, _, _ in self.auths]

    def lose(self) -> None:
        self.closed = True
        self.ledger.close()
        for _, _, future in self.auths:
            if not future.done():
                future.set_exception(ConnectionLostError("lost"))


def after(seconds: float, value: Any = b"OK") -> Callable[[asyncio.Future[Any]], Any]:
    """An answer that comes that much later."""

    def answer(future: asyncio.Future[Any]) -> None:
        def give() -> None:
            if future.done():
                return
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)

        asyncio.get_running_loop().call_later(seconds, give)

    return answer


refused = AuthenticationError("WRONGPASS invalid username-password pair")


class Stage:
    """One connection with its task, the source and the events."""

    def __init__(self, latency: float = 0.01, life: float = 10.0) -> None:
        self.source = Source()
        self.source.broadcast.publish(token(1, life=life))
        assert self.source.current is not None
        self.connection = Connection(self.source.current, latency)
        self.ledger = self.connection.ledger
        self.events: list[Event] = []
        self.hub = EventHub()
        self.hub.listen(self.events.append)
        self.replacements: list[float] = []
        self.cancelled_replacements = 0
        self.replacing: Callable[[], Any] = self.no_replacement
        self.task: asyncio.Task[None] | None = None

    async def no_replacement(self) -> None:
        raise OSError("no route")

    def takes(self, seconds: float) -> Callable[[], Any]:
        """A replacement that takes over after that many seconds."""

        async def replace() -> None:
            await asyncio.sleep(seconds)
            self.ledger.move_to(S.DRAINING)

        return replace

    async def _replace(self, old: Any, reason: str) -> None:
        assert old is self.connection
        self.replacements.append(round(now(), 2))
        try:
            await self.replacing()
        except asyncio.CancelledError:
            self.cancelled_replacements += 1
            raise

    def start(self, only: Rotation | None = None) -> None:
        reauthenticator = Reauthenticator(
            self.connection,
            self.source,
            replace=self._replace,
            hub=self.hub,  # type: ignore[arg-type]
            only=only,
        )
        self.task = asyncio.get_running_loop().create_task(reauthenticator.run())

    def publish(self, version: int, *, life: float = 10.0) -> Token:
        new = token(version, life=life)
        self.source.broadcast.publish(new)
        return new

    def fail_to_refresh(self) -> None:
        failure = RefreshFailed("s", OSError(), 3, 1.0, TokenState.DEGRADED)
        self.source.broadcast.publish_error(failure)

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
