"""``EntraCredentialProvider``: clients of redis-py's own sign in anew at every connect."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from support.signing_in import secret_source

from aioentra_redis import EntraCredentialProvider
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


def options(emulator: Emulator, provider: EntraCredentialProvider) -> dict[str, Any]:
    return {
        "credential_provider": provider,
        "ssl_ca_certs": emulator.ca_file,
        "ssl_check_hostname": True,
        "decode_responses": True,
    }


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_synchronous_client_across_expiries(entra_emulator: Emulator, protocol: int) -> None:
    """Every connection the server ends is replaced by one with a newer token."""
    asyncio.run(entra_emulator.configure(token_lifetime=2))
    with (
        EntraCredentialProvider.in_thread(lambda: secret_source(entra_emulator)) as provider,
        redis.Redis.from_url(
            entra_emulator.url,
            protocol=protocol,
            retry=Retry(ConstantBackoff(0.05), 3),
            retry_on_error=[redis.ConnectionError],  # redis-py 5 wants to be told
            **options(entra_emulator, provider),
        ) as client,
    ):
        until = time.monotonic() + 5
        turn = 0
        while time.monotonic() < until:
            turn += 1
            assert client.set("turn", turn)
            assert client.get("turn") == str(turn)
            time.sleep(0.05)
    log = asyncio.run(entra_emulator.log())
    assert all(each.accepted for each in log.auths)
    assert len({each.uti for each in log.auths}) >= 2
    assert len([each for each in log.closes if each.reason == "expiry"]) >= 1


def test_many_threads_share_one_client_and_one_token(entra_emulator: Emulator) -> None:
    with (
        EntraCredentialProvider.in_thread(lambda: secret_source(entra_emulator)) as provider,
        redis.Redis.from_url(entra_emulator.url, **options(entra_emulator, provider)) as client,
        ThreadPoolExecutor(30) as pool,
    ):

        def work(number: int) -> None:
            for turn in range(10):
                client.set(f"k:{number}", turn)
                assert client.get(f"k:{number}") == str(turn)

        list(pool.map(work, range(30)))
    log = asyncio.run(entra_emulator.log())
    assert len(log.tokens) == 1
    assert all(each.accepted for each in log.auths)


async def test_an_asyncio_client_in_the_loop_of_its_source(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        provider = EntraCredentialProvider(source)
        client = redis.asyncio.Redis.from_url(
            entra_emulator.url, **options(entra_emulator, provider)
        )
        await asyncio.gather(*(client.set(f"k:{number}", number) for number in range(10)))
        assert await client.get("k:7") == "7"
        await client.aclose()
    log = await entra_emulator.log()
    assert len(log.tokens) == 1
    assert len(log.auths) > 1


async def test_after_a_failed_sign_in_the_next_command_signs_in(entra_emulator: Emulator) -> None:
    """redis-py keeps a connection whose sign-in failed with an error that it doesn't know."""
    async with secret_source(entra_emulator) as source:
        answers: list[Any] = [RuntimeError("not yet"), source]

        def make() -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return secret_source(entra_emulator)

        async with EntraCredentialProvider.in_thread(make) as provider:
            client = redis.asyncio.Redis.from_url(
                entra_emulator.url,
                retry=redis.asyncio.retry.Retry(ConstantBackoff(0), 0),
                **options(entra_emulator, provider),
            )
            with pytest.raises(redis.AuthenticationError, match="not yet"):
                await client.ping()
            assert await client.ping()
            await client.aclose()
