"""Ordinary commands of redis-py's API give the answers that redis.asyncio.Redis gives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import DataError, LockError, ResponseError
from support.signing_in import client_of, secret_source

from aioentra_redis import CommandRefusedError, EntraRedis
from aioentra_redis._redis_py import has
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Program = Callable[[Any], Awaitable[object]]


# ------------------------------------------------------------------ programs, run on both clients


async def strings(r: Any) -> object:
    return [
        await r.set("s", "value"),
        await r.get("s"),
        await r.set("s", "x", nx=True),
        await r.set("s", "y", get=True),
        await r.set("s", "z", ex=100),
        0 < await r.ttl("s") <= 100,
        await r.set("s", b"\xc3\xa9", get=True),
        await r.append("s", "!"),
        await r.strlen("s"),
        await r.getrange("s", 0, 1),
        await r.incr("n", 5),
        await r.incrbyfloat("n", 1.5),
        await r.decr("m"),
        await r.mset({"a": 1, "b": 2}),
        await r.mget("a", "b", "none"),
        await r.exists("a", "b", "none"),
        await r.delete("a", "none"),
        await r.type("s"),
        await r.get("none"),
        await r.expire("b", 10),
        await r.persist("b"),
        await r.set("t", "v", ex=100),
        await r.getdel("t"),
        await r.setbit("bits", 7, 1),
        await r.bitcount("bits"),
        sorted(await r.keys("*")),
        await r.dbsize(),
    ]


async def hashes(r: Any) -> object:
    return [
        await r.hset("h", mapping={"a": 1, "b": "two", "c": b"3"}),
        await r.hset("h", "d", 4.5),
        await r.hget("h", "a"),
        await r.hgetall("h"),
        await r.hmget("h", "a", "none"),
        await r.hincrby("h", "a", 2),
        await r.hdel("h", "b", "none"),
        await r.hexists("h", "b"),
        await r.hkeys("h"),
        await r.hvals("h"),
        await r.hlen("h"),
        await r.hscan("h"),
        await r.hgetall("none"),
    ]


async def lists(r: Any) -> object:
    return [
        await r.rpush("l", "a", "b", "c"),
        await r.lpush("l", "z"),
        await r.lrange("l", 0, -1),
        await r.lindex("l", 1),
        await r.llen("l"),
        await r.linsert("l", "before", "b", "x"),
        await r.lpop("l"),
        await r.rpop("l", 2),
        await r.lrem("l", 0, "x"),
        await r.lset("l", 0, "changed"),
        await r.ltrim("l", 0, 0),
        await r.lmove("l", "l2"),
        await r.lpos("l2", "changed"),
        await r.lpop("none"),
    ]


async def sets(r: Any) -> object:
    return [
        await r.sadd("a", "1", "2", "3"),
        await r.sadd("b", "2", "3", "4"),
        await r.smembers("a"),
        await r.sismember("a", "1"),
        await r.smismember("a", ["1", "9"]),
        await r.sinter("a", "b"),
        await r.sunion("a", "b"),
        await r.sdiff("a", "b"),
        await r.sinterstore("c", "a", "b"),
        await r.scard("c"),
        await r.srem("a", "1"),
        await r.smove("a", "b", "2"),
        sorted([each async for each in r.sscan_iter("b")]),
    ]


async def sorted_sets(r: Any) -> object:
    return [
        await r.zadd("z", {"a": 1, "b": 2.5, "c": 3}),
        await r.zadd("z", {"a": 5}, ch=True),
        await r.zrange("z", 0, -1, withscores=True),
        await r.zrange("z", 0, -1, desc=True),
        await r.zrangebyscore("z", 2, 5, withscores=True),
        await r.zscore("z", "b"),
        await r.zmscore("z", ["a", "none"]),
        await r.zincrby("z", 1.5, "b"),
        await r.zrank("z", "a"),
        await r.zrevrank("z", "a"),
        await r.zcount("z", "-inf", "+inf"),
        await r.zpopmin("z"),
        await r.zpopmax("z", 1),
        await r.zrem("z", "b"),
        await r.zcard("z"),
        await r.zscan("z"),
    ]


async def streams(r: Any) -> object:
    first = await r.xadd("x", {"field": "one"}, id="1-1")
    await r.xadd("x", {"field": "two"}, id="2-1")
    await r.xgroup_create("x", "group", id="0")
    return [
        first,
        await r.xlen("x"),
        await r.xrange("x"),
        await r.xrevrange("x", count=1),
        await r.xread({"x": "1-1"}, count=5),
        await r.xread({"x": "2-1"}, block=20),
        await r.xreadgroup("group", "me", {"x": ">"}, count=1),
        await r.xack("x", "group", "1-1"),
        await r.xpending("x", "group"),
        (await r.xinfo_stream("x"))["length"],
        await r.xdel("x", "1-1"),
        await r.xtrim("x", maxlen=0),
    ]


async def scripts(r: Any) -> object:
    script = r.register_script("return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}")
    sha = await r.script_load("return 42")
    return [
        await script(keys=["k"], args=["a"]),
        await script(keys=["k"], args=["b"]),
        await r.eval("return {1, 'two', false, {3}}", 0),
        await r.evalsha(sha, 0),
        await r.script_exists(sha, "0" * 40),
        await error(r.eval("return redis.error_reply('MY own')", 0)),
        await error(r.evalsha("0" * 40, 0)),
    ]


async def scans(r: Any) -> object:
    await r.mset({f"scan:{number}": number for number in range(500)})
    return [
        len([each async for each in r.scan_iter("scan:*", count=50)]),
        sorted([each async for each in r.scan_iter("scan:1?")]),
        await r.unlink(*[f"scan:{number}" for number in range(500)]),
    ]


async def pipelines(r: Any) -> object:
    async with r.pipeline(transaction=True) as pipe:
        transaction = await pipe.set("k", 1).incr("k").get("k").hset("h", "f", "v").execute()
    async with r.pipeline(transaction=False) as pipe:
        plain = await pipe.get("k").hgetall("h").lrange("none", 0, -1).execute()
    pipe = r.pipeline(transaction=False)
    mixed = await pipe.set("text", "x").incr("text").get("text").execute(raise_on_error=False)
    failing = r.pipeline().set("text", "x").incr("text")
    empty = await r.pipeline().execute()

    async def add(inner: Any) -> None:
        value = int(await inner.get("k"))
        inner.multi()
        inner.set("k", value + 10)

    watched = await r.transaction(add, "k")
    return [
        transaction,
        plain,
        [str(each) for each in mixed],
        await error(failing.execute()),
        empty,
        watched,
        await r.get("k"),
    ]


async def locks(r: Any) -> object:
    async with r.lock("lock", timeout=5) as lock:
        owned = await lock.owned()
        rival = r.lock("lock", timeout=5, blocking=False)
        refused = await rival.acquire()
        extended = await lock.extend(5)
    with pytest.raises(LockError):
        await rival.release()
    return [owned, refused, extended, await r.exists("lock")]


async def blocking_pops(r: Any) -> object:
    async def feed() -> None:
        await asyncio.sleep(0.05)
        await r.rpush("queue", "job")
        await asyncio.sleep(0.05)
        await r.zadd("priorities", {"urgent": 1})

    feeding = asyncio.create_task(feed())
    replies = [
        await r.blpop(["queue"], timeout=5),
        await r.bzpopmin("priorities", timeout=5),
        await r.brpop(["queue"], timeout=0.05),
        await r.blmove("queue", "other", timeout=0.05),
    ]
    await feeding
    return replies


async def errors(r: Any) -> object:
    await r.set("text", "x")
    return [
        await error(r.incr("text")),
        await error(r.lpush("text", "y")),
        await error(r.execute_command("NO.SUCH.COMMAND")),
        await error(r.execute_command("GET")),
        await error(r.config_get("maxmemory")),
        await error(r.set("key", None)),
        await error(r.set("key", {"a": 1})),
        await error(r.set("key", True)),
    ]


async def error(call: Awaitable[object]) -> tuple[str, str]:
    """What a command that must fail raises."""
    with pytest.raises((ResponseError, DataError)) as caught:
        await call
    return type(caught.value).__name__, str(caught.value)


async def server(r: Any) -> object:
    return [
        await r.ping(),
        await r.echo("text"),
        await r.acl_whoami(),
        await r.client_getname(),
        "server_name" in await r.info("server") or "redis_version" in await r.info("server"),
        type(await r.time()),
        type((await r.client_list())[0]),
        (await r.command_count()) > 100,
        await r.object("encoding", "none"),
        type(await r.client_id()),
        type(await r.memory_usage("none")),
    ]


async def dumps(r: Any) -> object:
    """DUMP's reply is bytes whatever ``decode_responses`` says, or RESTORE could not take it."""
    await r.set("text", "value")
    dumped = await r.dump("text")
    assert isinstance(dumped, bytes)
    await r.restore("copy", 0, dumped)
    return [await r.get("copy"), await r.dump("none")]


async def callbacks(r: Any) -> object:
    await r.set("k", "v")
    before = await r.get("k")
    r.set_response_callback("GET", lambda reply, **_: ["mine", reply])
    return [before, await r.get("k"), await r.get("none")]


async def binary(r: Any) -> object:
    values = [b"\x00\r\n\xff", memoryview(b"view"), "é", 7, 1.5, b"x" * 20_000, "y" * 200_000]
    for number, value in enumerate(values):
        await r.set(f"v:{number}", value)
    return [await r.strlen(f"v:{number}") for number in range(len(values))] + [
        await r.get("v:2"),
        await r.get("v:3"),
        await r.get("v:4"),
        await r.get("v:6"),
    ]


async def pubsub(r: Any) -> object:
    async with r.pubsub() as channel:
        await channel.subscribe("news")
        await channel.psubscribe("wild.*")
        confirmed = [await channel.get_message(timeout=5), await channel.get_message(timeout=5)]
        receivers = [await r.publish("news", "hello"), await r.publish("wild.cat", "miaow")]
        messages = [await channel.get_message(timeout=5), await channel.get_message(timeout=5)]
    return [confirmed, receivers, messages]


async def own_connection(r: Any) -> object:
    """On ``client()`` even what changes the connection's state is allowed."""
    async with r.client() as one:
        named = [await one.client_setname("mine"), await one.client_getname()]
        selected = [
            await one.execute_command("SELECT", 1),
            await one.set("k", "elsewhere"),
            await one.execute_command("SELECT", 0),
        ]
    return [named, selected, await r.get("k")]


async def monitor(r: Any) -> object:
    async with r.monitor() as watched:
        await r.set("seen", "1")
        async with asyncio.timeout(5):
            async for command in watched.listen():
                if "seen" in command["command"]:
                    return command["command"]
    return None


PROGRAMS: list[Program] = [
    strings,
    hashes,
    lists,
    sets,
    sorted_sets,
    streams,
    scripts,
    scans,
    pipelines,
    locks,
    blocking_pops,
    errors,
    server,
    dumps,
    callbacks,
    binary,
    pubsub,
    own_connection,
    monitor,
]


@contextlib.asynccontextmanager
async def plain_client(emulator: Emulator, **options: Any) -> AsyncIterator[redis.asyncio.Redis]:
    """redis-py's own client, with a token as its password, through the same front."""
    client = redis.asyncio.Redis.from_url(
        emulator.url,
        username=emulator.service_principal.object_id,
        password=await emulator.issue_token(),
        ssl_ca_certs=emulator.ca_file,
        **options,
    )
    async with client:
        yield client


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "RESP2": {"protocol": 2},
    "RESP3": {"protocol": 3},
    "decoded": {"decode_responses": True},
    "decoded RESP2": {"decode_responses": True, "protocol": 2},
    "unified": {"legacy_responses": False},
    "unified RESP2": {"legacy_responses": False, "protocol": 2},
    "unified RESP3": {"legacy_responses": False, "protocol": 3, "decode_responses": True},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            options,
            id=name,
            marks=[pytest.mark.capability("legacy_responses")] if "unified" in name else [],
        )
        for name, options in OPTIONS.items()
    ],
)
async def test_every_program_has_the_same_answers(
    entra_emulator: Emulator, options: dict[str, Any]
) -> None:
    defaults: dict[str, Any] = {}
    if not has("legacy_responses"):
        defaults = {"protocol": 3}  # what ours asks for, and redis-py by itself from 8 on
    async with secret_source(entra_emulator) as source:
        for program in PROGRAMS:
            async with plain_client(entra_emulator, **{**defaults, **options}) as plain:
                await plain.flushdb()
                expected = await program(plain)
                await plain.flushdb()
            async with client_of(entra_emulator, source, **options) as ours:
                assert isinstance(ours, EntraRedis)
                assert await program(ours) == expected, program.__name__


# ------------------------------------------------- what would change the connection for everybody

REFUSED: dict[tuple[str, ...], str] = {
    ("SELECT", "1"): "db=",
    ("MULTI",): "pipeline",
    ("EXEC",): "pipeline",
    ("DISCARD",): "pipeline",
    ("WATCH", "key"): "pipeline",
    ("UNWATCH",): "pipeline",
    ("SUBSCRIBE", "channel"): "pubsub()",
    ("PSUBSCRIBE", "pattern"): "pubsub()",
    ("SSUBSCRIBE", "channel"): "pubsub()",
    ("UNSUBSCRIBE",): "pubsub()",
    ("MONITOR",): "monitor()",
    ("CLIENT", "REPLY", "OFF"): "client()",
    ("CLIENT REPLY", "SKIP"): "client()",
    ("client reply", "skip"): "client()",
    ("CLIENT", "TRACKING", "ON"): "client()",
    ("WAIT", "0", "1"): "client()",
    ("SYNC",): "shared",
    ("REPLCONF", "x"): "shared",
    ("READONLY",): "shared",
    ("AUTH", "user", "password"): "token source",
}


async def test_what_would_break_the_shared_connection_is_refused(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        await redis.set("key", "value")
        for words, remedy in REFUSED.items():
            for spelling in (words, (words[0].encode(), *words[1:])):
                with pytest.raises(CommandRefusedError, match="coroutines share") as caught:
                    await redis.execute_command(*spelling)
                assert remedy in str(caught.value), words
                assert await redis.get("key") == b"value"
        assert len(await entra_emulator.connections()) == 1


async def test_what_ends_a_connection_ends_another_one(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        [before] = redis.auth_status()
        assert await redis.execute_command("RESET") in (b"RESET", "RESET")
        assert await redis.execute_command("HELLO", 2)
        with contextlib.suppress(Exception):  # the server may say OK or nothing
            await redis.quit()
        assert await redis.set("key", "value")
        [after] = redis.auth_status()
        assert after.connection == before.connection


async def test_blocking_commands_do_not_hold_up_the_others(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        waiting = [asyncio.create_task(redis.blpop([f"q:{n}"], timeout=20)) for n in range(5)]
        await asyncio.sleep(0.05)
        await asyncio.gather(*(redis.ping() for _ in range(100)))
        assert not any(each.done() for each in waiting)
        for number in range(5):
            await redis.rpush(f"q:{number}", number)
        popped = await asyncio.gather(*waiting)
        assert [each[0] for each in popped] == [f"q:{number}".encode() for number in range(5)]


async def test_a_blocking_call_that_is_cancelled_at_any_moment_ends(entra_emulator: Emulator):
    async with (
        secret_source(entra_emulator) as source,
        await client_of(entra_emulator, source) as redis,
    ):
        for turns in range(30):
            await redis.bzpopmin("none", timeout=0.001)  # there is a connection to be had
            call = asyncio.ensure_future(redis.bzpopmin("none", timeout=10))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
