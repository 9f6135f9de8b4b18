"""Transactions on a real cluster: one slot, one node, one piece; WATCH, and slots that move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.exceptions
from support.server_cluster import ClusterNode, ServerCluster
from support.slot_migration import Migration, slot_of

from aioentra_redis import EntraRedisCluster
from aioentra_redis.errors import CommandRefusedError, MaybeExecutedError

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(120)]

WatchError = redis.exceptions.WatchError
ClusterException = redis.exceptions.RedisClusterException


@pytest.fixture
async def client(server_cluster: ServerCluster) -> AsyncIterator[EntraRedisCluster]:
    host, port = server_cluster.startup
    async with EntraRedisCluster(host=host, port=port, decode_responses=True) as made:
        yield made


async def other_primary(cluster: ServerCluster, node: ClusterNode) -> ClusterNode:
    return next(each for each in await cluster.primaries() if each is not node)


async def begin_to_move(cluster: ServerCluster, key: str) -> Migration:
    target = await other_primary(cluster, await cluster.owner(slot_of(key)))
    return await Migration.begin(cluster, slot_of(key), target)


async def move(cluster: ServerCluster, key: str) -> None:
    target = await other_primary(cluster, await cluster.owner(slot_of(key)))
    await Migration.whole(cluster, slot_of(key), target)


async def connections_of(node: ClusterNode) -> int:
    clients = (await node.call("CLIENT", "LIST", "TYPE", "NORMAL")).decode().splitlines()
    return sum("lib-name=redis-py" in line for line in clients)


async def test_a_transaction_is_one_piece_on_the_shared_connection(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    async def transfer(number: int) -> None:
        async with client.pipeline(transaction=True) as pipe:
            pipe.set("{a}1", number).set("{a}2", number).get("{a}1").get("{a}2")
            assert await pipe.execute() == [True, True, str(number), str(number)]

    await asyncio.gather(*(transfer(number) for number in range(50)))
    owner = await server_cluster.owner(slot_of("{a}"))
    assert await connections_of(owner) == 1


async def test_all_keys_are_in_one_slot(client: EntraRedisCluster) -> None:
    pipe = client.pipeline(transaction=True)
    assert await pipe.execute() == []
    pipe.set("{a}", 1).set("{b}", 1)
    with pytest.raises(ClusterException, match="must map to the same slot"):
        await pipe.execute()
    assert await client.exists("{a}", "{b}") == 0
    pipe.eval("return 1", 0)
    with pytest.raises(ClusterException, match="a command with a key is needed"):
        await pipe.execute()
    pipe.eval("return 1", 0).delete("{a}1", "{a}2").unlink("{a}3")
    assert await pipe.execute() == [1, 0, 0]
    with pytest.raises(ClusterException, match="WATCH - all keys must map to the same key slot"):
        await pipe.watch("{a}", "{b}")
    await pipe.watch("{a}")
    with pytest.raises(ClusterException, match="on different slots"):
        await pipe.get("{b}")
    await pipe.reset()
    with pytest.raises(NotImplementedError):
        pipe.mset_nonatomic({"a": 1})


async def test_errors_say_which_command_it_was(client: EntraRedisCluster) -> None:
    await client.set("{a}text", "x")
    pipe = client.pipeline(transaction=True)
    pipe.set("{a}1", 1).lpush("{a}text", 1).set("{a}2", 1)
    with pytest.raises(redis.exceptions.ResponseError, match=r"^Command # 2 \(LPUSH .*: WRONG"):
        await pipe.execute()
    assert await client.mget("{a}1", "{a}2") == ["1", "1"]  # as in Redis, it has run
    pipe.set("{a}3", 1).execute_command("ZREM", "{a}4")
    with pytest.raises(redis.exceptions.ResponseError, match=r"^Command # 2 \(ZREM \{a\}4\) of p"):
        await pipe.execute()
    assert await client.get("{a}3") is None
    pipe.set("{a}1", 2).lpush("{a}text", 1)
    replies = await pipe.execute(raise_on_error=False)
    assert replies[0] is True
    assert isinstance(replies[1], redis.exceptions.ResponseError)


async def test_raw_transaction_commands_are_refused(client: EntraRedisCluster) -> None:
    pipe = client.pipeline(transaction=True)
    pipe.set("{a}", 1)
    pipe.execute_command("EXEC")
    with pytest.raises(CommandRefusedError):
        await pipe.execute()
    assert await client.get("{a}") is None


async def test_watch_lets_a_transaction_pass_or_fail(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.set("{a}", 1)
    async with client.pipeline(transaction=True) as pipe:
        for interfere in (False, True):
            await pipe.watch("{a}")
            value = await pipe.get("{a}")
            if interfere:
                await client.set("{a}", 100)
            pipe.multi()
            pipe.set("{a}", int(value) + 1)
            if interfere:
                with pytest.raises(WatchError):
                    await pipe.execute()
            else:
                assert await pipe.execute() == [True]
        await pipe.watch("{a}")
        assert await pipe.unwatch() is True
        await client.set("{a}", 5)
        assert await pipe.get("{a}").execute() == ["5"]
        await pipe.watch("{a}")
        await pipe.discard()
        assert not pipe.watching
    owner = await server_cluster.owner(slot_of("{a}"))
    assert await connections_of(owner) <= 2  # the shared one, and one that all of it used


async def test_multi_and_watch_are_refused_where_redis_py_does(client: EntraRedisCluster) -> None:
    pipe = client.pipeline(transaction=True)
    pipe.set("{a}", 1)
    with pytest.raises(redis.exceptions.RedisError, match="without an initial WATCH"):
        pipe.multi()
    await pipe.reset()
    pipe.multi()
    with pytest.raises(redis.exceptions.RedisError, match="nested calls"):
        pipe.multi()
    with pytest.raises(redis.exceptions.RedisError, match="WATCH after a MULTI"):
        await pipe.watch("{a}")
    pipe.set("{a}", 2)
    assert await pipe.execute() == [True]
    plain = client.pipeline()
    with pytest.raises(ClusterException, match=r"multi\(\) is not supported"):
        plain.multi()
    for method in (plain.watch, plain.unwatch, plain.discard):
        with pytest.raises(ClusterException, match="outside of transactional context"):
            await method()


async def test_transaction_tries_again_until_nobody_interferes(client: EntraRedisCluster) -> None:
    await client.set("{count}", 0)

    async def increment(pipe):  # type: ignore[no-untyped-def]
        value = int(await pipe.get("{count}"))
        await asyncio.sleep(0)
        pipe.multi()
        pipe.set("{count}", value + 1)
        return value

    async def work() -> None:
        for _ in range(5):
            assert await client.transaction(increment, "{count}") == [True]

    await asyncio.gather(*(work() for _ in range(5)))
    assert await client.get("{count}") == "25"
    value = await client.transaction(increment, "{count}", value_from_callable=True)
    assert value == 25


# -- slots that move -----------------------------------------------------------------------------


async def test_a_transaction_goes_where_its_slot_has_gone(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.initialize()
    await move(server_cluster, "{a}")
    pipe = client.pipeline(transaction=True)
    assert await pipe.incr("{a}1").incr("{a}2").execute() == [1, 1]
    await move(server_cluster, "{a}")
    await pipe.watch("{a}1")  # and so does WATCH
    assert await pipe.get("{a}1") == "1"
    pipe.multi()
    assert await pipe.incr("{a}1").execute() == [2]


async def test_ask_is_for_the_whole_transaction(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.mset({"{a}1": 1, "{a}2": 2})
    migration = await begin_to_move(server_cluster, "{a}")
    await migration.move_all()
    for _ in range(3):
        pipe = client.pipeline(transaction=True)
        assert await pipe.incrby("{a}1", 10).incrby("{a}2", 10).get("{a}1").execute()
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch("{a}1", "{a}2")
        assert await pipe.get("{a}1") == "31"
        pipe.multi()
        assert await pipe.incr("{a}1").incr("{a}2").execute() == [32, 33]
        await pipe.watch("{a}1")
        await client.set("{a}1", 0)
        pipe.multi()
        pipe.set("{a}1", 1)
        with pytest.raises(WatchError):
            await pipe.execute()
    assert await client.get("{a}1") == "0"


async def test_a_transaction_waits_until_all_of_its_keys_have_moved(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.mset({"{a}1": 1, "{a}2": 2})
    migration = await begin_to_move(server_cluster, "{a}")
    await migration.move("{a}1")
    running = asyncio.create_task(
        client.pipeline(transaction=True).incr("{a}1").incr("{a}2").execute()
    )
    await asyncio.sleep(0.2)
    assert not running.done()
    await migration.move_all()
    await migration.finish()
    assert await running == [2, 3]


@pytest.mark.parametrize("half", [False, True])
async def test_a_watched_slot_that_moves_is_a_watch_error(
    client: EntraRedisCluster, server_cluster: ServerCluster, half: bool
) -> None:
    await client.mset({"{a}1": 1, "{a}2": 2})
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch("{a}1")
        if half:
            await (await begin_to_move(server_cluster, "{a}")).move_all()
        else:
            await move(server_cluster, "{a}")
        pipe.multi()
        pipe.incr("{a}1")
        with pytest.raises(WatchError):
            await pipe.execute()
        await pipe.watch("{a}1")  # on the new owner
        pipe.multi()
        assert await pipe.incr("{a}1").execute() == [2]


async def test_a_read_of_a_watched_slot_that_has_moved_is_a_watch_error(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.set("{a}1", 1)
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch("{a}1")
        await move(server_cluster, "{a}")
        with pytest.raises(WatchError, match="Slot rebalancing"):
            await pipe.get("{a}1")
        assert not pipe.watching
        await pipe.watch("{a}1")
        assert await pipe.get("{a}1") == "1"


async def test_migrations_under_transactions_lose_and_double_nothing(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    done, over = 0, False

    async def both(pipe):  # type: ignore[no-untyped-def]
        value = int(await pipe.get("{a}1") or 0)
        pipe.multi()
        pipe.set("{a}1", value + 1).incr("{a}2")

    async def work(watches: bool) -> None:
        nonlocal done
        while not over:
            if watches:
                await client.transaction(both, "{a}1")
            else:
                pipe = client.pipeline(transaction=True)
                first, second = await pipe.incr("{a}1").incr("{a}2").execute()
                assert first == second
            done += 1

    workers = [asyncio.create_task(work(number % 2 == 0)) for number in range(6)]
    for _ in range(4):
        await move(server_cluster, "{a}")
    over = True
    await asyncio.gather(*workers)
    assert await client.mget("{a}1", "{a}2") == [str(done)] * 2
    assert done > 0


# -- lost connections ----------------------------------------------------------------------------


@pytest.mark.parametrize("watches", [False, True])
async def test_a_connection_lost_under_exec_is_said_to_be_that(
    client: EntraRedisCluster, server_cluster: ServerCluster, watches: bool
) -> None:
    await client.set("{a}", 1)
    owner = await server_cluster.owner(slot_of("{a}"))
    pipe = client.pipeline(transaction=True)
    if watches:
        await pipe.watch("{a}")
    pipe.multi()
    pipe.incr("{a}")
    owner.pause()
    running = asyncio.create_task(pipe.execute())
    await asyncio.sleep(0.1)
    assert not running.done()
    owner.kill()
    with pytest.raises(MaybeExecutedError, match="had been sent when the connection ended"):
        await running
    assert not pipe.watching


async def test_a_connection_lost_while_watching_is_a_watch_error(
    client: EntraRedisCluster, server_cluster: ServerCluster
) -> None:
    await client.set("{a}", 1)
    owner = await server_cluster.owner(slot_of("{a}"))
    pipe = client.pipeline(transaction=True)
    await pipe.watch("{a}")
    lines = (await owner.call("CLIENT", "LIST")).decode().splitlines()
    watching = [line for line in lines if "lib-name=redis-py" in line and "cmd=watch" in line]
    (line,) = watching
    await owner.call("CLIENT", "KILL", "ID", line.split("id=")[1].split()[0])
    with pytest.raises(WatchError):
        await pipe.get("{a}")
    await pipe.watch("{a}")
    pipe.multi()
    assert await pipe.incr("{a}").execute() == [2]


async def test_a_cancelled_watch_gives_its_connection_back(client: EntraRedisCluster) -> None:
    await client.set("{a}", 1)
    for _ in range(5):
        pipe = client.pipeline(transaction=True)
        watching = asyncio.create_task(pipe.watch("{a}"))
        await asyncio.sleep(0.002)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await pipe.reset()
    node = client.get_node_from_key("{a}")
    assert node is not None
    pool = node.client.connection_pool
    assert not pool._in_use_connections
