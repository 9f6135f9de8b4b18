"""A credential provider for redis-py's clients: on a loop, and in a thread of its own."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.credentials import CredentialProvider, StreamingCredentialProvider
from support.provider_threads import assert_no_thread_is_left, threads
from support.token_fakes import CANARY, Clock, Credential, real, source_of

from aioentra_redis import (
    ClosedError,
    ConfigurationError,
    EntraCredentialProvider,
    TokenAcquisitionError,
    TokenSource,
)
from aioentra_redis._token_thread import TokenThread

Factory = Callable[[], object]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert_no_thread_is_left()


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
    provider = EntraCredentialProvider(TokenSource(real()))
    with pytest.raises(redis.AuthenticationError, match=r"in_thread\(factory\)"):
        provider.get_credentials()
    provider.close()  # there is nothing to close


@pytest.mark.parametrize("source", [real(), None, lambda: None])
def test_only_a_source_is_taken(source: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes a TokenSource"):
        EntraCredentialProvider(source)


@pytest.mark.parametrize("factory", [TokenSource(real()), real(), None])
def test_only_a_function_makes_a_thread(factory: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes a function"):
        EntraCredentialProvider.in_thread(factory)


@pytest.mark.parametrize("timeout", [0, -1, "5", None, float("nan")])
def test_a_timeout_that_is_none(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout="):
        EntraCredentialProvider.in_thread(real, timeout=timeout)


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
    credential = real()
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
    credential = real(life=2)

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
    credential = real()
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
    credential = real()
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
        return real()

    provider = EntraCredentialProvider.in_thread(make, timeout=0.2)
    with pytest.raises(TokenAcquisitionError, match=r"within 0\.2 s"):
        provider.get_credentials()
    go_on.set()
    provider.close()


def test_a_factory_that_fails_is_called_again() -> None:
    answers: list[object] = [ValueError("client_secret=hush"), None, real()]

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
    credential = real()
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
        return real()

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
        return real()

    with (
        EntraCredentialProvider.in_thread(make) as provider,
        pytest.raises(redis.AuthenticationError, match="wait for itself") as caught,
    ):
        provider.get_credentials()
    assert isinstance(caught.value, TokenAcquisitionError)


def test_a_provider_that_is_dropped_takes_its_thread_along() -> None:
    credential = real()
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
    with EntraCredentialProvider.in_thread(real) as provider:
        assert copy.copy(provider) is provider
        assert copy.deepcopy({"credential_provider": provider})["credential_provider"] is provider


def test_what_is_pickled_is_how_to_make_it() -> None:
    with EntraCredentialProvider.in_thread(real, timeout=7) as provider:
        provider.get_credentials()
        pickled = pickle.dumps(provider)
        assert CANARY.encode() not in pickled
        with pickle.loads(pickled) as another:
            assert another._thread.timeout == 7
            assert another.get_credentials() != provider.get_credentials()
    with pytest.raises(TypeError, match="belongs to this process"):
        pickle.dumps(EntraCredentialProvider(TokenSource(real())))
