"""Keeping secrets out of everything that is shown: reprs, logs, tracebacks, exception causes.

Python shows more than one expects. A traceback rendered with locals (``rich``, ``cgitb``,
``pytest --showlocals``, error trackers) prints every variable of every frame, and an exception
of azure-core keeps the HTTP response, whose request carries the client secret and whose body may
carry the token: its ``str()`` even appends that body. So a secret lives in a :class:`Secret`,
and an exception that has passed through a credential is stripped before it becomes a cause.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

__all__ = ["Secret", "Veiled", "again", "mentions_token", "scrub", "without_tracebacks"]

_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?")
_ASSIGNED = re.compile(
    r"""(?ix) ( ["']? (?:access_token|refresh_token|client_secret|client_assertion|password) ["']?
         \s* [=:] \s* ) (?: "[^"]*" | '[^']*' | [^\s&,;}]+ )"""
)

E = TypeVar("E", bound=BaseException)


class Secret:
    """A string that is only shown to those who ask for it with :meth:`reveal`.

    The text is kept in a closure, not in an attribute, so that neither ``vars()`` nor a debugger's
    or traceback's listing of attributes displays it. Equality and hash are those of the text.
    """

    __slots__ = ("_reveal",)

    def __init__(self, text: str) -> None:
        def reveal() -> str:
            return text

        self._reveal: Callable[[], str] = reveal

    def reveal(self) -> str:
        """Return the text. Keep it out of local variables: see the module's docstring."""
        return self._reveal()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._reveal() == other._reveal()

    def __hash__(self) -> int:
        return hash(self._reveal())

    def __bool__(self) -> bool:
        return bool(self._reveal())

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret can't be pickled")


class Veiled(str):
    """A secret text for those who have to send it: what lists their variables does not show it.

    It is a ``str`` in all respects but its ``repr()``, which is what tracebacks with locals print,
    of redis-py's frames, too, where a token is an argument; and it can't be pickled.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**********'"

    def __copy__(self) -> Veiled:
        return self

    def __deepcopy__(self, memo: object) -> Veiled:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret can't be pickled")


def scrub(text: str) -> str:
    """Return ``text`` with anything that looks like a token or a named secret blotted out."""
    return _ASSIGNED.sub(r"\1<redacted>", _JWT.sub("<redacted token>", text))


def mentions_token(error: BaseException) -> bool:
    """Whether showing ``error``, or anything it was raised from, would show a token or secret."""
    return any((text := _text(each)) != scrub(text) for each in _chain(error))


def without_tracebacks(error: E) -> E:
    """Strip ``error``, and everything it was raised from, of what could show a secret; return it.

    Frames go (their locals hold tokens and client secrets), and so do the copies of them and the
    HTTP responses that azure-core's exceptions keep. Types, messages and the chain remain. Call it
    on a cause before ``raise ... from cause``.
    """
    for each in _chain(error):
        each.__traceback__ = None
        for attribute in ("exc_traceback", "response", "model"):
            if getattr(each, attribute, None) is not None:
                # An exception of somebody else's may refuse; its frames are gone in any case.
                with contextlib.suppress(Exception):
                    setattr(each, attribute, None)
    return error


def again(error: E) -> E:
    """Return a copy of ``error`` to raise: one exception object raised by many tasks would
    collect the frames of all of them."""
    # Not copy.copy(): that calls the class with `args`, and some classes want keywords too.
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error.__cause__
    twin.__suppress_context__ = True
    twin.__traceback__ = None
    return twin


def _chain(error: BaseException) -> list[BaseException]:
    """``error`` and all exceptions that hang on it, each once."""
    found: dict[int, BaseException] = {}
    pending: list[object] = [error]
    while pending:
        each = pending.pop()
        if not isinstance(each, BaseException) or id(each) in found:
            continue
        found[id(each)] = each
        pending += (each.__cause__, each.__context__)
        # AzureError keeps the exception that was being handled in attributes of its own.
        pending += (getattr(each, "inner_exception", None), getattr(each, "exc_value", None))
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
    return list(found.values())


def _text(error: BaseException) -> str:
    try:
        return f"{error} {error.args!r}"
    except Exception:  # somebody else's __str__
        return ""
