"""The soak's checks find what is broken: replies, failures, the server's log, memory."""

from __future__ import annotations

import itertools
import time

import pytest
from redis import exceptions as redis_exceptions
from soak.calls import Calls
from soak.findings import Findings, Kind
from soak.ledger import auth_times, expiries
from soak.load import Shared, Worker
from soak.measures import Sample, span
from soak.outcomes import Outcome, outcome_of
from soak.report import broken, table
from soak.run import Plan, Result, judge_log
from soak.schedule import GRACE, KINDS, Windows, faults
from soak.strikes import Strikes

from aioentra_redis import (
    CommandTimeoutError,
    ConnectError,
    ConnectionLostError,
    MaybeExecutedError,
    TokenExpiredError,
)
from aioentra_redis.emulator import AuthAttempt, ConnectionClose, IssuedToken, Log

DONE, NOT_RUN, MAYBE, LATE = Outcome.DONE, Outcome.NOT_RUN, Outcome.MAYBE, Outcome.LATE


@pytest.fixture
def findings() -> Findings:
    return Findings()


# ------------------------------------------------------------------------------- replies


class Answers:
    """A client that gives one answer to every command."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def _reply(self, *_: object, **__: object) -> object:
        return self._answer

    get = set = echo = incr = _reply

    def register_script(self, _: str) -> object:
        return self._reply


async def deed(name: str, answer: object) -> Findings:
    findings = Findings()
    calls = Calls(findings, Windows(), seed=1, cancelled=0)
    worker = Worker(Answers(answer), calls, "me:1", Shared(calls, "me"), seed=1)
    await getattr(worker, name)()
    return findings


async def test_what_was_set_on_a_connection_that_ended_then_is_set(findings: Findings):
    class Ending(Answers):
        async def __aenter__(self) -> Ending:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        def client(self) -> Ending:
            return self

        async def get(self, *_: object) -> object:
            raise ConnectionLostError("outlived its token")

    windows = Windows()
    windows.open(KINDS["cut one connection"], time.time())
    calls = Calls(findings, windows, seed=1, cancelled=0)
    worker = Worker(Ending(True), calls, "me:1", Shared(calls, "me"), seed=1)
    await worker._connection()
    worker._compare(worker.registers["own"], b"me:1:own|1|")
    assert not findings.counts


@pytest.mark.parametrize(
    ("name", "answer", "kinds"),
    [
        ("_echo", b"me:1#1", set()),
        ("_echo", b"me:2#1", {Kind.WRONG_REPLY}),
        ("_incr", 1, set()),
        ("_incr", b"OK", {Kind.WRONG_REPLY}),
        ("_incr", 2, {Kind.TWICE}),
        ("_script_call", [1, b"me:1#1"], set()),
        ("_script_call", [1, b"me:1#2"], {Kind.WRONG_REPLY}),
        ("_set_and_get", True, {Kind.WRONG_REPLY}),
    ],
)
async def test_a_reply_to_somebody_else_is_found(name: str, answer: object, kinds: set[Kind]):
    found = await deed(name, answer)
    assert set(found.counts) == kinds


@pytest.mark.parametrize(
    ("reply", "kinds"),
    [
        (b"me:1:value|1|", set()),
        (b"me:2:value|1|", {Kind.WRONG_REPLY}),
        (b"me:1:value|1|112", {Kind.WRONG_REPLY}),
        (b"me:1:value|2|", {Kind.TWICE}),
        (None, {Kind.LOST}),
    ],
)
def test_a_value_names_its_key(findings: Findings, reply: bytes | None, kinds: set[Kind]):
    calls = Calls(findings, Windows(), seed=1)
    worker = Worker(Answers(None), calls, "me:1", Shared(calls, "me"), seed=1)
    register = worker.registers["value"]
    register.tell(register.next(), DONE)
    worker._compare(register, reply)
    assert set(findings.counts) == kinds


# ------------------------------------------------------------------------------- outcomes, windows


def test_what_errors_say():
    lost = ConnectionLostError("lost")
    assert outcome_of(lost) is NOT_RUN
    assert outcome_of(MaybeExecutedError("lost")) is MAYBE
    assert outcome_of(CommandTimeoutError("late")) is LATE
    assert outcome_of(TokenExpiredError("expired")) is NOT_RUN
    assert outcome_of(ConnectError("down", stage="tcp")) is NOT_RUN
    assert outcome_of(redis_exceptions.ConnectionError("plain")) is MAYBE
    assert outcome_of(redis_exceptions.ResponseError("WRONGTYPE")) is None


def test_a_window_excuses_what_its_fault_breaks_while_it_lasts():
    windows = Windows()
    error = MaybeExecutedError("lost")
    assert not windows.excuses_error(error, 10)
    window = windows.open(KINDS["cut one connection"], 10)
    assert windows.excuses_error(error, 11)
    window.end = 12
    assert windows.excuses_error(error, 12 + GRACE)
    assert not windows.excuses_error(error, 12.1 + GRACE)
    assert not windows.excuses_error(TokenExpiredError("expired"), 11)
    windows.open(KINDS["AUTH is slow"], 20)
    assert not windows.excuses_error(error, 21)


async def test_a_failure_without_a_fault_is_found(findings: Findings):
    calls = Calls(findings, Windows(), seed=1)

    async def fail() -> None:
        raise MaybeExecutedError("lost")

    assert await calls.attempt(fail) == (MAYBE, None)
    assert findings.counts == {Kind.UNEXPLAINED: 1}


def test_there_is_a_way_for_every_kind_of_fault():
    assert set(Strikes(None, None, Windows())._ways) == set(KINDS)  # type: ignore[arg-type]


def test_a_schedule_follows_from_its_seed_and_leaves_nothing_out():
    def first(seed: int, count: int = 200):
        return list(itertools.islice(faults(seed), count))

    assert first(1) == first(1) != first(2)
    assert {each.kind.name for each in first(1, len(KINDS))} == set(KINDS)


# ------------------------------------------------------------------------------- the server's log

OID, OTHER = "oid", "other"
START, LIFE = 1000.0, 4.0
DUE = START + LIFE * 0.7


def auth(time: float, token: float, *, connection: int = 1, oid: str = OID, accepted: bool = True):
    uti = f"issued at {token}"
    return AuthAttempt(time, connection, "AUTH", oid, accepted, None, uti, token + LIFE)


def log_of(*records: AuthAttempt | ConnectionClose) -> Log:
    auths = [each for each in records if isinstance(each, AuthAttempt)]
    tokens = {
        each.uti: IssuedToken(
            each.expires_on - LIFE, each.uti, OID, "redis", each.expires_on, "token"
        )
        for each in auths
        if each.uti and each.expires_on
    }
    closes = [each for each in records if isinstance(each, ConnectionClose)]
    return Log(list(tokens.values()), [], auths, closes)


class Them:
    exempt = frozenset({OTHER})


def judged(log: Log, end: float, windows: Windows | None = None) -> Findings:
    result = Result(Plan(1, 1, 1), Findings())
    judge_log(log, end, Them(), windows or Windows(), result)  # type: ignore[arg-type]
    return result.findings


def test_an_auth_in_time_and_a_connection_that_was_closed_before_it_was_due():
    second = START + 1
    log = log_of(auth(START, START), auth(DUE, second), ConnectionClose(DUE + 1, 1, "client", OID))
    assert [each.late for each in auth_times(log, exempt=frozenset(), end=DUE + 9)] == [0.0, 0.0]
    assert not judged(log, DUE + 9)


@pytest.mark.parametrize(
    "log",
    [
        pytest.param(log_of(auth(START, START), auth(DUE + 0.1, START + 1)), id="late"),
        pytest.param(log_of(auth(START, START)), id="never"),
        pytest.param(
            log_of(auth(START, START), auth(START + 1, START + 1, accepted=False)), id="refused"
        ),
        pytest.param(
            log_of(auth(START, START), ConnectionClose(DUE + 0.1, 1, "client", OID)), id="drained"
        ),
    ],
)
def test_a_late_auth_is_found_unless_a_fault_excuses_it(log: Log):
    assert judged(log, DUE + 0.5).counts == {Kind.LATE_AUTH: 1}
    windows = Windows()
    windows.open(KINDS["AUTH is slow"], START + 1).end = START + 1.5
    assert not judged(log, DUE + 0.5, windows)
    unrelated = Windows()
    unrelated.open(KINDS["the event loop stalls"], START + 1).end = START + 1.5
    assert judged(log, DUE + 0.5, unrelated).counts == {Kind.LATE_AUTH: 1}


def test_a_connection_of_somebody_else_may_be_late():
    assert not judged(log_of(auth(START, START, oid=OTHER)), DUE + 0.5)


def test_an_expiry_is_found_unless_there_was_no_token_to_be_had():
    closed = ConnectionClose(DUE, 1, "expiry", OID)
    log = log_of(closed, ConnectionClose(DUE, 2, "expiry", OTHER))
    assert expiries(log, exempt=Them.exempt) == [(DUE, 1)]
    assert judged(log, DUE).counts == {Kind.EXPIRED: 1}
    windows = Windows()
    windows.open(KINDS["identity provider fails"], DUE - 1)
    assert judged(log, DUE, windows).counts == {Kind.EXPIRED: 1}
    windows.open(KINDS["identity provider is gone"], DUE - 1)
    assert not judged(log, DUE, windows)


# ------------------------------------------------------------------------------- measures, report


def sample(rotations: int, resident: float, tasks: int = 40) -> Sample:
    return Sample(rotations, resident, 0.0, 0.0, 1000, 1000, tasks, 30)


def result_of(samples: list[Sample]) -> Result:
    return Result(Plan(1, 2000, 1), Findings(), rotations=2300, samples=samples)


def test_growth_is_from_the_median_of_the_first_samples_to_that_of_the_last():
    samples = [sample(n, 50.0) for n in range(0, 300, 20)]  # still warming up
    samples += [sample(n, 100.0 if n != 1000 else 130.0) for n in range(300, 2020, 20)]
    found = span(samples, "resident", 300)
    assert found is not None
    assert (found.growth, found.median, found.highest) == (0.0, 100.0, 130.0)
    assert span(samples[:3], "resident", 0) is None


def test_a_leak_is_found_and_so_is_each_finding():
    assert broken(result_of([sample(n, 100.0) for n in range(0, 2301, 20)])) == []
    leaking = result_of([sample(n, 100.0 + n / 900) for n in range(0, 2301, 20)])
    assert [row.name.split(":")[0] for row in broken(leaking)] == ["resident memory, MB"]
    more_tasks = result_of([sample(n, 100.0, 40 + n // 100) for n in range(0, 2301, 20)])
    assert [row.name.split(":")[0] for row in broken(more_tasks)] == ["tasks"]
    for kind in Kind:
        result = result_of([])
        result.findings.add(kind, "this one")
        assert [row.name for row in broken(result)] == [kind.value]
        assert "this one" in table(result)
