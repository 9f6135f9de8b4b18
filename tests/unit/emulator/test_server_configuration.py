"""What a server is told at its start."""

from __future__ import annotations

from pathlib import Path

from aioentra_redis.emulator._policies import CLUSTER_RULES, POLICIES
from aioentra_redis.emulator._profiles import PROFILES
from aioentra_redis.emulator._server import AMONG_SERVERS, Server
from aioentra_redis.emulator._server_configuration import Membership, configuration

MEMBERSHIP = Membership(
    port=20001, bus_port=20002, client_port=40001, secret="peers", node_timeout=1.5
)


def text(**changes: object) -> str:
    given: dict[str, object] = {
        "directory": Path("/somewhere"),
        "socket": Path("/somewhere/server.sock"),
        "master_secret": "master",
        "secret": "everybody",
        "policies": {"oid": "default"},
        "names": {"CONFIG": "", "SHUTDOWN": "SHUTDOWN-1"},
        "databases": 16,
    }
    return configuration(**{**given, **changes})  # type: ignore[arg-type]


def test_a_server_alone():
    lines = text(load_delay=7).splitlines()
    assert "port 0" in lines
    assert "databases 16" in lines
    assert 'rename-command CONFIG ""' in lines
    assert 'rename-command SHUTDOWN "SHUTDOWN-1"' in lines
    assert "key-load-delay 7" in lines
    assert not any("cluster" in line for line in lines)
    [user] = [line for line in lines if line.startswith("user oid")]
    assert user.endswith(f"&* {POLICIES['default']}")
    assert "everybody" not in user  # its hash is


def test_a_node_of_a_cluster():
    lines = text(membership=MEMBERSHIP).splitlines()
    assert "port 0" not in lines
    for line in (
        "port 20001",
        "bind 127.0.0.1",
        "cluster-port 20002",
        "cluster-announce-client-port 40001",
        "cluster-node-timeout 1500",
        "masterauth peers",
    ):
        assert line in lines
    [user] = [line for line in lines if line.startswith("user oid")]
    assert user.endswith(f"{POLICIES['default']} {CLUSTER_RULES}")


def test_what_servers_need_among_themselves_is_left_to_the_front():
    blocked = PROFILES["amr-oss"].blocked_commands
    node = Server(Path("x"), Path("y"), blocked_commands=blocked, membership=MEMBERSHIP)
    alone = Server(Path("x"), Path("y"), blocked_commands=blocked)
    assert node.left_to_front == AMONG_SERVERS
    assert alone.left_to_front == frozenset()
    assert not AMONG_SERVERS & set(node._names)
    assert set(alone._names) == set(blocked)
    assert {name for name, new in node._names.items() if new} == {"MIGRATE", "SHUTDOWN"}
