"""Bootstrap intervals against scipy's."""

import numpy as np
import torch

from benchmarks.pair import Benchmark
from studybook import stats

RESAMPLES = 10_000


def skewed(n: int) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log().neg()


def ours(values: torch.Tensor) -> stats.Interval:
    return stats.bootstrap(values, 0, resamples=RESAMPLES)


def scipys(values: torch.Tensor) -> object:
    """In batches that fit the processor's cache, which was faster than all at once and keeps memory bounded."""
    from scipy.stats import bootstrap

    batch = max(1, 1_000_000 // len(values))
    options = {"n_resamples": RESAMPLES, "method": "percentile", "batch": batch, "rng": np.random.default_rng(0)}
    return bootstrap((values.numpy(),), np.mean, **options).confidence_interval


def ends(values: torch.Tensor, found: object) -> np.ndarray:
    """Both ends, in standard errors from the mean."""
    return (np.array([found.low, found.high]) - float(values.mean())) / float(values.std() / len(values) ** 0.5)


def same(one: np.ndarray, other: np.ndarray) -> None:
    """Both are drawn: an end of 10,000 resamples has itself a deviation of 0.026 standard errors."""
    if (far := np.abs(one - other).max()) > 0.2:
        raise AssertionError(f"the intervals' ends are {far:.2f} standard errors apart: {one} and {other}")


BENCHMARKS = [
    Benchmark(
        "bootstrap", "scipy.stats.bootstrap", skewed, ours, scipys, ends, same,
        size={"n": 10_000}, small={"n": 100}, target=5.0,
        axes={"n": tuple({"n": n} for n in (100, 1_000, 10_000, 100_000))},
        memory=40.0,  # of 80 kB: what is drawn at once
    ),
]  # fmt: skip
