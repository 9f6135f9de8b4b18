"""The states of a token source, its clock, and the arguments it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.source_watch import at, states
from support.token_fakes import (
    EPOCH,
    CachingCredential,
    Clock,
    Credential,
    Provider,
    config,
    source_of,
)

from aioentra_redis._events import (
    Event,
    TokenState,
    TokenStateChanged,
)
from aioentra_redis._source import TokenSource
from aioentra_redis._token_states import TRANSITIONS
from aioentra_redis.errors import (
    ConfigurationError,
    TokenAcquisitionError,
    TokenExpiredError,
)

S = TokenState


pytestmark = pytest.mark.looptime


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ------------------------------------------------------------------------------------ the clock


async def test_waking_from_suspension(clock: Clock):
    credential = Provider(clock)
    async with source_of(credential, clock) as source:
        await at(100)
        clock.step(8 * 3600)
        assert source.state is S.EXPIRED
        # Nothing has failed: the first command waits for the one request that is needed.
        credential.delay = 0.5
        token = await source.get()
        assert token.version == 2
        assert asyncio.get_running_loop().time() < 103


async def test_waking_from_suspension_is_noticed_without_demand(clock: Clock):
    credential = Provider(clock)
    events: list[Event] = []
    async with source_of(credential, clock, on_event=events.append) as source:
        await at(100)
        clock.step(8 * 3600)
        await at(132)
        assert source.current.version == 2
    assert states(events) == [S.FRESH, S.EXPIRED, S.FRESH, S.CLOSED]


async def test_waking_up_while_the_provider_hangs(clock: Clock):
    credential = Provider(clock)
    async with source_of(credential, clock) as source:
        await at(100)
        clock.step(8 * 3600)
        credential.delay = 1e6
        before = asyncio.get_running_loop().time()
        with pytest.raises(TokenExpiredError, match="none came yet"):
            await source.get()
        assert asyncio.get_running_loop().time() - before <= 2.1


async def test_a_clock_that_is_stepped_back(clock: Clock):
    """A token ages all the same: it is renewed when its time has come, not an hour later."""
    true = asyncio.get_running_loop().time  # what the authority goes by, and the server
    credential = Credential(
        clock,
        lambda _: credential.issue(3600, iat=EPOCH + true(), exp=EPOCH + true() + 3600),
    )
    async with source_of(credential, clock, factory=True) as source:
        held = source.current
        await at(100)
        clock.step(-3600)
        await at(2879)
        assert source.current is held
        assert source.now(held) == pytest.approx(EPOCH + 2879, abs=1)
        assert source.now() == pytest.approx(EPOCH - 721, abs=1)
        await at(2890)
        # Its expiry is earlier by this clock than that of the token before.
        assert source.current.version == 2
        assert source.current.expires_on < held.expires_on
        assert source.state is S.FRESH
        await at(2880 + 2879)
        assert source.current.version == 2
        await at(2880 + 2890)
        assert source.current.version == 3


async def test_a_clock_that_is_stepped_back_under_a_cache_that_believes_it(clock: Clock):
    """Nothing newer can be had of the SDK's cache: one asks, in vain, but not in a storm."""
    credential = CachingCredential(clock)
    async with source_of(credential, clock) as source:
        await at(3400)
        version = source.current.version
        calls = len(credential.calls)
        clock.step(-3600)
        await at(6600)
        assert len(credential.calls) == calls
        assert source.state is S.FRESH
        await at(3400 + 3600)
        assert len(credential.calls) - calls <= 60
        assert source.current.version == version
        assert source.state is S.DEGRADED  # and it says so
        assert "keeps returning the same token" in str(source.status.last_error)
        assert (await source.get()) is source.current


async def test_a_clock_that_is_stepped_forth_and_back(clock: Clock):
    credential = Provider(clock)
    async with source_of(credential, clock) as source:
        await at(100)
        clock.step(8 * 3600)
        credential.down = ConnectionError("refused")
        await at(140)
        assert source.state is S.EXPIRED
        clock.step(-8 * 3600)
        assert source.state is S.DUE
        assert (await source.get()).version == 1
        calls = len(credential.calls)
        await at(300)
        assert len(credential.calls) - calls < 30
        credential.down = None
        await at(400)
        assert source.state is S.FRESH


async def test_a_clock_that_is_stepped_back_past_the_expiry(clock: Clock):
    """The token looks valid again, so it is what there is; but who asks for it is in need."""
    credential = Provider(clock)
    async with source_of(credential, clock, factory=True) as source:
        credential.down = ConnectionError("refused")
        await at(3700)
        assert source.state is S.EXPIRED
        clock.step(-3600)
        assert (await source.get()).version == 1
        await at(3701.5)
        calls = len(credential.calls)
        for tenth in range(100):
            await source.get()
            await at(3701.5 + tenth / 10)
        assert 9 <= len(credential.calls) - calls <= 11  # a second apart
        credential.down = None
        await source.get()
        await at(3713)
        assert source.current.version == 2


async def test_no_sleep_is_longer_than_half_a_minute(clock: Clock, monkeypatch):
    slept: list[float] = []
    real = asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda delay: slept.append(delay) or real(delay))
    async with source_of(Provider(clock, life=86400), clock):
        await at(80_000)
    assert len(slept) > 2000
    assert max(slept) <= 30


# ------------------------------------------------------------------------------------ the table


def test_the_table_is_complete():
    assert set(TRANSITIONS) == set(TokenState)
    for old, targets in TRANSITIONS.items():
        assert old not in targets
        assert (S.CLOSED in targets) == (old is not S.CLOSED)
    for old in (S.DUE, S.DEGRADED, S.EXPIRED, S.STARTING):
        assert S.FRESH in TRANSITIONS[old]
    for old in (S.FRESH, S.DUE, S.DEGRADED):
        assert S.EXPIRED in TRANSITIONS[old]


@pytest.mark.parametrize("old", TokenState, ids=lambda state: state.name)
@pytest.mark.parametrize("new", TokenState, ids=lambda state: state.name)
def test_each_transition_is_allowed_or_raises(clock: Clock, caplog, old, new):
    caplog.set_level("INFO", "aioentra_redis.source")
    refresher = source_of(Provider(clock), clock)._refresher
    events: list[Event] = []
    refresher.hub.listen(events.append)
    refresher.state = old
    if new is old:
        refresher._set_state(new)
        assert events == []
    elif new in TRANSITIONS[old]:
        refresher._set_state(new)
        assert events == [TokenStateChanged(refresher.name, old, new)]
        assert f"{old.name} -> {new.name}" in caplog.text
    else:
        with pytest.raises(AssertionError, match=new.name):
            refresher._set_state(new)
        assert refresher.state is old


async def test_every_transition_is_travelled(clock: Clock):
    """By real sources, so that the table has no row that can't happen."""
    seen: set[tuple[TokenState, TokenState]] = set()

    def note(event: Event) -> None:
        if isinstance(event, TokenStateChanged):
            seen.add((event.old, event.new))

    def make(**token: Any) -> tuple[Provider, TokenSource]:
        provider = Provider(clock, **token)
        return provider, source_of(provider, clock, refresh=config(), on_event=note)

    _, unused = make()
    await unused.aclose()  # STARTING -> CLOSED
    provider, source = make(life=600)
    provider.down = ConnectionError("refused")
    for _ in range(2):  # STARTING -> FAILED -> STARTING
        with pytest.raises(TokenAcquisitionError):
            await source.start()
    await source.aclose()  # FAILED -> CLOSED
    provider, source = make(life=600)
    await source.start()  # STARTING -> FRESH
    provider.down = ConnectionError("refused")
    await asyncio.sleep(301.5)  # FRESH -> DUE -> DEGRADED
    provider.down = None
    await asyncio.sleep(31)  # DEGRADED -> FRESH
    await asyncio.sleep(310)  # DUE -> FRESH
    clock.step(700)
    provider.down = ConnectionError("refused")
    await asyncio.sleep(31)  # FRESH -> EXPIRED
    clock.step(-700)
    await asyncio.sleep(31)  # EXPIRED -> DUE -> DEGRADED
    await asyncio.sleep(600)  # DEGRADED -> EXPIRED
    provider.down = None
    await asyncio.sleep(31)  # EXPIRED -> FRESH
    provider.delay = 5
    while source.state is not S.DUE:  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(1)
    clock.step(700)
    with pytest.raises(TokenExpiredError):
        await source.get()  # DUE -> EXPIRED, seen while an attempt is under way
    await source.aclose()
    for state, script in {
        S.FRESH: None,
        S.DUE: "hang",
        S.DEGRADED: ConnectionError("refused"),
        S.EXPIRED: ConnectionError("refused"),
    }.items():
        provider, source = make(life=600)
        await source.start()
        provider.down = script if isinstance(script, Exception) else None
        provider.delay = 8 if script == "hang" else 0
        if state is not S.FRESH:
            await asyncio.sleep(650 if state is S.EXPIRED else 303)
        assert source.state is state
        await source.aclose()
    expected = {(old, new) for old, targets in TRANSITIONS.items() for new in targets}
    assert expected - seen == set()


# ------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"credential": "secret"}, "get_token"),
        ({"credential": None}, "get_token"),
        ({"credential": Credential}, "instance"),
        ({"scopes": ()}, "scopes"),
        ({"scopes": ""}, "scopes"),
        ({"refresh": 0.8}, "TokenRefreshConfig"),
    ],
)
def test_unusable_arguments(clock: Clock, arguments: dict, says: str):
    with pytest.raises(ConfigurationError, match=says):
        TokenSource(**{"credential": Provider(clock), **arguments})


async def test_what_a_source_tells_about_itself(clock: Clock):
    source = source_of(Provider(clock), clock, name="cache", username="someone")
    assert repr(source) == "<TokenSource 'cache' starting, 0 subscribers>"
    status = source.status
    assert (status.state, status.version, status.expires_on, status.remaining) == (
        S.STARTING,
        0,
        None,
        None,
    )
    assert source.current is None
    assert "https://redis.azure.com" in source.describe()
    async with source:
        kept = source.subscribe()
        assert (
            repr(source)
            == "<TokenSource 'cache' fresh ...eone version 1, 3600 s left, 1 subscribers>"
        )
        assert source.current.username == "someone"
        assert "tid-1" in source.describe()
        assert source.now() == clock()
        assert source.name == "cache"
        assert source.refresh_config.expiration_refresh_ratio == 0.8
        events: list[Event] = []
        stop = source.listen(events.append)
        stop()
    assert events == []
    assert "closed" in repr(source)
    assert kept
