"""The soak's model finds what is broken: histories that are right, and one wrong each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from soak.findings import Findings, Kind
from soak.model import PATIENCE, Count, Elements, Messages, Register, Total
from soak.outcomes import Outcome

DONE, NOT_RUN, MAYBE, LATE = Outcome.DONE, Outcome.NOT_RUN, Outcome.MAYBE, Outcome.LATE


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def findings() -> Findings:
    return Findings()


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ------------------------------------------------------------------------------- counters


def test_a_counter_that_adds_up(findings: Findings, clock: Clock):
    count = Count(findings, "n", clock)
    count.replied(1)
    count.failed(MAYBE)
    count.failed(LATE)
    count.failed(NOT_RUN)
    count.replied(3)  # one of the two was executed
    count.read(3)
    count.read(4)  # and the other one is, later
    assert not findings


@pytest.mark.parametrize("outcome", [MAYBE, LATE])
def test_a_lost_increment_is_found(findings: Findings, clock: Clock, outcome: Outcome):
    count = Count(findings, "n", clock)
    count.replied(1)
    count.replied(2)
    count.failed(outcome)
    count.replied(2)
    assert findings.counts == {Kind.LOST: 1}


def test_a_doubled_increment_is_found(findings: Findings, clock: Clock):
    count = Count(findings, "n", clock)
    count.replied(1)
    count.replied(3)
    assert findings.counts == {Kind.TWICE: 1}


def test_an_increment_that_was_reported_as_not_executed_is_found(findings, clock):
    count = Count(findings, "n", clock)
    count.failed(NOT_RUN)
    count.read(1)
    assert findings.counts == {Kind.TWICE: 1}


def test_what_may_have_run_excuses_one_increment_only(findings: Findings, clock: Clock):
    count = Count(findings, "n", clock)
    count.failed(MAYBE)
    count.replied(2)
    count.replied(4)
    assert findings.counts == {Kind.TWICE: 1}


def test_what_was_given_up_does_not_excuse_for_ever(findings: Findings, clock: Clock):
    count = Count(findings, "n", clock)
    count.failed(LATE)
    clock.now += PATIENCE + 1
    count.replied(2)
    assert findings.counts == {Kind.TWICE: 1}


@pytest.mark.parametrize(("value", "kind"), [(1, Kind.LOST), (2, None), (3, None), (4, Kind.TWICE)])
def test_a_total_of_many(findings: Findings, value: int, kind: Kind | None):
    total = Total(findings, "n")
    for outcome in (DONE, DONE, MAYBE, NOT_RUN):
        total.tell(outcome)
    total.read(value)
    assert findings.counts == ({kind: 1} if kind else {})


# ------------------------------------------------------------------------------- values


def written(register: Register, *outcomes: Outcome) -> None:
    for outcome in outcomes:
        register.tell(register.next(), outcome)


@pytest.mark.parametrize(
    ("outcomes", "value", "kind"),
    [
        ([DONE, DONE], 2, None),
        ([DONE, MAYBE], 1, None),
        ([DONE, MAYBE], 2, None),
        ([DONE, LATE, DONE], 2, None),
        ([DONE, DONE], 1, Kind.LOST),
        ([DONE], 0, Kind.LOST),
        ([DONE, MAYBE, DONE], 2, Kind.LOST),
        ([DONE, NOT_RUN], 2, Kind.TWICE),
        ([DONE], 2, Kind.TWICE),
    ],
)
def test_a_register(findings: Findings, clock: Clock, outcomes, value, kind):
    register = Register(findings, "k", clock)
    written(register, *outcomes)
    register.read(value)
    assert findings.counts == ({kind: 1} if kind else {})


def test_a_register_that_forgets_what_it_has_shown(findings: Findings, clock: Clock):
    register = Register(findings, "k", clock)
    written(register, DONE, MAYBE)
    register.read(2)
    register.read(1)
    assert findings.counts == {Kind.LOST: 1}


def test_a_register_lets_what_was_given_up_come_late_but_not_for_ever(findings, clock):
    register = Register(findings, "k", clock)
    written(register, LATE, DONE)
    register.read(1)
    assert not findings
    written(register, LATE, DONE)
    clock.now += PATIENCE + 1
    written(register, DONE)
    register.read(3)
    assert findings.counts == {Kind.LOST: 1}


# ------------------------------------------------------------------------------- elements


def sent(elements: Elements, *outcomes: Outcome) -> None:
    for outcome in outcomes:
        elements.tell(elements.next(), outcome)


def test_a_queue_that_delivers(findings: Findings, clock: Clock):
    elements = Elements(findings, "q", clock=clock)
    early = elements.next()
    elements.came(early)  # before the producer has its reply
    elements.tell(early, DONE)
    sent(elements, DONE, MAYBE, LATE, NOT_RUN)
    for each in (2, 4):
        elements.came(each)
    elements.finish()
    assert not findings


def test_a_lost_element_is_found(findings: Findings, clock: Clock):
    elements = Elements(findings, "q", clock=clock)
    sent(elements, DONE, DONE)
    elements.came(2)
    elements.finish()
    assert findings.counts == {Kind.UNDELIVERED: 1}
    assert findings.of(Kind.UNDELIVERED) == ["q: 1 never came"]


@pytest.mark.parametrize("outcome", [DONE, MAYBE, LATE, None])
def test_an_element_that_comes_twice_is_found(findings: Findings, clock: Clock, outcome):
    elements = Elements(findings, "q", clock=clock)
    number = elements.next()
    if outcome is not None:
        elements.tell(number, outcome)
    elements.came(number)
    elements.came(number)
    assert findings.counts == {Kind.TWICE: 1}


@pytest.mark.parametrize("came_first", [False, True])
def test_an_element_that_was_reported_as_not_sent_is_found(findings, clock, came_first):
    elements = Elements(findings, "q", clock=clock)
    number = elements.next()
    steps: list[Callable[[], None]] = [
        lambda: elements.tell(number, NOT_RUN),
        lambda: elements.came(number),
    ]
    for step in reversed(steps) if came_first else steps:
        step()
    assert findings.counts == {Kind.TWICE: 1}


@pytest.mark.parametrize(("deaths", "found"), [(0, 2), (1, 1), (2, 0), (3, 0)])
def test_only_a_connection_that_died_under_a_pop_excuses_a_loss(findings, clock, deaths, found):
    elements = Elements(findings, "q", lossy=True, clock=clock)
    sent(elements, DONE, DONE)
    elements.deaths = deaths
    elements.finish()
    assert findings.counts[Kind.UNDELIVERED] == found
    assert elements.lost_to_deaths == 2 - found


def test_a_long_queue_takes_no_more_room_than_a_short_one(findings: Findings, clock: Clock):
    elements = Elements(findings, "q", clock=clock)
    for number in range(1, 5001):
        sent(elements, MAYBE if number % 10 == 0 else DONE)
        if number % 10:
            elements.came(number)
        clock.now += 1
        assert len(elements._open) < PATIENCE / 10 + 100
    assert not findings


# ------------------------------------------------------------------------------- messages


def test_messages_in_order_with_those_that_may_not_have_been_sent(findings: Findings):
    messages = Messages(findings, "c")
    messages.failed(2, MAYBE)
    messages.failed(3, NOT_RUN)
    for number in (1, 4):
        messages.came(number, excused=False)
    messages.finish(4, excused=False)
    assert not findings
    assert messages.missed == 0


@pytest.mark.parametrize(("excused", "found"), [(False, 1), (True, 0)])
def test_a_missing_message_is_found_unless_the_gap_was_announced(findings, excused, found):
    messages = Messages(findings, "c")
    messages.came(1, excused=False)
    messages.came(4, excused=excused)
    assert findings.counts[Kind.UNDELIVERED] == found
    assert messages.missed == 2


def test_a_message_that_never_came_at_the_end_is_found(findings: Findings):
    messages = Messages(findings, "c")
    messages.came(1, excused=False)
    messages.finish(2, excused=False)
    assert findings.counts == {Kind.UNDELIVERED: 1}


@pytest.mark.parametrize("numbers", [(1, 1), (1, 2, 1)])
def test_a_message_that_comes_twice_is_found(findings: Findings, numbers):
    messages = Messages(findings, "c")
    for number in numbers:
        messages.came(number, excused=False)
    assert findings.counts == {Kind.TWICE: 1}


def test_a_message_may_come_twice_where_the_subscriber_was_told_so(findings: Findings):
    messages = Messages(findings, "c")
    messages.came(1, excused=False)
    messages.came(1, excused=False, doubted=True)
    assert not findings
    assert messages.repeated == 1


def test_a_message_that_was_reported_as_not_sent_is_found(findings: Findings):
    messages = Messages(findings, "c")
    messages.failed(1, NOT_RUN)
    messages.came(1, excused=False)
    assert findings.counts == {Kind.TWICE: 1}
