"""Starting, closing, cancelling, being dropped, and the wrong loop or process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from typing import Any

import pytest
from support.token_fakes import CANARY, Clock, Credential, config, source_of

from aioentra_redis import _source
from aioentra_redis._events import TokenState
from aioentra_redis._source import TokenSource
from aioentra_redis.errors import (
    ClosedError,
    InvalidTokenError,
    TokenAcquisitionError,
    WrongLoopError,
)

S = TokenState
virtual = pytest.mark.looptime


class Provider(Credential):
    """A credential whose identity provider can be switched off."""

    down: Exception | None = None

    def __init__(self, clock: Clock, **token: Any) -> None:
        super().__init__(clock, lambda _call: self.down or self.issue(**token))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def real(credential_type: type = Provider, **token: Any) -> Any:
    """A credential in real time."""
    return credential_type(time.time, **token)


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
    task = source._refresher.task
    ref = weakref.ref(source)
    kept = source.subscribe(after=1)
    with pytest.warns(ResourceWarning, match="unclosed <TokenSource"):  # noqa: PT031
        del source
        gc.collect()
    assert ref() is None
    with pytest.raises(StopAsyncIteration):
        await anext(kept)
    await asyncio.wait({task}, timeout=1)
    assert task.done()
    await asyncio.sleep(0.01)
    assert credential.alive == 0


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


# ------------------------------------------------------------------------------------ loops, forks


def test_another_event_loop():
    """A second asyncio.run with the same provider silently ends renewal elsewhere."""
    source = TokenSource(real())
    asyncio.run(source.start())
    for use in (source.get, source.start):
        with pytest.raises(WrongLoopError, match=r"asyncio\.run"):
            asyncio.run(use())
    asyncio.run(source.aclose())
    assert source.state is S.CLOSED


def test_two_event_loops_at_the_same_time():
    async def main() -> None:
        async with TokenSource(real()) as source:

            async def elsewhere() -> str:
                with pytest.raises(WrongLoopError):
                    await source.get()
                with pytest.raises(WrongLoopError):
                    await source.aclose()
                # To look is allowed from anywhere.
                return f"{source.current.version} {source.state.name} {source.status.version}"

            done: list[str] = []
            thread = threading.Thread(target=lambda: done.append(asyncio.run(elsewhere())))
            thread.start()
            while thread.is_alive():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert done == ["1 FRESH 1"]
            assert (await source.get()).version == 1

    asyncio.run(main())


FORK = """
    import asyncio, os, sys, time, warnings
    warnings.simplefilter("error", ResourceWarning)
    sys.path[:0] = {path!r}
    from aioentra_redis._source import TokenSource
    from aioentra_redis.errors import ForkedError
    from support.token_fakes import Credential

    async def main():
        unstarted = TokenSource(Credential(time.time))
        async with TokenSource(Credential(time.time)) as source:
            pid = os.fork()
            if pid:
                _, status = os.waitpid(pid, 0)
                assert status == 0, status
                return
            refused = 0
            for use in (lambda: source.current, source.subscribe):
                try:
                    use()
                except ForkedError as error:
                    assert "before a fork" in str(error)
                    refused += 1
            for use in (source.get, source.start):
                try:
                    use().send(None)
                except ForkedError:
                    refused += 1
            repr(source), source.status
            try:
                source.aclose().send(None)
            except StopIteration:
                refused += 1
            asyncio.events._set_running_loop(None)
            asyncio.run(unstarted.start())
            os._exit(0 if refused == 5 and unstarted.current.version == 1 else 1)

    asyncio.run(main())
    print("ok")
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_forked_child():
    script = textwrap.dedent(FORK).format(path=[p for p in sys.path if p])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


# ------------------------------------------------------------------------------------ threads


class Sync(Credential):
    """A synchronous credential that can hang."""

    def __init__(self, clock: Any, **token: Any) -> None:
        super().__init__(clock, **token)
        self.go = threading.Event()
        self.go.set()
        self.threads: set[str] = set()
        self.running = self.peak = 0

    def get_token_info(self, *scopes: str) -> Any:  # type: ignore[override]
        self.calls.append(time.time())
        self.threads.add(threading.current_thread().name)
        assert threading.current_thread().daemon
        self.running += 1
        self.peak = max(self.peak, self.running)
        self.go.wait(5)
        self.running -= 1
        return self.issue()


async def test_a_slow_synchronous_credential_does_not_stall_the_loop():
    credential = real(Sync)
    credential.go.clear()
    threading.Timer(0.15, credential.go.set).start()
    worst = 0.0
    async with contextlib.AsyncExitStack() as stack:
        starting = asyncio.create_task(stack.enter_async_context(TokenSource(credential)))
        while not starting.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before)
        await starting
    assert worst < 0.05
    assert all("aioentra_redis" in name for name in credential.threads)


async def test_a_synchronous_credential_that_hangs():
    credential = real(Sync)
    credential.go.clear()
    source = TokenSource(credential, refresh=config(timeout=0.05, initial_delay=0.01))
    with pytest.raises(TokenAcquisitionError, match="no second one is started"):
        await source.start()
    assert source.status.hung_call
    assert (len(credential.calls), credential.peak) == (1, 1)
    credential.go.set()
    await source.start()  # the late answer of the first call serves this one
    assert (len(credential.calls), source.current.version) == (1, 1)
    assert not source.status.hung_call
    await source.aclose()


def test_a_hanging_thread_does_not_keep_the_program_from_ending():
    script = textwrap.dedent("""
        import asyncio, sys, threading
        sys.path[:0] = {path!r}
        from aioentra_redis._source import TokenSource
        from aioentra_redis._schedule import TokenRefreshConfig
        class Hangs:
            def get_token(self, *scopes):
                threading.Event().wait()
        async def main():
            try:
                await TokenSource(Hangs(), refresh=TokenRefreshConfig(request_timeout=0.02)).start()
            except Exception as error:
                print(type(error).__name__)
        asyncio.run(main())
    """).format(path=[p for p in sys.path if p])
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("TokenAcquisitionError\n", "", 0)


async def test_closing_while_a_synchronous_call_hangs():
    credential = real(Sync)
    credential.go.clear()
    source = TokenSource(credential)
    waiter = asyncio.create_task(source.get())
    await asyncio.sleep(0.02)
    before = time.perf_counter()
    await source.aclose()
    assert time.perf_counter() - before < 0.5
    with pytest.raises(ClosedError):
        await waiter
    credential.go.set()
    await asyncio.sleep(0.01)


def test_the_importers_of_heavy_things():
    script = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from aioentra_redis._source import TokenSource as T\n"
        "T.from_default(); T.from_client_secret('t', 'c', 's'); T.from_developer_tools()\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('azure', 'aiohttp', 'msal')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# ------------------------------------------------------------------------------------ redaction


async def test_the_canary_is_nowhere(caplog: pytest.LogCaptureFixture):
    import io
    import pickle
    import traceback

    caplog.set_level("DEBUG")
    events: list[object] = []

    class Leaky(Sync):
        def get_token_info(self, *scopes: str) -> Any:  # type: ignore[override]
            info = self.issue(**({"oid": "other"} if self.calls else {}), life=2)
            self.calls.append(0.0)
            if len(self.calls) == 3:
                raise RuntimeError(f"could not parse {info.token}")
            return info

    async with TokenSource(real(Leaky), on_event=events.append) as source:
        kept = source.subscribe()
        await anext(kept)
        failed = await asyncio.wait_for(anext(kept), 5)
        error = source.status.last_error
        assert error is not None
        shown = [repr(source), str(source.status), source.describe(), repr(kept), repr(events)]
        shown += [repr(failed), repr(error), pickle.dumps(error).decode("latin1")]
        seen = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown += ["".join(seen.format())]
        out = io.StringIO()
        traceback.print_exception(error, file=out)
        shown += [out.getvalue(), repr(vars(error)), repr(vars(source))]
        refresher = source._refresher
        shown += [repr(vars(refresher)), repr(vars(refresher._acquirer))]
        with pytest.raises(TypeError):
            pickle.dumps(source)
    assert CANARY not in " ".join([*shown, caplog.text])


def test_the_patience_constants_are_sane():
    assert 0 < _source.EXPIRED_PATIENCE < 5 < _source.RESTART_INTERVAL
