"""Memory, tasks and sockets, taken while nobody calls, and whether they are flat."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import statistics
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

__all__ = ["Sample", "Span", "measure", "span"]

MB = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the process."""

    rotations: int
    resident: float
    """Resident memory in MB, without what glibc keeps of a peak; 0 where it is not told."""
    heap: float
    """MB that C's allocator has given out, OpenSSL's and hiredis' among them; 0 without glibc."""
    traced: float
    """MB that Python's allocators have given out; 0 without tracemalloc."""
    blocks: int
    """Memory blocks of Python's allocator in use."""
    objects: int
    """Objects that the garbage collector follows."""
    tasks: int
    files: int
    """File descriptors, sockets among them."""


def measure(rotations: int) -> Sample:
    """Collect garbage and look.

    What a fault has piled up, glibc may keep for later: it is asked to return that, so that one
    peak is not taken for growth.
    """
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    return Sample(
        rotations=rotations,
        resident=_resident() / MB,
        heap=_heap() / MB,
        traced=tracemalloc.get_traced_memory()[0] / MB if tracemalloc.is_tracing() else 0.0,
        blocks=sys.getallocatedblocks(),
        objects=len(gc.get_objects()),
        tasks=len(asyncio.all_tasks()),
        files=_files(),
    )


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Mallinfo2(ctypes.Structure):
    """See mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _heap() -> int:
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def _files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(folder):
            return len(os.listdir(folder))
    return 0


@dataclass(frozen=True, slots=True)
class Span:
    """How one figure developed: medians of the first and last twentieth, and of all."""

    first: float
    last: float
    median: float
    highest: float
    rise: float
    """The upper quartile of the last third less that of the first: for what comes and goes."""

    @property
    def growth(self) -> float:
        return self.last - self.first


def span(samples: Sequence[Sample], figure: str, warm_up: int) -> Span | None:
    """The development of a figure after ``warm_up`` rotations; None without enough samples.

    Single samples jump by what happens to be under way; medians of some don't.
    """
    assert figure in {each.name for each in fields(Sample)}
    values = [float(getattr(each, figure)) for each in samples if each.rotations >= warm_up]
    if len(values) < 4:
        return None
    part, third = max(1, len(values) // 20), len(values) // 3
    return Span(
        first=statistics.median(values[:part]),
        last=statistics.median(values[-part:]),
        median=statistics.median(values),
        highest=max(values),
        rise=_upper(values[-third:]) - _upper(values[:third]),
    )


def _upper(values: Sequence[float]) -> float:
    return sorted(values)[len(values) * 3 // 4]
