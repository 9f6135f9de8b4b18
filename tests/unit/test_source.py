"""The source's states, renewal and news, in virtual time."""

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

from aioentra_redis._broadcast import Subscription
from aioentra_redis._events import (
    Event,
    RefreshFailed,
    TokenPublished,
    TokenState,
)
from aioentra_redis.errors import (
    IdentityChangedError,
    InvalidTokenError,
    TokenAcquisitionError,
    TokenExpiredError,
)

S = TokenState


pytestmark = pytest.mark.looptime


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def newest(subscription: Subscription) -> Any:
    """What has been published to ``subscription`` by now, None if nothing."""
    try:
        async with asyncio.timeout(0.001):
            return await anext(subscription)
    except TimeoutError:
        return None


# ------------------------------------------------------------------------------------ renewal


async def test_the_first_token_then_renewal_in_time(clock: Clock):
    credential = CachingCredential(clock)
    events: list[Event] = []
    async with source_of(credential, clock, on_event=events.append) as source:
        assert source.state is S.FRESH
        assert source.current == await source.get()
        subscription = source.subscribe(after=1)
        await at(3300.9)
        assert await newest(subscription) is None
        await at(3302)
        token = await newest(subscription)
        assert (token.version, token.expires_on) == (2, pytest.approx(EPOCH + 6901, abs=0.1))
        assert source.current is token
    assert credential.requests == 2
    assert states(events) == [S.FRESH, S.DUE, S.FRESH, S.CLOSED]
    published = [event for event in events if isinstance(event, TokenPublished)]
    assert [(each.version, each.oid, each.lifetime) for each in published] == [
        (1, "oid-1", 3600),
        (2, "oid-1", 3600),
    ]


@pytest.mark.parametrize(("life", "ratio", "expected"), [(3600, 0.5, 1800), (4, 0.25, 1)])
async def test_a_factory_honours_the_ratio(clock: Clock, life: float, ratio: float, expected):
    credential = Provider(clock, life=life)
    async with source_of(credential, clock, factory=True, refresh=config(ratio)) as source:
        subscription = source.subscribe(after=1)
        await at(expected - 0.01)
        assert await newest(subscription) is None
        await at(expected + 0.01)
        assert (await newest(subscription)).version == 2
        await at(expected * 10 + 0.1)
        assert source.current.version >= 10
        assert credential.peak == 2  # at most two instances live
        assert credential.alive == 1
    assert credential.alive == 0


async def test_refresh_on_is_followed(clock: Clock):
    credential = CachingCredential(clock, life=86400, refresh_in=43200)
    async with source_of(credential, clock) as source:
        await at(43199)
        assert source.current.version == 1
        await at(43202)
        assert source.current.version == 2


async def test_the_cached_token_is_not_news(clock: Clock):
    """Peers send an AUTH wave for each token the SDK returns, new or not."""
    credential = CachingCredential(clock)
    async with source_of(credential, clock) as source:
        credential.down = True
        subscription = source.subscribe(after=1)
        await at(3396)
        # Asked at 300 s before the expiry and a little over 30 s apart; nothing was published.
        first, *others = [call for call in credential.calls if call > 0]
        assert first == pytest.approx(3301, abs=0.1)
        gaps = [b - a for a, b in zip([first, *others], others, strict=False)]
        assert all(31 <= gap <= 32 for gap in gaps)
        assert await newest(subscription) is None
        assert source.state is S.DUE
        # Past the AUTH deadline the silence is reported: the SDK swallows its own failures.
        await at(3470)
        failed = await newest(subscription)
        assert isinstance(failed, RefreshFailed)
        assert "azure.identity" in str(failed.error)
        assert source.state is S.DEGRADED
        credential.down = False
        await at(3520)
        assert source.current.version == 2
        assert source.state is S.FRESH


async def test_a_platform_that_returns_its_cached_token_with_a_later_time(clock: Clock):
    first: list[Any] = []

    def answer(call: int) -> Any:
        if call in (1, 2):
            first.append(first[0] if first else credential.issue(life=86400))
            info = first[0]
            info.refresh_on = EPOCH + (10_000 if call == 1 else 30_000)
            return info
        return credential.issue(life=86400)

    credential = Credential(clock, answer)
    async with source_of(credential, clock) as source:
        await at(29_999)
        assert len(credential.calls) == 2
        await at(30_001)
        assert source.current.version == 2


@pytest.mark.parametrize(
    ("claims", "error", "says"),
    [
        ({"oid": "oid-2"}, IdentityChangedError, "oid-2"),
        ({"tid": "tid-2"}, IdentityChangedError, "tid-2"),
        ({"aud": "https://vault.azure.net"}, InvalidTokenError, "vault"),
        ({"oid": None}, InvalidTokenError, "oid"),
    ],
)
async def test_a_token_that_is_not_ours_is_never_published(clock: Clock, claims, error, says):
    credential = Credential(
        clock, lambda call: credential.issue(life=7200, **(claims if call > 1 else {}))
    )
    async with source_of(credential, clock) as source:
        subscription = source.subscribe(after=1)
        await at(7200 - 290)
        failed = await newest(subscription)
        assert isinstance(failed, RefreshFailed)
        assert isinstance(failed.error, error)
        assert says in str(failed.error)
        assert (source.state, source.current.version) == (S.DEGRADED, 1)


async def test_a_tenant_seen_later_is_fixed_from_then_on(clock: Clock):
    tenants = {1: None, 2: "tid-1", 3: "tid-2"}
    credential = Credential(
        clock, lambda call: credential.issue(life=1200 + call, tid=tenants.get(call, "tid-2"))
    )
    async with source_of(credential, clock) as source:
        await at(950)
        assert source.current.version == 2
        await at(1900)
        assert source.current.version == 2
        assert isinstance(source.status.last_error, IdentityChangedError)


async def test_an_older_expiry_is_not_news(clock: Clock):
    lives = {1: 3600, 2: 100}
    credential = Credential(clock, lambda call: credential.issue(life=lives.get(call, 3600)))
    async with source_of(credential, clock) as source:
        await at(3310)
        assert (len(credential.calls), source.current.version) == (2, 1)
        await at(3340)
        assert source.current.version == 2


async def test_tokens_that_arrive_with_little_life_left_do_not_spin(clock: Clock):
    """redis-rs asks without a pause for tokens under 240 s."""

    def answer(_call: int) -> Any:
        return credential.issue(life=60 + clock() - EPOCH, iat=EPOCH - 86400)

    credential = Credential(clock, answer)
    async with source_of(credential, clock):
        await at(30)
        assert len(credential.calls) <= 31


async def test_a_credential_object_with_short_tokens_is_warned_about(clock, caplog):
    async with source_of(Provider(clock, life=30), clock):
        await at(20)
    warnings = [r for r in caplog.records if "from_credential_factory" in r.getMessage()]
    assert len(warnings) == 1
    caplog.clear()
    async with source_of(Provider(clock, life=30), clock, factory=True):
        pass
    assert "from_credential_factory" not in caplog.text


# ------------------------------------------------------------------------------------ failures


async def test_a_short_outage_ends_nothing(clock: Clock):
    """Peers try four times in 10 ms and then never again."""
    credential = Provider(clock)
    async with source_of(credential, clock, refresh=config()) as source:
        await at(3300)
        credential.down = ConnectionError("refused")
        await at(3301.5)
        assert len(credential.calls) == 1 + 3  # one burst: 0.1 s and 0.2 s apart
        assert source.state is S.DEGRADED
        assert await source.get() is source.current
        credential.down = None
        await at(3320)
        assert (source.state, source.current.version) == (S.FRESH, 2)


async def test_managed_identity_that_fails_past_refresh_on(clock: Clock):
    """azure-identity raises although the token is good for hours: it is kept."""
    credential = Provider(clock, life=86400, refresh_in=43200)
    async with source_of(credential, clock, refresh=config()) as source:
        await at(43199)
        credential.down = ConnectionError("no response from the IMDS endpoint")
        await at(43205)
        assert source.state is S.DEGRADED
        await at(50_000)
        assert source.state is S.DEGRADED
        assert (await source.get()).version == 1
        # Bursts of three, half a minute apart, and never a storm.
        assert 3 * 6_800 / 31 < len(credential.calls) < 3 * 6_800 / 29
        credential.down = None
        await at(50_035)
        assert source.state is S.FRESH


async def test_failures_become_more_frequent_towards_the_deadline(clock: Clock):
    credential = Provider(clock)
    async with source_of(credential, clock, refresh=config()) as source:
        await at(3300)
        credential.down = ConnectionError("refused")
        await at(3599)
        bursts = sum(
            b - a > 1 for a, b in zip(credential.calls, credential.calls[1:], strict=False)
        )
        assert source.state is S.DEGRADED
        assert 20 < bursts < 120
        assert (
            max(b - a for a, b in zip(credential.calls[1:], credential.calls[2:], strict=False))
            <= 18.1
        )  # a tenth of the 180 s between deadline and expiry


async def test_expired_raises_at_once_and_demand_brings_attempts(clock: Clock):
    credential = Provider(clock)
    async with source_of(credential, clock, refresh=config()) as source:
        await at(3300)
        credential.down = ConnectionError("refused")
        await at(3601)
        assert source.state is S.EXPIRED
        before = asyncio.get_running_loop().time()
        with pytest.raises(TokenExpiredError, match="refused") as caught:
            await source.get()
        assert asyncio.get_running_loop().time() == before
        assert isinstance(caught.value.__cause__, TokenAcquisitionError)
        # Nobody asks: about three attempts in half a minute.
        calls = len(credential.calls)
        await at(3661)
        assert len(credential.calls) - calls <= 3
        # Somebody asks all the time: one attempt per second.
        calls = len(credential.calls)
        for tenth in range(100):
            await at(3661 + tenth / 10)
            with pytest.raises(TokenExpiredError):
                await source.get()
        assert 9 <= len(credential.calls) - calls <= 11
        credential.down = None
        await at(3672.5)
        assert (await source.get()).version == 2
        assert source.state is S.FRESH


async def test_retry_after_is_honoured_in_spite_of_demand(clock: Clock):
    credential = Provider(clock)
    async with source_of(credential, clock, refresh=config()) as source:
        await at(3300)
        credential.down = TokenAcquisitionError("throttled", retry_after=20)
        await at(3601)
        starts = len(credential.calls)
        for second in range(60):
            await at(3601 + second)
            with pytest.raises(TokenExpiredError):
                await source.get()
        assert len(credential.calls) - starts <= 3


async def test_a_refusal_for_good_is_not_repeated_within_a_burst(clock: Clock):
    credential = Provider(clock)
    async with source_of(credential, clock, refresh=config()) as source:
        subscription = source.subscribe(after=1)
        await at(3300)
        credential.down = TokenAcquisitionError("AADSTS7000222", transient=False)
        await at(3302)
        assert len(credential.calls) == 2
        assert (await newest(subscription)).attempts == 1


async def test_errors_are_reported_once_per_burst(clock: Clock):
    credential = Provider(clock)
    events: list[Event] = []
    async with source_of(credential, clock, refresh=config(), on_event=events.append) as source:
        subscription = source.subscribe()
        await at(3300)
        credential.down = ConnectionError("refused")
        await at(3302)
        (failed,) = [event for event in events if isinstance(event, RefreshFailed)]
        assert (failed.attempts, failed.state) == (3, S.DEGRADED)
        assert 0 < failed.next_attempt_in <= 12
        assert (await newest(subscription)).version == 1
        assert await newest(subscription) is failed
        status = source.status
        assert (status.consecutive_failures, status.acquisitions, status.published) == (3, 4, 1)
        assert status.next_attempt_in == pytest.approx(failed.next_attempt_in, abs=1)
        assert "refused" in str(status.last_error)


async def test_an_attempt_has_a_deadline(clock: Clock):
    credential = Provider(clock)
    async with source_of(credential, clock, refresh=config(timeout=5)) as source:
        credential.delay = 1e6
        await at(3304)
        status = source.status
        assert status.acquiring_for == pytest.approx(3, abs=0.1)
        assert status.next_attempt_in is None
        await at(3306.5)
        assert "no answer within 5 s" in str(source.status.last_error)
        assert (await source.get()).version == 1
        credential.delay = 0
        await at(3313)
        assert source.current.version == 2


async def test_an_asynchronous_credential_that_ignores_cancellation(clock: Clock):
    stop = asyncio.Event()

    async def stubborn() -> Any:
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue
        return credential.issue()

    credential = Credential(clock, lambda call: credential.issue() if call == 1 else stubborn())
    async with source_of(credential, clock, refresh=config(timeout=5)) as source:
        await at(3340)
        assert source.status.hung_call
        assert len(credential.calls) == 2  # no second one was started
        stop.set()
        await at(3345)
        assert source.current.version == 2  # its late answer was not wasted
        assert not source.status.hung_call


async def test_a_bug_does_not_end_the_task(clock: Clock, monkeypatch, caplog):
    credential = Provider(clock)
    async with source_of(credential, clock, refresh=config()) as source:
        await at(3300)
        with monkeypatch.context() as patch:
            patch.setattr(source._refresher._identity, "check", lambda *_: 1 / 0)
            await at(3302)
        assert source.state is S.DEGRADED
        assert "ZeroDivisionError" in caplog.text
        await at(3340)
        assert source.current.version == 2
