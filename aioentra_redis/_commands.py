"""The way of a command, from redis-py's method to the connection that it goes on.

redis-py's method (``get``, ``set``, ...) calls ``execute_command``; the plan of that command's name
says where it goes; a shared one is submitted to the current session, and its reply goes through
redis-py's own response callback. Everything that is not the straight way (no connection, a full
gate, a lost reply, a dedicated connection, somebody who watches) is in ``_detour``.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as redis_exceptions
from redis.asyncio import Redis

from ._blocking import arrived, keeping_reply, wait_of, wait_on
from ._held import HeldConnection
from ._losses import alone
from ._multiplex._connection import MultiplexedConnection
from ._multiplex._routing import Route, command_words, remedy, route
from ._plans import FINAL, Callbacks, Plan, awaited, plan_for
from ._recovery import answered, is_to_recover_from, outlasting_outages, sent_elsewhere
from ._redis_py import (
    EMPTY_RESPONSE,
    NEVER_DECODE,
    Recording,
    command_options,
    is_observed,
    led_through,
    pool_retry,
    recording,
    run_last_command,
    signs_in_with,
    unwrapped,
)
from .errors import CommandRefusedError, ConnectionLostError

if TYPE_CHECKING:
    from ._source import TokenSource

__all__ = ["Commands"]

MAX_PLANS: Final = 4096
"""Command names that plans are kept for; a program that makes up names must not fill memory."""


class Commands(Redis):
    """redis-py's client, with commands that go where the routing table says."""

    _multiplexed: MultiplexedConnection | None
    _plans: dict[Any, Plan]
    _overrides: Mapping[str, Route]
    _held: HeldConnection | None

    def _check_open(self) -> None:
        """Raise ``ClosedError`` after ``aclose()``."""

    @property
    def token_source(self) -> TokenSource | None:
        """What this client signs in with, None if it does so in redis-py's own ways."""
        return signs_in_with(self.connection_pool)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return its reply, as every method of this class does.

        Cancelling it changes nobody else's reply; a command that was written may still run.
        Raises redis-py's exceptions; ``MaybeExecutedError`` where the connection ended under a
        command that is not known to be read-only; ``CommandRefusedError``.
        """
        try:
            plan = self._plans.get(args[0]) or self._make_plan(args)
        except TypeError:  # what can't be looked up is no name: DataError
            plan = self._make_plan(args)
        shared, words, callback, _ = plan
        # This test is all that the straight way pays for the others: retries, routing, a full
        # gate, replies as bytes.
        session = shared and self._multiplexed.straight  # type: ignore[union-attr]
        if not session or session.congested or NEVER_DECODE in options:
            return await self._detour(args, options)
        try:
            future = session.submit(args if words is None else words + args[1:])
        except ConnectionLostError:
            return await self._detour(args, options)
        try:
            reply = await future
        except asyncio.CancelledError:
            session.withdraw(future)
            raise
        except redis_exceptions.RedisError as exc:
            return await self._after_error(exc, plan, args, options)
        if callback is None:
            return reply
        if options:
            command_options(options)
        reply = callback(reply, **options)
        # isawaitable() costs 0.4 us; what callbacks nearly always return is known not to be.
        return reply if reply.__class__ in FINAL else await awaited(reply)

    if not TYPE_CHECKING:  # type checkers are to see redis-py's own signatures

        @property
        def connection(self):
            """The one that every command goes over: that of `client()`, or the one set, or None."""
            return self.__dict__.get("connection")

        @connection.setter
        def connection(self, connection):
            self.__dict__["connection"] = connection
            self._held = None if connection is None else HeldConnection(connection)
            if plans := self.__dict__.get("_plans"):
                plans.clear()

        @functools.wraps(Redis.set)
        def set(self, name, value, *args, **options):
            # redis-py checks the options of SET in a decorator, for 2 us; the plain form has none.
            if args or options:
                return super().set(name, value, *args, **options)
            return self.execute_command("SET", name, value)

    def _make_plan(self, args: tuple[Any, ...]) -> Plan:
        self._check_open()  # closing took all plans away
        plan = plan_for(
            args[0],
            may_share=self._multiplexed is not None and self.connection is None,
            with_tokens=self.token_source is not None,
            callbacks=self.response_callbacks,
            overrides=self._overrides,
        )
        if len(self._plans) < MAX_PLANS:
            self._plans[args[0]] = plan
        return plan

    @property
    def response_callbacks(self) -> Callbacks:
        """redis-py's response callbacks; a change holds from the next command on."""
        return self._callbacks

    @response_callbacks.setter
    def response_callbacks(self, callbacks: Mapping[Any, Any]) -> None:
        self._callbacks = Callbacks(callbacks, self._plans.clear)
        self._plans.clear()

    async def _detour(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Every way but the straight one."""
        if is_observed():
            way = led_through(Redis, "execute_command", self, self._long_way)
            return await way(*args, **options)
        return await self._long_way(*args, **options)

    async def _long_way(self, *args: Any, **options: Any) -> Any:
        plan = self._plans.get(args[0]) or self._make_plan(args)
        multiplexed = self._multiplexed
        # `client()`, a connection that was put into our hand, or a pool that only lends them: the
        # way of redis-py.
        if multiplexed is None or self.connection is not None:
            return await self._on_a_connection_of_its_own(args, options)
        multiplexed.check()
        where = Route.SHARED if plan.shared else self._route(args)
        if where is Route.SHARED:
            record = recording(args[0], multiplexed)
            if record is None:
                return await self._submit_again(None, plan, args, options)
            return await record.around(self._submit_again(None, plan, args, options, record))
        if where is Route.DEDICATED:
            if wait_of(args) is None:
                return await self._on_a_connection_of_its_own(args, options)
            return await outlasting_outages(
                multiplexed, lambda: self._on_a_connection_of_its_own(args, dict(options))
            )
        if where is Route.LAST:
            return await run_last_command(self, args, options)
        words = command_words(args)
        raise CommandRefusedError(
            f"{words} can't be sent on a connection that all coroutines share: {remedy(words)}"
        )

    def _route(self, args: tuple[Any, ...]) -> Route:
        return route(args, with_tokens=self.token_source is not None, overrides=self._overrides)

    async def _on_a_connection_of_its_own(
        self, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """redis-py's own way, over a connection of the pool, which signs in like ours."""
        if self.single_connection_client and self.connection is None:
            await self.initialize()
        if is_observed():  # whoever has wrapped it has been led through already
            way = unwrapped(Redis, "execute_command")(self, *args, **options)
        else:
            way = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        reply = keeping_reply(way)
        try:
            return await (reply if self._held is None else self._held.around(args, reply))
        except redis_exceptions.ResponseError as exc:
            raise self._explained(exc)  # noqa: B904 - most often it is the same one

    async def _send_command_parse_response(
        self, conn: Any, command_name: Any, *args: Any, **options: Any
    ) -> Any:
        """What redis-py calls with the connection in hand; a wait of any length is ours."""
        if (wait := wait_of(args)) is None:
            way = super()._send_command_parse_response
            return await alone(conn, args, way(conn, command_name, *args, **options))  # type: ignore[no-untyped-call]
        reply = await wait_on(conn, wait, options)
        callback = self.response_callbacks.get(command_name)  # type: ignore[no-untyped-call]
        if callback is not None:
            reply = await awaited(callback(reply, **command_options(options)))
        return arrived(reply)

    async def _after_error(
        self,
        exc: redis_exceptions.RedisError,
        plan: Plan,
        args: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        """What becomes of a command that got an error instead of a reply."""
        if isinstance(exc, redis_exceptions.ResponseError):
            if EMPTY_RESPONSE in options:
                return options[EMPTY_RESPONSE]
            raise self._explained(exc)
        if is_to_recover_from(exc):
            return await self._submit_again(exc, plan, args, options)
        raise exc

    def _explained(self, error: redis_exceptions.ResponseError) -> redis_exceptions.RedisError:
        """What to raise for a server's error."""
        return sent_elsewhere(error, self._multiplexed) or error

    async def _submit_again(
        self,
        failure: redis_exceptions.RedisError | None,
        plan: Plan,
        args: tuple[Any, ...],
        options: dict[str, Any],
        record: Recording | None = None,
    ) -> Any:
        """Submit once there is a session with room, and again as long as that repeats nothing."""
        words = args if plan.words is None else plan.words + args[1:]
        raw = NEVER_DECODE in options
        try:
            reply = await answered(
                self._multiplexed,  # type: ignore[arg-type]
                lambda session: session.submit(words, raw),
                name=lambda: command_words(words),
                repeatable=plan.read_only,
                retry=pool_retry(self.connection_pool),
                failure=failure,
                on_repeat=record.repeated if record is not None else None,
            )
        except redis_exceptions.ResponseError as exc:
            return await self._after_error(exc, plan, args, options)
        if plan.callback is None:
            return reply
        return await awaited(plan.callback(reply, **command_options(options)))
