"""Latencies inside and outside rotations, recorded at a cost that commands don't feel.

A *rotation*, here, is the time from the moment a newer token is sent to the server to the moment
the server's answer has been seen: the ``latency`` of a ``Reauthenticated`` event, ending when the
event comes, or the ``connect_seconds`` of a connection that opens with it. A command is *inside* if
any part of its own time, from the call to the reply, falls into a rotation: it was in flight when
AUTH was sent, or began before AUTH was answered. All others are *outside*.

When a command ends nobody can tell yet whether an AUTH is under way, so it is counted as outside
and remembered for a while; the event at the end of a rotation moves what was inside.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Final

__all__ = ["Histogram", "Latencies", "Recorder"]

RESOLUTION: Final = 1e-5
"""Seconds that one bucket of a histogram spans."""

REMEMBERED: Final = 65536
"""Commands that a rotation can reach back to: what a second or so brings forth, and a bound on
memory. Of a rotation with more commands, the last ones count."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """A distribution in four numbers; seconds, None where there were no commands."""

    commands: int
    p50: float | None
    p99: float | None
    maximum: float | None


class Histogram:
    """Counts of latencies in buckets of ``RESOLUTION``; only those that occur take memory."""

    def __init__(self) -> None:
        self.buckets: defaultdict[int, int] = defaultdict(int)

    def add(self, seconds: float) -> None:
        """Count one latency."""
        self.buckets[int(seconds / RESOLUTION)] += 1

    def summary(self) -> Latencies:
        """Percentiles by the upper edges of the buckets, so never shorter than what was measured.

        A percentile is the smallest latency that so many percent of the commands don't exceed.
        """
        ordered = sorted(item for item in self.buckets.items() if item[1])
        total = sum(count for _, count in ordered)
        if not ordered:
            return Latencies(0, None, None, None)
        return Latencies(
            total,
            _edge(ordered, math.ceil(total * 0.50)),
            _edge(ordered, math.ceil(total * 0.99)),
            _edge(ordered, total),
        )


def _edge(ordered: list[tuple[int, int]], rank: int) -> float:
    """The upper edge of the bucket that holds the ``rank``-th latency, the first being 1."""
    for bucket, count in ordered:
        rank -= count
        if rank <= 0:
            return round((bucket + 1) * RESOLUTION, 5)
    raise ValueError("there are fewer latencies than that")


class Recorder:
    """What became of the commands' time. Times are those of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.commands = 0
        self.inside = Histogram()
        self.outside = Histogram()
        self._recent: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)
        self._rotation_ended = -math.inf

    def record(self, begun: float, ended: float) -> None:
        """Count a command that was called and answered at these times; called in order of ends."""
        # This runs once per command of the load and is all that measuring costs: no more than a
        # division, a comparison and two insertions.
        self.commands += 1
        bucket = int((ended - begun) / RESOLUTION)
        if begun <= self._rotation_ended:
            self.inside.buckets[bucket] += 1
        else:
            self.outside.buckets[bucket] += 1
            self._recent.append((ended, bucket))

    def rotated(self, ended: float, latency: float) -> None:
        """Learn that a rotation has just ended, after ``latency`` seconds."""
        begun = ended - latency
        recent = self._recent
        while recent and recent[-1][0] >= begun:
            _, bucket = recent.pop()
            self.outside.buckets[bucket] -= 1
            self.inside.buckets[bucket] += 1
        self._rotation_ended = ended
