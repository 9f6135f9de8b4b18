"""429 with Retry-After, in seconds and as a date: nobody asks again before it is time."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import math
import time
from collections.abc import Callable

import pytest
from support.identity_outage import LIFE, PATIENT
from support.signing_in import Traffic, client_of, secret_source, until

from aioentra_redis import TokenState
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

ASKED = 3.0


@pytest.mark.parametrize("form", ["seconds", "HTTP date"])
@pytest.mark.parametrize("moment", ["valid", "expired"])
async def test_honoured(
    entra_emulator: Emulator, figure: Callable[..., None], form: str, moment: str
) -> None:
    await entra_emulator.configure(token_lifetime=LIFE)
    source = secret_source(entra_emulator, refresh=PATIENT)
    async with source, client_of(entra_emulator, source) as redis:
        held = source.current
        assert held is not None
        if moment == "expired":
            await entra_emulator.fail_identity()
            await until(lambda: source.state is TokenState.EXPIRED, timeout=2 * LIFE)
            await until(lambda: not redis.auth_status())
        not_before = math.ceil(time.time() + LIFE)  # a date has whole seconds
        retry_after: float | str = ASKED
        if form == "HTTP date":
            retry_after = email.utils.formatdate(not_before, usegmt=True)
        await entra_emulator.fail_identity(status=429, retry_after=retry_after)
        expiry_in_loop = asyncio.get_running_loop().time() + held.expires_on - time.time()
        traffic = Traffic(redis, 5)

        async def refusals() -> list[float]:
            return [
                each.time for each in (await entra_emulator.log()).requests if each.status == 429
            ]

        async with asyncio.timeout(3 * LIFE):
            while len(times := await refusals()) < 2:  # noqa: ASYNC110 - the log tells nobody
                await asyncio.sleep(0.05)
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        if form == "HTTP date":
            early = not_before - times[1]
            figure("next request, before the date", early, "s", target="never")
            assert early < 0.01
            assert early > -2.0
        else:
            figure("next request, after", pauses[0], "s", target=f"{ASKED:g}")
            assert ASKED - 0.01 < pauses[0] < ASKED + 1
        if moment == "valid":
            failed = [sent for sent, _ in traffic.failures if sent < expiry_in_loop]
            figure("failed commands, token valid", len(failed), target="0")
            assert failed == []
        await entra_emulator.heal()
        await traffic.stop()
        assert traffic.wrong == []
