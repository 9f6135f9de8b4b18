"""WAIT tells the truth: it answers for the writes of its own connection, and runs nowhere else.

And what else depends on the connection that a client keeps: that the next one gets it unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support.own_servers import start_server

from aioentra_redis import CommandRefusedError, EntraRedis

pytestmark = pytest.mark.emulator


@contextlib.asynccontextmanager
async def server(folder: Path, *more: str) -> AsyncIterator[int]:
    """A server of its own; what is returned is its port."""
    where = ("--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *more)
    process, port = await asyncio.to_thread(
        start_server, lambda port: ("--port", str(port), *where)
    )
    try:
        yield port
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def test_wait_is_true_where_it_is_allowed_and_refused_where_it_would_not_be(tmp_path: Path):
    follow = ("--dbfilename", "replica.rdb", "--replicaof", "127.0.0.1")
    async with (
        server(tmp_path) as master,
        server(tmp_path, *follow, str(master)) as replica,
        EntraRedis(host="127.0.0.1", port=master, socket_timeout=10) as client,
        EntraRedis(host="127.0.0.1", port=replica) as follower,
    ):
        async with asyncio.timeout(30):
            while (await follower.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.1)
            while (await client.info("replication"))["connected_slaves"] != 1:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.1)
        for name in ("WAIT", "WAITAOF"):
            with pytest.raises(CommandRefusedError, match=r"redis\.pipeline\(transaction=False\)"):
                await client.execute_command(name, *([1, 1000] if name == "WAIT" else [0, 1, 1000]))

        async def in_pipeline(timeout: int) -> int:
            pipe = client.pipeline(transaction=False).set("k", "v")
            return int((await pipe.execute_command("WAIT", 1, timeout).execute())[-1])

        async def on_a_connection(timeout: int) -> int:
            async with client.client() as own:
                await own.set("k", "v")
                return int(await own.wait(1, timeout))

        assert [await in_pipeline(5000), await on_a_connection(5000)] == [1, 1]
        # From here on the replica hears nothing, and no answer may claim that it did.
        await follower.execute_command("REPLICAOF", "NO", "ONE")
        await client.set("k", "unheard")
        assert [await in_pipeline(100), await on_a_connection(100)] == [0, 0]


@pytest.mark.parametrize("retry", [None, Retry(NoBackoff(), 3)], ids=["no retries", "retries"])
async def test_wait_does_not_answer_for_a_connection_that_was_opened_again(tmp_path: Path, retry):
    async with (
        server(tmp_path) as port,
        EntraRedis(host="127.0.0.1", port=port, retry=retry) as client,
        client.client() as own,
    ):
        await own.set("k", "v")
        await client.execute_command("CLIENT KILL", "ID", await own.client_id())
        with pytest.raises(redis_exceptions.ConnectionError) as caught:
            await own.wait(0, 10)
        if "opened again" not in str(caught.value):  # not repeated: that was the loss itself
            with pytest.raises(redis_exceptions.ConnectionError, match="opened again"):
                await own.wait(0, 10)
        await own.set("k", "v")
        assert await own.wait(0, 10) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("SELECT", 5),
        (b"select 5",),
        ("MULTI",),
        ("CLIENT", "REPLY", "SKIP"),
        ("CLIENT", "SETNAME", "mine"),
        ("CLIENT TRACKING", "ON"),
        ("HELLO", 2),
    ],
    ids=str,
)
async def test_what_changes_a_connection_does_not_reach_its_next_owner(tmp_path: Path, words):
    async with server(tmp_path) as port, EntraRedis(host="127.0.0.1", port=port) as client:
        await client.rpush("queue", "element")
        async with client.client() as own:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await own.execute_command(*words)
        async with client.client() as other:
            about = await other.client_info()
            told = {name: about[name] for name in ("name", "db", "multi", "flags", "resp")}
            assert told == {"name": "", "db": 0, "multi": -1, "flags": "N", "resp": "3"}
        assert list(await client.blpop("queue", 5)) == [b"queue", b"element"]


async def test_a_connection_that_was_not_changed_goes_back_as_it_is(tmp_path: Path):
    async with server(tmp_path) as port, EntraRedis(host="127.0.0.1", port=port) as client:
        ids = set()
        for _ in range(3):
            async with client.client() as own:
                await own.set("k", "v")
                await own.wait(0, 10)
                ids.add(await own.client_id())
        assert len(ids) == 1
