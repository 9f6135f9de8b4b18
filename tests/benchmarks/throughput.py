"""Commands per second: GET and SET of 64 bytes, N coroutines each awaiting one at a time.

Rounds of all competitors are interleaved, so that whatever else the machine does hits everyone.
The figure is the median of the rounds, with the range and the ratio to redis.asyncio. What the
server counted is compared with what the client counted, so nobody wins by skipping work.

With one coroutine most of a command's time can be the waking of a core that sleeps: in a virtual
machine that costs tens of microseconds, the same for every client. ``--together`` puts client and
server on one core, where nobody has to be woken; the *floor* shows what is left to gain.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import time
from dataclasses import dataclass

from _clients import COMPETITORS, Competitor
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
    tls_front,
)

VALUE = b"x" * 64
WARM_UP = 0.3


@dataclass
class Round:
    """One measurement of one competitor."""

    per_second: float
    counted_here: int
    counted_there: int
    connections: int
    errors: collections.Counter[str]


async def measure(
    kind: type[Competitor], endpoint: Endpoint, control: Control, n: int, seconds: float
) -> Round:
    client = kind()
    await client.open(endpoint)
    control.reset()
    total = 0
    errors: collections.Counter[str] = collections.Counter()

    async def worker(number: int, until: float) -> int:
        key, done = f"bench:{number}", 0
        get, set_, clock = client.get, client.set, time.perf_counter
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
        connections = control.clients()
    finally:
        await client.close()
    return Round(
        per_second=total / elapsed,
        counted_here=warmed + total,
        counted_there=control.calls("get", "set"),
        connections=connections,
        errors=errors,
    )


def note(series: Series, one: Round, n: int) -> None:
    """File a round: its figure, or why it has none."""
    if one.errors:
        series.problems += [
            f"{name} in {count} of {n}" for name, count in one.errors.most_common(1)
        ]
        return
    if one.counted_there != one.counted_here:
        series.problems.append(f"counted {one.counted_here}, server {one.counted_there}")
    series.values.append(one.per_second)
    series.notes.append(str(one.connections))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--n", type=parse_numbers, default=[1, 10, 100, 1000])
    parser.add_argument("--tls-n", type=parse_numbers, default=[100], help="empty for no TLS")
    parser.add_argument("--no-tls", action="store_true")
    parser.add_argument("--only", type=parse_names, default=list(COMPETITORS))
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--together", action="store_true", help="all on the client's core")
    options = parser.parse_args()
    if unknown := set(options.only) - set(COMPETITORS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(COMPETITORS)}")

    kinds: list[type[Competitor]] = []
    for name in options.only:
        if reason := COMPETITORS[name].unavailable():
            progress(f"without {COMPETITORS[name].name}: {reason}")
        else:
            kinds.append(COMPETITORS[name])

    pin(CLIENT_CORE)
    core = CLIENT_CORE if options.together else SERVER_CORE
    with server(core) as port, tls_front(port, core) as secure:
        control = Control(port)
        settings = [("TCP", Endpoint(port), n) for n in options.n]
        if not options.no_tls:
            settings += [("TLS", secure, n) for n in options.tls_n]
        results: dict[tuple[str, int, str], Series] = {}
        for transport, endpoint, n in settings:
            for number in range(options.rounds):
                for kind in kinds:
                    if not kind.takes_part(n):
                        continue
                    series = results.setdefault((transport, n, kind.name), Series())
                    one = run(
                        lambda: measure(kind, endpoint, control, n, options.seconds),  # noqa: B023
                        options.loop,
                    )
                    note(series, one, n)
                    progress(
                        f"{transport} N={n} round {number + 1} {kind.name}:"
                        f" {one.per_second / 1000:.1f}k/s {dict(one.errors) or ''}"
                    )
        control.close()

        distributions = list(dict.fromkeys(kind.distribution for kind in kinds))
        print(headline(loop=options.loop, port=port, distributions=distributions, core=core))
        print(
            f"\nThousands of commands a second: median (range) of {options.rounds} interleaved"
            f" rounds of {options.seconds} s, **ratio** to redis.asyncio, connections\n"
        )
        rows = []
        for kind in kinds:
            row = [kind.name]
            for transport, _, n in settings:
                series_or_none = results.get((transport, n, kind.name))
                base = results.get((transport, n, COMPETITORS["redis-py"].name))
                if base is None or base.median is None:
                    base = results.get((transport, n, COMPETITORS["redis-py-4000"].name))
                if series_or_none is None:
                    row.append("")
                    continue
                cell = series_or_none.cell(1e-3, base=base)
                if series_or_none.notes:
                    cell += f", {max(map(int, series_or_none.notes))} conn."
                row.append(cell)
            rows.append(row)
        print(table(["", *(f"{transport}, N={n}" for transport, _, n in settings)], rows))


if __name__ == "__main__":
    main()
