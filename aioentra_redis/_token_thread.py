"""A token source in a thread of its own, for callers that have no event loop.

The thread runs a loop, the source lives there, and everybody else asks across threads. It starts
when the first token is asked for. A forked child has no thread but the one that forked, so it
starts one of its own, with a source of its own: what it inherited is neither used nor touched,
because closing the parent's loop from here would take the parent's sockets off its selector.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import inspect
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

from ._credentials import credential_object
from ._redaction import scrub, without_tracebacks
from ._source import TokenSource
from ._token import Token
from .errors import (
    ClosedError,
    ConfigurationError,
    EntraRedisError,
    LifecycleError,
    TokenAcquisitionError,
)

__all__ = ["TokenThread"]

CLOSE_TIMEOUT: Final = 12.0
"""Seconds that ``close()`` waits for the thread; the source in it takes ten at the very most."""

_process = object()
"""Stands for this process; not its number, which a grandchild may get again."""


def _forked() -> None:
    global _process
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class TokenThread:
    """Hands out the tokens of a source that ``factory`` makes in a daemon thread.

    ``factory`` returns a :class:`TokenSource` or a credential, or a coroutine of one; what it
    returns is closed here. It is called in the thread, once per process unless it fails. All
    methods can be called from any thread, and in a forked child. Dropping the object ends the
    thread, and so does the end of the program, without waiting.
    """

    def __init__(self, factory: Callable[[], object], *, timeout: float) -> None:
        self.factory = factory
        self.timeout = timeout
        self._closed = False
        # By process. A lock that somebody held when the process was forked stays locked for ever
        # in the child, so each process has its own; setdefault() is atomic.
        self._lives: dict[object, _Life] = {}
        # At exit the thread is left to itself: closing a source may need threads, which can't be
        # started any more by then.
        weakref.finalize(self, _abandon, self._lives).atexit = False

    def get(self) -> Token:
        """Return a valid token; blocks, ``timeout`` seconds at most.

        Raises what :meth:`TokenSource.get` and the factory raise, :exc:`TokenAcquisitionError`
        when time is up, :exc:`ClosedError`.
        """
        future = self._request()
        try:
            return future.result(self.timeout)
        except concurrent.futures.CancelledError:
            raise self._closed_error() from None
        except TimeoutError:
            if future.done():  # with a TimeoutError of its own, or at this very moment
                return future.result()
            raise self._late() from None
        finally:
            future.cancel()

    async def get_async(self) -> Token:
        """:meth:`get` without blocking the caller's loop; cancelling it ends the wait only."""
        future = self._request()
        try:
            async with asyncio.timeout(self.timeout) as limit:
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._late() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and not (task and task.cancelling()):
                raise self._closed_error() from None  # it is the thread that ended
            raise

    def close(self) -> None:
        """End this process's thread and close what lives there; final and idempotent.

        Blocks until that is done, 12 seconds at most. Who waits for a token gets ``ClosedError``.
        """
        self._closed = True
        life = self._life()
        with life.lock:
            worker = life.worker
        if worker is not None:
            worker.stop()
            if worker.thread is not threading.current_thread():
                worker.thread.join(CLOSE_TIMEOUT)

    @property
    def running(self) -> bool:
        """Whether this process has a thread."""
        worker = self._life().worker
        return worker is not None and worker.thread.is_alive()

    def _life(self) -> _Life:
        return self._lives.setdefault(_process, _Life())

    def _request(self) -> concurrent.futures.Future[Token]:
        life = self._life()
        # Who holds this lock starts a thread at most, so nobody waits for long, a loop included.
        # And what was requested before close() took it is in the thread's queue before its end.
        with life.lock:
            if self._closed:
                raise self._closed_error()
            worker = life.worker
            if worker is None or not worker.thread.is_alive():
                worker = life.worker = _Worker(self.factory)
            elif worker.thread is threading.current_thread():
                raise LifecycleError(
                    "the thread that gets tokens would wait for itself: the factory passed to "
                    "in_thread() must not use a client that signs in with its tokens"
                )
            return asyncio.run_coroutine_threadsafe(worker.token(), worker.loop)

    def _late(self) -> TokenAcquisitionError:
        return TokenAcquisitionError(
            f"there was no token within {self.timeout:g} s: the identity provider, or the factory "
            "passed to in_thread(), takes longer. Attempts go on in the background"
        )

    def _closed_error(self) -> ClosedError:
        return ClosedError(
            "this credential provider has been closed; that is final, make a new one"
        )


class _Life:
    """What one process has: a lock, and a thread once there is need for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.worker: _Worker | None = None


class _Worker:
    """The thread: a loop, and the source that the factory makes in it."""

    def __init__(self, factory: Callable[[], object]) -> None:
        self._factory = factory
        self._stopping = asyncio.Event()
        self._making: asyncio.Task[TokenSource] | None = None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="aioentra_redis tokens", daemon=True)
        try:
            self.thread.start()
        except BaseException:
            self.loop.close()
            raise

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._live())

    def stop(self) -> None:
        """Have the thread close its source and end; from any thread, takes no lock."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self.loop.call_soon_threadsafe(self._stopping.set)

    async def token(self) -> Token:
        """A valid token; runs in the thread."""
        making = self._making
        if making is None:
            making = self._making = asyncio.create_task(self._make())
        try:
            source = await asyncio.shield(making)
        except Exception:
            if self._making is making:
                self._making = None  # the next one who asks has the factory try again
            raise
        return await source.get()

    async def _live(self) -> None:
        await self._stopping.wait()
        making = self._making
        if making is None:
            return
        making.cancel()  # in vain if it is done
        await asyncio.wait({making})
        if not making.cancelled() and making.exception() is None:
            await making.result().aclose()

    async def _make(self) -> TokenSource:
        try:
            made = self._factory()
            if inspect.isawaitable(made):
                made = await made
        except EntraRedisError:
            raise
        except Exception as error:
            # Its frames may hold a client secret.
            raise TokenAcquisitionError(
                f"the factory passed to in_thread() raised {type(error).__name__}: "
                f"{scrub(str(error))}",
                transient=False,
            ) from without_tracebacks(error)
        if isinstance(made, TokenSource):
            return made
        if made is None:
            raise ConfigurationError(
                "the factory passed to in_thread() returned None; it is to return a TokenSource "
                "or a credential of azure.identity"
            )
        recipe = credential_object(made)
        return TokenSource(dataclasses.replace(recipe, instance=None, owned=True))


def _abandon(lives: dict[object, _Life]) -> None:
    """End the thread of an object that was dropped; this may run in any thread."""
    life = lives.get(_process)
    if life is not None and life.worker is not None:
        life.worker.stop()
