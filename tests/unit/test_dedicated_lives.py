"""Pooled connections that come, go, are counted and limited, with their tasks."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from support.dedicated_runs import SENT, run
from support.pooled import Place
from support.scripted_peer import HANG, OK

from aioentra_redis import (
    ConnectionClosed,
    ConnectionOpened,
    EntraRedis,
)
from aioentra_redis._dedicated import release_from_renewal
from aioentra_redis.errors import ConfigurationError

pytestmark = pytest.mark.looptime


@pytest.fixture
async def place():
    made = Place()
    yield made  # the source starts with the first connection, in virtual time
    await made.close()


def reauth_tasks() -> list[str]:
    return [
        task.get_name()
        for task in asyncio.all_tasks()
        if "dedicated" in task.get_name() and "aioentra" in task.get_name()
    ]


# -------------------------------------------------------------------------- lives


async def test_tasks_end_with_their_connection(place: Place):
    client = place.client()
    connections = await place.idle(client, 3)
    assert len(reauth_tasks()) == 4  # and one for the PINGs of all
    await connections[0].disconnect()
    await asyncio.sleep(0.01)
    assert len(reauth_tasks()) == 3
    assert len(client.auth_status()) == 2
    await client.connection_pool.disconnect()
    await asyncio.sleep(0.01)
    assert reauth_tasks() == []
    assert client.auth_status() == []
    (connection,) = await place.leased(client, 1)  # the pool goes on
    assert len(reauth_tasks()) == 2
    await client.connection_pool.release(connection)
    assert len(place.of(ConnectionOpened)) == 4
    assert len(place.of(ConnectionClosed)) == 3


@pytest.mark.parametrize("owned", [True, False], ids=["its own pool", "the user's"])
async def test_tasks_end_with_the_last_client(place: Place, owned: bool):
    pool = place.pool()
    first, second = place.client(pool), place.client(pool)
    first.auto_close_connection_pool = second.auto_close_connection_pool = owned
    await place.idle(first, 3)
    await first.aclose()
    if not owned:
        assert len(second.auth_status()) == 3
    await second.aclose()
    assert reauth_tasks() == []
    # Whoever makes a client of the same pool later finds its connections, and they are kept again.
    third = place.client(pool)
    (connection,) = await place.leased(third, 1)
    assert len(third.auth_status()) == 1
    await pool.release(connection)
    await third.aclose()
    await pool.disconnect()


async def test_closing_in_the_middle_of_an_auth_closes_that_connection(place: Place):
    pool = place.pool()
    client = place.client(pool)
    client.auto_close_connection_pool = False
    await place.idle(client, 2)
    place.peer.script["AUTH"] = [HANG, HANG]
    await asyncio.sleep(SENT)
    await client.aclose()
    assert reauth_tasks() == []
    assert place.peer.open == []


async def test_a_client_that_is_dropped_takes_its_tasks_along(place: Place):
    # Not in the fixture's list, and not referred to by anything of ours.
    client: Any = EntraRedis(connection_pool=place.pool(), token_source=place.source)
    client.auto_close_connection_pool = True
    await place.idle(client, 3)
    await asyncio.sleep(SENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del client
        for _ in range(3):  # what the loop or a finalizer holds, the next round finds
            gc.collect()
            await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert reauth_tasks() == []
    assert place.peer.open == []


async def test_a_connection_that_is_dropped_takes_its_task_along(place: Place):
    client = place.client()
    (connection,) = await place.leased(client, 1)
    client.connection_pool.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del connection
        for _ in range(3):  # what the loop or a finalizer holds, the next round finds
            gc.collect()
            await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert reauth_tasks() == []
    assert client.auth_status() == []


async def test_pub_sub_may_take_a_leased_connection_over(place: Place):
    client = place.client()
    (connection,) = await place.leased(client, 1)
    await release_from_renewal(connection)
    await asyncio.sleep(2 * SENT)
    assert place.peer.seen("AUTH") == []
    assert client.auth_status() == []
    assert len(place.of(ConnectionClosed)) == 1
    await client.connection_pool.release(connection)
    (connection,) = await place.leased(client, 1)  # handed out anew, to somebody else
    assert len(client.auth_status()) == 1
    await client.connection_pool.release(connection)


async def test_a_take_over_waits_for_the_auth_under_way(place: Place):
    client = place.client()
    (connection,) = await place.leased(client, 1)
    place.peer.script["AUTH"] = [[5.0, OK]]
    while not connection.in_band._exchange.locked():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await release_from_renewal(connection)
    assert not connection.in_band._exchange.locked()
    assert await run(connection, "ECHO", "a") == b"a"
    await client.connection_pool.release(connection)


async def test_the_multiplexed_connection_is_kept_by_its_own_task(place: Place):
    client = place.client()
    assert await client.ping()
    assert reauth_tasks() == []
    assert len(client.auth_status()) == 1
    await asyncio.sleep(SENT)
    assert len(place.peer.seen("AUTH")) == 1


async def test_a_client_on_one_connection_of_its_own(place: Place):
    client = place.client()
    async with client.client() as one:
        assert await one.ping()
        await asyncio.sleep(2 * SENT)
        assert await one.ping()
        assert [row.token_version for row in one.auth_status()] == [3]
        assert place.peer.dials == 1


class OwnPool(redis.asyncio.ConnectionPool):
    """A user's subclass, with connections elsewhere than redis-py keeps them."""


@pytest.mark.parametrize("kind", [redis.asyncio.BlockingConnectionPool, OwnPool])
async def test_pools_of_the_user(place: Place, kind: Any):
    pool = place.pool(kind, max_connections=3)
    client = place.client(pool)
    assert client.connection_pool is pool
    await place.idle(client, 3)
    await asyncio.sleep(SENT)
    assert len(place.peer.seen("AUTH")) == 3


# -------------------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 100), ({"max_dedicated_connections": 7}, 7), ({"max_connections": 5}, 5)],
)
def test_how_many_connections_the_pool_may_hold(options: dict[str, int], expected: int):
    assert EntraRedis(**options).connection_pool.max_connections == expected
    made = EntraRedis.from_url("redis://localhost", **options)
    assert made.connection_pool.max_connections == expected


def test_limits_that_are_none():
    for wrong in (0, -1, 1.5, "3", True):
        with pytest.raises(ConfigurationError, match="1 or more"):
            EntraRedis(max_dedicated_connections=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="pool is made"):
        EntraRedis(connection_pool=redis.asyncio.ConnectionPool(), max_dedicated_connections=3)


async def test_exhausting_is_an_error_at_once(place: Place):
    client = place.client(place.pool(max_connections=2))
    connections = await place.leased(client, 2)
    with pytest.raises(redis_exceptions.ConnectionError, match="Too many"):
        await client.blpop("k", 1)
    for each in connections:
        await client.connection_pool.release(each)


@pytest.mark.parametrize("clients", [250, pytest.param(1_000, marks=pytest.mark.slow)])
async def test_clients_leave_nothing(place: Place, clients: int):
    """Every third one uses a dedicated connection, every fourth is dropped instead of closed."""

    async def use(number: int) -> None:
        client: Any = EntraRedis(connection_pool=place.pool(), token_source=place.source)
        client.auto_close_connection_pool = True
        await client.ping()
        if number % 3 == 0:
            (connection,) = await place.leased(client, 1)
            await client.connection_pool.release(connection)
        if number % 4:
            await client.aclose()

    async def count(clients: int) -> int:
        for number in range(clients):
            await use(number)
            place.peer.commands.clear()
            place.peer.connections.clear()
            if number % 100 == 0:
                gc.collect()
        for _ in range(3):
            gc.collect()
            await asyncio.sleep(0.01)
        return len(gc.get_objects())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        before = await count(100)
        tasks = len(asyncio.all_tasks())
        after = await count(clients)
    assert len(asyncio.all_tasks()) == tasks
    assert reauth_tasks() == []
    assert place.peer.open == []
    # The loop may still hold the last client, of some 400 objects; each of them had as many.
    assert after - before < clients + 500


# -------------------------------------------------------------------------- the pool's look


@pytest.mark.parametrize("name", ["can_read", "can_read_destructive"])
async def test_no_auth_begins_while_a_pool_looks_at_a_connection(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch
):
    """redis-py before 7 reads the stream for it, which knows one reader at a time."""
    client = place.client()
    (connection,) = await place.idle(client, 1)
    seen: list[int] = []

    async def look_for_long(*_: Any, **__: Any) -> bool:
        await asyncio.sleep(SENT)
        seen.append(len(place.peer.seen("AUTH")))
        return False

    monkeypatch.setattr(redis.asyncio.Connection, name, look_for_long, raising=False)
    assert await getattr(connection, name)() is False
    assert seen == [0]
    assert await run(connection, "ECHO", "a") == b"a"
    assert [words[0] for words in place.peer.commands][-2:] == [b"AUTH", b"ECHO"]


@pytest.mark.looptime
async def test_a_lease_that_was_closed_connects_for_its_owners_next_command(place: Place):
    """As redis-py's own connections do, in each of its versions."""
    client = place.client()
    (connection,) = await place.leased(client, 1)
    await connection.disconnect()
    await connection.send_command("ECHO", "again")
    assert await connection.read_response() == b"again"
    await client.connection_pool.release(connection)
