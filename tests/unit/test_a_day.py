"""A day of hourly tokens in virtual time: the whole way from the credential to each AUTH.

The credential behaves as azure-identity does: it returns its cached token until 300 s before that
expires and holds off for 30 s between requests. Tokens live 60 to 90 minutes, as Entra's do.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from support.token_fakes import CachingCredential, Clock, source_of

from aioentra_redis._events import ConnectionState, EventHub
from aioentra_redis._multiplex._ledger import Ledger
from aioentra_redis._multiplex._reauth import Reauthenticator
from aioentra_redis._schedule import reauth_deadline
from aioentra_redis._source import TokenSource
from aioentra_redis._token import Token

pytestmark = pytest.mark.looptime

CONNECTIONS = 40
HOURS = 24


class Connection:
    """Notes when each AUTH was answered and which token it replaced."""

    host = "peer"
    closed = False
    paces_itself = False

    def withdraw_auth(self) -> None: ...

    def __init__(self, number: int, held: Token, source: TokenSource, chance: random.Random):
        self.name = f"connection-{number}"
        self.ledger = Ledger(self.name, held, 0.01)
        self.source = source
        self.chance = chance
        self.answered: list[tuple[float, Token, Token]] = []

    def authenticate(self, token: Token) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        held = self.ledger.token
        assert held is not None

        def answer() -> None:
            self.answered.append((self.source.now(), held, token))
            future.set_result(b"OK")

        loop.call_later(self.chance.uniform(0.001, 0.2), answer)
        return future


async def no_replacement(old: object, reason: str) -> None:
    raise AssertionError(f"nothing here is slow: {reason}")


@pytest.mark.parametrize("refresh_in", [None, 1800.0], ids=["at 300 s", "at half-life"])
async def test_every_auth_is_answered_three_minutes_before_expiry(refresh_in: float | None):
    asyncio.get_running_loop().set_debug(False)  # a day of looks takes half a minute with it
    chance = random.Random(7)
    clock = Clock()
    credential = CachingCredential(clock)
    credential.answer = lambda _: credential.issue(
        life=chance.uniform(3600, 5400), refresh_in=refresh_in
    )
    async with source_of(credential, clock) as source:
        first = await source.get()
        connections = [Connection(n, first, source, chance) for n in range(CONNECTIONS)]
        tasks = [
            asyncio.ensure_future(
                Reauthenticator(connection, source, replace=no_replacement, hub=EventHub()).run()
            )
            for connection in connections
        ]
        await asyncio.sleep(HOURS * 3600)
        published = source.status.published
        last = source.current
    await asyncio.gather(*tasks)  # they end with the source

    assert published > HOURS * 3600 / 5400
    for connection in connections:
        assert connection.ledger.state is ConnectionState.AUTHENTICATED
        assert connection.ledger.token == last
        versions = [token.version for _, _, token in connection.answered]
        assert versions == list(range(2, published + 1)), "one AUTH per token, and each token"
        for at, held, _ in connection.answered:
            assert at <= reauth_deadline(held)
            assert held.expires_on - at >= 180, "Microsoft's three minutes"
    for version in range(2, published + 1):
        times = [
            at for each in connections for at, _, token in each.answered if token.version == version
        ]
        assert max(times) - min(times) > 5, "the AUTHs of many connections are spread"
