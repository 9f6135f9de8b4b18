"""Hypothesis strategies for calls on keys in several slots of a cluster."""

from __future__ import annotations

from hypothesis import strategies as st

from .commands import SMALL, call
from .program import Call, Large, Spread

__all__ = ["SPREAD", "SPREAD_IN_PIPELINES"]

_FAR = st.sampled_from([Spread(f"f{number}") for number in range(6)])
_FARS = st.lists(_FAR, min_size=1, max_size=5, unique=True)
# No text, which an encoding may refuse: redis-py has sent it to some nodes by then, ours to none.
_FAR_VALUE = st.one_of(st.binary(max_size=5), SMALL, st.just(Large(9_000)))
_FAR_VALUES = st.dictionaries(_FAR, _FAR_VALUE, min_size=1, max_size=5)

SPREAD_IN_PIPELINES = st.one_of(
    call("set", _FAR, _FAR_VALUE),
    call("get", _FAR),
    call("append", _FAR, _FAR_VALUE),
    call("strlen", _FAR),
    call("delete", _FAR),
)
"""Calls on keys of one slot each, which are not all in the same one."""

SPREAD = st.one_of(
    SPREAD_IN_PIPELINES,
    call("mset_nonatomic", _FAR_VALUES),
    call("mset_nonatomic", _FAR_VALUES),
    call("mget_nonatomic", _FARS),
    call("mget_nonatomic", _FARS),
    call("mset", _FAR_VALUES),
    call("mget", _FARS),
    *(
        st.builds(lambda name, keys: Call(name, tuple(keys)), st.just(name), _FARS)
        for name in ("delete", "exists", "touch", "unlink")
    ),
    call("sunion", _FAR, _FAR),
    call("rename", _FAR, _FAR),
)
"""Calls on keys in several slots, some of which are refused for that."""
