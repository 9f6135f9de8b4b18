"""The identity provider can't be reached: refused connections, hangs, half answers, DNS."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.identity_outage import LIFE, PATIENT, endure
from support.signing_in import secret_source

from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Figure = Callable[..., None]
Begin = Callable[[Emulator], Awaitable[None]]

AWAY: dict[str, tuple[Begin, str]] = {
    "refused connections": (lambda it: it.refuse_identity(), "Cannot connect"),
    "hanging": (lambda it: it.hang_identity(), "no answer within 0.9 s"),
    "slower than we wait": (lambda it: it.delay_identity(60), "no answer within 0.9 s"),
    "closed without an answer": (lambda it: it.cut_identity(None), "disconnected"),
    "closed in the middle of the body": (lambda it: it.cut_identity(300), "payload"),
    "expired certificate": (
        lambda it: it.present_identity_certificate("expired"),
        "certificate has expired",
    ),
    "certificate of another host": (
        lambda it: it.present_identity_certificate("other-name"),
        "ostname mismatch",
    ),
    "certificate of an unknown CA": (
        lambda it: it.present_identity_certificate("unknown-ca"),
        "unable to get local issuer certificate",
    ),
    "silent from the middle of the body": (
        lambda it: it.cut_identity(300, then="hang"),
        "no answer within 0.9 s",
    ),
}


@pytest.mark.parametrize(("begin", "cause"), AWAY.values(), ids=AWAY)
async def test_away(entra_emulator: Emulator, figure: Figure, begin: Begin, cause: str) -> None:
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


async def test_its_name_does_not_resolve(
    entra_emulator: Emulator, figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = entra_emulator.authority.rpartition(":")[2]
    real = socket.getaddrinfo
    resolves = True

    def lookup(host: Any, service: Any, *args: Any, **options: Any) -> Any:
        if not resolves and str(service) == port:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(host, service, *args, **options)

    async def switch(to: bool) -> None:
        nonlocal resolves
        resolves = to

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    await entra_emulator.configure(token_lifetime=LIFE)
    source = secret_source(entra_emulator, refresh=PATIENT)
    await endure(
        entra_emulator,
        source,
        figure,
        begin=lambda: switch(False),
        end=lambda: switch(True),
        cause="name resolution",
    )
