"""What must hold: of counters, of values, of elements in queues, and of messages.

Each object follows one key with one writer, whose calls come one after the other. It is told how
each write ended and what each read brought, and finds what can't be. Nothing here does I/O, and
nothing grows with the number of writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .findings import Findings, Kind
from .outcomes import Outcome

__all__ = ["PATIENCE", "Count", "Elements", "Messages", "Register", "Total"]

PATIENCE = 60.0
"""Seconds after which a call that was given up has had its effect or never will: no connection
that drains, and no AUTH that holds up what stands behind it, takes that long."""

Clock = Callable[[], float]


class Count:
    """A counter that its one writer increments by 1 at a time."""

    def __init__(self, findings: Findings, name: str, clock: Clock = time.monotonic) -> None:
        self._findings, self.name, self._clock = findings, name, clock
        self._known = 0
        self._maybe = 0
        self._late: list[float] = []

    def failed(self, outcome: Outcome) -> None:
        """An increment ended without a reply."""
        if outcome is Outcome.MAYBE:
            self._maybe += 1
        elif outcome is Outcome.LATE:
            self._late.append(self._clock() + PATIENCE)

    def replied(self, value: int) -> None:
        """An increment was answered with the new value."""
        self._settle(value, self._known + 1)

    def read(self, value: int) -> None:
        """The counter holds ``value``, and no increment is under way."""
        self._settle(value, self._known)

    def _settle(self, value: int, least: int) -> None:
        now = self._clock()
        self._late = [end for end in self._late if end > now]
        extra = value - least
        if extra < 0:
            self._findings.add(Kind.LOST, f"{self.name} is {value}, at least {least} was answered")
        elif extra > self._maybe + len(self._late):
            most = least + self._maybe + len(self._late)
            self._findings.add(Kind.TWICE, f"{self.name} is {value}, {most} at most was sent")
        del self._late[: max(0, extra - self._maybe)]
        self._known, self._maybe = value, 0


class Total:
    """A counter that many increment: only the sum is known."""

    def __init__(self, findings: Findings, name: str) -> None:
        self._findings, self.name = findings, name
        self.acknowledged = 0
        self.maybe = 0

    def tell(self, outcome: Outcome) -> None:
        """An increment ended like this."""
        if outcome is Outcome.DONE:
            self.acknowledged += 1
        elif outcome is not Outcome.NOT_RUN:
            self.maybe += 1

    def read(self, value: int) -> None:
        """The counter holds ``value``, and nobody increments it."""
        text = f"{self.name} is {value}: {self.acknowledged} answered, {self.maybe} may have run"
        if value < self.acknowledged:
            self._findings.add(Kind.LOST, text)
        elif value > self.acknowledged + self.maybe:
            self._findings.add(Kind.TWICE, text)


class Register:
    """A key that its one writer sets to 1, 2, 3, ...; 0 stands for a key that is not there."""

    def __init__(self, findings: Findings, name: str, clock: Clock = time.monotonic) -> None:
        self._findings, self.name, self._clock = findings, name, clock
        self.written = 0
        self._known = 0
        self._maybe: dict[int, float | None] = {}

    def next(self) -> int:
        """The value to set."""
        self.written += 1
        return self.written

    def tell(self, value: int, outcome: Outcome) -> None:
        """Setting it to ``value`` ended like this."""
        if outcome is Outcome.DONE:
            now = self._clock()
            # What a lost connection may have brought, it has brought before; what was given up
            # may still be under way, on another connection than this one.
            self._maybe = {n: end for n, end in self._maybe.items() if end and end > now}
            self._known = value
        elif outcome is not Outcome.NOT_RUN:
            late = outcome is Outcome.LATE
            self._maybe[value] = self._clock() + PATIENCE if late else None

    def read(self, value: int) -> None:
        """The key holds ``value``, and no SET is under way."""
        if value == self._known:
            return
        if value in self._maybe:
            self._known = value
            del self._maybe[value]
            return
        kind = Kind.LOST if value < self._known else Kind.TWICE
        expected = sorted({self._known, *self._maybe})
        self._findings.add(kind, f"{self.name} is {value}, not any of {expected}")


class Elements:
    """A queue whose one producer puts 1, 2, 3, ... into it, and what its consumer is given.

    ``lossy`` says that a consumer whose connection ends may lose one element (BLPOP): ``deaths``
    of them excuse as many, which are counted in ``lost_to_deaths`` by ``finish``.
    """

    def __init__(
        self,
        findings: Findings,
        name: str,
        *,
        lossy: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        self._findings, self.name, self._clock = findings, name, clock
        self.lossy = lossy
        self.sent = self.delivered = self.deaths = self.lost_to_deaths = 0
        self._open: dict[int, tuple[Outcome | None, int, float]] = {}
        """What is not settled: how sending it ended, how often it came, and since when."""

    def next(self) -> int:
        """The element to send."""
        self.sent += 1
        self._open[self.sent] = (None, 0, self._clock())
        if self.sent % 100 == 0:
            self._forget_old()
        return self.sent

    def tell(self, element: int, outcome: Outcome) -> None:
        """Sending ``element`` ended like this."""
        _, times, since = self._open[element]
        if outcome is Outcome.NOT_RUN and times:
            self._findings.add(
                Kind.TWICE, f"{self.name}: {element} came although sending it had failed"
            )
        if times or outcome is Outcome.NOT_RUN:
            del self._open[element]
        else:
            self._open[element] = (outcome, 0, since)

    def came(self, element: int) -> None:
        """The consumer was given ``element``."""
        self.delivered += 1
        outcome, times, since = self._open.get(element, (Outcome.NOT_RUN, 0, 0.0))
        if times or outcome is Outcome.NOT_RUN:
            self._findings.add(Kind.TWICE, f"{self.name}: {element} came twice, or was never sent")
        elif outcome is None:  # before the producer had its reply
            self._open[element] = (None, 1, since)
        else:
            del self._open[element]

    def missing(self) -> list[int]:
        """What was acknowledged and has not come."""
        return [n for n, (outcome, _, _) in self._open.items() if outcome is Outcome.DONE]

    def finish(self) -> None:
        """The queue was emptied: what has not come by now won't."""
        missing = self.missing()
        if self.lossy:
            self.lost_to_deaths = min(len(missing), self.deaths)
            missing = missing[self.lost_to_deaths :]
        for element in missing:
            self._findings.add(Kind.UNDELIVERED, f"{self.name}: {element} never came")

    def _forget_old(self) -> None:
        """Elements of which nobody knows whether they were sent, long ago."""
        old = self._clock() - PATIENCE
        for element, (outcome, _, since) in list(self._open.items()):
            if outcome in (Outcome.MAYBE, Outcome.LATE) and since < old:
                del self._open[element]


class Messages:
    """A channel on which 1, 2, 3, ... are published, as one subscriber sees it."""

    def __init__(self, findings: Findings, name: str) -> None:
        self._findings, self.name = findings, name
        self.received = self.missed = self.repeated = 0
        self._last = 0
        self._doubtful: dict[int, Outcome] = {}

    def failed(self, number: int, outcome: Outcome) -> None:
        """Publishing ``number`` ended without a reply."""
        if number > self._last or outcome is Outcome.NOT_RUN:
            self._doubtful[number] = outcome

    def came(self, number: int, *, excused: bool, doubted: bool = False) -> None:
        """The subscriber was given ``number``.

        ``excused`` is a gap that it was told of, ``doubted`` a handover after which it was told
        that messages may come twice.
        """
        self.received += 1
        outcome = self._doubtful.pop(number, None)
        if outcome is Outcome.NOT_RUN:
            self._findings.add(Kind.TWICE, f"{self.name}: {number} came although it had failed")
        if number <= self._last:
            self.repeated += 1
            if outcome is not Outcome.LATE and not doubted:
                self._findings.add(
                    Kind.TWICE, f"{self.name}: {number} came after {self._last}, again or too late"
                )
            return
        self._missing(number, excused)
        self._last = number

    def finish(self, published: int, *, excused: bool) -> None:
        """All that was published has had its time to come."""
        self._missing(published + 1, excused)
        self._last = published

    def _missing(self, before: int, excused: bool) -> None:
        absent = [n for n in range(self._last + 1, before) if n not in self._doubtful]
        self.missed += len(absent)
        if absent and not excused:
            self._findings.add(
                Kind.UNDELIVERED, f"{self.name}: {absent[0]} to {absent[-1]} did not come"
            )
        # Those that were given up may still come; the rest can't.
        self._doubtful = {
            n: outcome
            for n, outcome in self._doubtful.items()
            if n >= before or (outcome is Outcome.LATE and n > before - 1000)
        }
