"""The front: listens where clients connect, enforces tokens, and passes everything else on.

Each client connection has a connection of its own to a server behind, so that order, pub/sub,
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
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from socket import IPPROTO_TCP, SO_LINGER, SOL_SOCKET, TCP_NODELAY, socket

from ._damage import NOTHING, Damage
from ._directory import Events
from ._door import Door
from ._gate import Gate
from ._records import AuthAttempt, CloseReason, ConnectionClose, Listener, OpenConnection
from ._session import Effect, Outcome, Session, SignIn, next_deadline
from ._settings import Faults

__all__ = ["Backend", "Chosen", "Front"]

logger = logging.getLogger("aioentra_redis.emulator.front")

BUFFER = 1024 * 1024
"""Bytes that may wait for one peer before the other one is no longer read."""

FLUSH_INTERVAL = 0.002
"""Seconds between two looks whether the bytes before a break are on their way."""

CLOSE_GRACE = 1.0
"""Seconds that a client gets to read what was sent before its connection is cut."""


@dataclass(frozen=True, slots=True)
class Backend:
    """The server that a connection leads to; ``node`` is its number.

    ``secret`` is the password of its users, ``blocked`` are commands that the front spoils on
    their way, because the server itself has to know them.
    """

    node: int
    path: Path
    secret: str
    blocked: frozenset[bytes] = frozenset()


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

    def __init__(self, front: Front, listener: Listener, backend: Backend) -> None:
        self._front = front
        self._backend = backend
        self._session = Session(backend.secret, backend.blocked)
        self._server: ServerConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._blocked = True
        self._delayed: SignIn | None = None
        self._delay: asyncio.TimerHandle | None = None
        self._waiting: deque[bytes | SignIn] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._ended = False
        self._damage: Damage | None = None
        self._abandoned = False
        self.listener: Listener = listener
        self.node = backend.node
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
        for faults in self._front.faults.meeting(self.node):
            if faults.new_frozen:
                self.damage().freeze(executes=faults.new_executes)
        self.valve.shut("connecting")
        self._connecting = asyncio.create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        if self._damage is not None:
            data = NOTHING if self._ended else self._damage.requests(data)
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
                lambda: ServerConnection(self), str(self._backend.path)
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
        breaks = False
        if self._damage is not None:
            data, breaks = self._damage.replies(data)
        if data and not self.transport.is_closing():
            self.transport.write(data)
        if breaks:
            self._break()

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
            else:
                self._meet(item)

    def _meet(self, sign_in: SignIn) -> None:
        """Judge a sign-in, now or as late as faults want it."""
        faults = self._front.faults.meeting(self.node)
        if any(each.auth_hangs.take() for each in faults):
            self._postpone(sign_in, None)
        elif delay := max(each.auth_delay for each in faults):
            self._postpone(sign_in, delay)
        else:
            self._judge(sign_in)

    def _judge(self, sign_in: SignIn) -> None:
        assert self._server is not None
        verdict = self._front.gate.judge(sign_in.user, sign_in.token, self.node)
        self._server.transport.write(self._session.decide(sign_in, verdict))
        self._settle()

    def _postpone(self, sign_in: SignIn, delay: float | None) -> None:
        """Judge a sign-in, and what follows, so many seconds later; None is until healed."""
        self._blocked = True
        self._delayed = sign_in
        if delay is None:
            return  # reading goes on: the client may give up, and that is to be noticed
        self.valve.shut("sign-in is delayed")
        self._delay = asyncio.get_running_loop().call_later(delay, self.end_delay)

    def end_delay(self) -> None:
        """Go on with a sign-in that is being delayed, if one is."""
        sign_in = self._delayed
        if sign_in is None or self._ended:
            return
        self._delayed = None
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
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
                node=self.node,
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
        event = ConnectionClose(self._front.clock(), self.number, reason, self.object_id, self.node)
        self._front.events.closes.append(event)
        logger.debug("connection %d ended: %s", self.number, reason)
        if reason == "dropped":
            self.transport.abort()
        elif not (self._abandoned or (self._damage is not None and self._damage.frozen)):
            self._close()  # else nobody can be told before it is healed

    def _close(self) -> None:
        self.transport.close()
        asyncio.get_running_loop().call_later(CLOSE_GRACE, self.transport.abort)

    # ------------------------------------------------------------------------------- the damage

    @property
    def open(self) -> bool:
        """Whether neither side has ended it, as far as this side knows."""
        return not (self._ended or self.transport.is_closing())

    def damage(self) -> Damage:
        """What is wrong with the wire, for the asking to add to it."""
        if self._damage is None:
            self._damage = Damage()
        return self._damage

    def abandon(self) -> None:
        """Leave the client alone with its half of the connection."""
        self._abandoned = True
        self.valve.shut("abandoned")
        self.end("server")
        if self._server is not None:
            self._server.transport.abort()

    def inject(self, data: bytes) -> None:
        """Write raw bytes to the client."""
        self.transport.write(data)

    def _break(self) -> None:
        """Reset the connection, once what was written before is on its way."""
        if self.transport.get_write_buffer_size() and not self.transport.is_closing():
            asyncio.get_running_loop().call_later(FLUSH_INTERVAL, self._break)
            return
        self._linger()
        self.end("dropped")

    def _linger(self) -> None:
        """Have the socket end with a reset in place of a goodbye."""
        with contextlib.suppress(OSError):  # it is closed already
            on_for_no_time = struct.pack("ii", 1, 0)
            wire = self.transport.get_extra_info("socket")
            wire.setsockopt(SOL_SOCKET, SO_LINGER, on_for_no_time)

    def heal(self) -> None:
        """Let go on what is delayed or frozen; what has ended meanwhile ends now."""
        if self._abandoned:
            self._linger()
            self.transport.abort()
            return
        damage, self._damage = self._damage, None
        if damage is not None:
            requests, replies = damage.thaw()
            if replies and not self.transport.is_closing():
                self.transport.write(replies)
            if self._ended:
                self._close()
            elif requests:
                self.data_received(requests)
        self.end_delay()


@dataclass(frozen=True, slots=True)
class Chosen:
    """Connections to do something to: one by its number, those to a node, or all."""

    connection: int | None = None
    node: int | None = None

    def matches(self, connection: ClientConnection) -> bool:
        return self.connection in (None, connection.number) and self.node in (
            None,
            connection.node,
        )


class Front:
    """The connections that were accepted, and the doors through which they come."""

    def __init__(
        self,
        gate: Gate,
        *,
        faults: Faults,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.gate = gate
        self.faults = faults
        self.events = events
        self.clock = clock
        self.connections: set[ClientConnection] = set()
        self._numbers = itertools.count(1)

    def next_number(self) -> int:
        return next(self._numbers)

    def door(
        self,
        sockets: list[socket],
        listener: Listener,
        backend: Callable[[], Backend],
        context: ssl.SSLContext | None = None,
    ) -> Door:
        """A door at ``sockets``, over TLS if there is a ``context``.

        ``backend`` is asked at each connection where it leads.
        """
        return Door(
            sockets,
            lambda: ClientConnection(self, listener, backend()),
            context,
            backlog=1024,
            ssl_shutdown_timeout=CLOSE_GRACE if context is not None else None,
        )

    def open_connections(self) -> list[OpenConnection]:
        """What is connected now, in the order of connecting."""
        return [
            OpenConnection(each.number, each.listener, each.object_id, each.expires_on, each.node)
            for each in sorted(self.connections, key=lambda each: each.number)
            if not each.transport.is_closing()
        ]

    def drop(self, only: Chosen | None = None, *, object_id: str | None = None) -> int:
        """Cut connections, also those of one identity alone. Returns how many."""
        chosen = [
            each
            for each in self.connections
            if (only is None or only.matches(each))
            and (object_id is None or object_id.lower() == each.object_id)
            and not each.transport.is_closing()
        ]
        for each in chosen:
            each.end("dropped")
        return len(chosen)

    def freeze(self, only: Chosen, *, executes: bool) -> int:
        """Let nothing come back any more. Returns on how many connections."""
        return self._each(only, lambda each: each.damage().freeze(executes=executes))

    def abandon(self, only: Chosen) -> int:
        """Leave connections half open. Returns how many."""
        return self._each(only, ClientConnection.abandon)

    def cut_replies(self, after: int, only: Chosen) -> int:
        """Reset connections after so many more bytes of replies. Returns how many."""
        return self._each(only, lambda each: each.damage().break_after(after))

    def inject(self, data: bytes, only: Chosen) -> int:
        """Write raw bytes to clients. Returns to how many."""
        return self._each(only, lambda each: each.inject(data))

    def _each(self, only: Chosen, act: Callable[[ClientConnection], None]) -> int:
        chosen = [each for each in self.connections if only.matches(each) and each.open]
        for each in chosen:
            act(each)
        return len(chosen)

    def heal(self) -> None:
        """Let everything go on that is delayed, frozen or abandoned."""
        for each in list(self.connections):
            each.heal()

    async def aclose(self) -> None:
        """Cut every connection."""
        self.heal()
        self.drop()
        await asyncio.sleep(0)
