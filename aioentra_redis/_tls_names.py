"""Which name the certificate of a node must be for: what a server says of addresses proves nothing.

A client is given one name, that of its entry. The rest it is told by servers: in the replies of a
cluster, and in notes that a node moves. Whoever can forge those could name a host of their own, for
which they have a perfectly valid certificate, and be sent a token. So a name counts only if the
user has said so: because it is the entry, or below it, or has a suffix that the user trusts. In all
other cases the host may be dialled, but has to prove that it is the entry. Azure's nodes can: it
advertises IP addresses, and each node shows a certificate for the name of the cache.

Pure functions.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ._options import AZURE_PORTS
from .errors import ConfigurationError

__all__ = ["NodeTLSNames", "TLSNames", "is_address", "tls_names"]

NodeTLSNames = Literal["entry", "advertised"] | Sequence[str] | Callable[[str, int], str | None]
"""What a user may say about the names of nodes, see ``TLSNames``."""


@dataclass(frozen=True, slots=True)
class TLSNames:
    """The rule of one client: made by ``tls_names``, asked with ``name_of``.

    ``entry`` is the first host that the user named: what nodes are verified as. ``trusted`` are
    names in lower case, ``suffixes`` start with a dot. ``advertised`` has every node verified as
    what it is said to be, ``choose`` as what a function of the user's says.
    """

    entry: str
    trusted: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    advertised: bool = False
    choose: Callable[[str, int], str | None] | None = None

    def name_of(self, advertised: str, port: int, *, dialled: str | None = None) -> str | None:
        """The name that the certificate at ``advertised`` must be for; None: no token goes there.

        ``dialled`` is the host that is dialled instead, where the user has remapped addresses.
        """
        if self.choose is not None:
            return self.choose(advertised, port)
        if self.advertised:
            return advertised
        for host in (advertised, dialled):
            if host is not None and self.trusts(host):
                return host.removesuffix(".")
        return self.entry.removesuffix(".")

    def trusts(self, host: str) -> bool:
        """Whether ``host`` may be verified as itself although only a server has named it."""
        plain = _plain(host)
        if plain in self.trusted:
            return True
        return not is_address(host) and plain.endswith(self.suffixes)


def tls_names(entries: Sequence[str], given: NodeTLSNames = "entry") -> TLSNames:
    """The rule for a client whose user named ``entries`` and gave ``node_tls_names=given``.

    ``"entry"``: nodes are verified as the first entry, but for names that are an entry, are below
    one, or share an Azure suffix with one. A sequence adds to those: ``"a.example"`` that name and
    what is below it, ``".a.example"`` only the latter. ``"advertised"``: each node is verified as
    the host that the cluster says it is. A function gets host and port that were advertised, and
    returns the name, or None where no token may go. Raises ``ConfigurationError`` for anything
    else.
    """
    if callable(given):
        return TLSNames(entries[0], choose=given)
    if given == "advertised":
        return TLSNames(entries[0], advertised=True)
    hosts = [_plain(host) for host in entries]
    names = [host for host in hosts if not is_address(host)]
    suffixes = [each for each in AZURE_PORTS if any(name.endswith(each) for name in names)]
    for more in names if given == "entry" else [*names, *_checked(given)]:
        if more.startswith("."):
            suffixes.append(more)
        else:
            hosts.append(more)
            suffixes.append("." + more)
    return TLSNames(entries[0], tuple(hosts), tuple(suffixes))


def _checked(given: Any) -> list[str]:
    """The names and suffixes of the user's."""
    if not isinstance(given, str) and isinstance(given, Sequence):
        found = [_plain(each) if isinstance(each, str) else "" for each in given]
        if found and all(each.strip(".") for each in found):
            return found
    raise ConfigurationError(
        'node_tls_names= is "entry", "advertised", a list of suffixes such as '
        f'[".redis.example.com"], or a function of host and port, not {given!r}'
    )


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _plain(host: str) -> str:
    """A name as it is compared: a dot at its end says that it is complete, capitals nothing."""
    return host.lower().removesuffix(".")
