"""Programs made up by hypothesis until enough commands were run."""

from __future__ import annotations

import asyncio
import warnings

import hypothesis
from hypothesis import HealthCheck, Phase

from .comparison import Difference
from .contest import Contest
from .program import Program
from .strategies import programs

__all__ = ["campaign"]

BATCH = 100
"""Programs that hypothesis makes up in one go."""


async def campaign(
    contest: Contest,
    *,
    commands: int,
    seed: int,
    programs_at_once: int = BATCH,
    shrink: bool = False,
) -> None:
    """Play programs until ``commands`` commands were run; raises the first ``Difference``.

    The programs follow from ``seed``, the order in which coroutines and tokens get their turn does
    not. With ``shrink`` hypothesis looks for the simplest program that shows the difference.
    hypothesis works in a thread, so that the loop goes on and tokens rotate while it thinks.
    """
    loop = asyncio.get_running_loop()
    found: list[Difference] = []

    def play(program: Program) -> None:
        if found and not shrink:
            raise found[0]  # it plays the program again, to see whether it is sure
        try:
            asyncio.run_coroutine_threadsafe(contest.play(program), loop).result()
        except Difference as exc:
            exc.add_note(f"in {program!r}")
            found.append(exc)
            raise

    search = hypothesis.settings(
        max_examples=programs_at_once,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )(hypothesis.given(programs(contest.variants, cluster=contest.is_cluster))(play))
    with warnings.catch_warnings():
        # It sees that others used `random` while it made up a program: those were jitters.
        warnings.filterwarnings("ignore", "Do not use the `random` module inside strategies")
        while contest.tally.counts.commands < commands:
            try:
                await asyncio.to_thread(hypothesis.seed(seed)(search))
            except Exception as exc:
                if not found:
                    raise
                # The last one is the simplest that was seen.
                raise found[-1] from exc if shrink else None
            seed += 1
