"""Who owns which slot: how it is found out, what is kept, and what goes, over scripted peers."""

from __future__ import annotations

import asyncio

import pytest
from redis import exceptions as redis_exceptions
from redis.asyncio.cluster import ClusterNode
from redis.cluster import LoadBalancingStrategy
from support.cluster_place import HOST, ClusterPlace
from support.scripted_peer import HANG, bulk

from aioentra_redis import EntraRedisCluster
from aioentra_redis._multiplex import _connection
from aioentra_redis.errors import ClusterModeError, ClusterUnreachableError

pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
async def place(monkeypatch):
    made = ClusterPlace()
    monkeypatch.setattr(_connection, "dial", made.dial)
    yield made
    await made.aclose()


def names(client: EntraRedisCluster) -> list[str]:
    return sorted(node.name.rpartition(":")[2] for node in client.get_nodes())


# -------------------------------------------------------------------------------- asking


async def test_any_startup_node_will_do(place: ClusterPlace):
    place.down |= {1, 2}
    nodes = [ClusterNode(HOST, port) for port in (1, 2, 3)]
    client = EntraRedisCluster(startup_nodes=nodes, close_timeout=0.01)
    place.clients.append(client)
    assert await client.get(place.key[3]) is None
    assert names(client) == ["1", "2", "3"]


async def test_a_silent_node_holds_up_nobody_for_long(place: ClusterPlace):
    place.silent |= {1, 2}
    nodes = [ClusterNode(HOST, port) for port in (1, 2, 3)]
    client = EntraRedisCluster(startup_nodes=nodes, close_timeout=0.01)
    place.clients.append(client)
    started = now()
    assert await client.get(place.key[3]) is None
    assert now() - started < 2


async def test_nobody_can_be_asked(place: ClusterPlace):
    place.down |= {1, 2, 3}
    client = place.client()
    started = now()
    with pytest.raises(ClusterUnreachableError, match="at least one reachable node") as caught:
        await client.get(place.key[1])
    assert now() - started < 1
    assert caught.value.stage == "tcp"
    assert (caught.value.host, caught.value.port) == (HOST, 1)
    assert isinstance(caught.value, redis_exceptions.RedisClusterException)
    assert isinstance(caught.value, redis_exceptions.ConnectionError)
    place.down.clear()
    assert await client.get(place.key[1]) is None


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"-ERR This instance has cluster support disabled\r\n", "not enabled on this node"),
        (b"-NOPERM this user has no permissions\r\n", "denies CLUSTER SLOTS"),
    ],
)
async def test_a_server_that_is_no_cluster(place: ClusterPlace, reply: bytes, words: str):
    place.peers[1].script["CLUSTER"] = lambda *_: reply
    with pytest.raises(ClusterModeError, match=words):
        await place.client().get("k")


async def test_slots_without_an_owner(place: ClusterPlace):
    place.shape = [(0, 5000, 1), (5001, 10000, 2)]
    with pytest.raises(redis_exceptions.RedisClusterException, match="10001 of 16384 covered"):
        await place.client().get(place.key[1])
    client = place.client(require_full_coverage=False, recovery_timeout=4)
    assert await client.get(place.key[1]) is None
    started = now()
    with pytest.raises(redis_exceptions.SlotNotCoveredError):
        await client.get(place.key[3])
    assert 4 <= now() - started < 5
    waiting = asyncio.create_task(client.get(place.key[3]))
    await asyncio.sleep(1)
    place.shape.append((10001, 16383, 3))
    assert await waiting is None


async def test_the_node_that_knows_most_is_believed(place: ClusterPlace):
    """A node that has just joined knows of nobody yet."""
    place.peers[1].script["CLUSTER"] = lambda *_: b"*0\r\n"
    nodes = [ClusterNode(HOST, port) for port in (1, 2)]
    client = EntraRedisCluster(startup_nodes=nodes, close_timeout=0.01)
    place.clients.append(client)
    assert await client.get(place.key[3]) is None


async def test_the_entry_is_found_among_the_nodes(place: ClusterPlace):
    """Its address is not that of a node, as on Azure: the connection is kept for the node it is."""
    place.peers[5] = place.peers[1]
    client = place.client(port=5)
    await asyncio.gather(*(client.get(place.key[port]) for port in (1, 2, 3)))
    assert sorted(place.dials) == [2, 3, 5]
    assert names(client) == ["1", "2", "3"]
    place.peers[1].cut()
    assert await client.get(place.key[1]) is None
    assert place.dials[-1] == 1, "from now on it is dialled where the cluster says"


async def test_an_entry_that_is_no_node_is_let_go(place: ClusterPlace):
    place.peers[5] = place._peer(5)
    client = place.client(port=5)
    await client.get(place.key[1])
    await asyncio.sleep(0.1)
    assert sorted(place.dials) == [1, 5]
    assert place.peers[5].open == []
    place.fail(1)
    place.down |= {2, 3}
    place.shape = [(0, 16383, 4)]
    assert await client.get(place.key[1]) is None, "the entry is what remains"


# -------------------------------------------------------------------------------- refreshing


async def test_a_refresh_keeps_connections_and_lets_others_finish(place: ClusterPlace):
    client = place.client()
    await asyncio.gather(*(client.get(place.key[port]) for port in (1, 2, 3)))
    place.peers[3].script["GET"] = [[0.005, bulk("late")]]
    late = asyncio.create_task(client.get(place.key[3]))
    await asyncio.sleep(0.001)
    place.shape = [(0, 10000, 2, 1), (10001, 16383, 4)]
    await client.nodes_manager.initialize()
    assert names(client) == ["1", "2", "4"]
    assert [node.server_type for node in client.get_nodes()] == ["primary", "primary", "replica"]
    assert await late == b"late"
    await asyncio.sleep(0.1)
    assert place.peers[3].open == []
    assert await client.get(place.key[1]) is None
    assert await client.get(place.key[3]) is None
    assert sorted(place.dials) == [1, 2, 3, 4]
    assert len(client.auth_status()) == 3


async def test_what_a_node_that_leaves_has_not_read_goes_to_the_new_owner(place: ClusterPlace):
    client = place.client()
    await client.get(place.key[3])
    client.get_node(HOST, 3).multiplexed.session.pause_writing()
    waiting = [asyncio.create_task(client.set(place.key[3], "v")) for _ in range(10)]
    await asyncio.sleep(0.01)
    place.shape = [(0, 5000, 1), (5001, 16383, 2)]
    await client.nodes_manager.initialize()
    assert await asyncio.gather(*waiting) == [True] * 10
    assert place.seen("SET") == {2: 10}


async def test_refreshes_are_shared(place: ClusterPlace):
    client = place.client()
    await client.get(place.key[1])
    before = sum(place.seen("CLUSTER").values())
    await asyncio.gather(*(client.nodes_manager.initialize() for _ in range(50)))
    assert sum(place.seen("CLUSTER").values()) == before + 1


async def test_who_waits_for_a_refresh_may_go(place: ClusterPlace):
    client = place.client()
    await client.get(place.key[1])
    (asked,) = [port for port in place.seen("CLUSTER")]
    for peer in place.peers.values():
        peer.script["CLUSTER"] = [[0.2, *peer.steps_for([b"CLUSTER", b"SLOTS"], None)]]
    first = asyncio.create_task(client.nodes_manager.initialize())
    second = asyncio.create_task(client.nodes_manager.initialize())
    await asyncio.sleep(0.05)
    first.cancel()
    await second
    assert first.cancelled()
    assert asked == 1


async def test_a_refresh_that_hangs_asks_somebody_else(place: ClusterPlace):
    client = place.client()
    await asyncio.gather(*(client.get(place.key[port]) for port in (1, 2, 3)))
    for port in (1, 2):
        place.peers[port].script["CLUSTER"] = [HANG, HANG]
    place.shape = [(0, 16383, 3)]
    started = now()
    await client.nodes_manager.initialize()
    assert now() - started < 1.5
    assert names(client) == ["3"]


async def test_guests_are_kept_for_a_while(place: ClusterPlace):
    """A node that slots are being moved to owns none yet, and is in no answer."""
    client = place.client()
    await client.get(place.key[1])
    place.peers[4].script["ASKING"] = lambda *_: b"+OK\r\n"
    slot = client.keyslot(place.key[1])
    for _ in range(3):
        place.peers[1].script["GET"] = [f"-ASK {slot} {HOST}:4\r\n".encode()]
        assert await client.get(place.key[1]) is None
        place.shape = [*place.shape[:-1], (*place.shape[-1], 3 + len(place.shape[-1]))]
        await client.nodes_manager.initialize()
    assert place.dials.count(4) == 1
    place.shape = [(0, 4000, 1), (4001, 5000, 4), *place.shape[1:]]
    await client.nodes_manager.initialize()
    assert client.get_node(HOST, 4) in client.get_primaries()
    assert place.dials.count(4) == 1


async def test_a_primary_and_its_replica_change_places(place: ClusterPlace):
    place.shape = [(0, 5000, 1, 4), *place.shape[1:]]
    client = place.client()
    await client.get(place.key[1])
    client.set_default_node(client.get_node(HOST, 1))
    slot = client.keyslot(place.key[1])
    place.peers[1].script["GET"] = [f"-MOVED {slot} {HOST}:4\r\n".encode()]
    assert await client.get(place.key[1]) is None
    owners = client.nodes_manager.slots_cache[0]
    assert [node.port for node in owners] == [4, 1], "all slots of the shard have moved"
    assert [node.server_type for node in owners] == ["primary", "replica"]
    assert client.get_default_node().port == 4


async def test_the_default_node_is_one_that_answers(place: ClusterPlace):
    client = place.client()
    await asyncio.gather(*(client.get(place.key[port]) for port in (1, 2, 3)))
    lost = client.get_default_node().port
    place.fail(lost)
    await asyncio.sleep(0.01)
    assert await client.ping()
    assert place.seen("PING").keys() <= {1, 2, 3} - {lost}


async def test_an_answer_without_any_slots_changes_nothing(place: ClusterPlace):
    """A node that was reset knows of nobody; it may be the only one that answers."""
    client = place.client()
    await client.get(place.key[1])
    for port in (2, 3):
        place.down.add(port)
    place.peers[1].script["CLUSTER"] = lambda *_: b"*0\r\n"
    with pytest.raises(redis_exceptions.RedisClusterException, match="0 of 16384 covered"):
        await client.nodes_manager.initialize()
    assert names(client) == ["1", "2", "3"]
    assert await client.get(place.key[1]) is None


async def test_an_entry_that_was_needed_once_more_is_let_go_again(place: ClusterPlace):
    place.peers[5] = place._peer(5)
    client = place.client(port=5)
    await client.get(place.key[1])
    place.fail(1)
    place.down |= {2, 3}
    waiting = asyncio.create_task(client.get(place.key[1]))
    await asyncio.sleep(1)
    assert place.peers[5].commands
    place.down.clear()
    await waiting
    await client.nodes_manager.initialize()
    await asyncio.sleep(0.1)
    assert place.peers[5].open == []


async def test_reads_go_past_a_replica_that_is_gone(place: ClusterPlace):
    place.shape = [(0, 16383, 1, 2, 3)]
    for peer in place.peers.values():
        peer.script["READONLY"] = lambda *_: b"+OK\r\n"
    client = place.client(load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN_REPLICAS)
    assert await asyncio.gather(*(client.get("k") for _ in range(10))) == [None] * 10
    assert place.seen("GET").keys() == {2, 3}
    place.fail(2)
    place.peers[1].commands.clear()
    started = now()
    for _ in range(10):
        assert await client.get("k") is None
    assert now() - started < 0.5
    place.fail(3)
    assert await client.get("k") is None
    assert place.seen("GET")[1] == 1, "where no replica is left its primary is read"


async def test_the_default_node_is_replaced_when_it_fails(place: ClusterPlace):
    client = place.client()
    await asyncio.gather(*(client.get(place.key[port]) for port in (1, 2, 3)))
    failing = client.get_default_node()
    for port in (failing.port,):
        place.peers[port].script["PING"] = lambda *_: b"-LOADING Redis is loading\r\n"
    assert await client.ping()
    assert client.get_default_node() is not failing
    assert place.seen("PING")[failing.port] == 1


async def test_redis_pys_listeners_hear_of_slots_that_moved(place: ClusterPlace, monkeypatch):
    heard: list[int] = []
    client = place.client()
    await client.get(place.key[1])

    async def tell() -> None:
        heard.append(1)

    monkeypatch.setattr(client.nodes_manager, "tell_of_refresh", tell)
    slot = client.keyslot(place.key[1])
    await client.nodes_manager.move_slot(redis_exceptions.MovedError(f"{slot} {HOST}:2"))
    await client.nodes_manager.move_slot(redis_exceptions.MovedError(f"{slot} {HOST}:2"))
    assert len(heard) == 1
    place.peers[2].script["GET"] = [f"-MOVED {slot} {HOST}:3\r\n".encode()]
    await client.get(place.key[1])
    await asyncio.sleep(0.01)
    assert len(heard) == 2
