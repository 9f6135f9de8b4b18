"""What an outage of the identity provider does to a client at work, from start to recovery.

The outage begins with a token that has just been issued and outlives it: first nothing may be
noticed, then commands have to say at once what is wrong, and in the end the first attempt that
succeeds puts everything right.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import azure.identity.aio  # noqa: F401 - it takes longer than the first attempt may
from support.signing_in import Traffic, Witness, client_of, until

from aioentra_redis import (
    MaybeExecutedError,
    RefreshFailed,
    RetryConfig,
    Token,
    TokenExpiredError,
    TokenPublished,
    TokenRefreshConfig,
    TokenSource,
    TokenState,
)
from aioentra_redis._schedule import reauth_deadline
from aioentra_redis.emulator import Emulator

__all__ = ["LIFE", "PATIENT", "Attempt", "Attempts", "endure", "young_heap"]

LIFE = 8.0
"""Seconds that tokens live in these tests."""
PATIENT = TokenRefreshConfig(request_timeout=0.9, retry=RetryConfig())
"""Everything as it is by default, so that it is the design's caps that shorten the pauses."""
WATCH = 0.002
SLACK = 0.5
"""Seconds by which a busy machine may be late."""

Step = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class Attempt:
    """One attempt of a source to get a token; wall times, ``ended`` None while it is under way.

    ``pause`` is how long the source meant to wait after it.
    """

    started: float
    ended: float | None = None
    pause: float | None = None


class Attempts:
    """Watches a source's attempts: what refuses connections keeps no log of them."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self.all: list[Attempt] = []
        self._seen = source.status.acquisitions
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            status, now = self._source.status, time.time()
            if status.acquisitions > self._seen:
                self._seen = status.acquisitions
                self._end(now, None)
                self.all.append(Attempt(now))
            if status.acquiring_for is None:
                self._end(now, status.next_attempt_in)
            await asyncio.sleep(WATCH)

    def _end(self, now: float, pause: float | None) -> None:
        if self.all and self.all[-1].ended is None:
            self.all[-1].ended, self.all[-1].pause = now, pause

    def since(self, moment: float) -> list[Attempt]:
        return [each for each in self.all if each.started >= moment]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


def cap(token: Token, now: float) -> float:
    """The longest that the design lets a source wait at that moment: a tenth of the time left."""
    deadline = reauth_deadline(token)
    return max(0.1, ((deadline if now < deadline else token.expires_on) - now) / 10)


def longest_pause(attempts: list[Attempt], token: Token) -> tuple[float, float]:
    """Of the pauses between attempts while ``token`` was valid, the worst in terms of its cap.

    Returns what share of the cap was meant, and by how many seconds it became longer.
    """
    meant, late = [], []
    for before, after in itertools.pairwise(attempts):
        if before.ended is not None and after.started < token.expires_on:
            limit = cap(token, before.ended)
            late.append(after.started - before.ended - limit)
            if before.pause is not None:
                meant.append(before.pause / limit)
    assert meant, "there was no second attempt"
    return max(meant), max(late)


async def endure(
    emulator: Emulator,
    source: TokenSource,
    figure: Callable[..., None],
    *,
    begin: Step,
    end: Step,
    cause: str,
    life: float = LIFE,
) -> None:
    """Go through an outage with traffic all along; ``cause`` is a word that errors must name."""
    witness = Witness()
    source.listen(witness)
    with young_heap():
        await _endure(emulator, source, witness, figure, begin, end, cause, life)


@contextlib.contextmanager
def young_heap() -> Iterator[None]:
    """Keep the collector off what is there already: pytest's heap takes it 0.2 s at a time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _endure(
    emulator: Emulator,
    source: TokenSource,
    witness: Witness,
    figure: Callable[..., None],
    begin: Step,
    end: Step,
    cause: str,
    life: float,
) -> None:
    async with source, client_of(emulator, source) as redis:
        held = source.current
        assert held is not None
        attempts, traffic = Attempts(source), Traffic(redis, 5)
        await begin()

        # While the token is valid.
        failure = await witness.first(RefreshFailed, timeout=life)
        assert failure.state is TokenState.DEGRADED
        assert cause in str(failure.error)
        await until(lambda: time.time() > held.expires_on - 0.05, timeout=life)
        figure("failed commands, token valid", len(traffic.errors), target="0")
        share, late = longest_pause(attempts.all, held)
        figure("longest pause between attempts, of its cap", share, target="at most 1")
        assert (traffic.errors, traffic.wrong) == ([], [])
        assert traffic.done > 100
        assert share <= 1.001
        assert late < SLACK

        # Past its expiry.
        await until(lambda: traffic.errors, timeout=5)
        expired = time.time()
        await asyncio.sleep(2.5)
        logged = [each.time for each in (await emulator.log()).requests]
        starts = [each for each in logged if each >= expired - 1]
        if len(starts) < 2:  # what is refused or never answered is not in the log
            starts = [each.started for each in attempts.since(expired - 1)]
        apart = max(later - earlier for earlier, later in itertools.pairwise(starts))
        slowest = max(took for _, took in traffic.failures)
        figure("slowest command to fail, past expiry", slowest * 1000, "ms", target="at once")
        figure("attempts past expiry, furthest apart", apart, "s", target="1")
        assert apart < 1 + SLACK
        assert slowest < 1
        refused = [each for each in traffic.errors if not isinstance(each, MaybeExecutedError)]
        assert {type(each) for each in refused} == {TokenExpiredError}
        assert all(cause in str(each) for each in refused)
        # Only what was in flight when the server closed the connection.
        assert len(traffic.errors) - len(refused) <= 5

        # It is over.
        published = len(witness.of(TokenPublished))
        done, over = traffic.done, time.time()
        await end()
        await until(lambda: traffic.done > done, timeout=5)
        recovered = time.time() - over
        needed = len(attempts.since(over))
        figure("recovery", recovered / life, "of the token's life", target="under 0.33")
        figure("attempts that recovery took", needed, target="at most 1")
        assert len(witness.of(TokenPublished)) == published + 1
        assert needed <= 1
        assert recovered < 1 + PATIENT.request_timeout + SLACK
        failed = len(traffic.errors)
        await until(lambda: traffic.done > done + 200)
        assert len(traffic.errors) == failed
        assert source.state is TokenState.FRESH
        await traffic.stop()
        await attempts.stop()
        assert traffic.wrong == []
