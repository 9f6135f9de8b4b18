"""The host name can't be resolved, at first or later, and then it can again."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from support.load import Load
from support.signing_in import Witness, client_of, minted_source, secret_source

from aioentra_redis import ConnectError, ConnectionClosed, ConnectTimeoutError
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


class Resolver:
    """The loop's resolver, which fails for as long as it is told to; IMDS and Entra are spared."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self._resolve = loop.getaddrinfo
        self._port = port
        self.fails = False
        self.failures = 0

    async def __call__(self, host: Any, port: Any, **options: Any) -> Any:
        if self.fails and port == self._port:
            self.failures += 1
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return await self._resolve(host, port, **options)


@pytest.fixture
async def resolver(entra_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Resolver:
    loop = asyncio.get_running_loop()
    made = Resolver(loop, int(entra_emulator.url.rpartition(":")[2]))
    monkeypatch.setattr(loop, "getaddrinfo", made)
    return made


async def test_at_connect(entra_emulator: Emulator, resolver: Resolver) -> None:
    resolver.fails = True
    async with secret_source(entra_emulator) as source:
        with pytest.raises(ConnectError) as caught:
            await client_of(entra_emulator, source)
        assert caught.value.stage == "dns"
        for part in ("'localhost' can't be resolved", "Temporary failure", "private endpoint"):
            assert part in str(caught.value)
        resolver.fails = False
        async with client_of(entra_emulator, source) as redis:
            assert await redis.ping()


async def test_a_living_client_goes_on_when_the_name_is_back(
    entra_emulator: Emulator, resolver: Resolver, figure: Any
) -> None:
    clock = asyncio.get_running_loop().time
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=4.0, lifetime=60.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as subscriber,
    ):
        await subscriber.subscribe("news")
        async with Load(redis, 20) as load:
            resolver.fails = True
            await load.more(1000)  # who is connected needs no name
            popping = asyncio.create_task(redis.xread({"stream": "0"}, block=10_000))
            await entra_emulator.drop_connections()
            await witness.first(ConnectionClosed)
            await asyncio.sleep(2.0)
            done = load.done
            failures = resolver.failures
            assert failures > 1
            await asyncio.sleep(0.5)
            assert load.done == done
            healed = clock()
            resolver.fails = False
            await load.more(100)
            figure("DNS away for 2.5 s: going on after", clock() - healed, "s")
            assert clock() - healed < 3.0
            figure("DNS away for 2.5 s: attempts meanwhile", failures)
        figure("DNS away: failed commands", len(load.errors + load.read_errors), target="0")
        assert (load.errors, load.read_errors, load.wrong) == ([], [], [])
        await redis.xadd("stream", {"field": "value"})
        assert await popping
        async with asyncio.timeout(10):
            while True:
                await redis.publish("news", "after")
                message = await subscriber.get_message(timeout=0.1)
                if message is not None:
                    break
        assert message["data"] == b"after"


async def test_past_the_recovery_timeout_it_is_named(
    entra_emulator: Emulator, resolver: Resolver
) -> None:
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, recovery_timeout=0.5) as redis,
    ):
        resolver.fails = True
        await entra_emulator.drop_connections()
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectTimeoutError, match="can't be resolved") as caught:
            await redis.get("key")
        assert caught.value.stage == "dns"
        resolver.fails = False
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await redis.get("key") is None
                    break
                except ConnectTimeoutError:
                    pass
