"""Hypothesis strategies for single commands, of every data type, right and wrong.

A command is here only if its reply follows from what its coroutine did before. Left out are those
that tell the time or count (TIME, INFO, DBSIZE, OBJECT IDLETIME), choose at random (SPOP,
RANDOMKEY, the ...RANDMEMBER), speak of the connection (CLIENT ID) or the server (CONFIG, ACL), and
those that ``EntraRedis`` refuses on purpose (SELECT, raw MULTI, ...). Remaining lives are compared
as "some"; replies without an order, and those of the SCAN family, sorted (``comparison.py``).
"""

from __future__ import annotations

from typing import Any

import redis.asyncio
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from .program import Call, Key, Large, Text

__all__ = [
    "ANYTHING",
    "BLOCKING",
    "CALLBACK_RAISES",
    "ITERATORS",
    "KEYS_ANYWHERE",
    "NEVER_ENDING",
    "NOTHING_TO_POP",
    "ODD",
    "SMALL",
    "THEMES",
    "VALUE",
    "WRITES",
    "call",
    "weighted",
]

Strategy = SearchStrategy[Any]


def call(method: str, *args: Any, **options: Any) -> SearchStrategy[Call]:
    """Calls of one method; each argument is a strategy or a constant.

    None at all where this version of redis-py has no such method.
    """
    if not hasattr(redis.asyncio.RedisCluster, method):  # which has all that Redis has
        return st.nothing()
    return st.builds(
        Call,
        st.just(method),
        st.tuples(*(_lifted(each) for each in args)),
        st.fixed_dictionaries({name: _lifted(each) for name, each in options.items()}),
    )


def raw(*words: Any, **options: Any) -> SearchStrategy[Call]:
    """``execute_command()``."""
    return call("execute_command", *words, **options)


def weighted(*parts: tuple[int, SearchStrategy[Any]]) -> SearchStrategy[Any]:
    """One of the parts, each as often as its weight says; ``one_of()`` would melt them together."""
    each = [part for weight, part in parts for _ in range(weight)]
    # A lambda, because hypothesis shows how strategies were made: this one would fill a megabyte.
    return st.integers(0, len(each) - 1).flatmap(lambda number: each[number])


def pair(keys: Strategy) -> Strategy:
    """A list of two."""
    return st.tuples(keys, keys).map(list)


def _lifted(argument: Any) -> Strategy:
    return argument if isinstance(argument, SearchStrategy) else st.just(argument)


# -- arguments -----------------------------------------------------------------------------------


def keys(letter: str) -> Strategy:
    """Mostly keys of one type, now and then of another: WRONGTYPE."""
    own = [Key(f"{letter}{number}") for number in range(2)]
    return st.sampled_from(own * 40 + [Key(f"{each}0") for each in "shlezxbpg"])


STRING, HASH, LIST, SET, ZSET, STREAM, BITS, HLL, GEO = (keys(each) for each in "shlezxbpg")
ANY = st.sampled_from([Key(f"{letter}{number}") for letter in "shlezxbpg" for number in range(2)])

SMALL = st.integers(-3, 6)
COUNT = st.integers(0, 4)
FLOAT = st.sampled_from([0.5, 1.5, -2.25, 3.0, 1e10, 0.1])
YES = st.booleans()
MEMBER = st.sampled_from([Text(each) for each in ("a", "b", "c", "d", "\u00e9", "")])
VALUE = st.one_of(
    st.sampled_from(
        [Text("v"), Text("w"), Text("\u20ac"), Text(""), 0, 7, -1, 2.5, b"", b"bytes"] * 3
        + [b"\xff\xfe", b"\x00\r\n$3\r\n", bytearray(b"array"), memoryview(b"view")]
        + [Large(5_990), Large(6_001), Large(9_000), Large(140_000)]
    ),
    st.text(max_size=5),
    st.binary(max_size=5),
)
NUMBER = st.sampled_from(["1", "20", "3.5", "-7", Text("no number")])
SCORES = st.dictionaries(MEMBER, st.one_of(SMALL, FLOAT), min_size=1, max_size=3)
FIELDS = st.dictionaries(MEMBER, VALUE, min_size=1, max_size=3)
BOUND = st.sampled_from(["-inf", "+inf", 0, 1, "(1", 2.5, "3", "no bound"])
LEX = st.sampled_from(["-", "+", "[a", "(b", "[c/w", "nothing"])
ENTRY = st.sampled_from([f"{ms}-{n}" for ms in range(1, 8) for n in (0, 1)])
GROUP = st.sampled_from(["g1", "g2"])
LONG = 100_000
"""Seconds; what lives so long does not expire under a test."""


# -- by data type --------------------------------------------------------------------------------

STRING_WRITES = st.one_of(
    call("set", STRING, VALUE),
    call("set", STRING, NUMBER),
    call("set", STRING, VALUE, nx=YES, get=YES),
    call("set", STRING, VALUE, xx=True, keepttl=YES),
    call("set", STRING, VALUE, ex=LONG),
    call("setnx", STRING, VALUE),
    call("setex", STRING, LONG, VALUE),
    call("psetex", STRING, LONG * 1000, VALUE),
    call("setrange", STRING, st.integers(0, 6), VALUE),
    call("getset", STRING, VALUE),
    call("getdel", STRING),
    call("getex", STRING, ex=LONG),
    call("getex", STRING, persist=True),
    call("append", STRING, VALUE),
    call("incr", STRING, SMALL),
    call("decr", STRING, SMALL),
    call("incrbyfloat", STRING, FLOAT),
    call("mset", st.dictionaries(STRING, VALUE, min_size=1, max_size=3)),
    call("msetnx", st.dictionaries(STRING, VALUE, min_size=1, max_size=3)),
)
STRING_READS = st.one_of(
    call("get", STRING),
    call("get", STRING),
    raw("GET", STRING, NEVER_DECODE=True),
    call("strlen", STRING),
    call("getrange", STRING, SMALL, SMALL),
    call("substr", STRING, COUNT, SMALL),
    call("mget", st.lists(STRING, min_size=1, max_size=4)),
    call("lcs", STRING, STRING, idx=YES),
    call("eval", "return redis.call('GET', KEYS[1])", 1, STRING),
)
HASH_WRITES = st.one_of(
    call("hset", HASH, MEMBER, VALUE),
    call("hset", HASH, mapping=FIELDS),
    call("hsetnx", HASH, MEMBER, VALUE),
    call("hincrby", HASH, st.sampled_from(["n", "m"]), SMALL),
    call("hincrbyfloat", HASH, "n", FLOAT),
    call("hdel", HASH, MEMBER, MEMBER),
)
HASH_READS = st.one_of(
    call("hget", HASH, MEMBER),
    call("hgetall", HASH),
    raw("HGETALL", HASH, NEVER_DECODE=True),
    call("hmget", HASH, st.lists(MEMBER, min_size=1, max_size=3)),
    call("hkeys", HASH),
    call("hvals", HASH),
    call("hlen", HASH),
    call("hstrlen", HASH, MEMBER),
    call("hexists", HASH, MEMBER),
    call("hscan", HASH, count=1000),
)
LIST_WRITES = st.one_of(
    call("rpush", LIST, VALUE),
    call("rpush", LIST, MEMBER, MEMBER, MEMBER),
    call("lpush", LIST, VALUE, NUMBER),
    call("rpushx", LIST, VALUE),
    call("lpushx", LIST, VALUE),
    call("lpop", LIST),
    call("lpop", LIST, COUNT),
    call("rpop", LIST),
    call("rpop", LIST, COUNT),
    call("linsert", LIST, st.sampled_from(["BEFORE", "AFTER", "ASIDE"]), MEMBER, VALUE),
    call("lset", LIST, SMALL, VALUE),
    call("lrem", LIST, SMALL, MEMBER),
    call("ltrim", LIST, COUNT, SMALL),
    call("lmove", LIST, LIST, src=st.sampled_from(["LEFT", "RIGHT"]), dest="LEFT"),
    call("rpoplpush", LIST, LIST),
    call("lmpop", 2, LIST, LIST, direction=st.sampled_from(["LEFT", "RIGHT"]), count=COUNT),
)
LIST_READS = st.one_of(
    call("lrange", LIST, COUNT, SMALL),
    call("lrange", LIST, 0, -1),
    raw("LRANGE", LIST, 0, -1, NEVER_DECODE=True),
    call("lindex", LIST, SMALL),
    call("llen", LIST),
    call("lpos", LIST, MEMBER),
    call("lpos", LIST, MEMBER, rank=SMALL, count=COUNT),
    call("sort", LIST, alpha=True, desc=YES),
    call("sort", LIST, alpha=True, start=COUNT, num=COUNT),
)
SET_WRITES = st.one_of(
    call("sadd", SET, MEMBER, VALUE),
    call("sadd", SET, 1, 2, SMALL),
    call("sadd", SET, MEMBER, MEMBER, MEMBER),
    call("srem", SET, MEMBER, MEMBER),
    call("smove", SET, SET, MEMBER),
    call("sinterstore", SET, SET, SET),
    call("sunionstore", SET, SET, SET),
    call("sdiffstore", SET, SET, SET),
)
SET_READS = st.one_of(
    call("smembers", SET),
    call("sismember", SET, MEMBER),
    call("smismember", SET, st.lists(MEMBER, min_size=1, max_size=3)),
    call("scard", SET),
    call("sinter", SET, SET),
    call("sunion", SET, SET, SET),
    call("sdiff", SET, SET),
    call("sintercard", 2, pair(SET), limit=COUNT),
    call("sscan", SET, count=1000),
)
ZSET_WRITES = st.one_of(
    call("zadd", ZSET, SCORES),
    call("zadd", ZSET, SCORES, nx=YES, ch=YES),
    call("zadd", ZSET, SCORES, xx=True, gt=YES, lt=YES),
    call("zadd", ZSET, st.dictionaries(MEMBER, SMALL, min_size=1, max_size=1), incr=True),
    call("zincrby", ZSET, FLOAT, MEMBER),
    call("zrem", ZSET, MEMBER, MEMBER),
    call("zpopmin", ZSET),
    call("zpopmax", ZSET, COUNT),
    call("zremrangebyrank", ZSET, COUNT, SMALL),
    call("zremrangebyscore", ZSET, BOUND, BOUND),
    call("zremrangebylex", ZSET, LEX, LEX),
    call("zunionstore", ZSET, pair(ZSET), aggregate="MAX"),
    call("zinterstore", ZSET, pair(ZSET)),
    call("zdiffstore", ZSET, pair(ZSET)),
    call("zrangestore", ZSET, ZSET, COUNT, SMALL),
    call("zmpop", 2, pair(ZSET), min=True, count=COUNT),
)
ZSET_READS = st.one_of(
    call("zrange", ZSET, COUNT, SMALL, withscores=YES, desc=YES),
    call("zrange", ZSET, BOUND, BOUND, byscore=True, withscores=YES),
    call("zrange", ZSET, 0, -1, withscores=True, score_cast_func=str),
    call("zrevrange", ZSET, 0, SMALL, withscores=YES),
    call("zrangebyscore", ZSET, BOUND, BOUND, withscores=YES),
    call("zrangebylex", ZSET, LEX, LEX),
    call("zrevrangebyscore", ZSET, BOUND, BOUND, start=0, num=COUNT),
    call("zscore", ZSET, MEMBER),
    call("zmscore", ZSET, st.lists(MEMBER, min_size=1, max_size=3)),
    call("zrank", ZSET, MEMBER),
    call("zrank", ZSET, MEMBER, withscore=YES),
    call("zrevrank", ZSET, MEMBER),
    call("zcard", ZSET),
    call("zcount", ZSET, BOUND, BOUND),
    call("zlexcount", ZSET, LEX, LEX),
    call("zunion", pair(ZSET), withscores=YES),
    call("zinter", pair(ZSET), withscores=YES),
    call("zdiff", pair(ZSET), withscores=YES),
    call("zscan", ZSET, count=1000),
)
STREAM_WRITES = st.one_of(
    call("xadd", STREAM, FIELDS, id=ENTRY),
    call("xadd", STREAM, FIELDS, id=ENTRY),
    call("xadd", STREAM, FIELDS, id=ENTRY, nomkstream=True, maxlen=4, approximate=False),
    call("xdel", STREAM, ENTRY, ENTRY),
    call("xtrim", STREAM, maxlen=COUNT, approximate=False),
    call("xgroup_create", STREAM, GROUP, id="0", mkstream=YES),
    call("xgroup_createconsumer", STREAM, GROUP, "c1"),
    call("xgroup_destroy", STREAM, GROUP),
    call("xreadgroup", GROUP, "c1", st.dictionaries(STREAM, st.just(">"), min_size=1)),
    call("xreadgroup", GROUP, "c1", st.dictionaries(STREAM, st.just("0"), min_size=1)),
    call("xack", STREAM, GROUP, ENTRY),
    call("xclaim", STREAM, GROUP, "c2", 0, st.tuples(ENTRY).map(list), justid=True),
    call("xsetid", STREAM, ENTRY),
)
STREAM_READS = st.one_of(
    call("xlen", STREAM),
    call("xrange", STREAM, count=COUNT),
    call("xrange", STREAM, "-", "+"),
    call("xrevrange", STREAM, "+", ENTRY),
    call("xread", st.dictionaries(STREAM, ENTRY, min_size=1), count=COUNT),
    call("xpending", STREAM, GROUP),
    call("xinfo_groups", STREAM),
    call("xinfo_stream", STREAM),
)
BIT_WRITES = st.one_of(
    call("setbit", BITS, st.integers(0, 80), st.integers(0, 1)),
    call("bitop", st.sampled_from(["AND", "OR", "XOR", "NOT"]), BITS, BITS),
    call("bitop", st.sampled_from(["AND", "OR", "XOR"]), BITS, BITS, BITS),
    raw("BITFIELD", BITS, "SET", "u8", COUNT, SMALL, "OVERFLOW", "FAIL", "INCRBY", "i5", 3, 9),
    call("pfadd", HLL, MEMBER, VALUE),
    call("pfmerge", HLL, HLL, HLL),
    call("geoadd", GEO, st.tuples(FLOAT, SMALL, MEMBER).map(list)),
    call("geosearchstore", GEO, GEO, longitude=1, latitude=1, radius=9000, unit="km"),
)
BIT_READS = st.one_of(
    call("getbit", BITS, st.integers(-1, 80)),
    call("bitcount", BITS),
    call("bitcount", BITS, COUNT, SMALL, mode=st.sampled_from(["BIT", "BYTE"])),
    call("bitpos", BITS, st.integers(0, 1)),
    call("bitfield_ro", BITS, "u4", COUNT),
    call("pfcount", HLL, HLL),
    call("geodist", GEO, MEMBER, MEMBER, unit="km"),
    call("geopos", GEO, MEMBER, MEMBER),
    call("geohash", GEO, MEMBER),
    call("geosearch", GEO, longitude=1, latitude=1, radius=9000, unit="km", sort="ASC"),
    call("geosearch", GEO, member=MEMBER, radius=9000, sort="ASC", withdist=True, withcoord=YES),
)
OTHER_WRITES = st.one_of(
    call("delete", ANY),
    call("delete", ANY, ANY),
    call("unlink", ANY),
    call("expire", ANY, LONG),
    call("pexpire", ANY, LONG * 1000, nx=YES),
    call("persist", ANY),
    call("rename", ANY, ANY),
    call("renamenx", ANY, ANY),
    call("copy", ANY, ANY, replace=YES),
    call("sort", st.one_of(LIST, SET), alpha=True, store=LIST),
)
OTHER_READS = st.one_of(
    call("exists", ANY, ANY),
    call("touch", ANY, ANY),
    call("type", ANY),
    call("ttl", ANY),
    call("pttl", ANY),
    call("expiretime", ANY),
    call("object", st.sampled_from(["encoding", "refcount", "freq", "nothing"]), ANY),
    call("sort", LIST),
    call("sort", LIST, by=Key("s", "*"), get=["#", Key("s", "*")], groups=True, alpha=True),
    call("keys", Key("s", "*")),
    call("dump", Key("s0")),
    call("publish", Text("channel"), VALUE),
    call("ping"),
    call("echo", VALUE),
    call("eval", "return {1, 2.5, 'x', ARGV[1], {false, true}}", 0, VALUE),
    call("eval", "return redis.error_reply('MINE ' .. ARGV[1])", 0, MEMBER),
    call("eval", "return redis.call('LPUSH', KEYS[1], 1)", 1, STRING),
    call("eval", "redis.setresp(3); return {map={a=1}, double=2.5}", 0),
    call("evalsha", "0" * 40, 1, STRING),
    call("script_exists", "0" * 40),
    call("function_list"),
)
ODD = st.one_of(
    # Names in other shapes, options that redis-py keeps for itself, errors of both sides.
    raw("get", STRING),
    raw(b"GET", STRING),
    raw("OBJECT ENCODING", ANY),
    raw("OBJECT", "ENCODING", ANY),
    raw("GET", HASH, EMPTY_RESPONSE="nothing"),
    raw("LPOP", STRING, EMPTY_RESPONSE=None),
    raw("NO.SUCH", MEMBER),
    raw("nosuchcommand"),
    raw("GET"),
    raw("SET", STRING),
    raw("GET", STRING, STRING),
    raw("SET", STRING, VALUE, "NONSENSE"),
    raw("SET", STRING, st.sampled_from([None, True, [], {}])),
    call("set", STRING, st.sampled_from([None, False, ()])),
    call("set", STRING, VALUE, nx=True, xx=True),
    call("get", st.sampled_from([None, True])),
    call("zadd", ZSET, {}),
    call("hset", HASH),
    call("xtrim", STREAM),
)

WRITES = st.one_of(
    STRING_WRITES,
    HASH_WRITES,
    LIST_WRITES,
    SET_WRITES,
    ZSET_WRITES,
    STREAM_WRITES,
    BIT_WRITES,
    OTHER_WRITES,
)
READS = st.one_of(
    STRING_READS,
    HASH_READS,
    LIST_READS,
    SET_READS,
    ZSET_READS,
    STREAM_READS,
    BIT_READS,
    OTHER_READS,
)
ANYTHING = st.one_of(WRITES, READS)
THEMES = (
    weighted((1, STRING_WRITES), (1, STRING_READS)),
    weighted((1, HASH_WRITES), (1, HASH_READS)),
    weighted((1, LIST_WRITES), (1, LIST_READS)),
    weighted((1, SET_WRITES), (1, SET_READS)),
    weighted((1, ZSET_WRITES), (1, ZSET_READS)),
    weighted((1, STREAM_WRITES), (1, STREAM_READS)),
    weighted((1, BIT_WRITES), (1, BIT_READS)),
    ANYTHING,
)
"""Calls that meet on the same few keys: a script has one theme, and little else."""

ITERATORS = st.one_of(
    call("scan_iter", match=Key("", "*")),
    call("scan_iter", match=Key("z", "*"), count=3),
    call("hscan_iter", HASH, count=2),
    call("sscan_iter", SET, count=2),
    call("zscan_iter", ZSET, count=2),
)
CALLBACK_RAISES = st.one_of(
    # Not in a pipeline: redis-py leaves the replies behind it unread, and its next user gets them.
    raw("COMMAND", "GETKEYS", "SET", STRING, VALUE),
    call("zrange", ZSET, 0, -1, withscores=True, score_cast_func=int),
)
NOTHING_TO_POP = st.one_of(
    call("blpop", [Key("none"), Key("nothing")], timeout=0.01),
    call("brpop", Key("none"), timeout=0.01),
    call("bzpopmin", Key("none"), timeout=0.01),
    call("blmove", Key("none"), LIST, 0.01),
    call("xread", {Key("none"): "0"}, block=5),
    call("blpop", LIST, timeout=0.01),
    call("brpop", LIST, timeout=0.01),
    call("brpoplpush", LIST, LIST, timeout=0.01),
    call("bzpopmax", ZSET, timeout=0.01),
    call("blmpop", 0.01, 2, LIST, LIST, direction="LEFT", count=2),
    call("bzmpop", 0.01, 1, st.tuples(ZSET).map(list), max=True),
    call("xread", st.dictionaries(STREAM, ENTRY, min_size=1, max_size=2), block=5),
    call("xreadgroup", GROUP, "c1", st.dictionaries(STREAM, st.just(">"), min_size=1), block=5),
)


# -- blocking ------------------------------------------------------------------------------------

PATIENCE = 4
"""Seconds; less than redis-py's default of ``socket_timeout``, 5, which would end it first."""

_A, _B = Key("a"), Key("b")
_PUSH = st.one_of(call("rpush", _A, MEMBER, VALUE), call("lpush", _A, VALUE))
_ZADD = call("zadd", _A, SCORES)
_XADD = call("xadd", _A, FIELDS, id=ENTRY)

BLOCKING: SearchStrategy[tuple[Call, Call]] = st.one_of(
    *(
        st.tuples(waiting, waking)
        for waiting, waking in (
            (call("blpop", [_B, _A], timeout=PATIENCE), _PUSH),
            (call("brpop", _A, timeout=PATIENCE), _PUSH),
            (call("blmove", _A, _B, PATIENCE, "RIGHT", "LEFT"), _PUSH),
            (call("brpoplpush", _A, _B, timeout=PATIENCE), _PUSH),
            (call("blmpop", PATIENCE, 2, _B, _A, direction="LEFT", count=2), _PUSH),
            (call("bzpopmin", [_A, _B], timeout=PATIENCE), _ZADD),
            (call("bzpopmax", _A, timeout=PATIENCE), _ZADD),
            (call("bzmpop", PATIENCE, 1, [_A], min=True), _ZADD),
            (call("xread", {_A: "0"}, block=PATIENCE * 1000), _XADD),
        )
    )
)
"""A call that waits on keys that are new, and one that wakes it."""

NEVER_ENDING = st.one_of(
    call("blpop", _A, timeout=0),
    call("bzpopmin", _A, timeout=0),
    call("xread", {_A: "0"}, block=0),
    call("blmove", _A, _B, 0),
)


# -- in a cluster ---------------------------------------------------------------------------------

_MOVABLE = """
    blmpop bzmpop eval evalsha lmpop sintercard sort xread xreadgroup zdiff zdiffstore zinter
    zintercard zinterstore zmpop zunion zunionstore
"""
KEYS_ANYWHERE = frozenset(_MOVABLE.split())
"""Of which only the server knows where the keys are. In a transaction redis-py asks it from another
event loop, with connections that belong to this one."""
