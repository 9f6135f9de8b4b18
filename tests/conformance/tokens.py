"""Clients that sign in with tokens which rotate several times a second, whatever they are told.

So that tests which know nothing of tokens run over connections that are re-authenticated all the
while. A client that is given a way to sign in keeps it.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from typing import Any

from azure.core.credentials import AccessTokenInfo
from support.token_fakes import jwt

from aioentra_redis import EntraRedis, EntraRedisCluster, Event, TokenSource, _schedule

__all__ = [
    "OID",
    "ROTATION",
    "TokenClusterSignIn",
    "TokenSignIn",
    "close_source",
    "events",
    "rotate_every",
]

OID = "0d5f0d8e-6f1e-4b0e-9f6c-c0f0a7e51ab5"
"""Who the tokens are of; the server knows a user of that name who needs no password."""

ROTATION = 0.03
"""Seconds from one token to the next, unless told otherwise: most tests are over in that time."""

AGE = 1000.0
"""Seconds since the issue of each token: more than 600, so that its AUTH is due 180 s before
its expiry, by the rule for tokens of real length."""

DUE = 3
"""So many rotations from now every connection has to have sent AUTH with a newer token; before
that, it does so at a moment of its own choice, as with real tokens."""

SIGN_IN_KEYWORDS = ("username", "password", "credential_provider")


events: Counter[str] = Counter()
"""How often each kind of event happened: that tokens do rotate, and connections follow."""


def count(event: Event) -> None:
    """An ``on_event`` callback."""
    events[type(event).__name__] += 1


class Rotating:
    """A credential factory and its only instance: each token is a newer one."""

    async def __call__(self) -> Rotating:
        return self

    async def get_token_info(self, *scopes: str) -> AccessTokenInfo:
        now = time.time()
        expires = now + DUE * _schedule.MIN_RENEWAL_INTERVAL + _schedule.AUTH_LEAD
        claims = {
            "oid": OID,
            "tid": "tid-1",
            "aud": "https://redis.azure.com",
            "iat": now - AGE,
            "exp": expires,
        }
        return AccessTokenInfo(jwt(claims), expires)  # type: ignore[arg-type]


_sources: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, TokenSource] = (
    weakref.WeakKeyDictionary()
)


def rotate_every(seconds: float) -> None:
    """Have tokens renewed so often; those of real length live for a second at least."""
    _schedule.MIN_RENEWAL_INTERVAL = seconds


def source_of_this_loop() -> TokenSource:
    """The loop's one source: clients that share a pool have to share it."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return TokenSource.from_credential_factory(Rotating(), on_event=count)
    source = _sources.get(loop)
    if source is None:
        source = TokenSource.from_credential_factory(Rotating(), on_event=count)
        _sources[loop] = source
    return source


async def close_source(loop: asyncio.AbstractEventLoop) -> None:
    """Close what ``source_of_this_loop`` made, if it made any."""
    source = _sources.pop(loop, None)
    if source is not None:
        await source.aclose()


def with_tokens(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a client that is not told otherwise how to sign in."""
    options.setdefault("token_source", source_of_this_loop())
    # Some tests name hosts that nobody ever dials, or have no certificate to show.
    options.setdefault("allow_plaintext", True)
    options.setdefault("allow_insecure_tls", True)
    return options


class TokenSignIn(EntraRedis):
    """An ``EntraRedis`` that signs in with tokens unless told to sign in otherwise."""

    def __init__(self, **kwargs: Any) -> None:
        pool = kwargs.get("connection_pool")
        settings = kwargs if pool is None else pool.connection_kwargs
        if not any(settings.get(name) for name in SIGN_IN_KEYWORDS):
            with_tokens(kwargs)
        super().__init__(**kwargs)
        self._hub.listen(count)  # with on_event=, the shared source's would count once per client


class TokenClusterSignIn(EntraRedisCluster):
    """An ``EntraRedisCluster`` that signs in with tokens unless told to sign in otherwise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not any(kwargs.get(name) for name in SIGN_IN_KEYWORDS):
            with_tokens(kwargs)
        super().__init__(*args, **kwargs)
        self._hub.listen(count)
