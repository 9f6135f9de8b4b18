"""One client connection's dialogue with the server, as far as signing in goes. No I/O.

The front must know which reply answers which AUTH: a token ends a connection at its expiry only if
the server really signed it in. So the session counts. Each command that goes to the server is owed
one reply; the few that deserve attention get a slot in a queue, with the number of ordinary
replies that come before it. What comes back from the server is counted off against that.

========================  =====================================================================
Command                   Replies
========================  =====================================================================
AUTH, HELLO with AUTH     one; tells whether the connection is signed in
SUBSCRIBE and the like    RESP3: pushes, one per channel, or an error, or QUEUED inside MULTI
SUBSCRIBE in RESP2        messages that look like replies: the session loses track
MONITOR, SYNC, PSYNC      a stream that is no replies: the session loses track
CLIENT REPLY OFF, SKIP    none: the session loses track
a blocked command         one: it is spoilt, so that the server does not know it
anything else             one
========================  =====================================================================

A session that has lost track passes everything on as before but can't tell outcomes any more. Then,
and for an AUTH that the server queues inside MULTI, the outcome is ``UNPROVEN``: the token's
expiry may end the connection sooner, but never later, than before.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Literal

from ._framing import Command, Notice, Passage, ReplyFramer, RequestFramer

__all__ = ["Effect", "Outcome", "Session", "SignIn", "Verdict", "next_deadline"]

CONFIRMATIONS = frozenset(
    {
        b">subscribe",
        b">psubscribe",
        b">ssubscribe",
        b">unsubscribe",
        b">punsubscribe",
        b">sunsubscribe",
    }
)
UNTRACKABLE = frozenset({b"MONITOR", b"SYNC", b"PSYNC"})
REFUSED_PASSWORD = b"refused"
PUSH, ERROR, ARRAY, MAP = b">-*%"


class Effect(enum.Enum):
    """What an AUTH did to its connection."""

    SIGNED_IN = "signed in"
    REFUSED = "refused"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the front thinks of a token: ``reason`` is None if it is good."""

    reason: str | None
    object_id: str
    uti: str | None = None
    expires_on: float | None = None


@dataclass(slots=True, eq=False)
class SignIn:
    """An AUTH or HELLO with AUTH on its way to the server; ``verdict`` is set by ``decide``."""

    command: Literal["AUTH", "HELLO"]
    user: str
    token: str
    arguments: list[bytes]
    index: int
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the server answered a sign-in; ``reason`` is None if it was accepted."""

    sign_in: SignIn
    effect: Effect
    reason: str | None


@dataclass(slots=True, eq=False)
class _Subscription:
    """A SUBSCRIBE or UNSUBSCRIBE that awaits its confirmations."""

    kind: bytes
    confirmations: int


class _Departure:
    """Behind this command replies can't be counted."""


def next_deadline(current: float | None, effect: Effect, expires_on: float | None) -> float | None:
    """When the connection must end, after an AUTH with this effect; None is never.

    =========  =======================
    Effect     Deadline
    =========  =======================
    SIGNED_IN  the token's expiry
    REFUSED    as before
    UNPROVEN   the sooner of the two
    =========  =======================
    """
    if effect is Effect.REFUSED or expires_on is None:
        return current
    if effect is Effect.UNPROVEN and current is not None:
        return min(current, expires_on)
    return expires_on


def credentials_index(arguments: list[bytes]) -> int | None:
    """Where the user name stands in an AUTH or HELLO command; the password follows it.

    None for a command without both. ``HELLO version [AUTH user password] [SETNAME name]`` is
    parsed option by option: a client may well be named ``AUTH``.
    """
    if arguments[0].upper() == b"AUTH":
        return 1 if len(arguments) == 3 else None
    position = 2
    while position < len(arguments):
        option = arguments[position].upper()
        if option == b"AUTH" and position + 2 < len(arguments):
            return position + 1
        if option != b"SETNAME":
            return None
        position += 2
    return None


def pack(arguments: list[bytes]) -> bytes:
    """A command as RESP."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments]
    return b"".join(parts)


class Session:
    """Follows one connection: cuts out its sign-ins and tells how the server answered them."""

    def __init__(self, secret: str, blocked: frozenset[bytes] = frozenset()) -> None:
        self._secret = secret.encode()
        self._blocked = blocked
        self._requests = RequestFramer(blocked)
        self._replies = ReplyFramer()
        self._slots: deque[tuple[int, SignIn | _Subscription | _Departure]] = deque()
        self._owed = 0  # ordinary replies behind the last slot
        self._tracking = True
        self.outcomes: list[Outcome] = []
        """What the last call settled. The owner takes it from here and clears it."""

    def receive_from_client(self, data: bytes) -> list[bytes | SignIn]:
        """Take bytes from the client; return what to send to the server, in order.

        A ``SignIn`` stands for the bytes that ``decide`` will give for it; nothing behind it may
        be sent before those.
        """
        forward: list[bytes | SignIn] = []
        for item in self._requests.feed(data):
            if isinstance(item, Passage):
                self._owed += item.commands
                forward.append(item.data)
            elif isinstance(item, Command):
                forward.append(self._spoilt(item) or self._sign_in(item) or item.raw)
            else:
                self._notice(item)
        return forward

    def decide(self, sign_in: SignIn, verdict: Verdict) -> bytes:
        """Settle what the front thinks of a token; return the bytes to send to the server.

        They carry the server's own secret for the user if the token is good, and a wrong one if
        it is not: either way the server answers, natively and in order.
        """
        sign_in.verdict = verdict
        if not self._tracking:
            self.outcomes.append(_unproven(sign_in, "replies are not followed any more"))
        arguments = list(sign_in.arguments)
        arguments[sign_in.index] = verdict.object_id.encode()
        arguments[sign_in.index + 1] = REFUSED_PASSWORD if verdict.reason else self._secret
        return pack(arguments)

    def receive_from_server(self, data: bytes) -> None:
        """Take bytes from the server, which all go to the client."""
        if not self._tracking:
            return
        try:
            heads = self._replies.feed(data)
        except ValueError:
            self._lose_track()
            return
        if not self._slots and b">" not in data:  # nothing to look at, no push to tell apart
            self._owed -= len(heads)
        else:
            for head in heads:
                self._receive(head)
        if self._owed < 0:
            self._lose_track()

    def _receive(self, head: bytes) -> None:
        kind = head[0]
        if not self._slots:
            if kind != PUSH:
                self._owed -= 1
            return
        before, slot = self._slots[0]
        if before:
            if kind != PUSH:
                self._slots[0] = (before - 1, slot)
        elif isinstance(slot, SignIn):
            if kind != PUSH:
                self._slots.popleft()
                self.outcomes.append(_outcome(slot, head))
        elif isinstance(slot, _Departure) or kind == ARRAY:
            # An array here is a subscription's confirmation in RESP2: messages will look like it.
            self._lose_track()
        elif kind == PUSH:
            if head in CONFIRMATIONS and head[1:] == slot.kind:
                slot.confirmations -= 1
                if slot.confirmations <= 0:
                    self._slots.popleft()
        else:  # an error, or QUEUED
            self._slots.popleft()

    def _lose_track(self) -> None:
        """Stop telling outcomes; what was pending is unproven, what comes will be."""
        self._tracking = False
        for _, slot in self._slots:
            if isinstance(slot, SignIn) and slot.verdict is not None:
                self.outcomes.append(_unproven(slot, "replies are not followed any more"))
        self._slots.clear()

    def _spoilt(self, command: Command) -> bytes | None:
        """A blocked command with a name that no server knows; its reply is the native one."""
        name = command.arguments[0]
        if name.upper() not in self._blocked:
            return None
        self._owed += 1
        return pack([name + b" ", *command.arguments[1:]])

    def _sign_in(self, command: Command) -> SignIn | None:
        """The sign-in in a command, if it is one."""
        words = command.arguments
        name = words[0].upper()
        if name == b"CLIENT":
            if len(words) > 2 and words[1].upper() == b"REPLY" and words[2].upper() != b"ON":
                self._add(_Departure())
            else:
                self._owed += 1
            return None
        index = credentials_index(words)
        if index is None:
            self._owed += 1
            return None
        sign_in = SignIn(
            command="AUTH" if name == b"AUTH" else "HELLO",
            user=words[index].decode("utf-8", "replace"),
            token=words[index + 1].decode("utf-8", "replace"),
            arguments=words,
            index=index,
        )
        self._add(sign_in)
        return sign_in

    def _notice(self, notice: Notice) -> None:
        if notice.name in UNTRACKABLE:
            self._add(_Departure())
        else:
            # UNSUBSCRIBE without channels confirms at least once, SUBSCRIBE without any is an
            # error: one slot does for both.
            self._add(_Subscription(notice.name.lower(), max(notice.arguments - 1, 1)))

    def _add(self, slot: SignIn | _Subscription | _Departure) -> None:
        if self._tracking:
            self._slots.append((self._owed, slot))
            self._owed = 0


def _outcome(sign_in: SignIn, head: bytes) -> Outcome:
    """Read the server's answer to a sign-in from the first line of its reply."""
    verdict = sign_in.verdict
    refusal = verdict.reason if verdict is not None else None
    if head[0] == ERROR:
        return Outcome(sign_in, Effect.REFUSED, refusal or head[1:].decode("utf-8", "replace"))
    if refusal is not None:
        return Outcome(sign_in, Effect.REFUSED, refusal)
    if head == b"+OK" or (sign_in.command == "HELLO" and head[0] in (MAP, ARRAY)):
        return Outcome(sign_in, Effect.SIGNED_IN, None)
    return _unproven(sign_in, "queued inside MULTI" if head == b"+QUEUED" else "unclear reply")


def _unproven(sign_in: SignIn, reason: str) -> Outcome:
    verdict = sign_in.verdict
    if verdict is not None and verdict.reason is not None:
        return Outcome(sign_in, Effect.REFUSED, verdict.reason)
    return Outcome(sign_in, Effect.UNPROVEN, reason)
