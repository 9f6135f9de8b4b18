"""The exceptions of this package.

::

    EntraRedisError
    |-- ConfigurationError (ValueError)          refused before a byte was sent
    |   `-- InsecureConnectionError              TLS weakened, or a token about to travel in clear
    |-- TokenError (redis AuthenticationError)   no usable token
    |   |-- TokenAcquisitionError                the credential failed, with its reason
    |   |-- InvalidTokenError                    not a JWT, no oid, wrong audience, already expired
    |   |-- IdentityChangedError                 a renewal brought another oid or tenant
    |   `-- TokenExpiredError                    the last token ended and no newer one could be had
    |-- ConnectError (redis ConnectionError)     connecting failed; ``stage`` says where
    |   |-- SignInRefusedError (redis AuthenticationError)   the server refused the token
    |   |-- ClusterUnreachableError (redis RedisClusterException)   no node could be asked
    |   `-- ConnectTimeoutError (redis TimeoutError)
    |-- ConnectionLostError (redis ConnectionError)   the connection ended under a command
    |   `-- MaybeExecutedError                   ... whose bytes had been written: it may have run
    |-- CommandTimeoutError (redis TimeoutError) no reply within ``socket_timeout``
    |-- CommandRefusedError (redis RedisError)   would break the shared connection
    |-- ClusterModeError (redis RedisClusterException)   does not fit the server's mode
    `-- LifecycleError (RuntimeError)
        |-- ClosedError                          used after close
        |-- WrongLoopError                       used from another event loop
        `-- ForkedError                          used in a child process

Where a user of redis-py catches one of its exceptions, ours is a subclass of it. A message names
what failed, where, for whom, why and what to do next; a token is never part of it.
"""

from __future__ import annotations

from typing import Any

from redis import exceptions as redis_exceptions

__all__ = [
    "ClosedError",
    "ClusterModeError",
    "ClusterUnreachableError",
    "CommandRefusedError",
    "CommandTimeoutError",
    "ConfigurationError",
    "ConnectError",
    "ConnectTimeoutError",
    "ConnectionLostError",
    "EntraRedisError",
    "ForkedError",
    "IdentityChangedError",
    "InsecureConnectionError",
    "InvalidTokenError",
    "LifecycleError",
    "MaybeExecutedError",
    "SignInRefusedError",
    "TokenAcquisitionError",
    "TokenError",
    "TokenExpiredError",
    "WrongLoopError",
]


class EntraRedisError(Exception):
    """Base class of every exception that this package defines; all can be copied and pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception's own way is to call the class with ``args``, which leaves out keywords.
        return _restore, (type(self), self.args, self.__dict__)


class ConfigurationError(EntraRedisError, ValueError):
    """An argument, URL or environment variable is unusable; nothing was sent."""


class InsecureConnectionError(ConfigurationError):
    """The connection would be weaker than Entra authentication allows; nothing was sent."""


class TokenError(EntraRedisError, redis_exceptions.AuthenticationError):
    """There is no token to sign in with."""


class TokenAcquisitionError(TokenError):
    """The credential could not get a token.

    ``transient`` tells whether trying again, unchanged, can help. ``code`` is the identity
    provider's own code (``"AADSTS7000215"``, ``"invalid_scope"``) where it gave one;
    ``retry_after`` the seconds it asked us to wait, if it did.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        transient: bool = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.transient = transient
        self.retry_after = retry_after


class InvalidTokenError(TokenError):
    """The credential returned something that can't be used; ``claim`` names the culprit if any."""

    def __init__(self, message: str, *, claim: str | None = None) -> None:
        super().__init__(message)
        self.claim = claim


class IdentityChangedError(TokenError):
    """A renewal brought a token of another identity; it was neither published nor sent."""


class TokenExpiredError(TokenError):
    """The current token has expired and no newer one could be had yet."""


class ConnectError(EntraRedisError, redis_exceptions.ConnectionError):
    """No connection could be made.

    ``stage`` is one of ``"dns"``, ``"tcp"``, ``"tls"``, ``"token"``, ``"auth"``, ``"handshake"``;
    ``host`` and ``port`` say where.
    """

    def __init__(
        self, message: str, *, stage: str, host: str | None = None, port: int | None = None
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.host = host
        self.port = port

    @property
    def where(self) -> str:
        """Host and port, or the socket's path."""
        return f"{self.host}:{self.port}" if self.port else str(self.host)


class SignInRefusedError(ConnectError, redis_exceptions.AuthenticationError):
    """The server refused the token (WRONGPASS); ``stage`` is ``"auth"``.

    ``retry_in`` is None, or for how many seconds the token will not be sent to that server again:
    until then this is raised at once, by whatever needs a new connection.
    """

    retry_in: float | None = None


class ConnectTimeoutError(ConnectError, redis_exceptions.TimeoutError):
    """Connecting took longer than allowed; ``stage`` says what was going on."""


class ClusterUnreachableError(ConnectError, redis_exceptions.RedisClusterException):
    """No node of the cluster could be asked who owns which slot."""


class ConnectionLostError(EntraRedisError, redis_exceptions.ConnectionError):
    """The connection ended before the reply came.

    ``written`` tells whether the command's bytes had been handed to the socket. If not, the
    server never saw the command and sending it again is safe.
    """

    written: bool = False


class MaybeExecutedError(ConnectionLostError):
    """The connection ended after a command that may write was sent: it may or may not have run."""

    written = True


class CommandTimeoutError(EntraRedisError, redis_exceptions.TimeoutError):
    """No reply came within ``socket_timeout`` of writing the command; it may still run."""


class CommandRefusedError(EntraRedisError, redis_exceptions.RedisError):
    """The command would desynchronise the shared connection or change it for every caller."""


class ClusterModeError(
    EntraRedisError, redis_exceptions.RedisClusterException, redis_exceptions.RedisError
):
    """The client does not fit the server's mode (single endpoint or cluster)."""


class LifecycleError(EntraRedisError, RuntimeError):
    """An object was used outside its life: see the subclasses."""


class ClosedError(LifecycleError):
    """The client or token source has been closed, which is final."""


class WrongLoopError(LifecycleError):
    """The object belongs to another event loop."""


class ForkedError(LifecycleError):
    """The object was made before a fork and can't be used in the child process."""


def _restore(
    kind: type[EntraRedisError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> EntraRedisError:
    """Make an exception anew from what ``__reduce__`` has taken down."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error
