"""The way of one command, or one pipeline's share, from node to node until it is answered.

What a server refuses to execute is sent where it says, or where the topology says by then. A
command whose connection was lost waits for whatever comes first: its node is back, or its slots
have another owner. What may have run is not repeated, see ``_recovery``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis import exceptions as redis_exceptions

from .._recovery import maybe_executed
from .._redaction import again
from .._redis_py import Address, retry_delays
from ..errors import ClosedError, ConnectError, ConnectionLostError, ConnectTimeoutError
from ._nodes import Node, NotConnectedError
from ._redirects import Action, Redirect, judge
from ._topology import Topology

__all__ = ["Journey", "Start"]

FREE_REDIRECTS: Final = 3
"""Redirections that are followed at once; nodes that do not agree yet send in circles."""

FIRST_PAUSE: Final = 0.01
LAST_PAUSE: Final = 0.25
"""Seconds until a command is sent again that was refused: doubled from the first to the last."""


_FAILURES: Final = (
    redis_exceptions.RedisError,
    redis_exceptions.SlotNotCoveredError,  # which is none
)


class Start:
    """Where a first attempt was, and is to be, made, and how it ended if it was made elsewhere."""

    __slots__ = ("failure", "node")

    def __init__(self, node: Node | None, failure: Exception | None = None) -> None:
        self.node, self.failure = node, failure


class Journey:
    """What is known of a command on its way; for one use.

    ``choose()`` names the node to send it to now, and may raise redis-py's SlotNotCoveredError;
    ``name()`` is what the command is called in errors; ``repeatable`` is True for what changes
    nothing; ``retry`` the user's redis-py ``Retry`` for all else, or None. ``patience`` is in
    seconds: attempts end so long after the first failure.
    """

    def __init__(
        self,
        topology: Topology,
        choose: Callable[[], Node],
        *,
        name: Callable[[], str],
        repeatable: bool,
        retry: Any,
        patience: float,
    ) -> None:
        self._topology = topology
        self._choose = choose
        self._name = name
        self._repeatable = repeatable
        self._retry = retry
        self._patience = patience
        self.on_repeat: Callable[[Exception], Awaitable[None]] | None = None
        """Awaited with the failure of each attempt that another one follows."""
        self._began = 0.0
        self._deadline: float | None = None
        self._delays: Any = None
        self._redirects = 0
        self._pause = FIRST_PAUSE
        self._node: Node | None = None
        self._failure: Exception | None = None
        self._last: Exception | None = None
        self._wants = False
        self._want = contextlib.ExitStack()

    async def run(
        self, attempt: Callable[[Node, bool], Awaitable[Any]], start: Start | None = None
    ) -> Any:
        """The outcome of ``attempt(node, asking)`` on the node where it succeeds.

        ``attempt`` raises ``NotConnectedError`` for a node without a connection. Raises what the
        last attempt raised, ``MaybeExecutedError``, ``ConnectTimeoutError``. Cancelling it cancels
        the attempt and nobody else's wait.
        """
        node, asking = None, False
        if start is not None:
            node, self._failure = start.node, start.failure
            start.failure = None
        try:
            while True:
                if self._failure is not None:
                    node, asking = await self._after(node)
                self._check_open()
                self._began = asyncio.get_running_loop().time()
                try:
                    if node is None:
                        node = self._choose()
                    self._node = node
                    try:
                        return await attempt(node, asking)
                    except NotConnectedError:
                        if not await self._usable(node) and not asking:
                            node = None
                except _FAILURES as exc:
                    self._failure = exc
                except ClosedError as exc:
                    if self._topology.closed or node is None or not node.retired:
                        raise
                    self._failure = exc
        finally:
            self._want.close()
            self._failure = None  # which may refer to our frames, and so to us

    @property
    def address(self) -> Address | None:
        """Where the command was sent last, as metrics name it."""
        node = self._node
        return Address(node.host, node.port, 0) if node is not None else None

    def _check_open(self) -> None:
        if self._topology.closed:
            raise ClosedError("the client of this cluster was closed meanwhile")

    async def _after(self, node: Node | None) -> tuple[Node | None, bool]:
        """Where to go after the failure at ``node``: None for wherever ``choose`` says then."""
        failure, self._failure = self._failure, None
        assert failure is not None
        try:
            return await self._follow(failure, node)
        finally:
            del failure

    async def _follow(self, failure: Exception, node: Node | None) -> tuple[Node | None, bool]:
        left = isinstance(failure, ClosedError)  # the node has, so nothing was sent
        redirect = Redirect(Action.LOST) if left else judge(failure)
        now = asyncio.get_running_loop().time()
        if self._deadline is None or now - self._began > self._patience:
            # The first failure, or the first one after a wait of whatever length.
            self._deadline = now + self._patience
        try:
            if redirect.action is Action.RAISE:
                raise failure
            lost = redirect.action is Action.LOST
            if lost and not self._repeatable and getattr(failure, "written", False):
                await self._leave_to_the_user(failure, now)
            elif now >= self._deadline:
                raise self._too_late(failure)
            if self.on_repeat is not None:
                await self.on_repeat(failure)
            ends_at_once = isinstance(failure, ConnectError)
            self._last = again(failure)
        finally:
            del failure  # it refers to this frame: else only the garbage collector parts the two
        if redirect.action in (Action.MOVED, Action.ASK):
            assert node is not None
            asks = redirect.action is Action.ASK
            follow = self._topology.asked if asks else self._topology.moved
            owner = follow(redirect, node)
            self._redirects += 1
            if self._redirects > FREE_REDIRECTS:
                await asyncio.sleep(self._next_pause())
            return owner, asks
        if redirect.action is Action.AGAIN:
            await asyncio.sleep(self._next_pause())
            return None, False
        self._begin_to_want()
        if not lost or (node is not None and (node.is_connected or ends_at_once)):
            # Nothing to wait for but news, or connections that end at once or can't be made.
            await self._change(self._next_pause())
        return None, False

    async def _leave_to_the_user(self, failure: Exception, now: float) -> None:
        """Wait as the user's ``retry=`` says before a write that may have run is repeated."""
        assert isinstance(failure, redis_exceptions.RedisError)
        assert self._deadline is not None
        if self._delays is None:
            self._delays = retry_delays(self._retry)
        delay = next(self._delays, None)
        if delay is None or now > self._deadline:
            raise maybe_executed(self._name(), failure)
        await asyncio.sleep(delay)

    async def _usable(self, node: Node) -> bool:
        """Wait for a connection to ``node``; False if the topology has changed before.

        Raises what keeps it from connecting, ``ConnectTimeoutError`` at the end of the patience.
        """
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._patience
        if node.was_connected:
            self._begin_to_want()
        usable, changed = node.usable(), self._topology.next_change()
        left = max(0.0, self._deadline - loop.time())
        done, _ = await asyncio.wait(
            {usable, changed}, timeout=left, return_when=asyncio.FIRST_COMPLETED
        )
        if usable in done:
            if usable.cancelled():
                raise ClosedError("the client of this cluster was closed meanwhile")
            if (error := usable.exception()) is not None:
                raise again(error)
            return True
        if changed in done:
            return False
        silent = ConnectionLostError(f"{node.name} has not answered yet")
        raise self._too_late(self._last or node.multiplexed.last_error or silent)

    async def _change(self, patience: float) -> None:
        """Wait until slots have another owner, but no longer than ``patience``."""
        await asyncio.wait({self._topology.next_change()}, timeout=patience)

    def _begin_to_want(self) -> None:
        if not self._wants:
            self._wants = True
            self._want.enter_context(self._topology.wanted())

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(self._pause * 2, LAST_PAUSE)
        return pause * random.uniform(0.5, 1)

    def _too_late(self, failure: Exception) -> Exception:
        """What to raise when the patience is over."""
        if isinstance(failure, redis_exceptions.AskError):
            error: Exception = redis_exceptions.ClusterError(
                f"TTL exhausted. {self._name()} was sent from node to node for "
                f"{self._patience:g} s (recovery_timeout), at last with {failure}"
            )
        elif isinstance(failure, redis_exceptions.ConnectionError) and not isinstance(
            failure, (redis_exceptions.BusyLoadingError, ConnectTimeoutError)
        ):
            error = ConnectTimeoutError(
                f"{self._name()} found no usable node within {self._patience:g} s "
                f"(recovery_timeout); last failure: {failure}",
                stage=getattr(failure, "stage", "tcp"),
                host=getattr(failure, "host", None),
                port=getattr(failure, "port", None),
            )
        else:
            return failure
        error.__cause__ = failure
        return error
