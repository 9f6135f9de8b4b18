"""Which peers may get a token, judged by the open transport; who shares a TLS context."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trustme
from redis.asyncio import SSLConnection
from support.scripted_peer import Peer
from support.wired import wired

from aioentra_redis._redis_py._peer import SharedTLS, check_peer
from aioentra_redis.errors import InsecureConnectionError


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        (("127.0.0.1", 6379), True),
        (("::1", 6379, 0, 0), True),
        (("10.0.0.1", 6379), False),
        (("2001:db8::1", 6379, 0, 0), False),
        (("::ffff:10.0.0.1", 6379, 0, 0), False),
        (("0.0.0.0", 6379), False),
        (("localhost.example", 6379), False),
        ("/run/redis.sock", True),
        ("", True),
        (b"\0abstract", True),
    ],
)
async def test_plaintext_is_for_this_machine(peer: object, local: bool) -> None:
    server = Peer()
    connection: Any = wired(server)(host="localhost")
    tls = SharedTLS(allow_insecure=False)
    await connection._connect()
    connection._writer.transport._extra["peername"] = peer
    if local:
        check_peer(connection, tls, allow_plaintext=False)
    else:
        check_peer(connection, tls, allow_plaintext=True)
        with pytest.raises(InsecureConnectionError, match="is not this machine; it was closed"):
            check_peer(connection, tls, allow_plaintext=False)
        assert not connection.is_connected
        assert server.connections[0].commands == []
    await connection.disconnect(nowait=True)


async def test_a_connection_that_was_reset_at_once_is_no_matter_of_security() -> None:
    """A server that restarts behind a proxy on this machine: its address is not known any more."""
    server = Peer()
    connection: Any = wired(server)(host="localhost")
    await connection._connect()
    connection._writer.transport._extra["peername"] = None
    with pytest.raises(ConnectionResetError):
        check_peer(connection, SharedTLS(allow_insecure=False), allow_plaintext=False)
    assert not connection.is_connected
    assert server.connections[0].commands == []


async def test_connections_with_the_same_options_share_a_context_and_others_do_not(
    tmp_path: Any,
) -> None:
    """Clients of one `entra_kwargs()` may trust different certificate authorities."""
    files = [tmp_path / "a.pem", tmp_path / "b.pem"]
    for file in files:
        trustme.CA().cert_pem.write_to_path(file)
    tls = SharedTLS(allow_insecure=False)
    a, twin = (SSLConnection(ssl_ca_certs=str(files[0])) for _ in range(2))
    b = SSLConnection(ssl_ca_certs=str(files[1]))
    for each in (a, b, twin):
        await tls.prepare(each)
        assert each.ssl_context.context is not None
        assert tls.knows(each.ssl_context.context)
    assert a.ssl_context.context is twin.ssl_context.context
    assert a.ssl_context.context is not b.ssl_context.context
    other = SSLConnection(ssl_ca_certs=str(files[1]))
    made = other.ssl_context.get()
    assert not tls.knows(made)
    tls.share(other, made)
    assert other.ssl_context.context is b.ssl_context.context, "the first one stays"


@pytest.mark.parametrize("lifted", [(), ("ssl_check_hostname",), ("ssl_cert_reqs",)])
async def test_what_the_rules_say_in_any_case_makes_no_other_context(lifted: tuple[str]) -> None:
    """redis-py's own defaults for host names differ between its versions and its clients."""
    tls = SharedTLS(allow_insecure=False, lifted=frozenset(lifted))
    checked, not_checked = (SSLConnection(ssl_check_hostname=each) for each in (True, False))
    for each in (not_checked, checked):
        await tls.prepare(each)
    contexts = [each.ssl_context.context for each in (checked, not_checked)]
    assert contexts[0] is not None
    assert contexts[0].check_hostname
    assert (contexts[0] is contexts[1]) == (not lifted)


class OwnContext(SSLConnection):
    """Has put a context of its own where redis-py keeps the one that it makes."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.ssl_context.context = context


async def test_a_context_that_a_connection_brings_is_its_own() -> None:
    """Each may hold another client certificate, and none becomes what others connect with."""
    tls = SharedTLS(allow_insecure=False)
    first, second = (OwnContext(ssl.create_default_context()) for _ in range(2))
    mine = [each.ssl_context.context for each in (first, second)]
    usual = SSLConnection()
    for each in (first, second, usual, first):
        await tls.prepare(each)
    assert [each.ssl_context.context for each in (first, second)] == mine
    assert usual.ssl_context.context not in mine


async def test_a_weak_context_that_a_connection_brings_is_refused_as_it_is() -> None:
    weak = ssl.create_default_context()
    weak.check_hostname = False
    with pytest.raises(InsecureConnectionError, match="host name is not checked"):
        await SharedTLS(allow_insecure=False).prepare(OwnContext(weak))
    assert not weak.check_hostname
    with pytest.warns(RuntimeWarning, match="host name is not checked"):
        await SharedTLS(allow_insecure=True).prepare(OwnContext(weak))
    assert not weak.check_hostname
