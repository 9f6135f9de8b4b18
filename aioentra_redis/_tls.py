"""The rules about TLS where a token signs in, for keywords and for the contexts made of them.

Keywords are looked at first, when a client is made, so that who asked for less than the rules is
told at once and by the keyword's name. But what counts is the context of the connection that a
token is about to be sent on: redis-py's defaults differ between versions, and a connection class of
the user's may bring a context of its own. So each connection's context is looked at, too.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Final

from .errors import ConfigurationError, InsecureConnectionError

__all__ = ["check_context", "check_tls", "strengthen", "weaknesses_of"]

_CERT_REQS: Final[Mapping[object, ssl.VerifyMode]] = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
    None: ssl.CERT_NONE,
}

_PROXIES: Final = ssl.VerifyFlags.VERIFY_ALLOW_PROXY_CERTS
"""With it whoever has any certificate can issue one for any name (RFC 3820), and the check of host
names, which looks at common names, takes it."""

_LEVEL_0: Final = (
    "OpenSSL's security level 0 (it allows servers without a certificate, and no encryption)"
)


def check_tls(options: Mapping[str, Any], *, allow_insecure_tls: bool) -> frozenset[str]:
    """Refuse keywords, or options from a URL's query, that turn certificate checks off.

    With ``allow_insecure_tls`` they are let through with a warning; returns their names. What
    redis-py would stumble over later is a ``ConfigurationError``.
    """
    found = {}
    check_hostname = options.get("ssl_check_hostname", True)
    if check_hostname is not None and not check_hostname:
        found["ssl_check_hostname"] = "ssl_check_hostname=False (host names would not be checked)"
    if _cert_reqs(options) is not ssl.CERT_REQUIRED:
        found["ssl_cert_reqs"] = (
            f"ssl_cert_reqs={options['ssl_cert_reqs']!s} (any certificate would do)"
        )
    minimum = options.get("ssl_min_version")
    if minimum is not None:
        if not isinstance(minimum, int):
            raise ConfigurationError(
                f"ssl_min_version= is an ssl.TLSVersion, not {minimum!r}: the default, TLS 1.2, "
                "fits all of Azure's Redis services"
            )
        if minimum < ssl.TLSVersion.TLSv1_2:
            found["ssl_min_version"] = "ssl_min_version below TLS 1.2"
    if _PROXIES in (options.get("ssl_include_verify_flags") or ()):
        found["ssl_include_verify_flags"] = f"ssl_include_verify_flags with {_PROXIES.name}"
    if (ciphers := options.get("ssl_ciphers")) is not None and _level_with(ciphers) < 1:
        found["ssl_ciphers"] = f"ssl_ciphers={ciphers!r}, which is {_LEVEL_0}"
    _refuse(list(found.values()), allow_insecure_tls=allow_insecure_tls, stacklevel=5)
    return frozenset(found)


def _cert_reqs(options: Mapping[str, Any]) -> ssl.VerifyMode:
    """What ``ssl_cert_reqs`` means; ``ConfigurationError`` where it means nothing."""
    asked = options.get("ssl_cert_reqs", "required")
    if isinstance(asked, str):
        asked = asked.lower()
    try:
        return ssl.VerifyMode(_CERT_REQS.get(asked, asked))
    except (ValueError, TypeError):
        raise ConfigurationError(
            f"ssl_cert_reqs= is 'required', not {options['ssl_cert_reqs']!r}; it may be left out"
        ) from None


def _level_with(ciphers: object) -> int:
    """OpenSSL's security level once the ciphers are set, which may name one (``@SECLEVEL=0``)."""
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        bare.set_ciphers(ciphers)  # type: ignore[arg-type]
    except (ssl.SSLError, TypeError) as exc:
        raise ConfigurationError(
            f"ssl_ciphers={ciphers!r} is no list of ciphers that OpenSSL knows ({exc}): leave it "
            "out, the default fits all of Azure's Redis services"
        ) from None
    return bare.security_level


def strengthen(context: ssl.SSLContext, *, lifted: Collection[str] = ()) -> None:
    """Have ``context`` check certificates and host names, whatever redis-py's version defaults to.

    5.x does not check host names unless told to. ``lifted`` names keywords whose rule the user has
    lifted. Ciphers and flags stay as they are, see ``check_context``.
    """
    if "ssl_cert_reqs" not in lifted:
        context.verify_mode = ssl.CERT_REQUIRED
        if "ssl_check_hostname" not in lifted:
            context.check_hostname = True
    if "ssl_min_version" not in lifted and context.minimum_version < ssl.TLSVersion.TLSv1_2:
        context.minimum_version = ssl.TLSVersion.TLSv1_2


def weaknesses_of(context: ssl.SSLContext, *, lifted: Collection[str] = ()) -> dict[str, str]:
    """What makes a connection with this context unsure of its peer, or readable on the way.

    By the keyword that it would come of; those ``lifted``, and what follows from them, are left
    out.
    """
    found = {}
    if not context.check_hostname and "ssl_cert_reqs" not in lifted:
        found["ssl_check_hostname"] = "the host name is not checked"
    if context.verify_mode is not ssl.CERT_REQUIRED:
        found["ssl_cert_reqs"] = "any certificate would do"
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:  # "whatever is supported" is -2
        found["ssl_min_version"] = "versions below TLS 1.2 are allowed"
    if context.security_level < 1:
        found["ssl_ciphers"] = _LEVEL_0
    if context.verify_flags & _PROXIES:
        found["ssl_include_verify_flags"] = "proxy certificates are accepted"
    return {name: text for name, text in found.items() if name not in lifted}


def check_context(
    context: ssl.SSLContext,
    where: str,
    *,
    allow_insecure_tls: bool,
    lifted: Collection[str] = (),
) -> None:
    """Refuse the context of the connection to ``where`` if it is weaker than the rules.

    With ``allow_insecure_tls`` it is let through with a warning, without one of what is ``lifted``.
    """
    texts = [f"{text} at {where}" for text in weaknesses_of(context, lifted=lifted).values()]
    _refuse(texts, allow_insecure_tls=allow_insecure_tls)


def _refuse(weaknesses: list[str], *, allow_insecure_tls: bool, stacklevel: int = 2) -> None:
    if not weaknesses:
        return
    text = " and ".join(weaknesses)
    if not allow_insecure_tls:
        raise InsecureConnectionError(
            f"{text}: whoever sits between could read the token and act as you, so it was not "
            "sent. Pass the CA that signed the server's certificate as ssl_ca_certs= instead; for "
            "a throw-away test, allow_insecure_tls=True"
        )
    warnings.warn(f"insecure TLS allowed: {text}", RuntimeWarning, stacklevel=stacklevel)
