"""``EntraRedis.health()``: what it finds, what it concludes, and what it leaves alone."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest
import redis.asyncio
from support.place import Place as PlainPlace
from support.pooled import LIFE, Place
from support.scripted_peer import CUT, HANG, OK, PONG
from support.token_fakes import CANARY

from aioentra_redis import (
    ConfigurationError,
    ConnectionState,
    ConnectionStatus,
    Health,
    HealthState,
    TokenState,
    TokenStatus,
    WrongLoopError,
)
from aioentra_redis._health import RESTART_INTERVAL, judge
from aioentra_redis._multiplex import _connection

pytestmark = pytest.mark.looptime

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
Down = ConnectionError


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
async def place():
    made = Place()
    yield made
    for client in made.clients:
        if client._multiplexed is not None:
            client._multiplexed.close_timeout = 0.01
    await made.close()


# ------------------------------------------------------------------------------- what it finds


async def test_a_client_that_works_is_healthy(place: Place):
    place.peer.script["PING"] = lambda *_: [0.25, PONG]
    client = place.client()
    await client.get("k")
    health = await client.health()
    assert health.state is HealthState.HEALTHY
    assert health.ok
    assert health.ping == pytest.approx(0.25, abs=0.01)
    assert health.token_state is TokenState.FRESH
    assert health.token_expires_in == pytest.approx(LIFE, abs=1)
    assert (health.reasons, health.lagging, health.last_error) == ((), (), None)
    assert health.connections == 1
    assert place.peer.dials == 1, "the PING goes over the connection that commands use"


async def test_it_connects_where_no_command_has_yet(place: Place):
    """A service that waits to be ready before it gets requests would else never be."""
    health = await place.client().health()
    assert health.state is HealthState.HEALTHY
    assert health.connections == 1


async def test_a_client_without_tokens(monkeypatch: pytest.MonkeyPatch):
    plain = PlainPlace()
    monkeypatch.setattr(_connection, "dial", plain.dial)
    health = await plain.client().health()
    assert health.state is HealthState.HEALTHY
    assert (health.token_state, health.token_expires_in) == (None, None)
    plain.peer.script["PING"] = lambda *_: HANG
    health = await plain.clients[0].health(timeout=0.5)
    assert health.state is HealthState.UNHEALTHY
    assert health.reasons == ("no answer to PING within 0.5 s",)
    await plain.aclose()


async def test_a_client_on_a_connection_of_its_own(place: Place):
    client = place.client()
    async with client.client() as held:
        await held.ping()
        health = await held.health()
        assert health.state is HealthState.HEALTHY
        assert health.token_state is TokenState.FRESH


async def test_a_server_that_does_not_answer_costs_no_more_than_the_timeout(place: Place):
    client = place.client()
    await client.get("k")
    place.peer.script["PING"] = lambda *_: HANG
    before = now()
    health = await client.health()
    assert now() - before == pytest.approx(2.0, abs=0.01)
    assert health.state is HealthState.UNHEALTHY
    assert not health.ok
    assert health.ping is None
    assert "no answer to PING within 2 s" in health.reasons
    assert health.token_state is TokenState.FRESH


async def test_a_server_that_is_away(place: Place, monkeypatch: pytest.MonkeyPatch):
    client = place.client()
    await client.get("k")

    async def refused(_: Any) -> Any:
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(_connection, "dial", refused)
    place.peer.cut()
    await asyncio.sleep(1)
    before = now()
    health = await client.health(timeout=1.5)
    assert now() - before == pytest.approx(1.5, abs=0.01)
    assert health.state is HealthState.UNHEALTHY
    assert "no connection within 1.5 s" in health.reasons[0]
    assert "nothing listens at" in str(health.last_error)
    assert health.connections == 0


async def test_a_lost_connection_is_not_the_end_of_it(place: Place):
    client = place.client()
    await client.get("k")
    place.peer.script["PING"] = [CUT]
    health = await client.health()
    assert health.state is HealthState.HEALTHY
    assert place.peer.dials == 2


async def test_a_refused_ping_is_an_answer_but_an_error_is_not(place: Place):
    client = place.client()
    place.peer.script["PING"] = [b"-NOPERM this user has no permissions\r\n", b"-LOADING wait\r\n"]
    assert (await client.health()).state is HealthState.HEALTHY
    health = await client.health()
    assert health.state is HealthState.UNHEALTHY
    assert "wait" in str(health.last_error)


async def test_a_closed_client_says_so(place: Place):
    client = place.client()
    await client.get("k")
    await client.aclose()
    health = await client.health()
    assert health.state is HealthState.UNHEALTHY
    assert "closed" in health.reasons[0]


async def test_an_unusable_timeout_is_an_error(place: Place):
    for wrong in (0, -1, None, True):
        with pytest.raises(ConfigurationError):
            await place.client().health(timeout=wrong)  # type: ignore[arg-type]


async def test_another_loop_is_an_error(place: Place):
    client = place.client()
    await client.get("k")
    with pytest.raises(WrongLoopError):
        await asyncio.to_thread(lambda: asyncio.run(client.health()))


async def test_cancelling_it_leaves_the_connection_in_step(place: Place):
    client = place.client()
    await client.set("k", "v")
    place.peer.script["PING"] = lambda *_: [1.0, PONG]
    for seconds in (0, 0.001, 0.5):
        examining = asyncio.ensure_future(client.health())
        await asyncio.sleep(seconds)
        examining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await examining
        assert await client.get("k") == b"v"


async def test_many_at_once(place: Place):
    client = place.client()
    found = await asyncio.gather(*[client.health() for _ in range(50)])
    assert {each.state for each in found} == {HealthState.HEALTHY}
    assert place.peer.dials == 1


# ------------------------------------------------------------------------------ tokens and outages


async def test_the_identity_provider_is_down(place: Place):
    client = place.client()
    await client.get("k")
    place.credential.answer = lambda _: Down(f"no token {CANARY}")
    await asyncio.sleep(LIFE * 0.8)
    health = await client.health()
    assert (health.state, health.ok) == (HealthState.DEGRADED, True)
    assert health.ping is not None
    assert health.token_state is TokenState.DEGRADED
    assert "renewing the token fails" in health.reasons[0]
    await asyncio.sleep(LIFE * 0.2)
    health = await client.health()
    assert (health.state, health.ok) == (HealthState.UNHEALTHY, False)
    assert health.token_state is TokenState.EXPIRED
    assert health.token_expires_in == 0


async def test_probes_in_an_outage_ask_the_identity_provider_for_nothing(place: Place):
    """Past the expiry it is demand that sets the pace, and a probe is none."""

    async def attempts(probe_every: float | None) -> int:
        it = Place()
        client = it.client()
        await client.get("k")
        it.credential.answer = lambda _: Down("no")
        await asyncio.sleep(LIFE + 1)
        it.peer.cut()
        await asyncio.sleep(10)
        before = len(it.credential.calls)
        client._multiplexed._connecting.stop()  # dials need a token, too
        await asyncio.sleep(0)
        for _ in range(120):
            if probe_every is not None:
                health = await client.health()
                assert health.state is HealthState.UNHEALTHY
                assert "no valid token to make one with" in health.reasons[0]
            await asyncio.sleep(0.5)
        calls = len(it.credential.calls) - before
        await it.close()
        return calls

    quiet, probed = await attempts(None), await attempts(0.5)
    assert 0 < quiet < 20
    assert abs(probed - quiet) <= 3  # a burst


async def test_a_source_that_gave_up_at_its_start_is_started_again_now_and_then(place: Place):
    client = place.client()
    place.credential.answer = lambda _: Down("no")
    starts = 0
    for _ in range(240):
        before = len(place.credential.calls)
        health = await client.health()
        assert health.state is HealthState.UNHEALTHY
        starts += len(place.credential.calls) > before
        await asyncio.sleep(0.5)
    assert place.source.state is TokenState.FAILED
    assert 3 <= starts <= 2 + now() / RESTART_INTERVAL
    place.credential.answer = lambda _: place.credential.issue(life=LIFE)
    await asyncio.sleep(RESTART_INTERVAL)
    assert (await client.health()).state is HealthState.HEALTHY


async def test_a_connection_whose_token_was_refused_degrades(place: Place):
    client = place.client()
    await client.get("k")
    place.peer.script["AUTH"] = lambda *_: WRONGPASS
    await asyncio.sleep(65)
    (row,) = client.auth_status()
    assert row.state is ConnectionState.STALE
    assert "invalid username-password pair" in str(row.last_error)
    health = await client.health()
    assert health.state is HealthState.DEGRADED
    assert health.lagging == (row.connection,)
    assert row.connection in health.reasons[0]
    assert "invalid username-password pair" in str(health.last_error)
    place.peer.script["AUTH"] = lambda *_: OK
    await asyncio.sleep(30)
    (row,) = client.auth_status()
    assert (row.state, row.last_error) == (ConnectionState.AUTHENTICATED, None)
    assert (await client.health()).state is HealthState.HEALTHY


async def test_a_connection_that_only_waits_for_its_turn_is_lagging_and_healthy(place: Place):
    client = place.client()
    await client.get("k")
    subscription = place.source.subscribe(after=1)
    assert (await anext(subscription)).version == 2  # type: ignore[union-attr]
    health = await client.health()
    assert health.state is HealthState.HEALTHY
    assert len(health.lagging) == 1


# ----------------------------------------------------------------------------------- the verdict


def row(state: ConnectionState = ConnectionState.AUTHENTICATED, **changes: Any) -> ConnectionStatus:
    made = ConnectionStatus("connection-1", "peer", state, 1, 0.0, 0.0, 0.0, 0, 0, None)
    return dataclasses.replace(made, **changes)


def token(state: TokenState = TokenState.FRESH, **changes: Any) -> TokenStatus:
    made = TokenStatus(
        *("mine", state, 1, "oid", 0.0, 10.0, 1.0, 1.0, 0, None, 1, 1, None), False, 1
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        (TokenState.STARTING, HealthState.HEALTHY),
        (TokenState.FRESH, HealthState.HEALTHY),
        (TokenState.DUE, HealthState.HEALTHY),
        (TokenState.DEGRADED, HealthState.DEGRADED),
        (TokenState.EXPIRED, HealthState.UNHEALTHY),
        (TokenState.FAILED, HealthState.UNHEALTHY),
        (TokenState.CLOSED, HealthState.UNHEALTHY),
    ],
)
def test_every_state_of_the_token(state: TokenState, verdict: HealthState):
    assert judge(0.1, None, token(state), [row()]).state is verdict
    assert judge(None, "no answer", token(state), []).state is HealthState.UNHEALTHY
    hung = judge(0.1, None, token(state, hung_call=True), [row()])
    assert hung.state is not HealthState.HEALTHY
    assert any("hangs" in each for each in hung.reasons)


def test_the_worst_reason_comes_first_and_nothing_like_a_token_is_shown():
    error = RuntimeError("could not parse eyJhbGciOiJS.eyJvaWQiOiJv.c4n4ry")
    rows = [row(ConnectionState.STALE, last_error=error), row(connection="connection-2")]
    health = judge(None, "no answer", token(TokenState.DEGRADED, last_error=error), rows)
    assert health.reasons[0] == "no answer"
    assert "1 of 2 connections" in health.reasons[2]
    assert CANARY not in f"{health} {health.as_dict()}"


def test_it_is_json():
    for health in (
        judge(0.1, None, token(), [row(), row(connection="connection-2", token_version=0)]),
        judge(None, "no", None, [row(token_version=None)]),
    ):
        shown = json.loads(json.dumps(health.as_dict()))
        assert shown.keys() == {each.name for each in dataclasses.fields(Health)}
        assert shown["state"] == health.state.value
        assert shown["lagging"] == list(health.lagging)
        with pytest.raises(dataclasses.FrozenInstanceError):
            health.ping = 1.0  # type: ignore[misc]


def test_it_is_there_on_every_supported_redis_py():
    """redis-py has no method of that name that ours would hide."""
    assert not hasattr(redis.asyncio.Redis, "health")
    assert not hasattr(redis.asyncio.Redis, "events")
