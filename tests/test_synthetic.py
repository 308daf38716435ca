import math
from inspect import unwrap  # what a user calls: without the shape checks of the tests

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

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


# ---------------------------------------------------------------- a linear teacher and student


def problem(n=60, dims=40, outputs=2, seed=0):
    one = synthetic.teacher_student(n, dims, outputs, seed)
    return one, one.x @ one.teacher


def test_inputs_are_standard_normal_and_weights_have_the_papers_variance():
    one = synthetic.teacher_student(2_000, 500, 20, seed=1)
    torch.testing.assert_close(one.x.var(), torch.tensor(1.0).double(), rtol=0, atol=0.01)
    for weights in (one.teacher, one.student):
        assert weights.shape == (500, 20)
        assert float(weights.var()) == pytest.approx(1 / (2 * 500 * 20), rel=0.06)
    cosine = torch.cosine_similarity(one.teacher.flatten(), one.student.flatten(), 0)
    assert abs(float(cosine)) < 0.04


def test_problems_with_more_outputs_share_their_inputs():
    one, other = (synthetic.teacher_student(30, 8, outputs, seed=5) for outputs in (1, 3))
    assert torch.equal(one.x, other.x)
    assert not torch.equal(one.x, synthetic.teacher_student(30, 8, 1, seed=6).x)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("n", [60, 25], ids=["more points than dimensions", "fewer"])
def test_solved_descent_equals_ten_thousand_steps(n, weight_decay):
    one, y = problem(n)
    at = (0, 1, 2, 77, 10_000)
    path = synthetic.descent(synthetic.spectrum(one.x), y, one.student, lr=0.3, weight_decay=weight_decay)
    taken = synthetic.stepwise_descent(one.x, y, one.student, lr=0.3, weight_decay=weight_decay, at=at)
    torch.testing.assert_close(path.weights(torch.tensor(at)), taken, rtol=0, atol=1e-8)


def test_a_step_is_that_of_torch_on_the_written_objective():
    one, y = problem()
    w = one.student.clone().requires_grad_()
    objective = (one.x @ w - y).square().mean() + 0.2 / 2 * w.square().sum() / 2  # two outputs
    objective.backward()
    expected = one.student - 0.1 * w.grad
    found = synthetic.stepwise_descent(one.x, y, one.student, lr=0.1, weight_decay=0.2, at=[1])
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("n", [60, 25], ids=["more points than dimensions", "fewer"])
def test_the_limit_is_least_squares_nearest_to_the_start(n):
    one, y = problem(n)
    last = synthetic.descent(synthetic.spectrum(one.x), y, one.student, lr=0.3).weights(torch.tensor([10**9]))[0]
    expected = one.student + torch.linalg.pinv(one.x) @ (y - one.x @ one.student)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-9)


def test_with_weight_decay_the_limit_is_ridge_regression():
    one, y = problem(25)
    path = synthetic.descent(synthetic.spectrum(one.x), y, one.student, lr=0.3, weight_decay=0.4)
    ridge = Ridge(alpha=0.4 / 2 * len(y), fit_intercept=False).fit(one.x.numpy(), y.numpy())
    found = path.weights(torch.tensor([10**7]))[0]
    torch.testing.assert_close(found, torch.from_numpy(ridge.coef_.T.copy()), rtol=0, atol=1e-8)


def test_directions_without_data_have_eigenvalue_zero_and_keep_their_start():
    one, y = problem(25)
    parts = synthetic.spectrum(one.x)
    assert int((parts.values == 0).sum()) == 40 - 25
    torch.testing.assert_close(parts.basis @ parts.values.diag() @ parts.basis.T, one.x.T @ one.x / 25)
    path = synthetic.descent(parts, y, one.student, lr=0.3)
    last = path.modes(torch.tensor([10**6]))[0]
    torch.testing.assert_close(last[:15], (parts.basis.T @ one.student)[:15])


def test_a_learning_rate_past_the_stability_limit_is_refused_with_the_limit():
    one, y = problem()
    parts = synthetic.spectrum(one.x)
    limit = 2 / (float(parts.values[-1]) + 0.05)  # two outputs
    for lr in (limit * 1.0001, 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"stability limit {limit:.6g}, got lr="):
            synthetic.descent(parts, y, one.student, lr=lr, weight_decay=0.1)
    grown, shrunk = (
        synthetic.stepwise_descent(one.x, y, one.student, lr=lr, weight_decay=0.1, at=[5_000])
        for lr in (1.01 * limit, 0.99 * limit)
    )
    assert grown.abs().max() > 1e6 > shrunk.abs().max()


def test_an_impossible_linear_problem_is_refused():
    one, y = problem()
    parts = synthetic.spectrum(one.x)
    with pytest.raises(ValueError, match="must be positive, got n=0, dims=3, outputs=1"):
        synthetic.teacher_student(0, 3, 1, seed=0)
    with pytest.raises(ValueError, match="weight_decay must not be negative, got weight_decay=-1"):
        synthetic.descent(parts, y, one.student, lr=0.1, weight_decay=-1.0)
    with pytest.raises(ValueError, match="x must be finite"):
        synthetic.spectrum(torch.full((3, 2), math.nan))
    for at in ([], [3, 2], [-1, 2], [2, 2]):
        with pytest.raises(ValueError, match="at must be rising numbers of steps"):
            unwrap(synthetic.stepwise_descent)(one.x, y, one.student, lr=0.1, at=at)


RATIOS = (0.05, 0.5, 0.9, 0.95, 0.99, 1.0, 1.05, 2.0, 10.0)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_limiting_law_has_mass_one_and_the_exact_moments(ratio):
    law = synthetic.marchenko_pastur(ratio)
    exact = (1, 1, 1 + ratio, 1 + 3 * ratio + ratio**2, 1 + 6 * ratio + 6 * ratio**2 + ratio**3)
    for k, moment in enumerate(exact):
        assert float(law.weights @ law.values**k) == pytest.approx(moment, rel=1e-10)
    if ratio < 1:  # the mean of 1 / value, which most of all hangs on the lower edge
        assert float(law.weights @ law.values**-1) == pytest.approx(1 / (1 - ratio), rel=1e-10)
        assert float(law.weights @ law.values**-2) == pytest.approx((1 - ratio) ** -3, rel=1e-9)


@pytest.mark.parametrize("rate", [0.5, 5.0])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.0])
def test_the_limiting_law_integrates_as_scipy_does(ratio, rate):
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2

    def weighted(v):
        density = math.sqrt(max((high - v) * (v - low), 0)) / (2 * math.pi * ratio * v)
        return density * math.exp(-rate * v)

    law = synthetic.marchenko_pastur(ratio)
    expected = quad(weighted, low, high, limit=200)[0] + max(0, 1 - 1 / ratio)
    assert float(law.weights @ (-rate * law.values).exp()) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_eigenvalues_of_a_large_sample_follow_the_limiting_law(ratio):
    values = synthetic.spectrum(synthetic.teacher_student(round(800 / ratio), 800, 1, seed=0).x).values
    law = synthetic.marchenko_pastur(ratio)
    for cut in (0.2, 0.6, 1.0, 2.0):
        share = float(law.weights[law.values <= cut].sum())
        assert float((values <= cut).double().mean()) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("ratio", [0.0, -0.5, math.nan, math.inf])
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio must be positive and finite"):
        synthetic.marchenko_pastur(ratio)


def test_a_ratio_too_near_one_for_the_nodes_is_refused_with_their_number():
    with pytest.raises(ValueError, match="too near 1 for 100 nodes; it needs 300"):
        synthetic.marchenko_pastur(math.exp(-0.1), nodes=100)
    assert float(synthetic.marchenko_pastur(math.exp(-0.1), nodes=301).weights.sum()) == pytest.approx(1, abs=1e-10)


# ---------------------------------------------------------------- modular addition


def test_sums_are_right_and_every_pair_is_there_once():
    train, test = synthetic.modular_addition(7, 0.4, seed=3)
    assert (len(train.y), len(test.y)) == (20, 29)
    x, y = torch.cat([train.x, test.x]), torch.cat([train.y, test.y])
    assert x.shape == (49, 14)
    assert torch.equal(x.sum(1), torch.full((49,), 2.0))
    a, b = x[:, :7].argmax(1), x[:, 7:].argmax(1)
    assert sorted((7 * a + b).tolist()) == list(range(49))
    assert torch.equal(y, (a + b) % 7)


def test_the_split_of_sums_depends_on_the_seed_alone():
    one, same, other = (synthetic.modular_addition(11, 0.5, seed)[0].y for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("p", [-3, 0, 1, 2, 9, 96, 97 * 97])
def test_a_modulus_that_is_no_odd_prime_is_refused(p):
    with pytest.raises(ValueError, match=f"p must be an odd prime, got p={p}"):
        synthetic.modular_addition(p, 0.5, seed=0)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 1.5, 0.001, 0.999, math.nan, math.inf])
def test_a_share_that_leaves_a_side_empty_is_refused(share):
    with pytest.raises(ValueError, match="share must leave at least one of the 49 sums on either side"):
        synthetic.modular_addition(7, share, seed=0)
