"""The identity provider answers, but not with a token that is of any use."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
from support.identity_outage import LIFE, PATIENT, endure
from support.signing_in import secret_source

from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Begin = Callable[[Emulator], Awaitable[None]]
HTML = "<html><body>Bad gateway</body></html>"
DAYS = 86400

BAD: dict[str, tuple[Begin, str]] = {
    "500": (lambda it: it.fail_identity(status=500, description="Out of order."), "Out of order"),
    "502 with a page": (lambda it: it.fail_identity(status=502, body=HTML), "no token for"),
    "503": (lambda it: it.fail_identity(status=503, description="Overloaded."), "Overloaded"),
    "504, empty": (lambda it: it.fail_identity(status=504, body=""), "no token for"),
    "429 without advice": (
        lambda it: it.fail_identity(status=429, description="Too many."),
        "Too many",
    ),
    "JSON that ends early": (lambda it: it.cut_identity(300, then="end"), "JSON"),
    "bad JSON": (lambda it: it.fail_identity(status=200, body="{not JSON"), "JSON"),
    "a page with 200": (lambda it: it.fail_identity(status=200, body=HTML), "no token for"),
    "JSON without a token": (lambda it: it.fail_identity(status=200, body="{}"), "no token for"),
    "expired tokens": (
        lambda it: it.next_tokens(extra={"iat": time.time() - DAYS, "exp": time.time() - 1}),
        "expired at",
    ),
    "expired by the answer": (lambda it: it.next_tokens(answer={"expires_in": -5}), "expired at"),
    "not a JWT": (lambda it: it.next_tokens(opaque=True), "not a JWT"),
    "another identity": (
        lambda it: it.next_tokens(oid="0e11a500-0000-4000-8000-00000000beef"),
        "00000000beef",
    ),
    "another tenant": (lambda it: it.next_tokens(tenant_id="elsewhere"), "elsewhere"),
    "another audience": (
        lambda it: it.next_tokens(audience="https://management.azure.com"),
        "management.azure.com",
    ),
}


@pytest.mark.parametrize(("begin", "cause"), BAD.values(), ids=BAD)
async def test_no_token_in_it(
    entra_emulator: Emulator, figure: Callable[..., None], begin: Begin, cause: str
) -> None:
    await entra_emulator.configure(token_lifetime=LIFE)
    source = secret_source(entra_emulator, refresh=PATIENT)
    await endure(
        entra_emulator,
        source,
        figure,
        begin=lambda: begin(entra_emulator),
        end=entra_emulator.heal,
        cause=cause,
    )
    # Whatever came with the answers, no connection was signed in with it.
    log = await entra_emulator.log()
    me = entra_emulator.service_principal.object_id
    assert all(each.accepted and each.object_id == me for each in log.auths)
    good = {each.uti for each in log.tokens if each.expires_on - each.time > LIFE - 1}
    assert {each.uti for each in log.auths} <= good
