"""Hypothesis strategies for steps and whole programs."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from .commands import (
    ANYTHING,
    BLOCKING,
    CALLBACK_RAISES,
    ITERATORS,
    KEYS_ANYWHERE,
    NEVER_ENDING,
    NOTHING_TO_POP,
    ODD,
    THEMES,
    VALUE,
    WRITES,
    weighted,
)
from .program import (
    Blocked,
    Call,
    Cancelled,
    Copied,
    Key,
    Locked,
    OwnConnection,
    Pause,
    Pipeline,
    Program,
    Scripted,
    Step,
    Transaction,
    Watched,
)
from .spread import SPREAD, SPREAD_IN_PIPELINES

__all__ = ["programs"]


def _calls(
    strategy: SearchStrategy[Call], least: int, most: int
) -> SearchStrategy[tuple[Call, ...]]:
    return st.lists(strategy, min_size=least, max_size=most).map(tuple)


TURNS = st.sampled_from([0, 1, 1, 2, 3, 5, 8, 13, 30])
STRING_KEYS = st.sampled_from([Key("s0"), Key("s1")])

TRANSACTION = st.builds(Transaction, st.sampled_from([Key("n0"), Key("n1")]), st.integers(0, 2))
SCRIPTED = st.builds(
    Scripted,
    st.sampled_from(
        [
            "return {redis.call('GET', KEYS[1]), ARGV[1]}",
            "return redis.call('INCRBY', KEYS[1], ARGV[1])",
            "redis.call('SET', KEYS[1], ARGV[1]); return redis.call('STRLEN', KEYS[1])",
        ]
    ),
    st.tuples(STRING_KEYS),
    st.tuples(st.integers(-3, 9)),
    st.sampled_from([None, None, False, True]),
)
BLOCKED = st.builds(lambda pair, turns: Blocked(*pair, turns), BLOCKING, TURNS)
CANCELLED = weighted(
    (3, st.builds(Cancelled, _calls(WRITES, 1, 1), st.none(), TURNS)),
    (2, st.builds(Cancelled, _calls(WRITES, 1, 4), st.booleans(), TURNS)),
    (1, st.builds(Cancelled, _calls(NEVER_ENDING, 1, 1), st.none(), TURNS, st.just(False))),
)
COPIED = st.builds(Copied, VALUE, st.just(Key("s0")), st.just(Key("s1")))


def _has_text_for_a_name(call: Call) -> bool:
    """Whether redis-py's cluster client can look its command up."""
    return call.method != "execute_command" or isinstance(call.args[0], str)


def _has_its_keys_in_place(call: Call) -> bool:
    """Whether redis-py's cluster client can tell its keys in a transaction."""
    # UNLINK is a coroutine there that nobody awaits.
    known = call.method not in KEYS_ANYWHERE and call.method != "unlink"
    return known and _has_text_for_a_name(call)


def _steps(theme: SearchStrategy[Call], cluster: bool) -> SearchStrategy[Step]:
    calls = weighted((12, theme), (2, ANYTHING), (1, ODD))
    alone, scripted, cancelled = calls, SCRIPTED, CANCELLED
    if cluster:
        alone = calls.filter(_has_text_for_a_name)
        # Without a key redis-py refuses a command when it is queued.
        calls = theme.filter(_has_its_keys_in_place)
        scripted = SCRIPTED.filter(lambda step: step.transaction is None)
        cancelled = CANCELLED.filter(lambda step: all(map(_has_its_keys_in_place, step.calls)))
    pipeline = st.builds(Pipeline, _calls(calls, 0, 6), st.booleans(), st.booleans())
    # A few calls many times over: cheap to make up, and long enough to be cut.
    long_pipeline = st.builds(
        Pipeline,
        st.builds(lambda few, times: few * times, _calls(calls, 2, 4), st.integers(10, 40)),
        st.booleans(),
        st.just(False),
    )
    watched = st.builds(
        Watched,
        st.lists(STRING_KEYS, min_size=1, max_size=2, unique=True).map(tuple),
        _calls(calls, 0, 2),
        st.one_of(st.none(), WRITES),
        _calls(calls, 0, 3),
    )
    elsewhere = (
        (8, SPREAD),
        (3, st.builds(Pipeline, _calls(SPREAD_IN_PIPELINES, 0, 8), st.just(False), st.booleans())),
    )
    return weighted(
        (40, alone),
        (2, ITERATORS),
        (2, NOTHING_TO_POP),
        (1, CALLBACK_RAISES),
        (3, st.builds(Pause, TURNS)),
        (8, pipeline),
        (1, long_pipeline),
        (3, watched),
        (2, TRANSACTION),
        (3, scripted),
        (3, BLOCKED),
        (8, cancelled),
        *(elsewhere if cluster else [(2, st.builds(OwnConnection, _calls(calls, 0, 3)))]),
        (3, COPIED),
        (1, st.just(Locked(Key("lock")))),
    )


def programs(variants: Sequence[str], *, cluster: bool = False) -> SearchStrategy[Program]:
    """Programs for clients of these kinds."""
    steps = [_steps(theme, cluster) for theme in THEMES]
    scripts = [st.lists(each, min_size=4, max_size=30).map(tuple) for each in steps]
    return st.builds(
        Program,
        st.sampled_from(list(variants)),
        st.lists(weighted(*((1, each) for each in scripts)), min_size=2, max_size=4).map(tuple),
        st.integers(1, 5),
    )
