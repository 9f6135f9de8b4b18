"""``entra_kwargs``: plain redis-py clients stay signed in, in each way they come."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import redis
import redis.asyncio
from redis.asyncio import Redis
from support.plain_clients import (
    client_for,
    every_way,
    renewals,
    tls,
)
from support.signing_in import (
    Traffic,
    Witness,
    minted_source,
    secret_source,
    until,
)

from aioentra_redis import (
    Reauthenticated,
    TokenPublished,
    entra_kwargs,
)
from aioentra_redis.emulator import Emulator, Log

pytestmark = pytest.mark.emulator

PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])

ENDS = r"because the token it was signed in with expired at \d\d:\d\d:\d\d UTC: "


@PROTOCOLS
async def test_every_kind_of_client_across_expiries_of_3_s(
    entra_emulator: Emulator, protocol: int
) -> None:
    """Rows 2, 8 and 9, with one source for all: no failed command, no wrong reply, in time."""
    await entra_emulator.configure(token_lifetime=3)
    witness = Witness()
    async with (
        secret_source(entra_emulator, on_event=witness) as source,
        every_way(entra_emulator, source, protocol) as clients,
    ):
        traffics = {name: Traffic(client, 5) for name, client in clients.items()}  # type: ignore[arg-type]
        await witness.at_least(5, TokenPublished, timeout=20)
        await until(lambda: min(each.done for each in traffics.values()) > 50, timeout=20)
        for traffic in traffics.values():
            await traffic.stop()
        assert {name: (each.errors, each.wrong) for name, each in traffics.items()} == {
            name: ([], []) for name in traffics
        }
        assert min(each.done for each in traffics.values()) > 50
        log = await entra_emulator.log()
    assert all(each.accepted for each in log.auths)
    renewed = renewals(log)
    # The pools of 3 were never idle, nor was the single connection; the rest had 5 workers.
    assert len([number for number, count in renewed.items() if count >= 2]) >= 7
    assert_in_use_means_in_time(log)
    told = witness.of(Reauthenticated)
    # An answer may be unread when its client is closed.
    assert sum(renewed.values()) - len(renewed) <= len(told) <= sum(renewed.values())


def assert_in_use_means_in_time(log: Log) -> None:
    """No AUTH came after the expiry of the token before, and none brought the same token."""
    expiry = {each.uti: each.expires_on for each in log.tokens}
    for number in {each.connection for each in log.auths}:
        auths = [each for each in log.auths if each.connection == number]
        for before, after in pairwise(auths):
            assert after.time < expiry[before.uti or ""]
            assert after.uti != before.uti


async def test_each_auth_of_a_busy_connection_comes_by_the_deadline(
    entra_emulator: Emulator,
) -> None:
    await entra_emulator.configure(token_lifetime=4)
    witness = Witness()
    async with secret_source(entra_emulator, on_event=witness) as source:
        client = client_for(entra_emulator, source, single_connection_client=True)
        traffic = Traffic(client, 3)  # type: ignore[arg-type]
        await witness.at_least(3, TokenPublished, timeout=20)
        await asyncio.sleep(0.9)
        await traffic.stop()
        await client.aclose()
        assert (traffic.errors, traffic.wrong) == ([], [])
    log = await entra_emulator.log()
    issued = {each.uti: each for each in log.tokens}
    assert len({each.connection for each in log.auths}) == 1
    assert len(log.auths) >= 3
    for before, after in pairwise(log.auths):
        token = issued[before.uti or ""]
        assert after.time <= token.expires_on - 0.3 * (token.expires_on - token.time)


@PROTOCOLS
async def test_pipelines_transactions_watch_and_locks(
    entra_emulator: Emulator, protocol: int
) -> None:
    witness = Witness()
    async with minted_source(entra_emulator, believed=0.4, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=protocol, decode_responses=True)
        rotated = asyncio.Event()
        turns: dict[str, int] = {}

        async def pipelines(name: str, transaction: bool) -> None:
            turn = 0
            while not rotated.is_set():
                turn += 1
                pipe = client.pipeline(transaction=transaction)
                pipe.set(name, turn).incr(name).get(name).lrange("no list", 0, -1)
                assert await pipe.execute() == [True, turn + 1, str(turn + 1), []]
                turns[name] = turn

        async def watches(name: str) -> None:
            turn = 0
            while not rotated.is_set():
                async with client.pipeline() as pipe:
                    await pipe.watch(name)
                    value = int(await pipe.get(name) or 0)
                    await asyncio.sleep(0.001)
                    pipe.multi()
                    pipe.set(name, value + 1).get(name)
                    assert await pipe.execute() == [True, str(value + 1)]
                turn += 1
                turns[name] = turn
            assert await client.get(name) == str(turn)

        async def locks(name: str) -> None:
            turn = 0
            while not rotated.is_set():
                async with client.lock("lock", timeout=10, sleep=0.001):
                    turn += 1
                    await client.incr("locked")
                turns[name] = turn

        async def pops(name: str) -> None:
            turn = 0
            while not rotated.is_set():
                turn += 1
                waiting = asyncio.create_task(client.blpop([name], timeout=5))
                await asyncio.sleep(0.002)
                await client.rpush(name, turn)
                assert list(await waiting) == [name, str(turn)]
                turns[name] = turn

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(pipelines(f"p{number}", transaction=bool(number % 2)))
                group.create_task(watches(f"w{number}"))
                group.create_task(pops(f"b{number}"))
            group.create_task(locks("l0"))
            group.create_task(locks("l1"))
            try:
                await witness.at_least(12, TokenPublished, timeout=20)
                await until(lambda: len(turns) == 14 and min(turns.values()) > 5, timeout=20)
            finally:
                # Also where one has failed: in Python 3.11 redis-py may swallow a cancellation.
                rotated.set()
        assert int(await client.get("locked")) == turns["l0"] + turns["l1"]
        await client.aclose()
    log = await entra_emulator.log()
    assert all(each.accepted for each in log.auths)
    assert sum(renewals(log).values()) > 20


async def test_health_checks_and_reconnects_with_a_user_name_and_a_database(
    entra_emulator: Emulator,
) -> None:
    witness = Witness()
    async with minted_source(entra_emulator, believed=0.4, on_event=witness) as source:
        url = entra_emulator.url.replace(
            "rediss://", f"rediss://{entra_emulator.service_principal.object_id}@"
        )
        client = Redis.from_url(
            f"{url}/3",
            **tls(entra_emulator),
            client_name="me",
            protocol=3,
            health_check_interval=0.05,
            **entra_kwargs(source),
        )
        for turn in range(3):
            await client.set("turn", turn)
            await asyncio.sleep(0.1)
            assert await client.get("turn") == b"%d" % turn
            assert (await client.client_info())["name"] == "me"
            assert (await client.client_info())["db"] == 3
            await witness.at_least(2 * turn + 3, TokenPublished)
            await entra_emulator.drop_connections()
            await asyncio.sleep(0.05)
        await client.aclose()


@pytest.mark.parametrize("command", ["blpop", "monitor"])
async def test_who_waits_across_the_expiry_is_told_why_it_ended(
    entra_emulator: Emulator, command: str
) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source, socket_timeout=None)
        if command == "blpop":
            with pytest.raises(redis.ConnectionError, match=ENDS + "a newer one is sent with"):
                await client.blpop(["nothing"], timeout=0)
        else:
            async with client.monitor() as monitor:
                with pytest.raises(redis.ConnectionError, match=ENDS + "MONITOR takes no newer"):
                    await monitor.next_command()
        assert await client.ping()
        await client.aclose()


async def reasons(emulator: Emulator) -> set[str]:
    """Why connections have ended so far."""
    return {each.reason for each in (await emulator.log()).closes}


async def test_a_watched_connection_that_outlives_its_token_fails_clearly(
    entra_emulator: Emulator,
) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source)
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            async with asyncio.timeout(10):
                while "expiry" not in await reasons(entra_emulator):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            pipe.multi()
            pipe.set("key", "value")
            with pytest.raises((redis.ConnectionError, redis.WatchError)):
                await pipe.execute()
        assert await client.get("key") is None
        await client.aclose()


async def test_idle_connections_are_replaced_when_they_are_wanted(
    entra_emulator: Emulator,
) -> None:
    """The server ended them when their token expired, or is about to.

    They are taken to expire a little sooner than they do, so that none ends between the look at
    it and its command, however busy the machine is.
    """
    async with minted_source(entra_emulator, believed=2.4, lifetime=3) as source:
        client = client_for(entra_emulator, source)
        for pause in (0.66, 0.66, 2.6, 0.66, 3.1):
            assert all(await asyncio.gather(*(client.ping() for _ in range(10))))
            # Around the expiry: some have been ended, some are on the brink of it.
            await asyncio.sleep(pause)
        assert all(await asyncio.gather(*(client.ping() for _ in range(10))))
        await client.aclose()
    assert "expiry" in await reasons(entra_emulator)
