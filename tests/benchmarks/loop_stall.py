"""How long acquiring tokens keeps the event loop from running.

A ticker wakes every millisecond; the stall is its longest delay while a token source starts. Every
figure comes from a fresh process, because the first acquisition imports what it needs (azure,
aiohttp), and imports are what stalls most.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from _harness import (
    CLIENT_CORE,
    LocalCredential,
    Series,
    fake_token,
    headline,
    pin,
    progress,
    table,
)

TICK = 0.001
BLOCKS = 0.5
"""Seconds that the synchronous credential blocks its thread."""


class Ticker:
    """Measures the longest delay of a task that wants to run every millisecond."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.ticks = 0

    async def run(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            self.worst = max(self.worst, now - last - TICK)
            self.ticks += 1
            last = now


class SynchronousCredential:
    """A credential like azure-identity's synchronous ones: it blocks while it asks."""

    def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        from azure.core.credentials import AccessTokenInfo

        time.sleep(BLOCKS)
        token, expires_on = fake_token(3600)
        return AccessTokenInfo(token, int(expires_on))

    def close(self) -> None:
        """Nothing to close."""


@contextlib.asynccontextmanager
async def silent_endpoint() -> AsyncIterator[int]:
    """A port whose kernel accepts connections and where nobody ever answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield listening.getsockname()[1]


async def no_token() -> None:
    await asyncio.sleep(1)


async def own_credential() -> None:
    from aioentra_redis import TokenSource

    async with TokenSource(LocalCredential(lifetime=3600)) as source:
        await source.get()
        await asyncio.sleep(0.2)


async def synchronous_credential() -> None:
    from aioentra_redis import TokenSource

    async with TokenSource(SynchronousCredential()) as source:
        await source.get()


async def hanging_endpoint() -> None:
    from aioentra_redis import RetryConfig, TokenRefreshConfig, TokenSource
    from aioentra_redis.errors import TokenAcquisitionError

    async with silent_endpoint() as port:
        source = TokenSource.from_client_secret(
            "8d1c0a52-6c1f-4f0e-a3f0-3f0b6ad7a9c2",
            "0c6e3ed4-3b7c-4b35-a2a6-3f6c41a1a0d2",
            "secret",
            authority=f"https://localhost:{port}",
            disable_instance_discovery=True,
            refresh=TokenRefreshConfig(request_timeout=2, retry=RetryConfig(max_attempts=1)),
        )
        try:
            await source.start()
        except TokenAcquisitionError:
            pass
        else:
            raise RuntimeError("an endpoint that never answers gave a token")
        finally:
            await source.aclose()


async def on_the_loop() -> None:
    SynchronousCredential().get_token_info("scope")


SCENARIOS: dict[str, tuple[str, Callable[[], Coroutine[Any, Any, None]], bool]] = {
    "quiet": ("no token is acquired", no_token, True),
    "own": ("an asynchronous credential of the user's", own_credential, True),
    "sync": (f"a synchronous credential that blocks {BLOCKS:g} s", synchronous_credential, True),
    "hanging": ("a client secret, first imports, endpoint never answers", hanging_endpoint, True),
    "hanging, imported": ("the same, azure imported before", hanging_endpoint, False),
    "naive": ("for comparison: the synchronous credential on the loop", on_the_loop, True),
}


async def measure(scenario: str) -> dict[str, float]:
    _, work, fresh = SCENARIOS[scenario]
    if scenario not in ("quiet", "naive"):
        import aioentra_redis

        assert aioentra_redis.__version__  # its import is the program's, before any loop runs
    if scenario in ("own", "sync", "naive"):
        # Whoever brings a credential has imported what it is made of.
        from azure.core.credentials import AccessTokenInfo

        assert AccessTokenInfo
    if not fresh:
        import aiohttp
        import azure.identity.aio

        assert aiohttp.__version__
        assert azure.identity.__version__
    ticker = Ticker()
    task = asyncio.create_task(ticker.run())
    await asyncio.sleep(0.1)
    ticker.worst = 0.0
    begin = time.perf_counter()
    await work()
    elapsed = time.perf_counter() - begin
    await asyncio.sleep(0.05)
    task.cancel()
    return {"stall": ticker.worst, "seconds": elapsed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=list(SCENARIOS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    pin(CLIENT_CORE)
    if options.one:
        print(json.dumps(asyncio.run(measure(options.one))))
        return

    stalls = {name: Series() for name in SCENARIOS}
    seconds = {name: Series() for name in SCENARIOS}
    for number in range(options.rounds):
        for name in SCENARIOS:
            done = subprocess.run(
                [sys.executable, __file__, "--one", name],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if done.returncode:
                stalls[name].problems.append((done.stderr.strip().splitlines() or ["?"])[-1])
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            stalls[name].values.append(found["stall"])
            seconds[name].values.append(found["seconds"])
            progress(f"round {number + 1} {name}: {found['stall'] * 1000:.1f} ms")
    names = ["aioentra-redis", "azure-identity", "aiohttp"]
    print(headline(loop="asyncio", port=None, distributions=names))
    print(
        f"\nLongest stall of the event loop, median (range) of {options.rounds} fresh processes\n"
    )
    rows = [
        [SCENARIOS[name][0], stalls[name].cell(1000, 1), seconds[name].cell(1, 2)]
        for name in SCENARIOS
    ]
    print(table(["", "stall, ms", "took, s"], rows))


if __name__ == "__main__":
    main()
