"""The handover of a subscription from one connection to another, for servers that speak RESP2.

There a connection that subscribes may not AUTH, so a newer token needs a newer connection::

    old  m1 m2 m3 MARKER m4 m5          delivers up to the marker; what follows is spare
    new     m2 m3 MARKER m4 m5 m6       what precedes the marker is forgotten, then it delivers

A server puts whatever is published into one order, so a marker that is published on a channel of
its own cuts both streams at the same place. This holds for one server that both connections lead
to; proxies and clusters give no such promise.

Where no marker can be had (no permission for the channel or for PUBLISH, no answer), the new
connection delivers everything since it has subscribed: messages of the moments until the old one
is let go arrive twice, none is left out. A gap would be the other choice, and nobody could see it.

Messages keep their order, and the old connection stays as it was whatever else happens before the
cut: the new one is lost or refused something, the caller is cancelled. If the old one is lost, the
new one takes over; what the old one had not yet received from before the new one's subscription
is missing then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from redis import exceptions as redis_exceptions

from ..errors import ConnectionLostError
from ._subscriber import MARKER_PREFIX, Backlog, resubscription
from ._subscriber_session import SubscriberSession

__all__ = ["Cut", "hand_over"]

MARKER_TIMEOUT: Final = 5.0
"""Seconds for the marker to be published and received, and for any answer of the old connection."""

SUBSCRIBE_TIMEOUT: Final = 15.0
"""Seconds for the new connection's subscriptions, of which there may be very many."""


class Cut(NamedTuple):
    """How a handover went."""

    doubt: str | None
    """Why it can't be promised that every message arrived once; None if it can."""
    missing: bool
    """Whether messages may be missing, too; otherwise they may only have arrived twice."""


async def hand_over(
    old: SubscriberSession,
    new: SubscriberSession,
    publish: Callable[[bytes], Awaitable[Any]],
) -> Cut:
    """Let ``new`` deliver to the sink of ``old``, from one message to the next.

    ``publish`` publishes an empty message on a channel, on the same server. The caller sees to it
    that no change of subscriptions is made meanwhile, and closes the one that is not wanted.

    Raises what keeps ``new`` from taking over; ``old``, if it lives, then goes on without having
    lost a message. So does cancelling it.
    """
    sink, held, spare = old.sink, Backlog(), Backlog()
    new.sink = held
    before_marker = 0

    def cut_old() -> None:
        old.sink = spare

    def cut_new() -> None:
        nonlocal before_marker
        before_marker = len(held)

    marker = MARKER_PREFIX + os.urandom(12).hex().encode()
    heard = [old.at_marker(marker, cut_old), new.at_marker(marker, cut_new)]
    try:
        doubt = await _subscribed(old, new, marker)
        if doubt is None:
            doubt = await _cut(marker, publish, heard)
        missing = doubt is not None and not await _barrier(old)
        if new.closed:
            raise ConnectionLostError(f"the replacement was lost: {new.cause}")
        if missing and not old.closed:
            raise TimeoutError("the old connection does not answer, but lives")
    except BaseException:
        spare.pour_into(sink)
        old.sink, new.sink = sink, Backlog()
        _leave(old, marker)
        raise
    if doubt is None:
        for _ in range(before_marker):
            held.take()
    held.pour_into(sink)
    old.sink, new.sink = Backlog(), sink
    _leave(new, marker)
    return Cut(doubt, missing)


async def _subscribed(old: SubscriberSession, new: SubscriberSession, marker: bytes) -> str | None:
    """Subscribe both to the marker, and ``new`` to whatever ``old`` is subscribed to.

    Returns why there is no marker on both, None if there is. Raises if ``old`` does not answer,
    and if ``new`` is refused something that ``old`` is subscribed to, or lost.
    """
    # First the old one: with its answer nothing is in flight on it, and what it is subscribed to
    # is known.
    doubt = None
    try:
        async with asyncio.timeout(MARKER_TIMEOUT):
            await old.ask("SUBSCRIBE", marker)
    except redis_exceptions.ResponseError as exc:
        doubt = f"the marker's channel is refused: {exc}"
    changes = [new.ask(*words) for words in resubscription(_without_markers(old))]
    async with asyncio.timeout(SUBSCRIBE_TIMEOUT):
        await asyncio.gather(*changes)
        try:
            await new.ask("SUBSCRIBE", marker)
        except redis_exceptions.ResponseError as exc:
            doubt = f"the marker's channel is refused: {exc}"
    return doubt


def _without_markers(session: SubscriberSession) -> dict[bytes, set[bytes]]:
    return {
        realm: {name for name in names if not name.startswith(MARKER_PREFIX)}
        for realm, names in session.subscriptions.items()
    }


async def _cut(
    marker: bytes,
    publish: Callable[[bytes], Awaitable[Any]],
    heard: list[asyncio.Future[None]],
) -> str | None:
    """Publish the marker and wait until both have it; returns why that did not happen."""
    try:
        async with asyncio.timeout(MARKER_TIMEOUT):
            await publish(marker)
            await asyncio.gather(*heard)
    except TimeoutError:
        return f"the marker did not arrive within {MARKER_TIMEOUT:g} s"
    except Exception as exc:
        return f"the marker could not be published: {exc}"
    return None


async def _barrier(old: SubscriberSession) -> bool:
    """Let the old connection deliver all that was published before now; whether it did so."""
    try:
        async with asyncio.timeout(MARKER_TIMEOUT):
            await old.ask("PING")
    except (ConnectionLostError, TimeoutError):
        return False
    return True


def _leave(session: SubscriberSession, marker: bytes) -> None:
    """The marker has done its duty there."""
    session.forget_marker()
    with contextlib.suppress(ConnectionLostError):
        session.ask("UNSUBSCRIBE", marker)
