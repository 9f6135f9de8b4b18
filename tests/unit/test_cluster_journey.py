"""The way of a command through a cluster that changes, over scripted peers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from support.cluster_place import HOST, ClusterPlace
from support.scripted_peer import CUT, HANG, OK, bulk

from aioentra_redis import EntraRedisCluster
from aioentra_redis._cluster._slots import slot_of
from aioentra_redis._multiplex import _connection
from aioentra_redis.errors import (
    ConnectionLostError,
    ConnectTimeoutError,
    MaybeExecutedError,
)

pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
async def place(monkeypatch):
    made = ClusterPlace()
    monkeypatch.setattr(_connection, "dial", made.dial)
    yield made
    await made.aclose()


async def incr(client: EntraRedisCluster, key: str) -> Any:
    return await client.execute_command("INCR", key)


def redirect(kind: str, place: ClusterPlace, of: int, to: int, host: str = HOST) -> bytes:
    slot = slot_of(place.key[of].encode())
    return f"-{kind} {slot} {host}:{to}\r\n".encode()


# -------------------------------------------------------------------------------- the plain way


async def test_a_crowd_opens_one_connection_for_each_node(place: ClusterPlace):
    client = place.client()
    keys = [place.key[1 + n % 3] for n in range(300)]
    assert await asyncio.gather(*(client.set(key, "v") for key in keys)) == [True] * 300
    assert sorted(place.dials) == [1, 2, 3]
    assert place.seen("SET") == {1: 100, 2: 100, 3: 100}
    assert place.seen("COMMAND") == {1: 1}


# -------------------------------------------------------------------------------- redirections


async def test_moved_is_followed_and_remembered(place: ClusterPlace):
    place.peers[1].script["GET"] = [redirect("MOVED", place, 1, 2)]
    place.peers[2].values[place.key[1].encode()] = b"v"
    client = place.client()
    assert await client.get(place.key[1]) == b"v"
    assert await client.get(place.key[1]) == b"v"
    assert place.seen("GET") == {1: 1, 2: 2}
    assert sum(place.seen("CLUSTER").values()) == 1, "a slot was patched, the rest is as it was"


async def test_every_so_many_moves_the_topology_is_looked_up(place: ClusterPlace):
    place.peers[1].script["GET"] = lambda *_: redirect("MOVED", place, 1, 2)
    client = place.client(reinitialize_steps=2)
    for number in range(1, 5):
        assert await client.get(place.key[1]) is None
        client.nodes_manager.slots_cache[slot_of(place.key[1].encode())] = [
            client.get_node(HOST, 1)
        ]
        await asyncio.sleep(1)
        assert sum(place.seen("CLUSTER").values()) == 1 + number // 2


async def test_moved_without_a_host_means_the_same_host(place: ClusterPlace):
    place.peers[1].script["INCR"] = [redirect("MOVED", place, 1, 3, host="")]
    client = place.client()
    assert await incr(client, place.key[1]) == 1
    assert place.seen("INCR") == {1: 1, 3: 1}


@pytest.mark.parametrize("kind", ["MOVED", "ASK"])
async def test_a_redirection_to_a_node_that_nobody_has_named(place: ClusterPlace, kind: str):
    place.peers[1].script["INCR"] = [redirect(kind, place, 1, 4)]
    place.peers[4].script["ASKING"] = lambda *_: OK
    client = place.client()
    assert await incr(client, place.key[1]) == 1
    assert place.seen("INCR") == {1: 1, 4: 1}
    assert place.seen("ASKING") == ({4: 1} if kind == "ASK" else {})


async def test_asking_and_the_command_are_one_write(place: ClusterPlace):
    place.peers[1].script["GET"] = lambda *_: redirect("ASK", place, 1, 2)
    place.peers[2].script["ASKING"] = lambda *_: OK
    place.peers[2].values[place.key[1].encode()] = b"v"
    client = place.client()
    await client.get(place.key[2])
    others = (client.get(place.key[2]) for _ in range(50))
    asking = (client.get(place.key[1]) for _ in range(50))
    assert await asyncio.gather(*asking, *others) == [b"v"] * 50 + [None] * 50
    (connection,) = place.peers[2].connections
    names = [words[0] for words in connection.commands]
    behind = [connection.commands[n + 1] for n, name in enumerate(names) if name == b"ASKING"]
    assert behind == [[b"GET", place.key[1].encode()]] * 50
    assert await client.get(place.key[1]) == b"v", "ASK is for this once: the owner is asked first"
    assert place.seen("GET")[1] == 51


async def test_addresses_in_redirections_are_remapped(place: ClusterPlace):
    place.peers[1].script["INCR"] = [redirect("MOVED", place, 1, 9, host="192.168.0.9")]

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        return (HOST, 4) if address == ("192.168.0.9", 9) else address

    client = place.client(address_remap=remap)
    assert await incr(client, place.key[1]) == 1
    assert place.seen("INCR") == {1: 1, 4: 1}
    assert set(place.hosts) == {HOST}


async def test_a_redirection_to_nowhere(place: ClusterPlace):
    place.peers[1].script["INCR"] = [redirect("MOVED", place, 1, 9, host="?")]
    client = place.client()
    with pytest.raises(redis_exceptions.ClusterError, match="nothing is sent there"):
        await incr(client, place.key[1])


async def test_nodes_that_send_in_circles(place: ClusterPlace):
    place.peers[1].script["GET"] = lambda *_: redirect("MOVED", place, 1, 2)
    place.peers[2].script["GET"] = lambda *_: redirect("MOVED", place, 1, 1)
    client = place.client(recovery_timeout=5)
    started = now()
    with pytest.raises(redis_exceptions.ClusterError, match="from node to node for 5 s"):
        await client.get(place.key[1])
    assert 5 <= now() - started < 6
    assert sum(place.seen("GET").values()) < 100


# -------------------------------------------------------------------------------- not now


@pytest.mark.parametrize(
    "reply",
    [
        b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n",
    ],
)
async def test_what_was_not_executed_is_sent_again(place: ClusterPlace, reply: bytes):
    place.peers[1].script["INCR"] = [reply] * 5
    client = place.client()
    assert await incr(client, place.key[1]) == 1
    assert place.seen("INCR") == {1: 6}
    place.peers[1].script["INCR"] = lambda *_: reply
    started = now()
    with pytest.raises(redis_exceptions.RedisError, match=reply.decode().split()[2]):
        await incr(client, place.key[1])
    assert 30 <= now() - started < 31


async def test_a_cluster_that_is_down_is_asked_again_and_again(place: ClusterPlace):
    client = place.client()
    await client.get(place.key[2])
    place.peers[1].script["GET"] = lambda *_: b"-CLUSTERDOWN The cluster is down\r\n"
    waiting = asyncio.create_task(client.get(place.key[1]))
    await asyncio.sleep(3)
    place.shape = [(0, 10000, 2), (10001, 16383, 3)]
    started = now()
    assert await waiting is None
    assert now() - started < 0.5
    asked = sum(place.seen("CLUSTER").values())
    assert 10 < asked < 60
    await asyncio.sleep(5)
    assert sum(place.seen("CLUSTER").values()) <= asked + 1, "nobody needs to know any more"


# -------------------------------------------------------------------------------- losses


async def test_a_read_goes_to_the_new_owner(place: ClusterPlace):
    client = place.client()
    await client.get(place.key[1])
    place.peers[1].script["GET"] = [HANG]
    waiting = [asyncio.create_task(client.get(place.key[1])) for _ in range(100)]
    await asyncio.sleep(0.01)
    place.fail(1)
    await asyncio.sleep(2)
    assert not any(task.done() for task in waiting)
    before = sum(place.seen("CLUSTER").values())
    place.shape = [(0, 10000, 2), (10001, 16383, 3)]
    started = now()
    assert await asyncio.gather(*waiting) == [None] * 100
    assert now() - started < 0.5
    assert sum(place.seen("CLUSTER").values()) <= before + 3, "all of them ask together"
    assert place.seen("GET")[2] == 100
    await asyncio.sleep(0.1)
    assert [node.name for node in client.get_nodes()] == [f"{HOST}:2", f"{HOST}:3"]


async def test_a_node_that_comes_back_first(place: ClusterPlace):
    client = place.client()
    await client.get(place.key[1])
    place.fail(1)
    waiting = asyncio.create_task(incr(client, place.key[1]))
    await asyncio.sleep(3)
    place.down.clear()
    assert await waiting == 1
    assert place.seen("INCR") == {1: 1}


async def test_a_write_that_may_have_run_is_not_repeated(place: ClusterPlace):
    client = place.client()
    await client.get(place.key[1])
    place.peers[1].script["INCR"] = [CUT]
    with pytest.raises(MaybeExecutedError, match="INCR had been sent"):
        await incr(client, place.key[1])
    assert place.seen("INCR") == {1: 1}
    assert await incr(client, place.key[1]) == 1


async def test_the_users_retry_sends_writes_again(place: ClusterPlace):
    client = place.client(retry=Retry(ConstantBackoff(0.5), 2))
    place.peers[1].script["INCR"] = [CUT, CUT]
    started = now()
    assert await incr(client, place.key[1]) == 1
    assert now() - started >= 1
    place.peers[1].script["INCR"] = [CUT, CUT, CUT]
    with pytest.raises(MaybeExecutedError):
        await incr(client, place.key[1])


async def test_what_was_never_written_goes_to_the_new_owner(place: ClusterPlace):
    client = place.client()
    await client.get(place.key[1])
    place.fail(1)
    await asyncio.sleep(0.01)
    place.shape = [(0, 10000, 2), (10001, 16383, 3)]
    assert await asyncio.gather(*(incr(client, place.key[1]) for _ in range(20))) == [*range(1, 21)]
    assert place.seen("INCR") == {2: 20}


async def test_patience_has_an_end(place: ClusterPlace):
    client = place.client(recovery_timeout=7)
    await client.get(place.key[1])
    place.fail(1)
    await asyncio.sleep(0.01)
    started = now()
    with pytest.raises(ConnectTimeoutError, match="within 7 s") as caught:
        await client.get(place.key[1])
    assert 7 <= now() - started < 8
    assert isinstance(caught.value, redis_exceptions.TimeoutError)
    assert await client.get(place.key[2]) is None, "the others are where they were"


async def test_a_node_that_was_never_reached(place: ClusterPlace):
    place.down.add(3)
    client = place.client()
    await client.get(place.key[1])
    waiting = asyncio.create_task(incr(client, place.key[3]))
    await asyncio.sleep(2)
    assert 4 < place.dials.count(3) < 60
    place.shape = [(0, 5000, 1), (5001, 16383, 2)]
    assert await waiting == 1


async def test_connections_that_end_at_once_are_no_hot_loop(place: ClusterPlace):
    place.peers[1].script["GET"] = lambda *_: CUT
    client = place.client(recovery_timeout=5)
    with pytest.raises((ConnectionLostError, ConnectTimeoutError)):
        await client.get(place.key[1])
    assert len(place.dials) < 60


# -------------------------------------------------------------------------------- cancelling


@pytest.mark.parametrize("state", ["lost", "unreached", "asked", "down", "gate"])
async def test_a_caller_may_go_at_any_time(place: ClusterPlace, state: str):
    client = place.client()
    await client.get(place.key[1])
    key = place.key[1]
    if state == "lost":
        place.fail(1)
    elif state == "unreached":
        place.silent.add(3)
        key = place.key[3]
    elif state == "asked":
        place.peers[1].script["INCR"] = lambda *_: redirect("ASK", place, 1, 2)
        place.peers[2].script["ASKING"] = [[HANG, OK]]
    elif state == "down":
        place.peers[1].script["INCR"] = lambda *_: b"-CLUSTERDOWN down\r\n"
    else:
        client.get_node(HOST, 1).multiplexed.session.pause_writing()
    for pause in (0, 0, 0.001, 0.01, 0.1, 1):
        task = asyncio.create_task(incr(client, key))
        await asyncio.sleep(pause)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    for peer in place.peers.values():
        peer.script.pop("INCR", None)
        peer.script["ASKING"] = lambda *_: OK
        peer.go_on()
    place.down.clear()
    place.silent.clear()
    if state == "gate":
        client.get_node(HOST, 1).multiplexed.session.resume_writing()
    seen = sum(place.seen("INCR").values())
    value = await incr(client, key)
    assert value <= seen + 1
    assert await client.get(place.key[2]) is None
    await asyncio.sleep(1)
    assert client.nodes_manager._wanting == 0
    assert client.nodes_manager._following is None


# -------------------------------------------------------------------------------- waits


async def test_a_wait_is_not_longer_for_being_sent_twice(place: ClusterPlace, monkeypatch):
    sent: list[tuple[Any, ...]] = []
    client = place.client()
    await client.get(place.key[1])
    node = client.get_node(HOST, 1)

    async def attempt(args: tuple[Any, ...], options: Any, *, asking: bool) -> Any:
        sent.append(args)
        await asyncio.sleep(3)
        if len(sent) == 1:
            raise redis_exceptions.TryAgainError
        return None

    monkeypatch.setattr(node.client, "attempt", attempt)
    assert await client.blpop(place.key[1], timeout=10) is None
    assert sent[0] == ("BLPOP", place.key[1], 10)
    assert 6 < float(sent[1][2]) < 7


async def test_a_long_wait_does_not_use_up_the_patience(place: ClusterPlace, monkeypatch):
    client = place.client(recovery_timeout=5)
    await client.get(place.key[1])
    outcomes: list[Any] = [
        redis_exceptions.TryAgainError("early"),
        redis_exceptions.BusyLoadingError("an hour later"),
        [b"key", b"element"],
    ]
    took = [0.1, 3600, 0.1]

    async def attempt(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(took.pop(0))
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(client.get_node(HOST, 1).client, "attempt", attempt)
    assert await client.blpop(place.key[1], timeout=0) == [b"key", b"element"]


async def test_raw_replies_survive_a_detour(place: ClusterPlace):
    place.peers[1].script["GET"] = [redirect("ASK", place, 1, 2)]
    place.peers[2].script["ASKING"] = lambda *_: OK
    place.peers[2].script["GET"] = lambda *_: bulk(b"\xff")
    client = place.client(decode_responses=True)
    assert await client.execute_command("GET", place.key[1], NEVER_DECODE=True) == b"\xff"


async def test_a_few_callers_are_waited_for(place: ClusterPlace):
    """Each of several nodes gets a part of a turn's commands: one write for each, not one more."""
    client = place.client()
    await client.start()
    for _ in range(2):
        await asyncio.gather(*(client.get(place.key[1 + n % 3]) for n in range(12)))
    wires = [client.get_node(HOST, port).multiplexed.session._transport for port in (1, 2, 3)]
    before = [len(wire.writes) for wire in wires]
    await asyncio.gather(*(client.get(place.key[1 + n % 3]) for n in range(12)))
    assert [len(wire.writes) - n for wire, n in zip(wires, before, strict=True)] == [1, 1, 1]
    await client.get(place.key[1])
    session = client.get_node(HOST, 1).multiplexed.session
    alone = asyncio.ensure_future(client.get(place.key[1]))
    await asyncio.sleep(0)
    assert session._engine.unwritten == 0, "who is alone does not wait for anybody"
    await alone
