"""Whether two clients said the same, and left the same behind.

Strict: types count (``True`` is not ``1``, ``"a"`` is not ``b"a"``), errors by class and text,
where ours may be a subclass. Three liberties: an order that the server does not promise, and with
it which of several undecodable values is met first; and lives that have gone on meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .program import Call, Cancelled, Program
from .runner import CANCELLED, Reply, Run, fresh_space

__all__ = ["Difference", "compare_replies", "compare_states", "same"]


def _names(table: str) -> frozenset[str]:
    return frozenset(table.split())


UNORDERED = _names(
    """
    hgetall hkeys hvals hscan hscan_iter keys scan_iter sdiff sinter smembers sscan sscan_iter
    sunion zscan zscan_iter
    """
)
LIVES = _names("expiretime pexpiretime pttl ttl")

State = Mapping[str, Mapping[str, Any]]
"""For each database, what is in each key; see ``peers.py``."""


class Difference(AssertionError):
    """Our client said or did something else than redis-py's."""


def compare_replies(program: Program, plain: Run, ours: Run) -> tuple[int, int]:
    """Raise ``Difference`` for the first reply that differs; returns how many were compared, and
    how many of those are errors."""
    compared = errors = 0
    for number, (script, theirs, mine) in enumerate(
        zip(program.workers(), plain.replies, ours.replies, strict=True)
    ):
        for at, (step, expected, got) in enumerate(zip(script, theirs, mine, strict=True)):
            if isinstance(step, Cancelled) and any(each.value is CANCELLED for each in got):
                continue
            if any(map(_is_a_flaw_of_redis_py, expected)):
                continue  # what it has done is compared all the same
            where = f"coroutine {number}, step {at}, {step!r:.600}"
            if len(expected) != len(got):
                raise Difference(f"{where}: {_shown(expected)} / ours: {_shown(got)}")
            for one, other in zip(expected, got, strict=True):
                compared += 1
                errors += isinstance(one.value, Exception)
                if not same(_normal(one), _normal(other)):
                    raise Difference(
                        f"{where}\n  {one.call!r:.300}\n"
                        f"  redis-py: {_shown(one.value)}\n"
                        f"  ours:     {_shown(other.value)}"
                    ) from (other.value if isinstance(other.value, Exception) else None)
    return compared, errors


def _is_a_flaw_of_redis_py(reply: Reply) -> bool:
    """Whether redis-py has passed an option of its own on to a response callback.

    Its cluster client does in transactions, when they have been executed.
    """
    return isinstance(reply.value, TypeError) and _OWN_OPTION in str(reply.value)


_OWN_OPTION = "got an unexpected keyword argument 'keys'"


def same(plain: Any, ours: Any) -> bool:
    """Whether a reply of ours is what redis-py gave."""
    if isinstance(plain, Exception):
        if isinstance(plain, UnicodeDecodeError):  # of several, the server's order says which
            return isinstance(ours, UnicodeDecodeError)
        return isinstance(ours, type(plain)) and str(ours) == str(plain)
    if type(plain) is not type(ours):
        return False
    if isinstance(plain, (list, tuple)):
        return len(plain) == len(ours) and all(map(same, plain, ours))
    if isinstance(plain, dict):
        # Sorted with their types: {1: "a"} equals {True: "a"}.
        return same(_sorted(plain.items()), _sorted(ours.items()))
    if isinstance(plain, (set, frozenset)):
        return same(_sorted(plain), _sorted(ours))
    if isinstance(plain, float) and math.isnan(plain):
        return math.isnan(ours)
    return bool(plain == ours)


def _normal(reply: Reply) -> Any:
    call, value = reply.call, reply.value
    method = call.method if isinstance(call, Call) else ""
    if method == "execute_command":
        method = str(call.args[0]).lower() if isinstance(call, Call) else ""
    if method in UNORDERED and not isinstance(value, Exception):
        return _without_order(value)
    if method in LIVES and isinstance(value, int) and value > 0:
        return "some"
    if method == "dump":  # what has no order is written down in the order of the memory
        return type(value)
    return value


def _without_order(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_sorted(map(_without_order, value)))
    return value


def _sorted(values: Any) -> list[Any]:
    return sorted(values, key=lambda value: (repr(type(value)), repr(value)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 500 else f"{text[:400]}... ({len(text)} characters)"


# -- what is left behind -------------------------------------------------------------------------


def compare_states(program: Program, plain: State, ours: State) -> int:
    """Raise ``Difference`` where what the programs left differs; returns how many keys agree.

    What a cancelled call has touched is as if it had run once, or not at all; a cancelled
    transaction's as if all of it had.
    """
    if plain.keys() != ours.keys():
        raise Difference(f"databases in use: redis-py {sorted(plain)}, ours {sorted(ours)}")
    agreed = 0
    for database in plain:
        expected, got = plain[database], ours[database]
        free = _free_keys(program)
        for key in sorted({*expected, *got}):
            if key.startswith(tuple(free)):
                continue
            agreed += 1
            if not same(expected.get(key), got.get(key)):
                raise Difference(
                    f"{key} was left as {_shown(expected.get(key))} by redis-py, "
                    f"as {_shown(got.get(key))} by ours"
                )
        for prefix, whole in free.items():
            _compare_cancelled(_under(prefix, expected), _under(prefix, got), prefix, whole)
            agreed += 1
    return agreed


def _free_keys(program: Program) -> dict[str, bool | None]:
    """Prefixes of what cancelled calls have touched; True where all or nothing of it holds, None
    where nothing is known."""
    free: dict[str, bool | None] = {}
    for number, script in enumerate(program.workers()):
        for at, step in enumerate(script):
            if not isinstance(step, Cancelled):
                continue
            prefix = f"{fresh_space(number, at)}:"
            if not step.may_run:
                free[prefix] = None
            elif step.transaction:
                free[prefix] = True
            else:
                free |= {f"{prefix}{call}:": False for call in range(len(step.calls))}
    return free


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key.startswith(prefix)}


def _compare_cancelled(
    expected: dict[str, Any], got: dict[str, Any], prefix: str, whole: bool | None
) -> None:
    if whole is None or not got or same(expected, got):
        return
    what = "transaction" if whole else "call"
    raise Difference(
        f"a cancelled {what} left {_shown(got)} under {prefix}, which is neither nothing nor what "
        f"it leaves: {_shown(expected)}"
    )
