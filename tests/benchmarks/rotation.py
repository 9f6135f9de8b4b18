"""What a token rotation costs: throughput and latency at N=100 with a rotation every 200 ms.

An hourly rotation would not show in any figure; 18,000 times as many do. Rounds with rotation and
without are interleaved. Latencies are recorded in both, which costs both the same. A command counts
as *under AUTH* if any part of its time lies between the writing of an AUTH and its answer.

Whatever is in flight at some instant is slower than the average command, because a slow command is
in flight for longer. So every round also sends a PING at the same intervals, and what was in flight
*under PING* is what commands under AUTH are to be compared with.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import functools
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from _clients import Ours
from _harness import (
    CLIENT_CORE,
    Control,
    LocalCredential,
    Series,
    headline,
    pin,
    progress,
    run,
    server,
    table,
)

if TYPE_CHECKING:
    from aioentra_redis import TokenSource

VALUE = b"x" * 64
WARM_UP = 0.3


@dataclass
class Round:
    """One measurement."""

    per_second: float
    commands: int
    rotations: int
    """AUTHs that were answered while commands were measured."""
    refused: int
    errors: list[str]
    under_auth: list[float]
    under_ping: list[float]
    otherwise: list[float]
    auth_latencies: list[float]


def percentile(values: list[float], fraction: float) -> float | None:
    return sorted(values)[int(len(values) * fraction)] if values else None


def token_source(interval: float | None) -> TokenSource:
    """A source that renews every ``interval`` seconds, or not while we measure."""
    from aioentra_redis import TokenSource

    # A renewal is due when half of such a short life is over.
    lifetime = 3600.0 if interval is None else 2 * interval
    credential = LocalCredential(lifetime=lifetime)

    async def factory() -> LocalCredential:
        return credential

    return TokenSource.from_credential_factory(factory)


Windows = list[tuple[float, float]]


def overlapping(begins: array[float], ends: array[float], windows: Windows) -> list[float | None]:
    """For each command its duration if it overlaps a window, else None; windows are in order."""
    closings = [end for _, end in windows]
    found: list[float | None] = []
    for begin, end in zip(begins, ends, strict=True):
        first = bisect.bisect_left(closings, begin)
        overlaps = first < len(windows) and windows[first][0] <= end
        found.append(end - begin if overlaps else None)
    return found


async def measure(port: int, n: int, seconds: float, interval: float | None, every: float) -> Round:
    from aioentra_redis import EntraRedis

    clock = time.perf_counter
    windows: Windows = []
    pings: Windows = []
    refused = 0

    def on_event(event: Any) -> None:
        nonlocal refused
        kind = type(event).__name__
        if kind == "Reauthenticated":
            now = clock()
            windows.append((now - event.latency, now))
        elif kind == "ReauthenticationFailed":
            refused += 1

    # Arrays, not lists of tuples: a million of those keep the garbage collector busy.
    begins, ends = array("d"), array("d")
    errors: list[str] = []

    async def worker(number: int, until: float) -> None:
        key, get, set_ = f"bench:{number}", client.get, client.set
        now = clock()
        while now < until:
            for command in (set_(key, VALUE), get(key)):
                begin = now
                try:
                    await command
                except Exception as error:
                    errors.append(type(error).__name__)
                now = clock()
                begins.append(begin)
                ends.append(now)

    async def pinger(until: float) -> None:
        while clock() < until:
            begin = clock()
            await client.ping()
            pings.append((begin, clock()))
            await asyncio.sleep(every)

    async with token_source(interval) as source:
        client: Any = EntraRedis(
            host="localhost", port=port, token_source=source, on_event=on_event
        )
        try:
            begin = clock()
            await asyncio.gather(*(worker(i, begin + WARM_UP) for i in range(n)))
            del begins[:], ends[:], windows[:], errors[:]
            begin = clock()
            workers = [worker(i, begin + seconds) for i in range(n)]
            await asyncio.gather(pinger(begin + seconds), *workers)
            elapsed = clock() - begin
        finally:
            await client.aclose()
    auth, ping = overlapping(begins, ends, windows), overlapping(begins, ends, pings)
    everything = zip(begins, ends, auth, strict=True)
    return Round(
        per_second=len(begins) / elapsed,
        commands=len(begins),
        rotations=len(windows),
        refused=refused,
        errors=errors,
        under_auth=[each for each in auth if each is not None],
        under_ping=[each for each in ping if each is not None],
        otherwise=[end - begin for begin, end, under in everything if under is None],
        auth_latencies=[end - begin for begin, end in windows],
    )


def milliseconds(values: list[float], fraction: float) -> str:
    found = percentile(values, fraction)
    return "-" if found is None else f"{found * 1000:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between rotations")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    if reason := Ours.unavailable():
        raise SystemExit(f"nothing to measure: {reason}")

    pin(CLIENT_CORE)
    intervals: dict[str, float | None] = {
        "no rotation": None,
        f"every {options.interval * 1000:g} ms": options.interval,
    }
    results: dict[str, list[Round]] = {name: [] for name in intervals}
    with server() as port:
        control = Control(port)
        control.accept_tokens()
        for number in range(options.rounds):
            for name, interval in intervals.items():
                one = run(
                    functools.partial(
                        measure, port, options.n, options.seconds, interval, options.interval
                    ),
                    options.loop,
                )
                results[name].append(one)
                progress(
                    f"round {number + 1} {name}: {one.per_second / 1000:.1f}k/s,"
                    f" {one.rotations} rotations, {len(one.errors)} errors, {one.refused} refused"
                )
        control.close()
        print(headline(loop=options.loop, port=port, distributions=["aioentra-redis", "redis"]))
    print(
        f"\nThroughput with N={options.n} under token rotation: median (range) of"
        f" {options.rounds} interleaved rounds of {options.seconds:g} s; latencies in ms, over all"
        " rounds\n"
    )
    base = Series([one.per_second for one in results["no rotation"]])
    rows = []
    for name, rounds in results.items():
        series = Series([one.per_second for one in rounds])
        if name == "no rotation":
            series = base
        inside = [each for one in rounds for each in one.under_auth]
        pinged = [each for one in rounds for each in one.under_ping]
        outside = [each for one in rounds for each in one.otherwise]
        answered = [each for one in rounds for each in one.auth_latencies]
        rows.append(
            [
                name,
                series.cell(1e-3, base=base),
                str(sum(one.rotations for one in rounds)),
                str(sum(len(one.errors) for one in rounds)),
                str(sum(one.refused for one in rounds)),
                f"{milliseconds(outside, 0.5)} / {milliseconds(outside, 0.99)}",
                f"{milliseconds(pinged, 0.5)} / {milliseconds(pinged, 0.99)} ({len(pinged)})",
                f"{milliseconds(inside, 0.5)} / {milliseconds(inside, 0.99)} ({len(inside)})",
                f"{milliseconds(answered, 0.5)} / {milliseconds(answered, 0.99)}",
            ]
        )
    header = ["", "k commands/s", "rotations", "errors", "AUTH refused", "commands p50 / p99"]
    header.append("under PING p50 / p99 (count)")
    print(table([*header, "under AUTH p50 / p99 (count)", "AUTH p50 / p99"], rows))


if __name__ == "__main__":
    main()
