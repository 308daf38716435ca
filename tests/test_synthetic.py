import math
from inspect import unwrap  # what a user calls: without the shape checks of the tests

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from studybook import calibration, synthetic


def test_calibrated_logits_are_calibrated_and_a_temperature_breaks_them():
    logits, labels = synthetic.calibrated(50_000, 10, seed=0)
    right, broken = (calibration.ece(calibration.reliability(z.softmax(-1), labels)) for z in (logits, 3 * logits))
    assert right < 0.01
    assert broken > 0.1


def test_blobs_stand_around_the_same_centers_at_any_size_and_noise():
    small, few = synthetic.blobs(6, 3, 5, 0.0, seed=4)
    large, many = synthetic.blobs(600, 3, 5, 0.0, seed=4)
    for label in range(3):
        torch.testing.assert_close(small[few == label][0], large[many == label][0])
        torch.testing.assert_close(large[many == label][0].norm(), torch.tensor(1.0))


def test_blobs_are_balanced():
    _, labels = synthetic.blobs(99, 3, 5, 0.1, seed=0)
    assert labels.bincount().tolist() == [33, 33, 33]


N = 40_000
PREDICTIVITIES = [(0.7, 0.9), (0.9, 0.9), (0.95, 0.6)]


def within(share, expected, n, deviations=4):
    """Whether a share of n is what chance allows."""
    return abs(share - expected) < deviations * math.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("correlation", [0.6, 0.0, -0.5])
@pytest.mark.parametrize("predictivity", PREDICTIVITIES)
def test_each_latent_alone_is_right_as_often_as_its_predictivity(predictivity, correlation):
    z, y = synthetic.two_latents(N, predictivity, correlation, seed=1)
    for i, rho in enumerate(predictivity):
        assert within(float(((z[:, i] > 0) == (y == 1)).float().mean()), rho, N)
    assert y.bincount().tolist() == [N // 2, N // 2]


@pytest.mark.parametrize("correlation", [0.6, 0.0, -0.5])
def test_latents_have_unit_deviation_and_the_given_correlation_within_a_class(correlation):
    z, y = synthetic.two_latents(N, (0.7, 0.9), correlation, seed=2)
    for label in (0, 1):
        covariance = torch.cov(z[y == label].T)
        expected = torch.tensor([[1, correlation], [correlation, 1]])
        torch.testing.assert_close(covariance, expected, rtol=0, atol=0.04)


@pytest.mark.parametrize("correlation", [0.6, 0.0, -0.5])
@pytest.mark.parametrize("predictivity", PREDICTIVITIES)
def test_the_optimal_classifier_errs_as_the_closed_form_says_and_as_lda_does(predictivity, correlation):
    z, y = synthetic.two_latents(N, predictivity, correlation, seed=3)
    best = synthetic.optimal(predictivity, correlation)
    assert within(float(((z @ best.weights > 0) != (y == 1)).float().mean()), best.error, N)
    fitted = LinearDiscriminantAnalysis().fit(z.numpy(), y.numpy())
    assert abs(1 - fitted.score(z.numpy(), y.numpy()) - best.error) < 0.01
    cosine = fitted.coef_[0] @ best.weights.numpy() / np.linalg.norm(fitted.coef_) / best.weights.norm().item()
    assert cosine > 0.995


def test_without_correlation_the_optimal_error_is_that_of_the_joined_distance():
    means = norm.ppf([0.8, 0.9])  # predictivity is the normal distribution of the mean
    assert synthetic.optimal((0.8, 0.9), 0.0).error == pytest.approx(norm.cdf(-np.hypot(*means)), rel=1e-6)
    torch.testing.assert_close(synthetic.optimal((0.8, 0.9), 0.0).weights, torch.tensor(means).float())


def test_a_weak_latent_is_used_against_its_sign_when_it_shares_the_noise_of_the_other():
    assert synthetic.optimal((0.6, 0.9), 0.6).weights[0] < 0 < synthetic.optimal((0.6, 0.9), 0.0).weights[0]


def test_noise_and_labels_do_not_depend_on_predictivity():
    (a, y), (b, same) = (synthetic.two_latents(50, (rho, 0.9), 0.3, seed=5) for rho in (0.6, 0.9))
    assert torch.equal(y, same)
    torch.testing.assert_close(a[:, 1], b[:, 1])
    apart = (a[:, 0] - b[:, 0]) * (1 - 2 * y)
    torch.testing.assert_close(apart, torch.full((50,), float(norm.ppf(0.9) - norm.ppf(0.6))), rtol=0, atol=1e-5)


def test_an_embedding_is_linear_with_the_given_amplification_along_fixed_directions():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [1.0, 1.0]])
    x = synthetic.embedding(z, (4.0, 0.5), dims=30, seed=3)
    torch.testing.assert_close(x[0].norm(), torch.tensor(4.0))
    torch.testing.assert_close(x[1].norm(), torch.tensor(0.5))
    torch.testing.assert_close(x[2], -2 * x[0])
    torch.testing.assert_close(x[3], x[0] + x[1])
    louder = synthetic.embedding(z, (8.0, 0.5), dims=30, seed=3)
    torch.testing.assert_close(louder[0], 2 * x[0])
    torch.testing.assert_close(louder[1], x[1])
    assert (synthetic.embedding(z, (4.0, 0.5), dims=30, seed=4) - x).abs().max() > 0.1


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_each_nested_layer_closes_the_angle_between_the_sides_as_the_arc_cosine_kernel_says(depth):
    expected = -1.0  # cosine between the sides
    for _ in range(depth):
        expected = (math.sqrt(1 - expected**2) + (math.pi - math.acos(expected)) * expected) / math.pi
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    cosines, lengths = [], []
    for seed in range(20):
        up, down = synthetic.embedding(z, (1.0, 1.0), dims=500, seed=seed, nesting=(depth, 0))
        cosines.append(float(torch.cosine_similarity(up, down, 0)))
        lengths.append(float((up.square().sum() + down.square().sum()) / 2))
    assert np.mean(cosines) == pytest.approx(expected, abs=0.04)
    assert lengths == pytest.approx([1.0] * 20, rel=1e-4)


def test_nesting_one_latent_leaves_the_other_alone():
    z = torch.tensor([[0.7, 0.0], [-0.4, 0.0], [0.0, 0.6]])
    plain, nested = (synthetic.embedding(z, (1.0, 1.0), 40, 9, nesting=(0, k)) for k in (0, 2))
    torch.testing.assert_close(plain[:2], nested[:2])
    assert (plain[2] - nested[2]).abs().max() > 0.05


@pytest.mark.parametrize("rho", [0.5, 1.0, 0.2, math.nan])
def test_a_predictivity_that_is_none_is_refused(rho):
    with pytest.raises(ValueError, match="predictivity must be between 0.5 and 1 for both latents"):
        synthetic.two_latents(10, (rho, 0.9), 0.5, seed=0)
    with pytest.raises(ValueError, match="predictivity must be between 0.5 and 1"):
        synthetic.optimal((0.9, rho), 0.5)


@pytest.mark.parametrize("correlation", [1.0, -1.0, 1.5, math.nan])
def test_a_correlation_that_is_none_is_refused(correlation):
    with pytest.raises(ValueError, match="correlation must be between -1 and 1"):
        synthetic.two_latents(10, (0.8, 0.9), correlation, seed=0)


def test_an_impossible_embedding_is_refused():
    embedding, z = unwrap(synthetic.embedding), torch.zeros(3, 2)
    for availability in ((0.0, 1.0), (1.0, -1.0), (math.inf, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="availability must be positive and finite"):
            embedding(z, availability, 10, 0)
    with pytest.raises(ValueError, match="nesting must be 0 or more and dims 2 or more, got nesting=\\(-1, 0\\)"):
        embedding(z, (1.0, 1.0), 10, 0, (-1, 0))
