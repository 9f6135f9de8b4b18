"""Looking for secrets in everything that can be made text of: what Python shows, and what tools do.

``Canary`` knows the secrets, whole and in the parts that give them away. It never shows one itself:
what it reports has them blotted out.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import dataclasses
import io
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Iterable, Iterator
from types import CoroutineType, FrameType
from typing import Any

from rich.console import Console
from rich.traceback import Traceback

__all__ = ["Canary"]

DEPTH = 3
"""How far a walk goes into containers and attributes, as debuggers and error trackers do."""

IN_FLIGHT = ("command", "buffer_args", "chunk")
"""Variables of the frames, redis-py's and those around them, that are writing to a socket just now:
what they write is a sign-in at times. Only in live frames; an error that leaves them has none."""


class Canary(logging.Handler):
    """Keeps the secrets, looks for them, and notes where it saw one."""

    def __init__(self, *secrets: str) -> None:
        super().__init__(logging.DEBUG)
        self._parts: list[str] = []
        self.leaks: list[str] = []
        self.looks = 0
        self.loggers: set[str] = set()
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        for each in secrets:
            self.add(each)

    def add(self, secret: str) -> None:
        """Look for ``secret`` from now on: its signature alone if it is a JWT, and its base64."""
        parts = {secret, secret.rpartition(".")[2]}
        parts |= {base64.b64encode(each.encode()).decode().rstrip("=") for each in parts}
        self._parts += [each for each in parts if len(each) >= 6]

    def look(self, where: str, text: str) -> None:
        self.looks += 1
        if any(part in text for part in self._parts):
            place = min(text.index(part) for part in self._parts if part in text)
            shown = text[max(0, place - 200) : place]
            self.leaks.append(f"{where}: ...{shown}<SECRET>")

    # -- logs

    def emit(self, record: logging.LogRecord) -> None:
        self.loggers.add(record.name.partition(".")[0])
        self.look(f"log of {record.name}", self.format(record))
        self.look(f"log arguments of {record.name}", repr(record.args))

    # -- objects

    def show(self, thing: object, where: str) -> None:
        """Every way to make text of an object."""
        for form in (repr, str, "{}".format, pprint.pformat):
            self.look(f"{where}, {form!r}", form(thing))
        for name, made in self._forms(thing):
            try:
                text = made()
            except Exception as error:
                text = f"{error} {error!r}"
            self.look(f"{where}, {name}", text)
        if isinstance(thing, BaseException):
            self.show_error(thing, where)

    @staticmethod
    def _forms(thing: Any) -> Iterator[tuple[str, Any]]:
        yield "pickled", lambda: pickle.dumps(thing).decode("latin-1")
        yield "as JSON", lambda: json.dumps(thing, default=repr)
        yield "its attributes", lambda: repr(vars(thing))
        yield "copied", lambda: repr(copy.copy(thing))
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            yield "as a dictionary", lambda: repr(dataclasses.asdict(thing))

    # -- errors

    def show_error(self, error: BaseException, where: str) -> None:
        """What tracebacks with locals show, and what a walk over the frames finds."""
        rendered = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.look(f"{where}, traceback with locals", "".join(rendered.format()))
        console = Console(file=io.StringIO(), width=400)
        kind = type(error)
        console.print(
            Traceback.from_exception(kind, error, error.__traceback__, show_locals=True, width=400)
        )
        self.look(f"{where}, rich's traceback", console.file.getvalue())  # type: ignore[attr-defined]
        for each in chain(error):
            self.look(f"{where}, {type(each).__name__}", f"{each} {each!r} {each.args!r}")
            self.walk(vars(each), f"{where}, attributes of {type(each).__name__}")
            step = each.__traceback__
            while step is not None:
                self.look_at_frame(step.tb_frame, f"{where}, frames of {type(each).__name__}")
                step = step.tb_next

    def look_at_frame(self, frame: FrameType, where: str) -> None:
        code = frame.f_code
        self.walk(dict(frame.f_locals), f"{where}, {code.co_filename}:{code.co_name}")

    def walk(self, thing: Any, where: str, depth: int = DEPTH) -> None:
        """Look at ``thing`` and into it."""
        if isinstance(thing, (bytes, bytearray)):
            self.look(where, bytes(thing).decode("latin-1"))
            return
        try:
            self.look(where, repr(thing))
        except Exception:  # an object half made
            return
        if depth == 0 or isinstance(thing, (str, int, float, type, Canary)):
            return
        if isinstance(thing, dict):
            for name, each in list(thing.items()):
                self.walk(each, f"{where}[{name!s:.30}]", depth - 1)
        elif isinstance(thing, (list, tuple, set)):
            for each in list(thing):
                self.walk(each, where, depth - 1)

    # -- tasks

    def show_tasks(self, where: str) -> None:
        """Every task there is: its repr, its stack, the coroutines that it waits in."""
        for task in asyncio.all_tasks():
            self.look(f"{where}, a task", repr(task))
            out = io.StringIO()
            task.print_stack(file=out)
            self.look(f"{where}, a task's stack", out.getvalue())
            coroutine: Any = task.get_coro()
            while isinstance(coroutine, CoroutineType):
                self.look(f"{where}, a coroutine", repr(coroutine))
                if coroutine.cr_frame is not None:
                    for name, each in coroutine.cr_frame.f_locals.items():
                        if name in IN_FLIGHT:
                            continue
                        spot = f"{where}, {coroutine.__qualname__} {name}"
                        self.walk(each, spot, depth=1)
                coroutine = coroutine.cr_await


def chain(error: BaseException) -> Iterable[BaseException]:
    """``error`` and all that hang on it, those that are not shown by default, too."""
    found: dict[int, BaseException] = {}
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None or id(each) in found:
            continue
        found[id(each)] = each
        pending += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
    return found.values()
