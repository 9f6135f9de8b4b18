"""A cluster for the tests of a session, one for each process of the run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from .free_tokens import OID
from .server_cluster import ServerCluster

__all__ = ["server_cluster", "server_cluster_process"]


@pytest.fixture(scope="session")
def server_cluster_process() -> Iterator[ServerCluster]:
    """Three primaries with a replica each; ``OID`` may sign in. Ask for ``server_cluster``."""
    made = ServerCluster(users=[OID])
    asyncio.run(made.start())
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
async def server_cluster(server_cluster_process: ServerCluster) -> AsyncIterator[ServerCluster]:
    """The session's cluster, empty and whole; what a test does to it is mended after the test."""
    yield server_cluster_process
    await server_cluster_process.tidy()
