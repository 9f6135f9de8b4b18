"""What the integration tests share: sources and clients of the emulator, and waiting for things."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from azure.core.credentials import AccessTokenInfo

from aioentra_redis import (
    EntraRedis,
    Event,
    RetryConfig,
    TokenRefreshConfig,
    TokenSource,
    connect,
)
from aioentra_redis.emulator import Emulator

E = TypeVar("E", bound=Event)

PATIENCE = 25.0
"""Seconds after which it is given up to wait for what takes a moment: the machine may be busy."""

BRISK = TokenRefreshConfig(
    request_timeout=2.0,
    retry=RetryConfig(max_attempts=2, initial_delay=0.05, max_delay=0.2, jitter_percentage=0),
)
"""A refresh that makes up its mind within a fraction of a second."""


def secret_source(emulator: Emulator, **options: Any) -> TokenSource:
    """Unmodified ``ClientSecretCredential``s, a fresh one per renewal."""
    principal = emulator.service_principal
    return TokenSource.from_client_secret(
        emulator.tenant_id,
        principal.client_id,
        principal.secret or "",
        **{"refresh": BRISK, **emulator.credential_options, **options},
    )


def minted_source(
    emulator: Emulator,
    *,
    believed: float,
    lifetime: float = 30.0,
    refresh_in: float | None = None,
    gate: asyncio.Event | None = None,
    **options: Any,
) -> TokenSource:
    """A source that takes its tokens to end after ``believed`` seconds and so renews in half that,
    or after ``refresh_in`` (a second at least).

    The server lets them live for ``lifetime``. So tokens rotate faster than a second apart, which
    no identity provider's whole-second expiry allows, and nothing expires if the machine is busy.
    From the second on they wait for the ``gate``, if there is one.
    """
    mint = Mint(emulator, believed, lifetime, refresh_in, gate)
    return TokenSource.from_credential_factory(mint, **{"refresh": BRISK, **options})


class Mint:
    """A credential factory and its only instance; the emulator signs the tokens."""

    def __init__(
        self,
        emulator: Emulator,
        believed: float,
        lifetime: float,
        refresh_in: float | None = None,
        gate: asyncio.Event | None = None,
    ) -> None:
        self._emulator = emulator
        self._believed = believed
        self._refresh_in = refresh_in
        self._gate = gate
        self.lifetime = lifetime
        self.asked = 0

    async def __call__(self) -> Mint:
        return self

    async def get_token_info(self, *scopes: str) -> AccessTokenInfo:
        self.asked += 1
        if self._gate is not None and self.asked > 1:
            await self._gate.wait()
        ends = time.time() + self.lifetime
        token = await self._emulator.issue_token(lifetime=self.lifetime)
        now = time.time()  # what is believed in for fractions of a second must not age on its way
        times: dict[str, Any] = {
            "expires_on": min(now + self._believed, ends),
            "refresh_on": None if self._refresh_in is None else now + self._refresh_in,
        }
        return AccessTokenInfo(token, **times)


def client_of(emulator: Emulator, source: TokenSource | None, **options: Any) -> Any:
    """``connect()`` to the emulator over TLS; await it or enter it."""
    options = {"ssl_ca_certs": emulator.ca_file, "cluster": False, **options}
    return connect(emulator.url, token_source=source, **options)


class Witness:
    """An ``on_event`` callback that keeps every event and lets tests wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def of(self, kind: type[E]) -> list[E]:
        return [each for each in self.events if isinstance(each, kind)]

    async def first(
        self,
        kind: type[E],
        condition: Callable[[E], bool] = lambda _: True,
        timeout: float = PATIENCE,
    ) -> E:
        """The first event of this kind that meets the condition, past or future."""
        async with asyncio.timeout(timeout):
            while True:
                for each in self.of(kind):
                    if condition(each):
                        return each
                self._news.clear()
                await self._news.wait()

    async def at_least(self, count: int, kind: type[E], timeout: float = PATIENCE) -> list[E]:
        """All events of this kind, once there are so many."""
        async with asyncio.timeout(timeout):
            while len(self.of(kind)) < count:
                self._news.clear()
                await self._news.wait()
        return self.of(kind)


async def until(condition: Callable[[], Any], timeout: float = PATIENCE) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


async def until_gone(emulator: Emulator) -> None:
    """Wait until the server has heard of the end of every connection, which takes it a moment."""
    async with asyncio.timeout(PATIENCE):
        while await emulator.connections():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


class Traffic:
    """Workers that write and read their own values until told to stop, checking every reply."""

    def __init__(self, redis: EntraRedis, workers: int) -> None:
        self._redis = redis
        self._stopping = False
        self.done = 0
        self.errors: list[BaseException] = []
        self.wrong: list[object] = []
        self.latencies: list[tuple[float, float]] = []
        """When each command was sent, and how long it took, in seconds of the loop's clock."""
        self.failures: list[tuple[float, float]] = []
        """The same of each that failed, in the order of ``errors``."""
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(workers)]

    async def _work(self, number: int) -> None:
        clock = asyncio.get_running_loop().time
        key, turn = f"worker:{number}", 0
        while not self._stopping:
            turn += 1
            value = f"{number}/{turn}"
            sent = clock()
            try:
                await self._redis.set(key, value)
                answered = clock()
                reply = await self._redis.get(key)
            except Exception as error:
                self.errors.append(error)
                self.failures.append((sent, clock() - sent))
                await asyncio.sleep(0.01)
                continue
            self.latencies += [(sent, answered - sent), (answered, clock() - answered)]
            if reply not in (value, value.encode()):
                self.wrong.append((key, value, reply))
            self.done += 2

    def slowest(self, since: float) -> float:
        """The longest that a command sent after that moment took."""
        return max(took for sent, took in self.latencies if sent >= since)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
