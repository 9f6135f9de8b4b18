"""redis-py's cluster client: what ours keeps of it, what it leaves out, and versions' differences.

Kept: its constructor (keywords, response callbacks, command flags, policies), its choice of nodes
for commands without a key, and the attributes by which users know nodes and slots. Left out:
everything that opens, sends, reads, refreshes or closes.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MethodType
from typing import Any, Final, NamedTuple

import redis.asyncio
from redis import exceptions as redis_exceptions
from redis import utils
from redis.asyncio.cluster import ClusterNode, NodesManager, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.cluster import PRIMARY, REPLICA, SLOT_ID, LoadBalancingStrategy, get_node_name
from redis.commands import READ_COMMANDS

from ._maintenance import forget_pool
from ._pools import default_to_no_retries, limit_connections
from ._sign_in import SignIn

__all__ = [
    "PRIMARY",
    "READ_COMMANDS",
    "REPLICA",
    "ROUND_ROBIN",
    "CrossSlotTransactionError",
    "KeyRange",
    "NodeBase",
    "TopologyBase",
    "annotate_in_pipeline",
    "annotate_in_transaction",
    "flag_of",
    "forget_pool",
    "give_back_now",
    "has_policy",
    "key_range",
    "keyed_by_slot",
    "know_cluster_errors",
    "lead_to",
    "lease_now",
    "loosen",
    "make_one_of",
    "node_name",
    "node_pool",
    "nodes_for",
    "template_pool",
]

logger = logging.getLogger("aioentra_redis.cluster")


def _of_later_versions(module: str, name: str) -> Any:
    """Something of redis-py's that not every version has, or None."""
    try:
        return getattr(import_module(module), name, None)
    except ModuleNotFoundError:
        return None


_AfterRefresh: Final = _of_later_versions("redis.event", "AsyncAfterSlotsCacheRefreshEvent")
_ClusterParser: Final = getattr(redis.asyncio.cluster, "ClusterParser", None)
"""Up to redis-py 5; later every parser knows the errors of clusters."""
_resolve_driver: Final = _of_later_versions("redis.driver_info", "resolve_driver_info")

ROUND_ROBIN: Final = LoadBalancingStrategy.ROUND_ROBIN

node_name = get_node_name


# -- nodes ---------------------------------------------------------------------------------------


class NodeBase(ClusterNode):
    """redis-py's node as an address: it has no connections of its own.

    Its constructor would look "localhost" up, which blocks and loses the name that TLS verifies.
    """

    host: str
    port: int
    name: str

    def __init__(
        self, host: str, port: int, server_type: str | None = None, **options: Any
    ) -> None:
        super().__init__("", port, server_type, **options)
        self.move_to(host, port)

    def move_to(self, host: str, port: int) -> None:
        """Be the node at another address, by which it is known from now on."""
        self.host, self.port = host, port
        self.connection_kwargs["host"], self.connection_kwargs["port"] = host, port
        self.name = get_node_name(host, port)

    def __hash__(self) -> int:  # redis-py 5 has equality without it
        return hash(self.name)

    def __del__(self, *_: Any) -> None:
        """There is nothing that could have been left open."""


_NOT_FOR_CONNECTIONS: Final = ("connection_class", "max_connections", "response_callbacks")
"""What redis-py keeps among the options of connections and takes out again."""


NOWHERE: Final = "node.invalid"
"""The host of a pool that never connects."""


def template_pool(
    cluster: RedisCluster, limit: int | None, *, reading_replicas: bool
) -> redis.asyncio.ConnectionPool:
    """A pool that never connects, with the options that all nodes of ``cluster`` have in common.

    ``limit`` is how many connections the pool of a node may hold, None for redis-py's own
    ``max_connections=``.
    """
    given = cluster.connection_kwargs
    options = {name: it for name, it in given.items() if name not in _NOT_FOR_CONNECTIONS}
    if _resolve_driver is not None and "lib_name" in options:
        # Version 7 hands its connections what they tell everybody not to use any more.
        names = options.pop("lib_name"), options.pop("lib_version")
        options["driver_info"] = _resolve_driver(options.pop("driver_info", None), *names)
    options.pop("retry", None)  # what may be repeated is decided above the connections
    default_to_no_retries(options)
    kind = given["connection_class"]
    if reading_replicas:
        del options["redis_connect_func"]  # the same, but it would hold on to the client
        kind = read_only_class(kind)
    if limit is None and given["max_connections"] != 2**31:  # up to version 6: no limit
        limit = given["max_connections"]
    limit_connections(options, limit)
    options["host"] = NOWHERE  # a pool with maintenance notifications wants one
    pool = redis.asyncio.ConnectionPool(connection_class=kind, **options)
    forget_pool(pool)
    return pool


def node_pool(
    template: redis.asyncio.ConnectionPool, host: str, port: int, tls_name: str | None
) -> redis.asyncio.ConnectionPool:
    """A pool like ``template`` for one node.

    Where tokens are sent, its certificate must be for ``tls_name``; None is the host itself.
    """
    given = template.connection_kwargs.items()
    # Where a connection comes back to after maintenance is a matter of each pool.
    options = {name: it for name, it in given if not name.startswith("orig_")}
    options.update(host=host, port=port)
    provider = options.get("credential_provider")
    if isinstance(provider, SignIn):
        options["tls_name"] = tls_name
        options["credential_provider"] = provider.for_one_connection()  # each has its own keeper
    return redis.asyncio.ConnectionPool(
        connection_class=template.connection_class,
        max_connections=template.max_connections,
        **options,
    )


def know_cluster_errors(pool: redis.asyncio.ConnectionPool) -> None:
    """Have connections that ``pool`` makes from now on raise a cluster's errors as what they are.

    Without that redis-py 5 takes MOVED for any error, and one that has found out that there is a
    cluster goes on as a node's.
    """
    if _ClusterParser is not None:
        pool.connection_kwargs.setdefault("parser_class", _ClusterParser)


def make_one_of(
    pool: redis.asyncio.ConnectionPool, template: redis.asyncio.ConnectionPool, tls_name: str
) -> None:
    """Have ``pool``, which signs in like ``template``, be the one of a node of the cluster.

    Its TLS context is that of all of them from now on.
    """
    theirs, common = (
        each.connection_kwargs.get("credential_provider") for each in (pool, template)
    )
    if isinstance(theirs, SignIn) and isinstance(common, SignIn):
        common.tls = theirs.tls
        pool.connection_kwargs["tls_name"] = tls_name


def lead_to(pool: redis.asyncio.ConnectionPool, host: str, port: int, tls_name: str | None) -> None:
    """Have connections that ``pool`` makes from now on go to another address."""
    pool.connection_kwargs.update(host=host, port=port)
    if "orig_host_address" in pool.connection_kwargs:  # where it comes back to after maintenance
        pool.connection_kwargs["orig_host_address"] = host
    if "tls_name" in pool.connection_kwargs:
        pool.connection_kwargs["tls_name"] = tls_name


class _ReadOnly:
    """What connections add to redis-py's that may lead to replicas: READONLY after the sign-in.

    To primaries as well, since each may become a replica; there it changes nothing.
    """

    async def _to_read(self) -> None:
        await self.send_command("READONLY")  # type: ignore[attr-defined]
        reply = await self.read_response()  # type: ignore[attr-defined]
        if reply not in ("OK", b"OK"):
            raise redis_exceptions.ConnectionError("READONLY command failed")

    if hasattr(AbstractConnection, "on_connect_check_health"):  # `on_connect` calls it

        async def on_connect_check_health(self, check_health: bool = True) -> None:
            await super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]
            await self._to_read()

    else:

        async def on_connect(self) -> None:
            await super().on_connect()  # type: ignore[misc]
            await self._to_read()


def read_only_class(base: type[AbstractConnection]) -> type[AbstractConnection]:
    """redis-py's connection class, for nodes whose replicas are read."""
    if issubclass(base, _ReadOnly):
        return base
    kind = _read_only.get(base)
    if kind is None:
        name = f"Reading{base.__name__}"
        kind = _read_only[base] = type(name, (_ReadOnly, base), {"__module__": __package__})
    return kind


_read_only: dict[type, type[AbstractConnection]] = {}


def lease_now(pool: redis.asyncio.ConnectionPool) -> Any:
    """A connection of ``pool``, which may not stand yet: what ``acquire_connection`` promises."""
    return pool.get_available_connection()  # type: ignore[no-untyped-call]


def give_back_now(pool: redis.asyncio.ConnectionPool, connection: Any) -> None:
    """Undo ``lease_now``; one that is not the pool's any more is left alone."""
    leased: Any = pool._in_use_connections
    if connection in leased:
        leased.discard(connection)
        pool._available_connections.append(connection)


# -- topology ------------------------------------------------------------------------------------


class TopologyBase(NodesManager):
    """The attributes by which redis-py's users know nodes and slots; nothing that does I/O."""

    slots_cache: dict[int, list[Any]]
    nodes_cache: dict[str, Any]
    startup_nodes: dict[str, Any]
    default_node: Any

    def __init__(self, stock: NodesManager, startup_nodes: list[Any]) -> None:
        """Take over the settings of ``stock``, which redis-py's constructor has made."""
        options: dict[str, Any] = {
            "address_remap": stock.address_remap,
            "event_dispatcher": stock._event_dispatcher,
        }
        self.dynamic_startup_nodes: bool = getattr(stock, "_dynamic_startup_nodes", True)
        if hasattr(stock, "_dynamic_startup_nodes"):
            options["dynamic_startup_nodes"] = self.dynamic_startup_nodes
        super().__init__(
            startup_nodes, stock.require_full_coverage, stock.connection_kwargs, **options
        )

    async def tell_of_refresh(self) -> None:
        """Have redis-py's listeners (its subscribers) know that slots may have moved."""
        if _AfterRefresh is None:
            return
        try:
            await self._event_dispatcher.dispatch_async(_AfterRefresh())
        except Exception:
            logger.exception("a listener of redis-py's raised after a refresh of the topology")


# -- the client ----------------------------------------------------------------------------------


def loosen(cluster: RedisCluster) -> None:
    """Take away by what redis-py's constructor has ``cluster`` refer to itself.

    A closed client is to be gone at once, not when the garbage collector comes by.
    """
    # It would look the topology up when a server says that slots have moved, which is ours to do.
    if cluster.connection_kwargs.pop("oss_cluster_maint_notifications_handler", None) is not None:
        cluster._oss_cluster_maint_notifications_handler = None  # type: ignore[assignment]
    callbacks: dict[Any, Callable[..., Any]] | None
    callbacks = getattr(cluster, "_policies_callback_mapping", None)
    if callbacks is None:
        return
    weakly = weakref.proxy(cluster)
    for policy, callback in callbacks.items():
        if isinstance(callback, MethodType):
            callbacks[policy] = MethodType(callback.__func__, weakly)
        else:
            for cell in callback.__closure__ or ():
                if cell.cell_contents is cluster:
                    cell.cell_contents = weakly


def flag_of(cluster: RedisCluster, name: str) -> str | None:
    """To which kind of nodes redis-py sends that command without being asked: a node flag."""
    flag: str | None = cluster.command_flags.get(name)
    return flag


def keyed_by_slot(flag: str | None) -> bool:
    """Whether a flag says that the command names a slot, not a key."""
    return flag == SLOT_ID


async def has_policy(cluster: RedisCluster, name: str) -> bool:
    """Whether redis-py's policies send that command elsewhere than to the slot of its key."""
    resolver = getattr(cluster, "_policy_resolver", None)
    if resolver is None:  # before redis-py 7.1
        return False
    policy = await resolver.resolve(name.lower())
    return policy is not None and policy.request_policy.name != "DEFAULT_KEYED"


async def nodes_for(cluster: RedisCluster, args: tuple[Any, ...], target_nodes: Any) -> list[Any]:
    """The nodes that redis-py sends a command to, by the user's word or by its tables."""
    if target_nodes and not cluster._is_node_flag(target_nodes):
        return list(cluster._parse_target_nodes(target_nodes))
    options: dict[str, Any] = {"node_flag": target_nodes}
    if (resolver := getattr(cluster, "_policy_resolver", None)) is not None:
        policy = await resolver.resolve(args[0].lower())
        if policy is not None:
            options["request_policy"] = policy.request_policy
        else:
            by_flag: Any = cluster._command_flags_mapping
            options["request_policy"] = by_flag.get(cluster.command_flags.get(args[0]))
    return list(await cluster._determine_nodes(*args, **options))


class KeyRange(NamedTuple):
    """Which words are keys: from ``first`` to ``last``, from the end if negative, by ``step``."""

    first: int
    last: int
    step: int


def key_range(commands: Mapping[str, Any], words: tuple[str, ...]) -> KeyRange | None:
    """Where the keys of a command are, as the server's COMMAND says, counted in words.

    ``words`` is the name, in more than one word for a subcommand. None where they can move, where
    there are none, and where the server does not know the command: redis-py's parser finds out.
    """
    details = commands.get(words[0].lower())
    if details is None or "movablekeys" in details["flags"] or "pubsub" in details["flags"]:
        return None
    position = details["first_key_pos"], details["last_key_pos"], details["step_count"]
    if position[0] == 0 and len(words) > 1:
        wanted = "|".join(words[:2]).lower()
        for each in details.get("subcommands", ()):
            name = each[0].decode() if isinstance(each[0], bytes) else each[0]
            flags = {flag.decode() if isinstance(flag, bytes) else flag for flag in each[2]}
            if name.lower() == wanted and "movablekeys" not in flags:
                position = each[3], each[4], each[5]
    return KeyRange(*position) if position[0] > 0 and position[2] > 0 else None


# -- pipelines -----------------------------------------------------------------------------------

CrossSlotTransactionError: type[redis_exceptions.RedisClusterException] = getattr(
    redis_exceptions, "CrossSlotTransactionError", redis_exceptions.RedisClusterException
)
"""Of redis-py 6 and later; before that it has no transactions on clusters."""


_shortened: Callable[[str], str] = getattr(utils, "truncate_text", str)  # since redis-py 6


def annotate_in_pipeline(error: Exception, number: int, args: tuple[Any, ...]) -> None:
    """Have ``error`` say which command of a pipeline it is about."""
    _annotate(error, number, args, error.args)


def annotate_in_transaction(error: Exception, number: int, args: tuple[Any, ...]) -> None:
    """The same, as redis-py has it in a cluster's transactions: the text goes on as it is."""
    _annotate(error, number, args, error.args[0])


def _annotate(error: Exception, number: int, args: tuple[Any, ...], reason: Any) -> None:
    words = _shortened(" ".join(map(utils.safe_str, args)))
    text = f"Command # {number} ({words}) of pipeline caused error: {reason}"
    error.args = (text, *error.args[1:])
