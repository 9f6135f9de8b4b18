"""The clients of a soak and their token sources."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from support.signing_in import BRISK, client_of, secret_source

from aioentra_redis import (
    EntraRedis,
    Event,
    ReauthenticationFailed,
    TokenPublished,
    TokenRefreshConfig,
    TokenSource,
    entra_kwargs,
)
from aioentra_redis.emulator import Emulator

from .findings import Findings, Kind
from .schedule import Windows

__all__ = ["LIFETIME", "Observer", "Parties", "parties"]

LIFETIME = 4.0
"""Seconds that a token lives: renewed after one, every AUTH due after 2.8."""

REFRESH = TokenRefreshConfig(expiration_refresh_ratio=0.2, request_timeout=1.0, retry=BRISK.retry)

SOURCES = ("commands", "more", "queues", "channels", "plain")


class Observer:
    """Listens to everybody's events: counts them, and minds what no fault explains."""

    def __init__(self, findings: Findings, windows: Windows) -> None:
        self._findings, self._windows = findings, windows
        self.counts: Counter[str] = Counter()

    @property
    def rotations(self) -> int:
        """Tokens that replaced another one, over all sources."""
        return self.counts["TokenPublished"] - len(SOURCES)

    def on_source_event(self, event: Event) -> None:
        if isinstance(event, TokenPublished):
            self.counts["TokenPublished"] += 1

    def on_event(self, event: Event) -> None:
        name = type(event).__name__
        if not name.startswith("Token"):
            self.counts[name] += 1
        if isinstance(event, ReauthenticationFailed):
            now = time.time()
            if not self._windows.excuses(now, now, lambda kind: kind.holds_up_auth or kind.kills):
                text = f"AUTH on {event.connection} failed: {event.error}"
                self._findings.add(Kind.UNEXPLAINED, text)


class Parties:
    """The clients by name."""

    commands: Any
    more: Any
    queues: Any
    resp3: Any
    resp2: Any
    plain: Any
    admin: Any
    """Not under test: a client with a token that outlives the soak."""

    sources: dict[str, TokenSource]
    exempt: frozenset[str]
    """Object IDs whose connections the server may end: see ``entra_kwargs``."""


@contextlib.asynccontextmanager
async def parties(
    emulator: Emulator,
    observer: Observer,
    on_resp3: Any,
    on_resp2: Any,
    client_class: type[EntraRedis] | None = None,
) -> AsyncIterator[Parties]:
    """Sign everybody in, through ``connect()`` or with clients of the class."""
    await emulator.configure(token_lifetime=LIFETIME)
    all_of = Parties()
    all_of.exempt = frozenset({emulator.system_assigned.object_id})
    async with contextlib.AsyncExitStack() as stack:
        all_of.sources = {}
        for name in SOURCES:
            made = (
                _managed_source(emulator)
                if name == "plain"
                else secret_source(emulator, refresh=REFRESH, name=name)
            )
            made.listen(observer.on_source_event)
            all_of.sources[name] = await stack.enter_async_context(made)

        async def client(source: str, *listeners: Any, **options: Any) -> Any:
            def on_event(event: Event) -> None:
                for each in (observer.on_event, *listeners):
                    each(event)

            options = {"on_event": on_event, **options}
            if client_class is None:
                made = client_of(emulator, all_of.sources[source], **options)
            else:
                made = client_class.from_url(
                    emulator.url,
                    token_source=all_of.sources[source],
                    ssl_ca_certs=emulator.ca_file,
                    **options,
                )
            return await stack.enter_async_context(made)

        all_of.commands = await client("commands")
        all_of.more = await client("more", protocol=2)
        all_of.queues = await client("queues")
        all_of.resp3 = await client("channels", on_resp3)
        all_of.resp2 = await client("channels", on_resp2, protocol=2)
        all_of.plain = redis.asyncio.Redis.from_url(
            emulator.url,
            ssl_ca_certs=emulator.ca_file,
            retry=Retry(NoBackoff(), 0),
            **entra_kwargs(all_of.sources["plain"]),
        )
        stack.push_async_callback(all_of.plain.aclose)
        all_of.admin = redis.asyncio.Redis.from_url(
            emulator.url,
            username=emulator.service_principal.object_id,
            password=await emulator.issue_token(lifetime=86_400),
            ssl_ca_certs=emulator.ca_file,
            retry=Retry(ExponentialBackoff(), 8),
        )
        stack.push_async_callback(all_of.admin.aclose)
        yield all_of


def _managed_source(emulator: Emulator) -> TokenSource:
    """Another identity's tokens, so that the server's log tells its connections from the rest."""

    class Mint:
        async def __call__(self) -> Any:
            return self

        async def get_token(self, *scopes: str, **_: Any) -> Any:
            from azure.core.credentials import AccessToken

            identity = emulator.system_assigned
            token = await emulator.issue_token(identity, lifetime=LIFETIME)
            return AccessToken(token, int(time.time() + LIFETIME) + 1)

    return TokenSource.from_credential_factory(Mint(), refresh=REFRESH, name="plain")
