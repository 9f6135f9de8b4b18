"""redis-py's client and ours run the same random programs and must agree in every reply.

This is the short run; ``nox -s differential`` is the long one. What is run and what is compared is
told in ``tests/differential/``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from differential.broken import BROKEN, AnotherDatabase, SentTwice, SwappedReplies
from differential.campaign import campaign
from differential.comparison import Difference
from differential.contest import Contest
from differential.peers import EmulatorPeer, Valkey, ValkeyCluster, valkey, valkey_cluster

from aioentra_redis import EntraRedis
from aioentra_redis.emulator import Emulator

pytestmark = pytest.mark.emulator

SEED = 20261122


@pytest.fixture(scope="module")
def oracle() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


@pytest.fixture(scope="module")
def peer() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


async def test_same_replies_on_valkey(oracle: Valkey, peer: Valkey) -> None:
    async with Contest(oracle, peer) as contest:
        await campaign(contest, commands=3_000, seed=SEED, programs_at_once=12)
    tally = contest.tally
    assert tally.replies > tally.counts.commands / 2  # some are cancelled, or fail together
    assert tally.rotations > 5
    for kind in ("pipelines", "transactions", "scripts", "blocking", "cancelled_in_time"):
        assert getattr(tally.counts, kind) > 10, kind


async def test_same_replies_on_the_emulator(oracle: Valkey, entra_emulator: Emulator) -> None:
    async with Contest(oracle, EmulatorPeer(entra_emulator)) as contest:
        await campaign(contest, commands=800, seed=SEED, programs_at_once=8)
    assert contest.tally.rotations > 2


@pytest.fixture(scope="module")
def clusters() -> Iterator[tuple[ValkeyCluster, ValkeyCluster]]:
    with valkey_cluster() as oracle, valkey_cluster() as peer:
        yield oracle, peer


@pytest.mark.timeout(180)
async def test_same_replies_on_a_cluster(clusters: tuple[ValkeyCluster, ValkeyCluster]) -> None:
    # A busy machine has three servers more to run: tokens that live for long enough.
    async with Contest(*clusters, rotate=1.0) as contest:
        await campaign(contest, commands=800, seed=SEED, programs_at_once=8)
    tally = contest.tally
    assert tally.replies > tally.counts.commands / 2
    assert tally.tokens > 1
    for kind in ("pipelines", "transactions", "scripts", "blocking", "cancelled_in_time"):
        assert getattr(tally.counts, kind) > 2, kind


async def test_a_broken_cluster_client_is_found(
    clusters: tuple[ValkeyCluster, ValkeyCluster],
) -> None:
    async with Contest(*clusters, client_class=SentTwice) as contest:
        with pytest.raises(Difference):
            await campaign(contest, commands=20_000, seed=SEED)


FOUND_SOON = (AnotherDatabase, SwappedReplies)


@pytest.mark.parametrize(
    "client_class",
    [
        pytest.param(
            each, id=each.__name__, marks=() if each in FOUND_SOON else (pytest.mark.slow,)
        )
        for each in BROKEN
    ],
)
async def test_a_broken_client_is_found(
    oracle: Valkey, peer: Valkey, client_class: type[EntraRedis]
) -> None:
    async with Contest(oracle, peer, client_class=client_class) as contest:
        with pytest.raises(Difference):
            await campaign(contest, commands=20_000, seed=SEED)
