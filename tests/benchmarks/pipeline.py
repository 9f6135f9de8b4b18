"""Explicit pipelines of GET and SET: commands per second, and the client's CPU time per command.

Four ways to send the same N commands, N at a time: redis.asyncio's ``pipeline(transaction=False)``,
ours, redis.asyncio's and our transactions, and N single commands of ours that ``asyncio.gather``
runs at once. Rounds are interleaved, so that whatever else the machine does hits everyone. The
figures are medians with their ranges, and the ratio to redis.asyncio's pipeline. What the server
counted is compared with what the client counted, so nobody wins by skipping work.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from _harness import (
    CLIENT_CORE,
    SERVER_CORE,
    Control,
    Endpoint,
    Series,
    headline,
    parse_names,
    parse_numbers,
    pin,
    progress,
    run,
    server,
    table,
)

VALUE = b"x" * 64
WARM_UP = 0.2


def _redis_py(endpoint: Endpoint) -> Any:
    import redis.asyncio

    return redis.asyncio.Redis(host=endpoint.host, port=endpoint.port)


def _ours(endpoint: Endpoint) -> Any:
    from aioentra_redis import EntraRedis

    return EntraRedis(host=endpoint.host, port=endpoint.port)


async def _pipelined(client: Any, n: int, transaction: bool) -> None:
    pipe = client.pipeline(transaction=transaction)
    for number in range(0, n, 2):
        pipe.set(f"bench:{number}", VALUE)
        pipe.get(f"bench:{number}")
    replies = await pipe.execute()
    assert replies[-2:] == [True, VALUE]
    assert len(replies) == n


async def _gathered(client: Any, n: int) -> None:
    calls = []
    for number in range(0, n, 2):
        calls.append(client.set(f"bench:{number}", VALUE))
        calls.append(client.get(f"bench:{number}"))
    replies = await asyncio.gather(*calls)
    assert replies[-2:] == [True, VALUE]


@dataclass(frozen=True)
class Way:
    """One way to have N commands run."""

    name: str
    connect: Callable[[Endpoint], Any]
    once: Callable[[Any, int], Awaitable[None]]


WAYS = {
    "redis-py": Way("redis.asyncio, pipeline", _redis_py, lambda c, n: _pipelined(c, n, False)),
    "ours": Way("aioentra_redis, pipeline", _ours, lambda c, n: _pipelined(c, n, False)),
    "gathered": Way("aioentra_redis, gathered", _ours, _gathered),
    "redis-py-multi": Way(
        "redis.asyncio, transaction", _redis_py, lambda c, n: _pipelined(c, n, True)
    ),
    "ours-multi": Way("aioentra_redis, transaction", _ours, lambda c, n: _pipelined(c, n, True)),
}
"""By the name that ``--only`` takes, in the order of the table; ratios are to the first."""


@dataclass
class Round:
    """One measurement of one way; ``cpu`` is this process's time per command, in seconds."""

    per_second: float
    cpu: float
    problem: str | None


async def measure(
    way: Way, endpoint: Endpoint, control: Control, n: int, callers: int, seconds: float
) -> Round:
    client = way.connect(endpoint)
    control.reset()

    async def caller(until: float) -> int:
        done = 0
        while True:
            await way.once(client, n)
            done += n
            if time.perf_counter() >= until:
                return done

    async def work(span: float) -> int:
        until = time.perf_counter() + span
        return sum(await asyncio.gather(*(caller(until) for _ in range(callers))))

    try:
        warmed = await work(WARM_UP)
        begin, cpu = time.perf_counter(), time.process_time()
        done = await work(seconds)
        elapsed, cpu = time.perf_counter() - begin, time.process_time() - cpu
    finally:
        await client.aclose()
    counted, sent = control.calls("get", "set"), warmed + done
    return Round(
        per_second=done / elapsed,
        cpu=cpu / done,
        problem=None if counted == sent else f"counted {sent}, server {counted}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one measurement")
    parser.add_argument("--n", type=parse_numbers, default=[10, 100, 1000])
    parser.add_argument("--callers", type=int, default=1, help="pipelines at the same time")
    parser.add_argument("--only", type=parse_names, default=list(WAYS))
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--together", action="store_true", help="all on the client's core")
    options = parser.parse_args()
    if unknown := set(options.only) - set(WAYS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(WAYS)}")
    if odd := [n for n in options.n if n < 2 or n % 2]:
        parser.error(f"--n takes even numbers, half are GET and half SET: {odd}")

    pin(CLIENT_CORE)
    core = CLIENT_CORE if options.together else SERVER_CORE
    speeds: dict[tuple[str, int], Series] = {}
    cpus: dict[tuple[str, int], Series] = {}
    with server(core) as port:
        control, endpoint = Control(port), Endpoint(port, host="127.0.0.1")
        for n in options.n:
            for number in range(options.rounds):
                for name in options.only:
                    one = run(
                        lambda: measure(
                            WAYS[name],  # noqa: B023
                            endpoint,
                            control,
                            n,  # noqa: B023
                            options.callers,
                            options.seconds,
                        ),
                        options.loop,
                    )
                    speed = speeds.setdefault((name, n), Series())
                    speed.values.append(one.per_second)
                    speed.problems += [one.problem] if one.problem else []
                    cpus.setdefault((name, n), Series()).values.append(one.cpu)
                    progress(
                        f"N={n} round {number + 1} {WAYS[name].name}:"
                        f" {one.per_second / 1000:.1f}k/s, {one.cpu * 1e6:.2f} us"
                    )
        control.close()
        print(
            headline(
                loop=options.loop, port=port, distributions=["redis", "aioentra-redis"], core=core
            )
        )
        base = options.only[0]
        print(
            f"\nMedian (range) of {options.rounds} interleaved rounds of {options.seconds} s,"
            f" {options.callers} caller(s), **ratio** to {WAYS[base].name}\n"
        )
        rows = []
        for name in options.only:
            row = [WAYS[name].name]
            for n in options.n:
                row.append(speeds[name, n].cell(1e-3, base=speeds[base, n]))
                row.append(cpus[name, n].cell(1e6))
            rows.append(row)
        heads = [f"{what}, N={n}" for n in options.n for what in ("k commands/s", "CPU us/command")]
        print(table(["", *heads], rows))


if __name__ == "__main__":
    main()
