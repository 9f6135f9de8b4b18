"""The multiplexed connection: keeps one authenticated session at hand, whatever happens to it.

It opens sessions, one after a loss and make-before-break where that is asked for, runs each one's
re-authentication task, and closes them all. Commands submit to the current one, ``session``,
directly; ``admit`` is for when there is none or it is congested.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import weakref
from typing import TYPE_CHECKING, Any, Final

from .._diagnosis import explain
from .._events import (
    AuthTrigger,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReplaced,
    ConnectionState,
    ConnectionStatus,
    EventHub,
    TokenState,
)
from .._lifecycle import Home
from .._redis_py import detach, dial, follows_a_master, is_observed, pool_endpoint
from .._repeats import Repeats
from .._schedule import DEMANDED_RECONNECT, FIRST_RECONNECT, LAST_RECONNECT
from .._servers import Server, server_of
from ..errors import (
    ClosedError,
    ConfigurationError,
    ConnectTimeoutError,
    LifecycleError,
    SignInRefusedError,
    TokenError,
)
from ._ending import see_off
from ._moves import Moves
from ._outage import Outage
from ._reauth import Reauthenticator, keep_running
from ._session import FEW, Session

if TYPE_CHECKING:
    import redis.asyncio

    from .._events import MaintenanceAnnounced
    from .._redis_py import Address
    from .._source import TokenSource
    from .._supervision import Supervised

__all__ = ["MultiplexedConnection"]

logger = logging.getLogger("aioentra_redis.connection")

SHORT_LIFE: Final = 1.0
"""Seconds; a server that ends its connections sooner, time and again, is not asked at once."""


class MultiplexedConnection:
    """The connection that all coroutines of a client share.

    ``pool`` says how to connect (its own connections are not touched), ``source`` is the token
    source or None. Times are in seconds. Belongs to the loop of its first use.
    """

    host: str
    port: int
    tls: bool

    def __init__(
        self,
        pool: redis.asyncio.ConnectionPool,
        *,
        source: TokenSource | None,
        hub: EventHub,
        recovery_timeout: float = 30.0,
        close_timeout: float = 5.0,
    ) -> None:
        self.session: Session | None = None
        self.straight: Session | None = None
        """``session`` while nobody wants to be shown the commands: their short way."""
        self.address: Address | None = None
        """Where the last session led; None before the first one."""
        self.source = source
        self.few = FEW  # what its sessions take for few callers
        self._pool = weakref.ref(pool)
        self.host, self.port, self.tls = pool_endpoint(pool)
        self.follows_a_master: bool = follows_a_master(pool)
        self.recovery_timeout = recovery_timeout
        self.close_timeout = close_timeout
        self.hub = hub
        self._home = Home("the client")
        self._sessions: dict[Session, Supervised | None] = {}
        self._connecting: Supervised | None = None
        self._moves = Moves()
        self._outage = Outage()
        self._refusing: Server | None = None
        """The server that refuses tokens, as long as it is not to be asked again."""
        self._was_connected = False
        self._installed_at = 0.0
        self._short_lives = 0
        self._clients = 0
        self._last_error: Exception | None = None
        self._repeats = Repeats()
        self._closing: asyncio.Task[None] | None = None
        self.closed: bool = False

    def check_times(self, **times: float) -> None:
        """Refuse what another client of the same pool, and so of this connection, has settled."""
        for name, value in times.items():
            if value != (settled := getattr(self, name)):
                raise ConfigurationError(
                    f"{name}={value:g}: the clients of a pool share one connection, and another "
                    f"one has set it to {settled:g}: leave it out, or make another pool"
                )

    # -- for commands ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect and sign in, if that has not happened; raises why it can't be done."""
        self.check()
        if self.session is None:
            await self._usable()

    async def admit(self) -> Session:
        """A session with room for one more command; the way to it when the short one is closed.

        Waits for a connection, no longer than ``recovery_timeout``, and at the gate. After the
        submit the caller calls ``session.admitted()``. Raises ``ConnectTimeoutError`` from the
        last failure, ``TokenExpiredError`` at once, ``ClosedError``, ``WrongLoopError``,
        ``ForkedError``. Cancelling it is safe.
        """
        while True:
            self.check()
            session = self.session
            if session is None or session.closed:
                session = await self._usable()
            if not session.congested:
                return session
            await session.admission()
            if session is self.session and not session.closed:  # else another one, or none
                return session
            session.admitted()

    def check(self) -> None:
        """Raise ``ClosedError``, ``WrongLoopError`` or ``ForkedError`` where they are due."""
        if self.closed:
            raise ClosedError(
                f"the client of {self.host} has been closed; that is final, make a new one"
            )
        self._home.check()

    def check_loop(self) -> None:
        """Raise ``WrongLoopError`` where closing would have to wait for another loop."""
        if not self._home.gone:
            self._home.check()

    async def _usable(self) -> Session:
        """Wait for a session; several waiters share one attempt and one outage."""
        try:
            async with asyncio.timeout(self.recovery_timeout):
                while (session := self.session) is None:  # it may be lost before we have our turn
                    await self._next_session()
                return session
        except TimeoutError:
            raise ConnectTimeoutError(
                f"no usable connection to {self.host}:{self.port} within "
                f"{self.recovery_timeout:g} s (recovery_timeout); last failure: "
                f"{self._last_error or 'none, the server has not answered yet'}",
                stage=getattr(self._last_error, "stage", "tcp"),
                host=self.host,
                port=self.port,
            ) from self._last_error

    async def _next_session(self) -> None:
        """Wait until the outage ends, one way or the other."""
        self.check()
        source = self.source
        if source is not None and source.state is TokenState.EXPIRED:
            await source.get()  # raises at once, and asks for a newer token
        refusing = self._refusing
        if refusing is not None and refusing.is_open and not self._may_ask(refusing):
            self._reconnect()
            if source is not None:
                await source.get()  # at once; asks for a newer token if this one's time is up
            if not self._may_ask(refusing):  # else things have changed meanwhile
                raise refusing.held_back()
            return
        over = self._outage.begin()
        self._reconnect()
        await self._outage.wait(over)

    # -- connecting ------------------------------------------------------------------------------

    def _reconnect(self) -> None:
        """Have a session made, unless that is under way."""
        if self._connecting is None:
            self._connecting = keep_running(self._connect, "connect", self.hub)

    async def _connect(self) -> None:
        """Try until there is a session; before the first success the first failure is final."""
        delay = FIRST_RECONNECT
        if self._short_lives > 1:
            delay = min(FIRST_RECONNECT * 2 ** min(self._short_lives, 10), LAST_RECONNECT)
            await self._pause(delay)
        while not await self._attempt():
            if self._refusing is not None:
                await self._held_back(self._refusing)
            else:
                await self._pause(delay)
                delay = min(delay * 2, LAST_RECONNECT)
        self._connecting = None  # not where it was cancelled: then it is started again

    async def _attempt(self) -> bool:
        """Dial once; returns whether that was the last time."""
        try:
            session = await self._dial()
        except Exception as exc:
            token = self.source.current if self.source is not None else None
            self._last_error = error = explain(
                exc, host=self.host, port=self.port, tls=self.tls, token=token
            )
            self._tell(error)
            if not self._was_connected or isinstance(error, LifecycleError):
                self._outage.end(error)
                return True
            if isinstance(error, SignInRefusedError) and error.retry_in is not None:
                assert self.source is not None
                self._refusing = server_of(self.source, error.where)
            if isinstance(error, TokenError) or self._refusing is not None:
                self._outage.end(error)  # waiting would not help: say so at once
            return False
        if self.session is None:
            self._install(session)
        else:
            session.close()  # a replacement that was under way came first
        return True

    async def _held_back(self, server: Server) -> None:
        """Wait until ``server`` may be asked again; who needs it meanwhile hears why not yet."""
        stop_listening = server.listen(self._outage.demand)
        try:
            while not self._may_ask(server):
                left = server.next_look() - asyncio.get_running_loop().time()
                # In slices: a newer token is tried at once.
                await self._outage.demanded(min(DEMANDED_RECONNECT, max(left, 0.001)))
                if not self._may_ask(server):
                    self._outage.end(server.held_back())
        finally:
            stop_listening()
        self._refusing = None

    def _may_ask(self, server: Server) -> bool:
        assert self.source is not None
        return server.admits(self.source.current, demand=True)

    async def _pause(self, delay: float) -> None:
        delay *= random.uniform(0.5, 1)
        await asyncio.sleep(min(delay, DEMANDED_RECONNECT))
        if delay > DEMANDED_RECONNECT and not self._outage.waiting:
            await self._outage.demanded(delay - DEMANDED_RECONNECT)

    async def _dial(self) -> Session:
        pool = self._pool()
        if pool is None or self.closed:
            raise ClosedError("this client has been closed; that is final, make a new one")
        loop = asyncio.get_running_loop()
        started = loop.time()
        # A weak method: a session is kept alive by its socket, and must not keep us alive.
        lost = weakref.WeakMethod(self._lost)
        session = Session(await dial(pool), lambda *args: (lost() or _nobody)(*args))
        if session.closed:
            raise session.cause or ClosedError("the connection was closed at once")
        session.few = self.few
        token = session.ledger.token
        self.hub.emit(
            ConnectionOpened(
                session.name,
                session.host,
                token.version if token is not None else None,
                loop.time() - started,
            )
        )
        return session

    def _install(self, session: Session) -> None:
        """Make ``session`` the one that commands go to."""
        task = None
        if self.source is not None:
            reauthenticator = Reauthenticator(
                session, self.source, replace=self._replace, hub=self.hub
            )
            task = reauthenticator.supervised()
        self._sessions[session] = task
        self._use(session)
        self.address = session.address
        # Weak for the reason that is given in `_dial`.
        look, noticed = weakref.WeakMethod(self._look), weakref.WeakMethod(self._noticed)
        session.on_watch = lambda: (look() or _nobody)()
        session.on_notice = lambda *args: (noticed() or _nobody)(*args)
        self._installed_at = asyncio.get_running_loop().time()
        self._was_connected = True
        self._repeats.over()
        self._refusing = None
        self._outage.end()

    def _use(self, session: Session | None) -> None:
        self.session = session
        self._look()

    def _look(self) -> None:
        """Close the short way for commands if somebody wants to be shown them, open it if not."""
        self.straight = None if is_observed() else self.session

    def _tell(self, error: Exception) -> None:
        """Log that an attempt to connect failed, aloud if that is news."""
        now = asyncio.get_running_loop().time()
        level = self._repeats.level(logging.WARNING, type(error), now)
        logger.log(level, "no connection to %s:%d: %s", self.host, self.port, error)

    async def _replace(
        self, old: Session, reason: str, trigger: AuthTrigger | None = AuthTrigger.RENEWAL
    ) -> None:
        """Open a session beside ``old``, let it take over, and let ``old`` drain.

        Raises what the dial raises; ``old`` is untouched then. Cancelling it leaves no socket.
        """
        session = await self._dial()
        if old is not self.session:  # lost meanwhile, and another one has taken its place
            if self.session is not None or self.closed:
                session.close()
                return
            self._install(session)
            return
        self._install(session)
        logger.info("%s takes over from %s: %s", session.name, old.name, reason)
        self.hub.emit(ConnectionReplaced(old.name, session.name, session.host, reason, trigger))
        old.ledger.move_to(ConnectionState.DRAINING)
        old.drain()

    def _noticed(self, session: Session, notice: MaintenanceAnnounced) -> None:
        self.hub.emit(notice)
        if session is self.session:
            self._moves.announced(session, notice, self._replace, self.hub)

    def _lost(self, session: Session, cause: Exception | None) -> None:
        task = self._sessions.pop(session, None)
        if task is not None:
            task.stop()
        self._moves.over(session)
        self.hub.emit(ConnectionClosed(session.name, session.host, cause))
        if session is not self.session:
            return
        self._use(None)
        if self.closed:
            return
        logger.info("%s lost: %s", session.name, cause)
        self._last_error = cause
        lived = asyncio.get_running_loop().time() - self._installed_at
        self._short_lives = self._short_lives + 1 if lived < SHORT_LIFE else 0
        self._reconnect()

    # -- status and the end ----------------------------------------------------------------------

    @property
    def last_error(self) -> Exception | None:
        """What ended the last session, or has kept the next one from being made since."""
        return self._last_error

    def status(self) -> list[ConnectionStatus]:
        """The ledger: one row for each session, draining ones too; from any thread."""
        return [
            session.ledger.status(host=session.host, in_flight=session.in_flight)
            for session in list(self._sessions)
        ]

    def hold(self) -> None:
        """One more client uses this connection."""
        self._clients += 1

    async def let_go(self) -> None:
        """One client less; the last one closes."""
        self._clients -= 1
        if self._clients == 0:
            if (pool := self._pool()) is not None:
                detach(pool)
            await self.aclose()

    async def disconnect(self, *, inuse: bool = True) -> None:
        """Let go of the session, as its pool's ``disconnect()`` does; the next command makes one.

        With ``inuse`` commands in flight fail as with a lost connection, else they may finish.
        Raises ``WrongLoopError``. Cancelling it does not stop the closing.
        """
        if self._home.loop is None or self._home.gone:
            return
        self._home.check()
        sessions = self._abandon_sessions()
        if not inuse:
            return
        if self._connecting is not None and not self._outage.waiting:
            self._connecting.stop()
            self._connecting = None
        await see_off(sessions)

    def forget(self) -> None:
        """Let the session end by itself, as its pool's ``reset()`` does; may be called anywhere."""
        loop = self._home.loop
        if loop is not None and not self._home.gone and asyncio._get_running_loop() is loop:
            self._abandon_sessions()

    def _abandon_sessions(self) -> list[Session]:
        """Have no session, so that the next command makes one; what is in flight may finish."""
        sessions = list(self._sessions)
        self._use(None)
        for session in sessions:
            if session.ledger.state is not ConnectionState.DRAINING:
                session.ledger.move_to(ConnectionState.DRAINING)
            session.drain()
        return sessions

    async def aclose(self) -> None:
        """Close: what is in flight may finish within ``close_timeout``, new commands are refused.

        Idempotent. Cancelling it does not stop the closing. Where its event loop is closed, and in
        a forked child, it only marks the connection as closed; in another loop it raises
        ``WrongLoopError``.
        """
        if self._closing is None:
            self.check_loop()
            self.closed = True
            self._use(None)  # from here on every command is refused
            if self._home.gone:
                return
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        ending = self._stop_tasks()
        self._outage.end(ClosedError(f"the client of {self.host} was closed meanwhile"))
        if ending:
            await asyncio.wait(ending)
        sessions = list(self._sessions)
        for session in sessions:
            session.drain()
        waits = [asyncio.ensure_future(session.wait_closed()) for session in sessions]
        if waits:
            _, late = await asyncio.wait(waits, timeout=self.close_timeout)
            for session in sessions:
                session.close()
            if late:
                logger.warning(
                    "closing took longer than %g s: commands in flight were given up",
                    self.close_timeout,
                )
                await asyncio.wait(late, timeout=1.0)
                for wait in late:
                    wait.cancel()

    def _stop_tasks(self) -> list[asyncio.Task[None]]:
        running = [*self._sessions.values(), self._connecting, self._moves.running]
        return [task for each in running if each is not None and (task := each.stop()) is not None]

    def abandon(self) -> bool:
        """A client was dropped without being closed: if it was the last, let go of everything.

        May be called from any thread and when the loop is gone. Returns whether anything was open.
        """
        self._clients -= 1
        if self._clients or self.closed:
            return False
        self.closed = True
        if (pool := self._pool()) is not None:
            detach(pool)  # it may be the user's, and get another client
        loop = self._home.loop
        if loop is None or not (self._sessions or self._connecting):
            return False
        if loop.is_closed():
            return True

        def let_go() -> None:
            self._stop_tasks()
            for session in list(self._sessions):
                session.close()

        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(let_go)
        return True

    def __repr__(self) -> str:
        state = "closed" if self.closed else "connected" if self.session else "not connected"
        return f"<MultiplexedConnection to {self.host}:{self.port}, {state}>"


def _nobody(*_: Any) -> None:
    """What a session calls whose owner is gone."""
