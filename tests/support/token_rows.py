"""As ``rows``: what was measured to go wrong with getting tokens, and with being refused."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from azure.core.credentials import AccessTokenInfo

from aioentra_redis import (
    TokenPublished,
    TokenSource,
)
from aioentra_redis.emulator import Emulator

from .plain_clients import (
    client_by,
    until_refused,
    until_renewed,
)
from .rows import refusals
from .signing_in import BRISK, Mint, Traffic, Witness, minted_source, secret_source, until

__all__ = [
    "a_provider_that_fails_for_a_moment",
    "acquisitions_per_rotation",
    "auth_refused_for_a_while",
    "loop_lag",
    "one_token_again_and_again",
]


async def a_provider_that_fails_for_a_moment(way: str, emulator: Emulator) -> dict[str, float]:
    """For 300 ms; renewal goes on as soon as it is back, and no command notices."""
    await emulator.configure(token_lifetime=4)
    witness = Witness()
    clock = asyncio.get_running_loop().time
    options = {} if way == "connect" else {"single_connection_client": True}
    async with (
        secret_source(emulator, on_event=witness) as source,
        client_by(way, emulator, source, **options) as redis,
    ):
        traffic = Traffic(redis, 3)
        await until(lambda: traffic.done > 10)
        await emulator.fail_identity()
        await until(lambda: source.status.consecutive_failures > 0)
        published = len(witness.of(TokenPublished))
        await asyncio.sleep(0.3)
        await emulator.heal()
        healed = clock()
        await witness.at_least(published + 1, TokenPublished, timeout=20)
        back = clock() - healed
        await witness.at_least(published + 2, TokenPublished, timeout=20)
        await traffic.stop()
    assert (traffic.errors, traffic.wrong) == ([], [])
    assert len({each.connection for each in (await emulator.log()).auths}) == 1
    return {"seconds": back, "failed": len(traffic.errors)}


async def one_token_again_and_again(way: str, emulator: Emulator, *, seconds: float) -> int:
    """AUTHs of one connection under a credential that returns what it has; the token is believed
    to be nearly over all the time."""
    mint = Mint(emulator, believed=1.0, lifetime=30)
    cached: list[Any] = []

    class Caching:
        async def get_token_info(self, *scopes: str) -> Any:
            if not cached:
                token = (await mint.get_token_info(*scopes)).token
                cached.append(AccessTokenInfo(token, int(time.time() + seconds + 1.5)))
            return cached[0]

    async with (
        TokenSource(Caching(), refresh=BRISK) as source,
        client_by(way, emulator, source) as redis,
    ):
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            assert await redis.ping()
    log = await emulator.log()
    assert len({each.connection for each in log.auths}) == 1
    return len(log.auths)


async def auth_refused_for_a_while(
    way: str,
    emulator: Emulator,
    *,
    until_healed: Callable[[], Any] | None = None,
    refresh_in: float = 1.0,
    believed: float = 10.0,
    refusals_at_least: int = 4,
    **options: Any,
) -> dict[str, int]:
    """Every newer token is refused while the sessions' own are good: no command fails.

    A newer token would come every ``refresh_in`` seconds. The server takes tokens again after
    ``until_healed`` and no fewer refusals than that: a few, each of another token, because the
    sessions' own must not end meanwhile.
    """
    witness = Witness()
    async with (
        minted_source(
            emulator,
            believed=believed,
            lifetime=3 * believed,
            refresh_in=refresh_in,
            on_event=witness,
        ) as source,
        client_by(way, emulator, source, pool=5, **options) as redis,
    ):
        # All five are opened beforehand: a connection that is new meanwhile has to be refused,
        # and some versions' pools get through the traffic with fewer for a long time.
        await asyncio.gather(*(redis.blpop(["nothing"], timeout=1.5) for _ in range(5)))
        traffic = Traffic(redis, 5)
        await until(lambda: traffic.done > 100)
        connections = len({each.connection for each in (await emulator.log()).auths})
        assert connections >= 5
        await emulator.refuse_auth()
        asked = len((await emulator.log()).tokens)
        if until_healed is not None:
            await until_healed()
        await until_refused(emulator, refusals_at_least)
        refused = await refusals(emulator)
        log = await emulator.log()
        asked = len(log.tokens) - asked
        assert len({each.connection for each in log.auths}) == connections
        await emulator.heal()
        healed = len((await emulator.log()).auths)
        # Each looks again in half a minute, or when there is a newer token.
        await until_renewed(emulator, healed + connections, within=10 + max(refresh_in, 30))
        await traffic.stop()
    assert (traffic.errors, traffic.wrong) == ([], [])
    if way == "connect":  # else what was idle has been replaced when it was wanted again
        log = await emulator.log()
        assert len({each.connection for each in log.auths}) == connections
    return {"commands": traffic.done, "failed": 0, "requests": asked, "refused": refused}


async def loop_lag(until_done: asyncio.Task[Any]) -> float:
    """The longest that the event loop was busy at a stretch until the task is done, in seconds."""
    clock = asyncio.get_running_loop().time
    worst = 0.0
    while not until_done.done():
        began = clock()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(until_done), 0.005)
        worst = max(worst, clock() - began - 0.005)
    return worst


async def acquisitions_per_rotation(
    way: str, emulator: Emulator, make: Callable[[Witness], TokenSource], asked: list[float]
) -> tuple[float, float]:
    """50 connections and a credential without a cache; and the worst lag of the loop."""
    witness = Witness()
    calls = 0.0

    async def work() -> None:
        nonlocal calls
        async with (
            make(witness) as source,
            client_by(way, emulator, source, url=emulator.plaintext_url, pool=60) as redis,
        ):
            await asyncio.gather(*(redis.blpop([f"n:{n}"], timeout=0.3) for n in range(50)))
            published = await witness.at_least(4, TokenPublished, timeout=40)
            calls = len(asked) / len(published)
            await asyncio.gather(*(redis.blpop([f"n:{n}"], timeout=0.3) for n in range(50)))

    working = asyncio.create_task(work())
    lag = await loop_lag(working)
    await working
    return calls, lag
