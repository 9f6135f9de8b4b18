"""The long run: ``python -m differential --commands 100000``; ``nox -s differential`` passes it on.

A third of it is on Valkey, with clients that sign in with tokens and clients that don't, a third on
the emulator, over TLS and with tokens that are checked, and a third on a cluster of Valkeys. It
ends with a table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import importlib.metadata
import logging
import platform
import sys
import time

from aioentra_redis.emulator import Emulator

from .campaign import campaign
from .comparison import Difference
from .contest import Contest, Tally
from .peers import EmulatorPeer, Oracle, Peer, valkey, valkey_cluster


def main() -> int:
    """Run it; returns 1 where a difference was found."""
    options = _options()
    # A token ends where the machine is busy for longer than it has to live: no news here.
    logging.getLogger("aioentra_redis").setLevel(logging.ERROR)
    print(
        f"Python {platform.python_version()}, redis-py {importlib.metadata.version('redis')}, "
        f"hypothesis {importlib.metadata.version('hypothesis')}; seed {options.seed}, a new token "
        f"every {options.rotate:g} s"
    )
    with contextlib.ExitStack() as stack:
        chosen = [_pair(name, stack) for name in options.on.split(",")]
        return asyncio.run(_run(chosen, options))


def _pair(name: str, stack: contextlib.ExitStack) -> tuple[Oracle, Peer]:
    """Where redis-py's client runs, and where ours does."""
    if name == "cluster":
        return stack.enter_context(valkey_cluster()), stack.enter_context(valkey_cluster())
    oracle = stack.enter_context(valkey())
    if name == "emulator":
        return oracle, EmulatorPeer(stack.enter_context(Emulator()))
    return oracle, stack.enter_context(valkey())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="differential")
    parser.add_argument("--commands", type=int, default=110_000, help="how many at least, in all")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other programs")
    parser.add_argument("--rotate", type=float, default=0.4, help="seconds from token to token")
    parser.add_argument("--on", default="valkey,emulator,cluster", help="by comma")
    parser.add_argument("--shrink", action="store_true", help="look for the simplest program")
    return parser.parse_args()


async def _run(pairs: list[tuple[Oracle, Peer]], options: argparse.Namespace) -> int:
    tallies: dict[str, Tally] = {}
    failed = False
    for oracle, peer in pairs:
        started = time.monotonic()
        async with Contest(oracle, peer, rotate=options.rotate) as contest:
            try:
                await campaign(
                    contest,
                    commands=options.commands // len(pairs),
                    seed=options.seed,
                    shrink=options.shrink,
                )
            except Difference as exc:
                failed = True
                print(f"\nA difference on {peer.name}: {exc}\n", *exc.__notes__, sep="\n")
        tallies[peer.name] = contest.tally
        print(f"{peer.name}: {time.monotonic() - started:.0f} s", flush=True)
    print("\n" + _table(tallies))
    return int(failed)


def _table(tallies: dict[str, Tally]) -> str:
    """What was run, a column per server."""
    columns = {name: _rows(tally) for name, tally in tallies.items()}
    lines = [f"| | {' | '.join(columns)} | together |", "| --- |" + " ---: |" * (len(columns) + 1)]
    for label in next(iter(columns.values())):
        figures = [rows[label] for rows in columns.values()]
        lines.append(f"| {label} | {' | '.join(f'{n:,}' for n in (*figures, sum(figures)))} |")
    return "\n".join(lines)


def _rows(tally: Tally) -> dict[str, int]:
    counts = dataclasses.asdict(tally.counts)
    return {
        "programs": tally.programs,
        "commands called on each client": counts["commands"],
        "commands that the server of ours counted, AUTH and HELLO included": tally.server_commands,
        "commands that redis-py's counted": tally.oracle_commands,
        "pipelines": counts["pipelines"],
        "transactions, watched ones included": counts["transactions"],
        "registered scripts": counts["scripts"],
        "blocking calls woken": counts["blocking"],
        "connections of one's own (`client()`)": counts["own_connections"],
        "calls and pipelines cancelled": counts["cancellations"],
        "... before they had a reply": counts["cancelled_in_time"],
        "... that took more than one cancel()": counts["cancellations_lost"],
        "tokens": tally.tokens,
        "re-authentications of the shared connections": tally.rotations,
        "shared connections opened": tally.connections,
        "replies compared": tally.replies,
        "... of which errors": tally.errors,
        "keys compared at the end": tally.keys,
    }


if __name__ == "__main__":
    sys.exit(main())
