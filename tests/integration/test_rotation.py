"""Tokens are replaced under load: no error, no wrong reply, one AUTH each, in time."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise

import pytest
from support.signing_in import Traffic, Witness, client_of, minted_source, secret_source, until

from aioentra_redis import Reauthenticated, ReauthenticationFailed, TokenPublished
from aioentra_redis.emulator import Emulator, Log

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("in_place")]


async def test_rotating_every_200_ms_under_100_workers(entra_emulator: Emulator) -> None:
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.4) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        traffic = Traffic(redis, 100)
        await witness.at_least(26, TokenPublished, timeout=20)
        await witness.at_least(20, Reauthenticated)
        await until(lambda: traffic.done > 5_000, timeout=20)
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
        assert witness.of(ReauthenticationFailed) == []
        assert len(redis.auth_status()) == 1
    log = await entra_emulator.log()
    assert all(each.accepted for each in log.auths)
    assert len({each.connection for each in log.auths}) == 1
    utis = [each.uti for each in log.auths]
    assert len(utis) == len(set(utis))


async def test_pipelines_and_transactions_go_on_across_expiries(entra_emulator: Emulator) -> None:
    """Their connections come from the pool, which replaces those whose token nears its end."""
    await entra_emulator.configure(token_lifetime=2)
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        rotated = asyncio.Event()

        async def work(number: int, transaction: bool) -> int:
            turns = 0
            while not rotated.is_set():
                turns += 1
                pipe = redis.pipeline(transaction=transaction)
                pipe.set(f"p:{number}", turns).incr(f"p:{number}").get(f"p:{number}")
                assert await pipe.execute() == [True, turns + 1, b"%d" % (turns + 1)]
            return turns

        tasks = [asyncio.create_task(work(n, bool(n % 2))) for n in range(20)]
        await witness.at_least(4, TokenPublished, timeout=20)
        rotated.set()
        assert min(await asyncio.gather(*tasks)) > 5


async def test_two_clients_of_one_source_are_both_kept_signed_in(entra_emulator: Emulator) -> None:
    witness = Witness()
    async with (
        minted_source(entra_emulator, believed=0.6, on_event=witness) as source,
        client_of(entra_emulator, source) as first,
        client_of(entra_emulator, source) as second,
    ):
        await witness.at_least(5, TokenPublished)
        assert await first.ping()
        assert await second.ping()
        for each in (first, second):
            # A token may be skipped where the next one is there before its AUTH was due.
            await until(lambda each=each: each.auth_status()[0].reauthentications >= 3)  # type: ignore[misc]


# -------------------------------------------------------------------------- AUTH by the deadline


async def test_each_auth_is_answered_by_the_deadline(entra_emulator: Emulator) -> None:
    """With tokens of 4, 6 and 8 s, at the same time on several connections.

    The deadline is 0.3 of the life before the expiry: Microsoft's three minutes, for tokens that
    live for less than ten.
    """
    witness = Witness()
    async with contextlib.AsyncExitStack() as stack:
        for lifetime in (4.0, 6.0, 8.0):
            source = await stack.enter_async_context(
                minted_source(entra_emulator, believed=lifetime, lifetime=lifetime)
            )
            for _ in range(4):
                redis = await stack.enter_async_context(
                    client_of(entra_emulator, source, on_event=witness)
                )
                assert await redis.ping()
        await witness.first(
            Reauthenticated,
            lambda _: _rotations(witness) >= 12 * 2,
            timeout=20,
        )
        log = await entra_emulator.log()
    assert len({each.connection for each in log.auths}) == 12
    assert_in_time(log)
    assert_no_auth_is_wasted(log)
    assert [each for each in log.closes if each.reason == "expiry"] == []


def _rotations(witness: Witness) -> int:
    """Rotations of all connections, of which no more than two of each count."""
    counts: dict[str, int] = {}
    for each in witness.of(Reauthenticated):
        counts[each.connection] = counts.get(each.connection, 0) + 1
    return sum(min(2, count) for count in counts.values())


async def test_real_credentials_with_tokens_of_seconds(entra_emulator: Emulator) -> None:
    await entra_emulator.configure(token_lifetime=3)
    witness = Witness()
    async with (
        secret_source(entra_emulator) as source,
        client_of(entra_emulator, source, on_event=witness) as redis,
    ):
        traffic = Traffic(redis, 20)
        await witness.at_least(3, Reauthenticated, timeout=15)
        await traffic.stop()
        assert (traffic.errors, traffic.wrong) == ([], [])
    log = await entra_emulator.log()
    assert_in_time(log)
    assert_no_auth_is_wasted(log)
    assert {each.reason for each in log.closes} == {"client"}


def assert_in_time(log: Log) -> None:
    """Each AUTH on a connection came before the deadline of the token that it replaced."""
    issued = {each.uti: each for each in log.tokens}
    for number in {each.connection for each in log.auths}:
        auths = [each for each in log.auths if each.connection == number]
        for before, after in pairwise(auths):
            assert after.accepted
            token = issued[before.uti or ""]
            lifetime = token.expires_on - token.time
            assert after.time <= token.expires_on - min(180.0, 0.3 * lifetime)


def assert_no_auth_is_wasted(log: Log) -> None:
    """One sign-in per connection and token, the first of them in the handshake."""
    for number in {each.connection for each in log.auths}:
        auths = [each for each in log.auths if each.connection == number]
        assert [each.command for each in auths] == ["HELLO"] + ["AUTH"] * (len(auths) - 1)
        assert len({each.uti for each in auths}) == len(auths)


async def test_no_auth_follows_a_connect(entra_emulator: Emulator) -> None:
    async with secret_source(entra_emulator) as source:
        for _ in range(5):
            async with client_of(entra_emulator, source) as redis:
                await asyncio.gather(*(redis.ping() for _ in range(100)))
    log = await entra_emulator.log()
    assert [each.command for each in log.auths] == ["HELLO"] * 5
    assert len(log.tokens) == 1
