"""``TokenSource.status`` and ``EntraRedis.auth_status()`` tell the truth in every state."""

from __future__ import annotations

import asyncio
import threading

import pytest
from support.pooled import LIFE, Place
from support.scripted_peer import OK
from support.token_fakes import Clock, Credential, config, source_of

from aioentra_redis import ConnectionState, TokenAcquisitionError, TokenSource, TokenState

pytestmark = pytest.mark.looptime

S = TokenState


async def test_before_the_start_and_after_the_end():
    clock = Clock()
    source = source_of(Credential(clock), clock, name="mine")
    status = source.status
    assert (status.source, status.state, status.version) == ("mine", S.STARTING, 0)
    nothing = (status.oid, status.expires_on, status.remaining, status.next_attempt_in)
    assert nothing == (None,) * 4
    assert (status.last_attempt_ago, status.acquiring_for, status.last_error) == (None,) * 3
    assert (status.acquisitions, status.published, status.subscribers) == (0, 0, 0)
    await source.start()
    kept = source.subscribe()
    assert source.status.subscribers == 1
    assert source.status.next_attempt_in is not None
    await source.aclose()
    status = source.status
    assert (status.state, status.next_attempt_in, status.subscribers) == (S.CLOSED, None, 0)
    kept.close()


def test_a_source_whose_loop_is_gone_plans_nothing():
    source = source_of(Credential(Clock()), Clock())
    asyncio.run(source.start())
    asyncio.run(source.aclose())
    assert (source.status.state, source.status.next_attempt_in) == (S.CLOSED, None)


async def test_while_a_token_is_asked_for():
    clock = Clock()
    credential = Credential(clock, life=LIFE)
    credential.delay = 4.0
    source = source_of(credential, clock, factory=True)
    starting = asyncio.create_task(source.start())
    await asyncio.sleep(3)
    status = source.status
    assert (status.state, status.acquiring_for, status.acquisitions) == (S.STARTING, 3.0, 1)
    assert (status.next_attempt_in, status.last_attempt_ago) == (None, 3.0)
    await starting
    await asyncio.sleep(6)
    assert (source.status.acquiring_for, source.status.last_attempt_ago) == (None, 10.0)
    await source.aclose()


async def test_while_renewal_fails_and_after_the_expiry():
    clock = Clock()
    credential = Credential(clock, life=LIFE)
    async with source_of(credential, clock, factory=True, refresh=config()) as source:
        credential.answer = lambda _: ConnectionError("down")
        await asyncio.sleep(LIFE * 0.6)
        status = source.status
        assert (status.state, status.version) == (S.DEGRADED, 1)
        assert status.consecutive_failures >= 3
        assert "down" in str(status.last_error)
        assert status.next_attempt_in is not None
        assert status.remaining == pytest.approx(LIFE * 0.4)
        await asyncio.sleep(LIFE)
        status = source.status
        assert (status.state, status.remaining) == (S.EXPIRED, 0.0)
        assert status.acquiring_for is None
        assert status.next_attempt_in is not None
        credential.answer = lambda _: credential.issue(life=LIFE)
        await asyncio.sleep(31)
        status = source.status
        assert (status.state, status.version, status.consecutive_failures) == (S.FRESH, 2, 0)
        assert status.last_error is None


async def test_after_a_start_that_gave_up():
    clock = Clock()
    credential = Credential(clock, lambda _: ConnectionError("down"))
    source = source_of(credential, clock)
    with pytest.raises(TokenAcquisitionError):
        await source.start()
    await asyncio.sleep(5)
    status = source.status
    assert (status.state, status.version, status.next_attempt_in) == (S.FAILED, 0, None)
    assert status.acquisitions == status.consecutive_failures == 3
    assert status.last_attempt_ago == pytest.approx(5, abs=0.01)
    await source.aclose()


@pytest.mark.looptime(False)
async def test_a_synchronous_call_that_hangs_is_told():
    release = threading.Event()

    class Hanging:
        def get_token(self, *scopes: str) -> object:
            release.wait(30)
            raise RuntimeError("too late")

    source = TokenSource(Hanging(), refresh=config(timeout=0.05, max_attempts=1))
    with pytest.raises(TokenAcquisitionError):
        await source.start()
    status = source.status
    assert status.hung_call
    assert (status.acquiring_for, status.state) == (None, S.FAILED)
    release.set()
    await source.aclose()
    assert not source.status.hung_call


# --------------------------------------------------------------------------------- connections


@pytest.fixture
async def place():
    made = Place()
    yield made
    for client in made.clients:
        if client._multiplexed is not None:
            client._multiplexed.close_timeout = 0.01
    await made.close()


async def test_every_kind_of_connection_has_its_row(place: Place):
    client = place.client()
    assert client.auth_status() == []
    await client.get("k")
    place.peer.script["SUBSCRIBE"] = lambda _, name: b">3\r\n+subscribe\r\n$1\r\nc\r\n:1\r\n"
    subscriber = client.pubsub()
    await subscriber.subscribe("c")
    async with client.client() as held:
        await held.ping()
        rows = client.auth_status()
        kinds = sorted(row.connection.partition("-")[0] for row in rows)
        assert kinds == ["connection", "dedicated", "subscriber"]
        assert {row.state for row in rows} == {ConnectionState.AUTHENTICATED}
        assert {row.token_version for row in rows} == {1}
        assert {row.host for row in rows} == {"localhost:6379"}
        assert [row.last_error for row in rows] == [None] * 3
        held_row = [row for row in held.auth_status() if row.connection.startswith("dedicated")]
        assert len(held_row) == 1
    await subscriber.aclose()  # type: ignore[no-untyped-call]
    assert "subscriber" not in {row.connection.partition("-")[0] for row in client.auth_status()}
    await client.aclose()
    assert client.auth_status() == []


async def test_a_connection_that_drains_has_a_row_until_its_end(place: Place):
    client = place.client()
    await client.get("k")
    place.peer.script["AUTH"] = [[14.0, OK]]
    await asyncio.sleep(62)
    waiting = asyncio.ensure_future(client.get("k"))
    states = {row.state for row in client.auth_status()}
    assert ConnectionState.DRAINING in states
    assert ConnectionState.AUTHENTICATED in states
    draining = [r for r in client.auth_status() if r.state is ConnectionState.DRAINING]
    assert [row.in_flight for row in draining] == [1]
    assert await waiting is None
    await asyncio.sleep(14)
    assert {row.state for row in client.auth_status()} == {ConnectionState.AUTHENTICATED}
