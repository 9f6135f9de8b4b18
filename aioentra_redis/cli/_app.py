"""The command line: options, their checks, and the commands behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from ..emulator._environment import KINDS
from ..emulator._policies import POLICIES
from ..emulator._profiles import PROFILES
from ._demo import DemoOptions

__all__ = ["app", "run"]

app = typer.Typer(
    name="aioentra-redis",
    help="See an asyncio client of Azure's Redis stay signed in with Entra ID, without Azure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULTS = DemoOptions()

Check = Callable[[Any], Any]


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, ours by default; returns the exit status. Usage errors are 2."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="aioentra-redis")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def within(least: float, most: float, advice: str) -> Check:
    """A check that a number is within bounds; the refusal ends with ``advice``."""

    def check(value: float | None) -> float | None:
        if value is not None and not least <= value <= most:
            raise typer.BadParameter(f"{value:g} is not between {least:g} and {most:g}: {advice}.")
        return value

    return check


def above_zero(value: float | None) -> float | None:
    """A check that a duration is one."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"{value:g} is no duration: give seconds above 0, such as 60.")
    return value


def one_of(*names: str) -> Check:
    """A check that a name is among those there are."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}.")
        return value

    return check


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aioentra-redis {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", callback=_version),
    ] = False,
) -> None:
    pass


@app.command(
    # Here and not in a docstring, whose line breaks typer would keep in a terminal of any width.
    help="Watch tokens rotate under load, on this machine, without Azure.\n\n"
    "Starts the emulator with tokens that live for seconds, signs in with real Azure credentials, "
    "keeps workers busy that check every reply, and counts what fails. The exit status is 1 if a "
    "single command did."
)
def demo(
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Which of Azure's offers to stand in for: acr, amr-enterprise, amr-nocluster, or "
            "amr-oss, a cluster in which replicas take over while tokens rotate.",
            callback=one_of(*PROFILES),
        ),
    ] = DEFAULTS.profile,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Coroutines that send commands at the same time.",
            callback=within(1, 5000, "all of them share one connection, so a few hundred fill it"),
        ),
    ] = DEFAULTS.workers,
    rotations: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Changes of the token to wait for.",
            callback=within(1, 1000, "each takes about half of a token's lifetime"),
        ),
    ] = DEFAULTS.rotations,
    token_lifetime: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long each token lives.",
            callback=within(
                2,
                300,
                "shorter tokens could not be renewed in time, longer ones are no fun to watch",
            ),
        ),
    ] = DEFAULTS.token_lifetime,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the summary as JSON, and the view on standard error."),
    ] = False,
) -> None:
    """Run the demo."""
    from ._perform import perform

    options = DemoOptions(workers, rotations, token_lifetime, profile)
    raise typer.Exit(perform(options, as_json=as_json))


PORT = within(0, 65535, "0 stands for any free port")


@app.command(
    help="Run a stand-in for Entra ID and Azure's Redis until interrupted, for development.\n\n"
    "Prints what one needs to use it, as comments and export lines for a shell. It listens on "
    "loopback and nowhere else, and forgets everything at its end. A port of 0 is any free one."
)
def emulator(
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Which of Azure's offers it stands in for: acr (Azure Cache for Redis), or "
            "Azure Managed Redis as amr-oss (a cluster), amr-enterprise or amr-nocluster.",
            callback=one_of(*PROFILES),
        ),
    ] = next(iter(PROFILES)),
    primaries: Annotated[
        int,
        typer.Option(
            metavar="N", help="Of a cluster.", callback=within(1, 20, "each is a process")
        ),
    ] = 3,
    replicas: Annotated[
        int,
        typer.Option(
            metavar="N", help="Of each primary.", callback=within(0, 3, "each is a process")
        ),
    ] = 1,
    node_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="When a cluster takes a node for lost.",
            callback=above_zero,
        ),
    ] = 2.0,
    token_lifetime: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long a service principal's tokens live.",
            callback=above_zero,
        ),
    ] = 3600.0,
    managed_identity_lifetime: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long a managed identity's tokens live.",
            callback=above_zero,
        ),
    ] = 86400.0,
    refresh_in: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="When the identity endpoints advise to refresh, if at all.",
            callback=above_zero,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Access policy of every identity: "
            + "; ".join(f"{', '.join(each.policies)} ({name})" for name, each in PROFILES.items())
            + ". The first of them if not given.",
            callback=one_of(*POLICIES),
        ),
    ] = None,
    sign_in: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help=f"Print the variables of one way to sign in only: {', '.join(KINDS)}.",
            callback=one_of(*KINDS),
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="valkey-server, redis-server or a path."),
    ] = None,
    port: Annotated[
        int, typer.Option(metavar="PORT", help="Of Redis over TLS.", callback=PORT)
    ] = 0,
    plaintext_port: Annotated[
        int, typer.Option(metavar="PORT", help="Of Redis in clear.", callback=PORT)
    ] = 0,
    authority_port: Annotated[
        int, typer.Option(metavar="PORT", help="Of the Entra authority.", callback=PORT)
    ] = 0,
    managed_identity_port: Annotated[
        int, typer.Option(metavar="PORT", help="Of IMDS and App Service.", callback=PORT)
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what one needs to use it as one line of JSON.")
    ] = False,
) -> None:
    """Run the emulator."""
    from ._emulator import host

    raise typer.Exit(
        host(
            as_json=as_json,
            kinds=tuple(kind for kind in KINDS if sign_in in (None, kind)),
            token_lifetime=token_lifetime,
            managed_identity_lifetime=managed_identity_lifetime,
            refresh_in=refresh_in,
            profile=profile,
            primaries=primaries,
            replicas=replicas,
            node_timeout=node_timeout,
            policy=policy,
            server=server,
            port=port,
            plaintext_port=plaintext_port,
            authority_port=authority_port,
            managed_identity_port=managed_identity_port,
        )
    )
