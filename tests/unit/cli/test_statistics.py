"""Percentiles by bucket, and which commands count as inside a rotation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aioentra_redis.cli._statistics import Histogram, Latencies, Recorder


def test_nothing_recorded_has_no_percentiles():
    assert Histogram().summary() == Latencies(0, None, None, None)


def test_percentiles_are_upper_edges_of_buckets():
    histogram = Histogram()
    for milliseconds in range(1, 101):
        histogram.add((milliseconds - 0.005) / 1000)
    assert histogram.summary() == Latencies(100, 0.050, 0.099, 0.100)


def test_one_command_is_every_percentile():
    histogram = Histogram()
    histogram.add(0.0123456)
    assert histogram.summary() == Latencies(1, 0.01235, 0.01235, 0.01235)


def test_buckets_that_were_emptied_do_not_count():
    histogram = Histogram()
    histogram.add(0.5)
    histogram.buckets[int(0.5 / 1e-5)] -= 1
    assert histogram.summary().commands == 0


@pytest.mark.parametrize(
    ("begun", "ended", "inside"),
    [
        pytest.param(1.0, 1.9, False, id="ended-before-it"),
        pytest.param(1.9, 2.1, True, id="in-flight-when-it-began"),
        pytest.param(2.1, 2.2, True, id="within-it"),
    ],
)
def test_command_that_ends_before_the_rotation_is_known(begun: float, ended: float, inside: bool):
    recorder = Recorder()
    recorder.record(begun, ended)
    recorder.rotated(3.0, 1.0)
    assert recorder.inside.summary().commands == inside
    assert recorder.outside.summary().commands == (not inside)


@pytest.mark.parametrize(
    ("begun", "inside"),
    [
        pytest.param(1.9, True, id="longer-than-it"),
        pytest.param(2.9, True, id="begun-within-it"),
        pytest.param(3.1, False, id="begun-after-it"),
    ],
)
def test_command_that_ends_after_the_rotation(begun: float, inside: bool):
    recorder = Recorder()
    recorder.rotated(3.0, 1.0)
    recorder.record(begun, 3.2)
    assert recorder.inside.summary().commands == inside
    assert recorder.commands == 1


def test_a_command_in_two_rotations_counts_once():
    recorder = Recorder()
    recorder.record(1.0, 2.5)
    recorder.rotated(2.6, 0.5)
    recorder.rotated(2.7, 0.5)
    assert recorder.inside.summary().commands == 1
    assert recorder.outside.summary().commands == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aioentra_redis.cli._statistics.REMEMBERED", 10)
    recorder = Recorder()
    for number in range(100):
        recorder.record(number, number + 0.5)
    recorder.rotated(100.0, 100.0)
    assert recorder.inside.summary().commands == 10
    assert recorder.outside.summary().commands == 90


@pytest.mark.parametrize("move", [lambda r: None, lambda r: r.rotated(1e9, 1e9)])
def test_the_sum_is_what_was_recorded(move: Callable[[Recorder], None]):
    recorder = Recorder()
    for number in range(1000):
        recorder.record(number, number + number / 1000)
    move(recorder)
    assert recorder.inside.summary().commands + recorder.outside.summary().commands == 1000
