"""Where a node is: what to dial, and which name to verify there, from what a cluster has said.

A cluster names its nodes in the replies to CLUSTER SLOTS and CLUSTER SHARDS and in redirects. By
its setting ``cluster-preferred-endpoint-type`` these are IP addresses, host names, or nothing,
which means "the host you asked"; a node that was told to name its host and does not know it says
``?``. What is advertised is dialled; which certificate it must show is decided in ``_tls_names``.

Pure functions; what can't be used is a ``Refused``, never an exception: one odd node must not keep
a client from the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from .._tls_names import TLSNames, is_address

__all__ = [
    "Advertised",
    "Destination",
    "Refused",
    "Remap",
    "destination",
    "in_redirect",
    "in_shard",
    "in_slots",
]

Remap = Callable[[tuple[str, int]], tuple[str, int]]
"""redis-py's ``address_remap=``: from the advertised address to the one that is dialled."""

UNKNOWN: Final = "?"
_NAME: Final = re.compile(r"(?!-)[\w.-]{1,253}", re.ASCII)
"""What can be a host name; servers hold those that they are told to announce to the same."""


class Advertised(NamedTuple):
    """An address as a cluster gave it; the host is empty where it is that of the server asked."""

    host: str
    port: int


class Destination(NamedTuple):
    """Where to connect, and the name that the certificate there must be for."""

    host: str
    port: int
    tls_name: str


class Refused(NamedTuple):
    """An address that nothing is sent to, and why, for people."""

    reason: str


def destination(
    advertised: Advertised | Refused,
    *,
    asked: str,
    names: TLSNames,
    remap: Remap | None = None,
) -> Destination | Refused:
    """Where to connect for a node that was advertised by the server dialled as ``asked``.

    What ``remap`` and a function of the user's in ``names`` raise goes through.
    """
    if isinstance(advertised, Refused):
        return advertised
    host, port = advertised.host or asked, advertised.port
    dialled, dialled_port = (host, port) if remap is None else remap((host, port))
    for each in (host, dialled):
        if not (is_address(each) or _NAME.fullmatch(each)):
            return Refused(f"{each!r:.100} is neither an IP address nor a host name")
    if not 0 < dialled_port < 1 << 16:
        return Refused(f"{dialled} is said to listen on port {dialled_port}, which is none")
    name = names.name_of(host, port, dialled=dialled)
    if not name:
        return Refused(f"node_tls_names= has no name for {host}:{port}, so no token may go there")
    return Destination(dialled, dialled_port, name)


def in_slots(node: Any) -> Advertised | Refused:
    """The address of a node in the reply to CLUSTER SLOTS: host, port, and from Redis 7 more."""
    if not isinstance(node, Sequence) or len(node) < 2:
        return Refused(f"a node without address: {node!r:.100}")
    more = dict(_pairs(node[3])) if len(node) > 3 else {}
    return _advertised(node[0], node[1], more)


def in_shard(node: Any, *, tls: bool) -> Advertised | Refused:
    """The address of a node in the reply to CLUSTER SHARDS: a map, or a list of its pairs."""
    more = dict(_pairs(node))
    port = more.get("tls-port") if tls else None
    return _advertised(more.get("endpoint"), port or more.get("port"), more)


def in_redirect(text: str) -> Advertised | Refused:
    """The address in a MOVED or ASK error, with or without that word: ``3999 10.0.0.1:6381``."""
    host, colon, port = text.split()[-1].rpartition(":") if text.strip() else ("", "", "")
    if not colon:
        return Refused(f"a redirect without address: {text!r:.100}")
    return _advertised(host, port, {})


def _advertised(host: Any, port: Any, more: Mapping[str, Any]) -> Advertised | Refused:
    named = _text(host)
    if named == UNKNOWN:
        named = next((_text(more[key]) for key in ("ip", "hostname") if more.get(key)), UNKNOWN)
    if named == UNKNOWN:
        return Refused("the cluster does not know the host name of a node, nor tells its address")
    try:
        number = int(port)
    except (TypeError, ValueError, OverflowError):
        return Refused(f"{named} has the port {port!r:.100}, which is none")
    if named.startswith("[") and named.endswith("]"):  # IPv6 as in URLs
        named = named[1:-1]
    return Advertised(named, number)


def _pairs(pairs: Any) -> Iterator[tuple[str, Any]]:
    """What a map holds; with RESP2 it is a list of keys and values in turn."""
    if isinstance(pairs, Mapping):
        items: Any = pairs.items()
    elif isinstance(pairs, list | tuple):
        items = zip(pairs[::2], pairs[1::2], strict=False)
    else:
        return
    for key, value in items:
        yield _text(key), value


def _text(value: Any) -> str:
    """A string of a reply, decoded or not; what is absent is empty."""
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return "" if value is None else str(value)
