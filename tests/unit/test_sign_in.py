"""Connections of redis-py's pools that sign in with tokens."""

from __future__ import annotations

import time

import redis.asyncio
from support.scripted_peer import Peer

from aioentra_redis._redis_py import sign_in_with
from aioentra_redis._servers import Servers
from aioentra_redis._token import Token


class Ahead:
    """A source that publishes a newer token just after each time that it was asked for one."""

    def __init__(self) -> None:
        self.current = self._token(1)
        self._servers = Servers(8, lambda event: None)

    def _token(self, version: int) -> Token:
        now = self.now()
        return Token(
            f"secret-{version}",
            username="oid-1",
            expires_on=now + 0.5,
            issued_on=now - 1000,
            first_seen=now,
            version=version,
        )

    async def get(self) -> Token:
        given, self.current = self.current, self._token(self.current.version + 1)
        return given

    def now(self, _token: object = None) -> float:
        return time.time()


async def test_a_token_published_during_the_sign_in_fails_nobody() -> None:
    """The pool looks at a connection just after it was made anew: refused then, it gives up."""
    peer, source = Peer(), Ahead()
    async with peer.serve() as port:
        pool = redis.asyncio.ConnectionPool(host="127.0.0.1", port=port, protocol=3)
        sign_in_with(pool, source, allow_plaintext=True, allow_insecure_tls=False)  # type: ignore[arg-type]
        client = redis.asyncio.Redis(connection_pool=pool)
        for turn in range(1, 4):
            assert await client.get("key") is None
            # Each time the token was worn, and the connection made anew, once.
            assert len(peer.seen("HELLO")) == turn
        await client.aclose()
        await pool.disconnect()
