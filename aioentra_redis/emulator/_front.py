"""The front: listens where clients connect, enforces tokens, and passes everything else on.

Each client connection has a connection of its own to the server behind, so that order, pub/sub,
transactions and blocking commands are the server's own doing. What the front adds is in
``_session``: it exchanges tokens for the server's secrets, learns how the server took them, and
ends the connection when its token expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, socket

from ._directory import Events
from ._gate import Gate
from ._records import AuthAttempt, CloseReason, ConnectionClose, Listener, OpenConnection
from ._session import Effect, Outcome, Session, SignIn, next_deadline
from ._settings import Faults

__all__ = ["Front"]

logger = logging.getLogger("aioentra_redis.emulator.front")

BUFFER = 1024 * 1024
"""Bytes that may wait for one peer before the other one is no longer read."""

CLOSE_GRACE = 1.0
"""Seconds that a client gets to read what was sent before its connection is cut."""


class Valve:
    """The reading side of a transport, shut as long as anybody has a reason."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._reasons: set[str] = set()

    def shut(self, reason: str) -> None:
        if not self._reasons and not self._transport.is_closing():
            self._transport.pause_reading()
        self._reasons.add(reason)

    def open(self, reason: str) -> None:
        if reason in self._reasons:
            self._reasons.remove(reason)
            if not self._reasons and not self._transport.is_closing():
                self._transport.resume_reading()


class ServerConnection(asyncio.Protocol):
    """The far half: bytes from the server go through the session to the client."""

    transport: asyncio.Transport
    valve: Valve

    def __init__(self, client: ClientConnection) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.valve = Valve(transport)
        transport.set_write_buffer_limits(BUFFER)

    def data_received(self, data: bytes) -> None:
        self._client.pass_reply(data)

    def pause_writing(self) -> None:
        self._client.valve.shut("server is slow")

    def resume_writing(self) -> None:
        self._client.valve.open("server is slow")

    def connection_lost(self, error: Exception | None) -> None:
        self._client.end("server")


class ClientConnection(asyncio.Protocol):
    """The near half: bytes from the client go through the session to the server.

    ``_waiting`` is what can't be sent yet, because there is no connection to the server or
    because a sign-in that stands before it is being delayed.
    """

    transport: asyncio.Transport
    valve: Valve

    def __init__(self, front: Front, listener: Listener) -> None:
        self._front = front
        self._session = Session(front.secret)
        self._server: ServerConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._blocked = True
        self._delayed: SignIn | None = None
        self._delay: asyncio.TimerHandle | None = None
        self._waiting: deque[bytes | SignIn] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._ended = False
        self.listener: Listener = listener
        self.number = front.next_number()
        self.object_id: str | None = None
        self.expires_on: float | None = None

    # ------------------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.valve = Valve(transport)
        transport.set_write_buffer_limits(BUFFER)
        # asyncio does this for sockets whose protocol number is TCP's; one that was accepted has 0.
        # Without it, replies behind AUTH's wait 40 ms for the client's delayed acknowledgement.
        with contextlib.suppress(OSError):  # macOS refuses it for a peer that is gone already
            transport.get_extra_info("socket").setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        self._front.connections.add(self)
        self.valve.shut("connecting")
        self._connecting = asyncio.create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        items = self._session.receive_from_client(data)
        if self._blocked:
            self._waiting.extend(items)
        else:
            self._send(items)

    def pause_writing(self) -> None:
        if self._server is not None:
            self._server.valve.shut("client is slow")

    def resume_writing(self) -> None:
        if self._server is not None:
            self._server.valve.open("client is slow")

    def connection_lost(self, error: Exception | None) -> None:
        self.end("client")
        self._front.connections.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._server is not None:
            self._server.transport.abort()

    # ------------------------------------------------------------------------------- the server

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, server = await loop.create_unix_connection(
                lambda: ServerConnection(self), str(self._front.server_path)
            )
        except OSError:  # it is being restarted
            self.end("server")
            return
        self._server = server
        if self.transport.is_closing():
            server.transport.abort()
            return
        self._resume()
        self.valve.open("connecting")

    def pass_reply(self, data: bytes) -> None:
        session = self._session
        session.receive_from_server(data)
        if session.outcomes:
            self._settle()
        if not self.transport.is_closing():
            self.transport.write(data)

    # ----------------------------------------------------------------------------- the requests

    def _send(self, items: Iterable[bytes | SignIn]) -> None:
        """Send items to the server up to a sign-in that is delayed; the rest waits."""
        assert self._server is not None
        write = self._server.transport.write
        for item in items:
            if self._blocked:
                self._waiting.append(item)
            elif isinstance(item, bytes):
                write(item)
            elif self._front.faults.auth_delay > 0:
                self._postpone(item)
            else:
                self._judge(item)

    def _judge(self, sign_in: SignIn) -> None:
        assert self._server is not None
        verdict = self._front.gate.judge(sign_in.user, sign_in.token)
        self._server.transport.write(self._session.decide(sign_in, verdict))
        self._settle()

    def _postpone(self, sign_in: SignIn) -> None:
        self._blocked = True
        self._delayed = sign_in
        self.valve.shut("sign-in is delayed")
        delay = self._front.faults.auth_delay
        self._delay = asyncio.get_running_loop().call_later(delay, self.end_delay)

    def end_delay(self) -> None:
        """Go on with a sign-in that is being delayed, if one is."""
        sign_in = self._delayed
        if sign_in is None or self._ended:
            return
        self._delayed = None
        if self._delay is not None:
            self._delay.cancel()
        self._judge(sign_in)
        self._resume()
        if not self._blocked:
            self.valve.open("sign-in is delayed")

    def _resume(self) -> None:
        """Send what has been waiting."""
        self._blocked = False
        waiting, self._waiting = self._waiting, deque()
        self._send(waiting)

    # ------------------------------------------------------------------------------ the outcome

    def _settle(self) -> None:
        outcomes = self._session.outcomes
        for outcome in outcomes:
            self._apply(outcome)
        outcomes.clear()

    def _apply(self, outcome: Outcome) -> None:
        sign_in = outcome.sign_in
        verdict = sign_in.verdict
        assert verdict is not None
        if outcome.effect is Effect.SIGNED_IN:
            self.object_id = verdict.object_id
        deadline = next_deadline(self.expires_on, outcome.effect, verdict.expires_on)
        if deadline != self.expires_on:
            self._set_deadline(deadline)
        self._front.events.auths.append(
            AuthAttempt(
                time=self._front.clock(),
                connection=self.number,
                command=sign_in.command,
                object_id=sign_in.user,
                accepted=outcome.effect is Effect.SIGNED_IN,
                reason=outcome.reason,
                uti=verdict.uti,
                expires_on=verdict.expires_on,
            )
        )

    def _set_deadline(self, deadline: float | None) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self.expires_on = deadline
        if deadline is not None:
            delay = max(0.0, deadline - self._front.clock())
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(delay, self.end, "expiry")

    def end(self, reason: CloseReason) -> None:
        """Close the connection. Only the first reason counts; a client in no hurry is cut off."""
        if self._ended:
            return
        self._ended = True
        for timer in (self._expiry, self._delay):
            if timer is not None:
                timer.cancel()
        event = ConnectionClose(self._front.clock(), self.number, reason, self.object_id)
        self._front.events.closes.append(event)
        logger.debug("connection %d ended: %s", self.number, reason)
        if reason == "dropped":
            self.transport.abort()
        else:
            self.transport.close()
            asyncio.get_running_loop().call_later(CLOSE_GRACE, self.transport.abort)


class Front:
    """The listeners and the connections they have accepted."""

    def __init__(
        self,
        gate: Gate,
        *,
        server_path: Path,
        secret: str,
        faults: Faults,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.gate = gate
        self.server_path = server_path
        self.secret = secret
        self.faults = faults
        self.events = events
        self.clock = clock
        self.connections: set[ClientConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._numbers = itertools.count(1)

    def next_number(self) -> int:
        return next(self._numbers)

    async def listen(
        self, sockets: Iterable[socket], listener: Listener, context: ssl.SSLContext | None = None
    ) -> None:
        """Accept connections on ``sockets``, over TLS if there is a ``context``."""
        loop = asyncio.get_running_loop()
        for each in sockets:
            server = await loop.create_server(
                lambda: ClientConnection(self, listener),
                sock=each,
                ssl=context,
                backlog=1024,
                ssl_shutdown_timeout=CLOSE_GRACE if context is not None else None,
            )
            self._servers.append(server)

    def open_connections(self) -> list[OpenConnection]:
        """What is connected now, in the order of connecting."""
        return [
            OpenConnection(each.number, each.listener, each.object_id, each.expires_on)
            for each in sorted(self.connections, key=lambda each: each.number)
            if not each.transport.is_closing()
        ]

    def drop(self, *, connection: int | None = None, object_id: str | None = None) -> int:
        """Cut connections: one, those of an identity, or all. Returns how many."""
        chosen = [
            each
            for each in self.connections
            if connection in (None, each.number)
            and (object_id is None or object_id.lower() == each.object_id)
            and not each.transport.is_closing()
        ]
        for each in chosen:
            each.end("dropped")
        return len(chosen)

    def end_delays(self) -> None:
        """Let every delayed sign-in go on."""
        for each in list(self.connections):
            each.end_delay()

    async def aclose(self) -> None:
        """Stop listening and cut every connection."""
        for server in self._servers:
            server.close()
        self.drop()
        await asyncio.sleep(0)
