"""The demo itself: a load on a client whose tokens live for seconds. It prints nothing.

It starts an emulator in a process of its own, signs in with real, unmodified credentials, keeps
workers busy for so many rotations, and asks the emulator's log whether both sides saw the same.
Where there is a cluster, a primary is replaced with every new token.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from .. import (
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReplaced,
    ConnectionState,
    Event,
    Reauthenticated,
    ReauthenticationFailed,
    RefreshFailed,
    TokenPublished,
    TokenSource,
    connect,
)
from ..emulator import Emulator, Log
from ..emulator._options import DEFAULT_PROFILE
from ..emulator._profiles import find_profile
from ._failovers import Failovers
from ._rotations import Rotations
from ._statistics import Latencies, Recorder
from ._workload import Workload

__all__ = ["ClientFactory", "Demo", "DemoOptions", "Notice", "Phase", "Report", "Snapshot"]

ClientFactory = Callable[..., AbstractAsyncContextManager[Any]]
"""What makes the client, called as ``connect`` is; another one can make the demo fail."""

RATE_WINDOW: Final = 1.0
"""Seconds over which operations a second are averaged."""

CALM: Final = 0.5
"""Seconds of load after the last rotation, so that it ends in calm as it began."""

GRACE: Final = 15.0
"""Seconds that all rotations together may take longer than a lifetime each."""

AGREEMENT: Final = 1.0
"""Seconds that the emulator's log gets to agree with what the client saw: an AUTH may be between
the two."""

INTERRUPTED: Final = 128
"""What a shell adds to a signal's number."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What can be chosen; ``token_lifetime`` in seconds, ``profile`` one of the emulator's."""

    workers: int = 50
    rotations: int = 5
    token_lifetime: float = 4.0
    profile: str = DEFAULT_PROFILE

    @property
    def clustered(self) -> bool:
        """Whether there is a cluster, and so failovers."""
        return find_profile(self.profile).clustered

    @property
    def expected(self) -> float:
        """About how many seconds the load lasts: a token is renewed at half of its life, and each
        connection waits for a while before it sends it."""
        return self.rotations * 0.55 * self.token_lifetime + CALM

    @property
    def patience(self) -> float:
        """Seconds after which missing rotations won't come any more."""
        return (self.rotations + 2) * self.token_lifetime + GRACE


class Phase(enum.Enum):
    """How far the demo has come."""

    EMULATOR = "starting the emulator"
    CONNECTING = "connecting"
    LOAD = "running"
    CHECKING = "checking"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened, in one line, ``elapsed`` seconds after the start."""

    elapsed: float
    text: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a view shows; times in seconds, None where nothing is known yet."""

    phase: Phase
    elapsed: float
    token_version: int | None = None
    token_age: float | None = None
    token_lifetime: float | None = None
    connections: int = 0
    connections_opened: int = 0
    rotations: int = 0
    failovers: int | None = None
    last_auth: float | None = None
    commands: int = 0
    rate: float | None = None
    failures: int = 0
    inside: Latencies | None = None
    outside: Latencies | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """How it went; the last four counts are the emulator's own, None if it could not be asked.

    ``failovers`` is None where there is no cluster.
    """

    options: DemoOptions
    seconds: float
    commands: int
    failures: int
    rotations: int
    connections_opened: int
    inside: Latencies
    outside: Latencies
    reasons: dict[str, int] = field(default_factory=dict)
    disagreements: tuple[str, ...] = ()
    interrupted: int | None = None
    auths: int | None = None
    auths_refused: int | None = None
    closed_for_expiry: int | None = None
    tokens: int | None = None
    failovers: int | None = None

    @property
    def exit_status(self) -> int:
        """0 if everything was as it should be, 1 if not, 128 + signal if it was interrupted."""
        if self.interrupted is not None:
            return INTERRUPTED + self.interrupted
        return 1 if self.failures or self.disagreements else 0

    def to_json(self) -> dict[str, Any]:
        """All of it as a document for ``json.dumps``."""
        return {**dataclasses.asdict(self), "exit_status": self.exit_status}


class Demo:
    """One run; ``run`` it once. ``notify`` is called with each notice, in the loop."""

    def __init__(
        self,
        options: DemoOptions | None = None,
        *,
        client_factory: ClientFactory = connect,
        notify: Callable[[Notice], None] = lambda notice: None,
    ) -> None:
        self.options = options if options is not None else DemoOptions()
        self.phase = Phase.EMULATOR
        self._client_factory = client_factory
        self._notify = notify
        self._begun = perf_counter()
        self._load_begun: float | None = None
        self._load_ended: float | None = None
        self._recorder = Recorder()
        self._workload: Workload | None = None
        self._source: TokenSource | None = None
        self._client: Any = None
        self._rates: deque[tuple[float, int]] = deque()
        self._enough = asyncio.Event()
        self._interrupted: int | None = None
        self._rotations = Rotations()
        self._failovers: Failovers | None = None
        self._opened = 0
        self._reauthenticated = 0
        self._last_auth: float | None = None
        self._disagreements: list[str] = []
        self._log: Log | None = None

    # -- running ---------------------------------------------------------------------------------

    async def run(self) -> Report:
        """Do it all; the report says how it went.

        Raises only what keeps it from beginning: ``EmulatorError``, or what ``TokenSource`` and
        the client raise. Cancelling it ends it at once and leaves nothing behind.
        """
        self._notice("starting the emulator: an Entra authority and a Redis that enforces tokens")
        async with Emulator(
            profile=self.options.profile,  # type: ignore[arg-type]  # checked where it was given
            token_lifetime=self.options.token_lifetime,
        ) as emulator:
            if self.options.clustered:
                self._failovers = Failovers(emulator, self._notice)
            self.phase = Phase.CONNECTING
            self._notice(
                f"{emulator.server_version} answers at {emulator.url} ({emulator.profile}), "
                f"the authority at {emulator.authority}"
            )
            principal = emulator.service_principal
            async with (
                # A factory: a new ClientSecretCredential for each renewal. One object would return
                # its cached token until 300 s before the expiry, and hold off for 30 s.
                TokenSource.from_client_secret(
                    emulator.tenant_id,
                    principal.client_id,
                    principal.secret or "",
                    authority=emulator.authority,
                    connection_verify=emulator.ca_file,
                ) as self._source,
                self._client_factory(
                    emulator.url,
                    token_source=self._source,
                    cluster=self.options.clustered,
                    ssl_ca_certs=emulator.ca_file,
                    on_event=self._on_event,
                ) as self._client,
            ):
                await self._put_under_load()
                self.phase = Phase.CHECKING
                assert self._workload is not None
                await self._workload.verify()
                await self._compare(emulator)
        self.phase = Phase.ENDED
        return self.report()

    async def _put_under_load(self) -> None:
        options = self.options
        self._workload = Workload(self._client, options.workers, self._recorder)
        self.phase = Phase.LOAD
        self._load_begun = perf_counter()
        self._notice(
            f"{options.workers} workers begin; {options.rotations} rotations of tokens that live "
            f"{options.token_lifetime:g} s take about {options.expected:.0f} s"
        )
        await self._workload.run(self._until_settled())
        self._load_ended = perf_counter()

    async def _until_settled(self) -> None:
        await self._until_enough()
        if self._failovers is not None:
            await self._failovers.settled()
            self._disagreements += self._failovers.failures

    async def _until_enough(self) -> None:
        try:
            async with asyncio.timeout(self.options.patience):
                await self._enough.wait()
        except TimeoutError:
            self._disagreements.append(
                f"only {self._rotations.count} of {self.options.rotations} rotations within "
                f"{self.options.patience:.0f} s"
            )
        if self._interrupted is None:
            await asyncio.sleep(CALM)

    def interrupt(self, signal_number: int) -> bool:
        """End the load early; False where only cancelling helps: there is no load, or again."""
        again = self._interrupted is not None
        self._interrupted = signal_number
        self._enough.set()
        return self.phase is Phase.LOAD and not again

    async def _compare(self, emulator: Emulator) -> None:
        """Ask the other side of the wire what it saw."""
        deadline = perf_counter() + AGREEMENT
        while True:
            self._log = log = await emulator.log()
            accepted = sum(each.accepted for each in log.auths)
            seen = self._opened + self._reauthenticated
            if accepted == seen or perf_counter() > deadline:
                break
            await asyncio.sleep(0.05)
        if accepted != seen:
            self._disagreements.append(
                f"the emulator accepted {accepted} AUTHs, the client knows of {seen}"
            )
        if refused := len(log.auths) - accepted:
            self._disagreements.append(f"AUTHs that the emulator refused: {refused}")
        if expired := _closed_for_expiry(log):
            self._disagreements.append(
                f"connections that the emulator closed because their tokens expired: {expired}"
            )

    # -- events ----------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case TokenPublished():
                self._notice(
                    f"token version {event.version} was acquired in {_ms(event.acquired_in)} "
                    f"and lives {event.lifetime:.1f} s"
                )
                if self._failovers is not None and self.phase is Phase.LOAD:
                    self._failovers.begin()
            case ConnectionOpened():
                self._opened += 1
                self._rotations.opened(event.connection, event.token_version or 0)
                self._recorder.rotated(perf_counter(), event.connect_seconds)
                self._notice(
                    f"{event.connection} opened and signed in with token version "
                    f"{event.token_version} in {_ms(event.connect_seconds)}"
                )
            case Reauthenticated():
                self._reauthenticated += 1
                self._last_auth = event.latency
                self._recorder.rotated(perf_counter(), event.latency)
                self._rotated(
                    self._rotations.changed(event.connection, event.token_version),
                    f"{event.connection} took token version {event.token_version}, "
                    f"AUTH answered in {_ms(event.latency)}",
                )
            case ConnectionReplaced():
                self._rotated(
                    self._rotations.closed(event.old),
                    f"{event.new} took over from {event.old}: {event.reason}",
                )
            case ConnectionClosed():
                if event.error is not None:
                    self._notice(f"{event.connection} was lost: {event.error}")
                self._rotated(self._rotations.closed(event.connection), "")
            case ReauthenticationFailed():
                self._notice(f"{event.connection} kept its former token: {event.error}")
            case RefreshFailed():
                self._notice(f"no newer token, next try in {event.next_attempt_in:.1f} s")

    def _rotated(self, all_have: bool, how: str) -> None:
        """Tell ``how`` a connection got on, and whether all have the newest token by that."""
        rotations = self._rotations.count
        if all_have and how:
            how = f"rotation {rotations} of {self.options.rotations}: {how}"
        if how:
            self._notice(how)
        if rotations >= self.options.rotations:
            self._enough.set()

    def _notice(self, text: str) -> None:
        self._notify(Notice(self.elapsed, text))

    # -- looking at it ---------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return perf_counter() - self._begun

    def snapshot(self) -> Snapshot:
        """What there is to see now."""
        now = perf_counter()
        commands = self._workload.commands if self._workload is not None else 0
        connections = [
            each
            for each in (self._client.auth_status() if self._client is not None else ())
            if each.state is not ConnectionState.CLOSED
        ]
        token = self._source.current if self._source is not None else None
        return Snapshot(
            phase=self.phase,
            elapsed=self.elapsed,
            token_version=token.version if token is not None else None,
            token_age=(
                self._source.now() - (token.expires_on - token.lifetime)
                if token is not None and self._source is not None
                else None
            ),
            token_lifetime=token.lifetime if token is not None else None,
            connections=len(connections),
            connections_opened=self._opened,
            rotations=self._rotations.count,
            failovers=self._failovers.count if self._failovers is not None else None,
            last_auth=self._last_auth,
            commands=commands,
            rate=self._rate(now, commands) if self._load_begun is not None else None,
            failures=self._workload.failures if self._workload is not None else 0,
            inside=self._recorder.inside.summary(),
            outside=self._recorder.outside.summary(),
        )

    def _rate(self, now: float, commands: int) -> float:
        rates = self._rates
        if not rates:
            rates.append((self._load_begun or now, 0))
        rates.append((now, commands))
        while len(rates) > 2 and rates[1][0] <= now - RATE_WINDOW:
            rates.popleft()
        then, before = rates[0]
        return (commands - before) / max(now - then, 1e-3)

    def report(self) -> Report:
        """How it has gone so far, whether it has ended or not."""
        workload, log = self._workload, self._log
        seconds = 0.0
        if self._load_begun is not None:
            seconds = (self._load_ended or perf_counter()) - self._load_begun
        return Report(
            options=self.options,
            seconds=seconds,
            commands=workload.commands if workload is not None else 0,
            failures=workload.failures if workload is not None else 0,
            rotations=self._rotations.count,
            connections_opened=self._opened,
            inside=self._recorder.inside.summary(),
            outside=self._recorder.outside.summary(),
            reasons=dict(workload.reasons) if workload is not None else {},
            disagreements=tuple(self._disagreements),
            interrupted=self._interrupted,
            auths=len(log.auths) if log is not None else None,
            auths_refused=(
                sum(not each.accepted for each in log.auths) if log is not None else None
            ),
            closed_for_expiry=_closed_for_expiry(log) if log is not None else None,
            tokens=len(log.tokens) if log is not None else None,
            failovers=self._failovers.count if self._failovers is not None else None,
        )


def _closed_for_expiry(log: Log) -> int:
    return sum(each.reason == "expiry" for each in log.closes)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
