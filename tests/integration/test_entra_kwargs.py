"""``entra_kwargs``: plain redis-py clients stay signed in across expiries, in each way they come.

The tests named after a row are the failures that were measured with redis-entraid in the same
place; here none of them may happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import ssl
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from support.scripted_peer import Peer
from support.signing_in import (
    BRISK,
    Mint,
    Traffic,
    Witness,
    minted_source,
    secret_source,
    until,
)
from support.slow_wire import SlowWire

from aioentra_redis import (
    ConfigurationError,
    ConnectError,
    InsecureConnectionError,
    SignInRefusedError,
    TokenPublished,
    TokenSource,
    WrongLoopError,
    entra_kwargs,
)
from aioentra_redis.emulator import Emulator, Log

pytestmark = pytest.mark.emulator

PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])


def no_retries() -> dict[str, Any]:
    """Nothing is to succeed only because redis-py tries again."""
    return {"retry": Retry(NoBackoff(), 0)}


def tls(emulator: Emulator) -> dict[str, Any]:
    return {"ssl_ca_certs": emulator.ca_file}


def client_for(emulator: Emulator, source: TokenSource, **options: Any) -> Redis:
    options = {**tls(emulator), **no_retries(), **options}
    return Redis.from_url(emulator.url, **options, **entra_kwargs(source))


@contextlib.asynccontextmanager
async def every_way(
    emulator: Emulator, source: TokenSource, protocol: int
) -> AsyncIterator[dict[str, Redis]]:
    """A client made in each way that there is, each on a database of its own."""
    port = urlsplit(emulator.url).port
    databases = itertools.count()
    kwargs = entra_kwargs(source)

    def options() -> dict[str, Any]:
        common = {**tls(emulator), **no_retries(), **kwargs}
        return {**common, "protocol": protocol, "db": next(databases)}

    direct = {"connection_class": SSLConnection, "host": "localhost", "port": port}
    pools = {
        "connection_pool=": ConnectionPool(**direct, **options()),
        "from_pool": ConnectionPool.from_url(emulator.url, **options()),
        "blocking pool": BlockingConnectionPool(max_connections=3, **direct, **options()),
        "blocking from_url": BlockingConnectionPool.from_url(
            emulator.url, max_connections=3, **options()
        ),
    }
    clients = {
        "Redis()": Redis(host="localhost", port=port, ssl=True, **options()),
        "from_url": Redis.from_url(emulator.url, **options()),
        "single": Redis.from_url(emulator.url, single_connection_client=True, **options()),
        **{
            name: Redis.from_pool(pool) if name == "from_pool" else Redis(connection_pool=pool)
            for name, pool in pools.items()
        },
    }
    try:
        yield clients
    finally:
        for client in clients.values():
            await client.aclose()
        for pool in pools.values():
            await pool.disconnect()


# ------------------------------------------------------------------------- across expiries


@PROTOCOLS
async def test_every_kind_of_client_across_expiries_of_2_s(
    entra_emulator: Emulator, protocol: int
) -> None:
    """Rows 2, 8 and 9, with one source for all: no failed command, no wrong reply, in time."""
    await entra_emulator.configure(token_lifetime=2)
    witness = Witness()
    async with (
        secret_source(entra_emulator, on_event=witness) as source,
        every_way(entra_emulator, source, protocol) as clients,
    ):
        traffics = {name: Traffic(client, 5) for name, client in clients.items()}  # type: ignore[arg-type]
        await witness.at_least(5, TokenPublished, timeout=20)
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


def renewals(log: Log) -> dict[int, int]:
    """How often each connection was re-authenticated."""
    counts: dict[int, int] = {}
    for each in log.auths:
        counts[each.connection] = counts.get(each.connection, -1) + 1
    return counts


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
async def test_row_1_renewal_under_load_at_1_ms(entra_emulator: Emulator, protocol: int) -> None:
    """50 workers and a round trip: there every renewal damaged about 147 commands."""
    witness = Witness()
    port = urlsplit(entra_emulator.url).port
    assert port is not None
    async with (
        minted_source(entra_emulator, believed=0.4, on_event=witness) as source,
        SlowWire(port, delay=0.0005).serve() as wire,
    ):
        client = Redis.from_url(
            f"rediss://localhost:{wire.port}",
            **tls(entra_emulator),
            **no_retries(),
            protocol=protocol,
            socket_connect_timeout=20,
            **entra_kwargs(source),
        )
        traffic = Traffic(client, 50)  # type: ignore[arg-type]
        await until(lambda: traffic.done > 300, timeout=30)
        before = len(witness.of(TokenPublished))
        await witness.at_least(before + 10, TokenPublished, timeout=20)
        await traffic.stop()
        await client.aclose()
    assert (traffic.errors, traffic.wrong) == ([], [])
    log = await entra_emulator.log()
    assert all(each.accepted for each in log.auths)
    assert sum(renewals(log).values()) > 100


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
            assert await client.get(name) == str(turn)
            turns[name] = turn

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
            await witness.at_least(12, TokenPublished, timeout=20)
            rotated.set()
        assert min(turns.values()) > 5
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


# --------------------------------------------------------------------------------- subscribers


@pytest.mark.parametrize("how", ["listen", "get_message", "polling", "run"])
async def test_row_6_a_resp3_subscriber_never_notices(entra_emulator: Emulator, how: str) -> None:
    """Also where nothing is published for longer than a token lives."""
    await entra_emulator.configure(token_lifetime=2)
    witness = Witness()
    async with secret_source(entra_emulator, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=3, decode_responses=True)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        got: list[str] = []
        await pubsub.subscribe(a=lambda message: got.append(message["data"]))
        await pubsub.psubscribe(**{"b*": lambda message: got.append(message["data"])})

        async def listen() -> None:
            if how == "listen":
                async for _ in pubsub.listen():
                    pass
            elif how == "run":
                await pubsub.run()
            else:
                while True:
                    await pubsub.get_message(timeout=None if how == "get_message" else 0.05)

        listening = asyncio.create_task(listen())
        await client.publish("a", "first")
        await witness.at_least(5, TokenPublished, timeout=20)
        for number in range(100):
            await client.publish("a" if number % 2 else "bb", str(number))
        await until(lambda: len(got) == 101)
        await pubsub.subscribe(c=lambda message: got.append(message["data"]))
        await until(lambda: b"c" in pubsub.channels or "c" in pubsub.channels)
        await asyncio.sleep(0.05)
        await client.publish("c", "last")
        await until(lambda: len(got) == 102)
        assert got == ["first", *map(str, range(100)), "last"]
        assert not listening.done()
        connection = await number_of_subscriber(entra_emulator, client)
        listening.cancel()
        await asyncio.wait([listening])
        await pubsub.aclose()
        await client.aclose()
    log = await entra_emulator.log()
    assert renewals(log)[connection] >= 3
    assert all(each.accepted for each in log.auths)


async def number_of_subscriber(emulator: Emulator, client: Redis) -> int:
    """The emulator's number of the connection that was renewed most: the subscriber's."""
    renewed = renewals(await emulator.log())
    return max(renewed, key=lambda number: renewed[number])


async def test_a_resp3_subscriber_at_a_thousand_messages_a_second(
    entra_emulator: Emulator,
) -> None:
    """(Un)subscribing meanwhile; every message of the channel that stays, once and in order."""
    witness = Witness()
    async with minted_source(entra_emulator, believed=0.4, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=3, decode_responses=True)
        publisher = client_for(entra_emulator, source)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe("stays")
        got: list[int] = []

        async def listen() -> None:
            async for message in pubsub.listen():
                if message["channel"] == "stays":
                    got.append(int(message["data"]))  # noqa: PERF401 - it never ends

        listening = asyncio.create_task(listen())
        sent = 0
        while len(witness.of(TokenPublished)) < 12:
            for _ in range(20):
                await publisher.publish("stays", sent)
                sent += 1
            if sent % 200 == 0:
                await pubsub.subscribe(f"other:{sent}")
            elif sent % 100 == 0:
                await pubsub.unsubscribe(f"other:{sent - 100}")
            await asyncio.sleep(0.01)
        await until(lambda: len(got) == sent)
        assert got == list(range(sent))
        listening.cancel()
        await asyncio.wait([listening])
        await pubsub.aclose()
        await client.aclose()
        await publisher.aclose()
    log = await entra_emulator.log()
    assert all(each.accepted for each in log.auths)
    assert max(renewals(log).values()) >= 8


async def test_a_refused_auth_does_not_disturb_a_subscriber(entra_emulator: Emulator) -> None:
    witness = Witness()
    async with patient_source(entra_emulator, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=3, decode_responses=True)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe("a")
        got: list[str] = []

        async def listen() -> None:
            async for message in pubsub.listen():
                got.append(message["data"])  # noqa: PERF401 - it never ends

        listening = asyncio.create_task(listen())
        await client.ping()
        await entra_emulator.refuse_auth()
        await until_refused(entra_emulator, 2)
        await client.publish("a", "still here")
        await until(lambda: got == ["still here"])
        await entra_emulator.heal()
        refused = len((await entra_emulator.log()).auths)
        await until_renewed(entra_emulator, refused + 1)
        await client.publish("a", "and again")
        await until(lambda: got == ["still here", "and again"])
        assert not listening.done()
        listening.cancel()
        await asyncio.wait([listening])
        await pubsub.aclose()
        await client.aclose()


def patient_source(emulator: Emulator, **options: Any) -> TokenSource:
    """Newer tokens every second, and time until one is missed."""
    return minted_source(emulator, believed=10, refresh_in=1, **options)


async def until_refused(emulator: Emulator, count: int) -> None:
    async with asyncio.timeout(10):
        while sum(not each.accepted for each in (await emulator.log()).auths) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_renewed(emulator: Emulator, count: int) -> None:
    async with asyncio.timeout(10):
        while len((await emulator.log()).auths) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


# ------------------------------------------------------------------------- what is not promised

ENDS = r"because the token it was signed in with expired at \d\d:\d\d:\d\d UTC: "


async def test_a_resp2_subscriber_is_told_why_it_ended(entra_emulator: Emulator) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source, protocol=2)
        pubsub = client.pubsub()
        await pubsub.subscribe("a")
        with pytest.raises(redis.ConnectionError, match=ENDS + "a RESP2 subscriber takes no newer"):
            async for _ in pubsub.listen():
                pass
        # And with the next read redis-py subscribes again, by itself.
        assert (await pubsub.get_message(timeout=5) or {})["type"] == "subscribe"
        await pubsub.aclose()
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


async def test_a_watched_connection_that_outlives_its_token_fails_clearly(
    entra_emulator: Emulator,
) -> None:
    await entra_emulator.configure(token_lifetime=2)
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source)
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            await asyncio.sleep(2.2)
            pipe.multi()
            pipe.set("key", "value")
            with pytest.raises((redis.ConnectionError, redis.WatchError)):
                await pipe.execute()
        assert await client.get("key") is None
        await client.aclose()


# ------------------------------------------------------------------------- rows of bad luck


@PROTOCOLS
async def test_row_3_a_popped_element_reaches_its_caller_when_auth_is_refused(
    entra_emulator: Emulator, protocol: int
) -> None:
    witness = Witness()
    async with patient_source(entra_emulator, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=protocol)
        other = client_for(entra_emulator, source)
        await asyncio.gather(client.ping(), other.ping())
        popping = asyncio.create_task(client.blpop(["list"], timeout=10))
        await asyncio.sleep(0.05)
        await entra_emulator.refuse_auth()
        await witness.at_least(3, TokenPublished)
        for number in itertools.count():
            await other.rpush("list", number)
            assert list(await popping) == [b"list", b"%d" % number]
            popping = asyncio.create_task(client.blpop(["list"], timeout=10))
            await asyncio.sleep(0.02)
            # At a moment of its own within seconds AUTH goes in front of a BLPOP.
            if number % 20 == 0 and not all(
                each.accepted for each in (await entra_emulator.log()).auths
            ):
                break
        await other.rpush("list", "last")
        await popping
        await client.aclose()
        await other.aclose()
    log = await entra_emulator.log()
    assert [each for each in log.auths if not each.accepted]
    assert len({each.connection for each in log.auths}) == 2


async def test_row_4_a_provider_that_fails_for_300_ms(entra_emulator: Emulator) -> None:
    await entra_emulator.configure(token_lifetime=4)
    witness = Witness()
    async with secret_source(entra_emulator, on_event=witness) as source:
        client = client_for(entra_emulator, source, single_connection_client=True)
        traffic = Traffic(client, 3)  # type: ignore[arg-type]
        await until(lambda: traffic.done > 10)
        await entra_emulator.fail_identity()
        await until(lambda: source.status.consecutive_failures > 0)
        await asyncio.sleep(0.3)
        await entra_emulator.heal()
        await witness.at_least(3, TokenPublished, timeout=20)
        await traffic.stop()
        await client.aclose()
        assert (traffic.errors, traffic.wrong) == ([], [])
    assert len({each.connection for each in (await entra_emulator.log()).auths}) == 1


async def test_row_5_a_black_holed_idle_connection_stalls_nobody(
    entra_emulator: Emulator,
) -> None:
    witness = Witness()
    port = urlsplit(entra_emulator.url).port
    assert port is not None
    async with (
        minted_source(entra_emulator, believed=0.4, on_event=witness) as source,
        SlowWire(port, delay=0).serve() as wire,
    ):
        client = Redis.from_url(
            f"rediss://localhost:{wire.port}",
            **tls(entra_emulator),
            **no_retries(),
            **entra_kwargs(source),
        )
        await asyncio.gather(*(client.ping() for _ in range(5)))  # five connections
        # The pool hands out the one that came back last; this is the one that came back first.
        idle = client.connection_pool._available_connections[0]
        wire.swallow(idle._writer.get_extra_info("sockname")[1])
        traffic = Traffic(client, 1)  # type: ignore[arg-type]
        before = len(witness.of(TokenPublished))
        await witness.at_least(before + 5, TokenPublished)
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
        assert traffic.slowest(0) < 3  # it was 3 to 9 s there
        for each in client.connection_pool._available_connections:
            await each.disconnect(nowait=True)  # one of them would not say goodbye
        await client.aclose()


async def test_row_7_a_closed_subscriber_leaves_nothing_behind(entra_emulator: Emulator) -> None:
    """No AUTH goes into a connection that is running BLPOP, whatever was there before."""
    witness = Witness()
    async with minted_source(entra_emulator, believed=0.4, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=3, max_connections=1)
        pubsub = client.pubsub()
        await pubsub.subscribe("a")
        assert (await pubsub.get_message(timeout=5) or {})["type"] == "subscribe"
        await pubsub.get_message(timeout=0.5)
        await pubsub.aclose()
        await client.ping()
        popping = asyncio.create_task(client.blpop(["list"], timeout=10))
        await asyncio.sleep(0.05)
        auths = len((await entra_emulator.log()).auths)
        before = len(witness.of(TokenPublished))
        await witness.at_least(before + 3, TokenPublished)
        assert len((await entra_emulator.log()).auths) == auths
        other = client_for(entra_emulator, source)
        await other.rpush("list", "element")
        assert list(await popping) == [b"list", b"element"]
        assert await client.ping()
        await client.aclose()
        await other.aclose()


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
    witness = Witness()
    async with minted_source(entra_emulator, believed=0.6, on_event=witness) as source:
        client = Redis.from_url(
            entra_emulator.plaintext_url,
            max_connections=idle,
            **no_retries(),
            socket_connect_timeout=20,
            socket_timeout=20,
            **entra_kwargs(source),
        )
        pool = client.connection_pool
        connections = [await pool.get_connection() for _ in range(idle)]
        for each in connections:
            await pool.release(each)
        before = len((await entra_emulator.log()).auths)
        traffic = Traffic(client, 1)  # type: ignore[arg-type]
        published = len(witness.of(TokenPublished))
        await witness.at_least(published + 5, TokenPublished)
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
        after = len((await entra_emulator.log()).auths)
        assert after - before <= 8  # of the one connection that is in use
        await client.aclose()


async def test_idle_connections_are_replaced_when_they_are_wanted(
    entra_emulator: Emulator,
) -> None:
    """The server ended them when their token expired, or is about to."""
    await entra_emulator.configure(token_lifetime=2)
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source)
        for _ in range(8):
            assert all(await asyncio.gather(*(client.ping() for _ in range(10))))
            # Around the expiry: some have been ended, some are on the brink of it.
            await asyncio.sleep(0.66)
        await client.aclose()


async def test_row_13_after_closing_nothing_goes_on(entra_emulator: Emulator) -> None:
    async with minted_source(entra_emulator, believed=0.4) as source:
        client = client_for(entra_emulator, source)
        await asyncio.gather(*(client.ping() for _ in range(5)))
        await client.aclose()
        connections = [weakref.ref(each) for each in client.connection_pool._available_connections]
        del client
        await asyncio.sleep(0.5)
        gc.collect()
        assert [each() for each in connections if each() is not None] == []
        assert await entra_emulator.connections() == []
        auths = len((await entra_emulator.log()).auths)
        await asyncio.sleep(0.5)
        assert len((await entra_emulator.log()).auths) == auths


async def test_row_14_200_clients_leave_nothing(entra_emulator: Emulator) -> None:
    async with minted_source(entra_emulator, believed=10) as source:
        tasks = asyncio.all_tasks()
        gone = []
        for _ in range(200):
            client = Redis.from_url(entra_emulator.plaintext_url, **entra_kwargs(source))
            await client.ping()
            gone += [weakref.ref(client), weakref.ref(client.connection_pool)]
            await client.aclose()
        del client
        await asyncio.sleep(0.1)
        gc.collect()
        assert [each() for each in gone if each() is not None] == []
        assert asyncio.all_tasks() == tasks
        assert await entra_emulator.connections() == []


def test_row_15_another_loop_is_told_so_and_a_new_source_works(entra_emulator: Emulator) -> None:
    mint = Mint(entra_emulator, believed=10, lifetime=30)
    source = TokenSource.from_credential_factory(mint, refresh=BRISK)

    async def use(source: TokenSource) -> None:
        client = client_for(entra_emulator, source)
        try:
            await client.ping()
        finally:
            await client.aclose()

    async def first() -> None:
        await use(source)
        await source.aclose()

    asyncio.run(first())
    with pytest.raises((WrongLoopError, RuntimeError)):
        asyncio.run(use(source))

    async def second() -> None:
        async with TokenSource.from_credential_factory(mint, refresh=BRISK) as another:
            await use(another)

    asyncio.run(second())


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_row_16_a_forked_child_is_told_so_and_a_new_source_works(entra_emulator: Emulator) -> None:
    """In a process of its own: the child would inherit all that the tests have open."""
    options = {
        "url": entra_emulator.url,
        "ca": entra_emulator.ca_file,
        "tenant": entra_emulator.tenant_id,
        "client": entra_emulator.service_principal.client_id,
        "secret": entra_emulator.service_principal.secret,
        "credential": entra_emulator.credential_options,
    }
    program = """
import asyncio, json, os, sys, traceback
import redis.asyncio
from aioentra_redis import ForkedError, TokenSource, entra_kwargs
options = json.load(sys.stdin)
def make():
    return TokenSource.from_client_secret(
        options["tenant"], options["client"], options["secret"], **options["credential"])
async def use(source):
    client = redis.asyncio.Redis.from_url(
        options["url"], ssl_ca_certs=options["ca"], **entra_kwargs(source))
    try:
        return await client.ping()
    finally:
        await client.aclose()
async def parent():
    source = make()
    assert await use(source)
    pid = os.fork()
    if pid == 0:
        return source, None
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"
    assert await use(source)
    await source.aclose()
    return None, pid
source, pid = asyncio.get_event_loop_policy().new_event_loop().run_until_complete(parent())
if pid is None:
    try:
        asyncio.run(use(source))
        os._exit(2)
    except ForkedError:
        pass
    async def anew():
        async with make() as another:
            assert await use(another)
    try:
        asyncio.run(anew())
    except BaseException:
        traceback.print_exc()
        os._exit(3)
    os._exit(0)
print("parent done")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        input=json.dumps(options),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "parent done\n"), done.stderr


async def test_row_17_a_cached_token_is_no_reason_for_auth(entra_emulator: Emulator) -> None:
    """The SDK returns what it has until five minutes before the end, again and again."""
    mint = Mint(entra_emulator, believed=1.0, lifetime=30)
    cached: list[Any] = []

    class Caching:
        async def get_token_info(self, *scopes: str) -> Any:
            if not cached:
                cached.append(await mint.get_token_info(*scopes))
            return cached[0]

    async with TokenSource(Caching(), refresh=BRISK) as source:
        client = client_for(entra_emulator, source)
        ends = time.monotonic() + 0.9
        while time.monotonic() < ends:
            assert await client.ping()
        await client.aclose()
    assert len((await entra_emulator.log()).auths) == 1


@PROTOCOLS
async def test_row_19_auth_refused_for_a_while_fails_no_command(
    entra_emulator: Emulator, protocol: int
) -> None:
    witness = Witness()
    async with patient_source(entra_emulator, on_event=witness) as source:
        client = client_for(entra_emulator, source, protocol=protocol, max_connections=5)
        # All five are opened beforehand: a connection that is new meanwhile has to be refused,
        # and some versions' pools get through the traffic with fewer for a long time.
        await asyncio.gather(*(client.blpop(["nothing"], timeout=0.5) for _ in range(5)))
        assert len({each.connection for each in (await entra_emulator.log()).auths}) == 5
        traffic = Traffic(client, 5)  # type: ignore[arg-type]
        await until(lambda: traffic.done > 100)
        await entra_emulator.refuse_auth()
        asked = len((await entra_emulator.log()).requests)
        await until_refused(entra_emulator, 8)
        await entra_emulator.heal()
        healed = len((await entra_emulator.log()).auths)
        await until_renewed(entra_emulator, healed + 5)
        await traffic.stop()
        await client.aclose()
        assert (traffic.errors, traffic.wrong) == ([], [])
        log = await entra_emulator.log()
        assert len(log.requests) - asked < 40
        # Each newer token once per connection, but for the probes of a second and more.
        assert len({each.connection for each in log.auths}) <= 5


# ------------------------------------------------------------------------- TLS and bad input


async def test_no_token_goes_to_a_server_whose_name_is_not_checked(
    entra_emulator: Emulator,
) -> None:
    """Whatever redis-py's version checks by itself; the certificate is for localhost only."""
    url = entra_emulator.url.replace("localhost", "127.0.0.2")
    async with secret_source(entra_emulator) as source:
        client = Redis.from_url(url, **tls(entra_emulator), **no_retries(), **entra_kwargs(source))
        with pytest.raises(redis.ConnectionError):
            await client.ping()
        await client.aclose()
    assert (await entra_emulator.log()).auths == []


@pytest.mark.parametrize(
    "weakness",
    [
        pytest.param({"ssl_cert_reqs": "none"}, id="any certificate"),
        pytest.param({"ssl_cert_reqs": "optional"}, id="optional"),
        pytest.param({"ssl_min_version": ssl.TLSVersion.TLSv1_1}, id="TLS 1.1"),
        pytest.param(
            {"ssl_check_hostname": False},
            id="host name",
            marks=pytest.mark.skipif(
                redis.VERSION < (6,), reason="its default, so it is put right in silence"
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
async def test_weak_tls_is_refused_before_the_token_is_sent(
    entra_emulator: Emulator, weakness: dict[str, Any]
) -> None:
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source, **weakness)
        for _ in range(2):
            with pytest.raises(InsecureConnectionError):
                await client.ping()
        await client.aclose()
        assert (await entra_emulator.log()).auths == []

        options = {**tls(entra_emulator), **weakness}
        client = Redis.from_url(
            entra_emulator.url, **options, **entra_kwargs(source, allow_insecure_tls=True)
        )
        with pytest.warns(RuntimeWarning, match="insecure TLS allowed"):
            assert await client.ping()
        await client.aclose()


async def test_connections_that_connect_again_share_one_context(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        client = client_for(entra_emulator, source)
        pool = client.connection_pool
        connections = [await pool.get_connection() for _ in range(3)]
        assert len({id(each.ssl_context.context) for each in connections}) == 1
        for each in connections:
            await each.disconnect()
            await pool.release(each)
        assert await client.ping()
        await client.aclose()


async def test_a_password_or_provider_besides_is_refused_and_nothing_sent(
    entra_emulator: Emulator,
) -> None:
    async with secret_source(entra_emulator) as source:
        provider = redis.UsernamePasswordCredentialProvider("user", "pass")
        for options in ({"password": "pass"}, {"credential_provider": provider}):
            client = client_for(entra_emulator, source, **options)
            for _ in range(2):
                with pytest.raises(ConfigurationError, match="can't be combined"):
                    await client.ping()
            await client.aclose()
        client = client_for(entra_emulator, source, username="me@example.com")
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="not the object ID"):
                await client.ping()
        await client.aclose()
    assert (await entra_emulator.log()).auths == []


async def test_a_refused_sign_in_says_why_and_leaves_no_open_connection(
    entra_emulator: Emulator,
) -> None:
    async with secret_source(entra_emulator) as source:
        await entra_emulator.refuse_auth(1)
        client = client_for(entra_emulator, source)
        with pytest.raises(SignInRefusedError, match="no access policy assignment"):
            await client.ping()
        assert await client.ping()
        await client.aclose()


async def test_a_wrong_port_is_named_as_such(entra_emulator: Emulator) -> None:
    """A handshake that is answered with something else than expected."""
    peer = Peer(HELLO=lambda *_: b"-ERR unknown command\r\n", AUTH=lambda *_: b"-ERR no\r\n")
    async with secret_source(entra_emulator) as source, peer.serve() as port:
        client = Redis(port=port, host="127.0.0.1", **no_retries(), **entra_kwargs(source))
        with pytest.raises(ConnectError):
            await client.ping()
        await client.aclose()
