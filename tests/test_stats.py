import math
from inspect import unwrap  # what a user calls: without the shape checks of the tests

import numpy as np
import pytest
import torch
from scipy import stats as reference

from studybook import stats


def test_interval_equals_scipys():
    values = torch.tensor([0.1, 0.4, 0.2, 0.5], dtype=torch.float64)
    found = stats.interval(values)
    low, high = reference.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.n == 4


def covered(interval, n, trials):
    draws = torch.distributions.Exponential(1.0)
    torch.manual_seed(0)
    found = [interval(draws.sample((n,)).log()) for _ in range(trials)]
    return sum(i.low <= -0.5772157 <= i.high for i in found) / trials  # the mean of log(exponential) is -gamma


def test_the_t_interval_of_five_members_holds_the_truth_as_often_as_it_says():
    assert 0.91 < covered(stats.interval, 5, 1_000) < 0.98


def test_the_bootstrap_of_sixty_values_holds_the_truth_as_often_as_it_says():
    assert 0.90 < covered(lambda x: stats.bootstrap(x, 0, resamples=1_000), 60, 400) < 0.98


def test_difference_is_paired():
    noise = torch.tensor([5.0, -3.0, 2.0, 0.0])
    found = stats.difference(noise + torch.tensor([1.0, 1.1, 0.9, 1.0]), noise)
    assert 0.8 < found.low < found.high < 1.2
    with pytest.raises(ValueError, match="must be paired"):
        unwrap(stats.difference)(noise, noise[:3])


def test_one_member_gives_an_interval_without_ends():
    found = stats.interval(torch.tensor([2.0]))
    assert (found.mean, found.low, found.high) == (2.0, -math.inf, math.inf)


def test_the_bootstrap_is_the_same_for_the_same_seed():
    values = torch.linspace(0, 1, 40)
    assert stats.bootstrap(values, 3, resamples=200) == stats.bootstrap(values, 3, resamples=200)


@pytest.mark.parametrize("n", [25, 400, 3_000])
def test_the_bootstrap_has_the_ends_of_scipys(n):
    values = -torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).log()
    found = [stats.bootstrap(values, seed) for seed in range(5)]
    theirs = reference.bootstrap(
        (values.numpy(),), np.mean, n_resamples=50_000, method="percentile", batch=1_000, rng=1
    )
    error = float(values.std()) / math.sqrt(n)
    for ours, end in (("low", theirs.confidence_interval.low), ("high", theirs.confidence_interval.high)):
        mean = sum(getattr(one, ours) for one in found) / len(found)
        assert mean == pytest.approx(end, abs=0.05 * error)


def test_resamples_that_share_a_draw_do_not_make_the_ends_less_sure():
    # The ends' own spread over seeds is that of 2,000 unrelated resamples, drawn here by numpy, not of 125.
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = np.array([stats.bootstrap(values, seed, resamples=2_000).high for seed in range(150)])
    rng = np.random.default_rng(0)
    plain = np.array([np.quantile(rng.choice(values, (2_000, 200)).mean(1), 0.975) for _ in range(150)])
    assert ours.mean() == pytest.approx(plain.mean(), abs=6 * plain.std() / math.sqrt(75))
    assert 0.7 < ours.std() / plain.std() < 1.4  # four standard errors; 125 would give 4


def test_bad_values_are_refused_in_words():
    with pytest.raises(ValueError, match="must be finite numbers"):
        stats.interval(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="level must be between 0 and 1, got level=95.0"):
        stats.interval(torch.ones(3), level=95.0)
    with pytest.raises(ValueError, match="at least 20 values, got 3"):
        stats.bootstrap(torch.ones(3), 0)
