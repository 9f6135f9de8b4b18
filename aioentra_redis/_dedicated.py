"""Dedicated connections: those of a redis-py pool, kept signed in like the multiplexed one.

A pool's connections serve what can't share: blocking commands, WATCH, MONITOR, ``client()``. Each
has a re-authentication task of its own from its sign-in to its end, and each AUTH takes one of two
ways (see ``_redis_py/_in_band.py``): while nobody uses the connection, a few of a pool at a time,
or in front of its owner's next command. The pool itself stays as redis-py made it, and whoever
made it keeps it: nothing is taken out of it, and an idle connection under AUTH is only handed out
after all others.

The task of a connection must not keep the connection, nor the pool: a client that is dropped
without being closed takes both along. So everything here holds them weakly, and the tasks, which
nobody else would hold while they wait, are held here until they have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from redis import exceptions as redis_exceptions

from ._events import (
    AuthTrigger,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionState,
    ConnectionStatus,
    EventHub,
    Reauthenticated,
)
from ._multiplex._ledger import Ledger
from ._multiplex._reauth import Reauthenticator, keep_running
from ._redaction import without_tracebacks
from ._redis_py import keeper_of, lend_after, let_go_of, signs_in_with
from ._schedule import IDLE_PING, SLOT_HOLD, reauth_deadline, slot_patience
from ._servers import Attempt, server_of
from .errors import ClosedError, ConnectionLostError

if TYPE_CHECKING:
    import redis.asyncio

    from ._source import TokenSource
    from ._supervision import Supervised
    from ._token import Token

__all__ = ["DedicatedConnection", "DedicatedConnections", "dedicated_of", "release_from_renewal"]

logger = logging.getLogger("aioentra_redis.dedicated")

_numbers = itertools.count(1)

_tasks: set[asyncio.Task[None]] = set()
"""The event loop holds its tasks weakly; nobody else holds those of a client that was dropped."""


def dedicated_of(pool: redis.asyncio.ConnectionPool, hub: EventHub) -> DedicatedConnections | None:
    """What keeps the connections of ``pool`` signed in, one for all of its clients.

    None for a pool without a token source: there is nothing to renew.
    """
    source = signs_in_with(pool)
    if source is None:
        return None
    dedicated = keeper_of(pool, lambda: DedicatedConnections(pool, source, hub=hub))
    dedicated.reopen(hub)
    return dedicated


async def release_from_renewal(connection: Any) -> None:
    """Let go of a connection that its owner, who has just leased it, keeps signed in himself.

    Waits for an AUTH that is under way; after that nobody but the owner touches the connection.
    It is kept again when it signs in anew, or when its pool hands it out the next time.
    """
    let_go_of(connection)
    in_band = getattr(connection, "in_band", None)
    if in_band is not None:
        await in_band.settled()


class DedicatedConnection:
    """One connection of a pool from its sign-in to its end, as its re-authentication task sees it.

    ``pending`` is the token that it is to be given at the next moment at which nothing is owed to
    its owner. Only then it passes the server's budget and breaker: the task could not tell when.
    """

    paces_itself = True

    def __init__(self, keeper: DedicatedConnections, connection: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._keeper = keeper
        self._connection = weakref.ref(connection, self._collected)
        self.name = f"dedicated-{next(_numbers)}"
        self.host: str = connection.where
        self.connect_seconds = self._loop.time() - connection.transport_ready_at
        token = connection.credential_provider.token
        self.ledger = Ledger(self.name, token, self.connect_seconds)
        self.closed = False
        self.pending: Token | None = None
        self.task: Supervised | None = None
        self._server = server_of(keeper.source, self.host)
        self._attempt: Attempt | None = None
        self._answer: asyncio.Future[Any] | None = None
        self._refused = 0
        self._job: asyncio.Task[None] | None = None

    # -- for the re-authentication task ----------------------------------------------------------

    def authenticate(self, token: Token) -> asyncio.Future[Any]:
        """Have the connection given ``token``; the result is the seconds that the AUTH took.

        An exception of the future is the server's refusal, or ``ConnectionLostError``. Raises the
        latter where the connection has ended.
        """
        if self.closed:
            raise ConnectionLostError(f"{self.name} to {self.host} has ended")
        self._resolve(ConnectionLostError("a newer token is to be sent"))
        answer = self._answer = self._loop.create_future()
        self.pending = token
        self.quiet()
        return answer

    @property
    def held_up(self) -> bool:
        """Whether the AUTH waits for its moment; one that was sent ends the connection if late."""
        return self.pending is not None

    def withdraw_auth(self) -> None:
        """Take back what ``authenticate`` asked for, unless it is under way."""
        if self.pending is not None and self._attempt is None:
            self._resolve(ConnectionLostError("the server refuses tokens"))

    # -- for the connection ----------------------------------------------------------------------

    def quiet(self) -> None:
        """A reply was read, or there is something to do: do it if nobody uses the connection."""
        connection = self._connection()
        if connection is None or self.closed or self._job is not None:
            return
        if connection.in_band.idle:
            self._job = self._keeper.start(
                self._in_background(), f"aioentra_redis-background-{self.name}"
            )
            self._job.add_done_callback(_report_failure)

    def due(self) -> Token | None:
        """The token that is to go in front of the owner's next command.

        Past the deadline the newest one is, whether or not the task has had its turn: a blocking
        command would keep it from that until the expiry.
        """
        held, newest = self.ledger.token, self._keeper.source.current
        late = held is not None and self._keeper.source.now(held) >= reauth_deadline(held)
        token = self._still_pending()
        if token is None:
            if held is None or newest is None or not late:
                return None
            if newest.version <= max(held.version, self._refused):
                return None
            if self.ledger.state is not ConnectionState.AUTHENTICATED:
                return None  # it was tried, and is tried again when its time comes
            token = newest
        return token if self._begin(token, late=late) else None

    def _still_pending(self) -> Token | None:
        """What is to be sent; the newest token in place of one that has waited for too long.

        That one may have expired by itself, and its refusal would say nothing of the newest.
        """
        token, newest = self.pending, self._keeper.source.current
        if token is None or newest is None or newest.version <= token.version:
            return token
        if self._attempt is None:
            self._resolve(ConnectionLostError("a newer token is to be sent"))
            self.pending = newest
        return self.pending

    def _begin(self, token: Token, *, late: bool) -> bool:
        """Whether ``token`` may be sent in front of a command, which is not made to wait."""
        if self._attempt is None:
            self._attempt = self._server.begin_at_once(token, late=late)
        return self._attempt is not None

    def learned(self, token: Token, error: Exception | None) -> None:
        """The server has answered AUTH with ``token``."""
        connection = self._connection()
        seconds = connection.in_band.auth_seconds if connection is not None else 0.0
        was_pending = self.pending is not None and self.pending.version == token.version
        task_learns = was_pending and self._answer is not None
        if was_pending:
            self._resolve(error, seconds)
        if error is not None and not task_learns:
            self._refused = token.version  # the task finds out for itself, and what to do then
        elif error is None and not task_learns and not self.closed:
            self.ledger.accepted(token, now=self._keeper.source.now(), latency=seconds)
            if self.ledger.state is ConnectionState.REAUTHENTICATING:
                self.ledger.move_to(ConnectionState.AUTHENTICATED)  # what was pending is outdated
            self._keeper.hub.emit(
                Reauthenticated(self.name, self.host, token.version, seconds, AuthTrigger.COMMAND)
            )
        # Last: others hear of it, and what they do must find all this done.
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            if error is None:
                attempt.accepted(token.version)
            else:
                attempt.refused(error, token)

    def ended(self) -> None:
        """The connection was closed, by whomever, or somebody else keeps it from now on."""
        if self.closed:
            return
        self.closed = True
        self.ledger.close()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.over()
        self._resolve(ConnectionLostError(f"{self.name} to {self.host} has ended"))
        if self.task is not None:
            self.task.stop()
        self._keeper.forget(self)
        connection = self._connection()
        error = connection.in_band.lost if connection is not None else None
        self._keeper.hub.emit(ConnectionClosed(self.name, self.host, error))

    def _collected(self, _: Any) -> None:
        """Nobody has the connection any more; the garbage collector may run in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop may be closed
            self._loop.call_soon_threadsafe(self.ended)

    def _resolve(self, error: Exception | None, seconds: float = 0.0) -> None:
        """Tell how the AUTH that was asked for went."""
        self.pending = None
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            if error is None:
                answer.set_result(seconds)
            else:
                answer.set_exception(error)

    # -- in the background -----------------------------------------------------------------------

    def ping_due_at(self) -> float:
        """The loop's time at which a PING is due if nobody uses the connection until then."""
        connection = self._connection()
        if connection is None:
            return self._loop.time() + IDLE_PING
        interval: float = connection.health_check_interval or IDLE_PING
        if not connection.in_band.idle:
            return self._loop.time() + interval
        return float(connection.in_band.last_used + interval)

    async def _in_background(self) -> None:
        """AUTH or PING, when it is this connection's turn and if it is still to be done."""
        held = self.ledger.token
        try:
            patience = SLOT_HOLD  # a PING can wait, but a token may come meanwhile
            if self.pending is not None and held is not None:
                patience = slot_patience(held, self._keeper.source.now(held))
            slot = await self._server.budget.take(patience)
            try:
                connection = self._connection()
                if connection is None or self.closed or not connection.in_band.idle:
                    return  # in use: the owner's next command takes AUTH along
                token = self._still_pending()
                if token is None and self._loop.time() < self.ping_due_at():
                    return  # the owner has been here
                if token is not None and self._attempt is None:
                    if not self._server.admits(token):
                        self.withdraw_auth()  # the task asks again when that is of use
                        return
                    self._attempt = self._server.begin(token)
                with self._keeper.lending_last(connection):
                    await connection.in_band.run_in_background(token)
            finally:
                slot.release()
        except redis_exceptions.RedisError as exc:
            logger.info("%s ended: %s", self.name, exc)
        finally:
            self._job = None
            if self.pending is not None:
                self.quiet()  # asked for while a PING was under way

    def status(self) -> ConnectionStatus:
        """Its row of the ledger."""
        connection = self._connection()
        owed = connection.in_band.traffic.owed if connection is not None else 0
        return self.ledger.status(host=self.host, in_flight=owed)

    def __repr__(self) -> str:
        return f"<DedicatedConnection {self.name} to {self.host}, {self.ledger.state.value}>"


class DedicatedConnections:
    """Keeps the connections of one pool signed in, and from being closed for idleness.

    Belongs to the event loop of the token source, as the pool does.
    """

    def __init__(
        self, pool: redis.asyncio.ConnectionPool, source: TokenSource, *, hub: EventHub
    ) -> None:
        self.hub = hub
        self._pool = weakref.ref(pool)
        self.source = source
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: dict[DedicatedConnection, None] = {}
        self._own: set[asyncio.Task[None]] = set()
        self._pinging: Supervised | None = None
        self._under_way = 0
        self._stopped = False
        self._closed = False
        self._connecting: set[asyncio.Timeout] = set()

    def keep(self, connection: Any) -> DedicatedConnection | None:
        """Keep ``connection`` signed in, which has just been, or is handed out unkept."""
        if self._stopped:
            return None
        self._loop = asyncio.get_running_loop()
        kept = DedicatedConnection(self, connection)
        reauthenticator = Reauthenticator(kept, self.source, replace=None, hub=self.hub)
        kept.task = reauthenticator.supervised(start=self.start)
        self._connections[kept] = None
        version = connection.credential_provider.token.version
        self.hub.emit(ConnectionOpened(kept.name, kept.host, version, kept.connect_seconds))
        if self._pinging is None:
            self._pinging = keep_running(
                self._ping_the_idle, "ping-dedicated", self.hub, start=self.start
            )
        return kept

    @contextlib.asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """Around the making of a connection, which a closed client must not do, nor go on with.

        Raises ``ClosedError``.
        """
        error = ClosedError("the client of this connection has been closed; that is final")
        if self._closed:
            raise error
        ends = asyncio.timeout(None)
        try:
            async with ends:
                self._connecting.add(ends)
                yield
        except TimeoutError:
            if not ends.expired():
                raise
            raise error from None
        finally:
            self._connecting.discard(ends)

    def forget(self, kept: DedicatedConnection) -> None:
        """``kept`` has ended."""
        self._connections.pop(kept, None)
        if not self._connections and self._pinging is not None:
            self._pinging.stop()
            self._pinging = None

    @contextlib.contextmanager
    def lending_last(self, connection: Any) -> Iterator[None]:
        """Spare the pool's clients the wait for an AUTH, as long as there are other connections.

        What is under AUTH is handed out last; after it, anything but what still is.
        """
        self._lend(connection, 0)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
        self._lend(connection, self._under_way)

    def _lend(self, connection: Any, position: int) -> None:
        pool = self._pool()
        if pool is not None:
            lend_after(pool, connection, position)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` as a task that ends with us."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        for tasks in (_tasks, self._own):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return task

    async def _ping_the_idle(self) -> None:
        """Azure closes connections that are silent for ten minutes, and so do firewalls."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            due = [(kept.ping_due_at(), kept) for kept in self._connections]
            random.shuffle(due)
            for at, kept in due:
                if at <= now:
                    kept.quiet()
            next_at = min((at for at, _ in due), default=now + IDLE_PING)
            await asyncio.sleep(max(1.0, next_at - now))

    def status(self) -> list[ConnectionStatus]:
        """The ledger: one row for each connection that is signed in, idle or leased."""
        return [kept.status() for kept in list(self._connections)]  # from any thread

    def reopen(self, hub: EventHub) -> None:
        """A client uses the pool; the first one after all others were closed brings its hub."""
        self._closed = False
        if self._stopped:
            self._stopped = False
            self.hub = hub

    def stop(self) -> None:
        """Let go of all connections, which are not closed, and end all tasks."""
        self._stopped = True
        for kept in list(self._connections):
            kept.ended()
        for task in list(self._own):
            task.cancel()

    async def aclose(self, *, with_pool: bool) -> None:
        """``stop``, and wait for the tasks; a connection in the middle of an AUTH is closed.

        ``with_pool`` says that the pool is closed for good: nothing connects from now on.
        """
        if with_pool:
            self._closed = True
            for ends in self._connecting:
                ends.reschedule(asyncio.get_running_loop().time())
        tasks = list(self._own)
        self.stop()
        if tasks:
            await asyncio.wait(tasks)

    def abandon(self) -> bool:
        """The clients were dropped without being closed; may be called from any thread.

        Returns whether anything was open.
        """
        if self._loop is None or not self._connections:
            return False
        with contextlib.suppress(RuntimeError):  # the loop may be closed
            self._loop.call_soon_threadsafe(self.stop)
        return True


def _report_failure(task: asyncio.Task[None]) -> None:
    """Say at once that a job has failed, which none should."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s has failed: %r", task.get_name(), without_tracebacks(error))
