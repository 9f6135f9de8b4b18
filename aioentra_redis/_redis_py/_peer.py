"""Whom a connection has reached, and whether a token may be sent there: looked at after each dial.

The keywords of a client are checked when it is made (``_tls.py``, ``_options.py``). That is not
enough: a loopback name may resolve to another machine, Sentinel and maintenance notifications lead
to hosts that nobody named, redis-py's defaults differ between versions, and a connection class of
the user's may bring a context of its own or none. So what counts is the open transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
import threading
from collections.abc import Hashable
from typing import Any

from redis.asyncio.connection import SSLConnection

from .._options import is_loopback
from .._tls import check_context, strengthen
from ..errors import InsecureConnectionError

__all__ = ["SharedTLS", "check_peer", "drop", "is_sealed"]


class SharedTLS:
    """The one SSLContext of a client: loading the CA store takes about 20 ms of a core.

    Clients that share the keywords of ``entra_kwargs`` have one for each set of TLS options.
    ``lifted`` names the keywords by which the user asked for less than the rules and, with
    ``allow_insecure``, has been warned of.
    """

    def __init__(self, *, allow_insecure: bool, lifted: frozenset[str] = frozenset()) -> None:
        self._allow_insecure = allow_insecure
        self._lifted = lifted
        self._lock = threading.Lock()
        self._contexts: dict[Hashable, ssl.SSLContext] = {}

    async def prepare(self, connection: SSLConnection) -> None:
        """Give ``connection`` the shared context, which the first caller builds in a thread.

        A context that its class brings, with a client certificate of the day, say, is left as it
        is, and refused where it is weaker than the rules.
        """
        own = connection.ssl_context.context
        if own is not None and not self.knows(own):
            self.check(own, connection)
            return
        key = self._settings(connection)
        context = self._contexts.get(key)
        if context is None:
            context = await asyncio.to_thread(self._build, connection, key)
        connection.ssl_context.context = context

    def _build(self, connection: SSLConnection, key: Hashable) -> ssl.SSLContext:
        with self._lock:
            if key not in self._contexts:
                context = connection.ssl_context.get()
                strengthen(context, lifted=self._lifted)
                self.check(context, connection)
                self._contexts[key] = context
            return self._contexts[key]

    def check(self, context: ssl.SSLContext, connection: Any) -> None:
        """Refuse a context, or warn of it, that is weaker than the user has asked for."""
        check_context(
            context,
            connection._host_error(),
            allow_insecure_tls=self._allow_insecure,
            lifted=self._lifted,
        )

    def knows(self, context: ssl.SSLContext) -> bool:
        """Whether ``context`` is one of the shared ones, which have been checked."""
        return any(each is context for each in list(self._contexts.values()))  # threads add some

    def share(self, connection: SSLConnection, context: ssl.SSLContext) -> None:
        """Use ``context``, which has been checked, for connections with the same options."""
        context = self._contexts.setdefault(self._settings(connection), context)
        connection.ssl_context.context = context

    def _settings(self, connection: SSLConnection) -> Hashable:
        """The TLS options of a connection, without those that make no difference.

        Whether host names are checked is not redis-py's to say but by the rules that are not
        lifted: its classes default to one thing or the other.
        """
        asked = connection.ssl_context
        without = {"context", "password"}
        if not self._lifted & {"ssl_check_hostname", "ssl_cert_reqs"}:
            without.add("check_hostname")
        names = [name for name in type(asked).__slots__ if name not in without]
        values = [getattr(asked, name, None) for name in names]
        return tuple(tuple(each) if isinstance(each, list) else each for each in values)


def check_peer(connection: Any, tls: SharedTLS, *, allow_plaintext: bool) -> None:
    """Close ``connection``, and raise ``InsecureConnectionError``, where a token may not be sent.

    That is in clear to another machine, or over TLS that is not sure of its peer. A connection that
    has ended already is closed with ``ConnectionResetError``.
    """
    writer = connection._writer
    sealed = writer.get_extra_info("ssl_object")
    try:
        if sealed is None:
            if not allow_plaintext:
                _check_plaintext(writer.get_extra_info("peername"))
        elif not tls.knows(sealed.context):
            tls.check(sealed.context, connection)
    except BaseException:
        drop(connection)
        raise


def is_sealed(connection: Any) -> bool:
    """Whether an open connection is one over TLS."""
    return connection._writer.get_extra_info("ssl_object") is not None


def _check_plaintext(peer: object) -> None:
    if peer is None:  # known of every connection that has not been reset already
        raise ConnectionResetError(errno.ECONNRESET, "the peer has reset the connection")
    # The path of a Unix socket, or of one end of a pair, is a text.
    if isinstance(peer, (str, bytes)) or (isinstance(peer, tuple) and is_loopback(str(peer[0]))):
        return
    where = peer[0] if isinstance(peer, tuple) else peer
    raise InsecureConnectionError(
        f"the plaintext connection reached {where}, which is not this machine; it was closed "
        "before the token was sent. Use rediss://"
    )


def drop(connection: Any) -> None:
    """Close at once: over TLS a polite end waits for the peer's."""
    writer = connection._writer
    connection._writer = connection._reader = None
    connection._parser.on_disconnect()
    if writer is not None:
        with contextlib.suppress(Exception):
            writer.transport.abort()
