"""Plain redis-py clients: their connections are signed in by a hook and kept so from within.

``redis_connect_func`` is the one hook that every way to make a client has, in every version. It is
called with each connection once its socket is open, before anything was sent. So it is there that
the peer is looked at, the connection signed in, and its ``send_packed_command`` and
``read_response`` replaced by those of ``InBand``, on that one object. No other task ever touches
the connection: redis-py may be reading it at any moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

import redis
from redis import exceptions as redis_exceptions
from redis.asyncio.connection import SSLConnection

from .._redaction import without_tracebacks
from .._tls import check_context, check_tls, weaknesses_of
from .._traffic import Mode
from ..errors import ConfigurationError
from ._in_band import REFUSALS, InBand, has_ended
from ._peer import check_peer, drop, is_sealed
from ._sign_in import SignIn, explained, turn_of

if TYPE_CHECKING:
    from .._token import Token

__all__ = ["HANDSHAKE_TIMEOUT", "Policy", "sign_in_plain"]

HANDSHAKE_TIMEOUT: Final = 15.0
"""Seconds that each reply of the sign-in may take; ``socket_timeout`` is meant for commands."""

CHECKS_HOST_NAMES: Final = redis.VERSION >= (6,)
"""Whether redis-py checks host names unless told otherwise; 5.x does not unless told to."""

_ATTRIBUTE: Final = "_aioentra_plain"


class Policy(Protocol):
    """When one connection gets a newer token, and what is made of the outcome."""

    lookout: float
    """Seconds between two looks for a newer token while a subscriber waits for messages."""

    def signed_in(self, token: Token) -> None:
        """The connection was made, or made anew, with this token."""

    def due(self) -> Token | None:
        """See ``InBand``."""

    def learned(self, token: Token, error: Exception | None) -> None:
        """See ``InBand``."""

    def worn(self) -> bool:
        """Whether a connection that nobody uses had better be replaced than handed out."""

    def closed(self) -> None:
        """The connection was closed, by whomever: what is under way will have no answer."""

    def ended(self, error: Exception, traffic: Any) -> Exception | None:
        """The error for people where the connection ended because its token did, else None."""


async def sign_in_plain(
    connection: Any,
    provider: SignIn,
    policy: Callable[[str], Policy],
    *,
    allow_insecure_tls: bool,
) -> None:
    """What the hook does: sign ``connection`` in, and keep it signed in from now on.

    ``policy`` makes the policy of a connection that is new, from where it leads. Raises
    :exc:`ConfigurationError`, what ``TokenSource.get`` raises, or a ``ConnectError``; whatever it
    is, and if it is cancelled, the connection is closed at once.
    """
    plain: _Plain | None = getattr(connection, _ATTRIBUTE, None)
    try:
        mine = connection.credential_provider
        if not isinstance(mine, SignIn):
            _check(connection)
            mine = provider.for_one_connection()
            mine.username = connection.username
            connection.credential_provider = mine
        if isinstance(connection, SSLConnection) and is_sealed(connection):
            await _check_tls(connection, mine, allow_insecure=allow_insecure_tls)
        check_peer(connection, mine.tls, allow_plaintext=mine.allow_plaintext)
        async with turn_of(connection):
            await _handshake(connection)
    except BaseException:
        # Before redis-py closes it, politely, or keeps it, which is what it does with errors
        # that it doesn't know: the next command would be sent by nobody in particular.
        drop(connection)
        raise
    if plain is None:
        plain = _Plain(connection, policy(connection._host_error()))
        setattr(connection, _ATTRIBUTE, plain)
    assert mine.token is not None
    plain.policy.signed_in(mine.token)
    plain.begin()


def _check(connection: Any) -> None:
    """Refuse what signs in, too."""
    for name in ("password", "credential_provider"):
        if getattr(connection, name, None):
            raise ConfigurationError(
                f"{name}= can't be combined with entra_kwargs(): the token is the password, its "
                "object ID the user name, and both are sent for you. Remove it, from the URL too"
            )


async def _handshake(connection: Any) -> None:
    """redis-py's own: HELLO or AUTH, names, SELECT."""
    patience = connection.socket_timeout
    connection.socket_timeout = max(patience or 0.0, HANDSHAKE_TIMEOUT)
    if connection.health_check_interval:
        # redis-py 5 would send a PING first, which is denied.
        now = asyncio.get_running_loop().time()
        connection.next_health_check = now + connection.health_check_interval
    try:
        with explained(connection):
            if hasattr(connection, "on_connect_check_health"):
                await connection.on_connect_check_health(check_health=False)
            else:
                await connection.on_connect()
    finally:
        connection.socket_timeout = patience


async def _check_tls(connection: Any, mine: SignIn, *, allow_insecure: bool) -> None:
    """Refuse a connection that is not sure of its peer, or have it made again, surer.

    The hook can't choose the context that a connection is made with, but it sees it before the
    token is sent. It gives the first good one to all that have the same options, for when they
    connect again.
    """
    asked = connection.ssl_context
    used = connection._writer.get_extra_info("ssl_object").context
    if not mine.tls.knows(used):
        options = {f"ssl_{name}": getattr(asked, name, None) for name in _CHECKED}
        if not CHECKS_HOST_NAMES and not asked.check_hostname:
            del options["ssl_check_hostname"]  # its default, so nobody asked for it
        lifted = check_tls(options, allow_insecure_tls=allow_insecure)
        weak = weaknesses_of(used, lifted=lifted)
        if not allow_insecure and list(weak) == ["ssl_check_hostname"] and not CHECKS_HOST_NAMES:
            await _connect_again(connection, mine)
            return
        check_context(
            used, connection._host_error(), allow_insecure_tls=allow_insecure, lifted=lifted
        )
    if type(connection).__module__.startswith("redis."):
        mine.tls.share(connection, used)  # else its class may have brought it for itself


_CHECKED: Final = (
    *("cert_reqs", "check_hostname", "min_version", "include_verify_flags", "ciphers"),
)


async def _connect_again(connection: Any, mine: SignIn) -> None:
    """redis-py 5 without ssl_check_hostname=True: anybody with some certificate may be there."""
    drop(connection)
    connection.ssl_context.context = None
    await mine.tls.prepare(connection)
    with explained(connection, reached=False):
        try:
            await connection._connect()
        except OSError as exc:
            raise redis_exceptions.ConnectionError(connection._error_message(exc)) from exc


class _Plain(InBand):
    """``InBand`` for a connection whose owner is redis-py: RESP3 subscribers are served, too.

    A subscriber may be waiting for messages for hours, so there AUTH does not wait for a command.
    It is written by a timer that runs only while the connection is being read, when nothing is
    owed, and ``read`` keeps its reply to itself.
    """

    def __init__(self, connection: Any, policy: Policy) -> None:
        super().__init__(
            connection,
            send=connection.send_packed_command,
            read=connection.read_response,
            due=policy.due,
            learned=policy.learned,
        )
        self.policy = policy
        self._just_signed_in = False
        connection.send_packed_command = self.send
        connection.read_response = self.read
        connection.disconnect = self._telling(connection.disconnect)
        # A pool asks one of these, by version, before it hands a connection out; on
        # ConnectionError it has the connection connect anew.
        for name in ("can_read", "can_read_destructive"):
            if hasattr(connection, name):
                setattr(connection, name, self._refusing_worn(getattr(connection, name)))

    def _refusing_worn(self, ask: Callable[..., Awaitable[bool]]) -> Callable[..., Awaitable[bool]]:
        async def can_read(*args: Any, **kwargs: Any) -> bool:
            if self.signed_in and has_ended(self._connection):
                raise redis_exceptions.ConnectionError("the server ended the connection")
            # A pool asks again after connecting anew, and fails the caller on a second refusal.
            just_signed_in, self._just_signed_in = self._just_signed_in, False
            if self.signed_in and not just_signed_in and self.policy.worn():
                raise redis_exceptions.ConnectionError("signed in with a token that has expired")
            return await ask(*args, **kwargs)

        return can_read

    def _telling(
        self, disconnect: Callable[..., Awaitable[None]]
    ) -> Callable[..., Awaitable[None]]:
        async def tell_and_disconnect(*args: Any, **kwargs: Any) -> None:
            self.policy.closed()
            await disconnect(*args, **kwargs)

        return tell_and_disconnect

    def begin(self) -> None:
        """See ``InBand``."""
        super().begin()
        self._just_signed_in = True

    async def send(self, command: Any, check_health: bool = True) -> None:
        """See ``InBand``."""
        with self._ended_explained():
            await super().send(command, check_health)

    async def read(self, *args: Any, **kwargs: Any) -> Any:
        """See ``InBand``."""
        with self._ended_explained():
            if self._subscribed and self.signed_in:
                return await self._read_as_subscriber(*args, **kwargs)
            return await super().read(*args, **kwargs)

    @contextlib.contextmanager
    def _ended_explained(self) -> Iterator[None]:
        stood = self.signed_in  # else it is about connecting anew
        try:
            yield
        except redis_exceptions.ConnectionError as exc:
            error = self.policy.ended(exc, self.traffic) if stood else None
            if error is None:
                raise
            raise error from without_tracebacks(exc)

    # -- subscribers -----------------------------------------------------------------------------

    @property
    def _subscribed(self) -> bool:
        return self.traffic.mode is Mode.SUBSCRIBED and str(self._connection.protocol) == "3"

    async def _read_as_subscriber(
        self, disable_decoding: bool = False, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """Read a push, or a reply that is the owner's."""
        loop = asyncio.get_running_loop()
        subscriptions = self.traffic.subscriptions
        bounded = timeout is not None and timeout != math.inf
        ends_at = loop.time() + timeout if timeout is not None and bounded else None
        disconnect_on_error = kwargs.pop("disconnect_on_error", True)
        while True:
            writer = self._connection._writer
            refusal: Exception | None = None
            try:
                with self._on_the_lookout():
                    # A refused AUTH is no reason to disconnect, which is redis-py's view.
                    reply = await self._read(
                        disable_decoding, timeout, disconnect_on_error=False, **kwargs
                    )
            except REFUSALS as exc:
                refusal = exc
            except BaseException:
                if disconnect_on_error:
                    await self._connection.disconnect(nowait=True)
                raise
            else:
                self.last_used = loop.time()
                if isinstance(reply, list):
                    subscriptions.pushed(reply)
                    return reply
                if reply is None:  # time is up, or it was a push that redis-py dealt with
                    return None
            token: Any = subscriptions.replied() if self._connection._writer is writer else None
            if token is None:
                if refusal is not None:
                    raise refusal
                return reply
            self._learned(token, None if refusal is None else without_tracebacks(refusal))
            if ends_at is not None:
                timeout = max(0.0, ends_at - loop.time())

    @contextlib.contextmanager
    def _on_the_lookout(self) -> Iterator[None]:
        """Write AUTH when it is due, now or while the owner waits in its read."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            subscriptions = self.traffic.subscriptions
            standing = self.signed_in and not self._connection._writer.transport.is_closing()
            if standing and subscriptions.quiet and (token := self._due()) is not None:
                subscriptions.expect(token)
                self._write("AUTH", token.username, token.secret)
            timer = loop.call_later(self.policy.lookout, look)

        look()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
