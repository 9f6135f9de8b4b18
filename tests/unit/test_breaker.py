"""What a refused token means for a server's other connections, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError
from support.plain_place import Place as PlainPlace
from support.pooled import Place
from support.scripted_peer import HANG, HELLO, OK

from aioentra_redis import (
    BreakerClosed,
    BreakerOpened,
    ConnectionState,
    EntraRedis,
    Reauthenticated,
    ReauthenticationFailed,
    SignInRefusedError,
    TokenExpiredError,
)
from aioentra_redis._breaker import TRANSITIONS, Breaker, BreakerState
from aioentra_redis._schedule import AUTH_TIMEOUT, probe_delay
from aioentra_redis._servers import Servers, is_refusal, server_of
from aioentra_redis._token import Token

pytestmark = pytest.mark.looptime

S = BreakerState
WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
DUE = 61.0
"""When each connection of ``Place`` has come to its second token."""


def now() -> float:
    return asyncio.get_running_loop().time()


# -------------------------------------------------------------------------------------- table

ALLOWED = {
    (S.CLOSED, S.OPEN),
    (S.OPEN, S.HALF_OPEN),
    (S.OPEN, S.CLOSED),
    (S.HALF_OPEN, S.OPEN),
    (S.HALF_OPEN, S.CLOSED),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(S, S)))
def test_every_transition(old: BreakerState, new: BreakerState):
    breaker = Breaker()
    breaker.state = old
    assert (new in TRANSITIONS[old]) is ((old, new) in ALLOWED)
    if (old, new) in ALLOWED:
        breaker._move_to(new)
        assert breaker.state is new
    else:
        with pytest.raises(RuntimeError, match="a breaker can't go from"):
            breaker._move_to(new)


def test_probes_are_doubled_between_their_bounds():
    assert [probe_delay(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


def refused_at(at: float, version: int = 2) -> Breaker:
    breaker = Breaker()
    breaker.begin(at)
    breaker.refused(version, at, probe=False)
    return breaker


def test_one_refusal_is_for_all():
    breaker = refused_at(10.0)
    assert breaker.state is S.OPEN
    assert not breaker.admits(2, 10.5)
    assert breaker.next_look(10.5) == 11.0
    assert breaker.admits(2, 11.0)


def test_a_newer_token_is_admitted_at_once():
    breaker = refused_at(10.0)
    assert breaker.admits(3, 10.0)
    assert not breaker.admits(1, 10.0)


def test_one_probe_at_a_time():
    breaker = refused_at(10.0)
    assert breaker.begin(11.0) is True
    assert breaker.state is S.HALF_OPEN
    assert not breaker.admits(2, 11.5)
    assert not breaker.admits(3, 11.5)
    breaker.refused(2, 11.6, probe=True)
    assert breaker.state is S.OPEN
    assert breaker.next_look(11.6) == pytest.approx(13.6)


def test_demand_gets_a_second_chance_after_a_single_refusal():
    breaker = refused_at(10.0)
    assert breaker.admits(2, 10.0, demand=True)
    breaker.begin(10.0)
    breaker.refused(2, 10.1, probe=True)
    assert not breaker.admits(2, 10.1, demand=True)


def test_stragglers_change_nothing():
    breaker = refused_at(10.0)
    for _ in range(7):
        breaker.refused(2, 10.2, probe=False)
    assert breaker.refusals == 1
    assert breaker.next_look(10.2) == 11.0
    breaker.accepted(1)
    assert breaker.state is S.OPEN, "an older token says nothing of the newer one"
    breaker.accepted(2)
    assert breaker.state is S.CLOSED


def test_an_older_token_that_is_refused_late_does_not_open_it():
    breaker = Breaker()
    breaker.accepted(3)
    breaker.refused(2, 10.0, probe=False)
    assert breaker.state is S.CLOSED


def test_a_probe_that_is_never_heard_of_again_holds_nobody_up_for_long():
    breaker = refused_at(10.0)
    breaker.begin(11.0)
    assert not breaker.admits(2, 11.0 + AUTH_TIMEOUT - 0.1)
    assert breaker.admits(2, 11.0 + AUTH_TIMEOUT)
    assert breaker.begin(11.0 + AUTH_TIMEOUT) is True


def test_a_probe_without_an_answer_lets_the_next_one_try():
    breaker = refused_at(10.0)
    breaker.begin(11.0)
    breaker.unanswered()
    assert breaker.admits(2, 11.1)


# ------------------------------------------------------------------------------- which errors


def test_what_is_a_refusal():
    theirs = AuthenticationError("WRONGPASS")
    ours = SignInRefusedError("refused", stage="auth")
    ours.__cause__ = theirs
    assert is_refusal(theirs)
    assert is_refusal(ours)
    assert not is_refusal(TokenExpiredError("no token"))
    denied = SignInRefusedError("denied a command", stage="auth")
    denied.__cause__ = NoPermissionError("NOPERM")
    assert not is_refusal(denied)
    assert not is_refusal(TimeoutError())


async def test_each_server_has_its_own():
    servers = Servers(8, lambda event: None)
    token = Token("s", username="u", expires_on=1e9, first_seen=0.0, version=1)
    here, there = servers.of("a:1"), servers.of("b:1")
    assert servers.of("a:1") is here
    here.begin(token).refused(AuthenticationError("WRONGPASS"), token)
    assert not here.admits(token)
    assert there.admits(token)


async def test_only_what_matters_is_remembered_of_servers_that_are_gone():
    servers = Servers(8, lambda event: None)
    token = Token("s", username="u", expires_on=1e9, first_seen=0.0, version=1)
    refusing, connected, signing_in = (servers.of(f"{name}:1") for name in "abc")
    refusing.begin(token).refused(AuthenticationError("WRONGPASS"), token)
    stop = connected.listen(lambda: None)
    slot = signing_in.budget.take_now()
    assert slot is not None
    for number in range(1000):
        servers.of(f"gone-{number}:1")
    assert len(servers._known) <= 64
    assert [servers.of(f"{name}:1") for name in "abc"] == [refusing, connected, signing_in]
    stop()
    slot.release()
    for number in range(100):
        servers.of(f"gone-{number}:1")
    assert servers.of("a:1") is refusing
    assert servers.of("b:1") is not connected


# --------------------------------------------------------------------------------- connections


@pytest.fixture
async def place():
    made = Place()
    yield made
    await made.close()


def refuse(place: Place) -> None:
    place.peer.script["AUTH"] = place.peer.script["HELLO"] = lambda *_: WRONGPASS


def accept(place: Place) -> None:
    place.peer.script["AUTH"], place.peer.script["HELLO"] = (lambda *_: OK), (lambda *_: HELLO)


async def lagging(place: Place, connections: int, life: float = 3600.0) -> EntraRedis:
    """A client whose connections have been given a token that the server refuses."""
    place.credential.answer = lambda _: place.credential.issue(life=life)
    client = place.client()
    await client.ping()
    await place.idle(client, connections)
    refuse(place)
    return client


async def test_many_connections_ask_as_one(place: Place):
    client = await lagging(place, 20)
    await asyncio.sleep(3600 - 170)  # past the jitter of all
    auths = len(place.peer.seen("AUTH"))
    assert auths <= 30, "not one for each, time and again"
    assert len(place.of(BreakerOpened)) == 1
    assert place.of(BreakerClosed) == []
    assert place.peer.dials == 21
    assert await client.ping(), "what is signed in goes on"
    assert {row.token_version for row in client.auth_status()} == {1}
    assert {row.state for row in client.auth_status()} == {ConnectionState.STALE}
    assert all("username-password" in str(row.last_error) for row in client.auth_status())


async def test_all_are_renewed_when_the_server_takes_tokens_again(place: Place):
    client = await lagging(place, 20)
    await asyncio.sleep(3600 - 300)
    accept(place)
    await asyncio.sleep(32)
    assert len(place.of(BreakerClosed)) == 1
    await asyncio.sleep(100)
    assert {row.token_version for row in client.auth_status()} == {2}
    assert {row.state for row in client.auth_status()} == {ConnectionState.AUTHENTICATED}
    assert len(place.of(Reauthenticated)) == 21
    assert place.peer.dials == 21
    (closed,) = place.of(BreakerClosed)
    assert closed.refusals > 5
    assert closed.host == "localhost:6379"


async def test_new_connections_fail_at_once_with_the_cause_and_without_an_auth(place: Place):
    client = await lagging(place, 1)
    await asyncio.sleep(3600 - 200)
    pool: Any = client.connection_pool
    (idle,) = await place.leased(client, 1)
    before = len(place.peer.seen("AUTH")) + len(place.peer.seen("HELLO")), place.peer.dials
    at = now()
    for _ in range(50):
        with pytest.raises(SignInRefusedError, match=r"WRONGPASS .*; next try in") as caught:
            await pool.get_connection()
        assert caught.value.retry_in is not None
        assert 0 <= caught.value.retry_in <= 30
        assert (caught.value.host, caught.value.port) == ("localhost", 6379)
    assert now() == at
    after = len(place.peer.seen("AUTH")) + len(place.peer.seen("HELLO")), place.peer.dials
    assert after == before
    await pool.release(idle)


async def test_commands_without_a_session_fail_at_once_and_recover_with_the_probe(place: Place):
    client = place.client()
    await client.ping()
    refuse(place)
    place.peer.cut()
    at = now()
    with pytest.raises(SignInRefusedError, match="WRONGPASS"):
        await client.ping()
    assert now() - at < 0.2, "after the second refusal, no timeout"
    for _ in range(100):
        with pytest.raises(SignInRefusedError, match="next try in"):
            await client.ping()
        await asyncio.sleep(0.1)
    dials = place.peer.dials
    assert dials <= 1 + 5
    accept(place)
    while True:
        try:
            assert await client.ping()
            break
        except SignInRefusedError:
            await asyncio.sleep(0.1)
    assert now() - at < 10 + 8 + 1
    assert place.peer.dials == dials + 1


async def test_a_newer_token_ends_the_pause(place: Place):
    client = place.client()
    await client.ping()
    refuse(place)
    place.peer.cut()
    while place.peer.dials < 6:
        with pytest.raises(SignInRefusedError):
            await client.ping()
        await asyncio.sleep(0.1)
    await asyncio.sleep(50.5 - now())
    dials = place.peer.dials
    await asyncio.sleep(0.5)
    assert place.source.current is not None
    assert place.source.current.version == 2
    assert place.peer.dials >= dials
    seen = [words for words in place.peer.seen("HELLO") if words[-1] is not None]
    secret = place.source.current.secret.encode()
    assert any(secret in words for words in seen), "it was tried at once"


async def test_one_refusal_among_many_fails_no_command(place: Place):
    client = place.client()
    await client.ping()
    place.peer.script["HELLO"] = [WRONGPASS]
    place.peer.cut()
    assert await client.ping(), "one more try is made before the refusal is believed"
    assert place.peer.dials == 3


async def test_a_single_refusal_of_an_auth_is_told_and_made_good(place: Place):
    client = place.client()
    await client.ping()
    place.peer.script["AUTH"] = [WRONGPASS]
    await asyncio.sleep(DUE + 2)
    assert len(place.of(ReauthenticationFailed)) == 1
    assert len(place.of(BreakerOpened)) == len(place.of(BreakerClosed)) == 1
    assert [row.token_version for row in client.auth_status()] == [2]
    assert place.of(BreakerClosed)[0].refusals == 1


async def test_those_who_wait_for_the_probe_get_what_it_brings(place: Place):
    client = place.client()
    await client.ping()
    refuse(place)
    place.peer.cut()
    for _ in range(30):
        with pytest.raises(SignInRefusedError):
            await client.ping()
        await asyncio.sleep(0.1)
    place.peer.script["HELLO"] = lambda *_: [0.5, HELLO]
    while place.peer.open == []:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    pool: Any = client.connection_pool
    connections = await asyncio.gather(*(pool.get_connection() for _ in range(20)))
    assert len(place.peer.open) == 21
    for each in connections:
        await pool.release(each)


async def test_who_asks_for_a_newer_token_meanwhile_is_told_nothing_of_the_past(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    client = place.client()
    await client.ping()
    refuse(place)
    place.peer.cut()
    for _ in range(3):
        with pytest.raises(SignInRefusedError):
            await client.ping()
        await asyncio.sleep(0.1)
    server = server_of(place.source, "localhost:6379")
    get = place.source.get

    async def meanwhile() -> Token:
        if not server.is_closed:
            accept(place)
            server.begin(token_of(9)).accepted()
        return await get()

    monkeypatch.setattr(place.source, "get", meanwhile)
    assert await client.ping()


# ------------------------------------------------------------------- probes that end without a word


def token_of(version: int) -> Token:
    return Token("s", username="u", expires_on=1e9, first_seen=0.0, version=version)


async def test_a_probe_with_an_older_token_than_the_refused_one_is_over_when_it_is_accepted():
    server = Servers(8, lambda event: None).of("a:1")
    first, second = server.begin(token_of(2)), server.begin(token_of(3))
    first.refused(AuthenticationError("WRONGPASS"), token_of(2))
    await asyncio.sleep(1)
    probe = server.begin(token_of(2))
    second.refused(AuthenticationError("WRONGPASS"), token_of(3))
    probe.accepted()
    assert server.breaker.state is S.OPEN
    assert server.admits(token_of(3))


@pytest.fixture
async def plain():
    made = PlainPlace(life=100.0)
    yield made
    await made.close()


async def test_a_probe_of_a_plain_client_that_is_cancelled_holds_nobody_up(plain: PlainPlace):
    await plain.client.ping()
    plain.answers = [WRONGPASS, HANG]
    await asyncio.sleep(65)
    await plain.client.ping()
    await asyncio.sleep(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await plain.client.ping()
    assert len(plain.auths) == 2
    assert await plain.client.ping(), "it connects anew at once, and is signed in by that"
    assert now() == pytest.approx(66.5)
