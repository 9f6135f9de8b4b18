"""A Redis server made of a script: it answers, delays, splits, hangs and cuts on cue.

What a command gets is a *step* or a list of them: bytes are sent as they are (so a reply can be
split anywhere), a number is a pause in seconds, ``HANG`` leaves everything from here on without an
answer until ``Peer.go_on``, ``CUT`` ends the connection. ``Peer.script`` maps command names to

- a function of the command's words that returns steps, for every time, or
- a list of steps (or lists of them): one for each time, then the default answer.

The same peer serves two ways: ``serve`` listens on loopback, for what needs sockets, and ``dialed``
makes an authenticated connection out of nothing but the event loop, for what needs virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import hiredis
from redis._parsers import BaseParser
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from aioentra_redis._redis_py import Dialed

HANG = "hang"
CUT = "cut"
OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
HELLO = b"%2\r\n+proto\r\n:3\r\n+mode\r\n+standalone\r\n"


def bulk(text: bytes | str) -> bytes:
    """A bulk string."""
    data = text.encode() if isinstance(text, str) else text
    return b"$%d\r\n%b\r\n" % (len(data), data)


class Peer:
    """The server: what it answers, what it has seen."""

    def __init__(self, **script: Any) -> None:
        self.script: dict[str, Any] = script
        self.commands: list[list[bytes]] = []
        self.connections: list[Connection] = []
        self.values: dict[bytes, bytes] = {}
        self.dials = 0
        self.port = 0

    # -- what happened ---------------------------------------------------------------------------

    def seen(self, name: str) -> list[list[bytes]]:
        """The commands of that name, in order of arrival, on all connections."""
        return [words for words in self.commands if words[0].upper() == name.encode()]

    async def arrival(self, name: str) -> None:
        """Wait, in real time, until a command of that name is there."""
        for _ in range(1000):
            if self.seen(name):
                return
            await asyncio.sleep(0.002)
        raise AssertionError(f"{name} did not arrive; what did: {self.commands}")

    @property
    def open(self) -> list[Connection]:
        """The connections that nobody has closed."""
        return [each for each in self.connections if not each.closed]

    # -- the script ------------------------------------------------------------------------------

    def steps_for(self, words: list[bytes], connection: Connection) -> list[Any]:
        name = words[0].upper().decode()
        entry = self.script.get(name)
        if callable(entry):
            steps = entry(*words)
        elif entry:
            steps = entry.pop(0)
        else:
            steps = self.usual_answer(name, words)
        return steps if isinstance(steps, list) else [steps]

    def usual_answer(self, name: str, words: list[bytes]) -> bytes:
        values = self.values
        match name:
            case "GET":
                return bulk(values[words[1]]) if words[1] in values else b"_\r\n"
            case "SET":
                values[words[1]] = words[2]
                return OK
            case "INCR":
                values[words[1]] = b"%d" % (int(values.get(words[1], b"0")) + 1)
                return b":%b\r\n" % values[words[1]]
            case "ECHO":
                return bulk(words[1])
            case "HELLO":
                return HELLO
            case "PING":
                return PONG
            case "AUTH" | "SELECT" | "CLIENT":
                return OK
        return b"-ERR unknown command\r\n"

    # -- events ----------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Answer what hangs."""
        for connection in self.open:
            connection.go_on()

    def push(self, data: bytes) -> None:
        """Send ``data`` to everybody, asked or not."""
        for connection in self.open:
            connection.send(data)

    def cut(self) -> None:
        """End every connection."""
        for connection in self.open:
            connection.cut()

    # -- serving ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def serve(
        self, context: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> AsyncIterator[int]:
        """Listen on a port of loopback, which is what is returned; over TLS with a context."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Served(self), host, port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self.port
        finally:
            server.close()
            self.cut()
            await server.wait_closed()
            await asyncio.sleep(0)

    def dialed(self, *, token: Any = None, **options: Any) -> Dialed:
        """An authenticated connection to this peer that needs no socket."""
        transport = Wire(self)
        return dialed_over(transport, token=token, **options)


def dialed_over(
    transport: Any,
    *,
    token: Any = None,
    handshake_seconds: float = 0.01,
    socket_timeout: float | None = 5.0,
    health_check_interval: float = 0,
    unread: bytes = b"",
    eof: bool = False,
    on_push: Callable[[Any], Any] | None = None,
    pack: Callable[[tuple[Any, ...]], Any] = hiredis.pack_command,
    encoding: str | None = None,
    protocol: int = 3,
    reply_error: Callable[[str], Exception] = BaseParser.parse_error,
) -> Dialed:
    """What ``dial`` returns, around any transport."""

    async def handle_push_response(push: list[Any]) -> None:
        if on_push is not None:
            on_push(push)

    connection = SimpleNamespace(
        socket_timeout=socket_timeout,
        health_check_interval=health_check_interval,
        get_protocol=lambda: protocol,
        _reader=SimpleNamespace(_buffer=bytearray(unread), _eof=eof),
        _writer=object(),
        _parser=SimpleNamespace(
            on_disconnect=lambda: None, handle_push_response=handle_push_response
        ),
    )
    return Dialed(
        connection=connection,
        transport=transport,
        pack=pack,
        reader=hiredis.Reader(
            replyError=reply_error, notEnoughData=NOT_ENOUGH_DATA, encoding=encoding
        ),
        token=token,
        host="peer",
        handshake_seconds=handshake_seconds,
    )


class Connection:
    """One connection as the peer sees it: commands wait here until their turn has come."""

    def __init__(self, peer: Peer, send: Callable[[bytes], None], cut: Callable[[], None]) -> None:
        self.peer = peer
        self.closed = False
        self.hangs = False
        self.commands: list[list[bytes]] = []
        self._send = send
        self._cut = cut
        self._reader = hiredis.Reader()
        self._steps: deque[Any] = deque()
        self._pause: asyncio.TimerHandle | None = None
        peer.connections.append(self)

    def send(self, data: bytes) -> None:
        if not self.closed:
            self._send(data)

    def cut(self) -> None:
        self.closed = True
        self._cut()

    def lost(self) -> None:
        self.closed = True
        if self._pause is not None:
            self._pause.cancel()

    def go_on(self) -> None:
        self.hangs = False
        self._work()

    def feed(self, data: bytes) -> None:
        self._reader.feed(data)
        while (words := self._reader.gets()) is not False:
            self.commands.append(words)
            self.peer.commands.append(words)
            self._steps.append(words)
        self._work()

    def _work(self) -> None:
        while self._steps and not (self.closed or self.hangs or self._pause):
            step = self._steps.popleft()
            if isinstance(step, list):  # a command: its steps take its place
                self._steps.extendleft(reversed(self.peer.steps_for(step, self)))
            elif step is HANG:
                self.hangs = True
            elif step is CUT:
                self.cut()
            elif isinstance(step, bytes):
                self.send(step)
            else:
                self._pause = asyncio.get_running_loop().call_later(step, self._pause_over)

    def _pause_over(self) -> None:
        self._pause = None
        self._work()


class _Served(asyncio.Protocol):
    """A connection over a socket."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def connection_made(self, transport: Any) -> None:
        self._connection = Connection(self._peer, transport.write, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._connection.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost()


class Wire(asyncio.Transport):
    """A transport whose other end is a ``Peer``; without one the test speaks for it.

    What is written arrives at once, and what is answered one turn of the loop later. ``socket`` is
    what the transport says its socket is.
    """

    def __init__(self, peer: Peer | None = None, socket: Any = None) -> None:
        super().__init__({"socket": socket, "peername": ""})
        self._loop = asyncio.get_running_loop()
        self._protocol: Any = asyncio.Protocol()
        self.writes: list[bytes] = []
        self.closing = False
        self.aborted = False
        self.lingers = False
        self.refuses: Exception | None = None
        self._ended = False
        self.reading = True
        self._unread: deque[bytes] = deque()
        self.connection = Connection(peer or Peer(), self.deliver, self.end)
        self._spoken_for = peer is not None

    # -- the test's side -------------------------------------------------------------------------

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    def deliver(self, data: bytes) -> None:
        """The peer sends ``data``."""
        self._loop.call_soon(self._receive, data)

    def _receive(self, data: bytes) -> None:
        if self._ended:
            return
        self._unread.append(data)
        while self._unread and self.reading and not self._ended:
            self._protocol.data_received(self._unread.popleft())

    def end(self, exc: Exception | None = None) -> None:
        """The connection ends."""
        self._loop.call_soon(self._end, exc)

    def _end(self, exc: Exception | None) -> None:
        if not self._ended:
            self._ended = True
            self.connection.lost()
            self._protocol.connection_lost(exc)

    # -- the protocol's side ---------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.writes.append(bytes(data))
        if self._spoken_for and not self.closing:
            self.connection.feed(bytes(data))

    def close(self) -> None:
        self.closing = True
        if not self.lingers:
            self.end()

    def abort(self) -> None:
        self.closing = self.aborted = True
        self.end()

    def is_closing(self) -> bool:
        return self.closing or self._ended

    def is_reading(self) -> bool:
        return self.reading and not self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self._loop.call_soon(self._receive, b"")

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high_water = high
