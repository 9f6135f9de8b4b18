"""Commands per second on a cluster of three primaries: GET and SET of 64 bytes, N coroutines.

``EntraRedisCluster`` against ``redis.asyncio.RedisCluster``, each coroutine awaiting one command at
a time on a key of its own, so that the slots of all nodes are hit. Rounds are interleaved; the
figure is the median with the range and the ratio to redis.asyncio in the same run. What the nodes
counted is compared with what the client counted. The nodes share one core, the client has another.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _harness import (
    CLIENT_CORE,
    SERVER_CORE,
    Control,
    Series,
    headline,
    on_core,
    parse_names,
    parse_numbers,
    pin,
    progress,
    run,
    table,
)

sys.path.append(str(Path(__file__).parents[1]))

from support.server_cluster import ServerCluster

VALUE = b"x" * 64
WARM_UP = 0.3
TARGETS = {1: 1.8, 10: 5.0, 100: 7.0, 1000: 12.0}
"""What the ratio has to reach, by the number of coroutines."""

REDIS_PY = "redis.asyncio.RedisCluster"
OURS = "aioentra_redis.EntraRedisCluster"


def plain(host: str, port: int) -> Any:
    from redis.asyncio.cluster import RedisCluster

    # Its default of connections for each node is too few for 1000 coroutines.
    return RedisCluster(host, port, max_connections=4000)


def ours(host: str, port: int) -> Any:
    from aioentra_redis import EntraRedisCluster

    return EntraRedisCluster(host, port)


CLIENTS: dict[str, tuple[str, Callable[[str, int], Any]]] = {
    "redis-py": (REDIS_PY, plain),
    "ours": (OURS, ours),
}


class Nodes:
    """The cluster, and a connection to each node that reads its counters."""

    def __init__(self, cluster: ServerCluster) -> None:
        self.address = cluster.startup
        self._controls = [Control(node.port) for node in cluster.nodes]

    def reset(self) -> None:
        for each in self._controls:
            each.reset()

    def calls(self) -> int:
        return sum(each.calls("get", "set") for each in self._controls)

    def clients(self) -> list[int]:
        return [each.clients() for each in self._controls]

    def close(self) -> None:
        for each in self._controls:
            each.close()


@contextlib.contextmanager
def nodes(primaries: int) -> Iterator[Nodes]:
    cluster = ServerCluster(primaries, 0, settings={"maxclients": "10000"})
    try:
        with on_core(SERVER_CORE):
            run(cluster.start)
        found = Nodes(cluster)
        yield found
        found.close()
    finally:
        cluster.stop()


@dataclass
class Round:
    """One measurement of one client."""

    per_second: float
    counted_here: int
    counted_there: int
    connections: list[int]
    errors: collections.Counter[str]


async def measure(make: Callable[[str, int], Any], there: Nodes, n: int, seconds: float) -> Round:
    client = make(*there.address)
    await client.initialize()
    there.reset()
    errors: collections.Counter[str] = collections.Counter()
    get: Callable[..., Awaitable[Any]] = client.get
    set_: Callable[..., Awaitable[Any]] = client.set

    async def worker(number: int, until: float) -> int:
        key, done, clock = f"bench:{number}", 0, time.perf_counter
        try:
            while True:  # at least once, so that the warm-up opens everyone's connection
                await set_(key, VALUE)
                await get(key)
                done += 2
                if clock() >= until:
                    break
        except Exception as error:
            errors[type(error).__name__] += 1
        return done

    async def work(span: float) -> tuple[int, float]:
        begin = time.perf_counter()
        counts = await asyncio.gather(*(worker(i, begin + span) for i in range(n)))
        return sum(counts), time.perf_counter() - begin

    try:
        warmed, _ = await work(min(WARM_UP, seconds))
        errors.clear()
        total, elapsed = await work(seconds)
        connections = there.clients()
    finally:
        await client.aclose()
    return Round(total / elapsed, warmed + total, there.calls(), connections, errors)


def note(series: Series, one: Round, n: int) -> None:
    """File a round: its figure, or why it has none."""
    if one.errors:
        series.problems += [f"{name} in {count} of {n}" for name, count in one.errors.items()]
        return
    if one.counted_there != one.counted_here:
        series.problems.append(f"counted {one.counted_here}, nodes {one.counted_there}")
    series.values.append(one.per_second)
    series.notes.append(str(max(one.connections)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--n", type=parse_numbers, default=list(TARGETS))
    parser.add_argument("--primaries", type=int, default=3)
    parser.add_argument("--only", type=parse_names, default=list(CLIENTS))
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    if unknown := set(options.only) - set(CLIENTS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(CLIENTS)}")

    pin(CLIENT_CORE)
    results: dict[tuple[int, str], Series] = {}
    with nodes(options.primaries) as there:
        for n in options.n:
            for number in range(options.rounds):
                for name in options.only:
                    title, make = CLIENTS[name]
                    one = run(
                        lambda: measure(make, there, n, options.seconds),  # noqa: B023
                        options.loop,
                    )
                    note(results.setdefault((n, title), Series()), one, n)
                    progress(
                        f"N={n} round {number + 1} {title}:"
                        f" {one.per_second / 1000:.1f}k/s {dict(one.errors) or ''}"
                    )
        port = there.address[1]
        print(headline(loop=options.loop, port=port, distributions=["aioentra-redis", "redis"]))
    print(
        f"\nThousands of commands a second, {options.primaries} primaries: median (range) of"
        f" {options.rounds} interleaved rounds of {options.seconds} s, **ratio** to redis.asyncio,"
        " connections to the node that has most\n"
    )
    rows = []
    for title in (CLIENTS[name][0] for name in options.only):
        row = [title]
        for n in options.n:
            series = results[n, title]
            cell = series.cell(1e-3, base=results.get((n, REDIS_PY)))
            row.append(f"{cell}, {max(map(int, series.notes), default=0)} conn.")
        rows.append(row)
    targets = ["target", *(f"x{TARGETS[n]}, 1 conn." if n in TARGETS else "" for n in options.n)]
    print(table(["", *(f"N={n}" for n in options.n)], [*rows, targets]))


if __name__ == "__main__":
    main()
