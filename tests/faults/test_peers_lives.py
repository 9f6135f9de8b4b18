"""The rows of the usual stack's failures that are about beginnings and ends, loops and processes.

Each test is named after its row, and its figure's target says what was measured there.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest
import redis
from support import rows
from support.plain_clients import WAYS
from support.programs import FORK, run_program
from support.signing_in import secret_source

from aioentra_redis import EntraCredentialProvider
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

BY = pytest.mark.parametrize("way", WAYS)


@BY
async def test_row_13_closed_and_dropped(entra_emulator: Emulator, way: str, figure: Any) -> None:
    found = await rows.closed_and_dropped(way, entra_emulator, seconds=3)
    figure("token requests in the 3 s after", found["token requests"], target="0; there 9")
    figure("connections reopened", found["AUTHs"], target="0; there 5")


@BY
async def test_row_14_200_clients(entra_emulator: Emulator, way: str, figure: Any) -> None:
    found = await rows.clients_that_come_and_go(way, entra_emulator, clients=200)
    for what, count in found.items():
        figure(f"{what} left", count, target="0; there 200 of each")


# -- row 15 ----------------------------------------------------------------------------------------


@BY
def test_row_15_a_second_asyncio_run(entra_emulator: Emulator, way: str, figure: Any) -> None:
    """The source of the first one says so; a new one is renewed as the first one was."""
    renewals = rows.renewals_of_a_second_run(way, entra_emulator, seconds=2)
    figure("renewals in the second run", renewals, target="about 6; there none")
    assert renewals >= 3


def test_row_15_a_provider_in_a_thread_outlives_the_loops(
    entra_emulator: Emulator, figure: Any
) -> None:
    async def use(provider: EntraCredentialProvider) -> None:
        client = redis.asyncio.Redis.from_url(
            entra_emulator.url,
            credential_provider=provider,
            ssl_ca_certs=entra_emulator.ca_file,
            ssl_check_hostname=True,
        )
        assert await client.ping()
        await client.aclose()

    with EntraCredentialProvider.in_thread(lambda: secret_source(entra_emulator)) as provider:
        for _ in range(5):
            asyncio.run(use(provider))
    log = asyncio.run(entra_emulator.log())
    figure("runs of one provider", len(log.auths), target="5; there 1")
    assert len(log.auths) == 5
    assert len(log.tokens) == 1


# -- row 16 ----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("way", [*WAYS, "in_thread"])
async def test_row_16_a_fork(entra_emulator: Emulator, way: str, figure: Any) -> None:
    """The child is told so at once, where its parent's source can't serve it, and signs in anew."""
    output = await run_program(FORK, entra_emulator, entra_emulator.ca_file, way)
    figure("the child", output.strip(), target="signed in; there no renewal")
    assert output == "signed in\n"


# -- row 20 ----------------------------------------------------------------------------------------

TLS = """
import asyncio, gc, json, os, resource, ssl, sys, time
import redis.asyncio
from aioentra_redis import TokenSource, connect, entra_kwargs

ca, way = sys.argv[1:]
loads = 0
load = ssl.SSLContext.load_verify_locations

def counted(*args, **kwargs):
    global loads
    loads += 1
    return load(*args, **kwargs)

ssl.SSLContext.load_verify_locations = counted

def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6

async def lease(client):
    return await client.connection_pool.get_connection()

async def main():
    source = TokenSource.from_client_secret(
        os.environ["AZURE_TENANT_ID"], os.environ["AZURE_CLIENT_ID"],
        os.environ["AZURE_CLIENT_SECRET"])
    global loads
    async with source:
        await source.get()
        loads = 0  # not those of the identity endpoint
        if way == "connect":
            connecting = connect(
                token_source=source, ssl_ca_certs=ca, cluster=False, max_dedicated_connections=301)
        else:
            connecting = redis.asyncio.Redis.from_url(
                os.environ["REDIS_URL"], ssl_ca_certs=ca, max_connections=301,
                socket_connect_timeout=60, **entra_kwargs(source))
        async with connecting as client:
            await client.ping()
            leased = [await lease(client)]
            gc.collect()
            before, busy = memory(), time.process_time()
            for _ in range(299):
                leased.append(await lease(client))
            busy = time.process_time() - busy
            gc.collect()
            grown = memory() - before
            for each in leased:
                await client.connection_pool.release(each)
            assert await client.ping()
    print(json.dumps({"memory": grown, "ms": busy / 299 * 1e3, "loads": loads}))

asyncio.run(main())
"""


@pytest.mark.alone
@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@BY
async def test_row_20_300_tls_connections(entra_emulator: Emulator, way: str, figure: Any) -> None:
    found = json.loads(await run_program(TLS, entra_emulator, entra_emulator.ca_file, way))
    ours = way == "connect"
    figure("memory of 300", found["memory"], "MB", target="under 150; there 369" if ours else "")
    figure("loop time per connect", found["ms"], "ms", target="under 10; there 20" if ours else "")
    figure("loads of the CA store", found["loads"], target="1; there 300" if ours else "")
    if ours:  # in a plain client no hook comes before a connection's first TLS
        assert found["memory"] < 150
        assert found["ms"] < 10
        assert found["loads"] == 1
