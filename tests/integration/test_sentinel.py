"""Clients over pools that Sentinel hands out: found by name, and found again after a failover."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ConstantBackoff
from support.own_servers import start_server
from support.signing_in import until
from support.token_fakes import Clock, Credential, source_of

from aioentra_redis import ConnectError, EntraRedis

pytestmark = pytest.mark.emulator

NAME = "mymaster"


class Group:
    """A master, a replica and a Sentinel of a real server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.master = self.replica = self.sentinel_port = 0

    def start(self) -> None:
        common = ("--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder))
        self.master = self._run(lambda port: ("--port", str(port), *common))
        follow = ("--replicaof", "127.0.0.1", str(self.master))
        self.replica = self._run(lambda port: ("--port", str(port), *follow, *common))
        self.sentinel_port = self._run(self._sentinel)

    def _sentinel(self, port: int) -> tuple[str, ...]:
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self.master} 1\n"
            f"sentinel down-after-milliseconds {NAME} 500\n"
        )
        return (str(config), "--sentinel")

    def _run(self, arguments: Callable[[int], Sequence[str]]) -> int:
        process, port = start_server(arguments)
        self.processes.append(process)
        return port

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    made = Group(tmp_path)
    try:
        await asyncio.to_thread(made.start)
        yield made
    finally:
        await asyncio.to_thread(made.stop)


@contextlib.asynccontextmanager
async def sentinel_of(group: Group) -> AsyncIterator[Sentinel]:
    sentinel = Sentinel([("127.0.0.1", group.sentinel_port)])

    async def knows_both() -> bool:
        with contextlib.suppress(redis_exceptions.RedisError):
            await sentinel.discover_master(NAME)
            return bool(await sentinel.discover_slaves(NAME))
        return False

    async with asyncio.timeout(30):
        while not await knows_both():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.1)
    try:
        yield sentinel
    finally:
        for client in sentinel.sentinels:
            await client.aclose()


async def test_master_and_replica_are_found_by_name(group: Group):
    async with (
        sentinel_of(group) as sentinel,
        sentinel.master_for(NAME, redis_class=EntraRedis) as master,
        sentinel.slave_for(NAME, redis_class=EntraRedis) as replica,
    ):
        assert isinstance(master, EntraRedis)
        await asyncio.gather(*[master.set(f"k{n}", n) for n in range(20)])
        assert await master.blpop(["none"], timeout=0.05) is None
        assert f":{group.master}" in master.auth_status()[0].host
        assert await replica.info("replication")
        assert f":{group.replica}" in replica.auth_status()[0].host
        with pytest.raises(redis_exceptions.ReadOnlyError):
            await replica.set("k", "v")
        assert len(replica.auth_status()) == 1, "a replica is meant to be read-only"
        assert repr(master).startswith(f"<EntraRedis {NAME}:")


async def test_a_name_that_sentinel_does_not_know(group: Group):
    async with (
        sentinel_of(group) as sentinel,
        sentinel.master_for("typo", redis_class=EntraRedis) as client,
    ):
        with pytest.raises(ConnectError, match="Sentinel knows of no server for 'typo'") as caught:
            await client.ping()
        assert caught.value.stage == "dns"


async def test_after_a_failover_commands_go_to_the_new_master(group: Group):
    """Also where the connection to the old one lives on, and only its answers tell."""
    retry = Retry(ConstantBackoff(0.1), 100)
    async with sentinel_of(group) as sentinel:
        pool = SentinelConnectionPool(NAME, sentinel, retry=retry)
        async with EntraRedis.from_pool(pool) as client:
            await client.set("k", "before")
            old = client.auth_status()[0]
            plain = redis.asyncio.Redis(host="127.0.0.1", port=group.master)
            await plain.execute_command("REPLICAOF", "127.0.0.1", str(group.replica))
            with pytest.raises(redis_exceptions.ConnectionError, match="previous master"):
                await client.set("k", "refused")
            await plain.aclose()
            sentinels: Any = sentinel.sentinels[0]
            await until(lambda: old not in client.auth_status())
            await plain.execute_command("REPLICAOF", "NO", "ONE")
            await plain.aclose()
            await client.set("k", "there again")
            assert (await sentinels.sentinel_masters())[NAME]["flags"]
            group.processes[0].kill()
            async with asyncio.timeout(40):
                while True:
                    try:
                        if await client.set("k", "after"):
                            break
                    except redis_exceptions.RedisError:
                        await asyncio.sleep(0.2)
            assert f":{group.replica}" in client.auth_status()[0].host
            assert await client.get("k") == b"after"


async def test_a_pool_of_sentinels_may_sign_in_with_tokens(group: Group):
    """The connections are ours, whatever class the pool makes them of."""
    clock = Clock()
    source = source_of(Credential(clock), clock)
    async with sentinel_of(group) as sentinel:
        pool = SentinelConnectionPool(NAME, sentinel)
        plain = redis.asyncio.Redis(host="127.0.0.1", port=group.master)
        token = await source.get()
        await plain.acl_setuser(
            token.username,
            enabled=True,
            passwords=[f"+{token.secret}"],
            commands=["+@all"],
            keys="*",
        )
        await plain.aclose()
        async with EntraRedis.from_pool(pool, token_source=source) as client:
            assert await client.acl_whoami() in (token.username, token.username.encode())
            assert await client.blpop(["none"], timeout=0.05) is None
            assert client.auth_status()[0].token_version == token.version
    await source.aclose()
