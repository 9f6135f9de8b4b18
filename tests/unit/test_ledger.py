"""The states of a connection, the ways to a newer token and when a failed one is tried again."""

from __future__ import annotations

import itertools

import pytest

from aioentra_redis._events import ConnectionState
from aioentra_redis._multiplex._ledger import TRANSITIONS, Ledger
from aioentra_redis._multiplex._rotation import Probe, Rotation, rotation_for

S = ConnectionState


ALLOWED = {
    (S.AUTHENTICATED, S.REAUTHENTICATING),
    (S.AUTHENTICATED, S.STALE),
    (S.AUTHENTICATED, S.DRAINING),
    (S.AUTHENTICATED, S.CLOSED),
    (S.REAUTHENTICATING, S.AUTHENTICATED),
    (S.REAUTHENTICATING, S.STALE),
    (S.REAUTHENTICATING, S.DRAINING),
    (S.REAUTHENTICATING, S.CLOSED),
    (S.STALE, S.AUTHENTICATED),
    (S.STALE, S.REAUTHENTICATING),
    (S.STALE, S.DRAINING),
    (S.STALE, S.CLOSED),
    (S.DRAINING, S.CLOSED),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(S, S)))
def test_every_transition(old: ConnectionState, new: ConnectionState):
    ledger = Ledger("connection-1", None, 0.0)
    ledger.state = old
    assert (new in TRANSITIONS[old]) is ((old, new) in ALLOWED)
    if (old, new) in ALLOWED:
        ledger.move_to(new)
        assert ledger.state is new
    else:
        with pytest.raises(RuntimeError, match=r"connection-1 can't go from"):
            ledger.move_to(new)
        assert ledger.state is old


def test_closing_a_ledger_twice():
    ledger = Ledger("connection-1", None, 0.0)
    ledger.close()
    ledger.close()
    assert ledger.state is S.CLOSED
    status = ledger.status(host="h", in_flight=3)
    assert (status.token_version, status.token_expires_on, status.last_auth_at) == (None,) * 3
    assert status.in_flight == 3


@pytest.mark.parametrize(
    ("latency", "way"),
    [(0.0, Rotation.IN_PLACE), (0.25, Rotation.IN_PLACE), (0.26, Rotation.MAKE_BEFORE_BREAK)],
)
def test_the_way_follows_from_the_last_latency(latency: float, way: Rotation):
    assert rotation_for(latency) is way


def test_probes_are_doubled_between_their_bounds():
    probe, delays = Probe(), []
    for _ in range(7):
        probe.failed()
        delays.append(probe.delay)
    assert delays == [1, 2, 4, 8, 16, 30, 30]
    probe.accepted()
    assert probe.delay is None
    probe.failed()
    assert probe.delay == 1
