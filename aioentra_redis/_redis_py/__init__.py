"""Everything that we know of redis-py's insides; no other module touches them.

Three things are borrowed from redis-py: its connection classes perform the handshake (TCP, TLS,
HELLO, AUTH, SELECT, names), its parser turns error replies into its exceptions, and its encoder
packs what hiredis' packer does not take. What is added is a hand-over: once a connection is
authenticated, its socket is given to a protocol of ours (``Dialed.adopt``).

A new redis-py version is this folder's problem: ``_sign_in`` gives connections their tokens,
``_in_band`` gives them newer ones among their owner's commands, ``_asking`` has them ask about the
server meanwhile; ``_pools`` knows the pools, ``_commands`` the command layer, ``_cluster`` the
cluster client, ``_handover`` the sockets, ``_pubsub`` what subscribers need, ``_telemetry`` who
wants to be told of commands, ``_capabilities`` which version can do what.
"""

from ._asking import Answers, asking
from ._capabilities import CAPABILITIES, check_keywords, has
from ._cluster import (
    PRIMARY,
    READ_COMMANDS,
    REPLICA,
    ROUND_ROBIN,
    KeyRange,
    NodeBase,
    TopologyBase,
    flag_of,
    give_back_now,
    has_policy,
    key_range,
    keyed_by_slot,
    lead_to,
    lease_now,
    loosen,
    node_name,
    node_pool,
    template_pool,
)
from ._commands import (
    EMPTY_RESPONSE,
    NEVER_DECODE,
    command_options,
    packer,
    retry_delays,
    run_last_command,
    server_mode,
)
from ._handover import Dialed, dial, take_over
from ._in_band import InBand, has_ended, was_lost_in_flight
from ._peer import SharedTLS
from ._plain import sign_in_plain
from ._pools import (
    attach,
    attached,
    check_connection_options,
    default_to_host_names,
    default_to_no_retries,
    default_to_resp3,
    detach,
    follows_a_master,
    is_exhausted,
    lend_after,
    limit_connections,
    names_its_host,
    pool_endpoint,
    pool_from_url,
    pool_retry,
    tells_how_to_connect,
)
from ._pubsub import decoded, default_retry, exchange, handled_push
from ._sign_in import (
    Keeper,
    Renewal,
    SignIn,
    held_by,
    keeper_of,
    let_go_of,
    sign_in_with,
    signs_in_with,
)
from ._telemetry import Address, Recording, is_observed, led_through, recording, unwrapped

__all__ = [
    "CAPABILITIES",
    "EMPTY_RESPONSE",
    "NEVER_DECODE",
    "PRIMARY",
    "READ_COMMANDS",
    "REPLICA",
    "ROUND_ROBIN",
    "Address",
    "Answers",
    "Dialed",
    "InBand",
    "Keeper",
    "KeyRange",
    "NodeBase",
    "Recording",
    "Renewal",
    "SharedTLS",
    "SignIn",
    "TopologyBase",
    "asking",
    "attach",
    "attached",
    "check_connection_options",
    "check_keywords",
    "command_options",
    "decoded",
    "default_retry",
    "default_to_host_names",
    "default_to_no_retries",
    "default_to_resp3",
    "detach",
    "dial",
    "exchange",
    "flag_of",
    "follows_a_master",
    "give_back_now",
    "handled_push",
    "has",
    "has_ended",
    "has_policy",
    "held_by",
    "is_exhausted",
    "is_observed",
    "keeper_of",
    "key_range",
    "keyed_by_slot",
    "lead_to",
    "lease_now",
    "led_through",
    "lend_after",
    "let_go_of",
    "limit_connections",
    "loosen",
    "names_its_host",
    "node_name",
    "node_pool",
    "packer",
    "pool_endpoint",
    "pool_from_url",
    "pool_retry",
    "recording",
    "retry_delays",
    "run_last_command",
    "server_mode",
    "sign_in_plain",
    "sign_in_with",
    "signs_in_with",
    "take_over",
    "tells_how_to_connect",
    "template_pool",
    "unwrapped",
    "was_lost_in_flight",
]
