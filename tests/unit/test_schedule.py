from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioentra_redis import _schedule as schedule
from aioentra_redis._schedule import RetryConfig, TokenRefreshConfig
from aioentra_redis.errors import ConfigurationError


@dataclass
class Token:
    """A token as the schedule sees it."""

    lifetime: float
    first_seen: float = 0.0
    issued_on: float | None = 0.0
    refresh_on: float | None = None

    @property
    def expires_on(self) -> float:
        return (self.issued_on or 0.0) + self.lifetime


lifetimes = st.floats(0.5, 200_000)
ratios = st.none() | st.floats(0.01, 1)
fractions = st.floats(0, 1, exclude_max=True)
retries = st.builds(
    RetryConfig,
    max_attempts=st.integers(1, 10),
    initial_delay=st.floats(0, 100),
    max_delay=st.floats(0, 1000),
    backoff_multiplier=st.floats(1, 1e6),
    jitter_percentage=st.floats(0, 1),
)


@pytest.mark.parametrize(
    ("lifetime", "ratio", "starts", "deadline"),
    [
        (3600, None, 3301, 3420),  # 300 s before, and the second azure-identity rounds away
        (3600, 0.8, 2880, 3420),
        (3600, 1.0, 3300, 3420),
        (86400, None, 86101, 86220),
        (400, None, 200, 280),
        (4, None, 2, 2.8),
        (4, 0.25, 1, 2.8),
        (2, 0.8, 1, 1.4),
    ],
)
def test_lead_times(lifetime: float, ratio: float | None, starts: float, deadline: float):
    token = Token(lifetime)
    assert schedule.renewal_start(token, ratio) == pytest.approx(starts)
    assert schedule.reauth_deadline(token) == pytest.approx(deadline)


def test_refresh_on_counts_where_it_is_earlier():
    assert schedule.renewal_start(Token(86400, refresh_on=43200)) == 43200
    assert schedule.renewal_start(Token(86400, refresh_on=99999)) == 86101
    assert schedule.renewal_start(Token(3600, refresh_on=100), 0.8) == 100


@given(lifetimes, ratios, st.none() | st.floats(0, 200_000))
def test_renewal_before_deadline_before_expiry(lifetime, ratio, refresh_on):
    token = Token(lifetime, refresh_on=refresh_on)
    start, deadline = schedule.renewal_start(token, ratio), schedule.reauth_deadline(token)
    assert token.first_seen < start < deadline < token.expires_on


@given(lifetimes, st.floats(0, 1, exclude_max=True), ratios)
def test_a_token_with_little_life_left_does_not_spin(lifetime, elapsed, ratio):
    token = Token(lifetime, first_seen=elapsed * lifetime)
    left = token.expires_on - token.first_seen
    assert schedule.renewal_start(token, ratio) >= token.first_seen + min(1.0, left / 2)
    assert schedule.renewal_start(token, ratio) <= token.expires_on


@given(lifetimes, st.floats(-100, 200_000), fractions)
def test_jitter_fits_in_half_of_what_is_left(lifetime, now, fraction):
    token = Token(lifetime)
    delay = schedule.reauth_delay(token, now, lambda: fraction)
    left = schedule.reauth_deadline(token) - now
    assert 0 <= delay <= max(0.0, left / 2)
    assert delay == pytest.approx(max(0.0, fraction * left / 2))


@given(retries, st.integers(1, 5000), fractions)
def test_retry_delays_are_bounded(retry, attempt, fraction):
    delay = schedule.retry_delay(attempt, retry, lambda: fraction)
    assert 0 <= delay <= retry.max_delay
    grown = retry.initial_delay * retry.backoff_multiplier ** min(attempt - 1, 3)
    if attempt <= 4 and grown <= retry.max_delay:
        # The last is for what floats are rounded by, which may be more than a tiny jitter.
        assert abs(delay - grown) <= grown * (retry.jitter_percentage * 1.000001 + 1e-12)


def test_retry_delays_of_the_defaults():
    delays = [schedule.retry_delay(n, RetryConfig(), lambda: 0.5) for n in range(1, 11)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30])
    low, high = (schedule.retry_delay(1, RetryConfig(), lambda r=r: r) for r in (0.0, 0.999999))
    assert (low, high) == (pytest.approx(0.09), pytest.approx(0.11))


@given(retries, fractions)
def test_bursts_never_run_together(retry, fraction):
    assert schedule.burst_delay(retry, lambda: fraction) >= 0.1


@given(st.floats(0, 1e6), lifetimes, st.floats(-10, 250_000))
def test_no_wait_exceeds_a_tenth_of_the_time_left(delay, lifetime, now):
    token = Token(lifetime)
    pressed = schedule.pressed(delay, token, now)
    assert pressed <= delay
    if now < schedule.reauth_deadline(token):
        assert pressed <= max(0.1, (schedule.reauth_deadline(token) - now) / 10)
    elif now < token.expires_on:
        assert pressed <= max(0.1, (token.expires_on - now) / 10)
    else:
        assert pressed == delay
    assert pressed >= min(delay, 0.1)
    assert schedule.pressed(delay, None, now) == delay


@given(lifetimes, st.floats(0, 1), fractions)
def test_asking_again_for_an_unchanged_token(lifetime, elapsed, fraction):
    token = Token(lifetime)
    now = elapsed * lifetime
    delay = schedule.unchanged_delay(token, now, lambda: fraction)
    assert 1 <= delay <= 32
    if now + 32 <= schedule.reauth_deadline(token):
        assert delay >= 31


def test_politeness_has_an_end():
    assert schedule.polite(1, None) == 1
    assert schedule.polite(1, 20) == 20
    assert schedule.polite(30, 20) == 30
    assert schedule.polite(1, 86400) == 300


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_attempts": 2.5},
        {"max_attempts": True},
        {"max_attempts": "3"},
        {"initial_delay": -0.1},
        {"max_delay": -1},
        {"max_delay": math.inf},
        {"max_delay": math.nan},
        {"backoff_multiplier": 0.99},
        {"jitter_percentage": -0.1},
        {"jitter_percentage": 1.1},
        {"jitter_percentage": None},
    ],
)
def test_unusable_retry_config(arguments):
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=name):
        RetryConfig(**arguments)
    with pytest.raises(ValueError, match=name):
        RetryConfig(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"expiration_refresh_ratio": 0},
        {"expiration_refresh_ratio": -0.5},
        {"expiration_refresh_ratio": 1.01},
        {"expiration_refresh_ratio": math.nan},
        {"expiration_refresh_ratio": "0.8"},
        {"request_timeout": 0},
        {"request_timeout": -1},
        {"request_timeout": math.inf},
        {"retry": None},
        {"retry": {"max_attempts": 3}},
    ],
)
def test_unusable_refresh_config(arguments):
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=name):
        TokenRefreshConfig(**arguments)


def test_configs_are_frozen_values():
    assert TokenRefreshConfig() == TokenRefreshConfig(0.8, 10, RetryConfig(3, 0.1, 30, 2.0, 0.1))
    with pytest.raises(AttributeError):
        RetryConfig().max_attempts = 5
