"""New signing keys, tokens that are not valid yet, and expiries that can't be meant."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from support.identity_outage import LIFE, PATIENT
from support.signing_in import Traffic, Witness, client_of, secret_source, until

from aioentra_redis import (
    MaybeExecutedError,
    Reauthenticated,
    ReauthenticationFailed,
    TokenPublished,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Figure = Callable[..., None]
DAYS = 86400


async def test_the_authority_signs_with_a_new_key(entra_emulator: Emulator, figure: Figure) -> None:
    await entra_emulator.configure(token_lifetime=LIFE)
    witness = Witness()
    source = secret_source(entra_emulator, refresh=PATIENT)
    source.listen(witness)
    async with source, client_of(entra_emulator, source) as redis:
        traffic = Traffic(redis, 5)
        for version in (2, 3):
            await entra_emulator.rotate_signing_key()
            await witness.at_least(version, TokenPublished, timeout=2 * LIFE)
            await until(
                lambda version=version: redis.auth_status()[0].token_version == version,  # type: ignore[misc]
                timeout=LIFE,
            )
        await traffic.stop()
        figure("failed commands", len(traffic.errors), target="0")
        assert (traffic.errors, traffic.wrong) == ([], [])
    assert len({each.connection for each in (await entra_emulator.log()).auths}) == 1


async def test_the_server_does_not_know_the_new_key_yet(
    entra_emulator: Emulator, figure: Figure
) -> None:
    """AUTH is refused for a while; the session goes on, and the next token is taken."""
    await entra_emulator.configure(token_lifetime=12)
    witness = Witness()
    source = secret_source(entra_emulator, refresh=PATIENT)
    source.listen(witness)
    async with source, client_of(entra_emulator, source, on_event=witness) as redis:
        traffic = Traffic(redis, 5)
        await entra_emulator.next_tokens(forged=True)
        await witness.first(ReauthenticationFailed, timeout=12)
        await entra_emulator.heal()
        await witness.first(Reauthenticated, timeout=12)
        await traffic.stop()
        figure("failed commands", len(traffic.errors), target="0")
        assert traffic.wrong == []
        assert traffic.errors == []


async def test_tokens_that_are_not_valid_yet(entra_emulator: Emulator, figure: Figure) -> None:
    """The authority's clock is 3 s ahead of the server's, which refuses what is from the future."""
    life, ahead = 12.0, 3.0
    await entra_emulator.configure(token_lifetime=life)
    witness = Witness()
    source = secret_source(entra_emulator, refresh=PATIENT)
    source.listen(witness)
    async with source, client_of(entra_emulator, source, on_event=witness) as redis:
        traffic = Traffic(redis, 5)
        moment = time.time() + life / 2 + ahead
        await entra_emulator.next_tokens(extra={"nbf": moment, "iat": moment, "exp": moment + life})
        await witness.first(Reauthenticated, timeout=2 * life)
        await traffic.stop()
        figure("failed commands", len(traffic.errors), target="0")
        assert traffic.wrong == []
        assert traffic.errors == []
        refused = [each for each in (await entra_emulator.log()).auths if not each.accepted]
        figure("AUTHs refused", len(refused), target="few")
        assert {each.reason for each in refused} <= {"not valid yet"}


ABSURD: dict[str, dict[str, Any]] = {
    "a thousand years": {"expires_in": 365 * DAYS * 1000},
    "milliseconds": {"expires_in": 6_000_000},
    "text": {"expires_in": "6"},
}


@pytest.mark.parametrize("answer", ABSURD.values(), ids=ABSURD)
async def test_an_expiry_that_cannot_be_meant(
    entra_emulator: Emulator, figure: Figure, answer: dict[str, Any]
) -> None:
    """The claims in the token are what the server goes by, and so do we."""
    await entra_emulator.configure(token_lifetime=LIFE)
    await entra_emulator.next_tokens(answer=answer)
    witness = Witness()
    source = secret_source(entra_emulator, refresh=PATIENT)
    source.listen(witness)
    async with source, client_of(entra_emulator, source) as redis:
        traffic = Traffic(redis, 5)
        published = await witness.at_least(3, TokenPublished, timeout=3 * LIFE)
        await traffic.stop()
        unhurt = [each for each in traffic.errors if not isinstance(each, MaybeExecutedError)]
        figure("failed commands", len(traffic.errors), target="0")
        assert (traffic.errors, unhurt, traffic.wrong) == ([], [], [])
        assert all(each.lifetime < LIFE + 1 for each in published)
