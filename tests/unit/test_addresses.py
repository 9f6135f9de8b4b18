"""From what a cluster says of a node to what is dialled: every endpoint type, and nonsense."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioentra_redis._cluster._addresses import (
    Advertised,
    Destination,
    Refused,
    destination,
    in_redirect,
    in_shard,
    in_slots,
)
from aioentra_redis._tls_names import tls_names

NAMES = tls_names(["cache.example"])


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ([b"10.0.0.1", 8501], ("10.0.0.1", 8501)),
        ([b"10.0.0.1", 8501, b"id"], ("10.0.0.1", 8501)),
        (["10.0.0.1", "8501", "id", []], ("10.0.0.1", 8501)),
        # Redis 7: an IP by preference, and the name beside it.
        ([b"10.0.0.1", 1, b"id", [b"hostname", b"a.example"]], ("10.0.0.1", 1)),
        ([b"a.example", 1, b"id", [b"ip", b"10.0.0.1"]], ("a.example", 1)),
        ([b"a.example", 1, b"id", {b"ip": b"10.0.0.1"}], ("a.example", 1)),
        # Names by preference, but this node does not know its own.
        ([b"?", 1, b"id", [b"ip", b"10.0.0.1"]], ("10.0.0.1", 1)),
        (["?", 1, "id", {"ip": "", "hostname": "a.example"}], ("a.example", 1)),
        # Nothing by preference, and a node that has met no other yet: whom was asked.
        ([None, 1, b"id", [b"ip", b"10.0.0.1"]], ("", 1)),
        ([b"", 1, b"id"], ("", 1)),
        ([b"::1", 1, b"id"], ("::1", 1)),
        ([b"[::1]", 1, b"id"], ("::1", 1)),
    ],
)
def test_in_slots(node: Any, expected: tuple[str, int]) -> None:
    assert in_slots(node) == Advertised(*expected)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ([], "without address"),
        (None, "without address"),
        (7, "without address"),
        ([b"10.0.0.1"], "without address"),
        ([b"?", 1, b"id", []], "does not know the host name"),
        ([b"?", 1, b"id", 7], "does not know the host name"),
        ([b"?", 1, b"id", [b"ip"]], "does not know the host name"),
        ([b"?", 1, b"id", {b"ip": b"?"}], "does not know the host name"),
        ([b"10.0.0.1", None, b"id"], "has the port None, which is none"),
        ([b"10.0.0.1", b"x", b"id"], "which is none"),
        ([b"10.0.0.1", math.inf, b"id"], "which is none"),
    ],
)
def test_nodes_that_say_nothing_usable(node: Any, why: str) -> None:
    refused = in_slots(node)
    assert isinstance(refused, Refused)
    assert why in refused.reason
    assert destination(refused, asked="cache.example", names=NAMES) is refused


def test_in_shard() -> None:
    node = {"id": "x", "port": 6379, "tls-port": 6380, "ip": "10.0.0.1", "endpoint": "a.example"}
    flat = [part.encode() if isinstance(part, str) else part for kv in node.items() for part in kv]
    for each in (node, flat):
        assert in_shard(each, tls=True) == Advertised("a.example", 6380)
        assert in_shard(each, tls=False) == Advertised("a.example", 6379)
    del node["tls-port"]
    assert in_shard(node, tls=True) == Advertised("a.example", 6379)
    assert in_shard({**node, "endpoint": "?"}, tls=True) == Advertised("10.0.0.1", 6379)
    assert in_shard({**node, "endpoint": None}, tls=True) == Advertised("", 6379)
    assert isinstance(in_shard({}, tls=True), Refused)
    assert isinstance(in_shard(None, tls=True), Refused)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MOVED 3999 10.0.0.1:6381", ("10.0.0.1", 6381)),
        ("3999 10.0.0.1:6381", ("10.0.0.1", 6381)),
        ("ASK 3999 a.example:6381", ("a.example", 6381)),
        ("MOVED 3999 :6381", ("", 6381)),
        ("MOVED 3999 ::1:6381", ("::1", 6381)),
        ("MOVED 3999 [::1]:6381", ("::1", 6381)),
    ],
)
def test_in_redirect(text: str, expected: tuple[str, int]) -> None:
    assert in_redirect(text) == Advertised(*expected)


@pytest.mark.parametrize("text", ["", " ", "MOVED", "3999 10.0.0.1", "3999 a:b", "3999 ?:1"])
def test_redirects_to_nowhere(text: str) -> None:
    assert isinstance(in_redirect(text), Refused)


@pytest.mark.parametrize(
    ("advertised", "asked", "expected"),
    [
        (("10.0.0.1", 8501), "cache.example", ("10.0.0.1", 8501, "cache.example")),
        (("", 8502), "cache.example", ("cache.example", 8502, "cache.example")),
        (("", 8502), "10.0.0.7", ("10.0.0.7", 8502, "cache.example")),
        (("evil.example", 8501), "cache.example", ("evil.example", 8501, "cache.example")),
        (("n.cache.example", 1), "10.0.0.7", ("n.cache.example", 1, "n.cache.example")),
        (("2001:db8::1", 8501), "cache.example", ("2001:db8::1", 8501, "cache.example")),
    ],
)
def test_destinations(advertised: Any, asked: str, expected: Any) -> None:
    found = destination(Advertised(*advertised), asked=asked, names=NAMES)
    assert found == Destination(*expected)


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("a b", 1, "neither an IP address nor a host name"),
        ("a\r\nb", 1, "neither an IP address nor a host name"),
        ("/tmp/redis.sock", 1, "neither an IP address nor a host name"),
        ("user@host", 1, "neither an IP address nor a host name"),
        ("-flag", 1, "neither an IP address nor a host name"),
        ("caché.example", 1, "neither an IP address nor a host name"),
        ("x" * 254, 1, "neither an IP address nor a host name"),
        ("10.0.0.1", 0, "port 0, which is none"),
        ("10.0.0.1", 65536, "port 65536, which is none"),
        ("10.0.0.1", -1, "port -1, which is none"),
    ],
)
def test_what_is_not_dialled(host: str, port: int, why: str) -> None:
    found = destination(Advertised(host, port), asked="cache.example", names=NAMES)
    assert isinstance(found, Refused)
    assert why in found.reason


def test_a_function_of_the_users_can_refuse() -> None:
    names = tls_names(["cache.example"], lambda host, port: None)
    found = destination(Advertised("10.0.0.1", 1), asked="cache.example", names=names)
    assert isinstance(found, Refused)
    assert "no name for 10.0.0.1:1" in found.reason


def test_a_remapped_address() -> None:
    tunnels = {("10.0.0.1", 8501): ("127.0.0.1", 17001)}
    seen: list[tuple[str, int]] = []

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        seen.append(address)
        return tunnels.get(address, address)

    for host, expected in (
        ("10.0.0.1", ("127.0.0.1", 17001, "cache.example")),
        ("10.0.0.2", ("10.0.0.2", 8501, "cache.example")),
        ("", ("cache.example", 8501, "cache.example")),
    ):
        found = destination(Advertised(host, 8501), asked="cache.example", names=NAMES, remap=remap)
        assert found == Destination(*expected)
    assert seen == [("10.0.0.1", 8501), ("10.0.0.2", 8501), ("cache.example", 8501)]


REPLIES = st.recursive(
    st.none() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text() | st.binary(), parts),
    max_leaves=8,
)


@given(REPLIES, st.text())
def test_no_reply_raises_or_is_verified_as_anything_but_the_entry(reply: Any, text: str) -> None:
    advertised = [in_slots(reply), in_shard(reply, tls=True), in_redirect(text)]
    for each in advertised:
        found = destination(each, asked="cache.example", names=NAMES)
        if isinstance(found, Refused):
            assert found.reason
        else:
            assert 0 < found.port < 1 << 16
            assert found.tls_name == "cache.example" or found.tls_name.endswith(".cache.example")


@given(st.ip_addresses().map(str), st.integers(1, 65535))
def test_every_address_survives_every_reply(host: str, port: int) -> None:
    for each in (
        in_slots([host.encode(), port, b"id"]),
        in_shard({"endpoint": host, "port": port}, tls=False),
        in_redirect(f"MOVED 1 {host}:{port}"),
    ):
        found = destination(each, asked="cache.example", names=NAMES)
        assert found == Destination(host, port, "cache.example")
