"""Pipelines and transactions against a real server: redis-py's answers, across rotations."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import WatchError
from support.signing_in import Witness, client_of, minted_source, secret_source

from aioentra_redis import CommandRefusedError, ReauthenticationFailed, TokenPublished
from aioentra_redis import _pipeline as pipelines
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator


@contextlib.asynccontextmanager
async def plain_client(emulator: Emulator, **options: Any) -> AsyncIterator[redis.asyncio.Redis]:
    """redis-py's own client, with a token as its password, through the same front."""
    if int(redis.__version__.partition(".")[0]) < 8:
        options.setdefault("protocol", 3)  # what ours asks for, and redis-py by itself from 8 on
    client = redis.asyncio.Redis.from_url(
        emulator.url,
        username=emulator.service_principal.object_id,
        password=await emulator.issue_token(),
        ssl_ca_certs=emulator.ca_file,
        **options,
    )
    async with client:
        yield client


# ------------------------------------------------------------------------ redis-py's answers


def strings(p: Any) -> None:
    p.set("s", "value").get("s").set("s", "x", nx=True).set("s", "y", get=True).set("s", "z", ex=9)
    p.append("s", "!").strlen("s").getrange("s", 0, 1).incr("n", 5).incrbyfloat("n", 1.5)
    p.mset({"a": 1, "b": 2}).mget("a", "b", "none").mget([]).exists("a", "none").delete("a")
    p.type("s").get("none").expire("b", 10).persist("b").setbit("bits", 7, 1).bitcount("bits")
    p.set("bytes", b"\xc3\xa9").get("bytes").set("float", 4.5).get("float").lcs("s", "b")


def collections(p: Any) -> None:
    p.hset("h", mapping={"a": 1, "b": "two"}).hget("h", "a").hgetall("h").hmget("h", "a", "x")
    p.hgetall("none").hscan("h").hincrbyfloat("h", "a", 2.5).hdel("h", "b")
    p.rpush("l", 1, 2, 3).lrange("l", 0, -1).lpos("l", "2").lpop("l", 2).lpop("none")
    p.sadd("t", "a").smembers("t").sismember("t", "a").smismember("t", "a", "b").sscan("t")
    p.zadd("z", {"a": 1, "b": 2.5}).zrange("z", 0, -1, withscores=True).zscore("z", "b")
    p.zrank("z", "b", withscore=True).zmscore("z", ["a", "x"]).zpopmin("z").zscan("z")
    p.geoadd("g", (13.361389, 38.115556, "P")).geopos("g", "P").geohash("g", "P")
    p.xadd("x", {"f": "v"}, id="1-1").xrange("x").xlen("x").xread({"x": 0}).xinfo_stream("x")
    p.xgroup_create("x", "g", 0).xreadgroup("g", "c", {"x": ">"}).xpending("x", "g")


def the_server(p: Any) -> None:
    p.ping().echo("text").config_get("maxmemory").client_setname("name").client_getname()
    p.execute_command("OBJECT ENCODING", "none").command_count().acl_whoami().dbsize()
    p.execute_command("CONFIG GET", "maxmemory").time().scan(0).object("REFCOUNT", "none")


def scripts(p: Any) -> None:
    p.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, "k", "v").get("k")
    p.eval("return {1, 'two', false, {3}}", 0).eval("return redis.error_reply('own')", 0)
    p.evalsha("f" * 40, 0).script_exists("f" * 40)


def errors(p: Any) -> None:
    p.set("text", "x").incr("text").get("text").lpush("text", 1).execute_command("NO-SUCH", "a b")
    p.set("text", "y").execute_command("GET").get("text").xgroup_create("none", "g")


def errors_at_execution(p: Any) -> None:
    p.set("text", "x").incr("text").get("text").lpush("text", 1).get("text")


def blocking(p: Any) -> None:
    """In a transaction they don't wait; without one each is answered at once here."""
    p.rpush("q", 1, 2, 3).blpop("q", 1).brpop(["none", "q"], 1).blmove("q", "q2", 1)
    p.xadd("bx", {"f": 1}, id="1-1").xread({"bx": 0}, block=10).bzpopmin("none", 0.01)


def waiting(p: Any) -> None:
    p.set("w", 1).wait(0, 10).get("w")


def discarded(p: Any) -> None:
    p.set("d", 1).execute_command("DISCARD").get("d")


def raw(p: Any) -> None:
    p.set("k", "v").dump("k").restore("copy", 0, _dump_of_v())


def _dump_of_v() -> bytes:
    # A string "v" as RDB version 6 writes it: every server since Redis 2.6 reads it.
    body = b"\x00\x01v\x06\x00"
    return body + _crc64(body).to_bytes(8, "little")


def _crc64(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return crc


STACKS = (
    strings,
    collections,
    the_server,
    scripts,
    errors,
    errors_at_execution,
    blocking,
    waiting,
    discarded,
)


async def answers(client: Any, stack: Callable[[Any], None], transaction: bool) -> list[Any]:
    """Both ways to execute, and what is left in the database."""
    found: list[Any] = []
    for raise_on_error in (False, True):
        await client.flushdb()
        pipe = client.pipeline(transaction)
        stack(pipe)
        try:
            replies = await pipe.execute(raise_on_error)
        except Exception as exc:
            found.append((type(exc), str(exc), type(exc.__cause__)))
        else:
            found.append([_shown(each) for each in replies])
        found.append(len(pipe))
        found.append(sorted(map(str, await client.keys("*"))))
    return found


def _shown(reply: Any) -> Any:
    if isinstance(reply, Exception):
        return type(reply), str(reply)
    if isinstance(reply, tuple) and len(reply) == 2 and all(isinstance(n, int) for n in reply):
        return "a moment"  # TIME
    return reply


@pytest.mark.parametrize("transaction", [False, True], ids=["pipeline", "transaction"])
@pytest.mark.parametrize(
    "options",
    [{}, {"protocol": 2}, {"decode_responses": True}],
    ids=["default", "RESP2", "decoded"],
)
async def test_every_stack_has_redis_pys_answers(
    entra_emulator: Emulator, options: dict[str, Any], transaction: bool
) -> None:
    async with (
        secret_source(entra_emulator) as source,
        plain_client(entra_emulator, **options) as plain,
        client_of(entra_emulator, source, **options) as ours,
    ):
        stacks = STACKS if transaction or options else (*STACKS, raw)
        for stack in stacks:
            expected = await answers(plain, stack, transaction)
            assert await answers(ours, stack, transaction) == expected, stack.__name__
        assert not ours.connection_pool._in_use_connections


async def test_raw_replies_among_decoded_ones(entra_emulator: Emulator) -> None:
    options = {"decode_responses": True}
    async with (
        secret_source(entra_emulator) as source,
        plain_client(entra_emulator, **options) as plain,
        client_of(entra_emulator, source, **options) as ours,
    ):
        assert await answers(ours, raw, False) == await answers(plain, raw, False)


async def test_ten_thousand_commands_are_one_pipeline(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        count = 2 * pipelines.CHUNK_COMMANDS + 1
        for transaction in (False, True):
            await redis.flushdb()
            pipe = redis.pipeline(transaction)
            for _ in range(count):
                pipe.incr("n")
            assert await pipe.execute() == list(range(1, count + 1))
        large = b"x" * (pipelines.CHUNK_BYTES // 3)
        pipe = redis.pipeline(transaction=False)
        for number in range(12):
            pipe.set(f"large:{number}", large)
        for number in range(12):
            pipe.get(f"large:{number}")
        assert await pipe.execute() == [True] * 12 + [large] * 12
        assert len(redis.auth_status()) == 1


async def test_scripts_are_loaded_wherever_the_pipeline_runs(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        double = redis.register_script("return ARGV[1] * 2")
        for transaction in (False, True):
            for prepare in (lambda p: p.get("k"), lambda p: p.wait(0, 1)):
                await redis.script_flush()
                pipe = redis.pipeline(transaction)
                prepare(pipe)
                await double(args=[21], client=pipe)
                assert (await pipe.execute())[1] == 42
        await redis.script_flush()
        async with redis.pipeline() as pipe:
            await pipe.watch("k")
            pipe.multi()
            await double(args=[4], client=pipe)
            assert await pipe.execute() == [8]


async def test_a_pipeline_leaves_nothing_behind_for_the_next_lessee(
    entra_emulator: Emulator,
) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:
        async with redis.pipeline() as pipe:
            await pipe.watch("k")
            with pytest.raises(CommandRefusedError, match="db="):
                await pipe.execute_command("SELECT", 1)
            assert await pipe.get("k") is None
            await redis.set("k", "changed")
            pipe.multi()
            pipe.set("k", "lost")
            with pytest.raises(WatchError):
                await pipe.execute()
        pipe = redis.pipeline(transaction=False).wait(0, 1)
        pipe.execute_command("CLIENT", "REPLY", "OFF")
        with pytest.raises(CommandRefusedError, match="every reply"):
            await pipe.execute()
        assert await redis.pipeline().wait(0, 1).get("k").execute() == [0, b"changed"]
        assert not redis.connection_pool._in_use_connections


# ------------------------------------------------------------------------------- under rotation


@pytest.mark.parametrize("options", [{}, {"protocol": 2}], ids=["RESP3", "RESP2"])
async def test_rotating_every_100_ms_under_pipelines_and_transactions(
    entra_emulator: Emulator, options: dict[str, Any]
) -> None:
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.2) as source,
        client_of(entra_emulator, source, on_event=witness, **options) as redis,
    ):
        enough = asyncio.Event()
        double = redis.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")

        async def batches(number: int, transaction: bool) -> int:
            key, total = f"p:{number}", 0
            while not enough.is_set():
                size = random.randrange(1, 60)
                pipe = redis.pipeline(transaction)
                for _ in range(size):
                    pipe.incr(key).get(key)
                await double(keys=[key], args=[2], client=pipe)
                expected = [
                    each for n in range(total + 1, total + size + 1) for each in (n, b"%d" % n)
                ]
                total += size + 2
                assert await pipe.execute() == [*expected, total]
            return total

        async def singles(number: int) -> int:
            turns = 0
            while not enough.is_set():
                turns += 1
                assert await redis.set(f"s:{number}", turns)
                assert await redis.get(f"s:{number}") == b"%d" % turns
            return turns

        tasks = [asyncio.create_task(batches(n, bool(n % 2))) for n in range(20)]
        tasks += [asyncio.create_task(singles(n)) for n in range(10)]
        await asyncio.wait(
            [asyncio.ensure_future(witness.at_least(16, TokenPublished, timeout=30)), *tasks],
            return_when=asyncio.FIRST_COMPLETED,
        )
        enough.set()
        assert min(await asyncio.gather(*tasks)) > 0
        assert len(witness.of(TokenPublished)) >= 16
        assert witness.of(ReauthenticationFailed) == []
        assert not redis.connection_pool._in_use_connections


async def test_watching_goes_on_across_rotations(entra_emulator: Emulator) -> None:
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=2.0) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        enough = asyncio.Event()

        async def increments() -> int:
            done = 0

            async def add(pipe: Any) -> None:
                value = int(await pipe.get("n") or 0)
                pipe.multi()
                pipe.set("n", value + 1)

            while not enough.is_set():
                assert await redis.transaction(add, "n") == [True]
                done += 1
            return done

        tasks = [asyncio.create_task(increments()) for _ in range(4)]
        await witness.at_least(4, TokenPublished, timeout=20)
        enough.set()
        total = sum(await asyncio.gather(*tasks))
        assert int(await redis.get("n")) == total


async def test_watched_keys_are_contended_for_and_nothing_is_lost(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source, client_of(entra_emulator, source) as redis:

        async def add(pipe: Any) -> None:
            value = int(await pipe.get("n") or 0)
            await asyncio.sleep(0)
            pipe.multi()
            pipe.set("n", value + 1).rpush("log", value)

        await asyncio.gather(*[redis.transaction(add, "n", watch_delay=0.001) for _ in range(40)])
        assert await redis.get("n") == b"40"
        assert await redis.lrange("log", 0, -1) == [b"%d" % n for n in range(40)]


async def test_cancelled_anywhere_a_transaction_is_all_or_nothing(entra_emulator: Emulator) -> None:
    """Both halves of each transaction ran or neither did, and no reply goes to a neighbour."""
    async with (
        minted_source(entra_emulator, believed=0.3) as source,
        client_of(entra_emulator, source) as redis,
    ):
        generator = random.Random(3)

        async def one(number: int) -> bool:
            """Whether it finished; cancelled after so many turns of the loop."""
            kind = number % 4
            pipe = redis.pipeline(transaction=kind != 3)
            if kind == 2:
                pipe.wait(0, 1)  # on a connection of the pool
            pipe.rpush("left", number).echo(f"m{number}").rpush("right", number)
            task = asyncio.ensure_future(pipe.execute())
            for _ in range(generator.randrange(0, 12)):
                await asyncio.sleep(0)
            if number % 3 == 0:
                await asyncio.sleep(generator.random() * 0.004)
            task.cancel()
            try:
                replies = await task
            except asyncio.CancelledError:
                return False
            assert b"m%d" % number in replies
            return True

        async def neighbour(number: int) -> None:
            for turn in range(60):
                assert await redis.echo(f"{number}/{turn}") == f"{number}/{turn}".encode()

        finished: list[bool] = []
        for start in range(0, 600, 50):
            *done, _ = await asyncio.gather(
                *[one(number) for number in range(start, start + 50)], neighbour(start)
            )
            finished += done
        left, right = await redis.lrange("left", 0, -1), await redis.lrange("right", 0, -1)
        assert sorted(left) == sorted(right)
        assert len(set(left)) == len(left)
        ran = {int(each) for each in left}
        assert {number for number, done in enumerate(finished) if done} <= ran
        assert True in finished
        assert False in finished
        assert not redis.connection_pool._in_use_connections


async def test_a_user_that_may_not_use_multi_has_redis_pys_answers(
    entra_emulator: Emulator,
) -> None:
    async with (
        secret_source(entra_emulator) as source,
        plain_client(entra_emulator) as plain,
        client_of(entra_emulator, source) as ours,
    ):
        user = entra_emulator.service_principal.object_id
        await ours.execute_command("ACL SETUSER", user, "-multi")
        try:
            expected = await answers(plain, errors_at_execution, True)
            assert "EXEC without MULTI" in expected[0][1]
            assert await answers(ours, errors_at_execution, True) == expected
            assert await ours.get("text") == b"x", "the commands ran, as they do with redis-py"
        finally:
            await ours.execute_command("ACL SETUSER", user, "+multi")
