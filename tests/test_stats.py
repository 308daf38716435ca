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


# ---------------------------------------------------------------- lines, ranks and their resamples


def some(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    return x, 2 * x + 1 + torch.randn(n, generator=generator, dtype=torch.float64)


def test_line_and_correlation_equal_scipys():
    x, y = some()
    found, known = stats.line(x, y), reference.linregress(x.numpy(), y.numpy())
    assert (float(found.slope), float(found.intercept)) == pytest.approx((known.slope, known.intercept))
    assert float(stats.correlation(x, y)) == pytest.approx(known.rvalue)


def test_ranks_equal_scipys_with_ties_and_correlate_as_spearman_does():
    x, y = (part.round() for part in some())
    torch.testing.assert_close(stats.ranks(x), torch.from_numpy(reference.rankdata(x.numpy())))
    known = reference.spearmanr(x.numpy(), y.numpy()).statistic
    assert float(stats.correlation(stats.ranks(x), stats.ranks(y))) == pytest.approx(known)


def test_ranks_of_several_rows_are_those_of_each():
    x = torch.stack([some(20, seed)[0].round() for seed in range(3)])
    counts = torch.randint(0, 4, (3, 20), generator=torch.Generator().manual_seed(1)).double()
    each = [stats.ranks(one, count) for one, count in zip(x, counts, strict=True)]
    torch.testing.assert_close(stats.ranks(x, counts), torch.stack(each))


def test_weights_count_rows():
    x, y = (part.round() for part in some(30))
    counts = torch.randint(0, 4, (5, 30), generator=torch.Generator().manual_seed(1)).double()
    slopes, r, rank = stats.line(x, y, counts).slope, stats.correlation(x, y, counts), stats.ranks(x, counts)
    for i, count in enumerate(counts.long()):
        many_x, many_y = x.repeat_interleave(count), y.repeat_interleave(count)
        assert float(slopes[i]) == pytest.approx(float(stats.line(many_x, many_y).slope))
        assert float(r[i]) == pytest.approx(float(stats.correlation(many_x, many_y)))
        torch.testing.assert_close(rank[i].repeat_interleave(count), stats.ranks(many_x))


def test_regression_equals_statsmodels_and_shares_between_equal_columns():
    import statsmodels.api

    x, y = some()
    columns = torch.stack([torch.ones_like(x), x, x**2], -1)
    counts = torch.randint(0, 4, (2, 60), generator=torch.Generator().manual_seed(1)).double()
    found = stats.regression(columns, y, counts)
    for one, count in zip(found, counts, strict=True):
        known = statsmodels.api.WLS(y.numpy(), columns.numpy(), weights=count.numpy()).fit().params
        torch.testing.assert_close(one, torch.from_numpy(known))
    twice = stats.regression(torch.stack([x, x], -1), 3 * x)
    torch.testing.assert_close(twice, torch.tensor([1.5, 1.5], dtype=torch.float64))


def test_resampled_mean_equals_the_bootstrap():
    values = some(200)[0]
    found = stats.resampled(lambda w: (w @ values) / w.sum(-1), 200, seed=0)
    known = stats.bootstrap(values, seed=1)
    assert found == pytest.approx(known, abs=0.01)
    assert found.n == 200


def test_resampled_slope_equals_scipys_bootstrap():
    x, y = some(100)
    found = stats.resampled(lambda w: stats.line(x, y, w).slope, 100, seed=0)
    known = reference.bootstrap(
        (x.numpy(), y.numpy()), lambda a, b: reference.linregress(a, b).slope, paired=True, vectorized=False,
        method="percentile", rng=np.random.default_rng(0), n_resamples=4_000,
    )  # fmt: skip
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval), abs=0.02)


def test_resampled_does_not_depend_on_how_many_are_computed_at_once(monkeypatch):
    x, y = some(50)
    whole = stats.resampled(lambda w: stats.line(x, y, w).slope, 50, seed=0, resamples=500)
    monkeypatch.setattr(stats, "_WEIGHED", 1_000)
    assert stats.resampled(lambda w: stats.line(x, y, w).slope, 50, seed=0, resamples=500) == pytest.approx(whole)


def test_rows_of_one_group_are_drawn_together():
    values = some(40)[0]
    groups, repeated = torch.arange(40).repeat_interleave(25), values.repeat_interleave(25)
    alone = stats.resampled(lambda w: (w @ values) / w.sum(-1), 40, seed=0)
    grouped = stats.resampled(lambda w: (w @ repeated) / w.sum(-1), groups, seed=0)
    naive = stats.resampled(lambda w: (w @ repeated) / w.sum(-1), 1_000, seed=0)
    assert grouped == pytest.approx(alone, abs=0.02)
    assert grouped.n == 40
    assert naive.high - naive.low < (grouped.high - grouped.low) / 3


def test_resampled_holds_the_truth_as_often_as_it_says():
    def holds(seed):
        x, y = some(60, seed)
        found = stats.resampled(lambda w: stats.line(x, y, w).slope, 60, seed=0, resamples=1_000)
        return found.low <= 2 <= found.high

    assert 0.90 < sum(map(holds, range(300))) / 300 < 0.98


def test_resampled_refuses():
    with pytest.raises(ValueError, match="at least 20 rows or groups, got 5"):
        stats.resampled(lambda w: w.sum(-1), 5, seed=0)
    with pytest.raises(ValueError, match="is not in 10001 of 10001 resamples"):
        stats.resampled(lambda w: w.sum(-1) * math.nan, 30, seed=0)
    with pytest.raises(ValueError, match="level=95"):
        unwrap(stats.resampled)(lambda w: w.sum(-1), 30, seed=0, level=95)


@pytest.mark.parametrize("trials", [1, 10, 2021])
def test_clopper_pearson_equals_scipys(trials):
    successes = torch.tensor([0, trials // 3, trials])
    low, high = stats.clopper_pearson(successes, trials)
    for k, a, b in zip(successes.tolist(), low.tolist(), high.tolist(), strict=True):
        known = reference.binomtest(k, trials).proportion_ci(0.95, method="exact")
        assert (a, b) == pytest.approx((known.low, known.high), abs=1e-12)


def test_clopper_pearson_of_one_number_is_one_interval():
    low, high = stats.clopper_pearson(torch.tensor(5), 10)
    assert low.shape == high.shape == ()
    assert float(low) == pytest.approx(1 - float(high))


def test_clopper_pearson_refuses():
    with pytest.raises(ValueError, match="between 0 and trials=10, got \\[11\\]"):
        stats.clopper_pearson(torch.tensor([11]), 10)
    with pytest.raises(ValueError, match="level=0"):
        stats.clopper_pearson(torch.tensor([1]), 10, level=0.0)
