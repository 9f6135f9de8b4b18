"""Whether a client can do its work, as readiness probes and dashboards ask.

A PING says whether the server answers on the connection that commands use, the token source's
state whether it will go on to, and the ledger which connections are behind. The rest is the
verdict, a pure function of these.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as redis_exceptions

from ._events import ConnectionState, ConnectionStatus, TokenState, TokenStatus
from ._options import check_seconds
from ._redaction import scrub
from .errors import ConnectionLostError, EntraRedisError, ForkedError, WrongLoopError

if TYPE_CHECKING:
    from ._multiplex._connection import MultiplexedConnection
    from ._source import TokenSource

__all__ = ["PATIENCE", "Health", "HealthState", "examine"]

PATIENCE: Final = 2.0
"""Seconds that the PING may take, unless told otherwise."""

RESTART_INTERVAL: Final = 30.0
"""Seconds between starts of a token source that are made for a health check alone."""


class HealthState(enum.Enum):
    """The verdict: DEGRADED is for people to look at, while commands still work."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Health:
    """What :meth:`EntraRedis.health` has found; times in seconds, nothing in it is secret."""

    state: HealthState
    reasons: tuple[str, ...]
    """Why it is not healthy, for people; the worst first."""
    ping: float | None
    """How long the server took to answer, None if it didn't."""
    token_state: TokenState | None
    """None for a client without token source."""
    token_expires_in: float | None
    """0 after the expiry; None before the first token, and without token source."""
    connections: int
    lagging: tuple[str, ...]
    """The connections that hold an older token than the newest: each has a time of its own to get
    it, so that is no fault as long as they are not stale."""
    last_error: str | None

    @property
    def ok(self) -> bool:
        """Whether commands can be expected to work: it is not UNHEALTHY."""
        return self.state is not HealthState.UNHEALTHY

    def as_dict(self) -> dict[str, Any]:
        """The same in what JSON has: strings, numbers, lists, None."""
        return {
            "state": self.state.value,
            "reasons": list(self.reasons),
            "ping": self.ping,
            "token_state": self.token_state.value if self.token_state is not None else None,
            "token_expires_in": self.token_expires_in,
            "connections": self.connections,
            "lagging": list(self.lagging),
            "last_error": self.last_error,
        }


async def examine(
    multiplexed: MultiplexedConnection | None,
    source: TokenSource | None,
    rows: Callable[[], list[ConnectionStatus]],
    own_ping: Callable[[], Awaitable[Any]],
    *,
    timeout: float,
) -> Health:
    """Examine a client: its shared connection, or ``own_ping`` where there is none to be shared.

    Raises ``WrongLoopError``, ``ForkedError``, and ``ConfigurationError`` for an unusable
    ``timeout``. Cancelling it is safe.
    """
    check_seconds(timeout=timeout)
    loop = asyncio.get_running_loop()
    started = loop.time()
    latency: float | None = None
    error: str | None = None
    try:
        async with asyncio.timeout(timeout):
            await _ping(multiplexed, source, own_ping)
        latency = loop.time() - started
    except (WrongLoopError, ForkedError):
        raise
    except redis_exceptions.NoPermissionError:
        latency = loop.time() - started  # an answer, from somebody who knows who asks
    except TimeoutError:
        error = f"no answer to PING within {timeout:g} s"
        if multiplexed is not None and multiplexed.session is None and multiplexed.last_error:
            error = f"no connection within {timeout:g} s: {_text(multiplexed.last_error)}"
    except Exception as exc:
        error = _text(exc)
    return judge(latency, error, source.status if source is not None else None, rows())


async def _ping(
    multiplexed: MultiplexedConnection | None,
    source: TokenSource | None,
    own_ping: Callable[[], Awaitable[Any]],
) -> None:
    """Have the server answer; raises what keeps it from that."""
    if multiplexed is None:
        _check_token(source)
        await own_ping()
        return
    while True:
        multiplexed.check()
        if multiplexed.session is None:
            _check_token(source)
        session = await multiplexed.admit()
        try:
            answer = session.submit(("PING",))
        except ConnectionLostError:
            continue
        finally:
            session.admitted()
        try:
            await answer
        except asyncio.CancelledError:
            session.withdraw(answer)
            raise
        except ConnectionLostError:
            continue  # it only asks, so the next connection may answer
        return


def _check_token(source: TokenSource | None) -> None:
    """Raise where a new connection would have to wait for a token.

    Waiting would count as demand: attempts would follow a second apart, for a probe's sake. The
    source goes on trying at its own pace; only one that gave up at its start has to be told to.
    """
    if source is None:
        return
    status = source.status
    rested = status.last_attempt_ago is None or status.last_attempt_ago >= RESTART_INTERVAL
    waiting = status.state is TokenState.EXPIRED
    if waiting or (status.state is TokenState.FAILED and not rested):
        raise EntraRedisError("there is no connection, and no valid token to make one with")


def judge(
    latency: float | None,
    error: str | None,
    token: TokenStatus | None,
    rows: list[ConnectionStatus],
) -> Health:
    """The verdict on what was found; ``error`` is why there is no latency."""
    fatal: list[str] = []
    grave: list[str] = []
    if error is not None:
        fatal.append(error)
    cause = token.last_error if token is not None else None
    if token is not None:
        why = f": {_text(cause)}" if cause is not None else ""
        match token.state:
            case TokenState.EXPIRED:
                fatal.append(f"the token has expired{why}")
            case TokenState.FAILED:
                fatal.append(f"no token could be had{why}")
            case TokenState.CLOSED:
                fatal.append("the token source has been closed")
            case TokenState.DEGRADED:
                grave.append(f"renewing the token fails{why}")
        if token.hung_call:
            grave.append("a call of the credential hangs, and holds up renewal")
    newest = token.version if token is not None else 0
    stale = [row for row in rows if row.state is ConnectionState.STALE]
    if stale:
        names = ", ".join(row.connection for row in stale)
        refusals = [_text(row.last_error) for row in stale if row.last_error is not None]
        because = f": {refusals[-1]}" if refusals else ""
        grave.append(
            f"{len(stale)} of {len(rows)} connections could not get the newest token "
            f"({names}){because}"
        )
    verdict = (
        HealthState.UNHEALTHY if fatal else HealthState.DEGRADED if grave else HealthState.HEALTHY
    )
    last = error or (_text(cause) if cause is not None else None)
    return Health(
        state=verdict,
        reasons=(*fatal, *grave),
        ping=latency,
        token_state=token.state if token is not None else None,
        token_expires_in=token.remaining if token is not None else None,
        connections=len(rows),
        lagging=tuple(
            row.connection
            for row in rows
            if row.token_version is not None and row.token_version < newest
        ),
        last_error=last or next((_text(e) for row in stale if (e := row.last_error)), None),
    )


def _text(error: BaseException) -> str:
    """What it says, without anything that looks like a token; a timeout says nothing."""
    return scrub(str(error) or type(error).__name__)
