"""HIMPORT: field sets belong to the client, their preparation to each connection."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.scripted_peer import OK, Peer

from aioentra_redis import CommandRefusedError, EntraRedis

pytestmark = pytest.mark.capability("himport")


@contextlib.asynccontextmanager
async def client_and_peer() -> AsyncIterator[tuple[Any, Peer]]:
    answers = {b"PREPARE": OK, b"SET": OK, b"DISCARD": b":1\r\n", b"DISCARDALL": b":1\r\n"}
    peer = Peer(HIMPORT=lambda *words: answers[words[1].upper()])
    async with peer.serve() as port, EntraRedis(host="127.0.0.1", port=port, protocol=3) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # redis-py says that these methods are experimental
            await client.set("k", "v")
            yield client, peer


def imports(peer: Peer) -> list[str]:
    """The HIMPORT commands of each connection, by subcommand."""
    return [words[1].decode() for words in peer.seen("HIMPORT")]


async def test_a_set_prepares_its_fields_on_the_connection_it_goes_over():
    async with client_and_peer() as (client, peer):
        assert await client.himport_prepare("fields", ["a", "b"]) is True
        assert imports(peer) == [], "it is kept until it is needed"
        assert await client.himport_set("h", "fields", [1, 2]) is True
        assert await client.himport_set("h2", "fields", [3, 4]) is True
        assert imports(peer) == ["PREPARE", "SET", "SET"]
        assert len(peer.connections) == 2, "not the shared connection"
        assert await client.himport_discard("fields") == 1
        assert await client.himport_discard_all() == 0
        assert await client.get("k") == b"v"


async def test_in_a_pipeline_it_takes_the_pipeline_along():
    async with client_and_peer() as (client, peer):
        await client.himport_prepare("fields", ["a", "b"])
        pipe = client.pipeline(transaction=False)
        pipe.get("k")
        pipe.himport_set("h", "fields", [1, 2])
        assert await pipe.execute() == [b"v", True]
        assert imports(peer) == ["PREPARE", "SET"]
        assert len(peer.connections) == 2


async def test_on_a_connection_of_its_own_everything_is_done_at_once():
    async with client_and_peer() as (client, peer), client.client() as own:
        await own.ping()
        await own.himport_prepare("fields", ["a", "b"])
        assert imports(peer) == ["PREPARE"]
        assert await own.himport_set("h", "fields", [1, 2]) is True
        assert await own.himport_discard("fields") == 1
        assert imports(peer) == ["PREPARE", "SET", "DISCARD"]


@pytest.mark.parametrize("words", [("PREPARE", "f", "a"), ("DISCARD", "f"), ("DISCARDALL",)])
async def test_what_would_prepare_the_shared_connection_is_refused(words: tuple[str, ...]):
    async with client_and_peer() as (client, peer):
        for spelling in (("HIMPORT", *words), (f"HIMPORT {words[0]}", *words[1:])):
            with pytest.raises(CommandRefusedError, match="himport_"):
                await client.execute_command(*spelling)
        assert imports(peer) == []
