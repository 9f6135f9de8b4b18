"""What the replies to MULTI, the queued commands and EXEC mean, as redis-py reads them.

Down to the text of its errors; for transactions whose replies have come in one piece.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from redis import exceptions as redis_exceptions

from ._redis_py import EMPTY_RESPONSE
from .errors import ClusterModeError

__all__ = ["EXEC", "MULTI", "Command", "Reading", "has_errors", "is_sent"]

MULTI: Final = b"*1\r\n$5\r\nMULTI\r\n"
EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"

Command = tuple[tuple[Any, ...], dict[str, Any]]
"""What redis-py keeps of a queued command: its words and the options of its reply."""


def is_sent(options: Mapping[str, Any]) -> bool:
    """Whether a queued command goes out: redis-py keeps an answer ready for what does not."""
    return EMPTY_RESPONSE not in options


def has_errors(replies: Sequence[Any]) -> bool:
    """Whether there are errors among the replies; most have none, and need no look at each."""
    return any(issubclass(kind, Exception) for kind in set(map(type, replies)))


class Reading(NamedTuple):
    """How replies are read: the client's callbacks, ``explained(error)`` for what else is to be
    raised in its place, and ``annotate(error, number, args)``, which says which command it was."""

    callbacks: Mapping[Any, Any]
    explained: Callable[[redis_exceptions.ResponseError], Exception]
    annotate: Callable[[Exception, int, tuple[Any, ...]], None]

    def raise_first_error(self, stack: Sequence[Command], replies: Sequence[Any]) -> None:
        """Raise the first error among the replies, if there is one."""
        for number, ((args, _), reply) in enumerate(zip(stack, replies, strict=True), 1):
            if isinstance(reply, (ClusterModeError, redis_exceptions.ConnectionError)):
                raise reply
            if isinstance(reply, redis_exceptions.ResponseError):
                self.annotate(reply, number, args)
                raise reply

    async def results(
        self, stack: Sequence[Command], replies: list[Any], raise_on_error: bool
    ) -> list[Any]:
        """What ``execute()`` returns; raises what it raises.

        ``replies`` are those to MULTI, to what was sent, and to EXEC.
        """
        results = replies.pop()
        errors: list[tuple[int, Any]] = []
        if len(replies) <= len(stack) or has_errors(replies):
            errors = self._errors_of_queueing(stack, replies)
        if isinstance(results, redis_exceptions.ExecAbortError):
            first = next((each for _, each in errors if isinstance(each, Exception)), None)
            if first is not None:
                raise first from first.__cause__ or results
        if isinstance(results, Exception):
            raise results
        if results is None:
            raise redis_exceptions.WatchError("Watched variable changed.")
        if results and isinstance(results[0], redis_exceptions.ConnectionError):
            raise results[0]  # as redis-py's parser does, whatever raise_on_error says
        for index, error in errors:
            results.insert(index, error)
        if len(results) != len(stack):
            raise redis_exceptions.ResponseError(
                "Wrong number of response items from pipeline execution"
            )
        failed = has_errors(results)
        if failed and raise_on_error:
            self.raise_first_error(stack, results)
        for index, (args, options) in enumerate(stack):
            reply = results[index]
            if failed and isinstance(reply, Exception):
                continue
            options.pop("keys", None)
            callback = self.callbacks.get(args[0])
            if callback is not None:
                reply = callback(reply, **options)
                results[index] = await reply if inspect.isawaitable(reply) else reply
        return list(results)

    def _errors_of_queueing(
        self, stack: Sequence[Command], replies: Sequence[Any]
    ) -> list[tuple[int, Any]]:
        """What was refused before EXEC, by its place, and what stands in for what was not sent.

        Raises what is no answer to a command.
        """
        errors: list[tuple[int, Any]] = []
        answers = iter(replies)
        denied = next(answers)
        if isinstance(denied, redis_exceptions.ResponseError):
            errors.append((0, denied))  # the commands have run all the same, without MULTI
        elif isinstance(denied, Exception):
            raise denied
        for index, (args, options) in enumerate(stack):
            if not is_sent(options):
                errors.append((index, options[EMPTY_RESPONSE]))
                continue
            answer = next(answers)
            if isinstance(answer, redis_exceptions.ResponseError):
                explained = self.explained(answer)
                if explained is answer:
                    self.annotate(answer, index + 1, args)
                errors.append((index, explained))
            elif isinstance(answer, Exception):
                raise answer
        return errors
