"""What a sign-in or an AUTH has to pass: per server and token source, a budget and a breaker.

A server is known by where it is reached, ``host:port``, so one that refuses tokens stops no other,
and its connections of all kinds, of all clients of a source, share what is learned of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from redis import exceptions as redis_exceptions

from ._breaker import Breaker, BreakerState
from ._budget import Budget, Slot
from ._diagnosis import explain
from ._events import BreakerClosed, BreakerOpened, Event
from ._redaction import again
from ._schedule import SLOT_HOLD
from ._token import Token
from .errors import EntraRedisError, SignInRefusedError

__all__ = ["Attempt", "Server", "Servers", "is_refusal", "server_of"]

logger = logging.getLogger("aioentra_redis.breaker")

PROBE_PATIENCE: Final = SLOT_HOLD
"""Seconds that who needs a new connection waits for the outcome of somebody else's probe."""

KEPT: Final = 64
"""Servers that are remembered; past that only those that there is something to remember of."""


class _HasServers(Protocol):
    _servers: Servers


def server_of(source: _HasServers, where: str) -> Server:
    """What is known of the server at ``where``, for the tokens of ``source``."""
    return source._servers.of(where)


def is_refusal(error: BaseException | None) -> bool:
    """Whether that is, or comes from, a server's refusal of a token.

    Ours for the lack of a token are of that kind, too, and a server may deny other commands.
    """
    seen = 0
    while error is not None and seen < 10:
        theirs = not isinstance(error, EntraRedisError)
        if theirs and isinstance(error, redis_exceptions.AuthenticationError):
            return True
        error, seen = error.__cause__, seen + 1
    return False


class Servers:
    """The servers that the tokens of one source are sent to."""

    def __init__(self, limit: int, emit: Callable[[Event], None]) -> None:
        self._limit = limit
        self._emit = emit
        self._known: dict[str, Server] = {}

    def of(self, name: str) -> Server:
        """The one that is reached there."""
        server = self._known.get(name)
        if server is None:
            if len(self._known) >= KEPT:
                self._forget_the_idle()
            server = self._known[name] = Server(name, self._limit, self._emit)
        return server

    def _forget_the_idle(self) -> None:
        """A cluster may move through many addresses in a year."""
        for name in [name for name, server in self._known.items() if server.is_idle]:
            del self._known[name]


class Attempt:
    """One sign-in or AUTH from its sending to its end; the first word about that counts."""

    def __init__(self, server: Server, version: int, probe: bool, slot: Slot | None) -> None:
        self._server = server
        self._version = version
        self._probe = probe
        self._slot = slot
        self._ended = False

    def accepted(self, version: int | None = None) -> None:
        """The server took the token."""
        if self._end():
            self._server._accepted(self._version if version is None else version)
            if self._probe:
                # If it was an older one than the one refused, that says nothing of the latter.
                self._server._unanswered()

    def refused(self, error: BaseException, token: Token | None) -> None:
        """The server answered with an error; if that is no refusal it says nothing."""
        if self._end():
            if isinstance(error, Exception) and is_refusal(error):
                version = token.version if token is not None else self._version
                self._server._refused(version, error, token, probe=self._probe)
            else:
                self._unanswered()

    def over(self) -> None:
        """It ended without an answer."""
        if self._end():
            self._unanswered()

    def _unanswered(self) -> None:
        if self._probe:
            self._server._unanswered()

    def _end(self) -> bool:
        ended, self._ended = self._ended, True
        if self._slot is not None:
            self._slot.release()
        return not ended


class Server:
    """One server, as one token source sees it."""

    def __init__(self, name: str, limit: int, emit: Callable[[Event], None]) -> None:
        self.name = name
        self.budget = Budget(limit)
        self.breaker = Breaker()
        self.emit = emit
        """Tells those who listen to the source."""
        self._error: SignInRefusedError | None = None
        self._listeners: dict[object, Callable[[], None]] = {}

    # -- questions -------------------------------------------------------------------------------

    def admits(self, token: Token | None, *, demand: bool = False) -> bool:
        """Whether ``token`` may be sent now; see ``Breaker``."""
        breaker = self.breaker
        if breaker.state is BreakerState.CLOSED:
            return True
        version = token.version if token is not None else 0
        return breaker.admits(version, _now(), demand=demand)

    @property
    def is_closed(self) -> bool:
        """Whether tokens are sent as if nothing had happened."""
        return self.breaker.state is BreakerState.CLOSED

    @property
    def is_idle(self) -> bool:
        """Whether it takes tokens, has no connections, and nobody is signing in."""
        return self.is_closed and not self._listeners and self.budget.is_whole

    @property
    def is_open(self) -> bool:
        """Whether tokens are held back, and no probe is under way that may change that."""
        return self.breaker.state is BreakerState.OPEN

    def next_look(self) -> float:
        """The loop's time at which to ask again, if nobody says anything until then."""
        return self.breaker.next_look(_now())

    def held_back(self) -> SignInRefusedError:
        """What to raise where a token is not sent: the last refusal, and when the next try is."""
        last = self._error
        assert last is not None
        return self._tell_when(again(last))

    def _tell_when(self, error: SignInRefusedError) -> SignInRefusedError:
        seconds = max(0.0, self.next_look() - _now())
        times = self.breaker.refusals
        error.args = (f"{error} (refused {times} times; next try in {seconds:.1f} s)",)
        error.retry_in = seconds
        return error

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` whenever the breaker moves; returns a function that ends it."""
        key = object()
        self._listeners[key] = callback

        def stop() -> None:
            self._listeners.pop(key, None)

        return stop

    # -- attempts --------------------------------------------------------------------------------

    def begin(self, token: Token | None, slot: Slot | None = None) -> Attempt:
        """``token``, which is admitted, is sent now; ``slot`` is given back when it is over."""
        probe = self.breaker.begin(_now())
        return Attempt(self, token.version if token is not None else 0, probe, slot)

    def begin_at_once(self, token: Token, *, late: bool) -> Attempt | None:
        """``token`` is sent in front of a command, which is not made to wait; None if it can't be.

        One that is ``late``, past its deadline, needs no slot of the budget.
        """
        slot = self.budget.take_now()
        if self.admits(token) and (slot is not None or late):
            return self.begin(token, slot)
        if slot is not None:
            slot.release()
        return None

    @contextlib.asynccontextmanager
    async def signing_in(
        self, newest: Callable[[], Token | None], sent: Callable[[], Token | None]
    ) -> AsyncIterator[None]:
        """A new connection is made and signed in under this, one of a few at a time.

        ``newest`` is the token that it would be, ``sent`` the one that it was signed in with.
        Raises the last ``SignInRefusedError`` at once where a try would be in vain, else what is
        raised inside. Does not let go of the event loop where nobody has to wait.
        """
        slot = await self._pass(newest)
        attempt = self.begin(newest(), slot)
        try:
            yield
        except Exception as exc:
            attempt.refused(exc, sent())
            if isinstance(exc, SignInRefusedError) and not self.admits(newest(), demand=True):
                self._tell_when(exc)
            raise
        except BaseException:
            attempt.over()
            raise
        token = sent()
        attempt.accepted(token.version if token is not None else None)

    async def _pass(self, newest: Callable[[], Token | None]) -> Slot:
        """Wait for a slot; raises where the breaker lets nobody through."""
        while True:
            if not self.admits(newest(), demand=True):
                if self.breaker.state is BreakerState.HALF_OPEN:
                    await self._outcome()
                if not self.admits(newest(), demand=True):
                    raise self.held_back()
            slot = self.budget.take_now()
            if slot is not None:
                return slot
            slot = await self.budget.take()
            if self.admits(newest(), demand=True):
                return slot
            slot.release()

    async def _outcome(self) -> None:
        """Wait for what becomes of the probe, which is known soon or does not matter."""
        moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if not moved.done():
                moved.set_result(None)

        stop = self.listen(tell)
        try:
            await asyncio.wait({moved}, timeout=PROBE_PATIENCE)
        finally:
            stop()

    # -- outcomes --------------------------------------------------------------------------------

    def _accepted(self, version: int) -> None:
        breaker = self.breaker
        if breaker.state is BreakerState.CLOSED:
            breaker.accepted(version)
            return
        refusals, lasted = breaker.refusals, _now() - breaker.opened_at
        breaker.accepted(version)
        if self.is_closed:
            self._error = None
            logger.warning("%s takes tokens again, after %.1f s", self.name, lasted)
            self.emit(BreakerClosed(self.name, version, refusals, lasted))
        self._moved()

    def _refused(self, version: int, error: Exception, token: Token | None, *, probe: bool) -> None:
        breaker = self.breaker
        was = breaker.state
        breaker.refused(version, _now(), probe=probe)
        if self.is_closed:
            return
        self._error = self._explained(error, token)
        if was is BreakerState.CLOSED:
            retry_in = self.next_look() - _now()
            logger.warning(
                "%s refuses token version %d: it is tried again in %.1f s, by one connection at a"
                " time; what is signed in goes on",
                self.name,
                version,
                retry_in,
            )
            self.emit(BreakerOpened(self.name, version, self._error, retry_in))
        self._moved()

    def _unanswered(self) -> None:
        if self.breaker.state is BreakerState.HALF_OPEN:
            self.breaker.unanswered()
            self._moved()

    def _explained(self, error: Exception, token: Token | None) -> SignInRefusedError:
        if not isinstance(error, SignInRefusedError):
            host, _, port = self.name.rpartition(":")
            known = port.isdigit()
            told = explain(
                again(error),
                host=host if known else self.name,
                port=int(port) if known else 0,
                tls=True,
                token=token,
            )
            assert isinstance(told, SignInRefusedError)
            return told
        return again(error)

    def _moved(self) -> None:
        for callback in tuple(self._listeners.values()):
            callback()


def _now() -> float:
    return asyncio.get_running_loop().time()
