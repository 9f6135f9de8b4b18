"""Token sources in several loops, forked children and threads; nothing secret is shown."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import pytest
from support.token_fakes import CANARY, Clock, Credential, config, real

from aioentra_redis import _source
from aioentra_redis._events import TokenState
from aioentra_redis._source import TokenSource
from aioentra_redis.errors import (
    ClosedError,
    TokenAcquisitionError,
    WrongLoopError,
)

S = TokenState


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
        self.go.wait(20)
        self.running -= 1
        return self.issue()


async def until_running(credential: Sync) -> None:
    async with asyncio.timeout(10):
        while not credential.running:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)


async def test_a_slow_synchronous_credential_does_not_stall_the_loop():
    credential = real(Sync)
    credential.go.clear()
    async with contextlib.AsyncExitStack() as stack:
        starting = asyncio.create_task(stack.enter_async_context(TokenSource(credential)))
        await until_running(credential)
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert credential.running == 1  # it waits for the loop, which has gone on meanwhile
        assert not starting.done()
        credential.go.set()
        await starting
    assert len(credential.calls) == 1
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
    async with asyncio.timeout(10):
        while credential.running:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
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
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("TokenAcquisitionError\n", "", 0)


async def test_closing_while_a_synchronous_call_hangs():
    credential = real(Sync)
    credential.go.clear()
    source = TokenSource(credential)
    waiter = asyncio.create_task(source.get())
    await until_running(credential)
    await source.aclose()
    assert credential.running == 1  # it was not waited for
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
