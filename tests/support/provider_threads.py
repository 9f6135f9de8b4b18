"""The threads in which providers for synchronous clients run."""

from __future__ import annotations

import gc
import threading


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "aioentra_redis tokens"]


def assert_no_thread_is_left() -> None:
    """A provider that nobody has any more ends its thread."""
    gc.collect()
    for each in threads():
        each.join(5)
    assert threads() == []
