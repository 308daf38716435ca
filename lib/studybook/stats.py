"""Intervals: is the difference real. The axis that is averaged over is the last one."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_SHARED = 16  # resamples that share a draw of row numbers
_DRAWN = 2**18  # row numbers drawn at once


class Interval(NamedTuple):
    """A mean and its confidence interval; `n` is the number of values behind it."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Float[Tensor, " E"], level: float = 0.95) -> Interval:
    """Mean over members and Student's t interval.

    A bootstrap of three to ten members is far too narrow (at five, its 95 % interval holds the truth about 83 % of
    the time), so members get the t interval; `bootstrap` is for many values. One member gives an infinite interval.
    Raises ValueError for NaN, infinity or no values.
    """
    from scipy.stats import t

    values = _checked(values, level)
    n = len(values)
    mean = float(values.mean())
    half = float(t.ppf((1 + level) / 2, n - 1)) * float(values.std()) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half, n)


def difference(a: Float[Tensor, " E"], b: Float[Tensor, " E"], level: float = 0.95) -> Interval:
    """Mean of `a - b`, member by member (same seed, same split), with the interval of the paired differences."""
    if a.shape != b.shape:
        raise ValueError(f"a and b must be paired, got {tuple(a.shape)} and {tuple(b.shape)}")
    return interval(a - b, level)


def bootstrap(values: Float[Tensor, " N"], seed: int, level: float = 0.95, resamples: int = 10_000) -> Interval:
    """Mean and percentile bootstrap interval, for values too skewed for `interval`; wants 20 values or more.

    Every resample is N values drawn with replacement. Sixteen resamples share one draw of row numbers, each through a
    random order of the values of its own, which leaves them all but uncorrelated (about 1 / sqrt(N), of either sign).

    Reference: Efron, Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    values = _checked(values, level)
    if len(values) < 20:
        raise ValueError(f"bootstrap wants at least 20 values, got {len(values)}; for a few members use stats.interval")
    generator, n = torch.Generator().manual_seed(seed), len(values)
    mean = values.mean()
    orders = torch.stack([values[torch.randperm(n, generator=generator)] for _ in range(_SHARED)], -1) - mean
    draws = math.ceil(resamples / _SHARED)
    rows = max(1, _DRAWN // n)
    means = torch.empty(draws, _SHARED, dtype=torch.float64)  # at once: small blocks between large ones fragment memory
    for start in range(0, draws, rows):
        some = min(rows, draws - start)
        picked = torch.randint(n, (some, n), generator=generator) + torch.arange(0, some * n, n)[:, None]
        counts = torch.bincount(picked.flatten(), minlength=some * n).view(some, n)
        means[start : start + some] = counts.double() @ orders / n
    tail = (1 - level) / 2
    ends = mean + means.flatten()[:resamples].quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype))
    return Interval(float(mean), float(ends[0]), float(ends[1]), n)


def _checked(values: Tensor, level: float) -> Tensor:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got level={level}")
    if len(values) == 0 or not values.isfinite().all():
        raise ValueError(f"values must be finite numbers, at least one, got {values.tolist()}")
    return values.double()
