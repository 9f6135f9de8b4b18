"""The thread of a provider for synchronous clients: loops, forks and the end of the program."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from support.provider_threads import assert_no_thread_is_left
from support.token_fakes import real

import aioentra_redis
from aioentra_redis import (
    EntraCredentialProvider,
    LifecycleError,
    TokenAcquisitionError,
)
from aioentra_redis._token_thread import TokenThread

ROOT = Path(aioentra_redis.__file__).parent.parent


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert_no_thread_is_left()


# -------------------------------------------------------------------- the thread, from a loop


async def test_an_asyncio_client_is_not_blocked() -> None:
    credential = real()
    credential.delay = 0.3
    async with EntraCredentialProvider.in_thread(lambda: credential) as provider:
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        several = await asyncio.gather(*(provider.get_credentials_async() for _ in range(20)))
        ticking.cancel()
        assert len(set(several)) == 1
        assert turns > 5
        assert len(credential.calls) == 1


async def test_cancelling_ends_the_wait_and_not_the_acquisition() -> None:
    credential = real()
    credential.delay = 0.5
    async with EntraCredentialProvider.in_thread(lambda: credential) as provider:
        waiting = asyncio.create_task(provider.get_credentials_async())
        async with asyncio.timeout(10):
            while not credential.calls:  # noqa: ASYNC110 - another thread
                await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await provider.get_credentials_async())[0] == "oid-1"
        assert len(credential.calls) == 1


async def test_the_wait_of_a_coroutine_has_a_deadline_and_an_end() -> None:
    credential = real()
    credential.delay = 30
    provider = EntraCredentialProvider.in_thread(lambda: credential, timeout=0.1)
    with pytest.raises(TokenAcquisitionError, match=r"within 0\.1 s"):
        await provider.get_credentials_async()
    await provider.aclose()
    with pytest.raises(redis.AuthenticationError, match="closed"):
        await provider.get_credentials_async()


async def test_closing_wakes_a_coroutine_that_waits() -> None:
    credential = real()
    credential.delay = 30
    provider = EntraCredentialProvider.in_thread(lambda: credential)
    waiting = asyncio.create_task(provider.get_credentials_async())
    await asyncio.sleep(0.1)
    await provider.aclose()
    with pytest.raises(redis.AuthenticationError, match="closed"):
        await waiting


def test_one_provider_serves_loop_after_loop() -> None:
    credential = real()
    with EntraCredentialProvider.in_thread(lambda: credential) as provider:
        for _ in range(3):
            assert asyncio.run(provider.get_credentials_async())[0] == "oid-1"
        assert len(credential.calls) == 1


def test_lifecycle_errors_are_ours_before_they_are_redis_pys() -> None:
    thread = TokenThread(real, timeout=1)
    thread.close()
    with pytest.raises(LifecycleError):
        thread.get()


# ------------------------------------------------------------------------------- fork and exit

PRELUDE = """
import asyncio, gc, os, sys, threading, time, warnings
sys.path.insert(0, "tests")
from support.token_fakes import Credential
from aioentra_redis import EntraCredentialProvider
made = []
def make():
    made.append(os.getpid())
    return Credential(time.time)
provider = EntraCredentialProvider.in_thread(make, timeout=10)
def in_child(work):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
"""


# From Python 3.12 on, os.fork() says that a process with threads had better not.
OPTIONS = ("-X", "dev", "-W", "ignore::DeprecationWarning")


def run(program: str, timeout: float = 30) -> str:
    done = subprocess.run(
        [sys.executable, *OPTIONS, "-c", PRELUDE + textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    # Development mode tells of every step of a task that took 0.1 s, as any may on a busy machine.
    noise = [each for each in done.stderr.splitlines() if not each.startswith("Executing <")]
    assert (done.returncode, noise) == (0, [])
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_gets_a_thread_and_a_source_of_its_own() -> None:
    run(
        """
        mine = provider.get_credentials()
        def work():
            theirs = provider.get_credentials()
            assert theirs != mine
            assert made[-1] == os.getpid()
            grandchild = lambda: provider.get_credentials() != theirs or 1 / 0
            in_child(grandchild)
            provider.close()
        in_child(work)
        in_child(work)
        assert provider.get_credentials() == mine
        assert made == [os.getpid()]
        provider.close()
        """
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_lock_that_was_held_at_the_fork_holds_up_nobody() -> None:
    run(
        """
        provider.get_credentials()
        life = provider._thread._life()
        held, go_on = threading.Event(), threading.Event()
        def hold():
            with life.lock:
                held.set()
                go_on.wait()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        in_child(lambda: provider.get_credentials())
        go_on.set()
        provider.get_credentials()
        """
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_forks_under_load() -> None:
    run(
        """
        stop = threading.Event()
        def ask():
            while not stop.is_set():
                provider.get_credentials()
        askers = [threading.Thread(target=ask) for _ in range(4)]
        [each.start() for each in askers]
        for _ in range(10):
            in_child(lambda: provider.get_credentials())
        stop.set()
        [each.join() for each in askers]
        """
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("used", [True, False], ids=["used in the child", "unused there"])
def test_a_child_that_ends_as_programs_do_says_nothing(used: bool) -> None:
    run(
        f"""
        mine = provider.get_credentials()
        pid = os.fork()
        if pid == 0:
            if {used}:
                provider.get_credentials()
            provider = None
            gc.collect()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        # Nothing that the child let go of was the parent's.
        assert provider.get_credentials() == mine
        provider.close()
        """
    )


@pytest.mark.parametrize(
    "state",
    [
        pytest.param("provider.get_credentials()", id="idle"),
        pytest.param(
            "busy = lambda: (time.sleep(60), 1)\n"
            "provider = EntraCredentialProvider.in_thread(busy, timeout=0.1)\n"
            "try: provider.get_credentials()\n"
            "except Exception: pass",
            id="factory hangs",
        ),
        pytest.param("asyncio.run(provider.get_credentials_async())", id="asyncio"),
        pytest.param("provider.get_credentials(); provider.close()", id="closed"),
        pytest.param("provider.get_credentials(); del provider; gc.collect()", id="dropped"),
    ],
)
def test_the_end_of_the_program_neither_hangs_nor_makes_noise(state: str) -> None:
    started = time.monotonic()
    run(state)
    assert time.monotonic() - started < 25
