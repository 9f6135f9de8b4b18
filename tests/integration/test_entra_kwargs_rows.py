"""None of the failures that were measured with redis-entraid in the place of ``entra_kwargs``.

In small numbers: ``tests/faults`` has them all, for our clients too, with their figures.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import pytest
from redis.asyncio.sentinel import Sentinel
from support import rows, token_rows
from support.plain_clients import (
    no_retries,
    renewals,
)
from support.programs import FORK, run_program
from support.scripted_peer import Peer
from support.signing_in import (
    Traffic,
    Witness,
    minted_source,
)

from aioentra_redis import (
    TokenPublished,
    entra_kwargs,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])
WAY = "entra_kwargs"


@PROTOCOLS
async def test_row_1_renewal_under_load_at_1_ms(entra_emulator: Emulator, protocol: int) -> None:
    found = await rows.load_at_1_ms(WAY, entra_emulator, protocol=protocol)
    assert found["AUTHs"] > 100


async def test_row_2_a_blocking_pool(entra_emulator: Emulator) -> None:
    await rows.a_blocking_pool_under_renewal(WAY, entra_emulator)


@PROTOCOLS
async def test_row_3_a_popped_element_reaches_its_caller_when_auth_is_refused(
    entra_emulator: Emulator, protocol: int
) -> None:
    await rows.a_pop_while_auth_is_refused(WAY, entra_emulator, protocol=protocol)


async def test_row_4_a_provider_that_fails_for_300_ms(entra_emulator: Emulator) -> None:
    await token_rows.a_provider_that_fails_for_a_moment(WAY, entra_emulator)


async def test_row_5_a_black_holed_idle_connection_stalls_nobody(entra_emulator: Emulator) -> None:
    assert await rows.black_holed_among_the_idle(WAY, entra_emulator) < 3  # there 3 to 9 s


async def test_row_7_a_closed_subscriber_leaves_nothing_behind(entra_emulator: Emulator) -> None:
    await rows.subscriber_closed_before_a_pop(WAY, entra_emulator)


async def test_row_8_sentinel(entra_emulator: Emulator) -> None:
    """A master that sentinels name is signed in to like any server; the sentinels are not."""
    target = urlsplit(entra_emulator.plaintext_url)
    state = {
        "name": "cache",
        "ip": target.hostname,
        "port": target.port,
        "flags": "master",
        "num-other-sentinels": 0,
    }
    words = [str(each) for pair in state.items() for each in pair]
    reply = f"*1\r\n*{len(words)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words)
    peer = Peer(SENTINEL=lambda *_: reply.encode())
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.4, on_event=witness) as source,
        peer.serve() as port,
    ):
        sentinel = Sentinel([("127.0.0.1", port)], sentinel_kwargs={"protocol": 2})
        client = sentinel.master_for("cache", **no_retries(), **entra_kwargs(source))
        traffic = Traffic(client, 5)
        await witness.at_least(6, TokenPublished)
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
        await client.aclose()
        for each in sentinel.sentinels:
            await each.aclose()
    assert peer.seen("AUTH") == []
    assert sum(renewals(await entra_emulator.log()).values()) >= 3


@pytest.mark.parametrize("idle", [10, 200])
async def test_row_12_idle_connections_cost_nothing_at_a_renewal(
    entra_emulator: Emulator, idle: int
) -> None:
    """They are left alone: there the worst GET took 29 ms beside 10 of them, 476 beside 200."""
    _, auths = await rows.worst_get_beside_idle_connections(
        WAY, entra_emulator, idle=idle, believed=0.6, seconds=1.5
    )
    assert 1 <= auths <= 8  # of the one connection that is in use


async def test_row_13_after_closing_nothing_goes_on(entra_emulator: Emulator) -> None:
    await rows.closed_and_dropped(WAY, entra_emulator, seconds=0.5)


async def test_row_14_clients_leave_nothing(entra_emulator: Emulator) -> None:
    await rows.clients_that_come_and_go(WAY, entra_emulator, clients=50)


def test_row_15_another_loop_is_told_so_and_a_new_source_works(entra_emulator: Emulator) -> None:
    assert rows.renewals_of_a_second_run(WAY, entra_emulator, seconds=0.8) >= 1


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
async def test_row_16_a_forked_child_is_told_so_and_a_new_source_works(
    entra_emulator: Emulator,
) -> None:
    output = await run_program(FORK, entra_emulator, entra_emulator.ca_file, WAY)
    assert output == "signed in\n"


async def test_row_17_a_cached_token_is_no_reason_for_auth(entra_emulator: Emulator) -> None:
    assert await token_rows.one_token_again_and_again(WAY, entra_emulator, seconds=0.9) == 1


@PROTOCOLS
async def test_row_19_auth_refused_for_a_while_fails_no_command(
    entra_emulator: Emulator, protocol: int
) -> None:
    found = await token_rows.auth_refused_for_a_while(WAY, entra_emulator, protocol=protocol)
    assert found["requests"] < 40
