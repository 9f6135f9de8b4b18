"""The long run: ``python -m soak --minutes 15``; ``nox -s soak`` passes it on."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import platform
import sys
import tracemalloc

from aioentra_redis.emulator import Emulator

from .report import broken, table
from .run import Plan, soak


def main() -> int:
    """Run it and print the table; returns 1 where something is broken."""
    options = _options()
    for name in ("aioentra_redis", "azure"):  # what faults are about is no news here
        logging.getLogger(name).setLevel(logging.ERROR)
    print(
        f"Python {platform.python_version()}, redis-py {importlib.metadata.version('redis')}, "
        f"seed {options.seed}, {'no faults' if options.quiet else 'with faults'}",
        flush=True,
    )
    if options.trace:
        tracemalloc.start()
    plan = Plan(
        seconds=options.minutes * 60,
        rotations=options.rotations,
        seed=options.seed,
        quiet=options.quiet,
        workers=options.workers,
        think=options.think / 1000,
    )
    with Emulator() as emulator:
        result = asyncio.run(soak(emulator, plan, _progress))
    print("\n" + table(result))
    return int(bool(broken(result)))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="soak")
    parser.add_argument("--minutes", type=float, default=15, help="how long at most")
    parser.add_argument("--rotations", type=int, default=2_000, help="how many are enough")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other faults")
    parser.add_argument("--quiet", action="store_true", help="no faults: memory over rotations")
    parser.add_argument("--trace", action="store_true", help="tracemalloc too, at half the speed")
    parser.add_argument("--workers", type=int, default=5, help="per client")
    parser.add_argument("--think", type=float, default=30, help="ms between a worker's calls")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
