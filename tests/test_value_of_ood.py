"""The value of out-of-distribution data: closed forms against integration, minimization and simulation."""

import math
import types

import numpy as np
import pytest
import torch
from conftest import method
from scipy import integrate, optimize
from scipy.stats import norm

from studybook import ensemble


@pytest.fixture(scope="module")
def study():
    return types.SimpleNamespace(**method("labels/value-of-ood-data"))


def integrated(bias, variance):
    """Mean error of a random threshold, by quadrature over it; classes at -1 and 1 with deviation 1."""
    deviation = math.sqrt(variance)

    def error(c):
        return (norm.cdf(c - 1) + norm.sf(c + 1)) / 2 * norm.pdf(c, bias, deviation)

    return integrate.quad(error, bias - 10 * deviation, bias + 10 * deviation, epsabs=1e-13)[0]


@pytest.mark.parametrize(("foreign", "shift"), [(0, 0.0), (4, 0.4), (30, 1.5), (7, 0.1)])
def test_exact_error_equals_integration_over_the_threshold(study, foreign, shift):
    total = study.TARGETS + foreign
    assert study.exact_error(foreign, shift) == pytest.approx(integrated(foreign * shift / total, 1 / total), abs=1e-10)


def test_simulation_equals_the_exact_error(study):
    study.measure_discriminant.__globals__["DRAWS"] = 4000
    found = study.measure_discriminant({"shift": 0.4, "seed": 1})["error"]
    exact = study.exact_error(np.array(list(dict.fromkeys(study.counts()))), 0.4)
    np.testing.assert_allclose(found, exact, rtol=0.01)


@pytest.mark.parametrize("shift", [0.25, 0.4, 0.7])
def test_best_and_harmful_numbers_solve_their_equations(study, shift):
    n = study.TARGETS

    def loss(m):
        return (m * shift / (n + m)) ** 2 + 1 / (n + m)

    best = optimize.minimize_scalar(loss, bounds=(0, 1e4), method="bounded", options={"xatol": 1e-9}).x
    assert study.best_foreign(shift) == pytest.approx(best, rel=1e-4)
    assert loss(study.even_foreign(shift)) == pytest.approx(loss(0), rel=1e-12)
    assert study.exact_error(study.exact_even(shift), shift) == pytest.approx(study.exact_error(0, shift), rel=1e-9)


def test_without_a_large_enough_shift_more_is_always_better(study):
    assert math.isinf(study.best_foreign(0.99 / math.sqrt(2 * study.TARGETS)))
    assert math.isinf(study.even_foreign(0.99 / math.sqrt(study.TARGETS)))


def test_the_best_weight_minimizes_bias_squared_plus_variance(study):
    n, m, shift = study.TARGETS, 30, 0.5

    def error(w):
        return (w * shift) ** 2 + (1 - w) ** 2 / n + w**2 / m

    best = optimize.minimize_scalar(error, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).x
    expected = study.threshold_error(best * shift, (1 - best) ** 2 / n + best**2 / m)
    assert study.weighted_error(m, shift) == pytest.approx(float(expected), rel=1e-9)
    assert error(best) == pytest.approx((1 - best) / n, rel=1e-6)


def test_weighted_loss_gives_the_targets_their_share(study):
    logits = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 10
    plain = ensemble.cross_entropy(logits, labels)
    found = study.weighted_loss(logits, study.weighed(labels[:10], labels[10:], 10, 0.7)).mean()
    assert float(found) == pytest.approx(float(0.7 * plain[:10].mean() + 0.3 * plain[10:].mean()), rel=1e-5)


def test_draws_are_disjoint_and_larger_ratios_keep_smaller_ones(study):
    by_class = [torch.arange(400).float().view(-1, 1, 1, 1) + 1000 * c for c in range(2)]
    target, foreign, held = study.drawn(by_class, 5, 4, 0, 3)
    values = [part[0].flatten().tolist() for part in (target, foreign, held)]
    assert [len(part) for part in values] == [10, 40, 100]
    assert len(set(sum(values, []))) == 150
    again = study.drawn(by_class, 5, 2, 0, 3)
    assert again[0][0].equal(target[0])
    assert set(again[1][0].flatten().tolist()) < set(values[1])
    assert target[1].tolist() == [0] * 5 + [1] * 5
