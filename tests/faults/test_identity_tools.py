"""Credentials without a cache of their own: command line tools, and chains of them."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.identity_outage import young_heap
from support.signing_in import BRISK, Traffic, Witness, client_of, until

from aioentra_redis import (
    IdentityChangedError,
    RefreshFailed,
    TokenPublished,
    TokenSource,
    TokenState,
)
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

Figure = Callable[..., None]
LIFE = 16.0
LONGER = 24.0
"""What opening fifty connections over TLS fits into the first half of, on a busy machine too."""

AZ = """#!/bin/sh
# What 'az account get-access-token' prints, from a file, and a line in a log for each call.
echo "$@" >> {folder}/calls
[ -e {folder}/broken ] && { echo "ERROR: Please run 'az login' to setup account." >&2; exit 1; }
sleep 0.3
answer=$(cat {folder}/answer)
echo "$answer" >> {folder}/given
echo "$answer"
"""


class Tool:
    """An ``az`` on PATH that gets its tokens from the emulator, one for each ``renew``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = folder / "az"
        script.write_text(AZ.replace("{folder}", str(folder)))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        (folder / "calls").touch()
        (folder / "given").touch()

    @property
    def calls(self) -> int:
        return len((self.folder / "calls").read_text().splitlines())

    @property
    def given(self) -> int:
        """How often it has given the token that it gives now."""
        answer = (self.folder / "answer").read_text().strip()
        return (self.folder / "given").read_text().splitlines().count(answer)

    async def renew(self, emulator: Emulator, life: float = LIFE) -> None:
        token = await emulator.issue_token(lifetime=life)
        moment = int(time.time() + life)
        (self.folder / "answer.new").write_text(
            f'{{"accessToken": "{token}", "expires_on": {moment}, "tokenType": "Bearer"}}'
        )
        (self.folder / "answer.new").replace(self.folder / "answer")

    def break_down(self) -> None:
        (self.folder / "broken").touch()


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tool]:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Tool(tmp_path)


async def test_one_acquisition_per_rotation_for_fifty_connections(
    entra_emulator: Emulator, figure: Figure, tool: Tool
) -> None:
    from azure.identity.aio import AzureCliCredential

    await tool.renew(entra_emulator, LONGER)
    witness = Witness()
    async with AzureCliCredential() as credential:
        source = TokenSource(credential, refresh=BRISK, on_event=witness)
        async with source:
            clients = [await client_of(entra_emulator, source) for _ in range(50)]
            assert await asyncio.gather(*(each.ping() for each in clients)) == [True] * 50
            assert tool.calls == 1
            traffic = Traffic(clients[0], 5)
            for rotation in (2, 3):
                # A new token is there before it is asked for, as the tool's own cache would have,
                # unless this machine is slow: then it is asked once in vain.
                await tool.renew(entra_emulator, LONGER)
                await witness.at_least(rotation, TokenPublished, timeout=LONGER)
                await until(
                    lambda version=rotation: all(  # type: ignore[misc]
                        each.auth_status()[0].token_version == version for each in clients
                    ),
                    timeout=LONGER,
                )
                figure(f"acquisitions, rotation {rotation - 1}", tool.given, target="1")
                assert tool.given == 1
            await traffic.stop()
            assert (traffic.errors, traffic.wrong) == ([], [])
            for client in clients:
                await client.aclose()
    auths = (await entra_emulator.log()).auths
    figure("AUTHs per connection and token", len(auths) / 150, target="1")
    assert len(auths) == 150
    assert all(each.accepted for each in auths)


async def test_a_chain_that_falls_through_to_another_identity(
    entra_emulator: Emulator,
    figure: Figure,
    tool: Tool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``az`` is signed out; next in the chain comes the machine's own identity."""
    from azure.identity.aio import (
        AzureCliCredential,
        ChainedTokenCredential,
        ManagedIdentityCredential,
    )

    for name, value in entra_emulator.environ("imds").items():
        monkeypatch.setenv(name, value)
    await tool.renew(entra_emulator)
    witness = Witness()

    def chain() -> ChainedTokenCredential:
        return ChainedTokenCredential(AzureCliCredential(), ManagedIdentityCredential())

    source = TokenSource.from_credential_factory(chain, refresh=BRISK, on_event=witness)
    with young_heap():
        async with source, client_of(entra_emulator, source) as redis:
            traffic = Traffic(redis, 5)
            tool.break_down()
            failure = await witness.first(RefreshFailed, timeout=LIFE)
            assert isinstance(failure.error, IdentityChangedError)
            assert entra_emulator.system_assigned.object_id in str(failure.error)
            assert failure.state is source.state is TokenState.DEGRADED
            figure("failed commands", len(traffic.errors), target="0")
            assert (traffic.errors, traffic.wrong) == ([], [])
            # Signed in with the tool again, all is well.
            await tool.renew(entra_emulator)
            (tool.folder / "broken").unlink()
            await witness.at_least(2, TokenPublished)
            await traffic.stop()
            assert (traffic.errors, traffic.wrong) == ([], [])
    me = entra_emulator.service_principal.object_id
    others = [each for each in (await entra_emulator.log()).auths if each.object_id != me]
    figure("AUTHs as somebody else", len(others), target="0")
    assert others == []
