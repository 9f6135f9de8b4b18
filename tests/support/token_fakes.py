"""A virtual wall clock, an authority that issues tokens, and credentials that misbehave on cue."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from azure.core.credentials import AccessTokenInfo

from aioentra_redis._credentials import credential_factory
from aioentra_redis._schedule import RetryConfig, TokenRefreshConfig
from aioentra_redis._source import TokenSource

EPOCH = 1_800_000_000.0
CANARY = "c4n4ry"
"""Part of every token's signature: it must not show up anywhere."""

_serial = itertools.count(1)


def jwt(claims: dict[str, Any]) -> str:
    """An unsigned token whose signature part names the canary."""

    def encode(part: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")

    return f"{encode({'alg': 'RS256', 'typ': 'JWT'})}.{encode(claims)}.{CANARY}{next(_serial)}"


class Clock:
    """A wall clock that follows the event loop's virtual time and can be stepped."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        try:
            elapsed = asyncio.get_running_loop().time()
        except RuntimeError:
            elapsed = 0.0
        return EPOCH + elapsed + self.offset

    def step(self, seconds: float) -> None:
        self.offset += seconds


class Credential:
    """Returns what ``answer(number of the call)`` returns, raises what it returns or raises."""

    def __init__(self, clock: Clock, answer: Callable[[int], Any] | None = None, **token: Any):
        self.clock = clock
        self.answer = answer or (lambda _call: self.issue(**token))
        self.calls: list[float] = []
        self.closed = 0
        self.delay = 0.0

    def issue(
        self, life: float = 3600, refresh_in: float | None = None, **claims: Any
    ) -> AccessTokenInfo:
        """A new token of an identity that is the same unless ``claims`` say otherwise."""
        now = self.clock()
        contents = {
            "oid": "oid-1",
            "tid": "tid-1",
            "aud": "https://redis.azure.com",
            "iat": now,
            "exp": now + life,
            **claims,
        }
        contents = {name: value for name, value in contents.items() if value is not None}
        refresh_on = None if refresh_in is None else now + refresh_in
        return AccessTokenInfo(jwt(contents), now + life, refresh_on=refresh_on)  # type: ignore[arg-type]

    async def get_token_info(self, *scopes: str) -> AccessTokenInfo:
        self.calls.append(self.clock() - EPOCH)
        if self.delay:
            await asyncio.sleep(self.delay)
        answer = self.answer(len(self.calls))
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def close(self) -> None:
        self.closed += 1


class CachingCredential(Credential):
    """Behaves as azure-identity does: a cache until 300 s before expiry, and a 30 s hold-off."""

    cached: AccessTokenInfo | None = None
    requested_at = float("-inf")
    requests = 0
    down = False

    async def get_token_info(self, *scopes: str) -> AccessTokenInfo:
        now = self.clock()
        self.calls.append(now - EPOCH)
        cached = self.cached
        if cached is not None and now < cached.expires_on:
            due = cached.expires_on - now <= 300 or (
                cached.refresh_on is not None and now >= cached.refresh_on
            )
            if now - self.requested_at < 30 or not due:
                return cached
        self.requested_at = now
        self.requests += 1
        if self.down:
            if cached is None or now >= cached.expires_on:
                raise ConnectionError("the identity provider is down")
            return cached  # swallowed
        self.cached = self.answer(self.requests)
        return self.cached


def source_of(
    credential: object, clock: Clock, *, factory: bool = False, **options: Any
) -> TokenSource:
    """A source in virtual time; ``factory`` makes a new view of ``credential`` per renewal."""
    if not factory:
        return TokenSource(credential, _clock=clock, **options)

    async def make() -> object:
        return Instance(credential)

    return TokenSource(credential_factory(make), _clock=clock, **options)


class Instance:
    """One instance of a factory: its calls go to the shared credential."""

    alive = 0
    peak = 0

    def __init__(self, credential: Any) -> None:
        self.get_token_info = credential.get_token_info
        self.credential = credential
        credential.alive = getattr(credential, "alive", 0) + 1
        credential.peak = max(credential.alive, getattr(credential, "peak", 0))

    async def close(self) -> None:
        self.credential.alive -= 1
        await self.credential.close()


def config(ratio: float = 0.8, timeout: float = 10, **retry: Any) -> TokenRefreshConfig:
    """A configuration without jitter, so that tests can name the second."""
    return TokenRefreshConfig(ratio, timeout, RetryConfig(**{"jitter_percentage": 0, **retry}))


class Provider(Credential):
    """A credential whose identity provider can be switched off."""

    down: Exception | None = None

    def __init__(self, clock: Clock, **token: Any) -> None:
        super().__init__(clock, lambda _call: self.down or self.issue(**token))


def real(credential_type: Any = Provider, **token: Any) -> Any:
    """A credential in real time."""
    return credential_type(time.time, **token)
