"""Starting, closing, cancelling, being dropped, and the wrong loop or process."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
import weakref
from typing import Any

import pytest
from support.token_fakes import Clock, Provider, config, real, source_of

from aioentra_redis._events import TokenState
from aioentra_redis._source import TokenSource
from aioentra_redis.errors import (
    ClosedError,
    InvalidTokenError,
    TokenAcquisitionError,
)

S = TokenState


virtual = pytest.mark.looptime


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ------------------------------------------------------------------------------------ starting


@virtual
async def test_first_use_starts_and_everybody_waits_for_one_acquisition(clock: Clock):
    """Ten connections of peers make twelve acquisitions."""
    credential = Provider(clock)
    credential.delay = 1
    source = source_of(credential, clock)
    tokens = await asyncio.gather(*(source.get() for _ in range(200)), source.start())
    assert set(tokens[:-1]) == {source.current}
    assert len(credential.calls) == 1
    await source.start()
    assert len(credential.calls) == 1
    await source.aclose()


@virtual
async def test_a_start_that_fails_and_another_that_does_not(clock: Clock):
    credential = Provider(clock)
    credential.down = ConnectionError("refused")
    source = source_of(credential, clock, refresh=config())
    with pytest.raises(TokenAcquisitionError, match="refused"):
        await source.start()
    assert credential.calls == pytest.approx([0, 0.1, 0.3])
    assert source.state is S.FAILED
    assert source.status.next_attempt_in is None
    # At once, a failure is not worth repeating; soon after, it is.
    with pytest.raises(TokenAcquisitionError, match="refused"):
        await source.get()
    assert len(credential.calls) == 3
    credential.down = None
    await source.start()
    assert source.current.version == 1
    await source.aclose()


@virtual
async def test_a_lazily_started_source_heals(clock: Clock):
    credential = Provider(clock)
    credential.down = ConnectionError("refused")
    source = source_of(credential, clock, refresh=config())
    with pytest.raises(TokenAcquisitionError):
        await source.get()
    credential.down = None
    await asyncio.sleep(1.1)
    assert (await source.get()).version == 1
    await source.aclose()


@virtual
async def test_a_refusal_for_good_fails_the_start_at_once(clock: Clock):
    credential = Provider(clock)
    credential.down = TokenAcquisitionError("wrong secret", transient=False)
    source = source_of(credential, clock)
    with pytest.raises(TokenAcquisitionError, match="wrong secret"):
        await source.start()
    assert len(credential.calls) == 1
    for second in range(29):
        await asyncio.sleep(second / 29)
        with pytest.raises(TokenAcquisitionError, match="wrong secret"):
            await source.get()
    assert len(credential.calls) == 1
    await asyncio.sleep(31)
    credential.down = None
    await source.get()
    await source.aclose()


@virtual
@pytest.mark.parametrize(("asked", "attempts"), [(5, 3), (120, 1)])
async def test_retry_after_at_start(clock: Clock, asked: float, attempts: int):
    credential = Provider(clock)
    credential.down = TokenAcquisitionError("throttled", retry_after=asked)
    source = source_of(credential, clock)
    with pytest.raises(TokenAcquisitionError, match="throttled") as caught:
        await source.start()
    assert caught.value.retry_after == asked
    assert len(credential.calls) == attempts
    await asyncio.sleep(asked / 2)
    with pytest.raises(TokenAcquisitionError, match="throttled"):
        await source.get()
    assert len(credential.calls) == attempts
    await source.aclose()


@virtual
async def test_a_hanging_provider_ends_the_start(clock: Clock):
    credential = Provider(clock)
    credential.delay = 1e6
    source = source_of(credential, clock, refresh=config(timeout=2))
    with pytest.raises(TokenAcquisitionError, match="no answer within 2 s"):
        await source.start()
    assert asyncio.get_running_loop().time() < 7
    await source.aclose()


@virtual
@pytest.mark.parametrize("claims", [{"oid": None}, {"aud": "x"}, {"exp": 1}])
async def test_unusable_tokens_fail_the_start(clock: Clock, claims: dict[str, Any]):
    source = source_of(Provider(clock, **claims), clock)
    with pytest.raises(InvalidTokenError):
        async with source:
            pytest.fail("should not get here")
    assert source.current is None
    await source.aclose()


@virtual
async def test_every_waiter_gets_an_error_of_its_own(clock: Clock):
    credential = Provider(clock)
    credential.down = ConnectionError("refused")
    source = source_of(credential, clock)
    errors = await asyncio.gather(*(source.get() for _ in range(5)), return_exceptions=True)
    assert len({id(error) for error in errors}) == 5
    assert all(isinstance(error.__cause__, ConnectionError) for error in errors)
    await source.aclose()


# ------------------------------------------------------------------------------------ cancelling


@virtual
async def test_cancelling_a_waiter_never_cancels_the_acquisition(clock: Clock):
    credential = Provider(clock)
    credential.delay = 1
    source = source_of(credential, clock)
    first = asyncio.create_task(source.get())
    second = asyncio.create_task(source.start())
    await asyncio.sleep(0.5)
    first.cancel()
    second.cancel()
    await asyncio.wait({first, second})
    assert first.cancelled()
    assert second.cancelled()
    await asyncio.sleep(0.6)
    assert source.current.version == 1
    assert len(credential.calls) == 1
    await source.aclose()


@virtual
async def test_cancelling_the_wait_in_expired(clock: Clock):
    credential = Provider(clock)
    async with source_of(credential, clock) as source:
        clock.step(7200)
        credential.delay = 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await source.get()
        await asyncio.sleep(2)
        assert source.current.version == 2
        assert "0 subscribers" in repr(source)


@virtual
async def test_a_cancelled_async_with_leaves_nothing_running(clock: Clock):
    credential = Provider(clock)
    credential.delay = 10
    source = source_of(credential, clock, factory=True)

    async def enter() -> None:
        async with source:
            pytest.fail("should not get here")

    task = asyncio.create_task(enter())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert source.state is S.CLOSED
    assert credential.alive == 0


@virtual
@pytest.mark.parametrize("moment", [0.0, 0.5, 1.0, 1.05, 1.5, 2.0, 3.0])
async def test_closing_at_any_moment_of_a_start(clock: Clock, moment: float):
    """During the request, the close of a failed instance, and the pause between attempts."""
    credential = Provider(clock)
    credential.delay = 1
    credential.down = ConnectionError("refused")

    class Slow:
        get_token_info = credential.get_token_info

        async def close(self) -> None:
            await asyncio.sleep(0.2)

    from aioentra_redis._credentials import credential_factory

    async def make() -> object:
        return Slow()

    source = TokenSource(credential_factory(make), _clock=clock, refresh=config(initial_delay=1))
    waiters = [asyncio.create_task(source.get()) for _ in range(3)]
    await asyncio.sleep(moment)
    await source.aclose()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert all(isinstance(each, ClosedError) for each in results)
    assert source.state is S.CLOSED


@virtual
@pytest.mark.parametrize("moment", [10.0, 2880.0, 2880.5, 2881.0, 2881.05, 2881.15])
async def test_closing_at_any_moment_of_a_renewal(clock: Clock, moment: float):
    credential = Provider(clock)
    credential.delay = 1
    source = source_of(credential, clock, factory=True)
    await source.start()
    await asyncio.sleep(moment - 1)
    await asyncio.gather(source.aclose(), source.aclose())
    assert source.state is S.CLOSED
    assert credential.alive == 0
    calls = len(credential.calls)
    await asyncio.sleep(10_000)
    assert len(credential.calls) == calls  # peers go on asking after aclose()


# ------------------------------------------------------------------------------------ closing


@virtual
async def test_closed_is_final(clock: Clock):
    credential = Provider(clock)
    source = source_of(credential, clock)
    await source.start()
    subscription = source.subscribe()
    await source.aclose()
    await source.aclose()
    for use in (source.get, source.start):
        with pytest.raises(ClosedError, match="final"):
            await use()
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)
    assert credential.closed == 0  # passed in, so it is its maker's to close
    assert source.status.state is S.CLOSED


@virtual
async def test_an_unstarted_source_closes_too(clock: Clock):
    source = source_of(Provider(clock), clock)
    await source.aclose()
    with pytest.raises(ClosedError):
        await source.start()


@virtual
async def test_closing_goes_on_when_its_caller_is_cancelled(clock: Clock):
    credential = Provider(clock)
    source = source_of(credential, clock, factory=True)
    await source.start()
    task = asyncio.create_task(source.aclose())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await source.aclose()
    assert credential.alive == 0


@virtual
@pytest.mark.parametrize("how", ["hangs", "raises", "ignores"])
async def test_a_credential_whose_close_misbehaves(clock: Clock, how: str, caplog):
    credential = Provider(clock)
    end = asyncio.Event()

    class Instance:
        get_token_info = credential.get_token_info

        async def close(self) -> None:
            if how == "raises":
                raise OSError("socket is gone")
            while not end.is_set():
                try:
                    await end.wait()
                except asyncio.CancelledError:
                    if how == "hangs":
                        raise

    async def make() -> object:
        return Instance()

    from aioentra_redis._credentials import credential_factory

    source = TokenSource(credential_factory(make), _clock=clock)
    await source.start()
    before = asyncio.get_running_loop().time()
    await source.aclose()
    assert asyncio.get_running_loop().time() - before <= 10
    assert "clos" in caplog.text
    end.set()


async def test_being_dropped_ends_everything():
    """Peers leak managers, pools and timers of clients that were dropped."""
    credential = real()
    source = source_of(credential, time.time, factory=True)
    await source.start()
    task = source._refresher.task.task
    ref = weakref.ref(source)
    kept = source.subscribe(after=1)
    with pytest.warns(ResourceWarning, match="unclosed <TokenSource"):  # noqa: PT031
        del source
        gc.collect()
    assert ref() is None
    with pytest.raises(StopAsyncIteration):
        await anext(kept)
    await asyncio.wait({task}, timeout=10)
    assert task.done()
    async with asyncio.timeout(10):
        while credential.alive:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)


async def test_two_hundred_sources_leave_nothing_behind():
    before = len(asyncio.all_tasks()), threading.active_count()
    of_other_tests = [each for each in gc.get_objects() if isinstance(each, TokenSource)]
    for _ in range(200):
        async with source_of(real(), time.time, factory=True):
            pass
    gc.collect()
    assert (len(asyncio.all_tasks()), threading.active_count()) == before
    found = [each for each in gc.get_objects() if isinstance(each, TokenSource)]
    assert all(any(each is other for other in of_other_tests) for each in found)


def test_nothing_is_said_of_sources_that_never_ran():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TokenSource(real())
        gc.collect()
