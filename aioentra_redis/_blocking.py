"""Blocking commands across rotations: the wait is cut into slices, with AUTH between them.

Nothing can be sent behind a blocking command, AUTH neither, so a wait that is longer than its
connection's token lives would be cut by the server, and what it had popped by then with it. Each
slice therefore ends shortly before the connection's AUTH is due; the rest of the time is waited
for after it. A new slice goes to the back of the server's queue of waiters, so there are as few as
possible. Without a newer token the wait goes on to just before the expiry and then raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import random
from collections.abc import Awaitable, Sequence
from typing import Any, Final, NamedTuple

from redis import exceptions as redis_exceptions

from ._multiplex._routing import command_words, is_read_only
from ._redis_py import EMPTY_RESPONSE, NEVER_DECODE, held_by
from ._schedule import wait_slice
from ._traffic import Mode
from .errors import ConnectionLostError, MaybeExecutedError, TokenExpiredError

__all__ = ["Wait", "arrived", "keeping_reply", "wait_of", "wait_on"]

logger = logging.getLogger("aioentra_redis.dedicated")

READ_MARGIN: Final = 5.0
"""Seconds that the answer may come after its time, where ``socket_timeout`` does not say."""

EARLY: Final = 0.01
EARLY_FRACTION: Final = 0.001
"""Seconds, and the fraction of a slice, that clocks may differ by: a slice that is over sooner was
ended by somebody (CLIENT UNBLOCK), and so is the wait."""

SECONDS, MILLISECONDS = 1, 1000

_NOT_EXECUTED: Final = (
    # Replies, although redis-py derives them from its ConnectionError.
    redis_exceptions.AuthenticationError,
    redis_exceptions.AuthorizationError,
    redis_exceptions.BusyLoadingError,
)

_LOSSES: Final = (
    redis_exceptions.ConnectionError,
    redis_exceptions.TimeoutError,
    redis_exceptions.InvalidResponse,  # what can't be read ends the connection, too
)

_TIMEOUTS: Final[dict[str, tuple[int, int]]] = {
    "BLPOP": (-1, SECONDS),
    "BRPOP": (-1, SECONDS),
    "BZPOPMIN": (-1, SECONDS),
    "BZPOPMAX": (-1, SECONDS),
    "BRPOPLPUSH": (-1, SECONDS),
    "BLMOVE": (-1, SECONDS),
    "BLMPOP": (1, SECONDS),
    "BZMPOP": (1, SECONDS),
    "BLMOVEM": (5, SECONDS),
}
"""Which word is the timeout (the last one is -1), and how many of its units make a second."""

_WITH_BLOCK: Final = frozenset(("XREAD", "XREADGROUP", "TS.READ"))
"""The timeout stands behind BLOCK, in milliseconds; without it they do not block."""


class Wait(NamedTuple):
    """A blocking command, and where it says how long: ``seconds`` is 0 for ever."""

    words: tuple[Any, ...]
    position: int
    unit: int
    seconds: float

    def for_seconds(self, seconds: float) -> tuple[Any, ...]:
        """The command with another timeout, which is never rounded to 0: that would be for ever."""
        timeout: Any = (
            max(1, round(seconds * self.unit))
            if self.unit == MILLISECONDS
            else f"{max(seconds, 0.001):.3f}"
        )
        return (*self.words[: self.position], timeout, *self.words[self.position + 1 :])


def wait_of(args: Sequence[Any]) -> Wait | None:
    """How long a command blocks; None where it does not, or the server will find it wrong."""
    words: tuple[Any, ...] = (*_text(args[0]).split(), *args[1:])
    name = words[0].upper()
    if name in _WITH_BLOCK:
        position, unit = _behind_block(words), MILLISECONDS
    elif name in _TIMEOUTS:
        position, unit = _TIMEOUTS[name]
        position = position % len(words) if position < 0 else position
    else:
        return None
    if not 0 < position < len(words):
        return None
    try:
        number = float(_text(words[position]))
    except ValueError:
        return None
    if isinstance(words[position], bool) or not math.isfinite(number) or number < 0:
        return None
    if unit == MILLISECONDS and number != int(number):
        return None
    return Wait(words, position, unit, number / unit)


def _behind_block(words: Sequence[Any]) -> int:
    """The position of XREAD's timeout, 0 if it has none."""
    # A group or consumer may be called "BLOCK", and so may a key.
    start = 4 if len(words) > 1 and _text(words[1]).upper() == "GROUP" else 1
    for position in range(start, len(words)):
        word = _text(words[position]).upper()
        if word == "BLOCK":
            return position + 1
        if word == "STREAMS":
            break
    return 0


def _text(word: Any) -> str:
    if isinstance(word, (bytes, bytearray, memoryview)):
        return bytes(word).decode("latin-1")
    return str(word)


async def wait_on(connection: Any, wait: Wait, options: dict[str, Any]) -> Any:
    """Run a blocking command on a leased redis-py connection; its raw reply.

    Raises what redis-py raises; ``MaybeExecutedError`` where the connection ended after the
    command was sent and it may have popped something; ``TokenExpiredError`` where the token would
    expire under it. Cancelling it closes the connection: what was popped meanwhile is lost.
    """
    loop = asyncio.get_running_loop()
    share = random.random()
    whole = wait.seconds or math.inf
    piece = await _next_slice(connection, share)
    if whole <= piece:  # there is one slice: the user's own words
        return await _answer(connection, wait.words, whole, options)
    end = loop.time() + whole
    wait = wait._replace(words=await _pinned(connection, wait.words))
    while True:
        piece = await _next_slice(connection, share)
        started = loop.time()
        left = max(0.0, end - started)
        seconds = min(left, piece)
        words = wait.words if seconds == math.inf else wait.for_seconds(seconds)
        reply = await _answer(connection, words, seconds, options)
        if reply is not None or left <= piece:
            return reply
        if loop.time() - started < seconds * (1 - EARLY_FRACTION) - EARLY:
            return None


async def _next_slice(connection: Any, share: float) -> float:
    """Seconds that may be waited before the next AUTH; one that is due is sent first."""
    held = held_by(connection)
    if held is None:
        return math.inf
    if not connection.is_connected and connection.in_band.lost is None:
        await connection.connect()
    await connection.in_band.catch_up()
    if connection.in_band.traffic.mode is not Mode.COMMANDS:
        return math.inf  # between MULTI and EXEC nothing blocks, and nothing else may be sent
    held = held_by(connection) or held
    token, source = held
    piece = wait_slice(token, source.now(token), share)
    if piece <= 0:
        raise TokenExpiredError(
            f"the wait on {connection.where} was ended shortly before the expiry of the token that "
            "the connection holds: no newer one could be had or was accepted. Nothing was popped; "
            "wait again"
        )
    return piece


async def _answer(
    connection: Any, words: tuple[Any, ...], seconds: float, options: dict[str, Any]
) -> Any:
    """One slice: the reply to ``words``, None for its lack, within ``seconds`` and a margin."""
    usual = getattr(connection, "socket_timeout", None)  # a stand-in may know of none
    patient = None if seconds == math.inf else seconds + (usual or READ_MARGIN)
    in_band = getattr(connection, "in_band", None)
    sent = in_band is None
    try:
        await connection.send_command(*words)
        sent = True
        # Whatever socket_timeout says, which is about commands that are answered at once.
        connection.socket_timeout = patient
        return await connection.read_response(disable_decoding=NEVER_DECODE in options)
    except redis_exceptions.ResponseError:
        if EMPTY_RESPONSE in options:
            return options[EMPTY_RESPONSE]
        raise
    except _NOT_EXECUTED:
        raise
    except _LOSSES as exc:
        sent = sent or (in_band is not None and in_band.traffic.owed > 0)
        name = command_words(words)
        if not sent or is_read_only(name):
            if isinstance(exc, redis_exceptions.InvalidResponse):
                raise ConnectionLostError(f"the connection is out of step: {exc}") from exc
            raise
        raise MaybeExecutedError(
            f"{name} had been sent when the connection ended: an element that it popped just then "
            f"may be lost ({exc}). BLMOVE to a list of your own, or a stream with a group, keep it"
        ) from exc
    finally:
        if getattr(connection, "socket_timeout", None) == patient:
            connection.socket_timeout = usual


async def _pinned(connection: Any, words: tuple[Any, ...]) -> tuple[Any, ...]:
    """XREAD with the IDs that ``$`` stands for: between two slices it would stand for others.

    They are those of the last entries, and "0-0" for a stream without any: XREVRANGE, unlike XINFO,
    takes no more rights than XREAD. Not in a transaction, whose EXEC would end the owner's WATCH.
    What can't be told, which XREAD will say, keeps its ``$``.
    """
    if words[0].upper() != "XREAD":
        return words
    texts = [_text(word).upper() for word in words]
    first = texts.index("STREAMS") + 1 if "STREAMS" in texts else len(words)
    half = (len(words) - first) // 2
    keys, ids = words[first : first + half], list(words[first + half :])
    asked = [number for number, each in enumerate(ids) if each in ("$", b"$")]
    if not asked:
        return words
    commands = [("XREVRANGE", keys[number], "+", "-", "COUNT", 1) for number in asked]
    await connection.send_packed_command(connection.pack_commands(commands))
    for number in asked:
        with contextlib.suppress(redis_exceptions.ResponseError):
            entries = await connection.read_response(disable_decoding=True)
            ids[number] = entries[0][0] if entries else "0-0"
    return (*words[: first + half], *ids)


_reply: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("reply", default=None)


async def keeping_reply(command: Awaitable[Any]) -> Any:
    """The reply of ``command``, even if something failed after it had come.

    redis-py returns the connection to its pool before the reply to the caller, and an error there
    would lose what was popped.
    """
    kept: list[Any] = []
    before = _reply.set(kept)
    try:
        return await command
    except Exception:
        if not kept:
            raise
        logger.warning("a connection could not be returned to its pool", exc_info=True)
        return kept[0]
    finally:
        _reply.reset(before)


def arrived(reply: Any) -> Any:
    """Note a reply for ``keeping_reply``, and return it."""
    kept = _reply.get()
    if kept is not None:
        kept.append(reply)
    return reply
