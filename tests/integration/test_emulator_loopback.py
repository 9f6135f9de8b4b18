"""The emulator is for development: it says so, and nothing outside of this machine reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import os
import socket
import sys
from pathlib import Path

import pytest
from support.emulator_processes import emulator_pid

import aioentra_redis.emulator
from aioentra_redis.emulator import Emulator
from aioentra_redis.emulator._options import Options

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(sys.platform != "linux", reason="sockets are looked up in /proc"),
]

LISTENING = "0A"


def family_of(process: int) -> set[int]:
    """A process and all of its descendants; some may end while one looks."""
    found = {process}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= family_of(int(child))
    return found


def sockets_of(process: int) -> set[str]:
    """The inode numbers of the sockets that a process holds."""
    links = []
    for each in Path(f"/proc/{process}/fd").iterdir():
        try:
            links.append(os.readlink(each))
        except FileNotFoundError:
            continue
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def address_of(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """An address as /proc/net/tcp writes it: words of 4 bytes in the machine's order, a port."""
    host, port = text.split(":")
    words = [bytes.fromhex(host[n : n + 8]) for n in range(0, len(host), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return ipaddress.ip_address(b"".join(words)), int(port, 16)


def bound_by(processes: set[int]) -> set[tuple[str, str, int]]:
    """Protocol, address and port of what these processes listen on, or receive datagrams at."""
    inodes = set().union(*map(sockets_of, processes))
    found = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (protocol[:3] == "udp" or fields[3] == LISTENING):
                address, port = address_of(fields[1])
                found.add((protocol, str(address), port))
    return found


async def test_every_listener_is_on_loopback(entra_emulator: Emulator) -> None:
    """Of its process and of the server in it, also after the server was restarted."""
    for _ in range(2):
        bound = await asyncio.to_thread(bound_in, entra_emulator)
        ports = {port for _, _, port in bound}
        for url in (
            *(entra_emulator.url, entra_emulator.plaintext_url),
            *(entra_emulator.authority, entra_emulator.managed_identity_url),
        ):
            assert int(url.rstrip("/").rpartition(":")[2]) in ports, url
        strangers = {each for each in bound if not ipaddress.ip_address(each[1]).is_loopback}
        assert strangers == set()
        await entra_emulator.restart_server()


async def test_every_node_of_a_cluster_is_on_loopback(entra_cluster: Emulator) -> None:
    """What servers tell each other, too."""
    bound = await asyncio.to_thread(bound_in, entra_cluster)
    nodes = await entra_cluster.nodes()
    assert {port for _, _, port in bound} >= {each.port for each in nodes}
    # The entry and the identity endpoints, and of each node the front and two of its server's.
    assert len({port for _, _, port in bound}) == 3 + len(nodes) * 3
    assert {each for each in bound if not ipaddress.ip_address(each[1]).is_loopback} == set()


def bound_in(emulator: Emulator) -> set[tuple[str, str, int]]:
    """What the emulator's process and its servers listen on."""
    return bound_by(family_of(emulator_pid(str(Path(emulator.ca_file).parent))))


def test_a_listener_elsewhere_would_be_seen() -> None:
    with socket.socket() as mine:
        mine.bind(("0.0.0.0", 0))
        mine.listen()
        assert ("tcp", "0.0.0.0", mine.getsockname()[1]) in bound_by({os.getpid()})


async def test_other_addresses_of_this_machine_are_not_answered(entra_emulator: Emulator) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks for a route
            address = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no address but loopback")
    if ipaddress.ip_address(address).is_loopback:
        pytest.skip("this machine has no address but loopback")
    for url in (entra_emulator.url, entra_emulator.plaintext_url, entra_emulator.authority):
        with pytest.raises(OSError, match=r"."):
            await asyncio.open_connection(address, int(url.rstrip("/").rpartition(":")[2]))


def test_there_is_no_option_to_listen_elsewhere() -> None:
    names = {field.name for field in dataclasses.fields(Options)}
    assert not {name for name in names if any(w in name for w in ("host", "bind", "address"))}
    for name in ("host", "bind", "address"):
        with pytest.raises(TypeError):
            Emulator(**{name: "0.0.0.0"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "aioentra_redis.emulator", "--help"],
        ["-m", "aioentra_redis.cli", "emulator", "--help"],
    ],
)
async def test_its_help_says_what_it_is_for_and_offers_no_address(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0
    assert "development" in output
    for option in ("--host", "--bind", "--address"):
        assert option not in output


@pytest.mark.parametrize(
    "command",
    [["-m", "aioentra_redis.emulator"], ["-m", "aioentra_redis.cli", "emulator"]],
)
async def test_what_it_prints_says_so_too(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    head = ""
    async with asyncio.timeout(30):
        while "Ctrl-C" not in head:
            head += (await process.stdout.readline()).decode()
    process.terminate()
    await process.communicate()
    first_lines = " ".join(head.splitlines()[:2]).lower()
    assert "for development only" in first_lines
    assert "loopback" in first_lines


def test_its_documentation_says_so() -> None:
    words = aioentra_redis.emulator.__doc__ or ""
    assert "development" in words
    assert "loopback only" in words
