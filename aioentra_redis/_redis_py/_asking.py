"""A question that goes out with the sign-in of a connection: is the server a node of a cluster?

CLUSTER SLOTS is written behind HELLO or AUTH, in the same segment, and answered in the same round
trip. HELLO itself says ``mode``. Who makes the connection need not know: the pool is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis.asyncio
from redis import exceptions as redis_exceptions

from .._redaction import without_tracebacks
from ._cluster import know_cluster_errors
from ._in_band import REFUSALS

__all__ = ["Answers", "ask_with_the_sign_in", "asking"]

_ATTRIBUTE = "_aioentra_asking"


class Answers:
    """What the server said when a connection signed in; None of what it was not asked.

    ``hello`` is the reply to HELLO, ``slots`` the one to CLUSTER SLOTS, or the error it got.
    """

    __slots__ = ("hello", "slots")

    def __init__(self) -> None:
        self.hello: Any = None
        self.slots: Any = None


@contextlib.contextmanager
def asking(pool: redis.asyncio.ConnectionPool) -> Iterator[Answers]:
    """Have a connection that is dialled for ``pool`` meanwhile ask as it signs in."""
    answers = Answers()
    know_cluster_errors(pool)
    setattr(pool, _ATTRIBUTE, answers)
    try:
        yield answers
    finally:
        delattr(pool, _ATTRIBUTE)


@contextlib.contextmanager
def ask_with_the_sign_in(connection: Any, pool: redis.asyncio.ConnectionPool) -> Iterator[None]:
    """Where somebody is ``asking``, ``connection``, which is about to connect, does so."""
    answers: Answers | None = getattr(pool, _ATTRIBUTE, None)
    if answers is None:
        yield
        return
    question = _Question(connection, answers)
    connection.send_command, connection.read_response = question.send_command, question.read
    try:
        yield
    finally:
        del connection.send_command, connection.read_response


class _Question:
    """Stands in for what redis-py's handshake calls to send and to read."""

    def __init__(self, connection: Any, answers: Answers) -> None:
        self._connection = connection
        self._answers = answers
        self._send_command, self._read = connection.send_command, connection.read_response
        self._asked = False
        self._signing_in = False
        self._owed = False

    async def send_command(self, *args: Any, **options: Any) -> None:
        if self._asked or "AUTH" not in args[:3]:  # AUTH ..., or HELLO 3 AUTH ...
            await self._send_command(*args, **options)
            return
        self._asked = self._signing_in = self._owed = True
        pack = self._connection.pack_command
        # Behind it, not beside: a server that takes seconds to validate a token answers in order.
        await self._connection.send_packed_command(
            [*pack(*args), *pack("CLUSTER", "SLOTS")],
            check_health=options.get("check_health", True),
        )

    async def read(self, *args: Any, **options: Any) -> Any:
        if not self._owed:
            return await self._read(*args, **options)
        if self._signing_in:
            self._signing_in = False
            # Where this raises, redis-py may try to sign in in another way: its next read is
            # preceded by the answer to a question that was not permitted yet.
            self._answers.hello = reply = await self._read(*args, **options)
            self._answers.slots = await self._answer()
            return reply
        await self._answer()
        return await self._read(*args, **options)

    async def _answer(self) -> Any:
        self._owed = False
        try:
            return await self._read(disconnect_on_error=False)
        except REFUSALS as refusal:
            without_tracebacks(refusal)
            # That is no answer but one of a server that had not come to an end with the sign-in.
            return refusal if isinstance(refusal, redis_exceptions.ResponseError) else None
