"""Which name a node's certificate must be for: a table, and what no reply of a server can do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioentra_redis._tls_names import is_address, tls_names
from aioentra_redis.errors import ConfigurationError

ENTRY = "shop.westeurope.redis.azure.net"


@pytest.mark.parametrize(
    ("entry", "advertised", "name"),
    [
        # Addresses say nothing.
        (ENTRY, "10.0.0.4", ENTRY),
        (ENTRY, "::1", ENTRY),
        (ENTRY, "fe80::1%eth0", ENTRY),
        ("10.0.0.1", "10.0.0.2", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
        # The entry, and what is below it.
        (ENTRY, ENTRY, ENTRY),
        (ENTRY, "SHOP.WestEurope.redis.azure.net.", "SHOP.WestEurope.redis.azure.net"),
        (ENTRY, "node1." + ENTRY, "node1." + ENTRY),
        ("cache.example", "node1.cache.example", "node1.cache.example"),
        ("cache.example.", "node1.cache.example", "node1.cache.example"),
        ("cache.example.", "10.0.0.1", "cache.example"),
        # Azure's suffixes, where the entry has the same.
        (ENTRY, "node1.northeurope.redis.azure.net", "node1.northeurope.redis.azure.net"),
        (ENTRY, "node1.redis.cache.windows.net", ENTRY),
        ("cache.example", "node1.westeurope.redis.azure.net", "cache.example"),
        # Everything else proves that it is the entry.
        (ENTRY, "evil.example", ENTRY),
        (ENTRY, "redis.azure.net", ENTRY),
        (ENTRY, "evilredis.azure.net", ENTRY),
        (ENTRY, "node.redis.azure.net.evil.example", ENTRY),
        ("cache.example", "evilcache.example", "cache.example"),
        ("cache.example", "example", "cache.example"),
        ("10.0.0.1", "x.10.0.0.1", "10.0.0.1"),
        ("localhost", "127.0.0.1", "localhost"),
    ],
)
def test_by_default(entry: str, advertised: str, name: str) -> None:
    assert tls_names([entry]).name_of(advertised, 1) == name


def test_several_entries_are_all_trusted_and_the_first_stands_for_addresses() -> None:
    names = tls_names(["a.example", "b.example"])
    assert names.name_of("b.example", 1) == "b.example"
    assert names.name_of("x.b.example", 1) == "x.b.example"
    assert names.name_of("10.0.0.1", 1) == "a.example"
    assert tls_names(["a.example", f"b{ENTRY}"]).name_of(ENTRY, 1) == ENTRY


def test_suffixes_of_the_user() -> None:
    names = tls_names(["cache.example"], [".nodes.example", "OTHER.example."])
    assert names.name_of("a.nodes.example", 1) == "a.nodes.example"
    assert names.name_of("a.other.example", 1) == "a.other.example"
    assert names.name_of("x.cache.example", 1) == "x.cache.example"
    assert names.name_of("other.example", 1) == "other.example"
    assert names.name_of("nodes.example", 1) == "cache.example"
    assert names.name_of("another.example", 1) == "cache.example"
    assert names.name_of("10.0.0.1", 1) == "cache.example"


def test_as_advertised_and_as_a_function_says() -> None:
    names = tls_names(["cache.example"], "advertised")
    assert names.name_of("any.example", 1) == "any.example"
    assert names.name_of("10.0.0.1", 1) == "10.0.0.1"
    table = {("10.0.0.1", 6379): "one.example"}
    names = tls_names(["cache.example"], lambda host, port: table.get((host, port)))
    assert names.name_of("10.0.0.1", 6379) == "one.example"
    assert names.name_of("10.0.0.1", 6380) is None


def test_with_a_remapped_address_either_may_be_trusted() -> None:
    names = tls_names(["cache.example"])
    for advertised, dialled, name in (
        ("n1.cache.example", "127.0.0.1", "n1.cache.example"),
        ("10.0.0.1", "n1.cache.example", "n1.cache.example"),
        ("10.0.0.1", "tunnel.example", "cache.example"),
        ("10.0.0.1", "127.0.0.1", "cache.example"),
    ):
        assert names.name_of(advertised, 1, dialled=dialled) == name


@pytest.mark.parametrize("given", ["any", "", None, 1, [], [""], ["."], [1], {"a": 1}, b"entry"])
def test_what_is_no_rule(given: Any) -> None:
    with pytest.raises(ConfigurationError, match='node_tls_names= is "entry", "advertised"'):
        tls_names(["cache.example"], given)


@given(st.text(), st.integers(0, 65535), st.none() | st.text())
def test_whatever_is_advertised_only_a_trusted_name_comes_out(
    advertised: str, port: int, dialled: str | None
) -> None:
    name = tls_names([ENTRY]).name_of(advertised, port, dialled=dialled)
    assert name == ENTRY or (
        name is not None
        and name.lower().endswith((".redis.azure.net", ENTRY))
        and not is_address(name)
    )
