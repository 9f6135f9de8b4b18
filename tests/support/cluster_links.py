"""What a test asks a cluster's nodes with: bare connections, and CLUSTER NODES taken apart."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import hiredis

from .resp import pack

__all__ = ["Link", "Ports", "Seen", "View", "link", "view_of"]

DEADLINE = 10.0


class Link:
    """One connection with one command at a time, as RESP2; an error reply is raised."""

    Error = hiredis.ReplyError

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader()

    async def __call__(self, *command: str | bytes | int) -> Any:
        """The reply; EOFError or OSError when the connection has ended."""
        words = [str(each) if isinstance(each, int) else each for each in command]
        self._writer.write(pack(*words))
        async with asyncio.timeout(DEADLINE):
            while (reply := self._parser.gets()) is False:
                data = await self._reader.read(1 << 16)
                if not data:
                    raise EOFError(f"the node closed the connection under {command[0]!r}")
                self._parser.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply


@contextlib.asynccontextmanager
async def link(host: str, port: int) -> AsyncIterator[Link]:
    """Connect; ends by closing."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield Link(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@dataclass(frozen=True)
class Seen:
    """A node as another one sees it."""

    primary: str | None
    """The id of whom it replicates; None for a primary."""
    slots: frozenset[int]
    flags: frozenset[str] = field(compare=False)
    """Among them ``fail`` and ``fail?``, which come and go by themselves."""
    open_slots: tuple[int, ...] = field(compare=False, default=())
    """Slots that it imports or migrates; only the node itself tells."""


View = dict[str, Seen]
"""By the node's id."""


def view_of(text: str) -> View:
    """CLUSTER NODES taken apart."""
    view = {}
    for line in text.splitlines():
        id, _address, flags, primary, _ping, _pong, _epoch, _state, *owned = line.split()
        slots: set[int] = set()
        opened = []
        for each in owned:
            if found := re.match(r"\[(\d+)-", each):
                opened.append(int(found[1]))
            else:
                first, _, last = each.partition("-")
                slots.update(range(int(first), int(last or first) + 1))
        view[id] = Seen(
            None if primary == "-" else primary,
            frozenset(slots),
            frozenset(flags.split(",")) - {"myself"},
            tuple(opened),
        )
    return view


class Ports(list[int]):
    """Ports that nobody listens on; all different.

    On Linux no other process is given one of them before ``let_go()``, though servers may bind
    them, and bind them again when they were killed: that is what SO_REUSEADDR, which theirs have,
    allows beside a socket that does not listen.
    """

    def __init__(self, count: int) -> None:
        self._held = [socket.socket() for _ in range(count)]
        for each in self._held:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        super().__init__(int(each.getsockname()[1]) for each in self._held)
        if sys.platform != "linux":
            self.let_go()

    def let_go(self) -> None:
        """They may be anybody's from now on."""
        for each in self._held:
            each.close()
