"""What becomes of commands whose connection was lost, or whose server is not ready.

Sent again without asking: what was never written, what only reads, and what a server refused
because it is loading its data. For a write that may have run the user's own ``retry=`` decides;
without one it fails and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis import exceptions as redis_exceptions

from ._multiplex._connection import MultiplexedConnection
from ._multiplex._session import Session
from ._redis_py import is_exhausted, retry_delays
from .errors import (
    ClusterModeError,
    ConnectError,
    ConnectionLostError,
    MaybeExecutedError,
)

__all__ = [
    "answered",
    "is_to_recover_from",
    "maybe_executed",
    "outlasting_outages",
    "sent_elsewhere",
]

LOADING_DELAY: Final = 0.1
"""Seconds until a command is tried again that a server refused because it is loading its data."""

LOSS_DELAY: Final = 0.1
"""Seconds until a wait is tried again whose connection was lost: the shared one may be about to be,
too, and that is the one which knows when the server is back."""


def is_to_recover_from(error: BaseException) -> bool:
    """Whether ``answered`` has an answer to that error."""
    return isinstance(error, (ConnectionLostError, redis_exceptions.BusyLoadingError))


async def answered(
    multiplexed: MultiplexedConnection,
    submit: Callable[[Session], asyncio.Future[Any]],
    *,
    name: Callable[[], str],
    repeatable: bool,
    retry: Any,
    failure: redis_exceptions.RedisError | None = None,
    accept: Callable[[Any], None] | None = None,
    on_repeat: Callable[[Exception], Awaitable[None]] | None = None,
) -> Any:
    """Submit once there is a session with room, again where that repeats nothing; the reply.

    ``submit`` queues the same thing each time it is called, ``name`` says what it is, for errors;
    ``repeatable`` is True for what changes nothing; ``retry`` is the user's redis-py ``Retry`` or
    None; ``failure`` how a first attempt has ended that was made elsewhere; ``on_repeat`` is
    awaited with the error of each attempt that another one follows; ``accept`` raises
    BusyLoadingError where the reply says that nothing was executed. Attempts end
    ``recovery_timeout`` after the first failure.

    Raises what ``admit`` and the reply raise, ``MaybeExecutedError`` for a write that may have
    run. Cancelling it takes back what was not written; the rest may still run.
    """
    delays = None
    deadline = 0.0
    while True:
        if failure is not None:
            now = asyncio.get_running_loop().time()
            deadline = deadline or now + multiplexed.recovery_timeout
            loading = isinstance(failure, redis_exceptions.BusyLoadingError)
            if loading or repeatable or not getattr(failure, "written", False):
                if now > deadline:
                    raise failure
                if loading:
                    await asyncio.sleep(LOADING_DELAY)
            else:
                if delays is None:
                    delays = retry_delays(retry)
                delay = next(delays, None)
                if delay is None or now > deadline:
                    raise maybe_executed(name(), failure)
                await asyncio.sleep(delay)
            if on_repeat is not None:
                await on_repeat(failure)
        session = await multiplexed.admit()
        try:
            future = submit(session)
        except ConnectionLostError as exc:
            failure = exc
            continue
        finally:
            session.admitted()
        try:
            reply = await future
            if accept is not None:
                accept(reply)
            return reply
        except asyncio.CancelledError:
            session.withdraw(future)
            raise
        except (ConnectionLostError, redis_exceptions.BusyLoadingError) as exc:
            failure = exc


async def outlasting_outages(
    multiplexed: MultiplexedConnection, attempt: Callable[[], Awaitable[Any]]
) -> Any:
    """The outcome of ``attempt``, a blocking command on a connection of its own.

    Made again after an outage where that repeats nothing, as a command on the shared connection
    is, whose return it waits for; a program that waits in a loop would else spin meanwhile. No
    attempt begins later than ``recovery_timeout`` after the first failure. Raises what the last
    attempt raised, or what ``MultiplexedConnection.start`` raises; ``MaybeExecutedError``, a
    refused sign-in and a pool without room at once.
    """
    deadline = None
    while True:
        session = multiplexed.session
        try:
            return await attempt()
        except (redis_exceptions.ConnectionError, redis_exceptions.TimeoutError) as exc:
            now = asyncio.get_running_loop().time()
            deadline = deadline or now + multiplexed.recovery_timeout
            if now >= deadline or not _repeats_nothing(exc):
                raise
            await asyncio.sleep(LOSS_DELAY)
            others = (ConnectError, redis_exceptions.TimeoutError)
            if session is not None and multiplexed.session is session and isinstance(exc, others):
                raise  # the server was there all the while: this was not about an outage
        await multiplexed.start()


def _repeats_nothing(error: Exception) -> bool:
    """Whether a blocking command that ended like this may be sent again."""
    if isinstance(error, redis_exceptions.BusyLoadingError):
        return True
    final = (
        MaybeExecutedError,
        redis_exceptions.AuthenticationError,
        redis_exceptions.AuthorizationError,
    )
    return not (isinstance(error, final) or is_exhausted(error))


def maybe_executed(name: str, failure: redis_exceptions.RedisError) -> MaybeExecutedError:
    """The error for a write whose bytes were sent and whose reply was lost in ``failure``."""
    error = MaybeExecutedError(
        f"{name} had been sent when the connection ended, so it may or may not "
        f"have been executed ({failure}). It was not repeated: look before you do so, or pass "
        "retry= to let writes be sent again"
    )
    error.__cause__ = failure.__cause__
    return error


def sent_elsewhere(
    error: redis_exceptions.ResponseError, multiplexed: MultiplexedConnection | None
) -> redis_exceptions.RedisError | None:
    """What to raise instead where another server is the one to ask, None for any other error.

    Without ``multiplexed`` it was a connection of the caller's own.
    """
    # By its text, too: redis-py 5 has no class for it outside of its cluster client.
    if isinstance(error, redis_exceptions.MovedError) or str(error).startswith("MOVED "):
        instead = ClusterModeError(
            f"{multiplexed or 'the server'} is a node of a cluster and sent this command elsewhere "
            f"({error}): "
            "connect with cluster=True"
        )
        instead.__cause__ = error
        return instead
    if multiplexed is None:
        return None
    if isinstance(error, redis_exceptions.ReadOnlyError) and multiplexed.follows_a_master:
        multiplexed.forget()  # Sentinel is asked again; the error is redis-py's for that
        demoted = redis_exceptions.ConnectionError("The previous master is now a slave")
        demoted.__cause__ = error
        return demoted
    return None
