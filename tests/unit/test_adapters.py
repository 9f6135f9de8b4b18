"""A credential provider for redis-py's clients: on a loop, and in a thread of its own."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.credentials import CredentialProvider, StreamingCredentialProvider
from support.token_fakes import CANARY, Clock, Credential, source_of

import aioentra_redis
from aioentra_redis import (
    ClosedError,
    ConfigurationError,
    EntraCredentialProvider,
    LifecycleError,
    TokenAcquisitionError,
    TokenSource,
)
from aioentra_redis._token_thread import TokenThread

ROOT = Path(aioentra_redis.__file__).parent.parent
Factory = Callable[[], object]


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "aioentra_redis tokens"]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.collect()
    for each in threads():
        each.join(5)
    assert threads() == []


def real_credential(**token: Any) -> Credential:
    return Credential(time.time, **token)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- on the loop


@pytest.mark.looptime
async def test_every_connect_gets_the_newest_token() -> None:
    clock = Clock()
    credential = Credential(clock, life=100)
    async with source_of(credential, clock, factory=True) as source:
        provider = EntraCredentialProvider(source)
        user, first = await provider.get_credentials_async()
        assert (user, first) == ("oid-1", source.current.secret)
        await asyncio.sleep(90)
        user, second = await provider.get_credentials_async()
        assert second != first
        assert second == source.current.secret
        assert CANARY not in repr(provider)


def test_it_is_a_plain_provider() -> None:
    """redis-py re-authenticates by itself where a provider streams, and gets it wrong."""
    assert issubclass(EntraCredentialProvider, CredentialProvider)
    assert not issubclass(EntraCredentialProvider, StreamingCredentialProvider)


def test_a_synchronous_client_is_told_what_to_use() -> None:
    provider = EntraCredentialProvider(TokenSource(real_credential()))
    with pytest.raises(redis.AuthenticationError, match=r"in_thread\(factory\)"):
        provider.get_credentials()
    provider.close()  # there is nothing to close


@pytest.mark.parametrize("source", [real_credential(), None, lambda: None])
def test_only_a_source_is_taken(source: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes a TokenSource"):
        EntraCredentialProvider(source)


@pytest.mark.parametrize("factory", [TokenSource(real_credential()), real_credential(), None])
def test_only_a_function_makes_a_thread(factory: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes a function"):
        EntraCredentialProvider.in_thread(factory)


@pytest.mark.parametrize("timeout", [0, -1, "5", None, float("nan")])
def test_a_timeout_that_is_none(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout="):
        EntraCredentialProvider.in_thread(real_credential, timeout=timeout)


@pytest.mark.looptime
async def test_an_error_redis_py_does_not_know_becomes_one_it_knows() -> None:
    clock = Clock()
    source = source_of(Credential(clock), clock)
    provider = EntraCredentialProvider(source)
    await source.aclose()
    with pytest.raises(redis.AuthenticationError, match="closed") as caught:
        await provider.get_credentials_async()
    assert isinstance(caught.value.__cause__, ClosedError)


@pytest.mark.looptime
async def test_a_failed_acquisition_is_raised_as_it_is() -> None:
    clock = Clock()
    credential = Credential(clock, lambda _call: ValueError("no identity"))
    source = source_of(credential, clock)
    with pytest.raises(TokenAcquisitionError, match="no identity"):
        await EntraCredentialProvider(source).get_credentials_async()
    await source.aclose()


# ------------------------------------------------------------------------------- in a thread


def test_nothing_runs_before_the_first_token() -> None:
    made: list[object] = []
    provider = EntraCredentialProvider.in_thread(lambda: made.append(1))
    assert (made, threads()) == ([], [])
    assert "no thread" in repr(provider)
    provider.close()
    assert threads() == []


FACTORIES: dict[str, Callable[[Credential], Factory]] = {
    "credential": lambda credential: lambda: credential,
    "source": lambda credential: lambda: TokenSource(credential),
    "coroutine": lambda credential: _coroutine(credential),
}


def _coroutine(credential: Credential) -> Factory:
    async def make() -> object:
        await asyncio.sleep(0)
        return TokenSource(credential)

    return make


@pytest.mark.parametrize("kind", FACTORIES)
def test_a_synchronous_caller_gets_a_token(kind: str) -> None:
    credential = real_credential()
    with EntraCredentialProvider.in_thread(FACTORIES[kind](credential)) as provider:
        user, secret = provider.get_credentials()
        assert user == "oid-1"
        assert CANARY in secret
        assert provider.get_credentials() == (user, secret)
        assert len(threads()) == 1
        assert threads()[0].daemon
        assert "running" in repr(provider)
        assert CANARY not in repr(provider)
    assert threads() == []
    assert len(credential.calls) == 1
    assert credential.closed == (1 if kind == "credential" else 0)  # what a source is given, is not


def test_a_newer_token_is_handed_out_once_it_is_there() -> None:
    credential = real_credential(life=2)

    async def fresh() -> object:
        return credential

    with EntraCredentialProvider.in_thread(
        lambda: TokenSource.from_credential_factory(fresh)
    ) as provider:
        _, first = provider.get_credentials()
        deadline = time.monotonic() + 10
        while provider.get_credentials()[1] == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert provider.get_credentials()[1] != first


def test_a_hundred_threads_at_once_cost_one_acquisition() -> None:
    credential = real_credential()
    credential.delay = 0.1
    made: list[object] = []

    def make() -> object:
        made.append(1)
        return credential

    with EntraCredentialProvider.in_thread(make) as provider:
        start = threading.Barrier(100)
        results: list[object] = []

        def ask() -> None:
            start.wait()
            results.append(provider.get_credentials())

        callers = [threading.Thread(target=ask) for _ in range(100)]
        for each in callers:
            each.start()
        for each in callers:
            each.join(20)
        assert len(results) == 100
        assert len(set(results)) == 1
        assert (len(made), len(credential.calls), len(threads())) == (1, 1, 1)


def test_the_wait_has_a_deadline() -> None:
    credential = real_credential()
    credential.delay = 30
    with EntraCredentialProvider.in_thread(lambda: credential, timeout=0.2) as provider:
        with pytest.raises(TokenAcquisitionError, match=r"within 0\.2 s"):
            provider.get_credentials()
        # What was begun goes on: it is the wait that ended.
        with pytest.raises(TokenAcquisitionError):
            provider.get_credentials()
        assert len(credential.calls) == 1


def test_a_factory_that_hangs_does_not_hang_the_caller() -> None:
    go_on = threading.Event()

    def make() -> object:
        while not go_on.is_set():  # what waits properly would be told that it blocks a loop
            pass
        return real_credential()

    provider = EntraCredentialProvider.in_thread(make, timeout=0.2)
    with pytest.raises(TokenAcquisitionError, match=r"within 0\.2 s"):
        provider.get_credentials()
    go_on.set()
    provider.close()


def test_a_factory_that_fails_is_called_again() -> None:
    answers: list[object] = [ValueError("client_secret=hush"), None, real_credential()]

    def make() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with EntraCredentialProvider.in_thread(make) as provider:
        with pytest.raises(redis.AuthenticationError, match="raised ValueError") as caught:
            provider.get_credentials()
        assert "hush" not in str(caught.value)
        assert caught.value.__cause__ is not None
        assert caught.value.__cause__.__traceback__ is None
        with pytest.raises(redis.AuthenticationError, match="returned None"):
            provider.get_credentials()
        assert provider.get_credentials()[0] == "oid-1"


def test_what_is_no_credential_is_refused_by_name() -> None:
    with (
        EntraCredentialProvider.in_thread(lambda: "secret") as provider,
        pytest.raises(redis.AuthenticationError, match="neither get_token_info"),
    ):
        provider.get_credentials()


def test_close_is_final_and_idempotent_and_wakes_who_waits() -> None:
    credential = real_credential()
    credential.delay = 30
    provider = EntraCredentialProvider.in_thread(lambda: credential)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            provider.get_credentials()
        except redis.AuthenticationError as error:
            errors.append(error)

    callers = [threading.Thread(target=ask) for _ in range(5)]
    for each in callers:
        each.start()
    deadline = time.monotonic() + 5
    while not credential.calls and time.monotonic() < deadline:
        time.sleep(0.01)
    provider.close()
    provider.close()
    for each in callers:
        each.join(5)
    assert len(errors) == 5
    with pytest.raises(redis.AuthenticationError, match="closed"):
        provider.get_credentials()
    assert threads() == []


def test_close_while_the_factory_is_at_work() -> None:
    begun = threading.Event()

    async def make() -> object:
        begun.set()
        await asyncio.sleep(30)
        return real_credential()

    thread = TokenThread(make, timeout=10)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            thread.get()
        except ClosedError as error:
            errors.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    assert begun.wait(5)
    thread.close()
    caller.join(5)
    assert len(errors) == 1


def test_the_thread_does_not_wait_for_itself() -> None:
    provider: EntraCredentialProvider

    def make() -> object:
        provider.get_credentials()
        return real_credential()

    with (
        EntraCredentialProvider.in_thread(make) as provider,
        pytest.raises(redis.AuthenticationError, match="wait for itself") as caught,
    ):
        provider.get_credentials()
    assert isinstance(caught.value, TokenAcquisitionError)


def test_a_provider_that_is_dropped_takes_its_thread_along() -> None:
    credential = real_credential()
    provider: Any = EntraCredentialProvider.in_thread(lambda: credential)
    provider.get_credentials()
    gone = weakref.ref(provider)
    del provider
    gc.collect()
    assert gone() is None
    for each in threads():
        each.join(5)
    assert threads() == []
    assert credential.closed == 1


def test_a_copy_is_the_same_provider() -> None:
    with EntraCredentialProvider.in_thread(real_credential) as provider:
        assert copy.copy(provider) is provider
        assert copy.deepcopy({"credential_provider": provider})["credential_provider"] is provider


def test_what_is_pickled_is_how_to_make_it() -> None:
    with EntraCredentialProvider.in_thread(real_credential, timeout=7) as provider:
        provider.get_credentials()
        pickled = pickle.dumps(provider)
        assert CANARY.encode() not in pickled
        with pickle.loads(pickled) as another:
            assert another._thread.timeout == 7
            assert another.get_credentials() != provider.get_credentials()
    with pytest.raises(TypeError, match="belongs to this process"):
        pickle.dumps(EntraCredentialProvider(TokenSource(real_credential())))


# -------------------------------------------------------------------- the thread, from a loop


async def test_an_asyncio_client_is_not_blocked() -> None:
    credential = real_credential()
    credential.delay = 0.3
    async with EntraCredentialProvider.in_thread(lambda: credential) as provider:
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        several = await asyncio.gather(*(provider.get_credentials_async() for _ in range(20)))
        ticking.cancel()
        assert len(set(several)) == 1
        assert turns > 5
        assert len(credential.calls) == 1


async def test_cancelling_ends_the_wait_and_not_the_acquisition() -> None:
    credential = real_credential()
    credential.delay = 0.2
    async with EntraCredentialProvider.in_thread(lambda: credential) as provider:
        waiting = asyncio.create_task(provider.get_credentials_async())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await provider.get_credentials_async())[0] == "oid-1"
        assert len(credential.calls) == 1


async def test_the_wait_of_a_coroutine_has_a_deadline_and_an_end() -> None:
    credential = real_credential()
    credential.delay = 30
    provider = EntraCredentialProvider.in_thread(lambda: credential, timeout=0.1)
    with pytest.raises(TokenAcquisitionError, match=r"within 0\.1 s"):
        await provider.get_credentials_async()
    await provider.aclose()
    with pytest.raises(redis.AuthenticationError, match="closed"):
        await provider.get_credentials_async()


async def test_closing_wakes_a_coroutine_that_waits() -> None:
    credential = real_credential()
    credential.delay = 30
    provider = EntraCredentialProvider.in_thread(lambda: credential)
    waiting = asyncio.create_task(provider.get_credentials_async())
    await asyncio.sleep(0.1)
    await provider.aclose()
    with pytest.raises(redis.AuthenticationError, match="closed"):
        await waiting


def test_one_provider_serves_loop_after_loop() -> None:
    credential = real_credential()
    with EntraCredentialProvider.in_thread(lambda: credential) as provider:
        for _ in range(3):
            assert asyncio.run(provider.get_credentials_async())[0] == "oid-1"
        assert len(credential.calls) == 1


def test_lifecycle_errors_are_ours_before_they_are_redis_pys() -> None:
    thread = TokenThread(real_credential, timeout=1)
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
    assert (done.returncode, done.stderr) == (0, "")
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
