"""What the user asked for: the URL, the environment, and the rule about plaintext.

Pure functions. Everything that is wrong here is refused before a byte is sent and before a token
is asked for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from .errors import ConfigurationError, InsecureConnectionError

__all__ = [
    "AZURE_PORTS",
    "URL_VARIABLES",
    "check_alone",
    "check_host_for_plaintext",
    "check_seconds",
    "check_sign_in",
    "given_seconds",
    "is_loopback",
    "resolve_url",
]

URL_VARIABLES = ("REDIS_URL", "AZURE_REDIS_HOST", "REDIS_HOST")
"""Where the URL comes from when none is passed, in this order."""

AZURE_PORTS: Mapping[str, int] = {
    ".redis.azure.net": 10000,
    ".redis.chinacloudapi.cn": 10000,
    ".redis.usgovcloudapi.net": 10000,
    ".redis.cache.windows.net": 6380,
    ".redis.cache.chinacloudapi.cn": 6380,
    ".redis.cache.usgovcloudapi.net": 6380,
}
"""The TLS port of Azure Managed Redis (10000) and Azure Cache for Redis (6380) by host suffix."""

_SCHEMES = ("rediss", "redis", "unix")


def resolve_url(url: str | None, environ: Mapping[str, str]) -> str:
    """The URL to connect to: the argument, else the first of ``URL_VARIABLES`` that is set.

    A bare host name becomes a ``rediss://`` URL whose port follows from its suffix. Raises
    ``ConfigurationError`` where there is no URL, or it has an unknown scheme, no host, a port
    that is none, or a password.
    """
    origin = "the URL"
    if url is None:
        for name in URL_VARIABLES:
            if environ.get(name):
                url, origin = environ[name], f"the environment variable {name}"
                break
        else:
            raise ConfigurationError(
                "no Redis URL: pass one to connect(), or set "
                + " or ".join(URL_VARIABLES)
                + " (such as rediss://<name>.<region>.redis.azure.net:10000)"
            )
    url = url.strip()
    if not url:
        raise ConfigurationError(f"{origin} is empty")
    if "://" not in url:
        url = "rediss://" + url
    parts = _split(url, origin)
    if parts.scheme == "unix":
        return url
    host = parts.hostname
    if not host:
        raise ConfigurationError(f"{origin} names no host; expected rediss://<host>:<port>")
    port = _port(parts, origin)
    if port is None:
        port = default_port(host)
        if port is None:
            raise ConfigurationError(
                f"{origin} names no port, and none follows from the host name {host!r}: "
                f"write rediss://{host}:<port> (Azure Managed Redis listens on 10000, "
                "Azure Cache for Redis on 6380)"
            )
        url = parts._replace(netloc=f"{parts.netloc.rstrip(':')}:{port}").geturl()
    return url


def _split(url: str, origin: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise ConfigurationError(f"{origin} can't be read: {exc}") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{origin} has the unknown scheme {parts.scheme!r}; "
            "use rediss:// (TLS), or redis:// and unix:// on the same machine"
        )
    if parts.password is not None or "password" in dict(parse_qsl(parts.query)):
        raise ConfigurationError(
            f"{origin} holds a password. With Entra ID there is none: the token is fetched and "
            "renewed for you. Remove it from the URL; for access keys use redis.asyncio.Redis, "
            "or EntraRedis.from_url() without a token source"
        )
    return parts


def _port(parts: SplitResult, origin: str) -> int | None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        text = parts.netloc.rpartition(":")[2]
        raise ConfigurationError(f"{origin} has the port {text!r}; expected a number up to 65535")
    return port


def default_port(host: str) -> int | None:
    """The TLS port that follows from an Azure host name's suffix, None for any other host."""
    for suffix, port in AZURE_PORTS.items():
        if host.lower().endswith(suffix):
            return port
    return None


def check_seconds(**values: Any) -> None:
    """Refuse durations that are no number of seconds above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ConfigurationError(f"{name}= is a number of seconds above 0, not {value!r}")


def given_seconds(**values: Any) -> dict[str, float]:
    """The durations that are not None, checked."""
    given = {name: value for name, value in values.items() if value is not None}
    check_seconds(**given)
    return given


def check_sign_in(token_source: Any, credential: Any) -> None:
    """Refuse two ways to get a token at once."""
    if token_source is not None and credential is not None:
        raise ConfigurationError("pass token_source= or credential=, not both")


def check_alone(options: Mapping[str, Any]) -> None:
    """Refuse what signs in, too, next to a token source."""
    for name in ("password", "credential_provider", "redis_connect_func"):
        if options.get(name) is not None:
            raise ConfigurationError(
                f"{name}= can't be combined with an Entra token source: the token is the password, "
                "its object ID the user name, and both are sent for you"
            )


def is_loopback(host: str) -> bool:
    """Whether the host, a name or an address, stays on this machine."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_host_for_plaintext(host: str, *, allow_plaintext: bool) -> None:
    """Refuse to send a token in clear to another machine.

    The peer's address is checked again after each dial, in case the name of a loopback host
    resolves to something else.
    """
    if allow_plaintext or is_loopback(host):
        return
    raise InsecureConnectionError(
        f"redis:// would send the Entra token to {host} in clear text, so nothing was sent: use "
        "rediss:// (Entra authentication is offered over TLS only), a loopback host, or, if the "
        "path is protected by other means, allow_plaintext=True"
    )
