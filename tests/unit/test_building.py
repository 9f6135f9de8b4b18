"""Every way to build a client, over real sockets: what is shared, and what a pool's owner does."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio import BlockingConnectionPool, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from support.scripted_peer import CUT, HANG, Peer, bulk
from support.signing_in import until
from support.token_fakes import Clock, Credential, source_of

from aioentra_redis import ConnectionClosed, ConnectionOpened, EntraRedis, WrongLoopError
from aioentra_redis.errors import ConfigurationError, MaybeExecutedError


class Subclassed(ConnectionPool):
    """A user's pool, which makes connections its own way."""

    made = 0

    def make_connection(self) -> Any:
        type(self).made += 1
        return super().make_connection()


@contextlib.asynccontextmanager
async def served(**script: Any) -> AsyncIterator[Peer]:
    blpop = lambda name, key, timeout: b"*2\r\n" + bulk(key) + bulk("job")  # noqa: E731
    peer = Peer(**{"BLPOP": blpop, **script})
    async with peer.serve():
        yield peer


async def works(client: Any) -> None:
    """A shared command, one on a connection of the pool, and a pipeline."""
    assert await client.set("k", "v") is True
    assert await client.get("k") in (b"v", "v")
    assert list(map(bytes, await client.blpop(["q"], timeout=1))) == [b"q", b"job"]
    pipe = client.pipeline(transaction=False)
    assert await pipe.get("k").get("k").execute() == [b"v", b"v"]


# ------------------------------------------------------------------------------- the ways


@pytest.mark.parametrize("sign_in", ["nobody", "credential", "source"])
@pytest.mark.parametrize(
    "way", ["host", "from_url", "from_pool", "pool", "blocking pool", "subclassed pool", "subclass"]
)
async def test_each_way_to_build_one_works(way: str, sign_in: str):
    clock = Clock()
    source = source_of(Credential(clock), clock)
    ours: dict[str, Any] = {
        "nobody": {},
        "credential": {"credential": Credential(clock)},
        "source": {"token_source": source},
    }[sign_in]

    class Mine(EntraRedis):
        async def execute_command(self, *args: Any, **options: Any) -> Any:
            return await super().execute_command(*args, **options)

    async with served() as peer:
        options: dict[str, Any] = {"host": "127.0.0.1", "port": peer.port, "protocol": 3}
        kinds: dict[str, Any] = {
            "from_pool": ConnectionPool,
            "pool": ConnectionPool,
            "blocking pool": BlockingConnectionPool,
            "subclassed pool": Subclassed,
        }
        pool = kinds[way](**options) if way in kinds else None
        if way == "from_url":
            url = f"redis://127.0.0.1:{peer.port}/0?protocol=3"
            client = EntraRedis.from_url(url, **ours)
        elif way == "from_pool":
            client = EntraRedis.from_pool(pool, **ours)
        elif pool is not None:
            client = EntraRedis(connection_pool=pool, **ours)
        else:
            client = (Mine if way == "subclass" else EntraRedis)(**options, **ours)
        made = Subclassed.made
        await works(client)
        if way == "subclassed pool":
            assert Subclassed.made == made + 2, "the shared one and the dedicated one"
        signed_in = [words for words in peer.seen("HELLO") if b"AUTH" in words]
        assert len(signed_in) == (0 if sign_in == "nobody" else 2)
        assert (client.token_source is None) is (sign_in == "nobody")
        assert [type(each) for each in (client.client(),)] == [type(client)]
        await client.aclose()
        if pool is not None and way != "from_pool":
            assert len(peer.open) == 1, "the pool's own connection is its owner's to close"
            await pool.aclose()
        await until(lambda: not peer.open)
    await source.aclose()


async def test_clients_that_share_a_pool_share_its_connection_and_its_sign_in():
    clock = Clock()
    source = source_of(Credential(clock), clock)
    async with served() as peer:
        pool = ConnectionPool(host="127.0.0.1", port=peer.port, protocol=3)
        first = EntraRedis(connection_pool=pool, token_source=source)
        second = EntraRedis(connection_pool=pool, token_source=source)
        third = EntraRedis(connection_pool=pool)  # asks for no other way to sign in
        plain = redis.asyncio.Redis(connection_pool=pool)
        for client in (first, second, third):
            await client.set("k", "v")
        assert len(peer.open) == 1
        assert third.token_source is source
        await plain.get("k")
        assert len(peer.open) == 2
        assert len([words for words in peer.seen("HELLO") if b"AUTH" in words]) == 2
        for client in (first, second):
            await client.aclose()
        assert await third.get("k") == b"v", "the last client closes the connection"
        await third.aclose()
        await plain.aclose()
        await pool.aclose()
    await source.aclose()


def test_clients_of_one_credential_but_two_sources_are_told_how_to_share():
    pool, credential = ConnectionPool(), Credential(Clock())
    EntraRedis(connection_pool=pool, credential=credential)
    with pytest.raises(ConfigurationError, match="token_source="):
        EntraRedis(connection_pool=pool, credential=credential)


async def test_a_second_clients_events_are_its_own_until_it_closes():
    heard: dict[str, list[Any]] = {"first": [], "second": []}
    async with served() as peer:
        pool = ConnectionPool(host="127.0.0.1", port=peer.port, protocol=3)
        first = EntraRedis(connection_pool=pool, on_event=heard["first"].append)
        second = EntraRedis(connection_pool=pool, on_event=heard["second"].append)
        await first.ping()
        kinds = {name: [type(each) for each in events] for name, events in heard.items()}
        assert kinds == {"first": [ConnectionOpened], "second": [ConnectionOpened]}
        await second.aclose()
        await pool.disconnect()
        kinds = {name: [type(each) for each in events] for name, events in heard.items()}
        assert kinds["first"] == [ConnectionOpened, ConnectionClosed]
        assert kinds["second"] == [ConnectionOpened]
        await first.aclose()


def test_clients_of_a_pool_have_the_same_times():
    pool = ConnectionPool()
    first = EntraRedis(connection_pool=pool, recovery_timeout=7)
    second = EntraRedis(connection_pool=pool)
    third = EntraRedis(connection_pool=pool, recovery_timeout=7, close_timeout=5)
    assert first._multiplexed is second._multiplexed is third._multiplexed
    assert third._multiplexed.recovery_timeout == 7
    with pytest.raises(ConfigurationError, match=r"recovery_timeout=8.*has set it to 7"):
        EntraRedis(connection_pool=pool, recovery_timeout=8)
    gc.collect()  # the refused one had no share, and so gives none back
    assert third._multiplexed._clients == 3


# ------------------------------------------------------------------------- what a pool's owner does


@pytest.mark.parametrize("end", ["disconnect", "aclose"])
async def test_the_pools_owner_ends_the_shared_connection_too(end: str):
    async with served() as peer:
        pool = ConnectionPool(host="127.0.0.1", port=peer.port, protocol=3)
        client = EntraRedis(connection_pool=pool)
        await works(client)
        assert len(peer.open) == 2
        await getattr(pool, end)()
        await until(lambda: not peer.open)
        assert client.auth_status() == []
        await asyncio.sleep(0.1)
        assert len(peer.connections) == 2, "only the next command connects"
        await works(client)
        assert len(peer.open) == 2
        await client.aclose()
        await pool.aclose()


async def test_disconnecting_fails_what_is_in_flight_as_a_loss_does():
    async with served(GET=[HANG], INCR=[HANG]) as peer:
        client = EntraRedis(host="127.0.0.1", port=peer.port, protocol=3)
        await client.set("k", "v")
        read = asyncio.ensure_future(client.get("k"))
        write = asyncio.ensure_future(client.execute_command("INCR", "n"))
        await peer.arrival("INCR")
        await client.connection_pool.disconnect()
        assert await read == b"v", "a read is sent again"
        with pytest.raises(MaybeExecutedError):
            await write
        await client.aclose()


async def test_disconnecting_what_is_idle_lets_commands_finish():
    async with served(GET=lambda *_: [HANG, bulk("slow")]) as peer:
        client = EntraRedis(host="127.0.0.1", port=peer.port, protocol=3)
        await client.ping()
        slow = asyncio.ensure_future(client.get("k"))
        await peer.arrival("GET")
        await client.connection_pool.disconnect(inuse_connections=False)
        await client.set("k", "v")
        assert len(peer.open) == 2
        assert [row.state.value for row in client.auth_status()] == ["draining", "authenticated"]
        peer.go_on()
        assert await slow == b"slow"
        await until(lambda: len(peer.open) == 1)
        await client.aclose()


async def test_disconnecting_cancelled_while_it_waits_still_disconnects():
    async with served() as peer:
        client = EntraRedis(host="127.0.0.1", port=peer.port, protocol=3)
        await client.ping()
        task = asyncio.ensure_future(client.connection_pool.disconnect())
        for _ in range(2):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: not peer.open)
        assert await client.ping() is True
        await client.aclose()


async def test_disconnecting_while_the_first_command_connects_leaves_it_alone():
    async with served(HELLO=[[0.1, b"%1\r\n+proto\r\n:3\r\n"]]) as peer:
        client = EntraRedis(host="127.0.0.1", port=peer.port, protocol=3)
        first = asyncio.ensure_future(client.get("k"))
        await asyncio.sleep(0.03)
        await client.connection_pool.disconnect()
        assert await first is None
        await client.aclose()


async def test_a_pools_reset_lets_go_of_the_shared_connection():
    async with served() as peer:
        client = EntraRedis(host="127.0.0.1", port=peer.port, protocol=3)
        await client.ping()
        client.connection_pool.reset()
        assert await client.ping() is True
        await until(lambda: len(peer.open) == 1)
        assert len(peer.connections) == 2
        await client.aclose()


async def test_disconnecting_from_another_loop_is_an_error_that_says_so():
    async with served() as peer:
        client = EntraRedis(host="127.0.0.1", port=peer.port, protocol=3)
        await client.ping()

        def elsewhere() -> None:
            client.connection_pool.reset()  # may be called anywhere, and does nothing from there
            asyncio.run(client._multiplexed.disconnect())

        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(elsewhere)
        assert await client.ping() is True
        assert len(peer.connections) == 1
        await client.aclose()


async def test_a_pool_is_as_it_was_once_its_last_client_is_closed():
    async with served() as peer:
        pool = ConnectionPool(host="127.0.0.1", port=peer.port, protocol=3)
        before = set(vars(pool))
        for _ in range(2):
            client = EntraRedis(connection_pool=pool)
            await client.ping()
            assert {"disconnect", "reset", "set_retry"} <= set(vars(pool))
            await client.aclose()
        assert set(vars(pool)) - before == {"_aioentra_multiplexed"}
        await pool.disconnect()


# ---------------------------------------------------------------------------------- retries


@pytest.mark.parametrize("who", ["the keyword", "the pool", "set_retry", "pool.set_retry"])
async def test_whoever_says_retry_means_the_shared_connection_too(who: str):
    retry = Retry(ConstantBackoff(0.001), 2)
    async with served(INCR=[CUT, CUT]) as peer:
        where: dict[str, Any] = {"host": "127.0.0.1", "port": peer.port, "protocol": 3}
        if who == "the pool":
            client = EntraRedis.from_pool(ConnectionPool(retry=retry, **where))
        else:
            client = EntraRedis(**where, **({"retry": retry} if who == "the keyword" else {}))
        await client.ping()
        if who == "set_retry":
            client.set_retry(retry)
        elif who == "pool.set_retry":
            client.connection_pool.set_retry(retry)
        assert await client.execute_command("INCR", "n") == 1
        assert client.get_retry()._retries == 2
        await client.aclose()


async def test_nobody_said_retry():
    async with served(INCR=[CUT]) as peer:
        client = EntraRedis(host="127.0.0.1", port=peer.port, protocol=3)
        await client.ping()
        with pytest.raises(redis_exceptions.ConnectionError):
            await client.execute_command("INCR", "n")
        await client.aclose()


# ---------------------------------------------------------------------------- odds and ends


async def test_contexts_may_nest_and_the_outermost_closes():
    async with served() as peer:
        client = EntraRedis(host="127.0.0.1", port=peer.port, protocol=3)
        async with client, client:
            async with client:
                await client.ping()
            assert await client.ping() is True
            assert len(peer.open) == 1
        await until(lambda: not peer.open)


def test_the_encoder_is_the_pools():
    client = EntraRedis(host="localhost", encoding="latin-1", decode_responses=True)
    assert client.get_encoder().encode("\xe9") == b"\xe9"
    assert client.get_encoder().decode(b"\xe9") == "\xe9"
    assert client.get_connection_kwargs() is client.connection_pool.connection_kwargs


async def test_a_users_route_is_followed():
    slow = [HANG, bulk("done")]
    async with served(**{"MY.BLOCKING": lambda *_: slow}) as peer:
        client = EntraRedis(
            host="127.0.0.1", port=peer.port, protocol=3, routes={"my.blocking": "dedicated"}
        )
        blocking = asyncio.ensure_future(client.execute_command("MY.BLOCKING", "k"))
        await peer.arrival("MY.BLOCKING")
        await client.ping()
        assert not blocking.done(), "others do not wait for it"
        peer.go_on()
        assert await blocking == b"done"
        assert len(peer.connections) == 2
        await client.aclose()
    with pytest.raises(ConfigurationError, match="routes="):
        EntraRedis.from_url("redis://localhost", routes={"BLPOP": "shared"})


async def test_a_copy_has_a_share_of_its_own_and_takes_nothing_along():
    async with served() as peer:
        heard: list[Any] = []
        client = EntraRedis(host="127.0.0.1", port=peer.port, on_event=heard.append)
        client.set_response_callback("ECHO", lambda reply: ["first", reply])
        await client.ping()
        clone = copy.copy(client)
        await works(clone)
        clone.set_response_callback("ECHO", lambda reply: ["second", reply])
        assert await clone.echo("a") == ["second", b"a"]
        assert await client.echo("a") == ["first", b"a"]
        assert [type(event) for event in heard].count(ConnectionOpened) == 1
        del clone
        gc.collect()
        await asyncio.sleep(0)
        await works(client)
        clone = copy.copy(client)
        await client.aclose()
        assert await clone.ping(), "it still has its share"
        await clone.aclose()


async def test_a_copy_may_be_closed_before_its_original():
    clock = Clock()
    async with served() as peer:
        client = EntraRedis(
            host="127.0.0.1", port=peer.port, protocol=3, credential=Credential(clock)
        )
        await client.ping()
        await copy.copy(client).aclose()
        await works(client)
        await client.aclose()
