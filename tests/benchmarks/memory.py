"""Memory under back pressure: 300 concurrent SETs of one value of 1 MB.

Every round is a fresh process. The figure is the peak of its resident memory minus what it had
with the client connected, so the interpreter and the libraries don't count, their buffers do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from _clients import COMPETITORS
from _harness import (
    CLIENT_CORE,
    Control,
    Endpoint,
    Series,
    headline,
    parse_names,
    pin,
    progress,
    server,
    table,
)


def resident() -> int:
    """Bytes of resident memory now."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return peak()


def peak() -> int:
    """Bytes of resident memory at the worst moment of this process.

    Linux' ru_maxrss starts with the parent's, VmHWM with the program.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def one_round(name: str, port: int, count: int, size: int) -> dict[str, object]:
    client = COMPETITORS[name]()
    await client.open(Endpoint(port))
    await client.set("bench:large", b"x")
    value = b"x" * size
    before = resident()
    begin = time.perf_counter()
    results = await asyncio.gather(
        *(client.set("bench:large", value) for _ in range(count)), return_exceptions=True
    )
    seconds = time.perf_counter() - begin
    grown = peak() - before
    errors = [type(each).__name__ for each in results if isinstance(each, BaseException)]
    await client.close()
    return {"grown": grown, "seconds": seconds, "errors": errors}


def in_a_process(name: str, port: int, count: int, size: int) -> dict[str, object]:
    command = [sys.executable, __file__, "--one", name, "--port", str(port)]
    command += ["--count", str(count), "--mb", str(size / 1e6)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"grown": 0, "seconds": 0.0, "errors": [last]}
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--mb", type=float, default=1.0, help="size of the value")
    parser.add_argument("--only", type=parse_names, default=list(COMPETITORS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = int(options.mb * 1e6)
    if options.one:
        print(json.dumps(asyncio.run(one_round(options.one, options.port, options.count, size))))
        return

    names = []
    for name in options.only:
        if reason := COMPETITORS[name].unavailable():
            progress(f"without {COMPETITORS[name].name}: {reason}")
        else:
            names.append(name)

    pin(CLIENT_CORE)
    memory = {name: Series() for name in names}
    seconds = {name: Series() for name in names}
    with server() as port:
        control = Control(port)
        for number in range(options.rounds):
            for name in names:
                control.reset()
                one = in_a_process(name, port, options.count, size)
                errors = one["errors"]
                assert isinstance(errors, list)
                if errors:
                    problem = f"{errors[0]} in {len(errors)} of {options.count}"
                    memory[name].problems.append(problem)
                    continue
                counted = control.calls("set")
                if counted != options.count + 1:
                    memory[name].problems.append(f"server counted {counted}")
                memory[name].values.append(float(str(one["grown"])))
                seconds[name].values.append(float(str(one["seconds"])))
                progress(
                    f"round {number + 1} {name}: {memory[name].values[-1] / 1e6:.0f} MB,"
                    f" {seconds[name].values[-1]:.2f} s"
                )
        control.close()
        distributions = list(dict.fromkeys(COMPETITORS[name].distribution for name in names))
        print(headline(loop="asyncio", port=port, distributions=distributions))
    print(
        f"\n{options.count} concurrent SETs of one value of {options.mb:g} MB: median (range) of"
        f" {options.rounds} interleaved rounds, each in a fresh process\n"
    )
    rows = [
        [COMPETITORS[name].name, memory[name].cell(1e-6, 0), seconds[name].cell(1, 2)]
        for name in names
    ]
    print(table(["", "resident memory grew by, MB", "seconds"], rows))


if __name__ == "__main__":
    main()
