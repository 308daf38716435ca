"""Intervals: is the difference real. The axis that is averaged over is the last one.

Lines, correlations and ranks take `weights`, one row per resample, so that `resampled` computes a statistic of all
resamples at once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

_SHARED = 16  # resamples that share a draw of row numbers
_DRAWN = 2**18  # row numbers drawn at once
_WEIGHED = 2**21  # weights that a statistic is given at once


class Interval(NamedTuple):
    """A mean and its confidence interval; `n` is the number of values behind it."""

    mean: float
    low: float
    high: float
    n: int


class Line(NamedTuple):
    """A fitted line, one for each row of weights."""

    slope: Float[Tensor, "*R"]
    intercept: Float[Tensor, "*R"]


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


def resampled(
    statistic: Callable[[Float[Tensor, "R N"]], Float[Tensor, " R"]],
    groups: int | Int[Tensor, " N"],
    seed: int,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """A statistic of all rows, with its percentile bootstrap interval.

    `statistic` maps weights (R, N), how often each row is drawn, to R values; its value for weights of 1 is the
    interval's `mean`. `groups` is the number of rows, or the group of each: then whole groups are drawn, for rows that
    are not independent, and `n` counts groups. Raises ValueError for fewer than 20 of them and for a statistic that is
    not a finite number in some resample.

    Reference: Efron, Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13.
    """
    rows = torch.arange(groups) if isinstance(groups, int) else groups.unique(return_inverse=True)[1]
    n = len(rows.unique())
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got level={level}")
    if n < 20:
        raise ValueError(f"resampled wants at least 20 rows or groups, got {n}")
    generator, at_once = torch.Generator().manual_seed(seed), max(1, _WEIGHED // len(rows))
    parts = [statistic(torch.ones(1, len(rows), dtype=torch.float64))]
    for start in range(0, resamples, at_once):
        some = min(at_once, resamples - start)
        picked = torch.randint(n, (some, n), generator=generator) + torch.arange(0, some * n, n)[:, None]
        counts = torch.bincount(picked.flatten(), minlength=some * n).view(some, n)
        parts.append(statistic(counts[:, rows].double()))
    found = torch.cat(parts).double()
    if not found.isfinite().all():
        broken = int((~found.isfinite()).sum())
        raise ValueError(f"the statistic must be a finite number, but is not in {broken} of {len(found)} resamples")
    tail = (1 - level) / 2
    low, high = found[1:].quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(float(found[0]), low, high, n)


def clopper_pearson(
    successes: Shaped[Tensor, "*S"], trials: int, level: float = 0.95
) -> tuple[Float[Tensor, "*S"], Float[Tensor, "*S"]]:
    """Lowest and highest probability that `successes` of `trials` do not exclude: the exact binomial interval.

    Reference: Clopper, Pearson (1934), The Use of Confidence or Fiducial Limits.
    """
    from scipy.stats import beta

    k = successes.double()
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got level={level}")
    if trials < 1 or k.numel() and not (float(k.min()) >= 0 and float(k.max()) <= trials):
        raise ValueError(f"successes must lie between 0 and trials={trials}, got {successes.flatten().tolist()[:5]}")
    tail = (1 - level) / 2
    low = torch.as_tensor(beta.ppf(tail, k.numpy(), (trials - k + 1).numpy())).where(k > 0, 0.0)
    high = torch.as_tensor(beta.ppf(1 - tail, (k + 1).numpy(), (trials - k).numpy())).where(k < trials, 1.0)
    return low, high


def line(x: Float[Tensor, "*#R N"], y: Float[Tensor, "*#R N"], weights: Float[Tensor, "*#R N"] | None = None) -> Line:
    """The least-squares line of `y` over `x`, each row weighted; NaN where all `x` are equal."""
    x, y, w = _weighted(x, y, weights)
    x0, y0 = (w * x).sum(-1), (w * y).sum(-1)
    dx, dy = x - x0[..., None], y - y0[..., None]
    slope = (w * dx * dy).sum(-1) / (w * dx * dx).sum(-1)
    return Line(slope, y0 - slope * x0)


def correlation(
    x: Float[Tensor, "*#R N"], y: Float[Tensor, "*#R N"], weights: Float[Tensor, "*#R N"] | None = None
) -> Float[Tensor, "*R"]:
    """Pearson's correlation, each row weighted; of `ranks` it is Spearman's. NaN where one of both is constant."""
    x, y, w = _weighted(x, y, weights)
    dx, dy = (part - (w * part).sum(-1, keepdim=True) for part in (x, y))
    return (w * dx * dy).sum(-1) / ((w * dx * dx).sum(-1) * (w * dy * dy).sum(-1)).sqrt()


def ranks(x: Float[Tensor, "*#R N"], weights: Float[Tensor, "*#R N"] | None = None) -> Float[Tensor, "*R N"]:
    """Ranks from 1, equal values sharing the mean of theirs, among rows that count `weights` times each."""
    w = torch.ones_like(x, dtype=torch.float64) if weights is None else weights.double()
    before = (x[..., None, :] < x[..., None]).double() + (x[..., None, :] == x[..., None]).double() / 2
    return torch.einsum("...ij,...j->...i", before, w) + 0.5


def regression(
    x: Float[Tensor, "N P"], y: Float[Tensor, " N"], weights: Float[Tensor, "*R N"] | None = None
) -> Float[Tensor, "*R P"]:
    """Least-squares coefficients of `y` on the columns of `x`, each row weighted; no constant is added.

    Columns that depend on each other share their coefficient (the solution of least length).
    """
    w = torch.ones_like(y, dtype=torch.float64) if weights is None else weights.double()
    x, y = x.double(), y.double()
    inverse = torch.linalg.pinv(torch.einsum("...n,np,nq->...pq", w, x, x), hermitian=True)
    return (inverse @ ((w * y) @ x)[..., None])[..., 0]


def _weighted(x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """All in float64, the weights summing to 1."""
    w = torch.ones_like(x, dtype=torch.float64) if weights is None else weights.double()
    return x.double(), y.double(), w / w.sum(-1, keepdim=True)


def _checked(values: Tensor, level: float) -> Tensor:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got level={level}")
    if len(values) == 0 or not values.isfinite().all():
        raise ValueError(f"values must be finite numbers, at least one, got {values.tolist()}")
    return values.double()
