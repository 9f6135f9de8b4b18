"""What a random program is made of; it says nothing of how it is made up or run.

A program is a few scripts, each a row of steps. Every script is run by several coroutines, which
begin at different steps. Whoever runs a script has keys of its own, so that the replies follow
from the script alone, however the coroutines take turns; all of them share one client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Blocked",
    "Call",
    "Cancelled",
    "Copied",
    "Key",
    "Large",
    "Locked",
    "OwnConnection",
    "Pause",
    "Pipeline",
    "Program",
    "Scripted",
    "Spread",
    "Step",
    "Text",
    "Transaction",
    "Watched",
    "resolve",
]


# -- arguments that depend on who runs the script ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the coroutine's own; ``suffix`` is for the patterns of SCAN, KEYS and SORT."""

    name: str
    suffix: str = ""

    def __repr__(self) -> str:
        return f"Key({self.name + self.suffix!r})"


@dataclass(frozen=True, slots=True)
class Spread:
    """A key of the coroutine's own that, in a cluster, is in another slot than all its others."""

    name: str

    def __repr__(self) -> str:
        return f"Spread({self.name!r})"


@dataclass(frozen=True, slots=True)
class Text:
    """A value that names its coroutine: a reply that went astray is not mistaken for the own."""

    text: str

    def __repr__(self) -> str:
        return f"Text({self.text!r})"


@dataclass(frozen=True, slots=True)
class Large:
    """A value of so many bytes that names its coroutine."""

    size: int

    def __repr__(self) -> str:
        return f"Large({self.size})"


def resolve(argument: Any, space: str) -> Any:
    """``argument`` with keys, texts and large values made out for the coroutine ``space``."""
    match argument:
        case Key(name, suffix):
            return f"{space}:{name}{suffix}"
        case Spread(name):
            return f"{{{space.strip('{}')}/{name}}}:{name}"
        case Text(text):
            return f"{text}/{space}"
        case Large(size):
            return f"{size}/{space}/".encode().ljust(size, b"x")
        case tuple() | list():
            return type(argument)(resolve(each, space) for each in argument)
        case dict():
            return {resolve(k, space): resolve(v, space) for k, v in argument.items()}
        case _:
            return argument


# -- steps ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One method of the client, or of a pipeline."""

    method: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return f"{self.method}({', '.join([*map(repr, self.args), *options])})"


@dataclass(frozen=True, slots=True)
class Pause:
    """Let others take so many turns."""

    turns: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline that watches nothing; one that raises does so with an annotated error."""

    calls: tuple[Call, ...]
    transaction: bool
    raise_on_error: bool


@dataclass(frozen=True, slots=True)
class Watched:
    """WATCH, read, and a transaction; ``meanwhile`` may spoil it from outside."""

    keys: tuple[Key, ...]
    reads: tuple[Call, ...]
    meanwhile: Call | None
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Transaction:
    """``client.transaction()`` adding to a counter, spoiled from outside so many times."""

    key: Key
    spoiled: int


@dataclass(frozen=True, slots=True)
class Scripted:
    """A registered script, run by itself (None) or in a pipeline, transactional or not."""

    source: str
    keys: tuple[Key, ...]
    args: tuple[Any, ...]
    transaction: bool | None


@dataclass(frozen=True, slots=True)
class Blocked:
    """A blocking command, and what wakes it so many turns later; on keys of this step's own."""

    waiting: Call
    waking: Call
    turns: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Calls on keys of their own, cancelled after so many turns.

    One call by itself (``transaction`` is None), or several in a pipeline. On the oracle they run
    to their end. ``may_run`` is False where they must not: they would wait for ever.
    """

    calls: tuple[Call, ...]
    transaction: bool | None
    turns: int
    may_run: bool = True


@dataclass(frozen=True, slots=True)
class OwnConnection:
    """``client.client()``: calls on one connection of their own."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """SET, DUMP, RESTORE as another key: the dump is bytes whatever the client decodes."""

    value: Any
    source: Key
    target: Key


@dataclass(frozen=True, slots=True)
class Locked:
    """A lock taken, asked for by another, extended, released, released once more."""

    key: Key


Step = (
    Call
    | Pause
    | Pipeline
    | Watched
    | Transaction
    | Scripted
    | Blocked
    | Cancelled
    | OwnConnection
    | Copied
    | Locked
)


@dataclass(frozen=True, slots=True)
class Program:
    """Scripts, each run by ``copies`` coroutines, on clients of the kind that ``variant`` names."""

    variant: str
    scripts: tuple[tuple[Step, ...], ...]
    copies: int

    def workers(self) -> Sequence[tuple[Step, ...]]:
        """What each coroutine does; copies of a script begin at different steps."""
        return [
            script[start:] + script[:start]
            for script in self.scripts
            for start in (len(script) * copy // self.copies for copy in range(self.copies))
        ]
