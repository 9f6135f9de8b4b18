"""From an exception to an error for people: which stage failed, where, with whom, what to do.

The stages of a connect are DNS, TCP, TLS, token, AUTH and the rest of the handshake. redis-py
wraps what asyncio raises, so the stage is read from the chain of causes.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from redis import exceptions as redis_exceptions
from redis.asyncio.sentinel import MasterNotFoundError, SlaveNotFoundError

from ._options import default_port
from ._redaction import scrub, without_tracebacks
from .errors import ConnectError, ConnectTimeoutError, EntraRedisError, SignInRefusedError

if TYPE_CHECKING:
    from ._token import Token

__all__ = ["explain"]


def explain(
    exc: Exception,
    *,
    host: str,
    port: int,
    tls: bool,
    token: Token | None,
    tls_name: str | None = None,
) -> EntraRedisError:
    """Turn what a dial raised into an error of ours, without tracebacks that show secrets.

    ``tls_name`` is what the server's certificate had to be for, if not for ``host``. ``exc``
    becomes the cause of what is returned; an error of ours is returned as it is, also where
    redis-py has wrapped it.
    """
    without_tracebacks(exc)
    for cause in _causes(exc):
        if isinstance(cause, EntraRedisError):
            return cause
    error = _explain(exc, f"{host}:{port}" if port else host, host, port, tls, token, tls_name)
    error.__cause__ = exc
    return error


def _explain(
    exc: Exception,
    where: str,
    host: str,
    port: int,
    tls: bool,
    token: Token | None,
    tls_name: str | None,
) -> ConnectError:
    chain = list(_causes(exc))
    reason = scrub(str(chain[-1]) or type(chain[-1]).__name__)
    # What redis-py says comes first where that is what people search and programs look for.
    theirs = scrub(str(exc)).rstrip(".")
    theirs = f"{theirs}: " if _OF_REDIS_PY.match(theirs) else ""

    def error(kind: type[ConnectError], stage: str, text: str) -> ConnectError:
        return kind(text, stage=stage, host=host, port=port)

    for cause in chain:
        if isinstance(cause, (MasterNotFoundError, SlaveNotFoundError)):
            return error(
                ConnectError,
                "dns",
                f"Sentinel knows of no server for {host!r} that could serve now ({reason}): is the "
                "name right, and is the server up?",
            )
        if isinstance(cause, socket.gaierror):
            return error(
                ConnectError,
                "dns",
                f"the host name {host!r} can't be resolved ({reason}). Check its spelling; a cache "
                "with a private endpoint resolves only inside its network",
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return error(
                ConnectError,
                "tls",
                f"the certificate of {where} is not accepted ({cause.verify_message or reason}). "
                f"{_certificate_hint(getattr(cause, 'verify_code', None), host, tls_name)}",
            )
        if isinstance(cause, ssl.SSLError):
            return error(
                ConnectError,
                "tls",
                f"no TLS connection to {where} ({reason}). {_port_hint(host, port, tls)}",
            )
        if isinstance(cause, redis_exceptions.AuthenticationError):
            # Its own words: its context may be why a connection was made anew.
            return error(SignInRefusedError, "auth", _refused(where, token, scrub(str(cause))))
        if isinstance(cause, redis_exceptions.NoPermissionError):
            return error(
                SignInRefusedError,
                "auth",
                f"{where} accepted the sign-in of {_whom(token)} but denies it a command that the "
                f"client needs ({reason}): the access policy is too narrow",
            )
    for cause in chain:
        if isinstance(cause, (redis_exceptions.TimeoutError, TimeoutError)):
            return error(
                ConnectTimeoutError,
                "tcp",
                f"{where} did not answer in time ({reason}): is the port open from here "
                f"(firewall, private endpoint), and is it the right one? "
                f"{_port_hint(host, port, tls)}",
            )
        if isinstance(cause, ConnectionRefusedError):
            return error(
                ConnectError,
                "tcp",
                f"{theirs}nothing listens at {where}. {_port_hint(host, port, tls)}",
            )
        if isinstance(cause, OSError):
            return error(
                ConnectError,
                "tcp",
                f"{theirs}the connection to {where} failed ({reason}). "
                f"{_port_hint(host, port, tls)}",
            )
    return error(
        ConnectError,
        "handshake",
        f"{where} answered the handshake with {reason!r}. {_port_hint(host, port, tls)}",
    )


_OF_REDIS_PY = re.compile(r"Error (-?\d+ )?connecting to ")
"""How redis-py begins what it says of a socket that could not be connected."""


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__


def _whom(token: Token | None) -> str:
    return f"object ID {token.username}" if token is not None else "the configured user"


def _refused(where: str, token: Token | None, reason: str) -> str:
    if token is None:
        return f"{where} refused the sign-in ({reason}): check the user name and password"
    if reason.startswith("invalid username"):
        reason = f"WRONGPASS {reason}"  # what people search for; redis-py strips the word
    return (
        f"{where} refused the Entra token of object ID {token.username} (audience "
        f"{token.audience}, tenant {token.tenant_id}): {reason} The usual causes, in order: no "
        "access policy assignment for this object ID on the cache; the client ID or the app "
        "registration's object ID was assigned instead of this one; a group was assigned, which "
        "is not supported; Entra authentication is switched off (Azure Cache for Redis); the "
        "token is of another tenant; it has expired, or this machine's clock is wrong; the "
        "assignment is minutes old and not yet in force"
    )


_OF_ANOTHER: Final = (62, 64)
_HOST_NAME: Final = "Connect by the host name that the certificate is for"
_CERTIFICATE_HINTS: Final = {
    9: "Is this machine's clock right? The certificate is not valid yet",
    10: "Its owner has to renew it; is this machine's clock right?",
    62: f"{_HOST_NAME}; is something else answering in its place?",
    64: f"{_HOST_NAME}, not by an IP address",
}
"""What to do, by OpenSSL's X509_V_ERR_*: not yet valid, expired, another host's, another IP's."""


def _certificate_hint(code: int | None, host: str, tls_name: str | None) -> str:
    if code in _OF_ANOTHER and tls_name is not None and tls_name != host:
        return (
            f"It had to be for {tls_name!r}: that {host} belongs to it is only what a server has "
            "said. Where nodes have certificates of their own, node_tls_names= says for which names"
        )
    private = "If a private CA signed it, pass ssl_ca_certs="
    return _CERTIFICATE_HINTS.get(code or 0, f"{private}. {_HOST_NAME}")


def _port_hint(host: str, port: int, tls: bool) -> str:
    if not port and "/" not in host:
        return f"Its address came from Sentinel, for the name {host!r}: is it reachable from here?"
    if not port:
        return "Is the server's `unixsocket` this path, and may this user open it?"
    expected = default_port(host)
    if expected is not None and expected != port:
        return f"A cache of this name listens for TLS on {expected}, not on {port}"
    if not tls:
        return "Is it a TLS port? Then the URL starts with rediss://"
    return "Is it the TLS port? (Azure Managed Redis: 10000, Azure Cache for Redis: 6380)"
