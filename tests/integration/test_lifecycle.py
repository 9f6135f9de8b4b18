"""Use after close, from another loop or after a fork; what is left behind; what memory it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.programs import run_program
from support.signing_in import client_of, secret_source, until_gone

from aioentra_redis import (
    ClosedError,
    EntraRedis,
    LifecycleError,
    TokenSource,
    TokenState,
    WrongLoopError,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


# --------------------------------------------------------------------------------- after close


async def test_a_client_that_was_closed_says_so(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        redis = await client_of(entra_emulator, source)
        await redis.set("key", "value")
        await redis.aclose()
        await redis.aclose()  # once more does nothing
        for use in (
            redis.get("key"),
            redis.set("key", "value"),
            redis.blpop("queue", timeout=1),
            redis.start(),
        ):
            with pytest.raises(ClosedError, match="closed"):
                await use
        assert redis.auth_status() == []


async def test_a_source_that_was_closed_says_so(entra_emulator: Emulator) -> None:
    source = secret_source(entra_emulator)
    async with source:
        redis = await client_of(entra_emulator, source)
    with pytest.raises(ClosedError, match="closed"):
        await source.get()
    with pytest.raises(ClosedError):
        await source.start()
    with pytest.raises(ClosedError):
        await client_of(entra_emulator, source)
    assert [each async for each in source.subscribe()] == []
    assert source.state is TokenState.CLOSED
    # The client has a connection whose token is good for an hour; it may finish its work.
    assert await redis.ping()
    # But a new connection needs a token, and then it says why there is none.
    await entra_emulator.drop_connections()
    with pytest.raises(ClosedError, match="closed"):
        await redis.ping()
    await redis.aclose()


async def test_closing_lets_commands_in_flight_finish(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        redis = await client_of(entra_emulator, source)
        under_way = [asyncio.create_task(redis.incr("count")) for _ in range(200)]
        await asyncio.sleep(0)
        await redis.aclose()
        assert sorted(await asyncio.gather(*under_way)) == list(range(1, 201))


async def test_commands_that_wait_for_a_connection_end_with_the_client(
    entra_emulator: Emulator,
) -> None:
    async with secret_source(entra_emulator) as source:
        redis = await client_of(entra_emulator, source)
        restart = asyncio.create_task(entra_emulator.restart_server(downtime=0.8))
        async with asyncio.timeout(5):
            while redis.auth_status():  # noqa: ASYNC110 - no event of this client's
                await asyncio.sleep(0.005)
        waiting = [asyncio.create_task(redis.get("key")) for _ in range(10)]
        await asyncio.sleep(0.05)
        await redis.aclose()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, ClosedError)
        await restart


# --------------------------------------------------------------------------------- another loop


async def test_use_from_another_loop_says_so(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        uses: list[Callable[[], Awaitable[object]]] = [
            lambda: redis.get("key"),
            lambda: redis.blpop("queue", timeout=1),
            source.get,
            source.start,
        ]
        for use in uses:
            error = await asyncio.to_thread(_fails_in_a_loop_of_its_own, use)
            assert isinstance(error, WrongLoopError), use
            assert "asyncio.run()" in str(error)
        assert await redis.ping()  # and here it goes on


def _fails_in_a_loop_of_its_own(use: Callable[[], Awaitable[object]]) -> BaseException:
    async def main() -> None:
        await use()

    with pytest.raises(LifecycleError) as caught:
        asyncio.run(main())
    return caught.value


def test_a_second_asyncio_run_needs_a_client_of_its_own(entra_emulator: Emulator) -> None:
    made: dict[str, Any] = {}

    async def first() -> None:
        made["source"] = source = secret_source(entra_emulator)
        made["redis"] = await client_of(entra_emulator, source)
        assert await made["redis"].ping()
        await made["redis"].aclose()
        await source.aclose()

    async def second() -> None:
        with pytest.raises(LifecycleError):
            await made["redis"].ping()
        with pytest.raises(LifecycleError):
            await made["source"].get()
        async with (
            secret_source(entra_emulator) as source,
            client_of(entra_emulator, source) as redis,
        ):
            assert await redis.ping()

    asyncio.run(first())
    asyncio.run(second())


# -------------------------------------------------------------------------------- after a fork


@pytest.mark.parametrize("child", ["run", "same loop"])
async def test_use_after_a_fork_says_so(entra_emulator: Emulator, child: str) -> None:
    """In a program of its own: pytest's process has threads, which a fork would not survive."""
    program = """
import asyncio, os, sys, traceback
from aioentra_redis import ForkedError, TokenSource, connect

async def refusals(redis, source):
    try:
        for use in (redis.get, redis.incr, redis.blpop, lambda _: source.get()):
            try:
                await use("key")
            except ForkedError as error:
                assert "fork" in str(error)
            else:
                raise AssertionError("it worked")
        try:
            source.current
        except ForkedError:
            return 0
    except BaseException:
        traceback.print_exc()
    return 1

async def main():
    source = TokenSource.from_client_secret(
        os.environ["AZURE_TENANT_ID"], os.environ["AZURE_CLIENT_ID"],
        os.environ["AZURE_CLIENT_SECRET"])
    async with source, connect(token_source=source, ssl_ca_certs=sys.argv[1]) as redis:
        await redis.set("key", "parent")
        child = os.fork()
        if child == 0:
            os._exit(asyncio.run(refusals(redis, source)) if sys.argv[2] == "run" else
                     await refusals(redis, source))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert await redis.get("key") == b"parent"

asyncio.run(main())
"""
    await run_program(program, entra_emulator, entra_emulator.ca_file, child)


# ------------------------------------------------------------------------------- what is left


async def test_200_clients_opened_and_closed_leave_nothing(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        before = asyncio.all_tasks()
        for _ in range(10):
            clients = await asyncio.gather(*(_opened(entra_emulator, source) for _ in range(20)))
            assert all(await asyncio.gather(*(each.ping() for each in clients)))
            await asyncio.gather(*(each.aclose() for each in clients))
        assert asyncio.all_tasks() == before
        assert "0 subscribers" in repr(source)
        await until_gone(entra_emulator)
    log = await entra_emulator.log()
    assert len(log.auths) == 200
    assert len(log.tokens) == 1
    assert [each.reason for each in log.closes] == ["client"] * 200


async def _opened(emulator: Emulator, source: TokenSource) -> EntraRedis:
    client: EntraRedis = await client_of(emulator, source)
    return client


async def test_clients_with_sources_of_their_own_leave_nothing_either(
    entra_emulator: Emulator,
) -> None:
    before = asyncio.all_tasks()
    principal = entra_emulator.service_principal

    class Credential:
        async def get_token(self, *scopes: str, **_: Any) -> Any:
            from azure.core.credentials import AccessToken

            return AccessToken(await entra_emulator.issue_token(principal), 2_000_000_000)

    for _ in range(20):
        async with client_of(entra_emulator, None, credential=Credential()) as redis:
            assert await redis.ping()
    assert asyncio.all_tasks() == before
    await until_gone(entra_emulator)


async def test_a_client_that_is_dropped_warns_and_lets_go(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        redis = await client_of(entra_emulator, source)
        assert await redis.ping()
        clients = [redis]
        del redis
        with pytest.warns(ResourceWarning, match="unclosed client"):
            clients.clear()
        await until_gone(entra_emulator)
        assert "0 subscribers" in repr(source)


# ------------------------------------------------------------------------------------- memory


async def test_300_concurrent_sets_of_1_mb_take_less_than_64_mb(entra_emulator: Emulator) -> None:
    program = """
import asyncio, resource, sys
from aioentra_redis import TokenSource, connect
import os

def peak():
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (1024 * 1024) if sys.platform == "darwin" else usage / 1024

async def main():
    source = TokenSource.from_client_secret(
        os.environ["AZURE_TENANT_ID"], os.environ["AZURE_CLIENT_ID"],
        os.environ["AZURE_CLIENT_SECRET"])
    async with source, connect(token_source=source, socket_timeout=60) as redis:
        value = b"x" * 1_000_000
        await redis.set("warm", value)
        before = peak()
        assert all(await asyncio.gather(*(redis.set(f"key:{n}", value) for n in range(300))))
        grown = peak() - before
        assert await redis.strlen("key:299") == 1_000_000
        assert len(redis.auth_status()) == 1
        print(f"{grown:.1f}")

asyncio.run(main())
"""
    assert float(await run_program(program, entra_emulator)) < 64
