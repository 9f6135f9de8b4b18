"""Carries the faults out."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from redis import exceptions as redis_exceptions

from aioentra_redis.emulator import Emulator

from .schedule import Fault, Windows

__all__ = ["Strikes"]


class Strikes:
    """Strikes as the schedule says, one fault at a time, and notes when each was on."""

    def __init__(self, emulator: Emulator, admin: Any, windows: Windows) -> None:
        self._emulator, self._admin, self._windows = emulator, admin, windows
        self.counts: Counter[str] = Counter()
        self._ways: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "cut every connection": self._cut_all,
            "cut one connection": self._cut_one,
            "restart the server": self._restart,
            "load data at a restart": self._restart_and_load,
            "break every reply off": self._break_off,
            "leave one connection half open": self._abandon_one,
            "freeze one connection": self._freeze_one,
            "freeze every connection": self._freeze,
            "CLIENT KILL one": self._kill_one,
            "CLIENT KILL normal": lambda _: self._kill("TYPE", "normal", "SKIPME", "yes"),
            "CLIENT KILL pubsub": lambda _: self._kill("TYPE", "pubsub"),
            "identity provider fails": self._identity_fails,
            "identity provider hangs": self._identity_hangs,
            "identity provider is slow": self._identity_is_slow,
            "identity provider refuses connections": self._identity_refuses,
            "identity provider breaks answers off": self._identity_breaks_off,
            "identity provider changes its key": lambda _: self._emulator.rotate_signing_key(),
            "identity provider gives what is no token": self._identity_gives_no_token,
            "identity provider gives forged tokens": self._identity_gives_forged_tokens,
            "identity provider is gone": self._identity_fails,
            "AUTH is refused once": self._refuse_once,
            "AUTH is refused": self._refuse,
            "AUTH is slow": self._slow_auth,
            "AUTH hangs": self._hang_auth,
            "the event loop stalls": self._stall,
        }

    async def strike(self, fault: Fault) -> None:
        """One fault from its beginning to its end; what it has broken may need longer."""
        window = self._windows.open(fault.kind, time.time())
        try:
            await self._ways[fault.kind.name](fault)
        finally:
            await self._emulator.heal()
            window.end = time.time()
        self.counts[fault.kind.name] += 1

    # -- connections -----------------------------------------------------------------------------

    async def _cut_all(self, _: Fault) -> None:
        await self._emulator.drop_connections()

    async def _cut_one(self, fault: Fault) -> None:
        await self._emulator.drop_connections(connection=await self._any(fault))

    async def _break_off(self, fault: Fault) -> None:
        await self._emulator.cut_replies(int(fault.strength * 200))
        await asyncio.sleep(0.3)

    async def _abandon_one(self, fault: Fault) -> None:
        await self._emulator.abandon_connections(connection=await self._any(fault))
        await asyncio.sleep(fault.seconds)

    async def _freeze_one(self, fault: Fault) -> None:
        await self._freeze(fault, await self._any(fault))

    async def _freeze(self, fault: Fault, connection: int | None = None) -> None:
        execute = fault.strength < 0.5
        await self._emulator.freeze_connections(connection=connection, execute=execute)
        await asyncio.sleep(fault.seconds)

    async def _any(self, fault: Fault) -> int:
        """One of the connections; the number of none if there are none."""
        numbers = [each.connection for each in await self._emulator.connections()]
        return _one_of(numbers, fault) if numbers else 0

    async def _restart(self, fault: Fault) -> None:
        await self._emulator.restart_server(keep_data=True, downtime=fault.seconds)

    async def _restart_and_load(self, fault: Fault) -> None:
        await self._emulator.restart_server(keep_data=True, loading=fault.seconds)

    async def _kill_one(self, fault: Fault) -> None:
        with contextlib.suppress(redis_exceptions.ConnectionError):
            clients = [each["id"] for each in await self._admin.client_list()]
            await self._kill("ID", _one_of(clients, fault))

    async def _kill(self, *words: Any) -> None:
        with contextlib.suppress(redis_exceptions.ConnectionError):
            await self._admin.execute_command("CLIENT", "KILL", *words)

    # -- the identity provider -------------------------------------------------------------------

    async def _identity_fails(self, fault: Fault) -> None:
        status = (500, 503, 429)[int(fault.strength * 3)]
        await self._emulator.fail_identity(status=status)
        await asyncio.sleep(fault.seconds)

    async def _identity_hangs(self, fault: Fault) -> None:
        await self._emulator.hang_identity()
        await asyncio.sleep(fault.seconds)

    async def _identity_is_slow(self, fault: Fault) -> None:
        await self._emulator.delay_identity(0.2 + 0.6 * fault.strength)
        await asyncio.sleep(fault.seconds)

    async def _identity_refuses(self, fault: Fault) -> None:
        await self._emulator.refuse_identity()
        await asyncio.sleep(fault.seconds)

    async def _identity_breaks_off(self, fault: Fault) -> None:
        then: Literal["close", "end"] = "close" if fault.strength < 0.5 else "end"
        await self._emulator.cut_identity(int(fault.strength * 400), then=then)
        await asyncio.sleep(fault.seconds)

    async def _identity_gives_no_token(self, fault: Fault) -> None:
        await self._emulator.next_tokens(opaque=True)
        await asyncio.sleep(fault.seconds)

    async def _identity_gives_forged_tokens(self, fault: Fault) -> None:
        await self._emulator.next_tokens(forged=True)
        await asyncio.sleep(fault.seconds)

    # -- AUTH ------------------------------------------------------------------------------------

    async def _refuse_once(self, _: Fault) -> None:
        await self._emulator.refuse_auth(1)
        await asyncio.sleep(1.0)

    async def _refuse(self, fault: Fault) -> None:
        await self._emulator.refuse_auth()
        await asyncio.sleep(fault.seconds)

    async def _slow_auth(self, fault: Fault) -> None:
        await self._emulator.delay_auth(0.1 + 1.2 * fault.strength)
        await asyncio.sleep(fault.seconds)

    async def _hang_auth(self, fault: Fault) -> None:
        await self._emulator.hang_auth()
        await asyncio.sleep(fault.seconds)

    # -- this program ----------------------------------------------------------------------------

    async def _stall(self, fault: Fault) -> None:
        time.sleep(fault.seconds)  # noqa: ASYNC251 - that is the fault


def _one_of(numbers: list[Any], fault: Fault) -> Any:
    return random.Random(fault.strength).choice(numbers)
