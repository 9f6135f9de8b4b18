"""When to renew, retry and re-authenticate: every lead time of the package, as pure functions.

Times are seconds. A *wall time* counts from the epoch; everything called *delay* is a duration.
``random`` is a function that returns floats of [0, 1), such as :func:`random.random`.

With L the token's lifetime, this is the order of events before its expiry E::

    issue ........... renewal starts ........ every AUTH answered ........ E
                      E - min(300 s, L/2)     E - min(180 s, 0.3 L)

* 180 s: Microsoft asks that a connection's new token reach the server at least three minutes
  before the old one expires ("Use Microsoft Entra ID for cache authentication").
* 300 s: a credential of azure-identity returns its cached token until then
  (``azure.identity._constants.DEFAULT_REFRESH_OFFSET``), so asking earlier brings nothing new.
* 30 s: after any request such a credential returns what it has
  (``DEFAULT_TOKEN_REFRESH_RETRY_DELAY``), so asking again sooner brings nothing new either.
* The fractions of L let tokens that live for seconds, as in tests, keep the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import random as _random
from typing import Protocol

from .errors import ConfigurationError

__all__ = [
    "AUTH_TIMEOUT",
    "DEMANDED_RECONNECT",
    "EXPIRED_INTERVAL",
    "FIRST_RECONNECT",
    "IDLE_PING",
    "LAST_RECONNECT",
    "MAX_SLEEP",
    "SHORTEST_OBJECT_LIFETIME",
    "SLOT_HOLD",
    "RetryConfig",
    "TokenRefreshConfig",
    "burst_delay",
    "polite",
    "pressed",
    "probe_delay",
    "reauth_deadline",
    "reauth_delay",
    "reconcile_interval",
    "renewal_start",
    "restart_delay",
    "retry_delay",
    "slot_patience",
    "unchanged_delay",
    "wait_slice",
]

AUTH_LEAD = 180.0
AUTH_LEAD_FRACTION = 0.3
RENEWAL_LEAD = 300.0
RENEWAL_LEAD_FRACTION = 0.5
AUTH_TIMEOUT = 15.0
"""Seconds that one AUTH may take before nothing is expected of it; the service itself gives up on
validating a token after 10 s (Microsoft's guide for client libraries)."""
SLOT_HOLD = 1.0
"""Seconds for which a sign-in or AUTH counts as one of those that are under way at once: a server
that takes longer must not hold up the others in line."""
FIRST_PROBE = 1.0
LAST_PROBE = 30.0
"""Seconds until a refused token is tried again: doubled each time, between these bounds. It costs
the identity provider nothing."""
EXPIRY_MARGIN = 1.0
EXPIRY_MARGIN_FRACTION = 0.05
MIN_SLICE = 0.02
ANSWER_SHARE = 0.1
"""Of the time from a renewal to the deadline of its AUTHs, what is kept for the answer where
nothing could be sent before."""
FIRST_RECONNECT = 0.05
LAST_RECONNECT = 10.0
DEMANDED_RECONNECT = 1.0
"""Seconds between attempts to reconnect: doubled from the first to the last, each shortened by up
to half at random; no more than the third of them while somebody waits."""
IDLE_PING = 60.0
"""Seconds without traffic after which a PING is sent: Azure closes connections that are idle for
10 minutes (Azure Cache for Redis, best practices for connection resilience)."""
HOLD_OFF = 30.0
HOLD_OFF_MARGIN = 1.0
"""azure-identity reads its clock in whole seconds: ask a second later than it says."""
MAX_SLEEP = 30.0
"""No sleep is longer: the wall clock may be stepped, and the machine suspended, in between."""
RECONCILE_FRACTION = 0.05
EXPIRED_INTERVAL = 1.0
"""Without a valid token, and while somebody asks for one, attempts start this far apart."""
MIN_DELAY = 0.1
MIN_UNCHANGED_DELAY = 1.0
MIN_RENEWAL_INTERVAL = 1.0
MAX_RETRY_AFTER = 300.0
SHORTEST_OBJECT_LIFETIME = 40.0
"""Tokens that live shorter than this can't be rotated by a credential object: the hold-off."""

Random = Callable[[], float]


class Lifetime(Protocol):
    """What the functions below need of a token."""

    @property
    def expires_on(self) -> float: ...
    @property
    def refresh_on(self) -> float | None: ...
    @property
    def first_seen(self) -> float: ...
    @property
    def lifetime(self) -> float: ...


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """How a burst of attempts to get a token is spaced.

    When a burst has failed, its error is published and the next burst is scheduled: renewal never
    gives up while the source is open. Raises :exc:`ConfigurationError` for unusable values.
    """

    max_attempts: int = 3
    """Attempts per burst, at least 1."""
    initial_delay: float = 0.1
    """Seconds from the first failed attempt to the second."""
    max_delay: float = 30.0
    """No delay exceeds this, jitter included; it is also the pause between bursts, in seconds."""
    backoff_multiplier: float = 2.0
    """Each delay is the previous one times this, at least 1."""
    jitter_percentage: float = 0.1
    """Random variation of each delay, as a fraction of it: 0.1 is up to 10 % either way."""

    def __post_init__(self) -> None:
        _require_int("max_attempts", self.max_attempts)
        _require("initial_delay", self.initial_delay, at_least=0)
        _require("max_delay", self.max_delay, at_least=0)
        _require("backoff_multiplier", self.backoff_multiplier, at_least=1)
        _require("jitter_percentage", self.jitter_percentage, at_least=0, at_most=1)


@dataclass(frozen=True, slots=True)
class TokenRefreshConfig:
    """When a token is renewed, and how patiently. Raises :exc:`ConfigurationError`."""

    expiration_refresh_ratio: float = 0.8
    """Fraction of the token's lifetime after which to renew it, above 0 and at most 1.

    It applies to credentials made by a factory (secret, certificate, workload identity,
    environment): a credential *object* returns its cached token until it sees fit.
    """
    request_timeout: float = 10.0
    """Seconds that one attempt may take."""
    retry: RetryConfig = field(default_factory=RetryConfig)
    max_concurrent_auths: int = 8
    """Connections to one server that sign in or re-authenticate at the same time, at least 1.

    The others wait in order, but none past the deadline of its AUTH, and not for longer than a
    second for one that gets no answer.
    """

    def __post_init__(self) -> None:
        _require("expiration_refresh_ratio", self.expiration_refresh_ratio, at_least=0, at_most=1)
        if self.expiration_refresh_ratio == 0:
            raise ConfigurationError("expiration_refresh_ratio should be above 0: try 0.8")
        _require("request_timeout", self.request_timeout, at_least=0)
        if self.request_timeout == 0:
            raise ConfigurationError("request_timeout should be above 0 seconds: try 10")
        _require_int("max_concurrent_auths", self.max_concurrent_auths)
        if not isinstance(self.retry, RetryConfig):
            raise ConfigurationError(f"retry should be a RetryConfig, not {self.retry!r}")


def reauth_deadline(token: Lifetime) -> float:
    """Wall time by which every connection's AUTH with the *next* token must be answered.

    ``token`` is the one about to expire.
    """
    return token.expires_on - min(AUTH_LEAD, AUTH_LEAD_FRACTION * token.lifetime)


def reauth_delay(token: Lifetime, now: float, random: Random = _random) -> float:
    """How long a connection that holds ``token`` waits before it sends AUTH with a newer one.

    Uniform in half of the time left to :func:`reauth_deadline`, zero past it: connections spread
    out instead of all arriving at once, and the other half remains for slow answers.
    """
    return random() * 0.5 * max(0.0, reauth_deadline(token) - now)


def slot_patience(held: Lifetime, now: float) -> float:
    """Seconds that an AUTH may wait for its turn, on a connection that holds ``held``.

    Half of the time left to its deadline, past that half of what is left to the expiry: the other
    half is for the answer. The promise that it is answered in time beats the budget.
    """
    deadline = reauth_deadline(held)
    return max(0.0, (deadline if now < deadline else held.expires_on) - now) / 2


def probe_delay(refusals: int) -> float:
    """Seconds until a token is tried again that was refused ``refusals`` times."""
    return min(LAST_PROBE, FIRST_PROBE * 2.0 ** min(refusals - 1, 10))


def reconcile_interval(token: Lifetime) -> float:
    """Seconds between two looks of a connection that holds ``token`` for a newer one.

    It is told of each; the look is for when that got lost. Several of them fit between a renewal
    and the deadline of its AUTH, however short the token's life.
    """
    return min(MAX_SLEEP, max(MIN_DELAY, RECONCILE_FRACTION * token.lifetime))


def restart_delay(restarts: int) -> float:
    """Seconds until a task that ended unexpectedly is started for the ``restarts``-th time."""
    return min(MAX_SLEEP, 2.0 ** min(restarts - 1, 10))


def wait_slice(token: Lifetime, now: float, share: float) -> float:
    """How long a connection that holds ``token`` may be blocked from ``now``, 0 for not at all.

    Up to the deadline of its AUTH, less a tenth of the time that a renewal leaves for that, in
    which it is answered, and less its jitter: ``share`` (0 to 1) of half of that time. From there
    to the deadline, and then in quarters of what is left, so that a late token is noticed, to a
    second (or a twentieth of a shorter life) before the expiry.
    """
    deadline = reauth_deadline(token)
    window = min(RENEWAL_LEAD, RENEWAL_LEAD_FRACTION * token.lifetime) - (
        token.expires_on - deadline
    )
    answered_from = deadline - ANSWER_SHARE * window
    for end in (answered_from - share * 0.5 * window, answered_from, deadline):
        if now < end - MIN_SLICE:
            return end - now
    left = token.expires_on - min(EXPIRY_MARGIN, EXPIRY_MARGIN_FRACTION * token.lifetime) - now
    return min(left, max(MIN_SLICE, left / 4)) if left > MIN_SLICE / 2 else 0.0


def renewal_start(token: Lifetime, ratio: float | None = None) -> float:
    """Wall time at which renewing ``token`` begins.

    ``ratio`` is the refresh ratio for a factory, None for a credential object. Never sooner than
    a second after the token was got (or half its remaining life): tokens that arrive with little
    life left must not make the source spin.
    """
    start = token.expires_on - min(RENEWAL_LEAD, RENEWAL_LEAD_FRACTION * token.lifetime)
    if ratio is None and RENEWAL_LEAD_FRACTION * token.lifetime >= RENEWAL_LEAD:
        start += HOLD_OFF_MARGIN  # at 300 s sharp it would still return the cached token
    if token.refresh_on is not None:
        start = min(start, token.refresh_on)
    if ratio is not None:
        start = min(start, token.expires_on - (1 - ratio) * token.lifetime)
    remaining = max(0.0, token.expires_on - token.first_seen)
    return max(start, token.first_seen + min(MIN_RENEWAL_INTERVAL, remaining / 2))


def retry_delay(attempt: int, retry: RetryConfig, random: Random = _random) -> float:
    """Seconds to wait after the ``attempt``-th failure (1, 2, ...) of a burst."""
    try:
        delay = retry.initial_delay * retry.backoff_multiplier ** (attempt - 1)
    except OverflowError:
        delay = math.inf
    delay = min(delay, retry.max_delay)
    delay *= 1 + retry.jitter_percentage * (2 * random() - 1)
    return min(delay, retry.max_delay)


def burst_delay(retry: RetryConfig, random: Random = _random) -> float:
    """Seconds from a failed burst to the next one; never so short that bursts run together."""
    spread = retry.jitter_percentage * random()
    return max(retry.max_delay * (1 - spread), retry.initial_delay, MIN_DELAY)


def pressed(delay: float, token: Lifetime | None, now: float) -> float:
    """Shorten ``delay`` to a tenth of the time left to the deadline, but not below 0.1 s.

    The deadline is :func:`reauth_deadline` while that lies ahead, the expiry after it. Past the
    expiry, and without a token, nothing is left to be in time for and ``delay`` stands.
    """
    if token is None or now >= token.expires_on:
        return delay
    deadline = reauth_deadline(token)
    if now >= deadline:
        deadline = token.expires_on
    return min(delay, max(MIN_DELAY, (deadline - now) / 10))


def unchanged_delay(token: Lifetime, now: float, random: Random = _random) -> float:
    """Seconds until the next attempt when the credential returned the token we have.

    A little over the SDK's hold-off of 30 s. Where that would end past the deadline it is
    shortened as :func:`pressed` does, but not below 5 s, or a quarter of the time left to the
    expiry, or a second: an answer from a cache is cheap, but the tools' start a process.
    """
    delay = HOLD_OFF + HOLD_OFF_MARGIN + random()
    if now + delay <= reauth_deadline(token):
        return delay
    floor = max(MIN_UNCHANGED_DELAY, min(5.0, (token.expires_on - now) / 4))
    return min(delay, max(floor, pressed(delay, token, now)))


def polite(delay: float, retry_after: float | None) -> float:
    """Lengthen ``delay`` to what the provider asked for, within five minutes."""
    return delay if retry_after is None else max(delay, min(retry_after, MAX_RETRY_AFTER))


def _require_int(name: str, value: float) -> None:
    """Raise unless ``value`` is a whole number of 1 or more."""
    _require(name, value, at_least=1)
    if value != int(value):
        raise ConfigurationError(f"{name} should be an int, not {value!r}")


def _require(name: str, value: float, *, at_least: float, at_most: float | None = None) -> None:
    """Raise unless ``value`` is a finite number in the range."""
    bounds = f"{at_least} or more" if at_most is None else f"between {at_least} and {at_most}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name} should be a number, not {value!r}")
    if not math.isfinite(value) or value < at_least or (at_most is not None and value > at_most):
        raise ConfigurationError(f"{name} should be {bounds}, not {value!r}")
