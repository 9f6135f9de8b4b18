"""Where each command goes: on the shared connection, on a dedicated one, or nowhere.

Command flags of the server do not suffice (nothing marks a change of connection state), so this
is a table. A name that stands in no table is shared: module commands and those that a newer
server brings work without a release of ours. The server is not asked about them (COMMAND INFO):
that is a round trip in front of each first command and needs a permission that data policies
lack, and RediSearch flags commands as blocking that do not stall a connection. A user who knows of
a command that does says so (``overrides``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from ..errors import ConfigurationError

__all__ = [
    "NO_OVERRIDES",
    "READ_ONLY",
    "REMEDIES",
    "REMEDIES_WITH_TOKENS",
    "Route",
    "answers_for_writes",
    "changes_connection",
    "checked_overrides",
    "command_words",
    "is_read_only",
    "remedy",
    "route",
    "route_in_pipeline",
    "static_route",
]


class Route(enum.Enum):
    """What happens to a command."""

    SHARED = "shared"
    """In the FIFO of the multiplexed connection, among everybody's commands."""

    DEDICATED = "dedicated"
    """On a connection of its own for the time of the command: it would stall everyone, or it has
    to overtake a shared connection that is stuck."""

    LAST = "last"
    """On a dedicated connection that is closed afterwards: the command ends or resets it."""

    REFUSED = "refused"
    """Nowhere: it would desynchronise the shared connection or change it for every caller."""


NO_OVERRIDES: Final[Mapping[str, Route]] = MappingProxyType({})


def _names(table: str, separator: str | None = None) -> frozenset[str]:
    return frozenset(" ".join(name.split()) for name in table.split(separator))


BLOCKING = _names("BLPOP BRPOP BRPOPLPUSH BLMOVE BLMPOP BLMOVEM BZPOPMIN BZPOPMAX BZMPOP")
BLOCKING_WITH_BLOCK = frozenset(("XREAD", "XREADGROUP", "TS.READ"))

_STALLS = "it would keep everybody's commands waiting for as long as it waits itself"
_OVERTAKES = "it must not stand behind the very commands that it is to stop or set free"
_PREPARED = "its field set is prepared for each connection, by redis-py"
_ODD = "it can answer with what is no reply, which would shift everybody's"
_ENDS = "it ends or resets its connection, so it gets one that is closed afterwards"

# A server that is busy with a script or has paused its clients never reads what stands behind
# other commands: these must come over a connection of their own.
OUT_OF_BAND = frozenset(
    (
        "CLIENT KILL",
        "CLIENT UNBLOCK",
        "CLIENT UNPAUSE",
        "FUNCTION KILL",
        "FUNCTION STATS",
        "SCRIPT KILL",
    )
)

# HIMPORT SET needs its field set prepared on the connection that it runs on.
STATE_OF_A_CONNECTION = frozenset(("HIMPORT SET",))

# DEBUG PROTOCOL ATTRIB was measured to shift the replies of a shared connection by one; a pool
# throws a connection away that has something unread.
ODD_REPLIES = frozenset(("DEBUG",))

LAST_COMMANDS = frozenset(("HELLO", "QUIT", "RESET", "SHUTDOWN"))

_OWN_CONNECTION = "use `async with redis.client() as connection:`, a connection of your own"
_PIPELINE = "use `redis.pipeline(transaction=True)` or `redis.transaction(...)`"
_PUBSUB = "use `redis.pubsub()`"
_DATABASE = "set `db=` when the client is made (Azure Managed Redis has database 0 only)"
_REPLICATION = "replication and cluster handshakes have no use on a shared connection"
# On another connection than the write, WAIT was measured to give a false durability answer. A
# PUBLISH in front of it moves that connection's offset on one node, but not on a cluster's (there
# it travels by the cluster bus) nor for WAITAOF (it never reaches the file), and needs a channel.
_DURABILITY = (
    "it answers for the writes of its own connection only. Queue them and it in one "
    "`redis.pipeline(transaction=False)`, or " + _OWN_CONNECTION
)
_HIMPORT = "use redis-py's `himport_*` methods"

REMEDIES: dict[str, str] = {
    "SELECT": _DATABASE,
    "MULTI": _PIPELINE,
    "EXEC": _PIPELINE,
    "DISCARD": _PIPELINE,
    "WATCH": _PIPELINE,
    "UNWATCH": _PIPELINE,
    "SUBSCRIBE": _PUBSUB,
    "PSUBSCRIBE": _PUBSUB,
    "SSUBSCRIBE": _PUBSUB,
    "UNSUBSCRIBE": _PUBSUB,
    "PUNSUBSCRIBE": _PUBSUB,
    "SUNSUBSCRIBE": _PUBSUB,
    "MONITOR": "use `redis.monitor()`",
    "SYNC": _REPLICATION,
    "PSYNC": _REPLICATION,
    "REPLCONF": _REPLICATION,
    "ASKING": _REPLICATION,
    "READONLY": _REPLICATION,
    "READWRITE": _REPLICATION,
    "CLIENT REPLY": "the shared connection needs every reply; " + _OWN_CONNECTION,
    "CLIENT TRACKING": _OWN_CONNECTION,
    "CLIENT CACHING": _OWN_CONNECTION,
    "SCRIPT DEBUG": _OWN_CONNECTION,
    "HIMPORT PREPARE": _HIMPORT,
    "HIMPORT DISCARD": _HIMPORT,
    "HIMPORT DISCARDALL": _HIMPORT,
    "WAIT": _DURABILITY,
    "WAITAOF": _DURABILITY,
}
"""The refused commands, each with what to use instead."""

REMEDIES_WITH_TOKENS: dict[str, str] = {
    "AUTH": "the client's token source signs in and stays signed in; make another client for "
    "another user",
}
"""What is refused besides where a token source signs in."""

IN_PIPELINES = frozenset(("DISCARD", "UNWATCH", "WAIT", "WAITAOF"))
"""What is refused by itself and has its use in a pipeline, on a dedicated connection. WAIT then
answers for the writes in front of it; on the shared connection it would stall everybody."""

ANSWERS_FOR_WRITES = frozenset(("WAIT", "WAITAOF"))

_LASTING = frozenset(
    ("CLIENT CAPA", "CLIENT IMPORT-SOURCE", "CLIENT NO-EVICT", "CLIENT NO-TOUCH", "CLIENT SETNAME")
)
"""What changes a connection for good, too, and harms nobody on the shared one."""

_ALONE = "send it by itself, outside of pipelines"

_CONTAINERS = frozenset(
    name.split()[0] for name in (*REMEDIES, *OUT_OF_BAND, *STATE_OF_A_CONNECTION) if " " in name
)
"""Commands whose route depends on their subcommand."""

READ_ONLY = _names(
    """
    BITCOUNT BITFIELD_RO BITPOS DBSIZE DUMP ECHO EVALSHA_RO EVAL_RO EXISTS EXPIRETIME FCALL_RO
    GEODIST GEOHASH GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT GETRANGE HEXISTS
    HEXPIRETIME HGET HGETALL HKEYS HLEN HMGET HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSTRLEN HTTL
    HVALS INFO KEYS LASTSAVE LCS LINDEX LLEN LOLWUT LPOS LRANGE MGET PEXPIRETIME PFCOUNT PING PTTL
    RANDOMKEY ROLE SCAN SCARD SDIFF SINTER SINTERCARD SISMEMBER SMEMBERS SMISMEMBER SORT_RO
    SRANDMEMBER SSCAN STRLEN SUBSTR SUNION TIME TTL TYPE VCARD VDIM VEMB VGETATTR VINFO VISMEMBER
    VLINKS VRANDMEMBER VSIM XLEN XPENDING XRANGE XREVRANGE ZCARD ZCOUNT ZDIFF ZINTER ZINTERCARD
    ZLEXCOUNT ZMSCORE ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX
    ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION XREAD
    """
) | _names(
    """
        ACL CAT|ACL GETUSER|ACL LIST|ACL USERS|ACL WHOAMI|CLIENT GETNAME|CLIENT ID|CLIENT INFO|
        CLIENT LIST|CLIENT TRACKINGINFO|CLUSTER INFO|CLUSTER NODES|CLUSTER SHARDS|CLUSTER SLOTS|
        COMMAND COUNT|COMMAND DOCS|COMMAND GETKEYS|COMMAND INFO|COMMAND LIST|CONFIG GET|
        FUNCTION DUMP|FUNCTION LIST|LATENCY HISTORY|LATENCY LATEST|MEMORY STATS|MEMORY USAGE|
        MODULE LIST|OBJECT ENCODING|OBJECT FREQ|OBJECT IDLETIME|OBJECT REFCOUNT|PUBSUB CHANNELS|
        PUBSUB NUMPAT|PUBSUB NUMSUB|PUBSUB SHARDCHANNELS|PUBSUB SHARDNUMSUB|SCRIPT EXISTS|
        SLOWLOG GET|SLOWLOG LEN|XINFO CONSUMERS|XINFO GROUPS|XINFO STREAM
    """,
    separator="|",
)
"""Commands that change nothing, so that a lost reply allows to send them again (COMMAND of
Redis 8.2 with the flag ``readonly``, and the ones that only ask the server about itself)."""


def _text(word: Any) -> str:
    if isinstance(word, (bytes, bytearray, memoryview)):
        return bytes(word).decode("latin-1")
    return str(word)


def command_words(args: Sequence[Any], *, overrides: Mapping[str, Route] = NO_OVERRIDES) -> str:
    """The command's name with its subcommand, upper case, as the tables spell it.

    redis-py passes both ``("CLIENT LIST",)`` and ``("CLIENT", "LIST")``.
    """
    words = _text(args[0]).upper().split()
    if len(words) == 1 and len(args) > 1 and _has_subcommands(words[0], overrides):
        words.append(_text(args[1]).upper())
    return " ".join(words[:2])


def _has_subcommands(name: str, overrides: Mapping[str, Route]) -> bool:
    """Whether the route of ``name`` depends on the word after it."""
    return name in _CONTAINERS or any(each.startswith(name + " ") for each in overrides)


def static_route(
    words: str, *, with_tokens: bool = False, overrides: Mapping[str, Route] = NO_OVERRIDES
) -> Route | None:
    """The route that follows from a command's name alone, or None where its arguments decide.

    ``with_tokens`` says that a token source signs the client in; ``overrides`` come from
    ``checked_overrides``.
    """
    first = words.partition(" ")[0]
    if with_tokens and first in REMEDIES_WITH_TOKENS:
        return Route.REFUSED
    if words == first and _has_subcommands(words, overrides):
        return None
    own = overrides.get(words) or overrides.get(first)
    if first in REMEDIES or words in REMEDIES:
        return Route.REFUSED
    if first in LAST_COMMANDS:
        return Route.LAST
    if own is Route.DEDICATED or first in BLOCKING:
        return Route.DEDICATED
    if first in BLOCKING_WITH_BLOCK:
        return None
    if words in OUT_OF_BAND or words in STATE_OF_A_CONNECTION or first in ODD_REPLIES:
        return Route.DEDICATED
    return Route.SHARED


def route(
    args: Sequence[Any],
    *,
    with_tokens: bool = False,
    overrides: Mapping[str, Route] = NO_OVERRIDES,
) -> Route:
    """Where the command ``args`` goes; the keywords as for ``static_route``."""
    words = command_words(args, overrides=overrides)
    found = static_route(words, with_tokens=with_tokens, overrides=overrides)
    if found is None and words.partition(" ")[0] in BLOCKING_WITH_BLOCK:
        arguments = (*_text(args[0]).split()[1:], *args[1:])
        if arguments and _text(arguments[0]).upper() == "GROUP":
            arguments = arguments[3:]  # a group or consumer may be called "STREAMS"
        return Route.DEDICATED if _has_block(arguments) else Route.SHARED
    return found or overrides.get(words) or Route.SHARED


def checked_overrides(routes: Any) -> Mapping[str, Route]:
    """A user's routes, ``{"MY.BLOCKING": "dedicated"}`` or None, as the other functions take them.

    A name may hold a subcommand; without one it stands for all of them. Raises
    ``ConfigurationError`` for what is no route, and for what would break the shared connection.
    """
    if not isinstance(routes, Mapping | None):
        raise ConfigurationError(f'routes= is a mapping of names to "dedicated", not {routes!r}')
    overrides: dict[str, Route] = {}
    for name, value in (routes or {}).items():
        words = " ".join(name.upper().split()) if isinstance(name, str) else ""
        if not words or words.count(" ") > 1:
            raise ConfigurationError(
                f"routes= maps names of commands, with or without a subcommand, not {name!r}"
            )
        if value not in ("shared", "dedicated"):
            raise ConfigurationError(
                f'routes= sends {words} to "shared" or "dedicated", not to {value!r}'
            )
        if reason := _unmovable(words, Route(value)):
            raise ConfigurationError(f"routes= can't make {words} {value}: {reason}")
        overrides[words] = Route(value)
    return overrides


def _unmovable(words: str, goal: Route) -> str | None:
    """Why a command can't be sent to ``goal``, None if it can."""
    first = words.partition(" ")[0]
    if first in REMEDIES_WITH_TOKENS:
        return REMEDIES_WITH_TOKENS[first]
    if first in REMEDIES or words in REMEDIES:
        return remedy(words)
    if first in LAST_COMMANDS:
        return _ENDS
    if goal is Route.DEDICATED:
        return None
    if first in BLOCKING or first in BLOCKING_WITH_BLOCK:
        return _STALLS
    if words in OUT_OF_BAND:
        return _OVERTAKES
    if first in ODD_REPLIES:
        return _ODD
    return _PREPARED if words in STATE_OF_A_CONNECTION else None


def route_in_pipeline(args: Sequence[Any], alone: Route, *, immediate: bool = False) -> Route:
    """Where a pipeline goes that holds the command ``args``, whose own route is ``alone``.

    A dedicated connection goes back to the pool, so what would change it for the next user is
    refused there, too. ``immediate`` is for what is sent by itself on the pipeline's connection.
    """
    first = command_words(args).partition(" ")[0]
    if first in IN_PIPELINES or (immediate and first == "WATCH"):
        return Route.DEDICATED
    return Route.REFUSED if alone is Route.LAST else alone


def _has_block(arguments: Sequence[Any]) -> bool:
    for argument in arguments:
        word = _text(argument).upper()
        if word == "BLOCK":
            return True
        if word == "STREAMS":  # what follows are keys, one of which may be called "BLOCK"
            return False
    return False


def is_read_only(words: str) -> bool:
    """Whether the command may be sent again after its reply was lost."""
    return words in READ_ONLY or words.partition(" ")[0] in READ_ONLY


def answers_for_writes(words: str) -> bool:
    """Whether the answer is about the writes of the connection that the command runs on."""
    return words.partition(" ")[0] in ANSWERS_FOR_WRITES


def changes_connection(words: str) -> bool:
    """Whether a connection may not be as it was after the command, for whoever has it next."""
    if answers_for_writes(words):
        return False
    first = words.partition(" ")[0]
    if first in REMEDIES or first in REMEDIES_WITH_TOKENS or first in LAST_COMMANDS:
        return True
    return words in REMEDIES or words in _LASTING


def remedy(words: str) -> str:
    """What to use instead of a refused command."""
    known = {**REMEDIES, **REMEDIES_WITH_TOKENS, **dict.fromkeys(LAST_COMMANDS, _ALONE)}
    return known.get(words) or known[words.partition(" ")[0]]
