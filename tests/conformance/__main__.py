"""Run redis-py's own asyncio tests with plain redis.asyncio and with ours, and compare.

``nox -s conformance`` runs all, those for a cluster on a cluster, with ``EntraRedis`` and
``EntraRedisCluster``; ``nox -s conformance -- --server valkey --protocol 3 pubsub`` one module on
one server; ``--tokens`` signs in with tokens that rotate all the while. The exit code is 1 if a
test was lost that ``exceptions.toml`` doesn't explain, or too many that it does.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from .compare import Comparison, Outcomes, entry_for, lost, read_reasons, stale, table
from .servers import EXECUTABLES, name_and_version
from .suite import CLUSTER_MODULES, MODULES, VERSION, Run, events, fetch
from .tokens import ROTATION

REASONS = Path(__file__).with_name("exceptions.toml")
AT_MOST = 3
"""Tests that may be lost per server and protocol, with a reason each; tokens add their own.

Of the cluster's, which look into the nodes' pools, as many as there are reasons for.
"""
ALONE_AT_MOST = 60
"""More lost tests than this are no flakiness, and are not run alone."""


def main() -> int:
    """Run what the command line says; returns the exit code."""
    arguments = parse()
    if version("redis") != VERSION:
        print(f"these are the tests of redis {VERSION}, but {version('redis')} is installed")
        return 2
    work = Path(arguments.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    program = Program(arguments, work, fetch(work))
    comparisons = [
        program.compare(server, protocol, cluster)
        for server, protocol, cluster in itertools.product(
            arguments.server, arguments.protocol, (False, True)
        )
        if program.has_tests(cluster)
    ]
    reasons = read_reasons(REASONS, tokens=arguments.tokens)
    everything = not arguments.partial
    return verdict(comparisons, reasons, limited=not arguments.tokens, everything=everything)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    known = (*MODULES, *CLUSTER_MODULES)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--server", action="append", choices=sorted(EXECUTABLES))
    parser.add_argument("--protocol", action="append", type=int, choices=(2, 3))
    parser.add_argument("--tokens", action="store_true", help="sign in with rotating tokens")
    parser.add_argument(
        "--rotation", type=float, default=ROTATION, help="seconds from token to token (%(default)s)"
    )
    parser.add_argument("-k", metavar="EXPRESSION", help="pytest's choice of tests by name")
    parser.add_argument("--work", default=".conformance", help="folder for the suite and the logs")
    parser.add_argument("--one-by-one", action="store_true", help="not two runs side by side")
    arguments = parser.parse_args()
    wrong = set(arguments.modules) - set(known)
    if wrong:
        parser.error(f"no such module: {', '.join(sorted(wrong))}")
    arguments.partial = bool(
        arguments.modules or arguments.k or arguments.server or arguments.protocol
    )
    arguments.modules = arguments.modules or list(known)
    arguments.server = arguments.server or sorted(EXECUTABLES)
    arguments.protocol = arguments.protocol or [2, 3]
    return arguments


class Program:
    """Runs what the command line chose, two clients side by side."""

    def __init__(self, arguments: argparse.Namespace, work: Path, suite: Path) -> None:
        self._client = "tokens" if arguments.tokens else "entra"
        self._modules = arguments.modules
        self._rotation = f"--rotation={arguments.rotation}"
        self._options = [self._rotation, *(["-k", arguments.k] if arguments.k else [])]
        self._work = work
        self._suite = suite
        self._threads = ThreadPoolExecutor(1 if arguments.one_by_one else 2)

    def _files(self, cluster: bool) -> list[str]:
        group = CLUSTER_MODULES if cluster else MODULES
        return [f"test_{each}.py" for each in self._modules if each in group]

    def has_tests(self, cluster: bool) -> bool:
        """Whether any of the modules chosen are for a cluster, or for a server that is none."""
        return bool(self._files(cluster))

    def compare(self, server: str, protocol: int, cluster: bool) -> Comparison:
        """All tests on one server in one protocol; what got lost runs again, alone."""
        started = time.monotonic()
        clients = [Run(server, protocol, client, cluster) for client in ("plain", self._client)]
        plain, ours = self._both(clients, self._files(cluster), self._options, "runs")
        if self._client == "tokens":
            happened = events(self._work / "runs" / str(clients[1]))
            print(", ".join(f"{kind}: {count}" for kind, count in sorted(happened.items())))
        suspects = lost(plain, ours)
        confirmed = suspects
        if len(suspects) <= ALONE_AT_MOST:
            confirmed = [name for name in suspects if self._lost_alone(clients, name)]
        print(
            f"{server}{' cluster' * cluster}, RESP{protocol}: "
            f"{len(ours)} tests in {time.monotonic() - started:.0f} s; "
            f"{len(suspects)} lost, "
            + (
                f"{len(confirmed)} of them again when run alone"
                if len(suspects) <= ALONE_AT_MOST
                else "too many to run each alone"
            ),
            flush=True,
        )
        together = [name for name in suspects if name not in confirmed]
        label = name_and_version(server) + " cluster" * cluster
        return Comparison(label, protocol, plain, ours, confirmed, together, cluster)

    def _lost_alone(self, clients: list[Run], name: str) -> bool:
        return bool(lost(*self._both(clients, [name], [self._rotation], "alone")))

    def _both(
        self, clients: list[Run], tests: Sequence[str], options: Sequence[str], folder: str
    ) -> tuple[Outcomes, Outcomes]:
        plain, ours = (
            self._threads.submit(
                run.outcomes, self._suite, self._work / folder / str(run), tests, options
            )
            for run in clients
        )
        return plain.result(), ours.result()


def verdict(
    comparisons: list[Comparison],
    reasons: Mapping[str, str],
    *,
    limited: bool,
    everything: bool,
) -> int:
    """Print what was found; 0 if that is as it should be."""
    print(f"\n{table(comparisons)}\n")
    wrong = False
    for each in comparisons:
        where = f"{each.server}, RESP{each.protocol}"
        for name in each.confirmed:
            entry = entry_for(name, reasons)
            print(f"{where}: {name}\n    {each.ours[name].message if name in each.ours else '-'}")
            print(f"    {'listed: ' + reasons[entry] if entry else 'NOT LISTED'}")
            wrong = wrong or entry is None
        for name in each.only_together:
            print(f"{where}: {name}\n    lost among the others, not when run alone")
        if limited and not each.cluster and len(each.confirmed) > AT_MOST:
            print(f"{where}: {len(each.confirmed)} lost tests are more than {AT_MOST}")
            wrong = True
    for entry in stale(comparisons, reasons):
        print(f"{entry} is listed in {REASONS.name} but passed wherever it ran")
        # On another server or protocol it may still be needed; with tokens, at another moment.
        wrong = wrong or (everything and limited)
    print("as it should be" if not wrong else "NOT as it should be")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
