"""Two ways to the same answer, timed in turn in one process: A B A B ..., so that both see the same machine."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tqdm import tqdm


class Times(NamedTuple):
    """Seconds of each run of ours and of the peer, in pairs."""

    ours: list[float]
    peer: list[float]

    def row(self, name: str) -> str:
        """One line of the table: medians in seconds, the median of the pairs' ratios, its least and its greatest."""
        ratios = [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]
        middle = statistics.median
        return (
            f"{name:<44}{middle(self.ours):>9.3f}{middle(self.peer):>9.3f}{middle(ratios):>8.2f}x"
            f"  {min(ratios):.2f}..{max(ratios):.2f} ({len(ratios)} pairs)"
        )


HEADER = f"{'':<44}{'ours s':>9}{'peer s':>9}{'ratio':>9}  least..greatest"


def compare(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    same: Callable[[Any, Any], None],
    pairs: int,
    name: str = "",
    warmup: int = 1,
) -> Times:
    """Runs `ours` and `peer` in turn, `pairs` times, after `warmup` uncounted pairs.

    `same(a, b)` is asked about every pair of answers, outside the clock, and raises if they differ.
    """
    times = Times([], [])
    for i in tqdm(range(warmup + pairs), name, delay=2, leave=False):
        answers = []
        for run, seconds in ((ours, times.ours), (peer, times.peer)):
            start = time.perf_counter()
            answers.append(run())
            if i >= warmup:
                seconds.append(time.perf_counter() - start)
        same(*answers)
    return times
