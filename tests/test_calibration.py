import math
from inspect import unwrap  # what a user calls: without the shape checks of the tests

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from netcal.binning import HistogramBinning, IsotonicRegression
from netcal.metrics import ECE
from scipy.special import betaln
from sklearn.linear_model import LogisticRegression

from studybook import calibration, metrics, synthetic


@pytest.fixture(scope="module")
def overconfident():
    """Logits three times too large, with the labels they were made for."""
    logits, labels = synthetic.calibrated(3_000, 4, seed=5)
    return 3 * logits, labels


# ---------------------------------------------------------------- measures


def four_predictions():
    """Two predictions at 0.55, one of them right; two at 0.95, both right."""
    probs = torch.tensor([[0.55, 0.45], [0.55, 0.45], [0.05, 0.95], [0.05, 0.95]])
    return probs, torch.tensor([0, 1, 1, 1])


def test_reliability_of_four_predictions_worked_out_by_hand():
    bins = calibration.reliability(*four_predictions(), bins=10)
    assert bins.count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    torch.testing.assert_close(bins.accuracy[[5, 9]], torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(bins.confidence[[5, 9]], torch.tensor([0.55, 0.95]))
    assert calibration.ece(bins).item() == pytest.approx(0.05)
    assert calibration.mce(bins).item() == pytest.approx(0.05)


def test_equal_mass_bins_of_five_predictions_hold_three_and_two():
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.7, 0.95])
    probs = torch.stack([confidence, 1 - confidence], -1)
    bins = calibration.equal_mass(probs, torch.tensor([0, 0, 1, 0, 0]), bins=2)
    assert bins.count.tolist() == [3, 2]
    torch.testing.assert_close(bins.confidence, torch.tensor([0.7, 0.925]))
    torch.testing.assert_close(bins.accuracy, torch.tensor([2 / 3, 1.0]))


@pytest.mark.parametrize("bins", [1, 10, 15, 20])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_ece_equals_torchmetrics_and_netcal(bins, scale):
    logits, labels = synthetic.calibrated(4_000, 6, seed=1)
    probs = (scale * logits.double()).softmax(-1)
    ours = calibration.ece(calibration.reliability(probs, labels, bins)).item()
    assert ours == pytest.approx(reference.multiclass_calibration_error(probs, labels, 6, bins).item(), abs=1e-6)
    assert ours == pytest.approx(ECE(bins).measure(probs.numpy(), labels.numpy()), abs=1e-6)


def test_mce_equals_torchmetrics(overconfident):
    logits, labels = overconfident
    probs = logits.double().softmax(-1)
    ours = calibration.mce(calibration.reliability(probs, labels)).item()
    assert ours == pytest.approx(reference.multiclass_calibration_error(probs, labels, 4, 15, "max").item(), abs=1e-6)


def test_a_confidence_on_an_edge_counts_to_the_lower_bin_where_torchmetrics_counts_it_to_the_upper():
    # The paper's bins are closed on the right. At 0.5 and 0.75, edges of four bins, the two libraries differ; the
    # mean confidence and accuracy of the merged bins, and so the ECE, differ with them.
    probs = torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.75, 0.25], [0.9, 0.1]], dtype=torch.float64)
    labels = torch.tensor([1, 0, 1, 0])
    bins = calibration.reliability(probs, labels, bins=4)
    assert bins.count.tolist() == [0, 1, 2, 1]
    assert calibration.ece(bins).item() == pytest.approx((0.5 + 2 * abs(0.5 - 0.675) + 0.1) / 4)
    theirs = reference.multiclass_calibration_error(probs, labels, 2, 4).item()
    assert theirs == pytest.approx((2 * abs(0.5 - 0.55) + 2 * abs(0.5 - 0.825)) / 4)


def test_classwise_ece_equals_a_loop_over_classes_and_bins(overconfident):
    logits, labels = overconfident
    probs = logits[:200].softmax(-1).double().numpy()
    total = 0.0
    for c in range(4):
        cell = np.ceil(probs[:, c] * 15).clip(1)
        for b in range(1, 16):
            inside = cell == b
            if inside.any():
                gap = np.mean(labels[:200].numpy()[inside] == c) - probs[inside, c].mean()
                total += inside.mean() * abs(gap) / 4
    assert calibration.classwise_ece(torch.from_numpy(probs), labels[:200]).item() == pytest.approx(total, abs=1e-9)


def test_measures_of_a_member_do_not_depend_on_its_company(overconfident):
    logits, labels = overconfident
    probs = torch.stack([logits, logits / 3, -logits]).softmax(-1)
    for measure in (
        lambda p: calibration.ece(calibration.reliability(p, labels)),
        lambda p: calibration.ece(calibration.equal_mass(p, labels)),
        lambda p: calibration.mce(calibration.reliability(p, labels)),
        lambda p: calibration.classwise_ece(p, labels),
    ):
        torch.testing.assert_close(measure(probs)[1], measure(probs[1]))


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(60)), st.permutations(range(4)))
def test_order_of_examples_and_names_of_classes_do_not_matter(rows, classes):
    logits, labels = synthetic.calibrated(60, 4, seed=3)
    rows, classes = torch.tensor(rows), torch.tensor(classes)
    probs, renamed = (2 * logits).softmax(-1), classes.argsort()[labels[rows]]
    moved = probs[rows][:, classes]
    for measure in (
        lambda p, y: calibration.ece(calibration.reliability(p, y)),
        lambda p, y: calibration.ece(calibration.equal_mass(p, y)),
        calibration.classwise_ece,
    ):
        torch.testing.assert_close(measure(moved, renamed), measure(probs, labels))


def test_one_bin_is_the_gap_between_mean_confidence_and_accuracy(overconfident):
    logits, labels = overconfident
    probs = logits.softmax(-1)
    gap = (probs.amax(-1).mean() - metrics.accuracy(probs, labels)).abs()
    torch.testing.assert_close(calibration.ece(calibration.reliability(probs, labels, bins=1)), gap)


def test_certainty_falls_into_the_last_bin_and_empty_bins_cost_nothing():
    bins = calibration.reliability(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([0, 1]))
    assert bins.count.tolist() == [0] * 14 + [2]
    assert calibration.ece(bins).item() == pytest.approx(0.5)


def test_more_equal_mass_bins_than_examples_leave_some_empty():
    bins = calibration.equal_mass(*four_predictions(), bins=6)
    assert bins.count.tolist() == [1, 1, 1, 1, 0, 0]


def test_measures_refuse_logits_and_no_bins(overconfident):
    logits, labels = overconfident
    with pytest.raises(ValueError, match="reliability: rows of probs .* for logits pass logits.softmax"):
        calibration.reliability(logits, labels)
    with pytest.raises(ValueError, match="bins must be at least 1, got bins=0"):
        calibration.reliability(logits.softmax(-1), labels, bins=0)


# ---------------------------------------------------------------- repairs


def assert_scores_are_those_of_their_own_functions(probs, labels, bins):
    found = calibration.scores(probs, labels, bins)
    expected = calibration.reliability(probs, labels, bins)
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found.bins, expected, **close)
    torch.testing.assert_close(found.accuracy, metrics.accuracy(probs, labels), **close)
    torch.testing.assert_close(found.nll, metrics.nll(probs.log(), labels), **close)
    torch.testing.assert_close(found.brier, metrics.brier(probs, labels), **close)
    torch.testing.assert_close(found.classwise_ece, calibration.classwise_ece(probs, labels, bins), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_scores_in_one_pass_are_those_of_their_own_functions(bins, dtype, monkeypatch):
    logits, labels = synthetic.calibrated(2_000, 5, seed=3)
    probs = (torch.tensor([0.5, 1.0, 4.0], dtype=dtype)[:, None, None] * logits.to(dtype)).softmax(-1)
    assert_scores_are_those_of_their_own_functions(probs, labels, bins)
    assert_scores_are_those_of_their_own_functions(probs[0], labels, bins)
    monkeypatch.setattr(calibration, "_BLOCK", 999)  # blocks of 199 rows, and a shorter one
    assert_scores_are_those_of_their_own_functions(probs, labels, bins)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", range(2, 31))
def test_scores_put_probabilities_on_and_beside_every_edge_into_the_bins_of_reliability(bins, dtype):
    edges = torch.linspace(0, 1, bins + 1, dtype=dtype)
    near = torch.stack([edges, torch.nextafter(edges, edges - 1), torch.nextafter(edges, edges + 1)])
    votes = torch.arange(bins + 1, dtype=dtype) / bins  # not always the same number as linspace gives
    first = torch.cat([near.flatten(), votes]).clamp(0, 1)
    probs = torch.stack([first, 1 - first], -1)
    labels = torch.arange(len(first)) % 2
    found, expected = calibration.scores(probs, labels, bins), calibration.reliability(probs, labels, bins)
    assert found.bins.count.tolist() == expected.count.tolist()
    torch.testing.assert_close(found.classwise_ece, calibration.classwise_ece(probs, labels, bins))


def test_scores_of_members_with_labels_of_their_own_and_of_a_class_that_ties():
    probs = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.2, 0.8], [1.0, 0.0]]])
    found = calibration.scores(probs, torch.tensor([[0, 1], [1, 1]]))
    assert found.accuracy.tolist() == [0.5, 0.5]  # of equal probabilities the first class counts
    assert found.nll[1].isinf()


@pytest.mark.parametrize(
    ("probs", "labels", "words"),
    [
        (torch.full((3, 2), 0.5), torch.zeros(2).long(), "got 3 and 2"),
        (torch.full((3, 2), math.nan), torch.zeros(3).long(), "got NaN"),
        (torch.full((3, 2), 0.7), torch.zeros(3).long(), "sum to 1; for logits pass"),
        (torch.tensor([[1.2, -0.2]]), torch.tensor([0]), "must be 0 or more"),
        (torch.full((3, 2), 0.5), torch.tensor([0, 1, 2]), r"labels must be in \[0, 2\), got 0 to 2"),
    ],
)
def test_scores_refuse_what_their_own_functions_refuse(probs, labels, words):
    with pytest.raises(ValueError, match=words):
        unwrap(calibration.scores)(probs, labels)


def test_fit_temperature_finds_the_temperature_the_logits_were_made_with():
    logits, labels = synthetic.calibrated(n=20_000, classes=10, seed=0)
    true = torch.tensor([0.25, 1.0, 4.0, 20.0])
    found = calibration.fit_temperature(true[:, None, None] * logits, labels)
    torch.testing.assert_close(found, true, rtol=0.02, atol=0.0)


def test_no_other_temperature_has_a_lower_nll(overconfident):
    logits, labels = overconfident
    T = calibration.fit_temperature(logits.double(), labels)
    best = metrics.nll(logits.double() / T, labels)
    for factor in (0.999, 1.001):
        assert metrics.nll(logits.double() / (factor * T), labels) > best


def test_a_temperature_scales_with_the_logits_and_ignores_their_offset(overconfident):
    logits, labels = overconfident
    T = calibration.fit_temperature(logits, labels)
    torch.testing.assert_close(calibration.fit_temperature(5 * logits, labels), 5 * T, rtol=1e-5, atol=0)
    shifted = logits + torch.randn(len(logits), 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(calibration.fit_temperature(shifted, labels), T, rtol=1e-4, atol=0)


def test_a_temperature_of_a_member_does_not_depend_on_its_company(overconfident):
    logits, labels = overconfident
    crowd = calibration.fit_temperature(torch.stack([logits, 7 * logits, -logits]), labels)
    torch.testing.assert_close(crowd[0], calibration.fit_temperature(logits, labels))


def test_logits_that_are_always_right_or_know_nothing_give_the_ends_of_the_range():
    labels = torch.arange(40) % 4
    right = torch.nn.functional.one_hot(labels, 4).float()
    assert calibration.fit_temperature(right, labels).item() == pytest.approx(1e-3, rel=1e-3)
    assert calibration.fit_temperature(-right, labels).item() == pytest.approx(1e3, rel=1e-3)


def test_temperatures_equal_those_of_a_bounded_search_over_a_wide_range_of_scales():
    from scipy.optimize import minimize_scalar

    logits, labels = synthetic.calibrated(500, 3, seed=9)
    many = torch.logspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None, None] * logits.double()
    found = calibration.fit_temperature(many, labels)
    for own, t in zip(many, found.tolist(), strict=True):
        best = minimize_scalar(lambda s, z=own: metrics.nll(z * math.exp(-s), labels).item(), bounds=(-6.9, 6.9))
        assert t == pytest.approx(math.exp(best.x), rel=1e-4)
    torch.testing.assert_close(calibration.fit_temperature(many.float(), labels), found.float(), rtol=1e-5, atol=0)


def test_a_temperature_does_not_depend_on_how_many_rows_are_looked_at_together(overconfident, monkeypatch):
    logits, labels = overconfident
    expected = calibration.fit_temperature(torch.stack([logits, 2 * logits]), labels)
    monkeypatch.setattr(calibration, "_LARGE_BLOCK", 1_000)
    torch.testing.assert_close(calibration.fit_temperature(torch.stack([logits, 2 * logits]), labels), expected)


def test_a_temperature_is_as_accurate_when_most_examples_are_looked_at_once_only():
    logits, labels = synthetic.calibrated(n=20_000, classes=100, seed=3)
    many = torch.tensor([0.5, 1.0, 2.5])[:, None, None] * logits
    T = calibration.fit_temperature(many, labels)
    for z, t in zip(many.double(), T.double(), strict=True):
        probs = (z / t).softmax(-1)
        mean = (probs * z).sum(-1)
        slope = (mean - z.gather(-1, labels[:, None])[:, 0]).mean()
        curvature = ((probs * z.square()).sum(-1) - mean.square()).mean()
        assert abs(slope / curvature * t) < 1e-6  # how far 1 / T is off, relative to itself


def test_infinite_logits_have_no_temperature(overconfident):
    logits, labels = overconfident
    logits = logits.clone()
    logits[3, 1] = -math.inf
    with pytest.raises(ValueError, match="logits must be finite, got infinity"):
        calibration.fit_temperature(logits, labels)


def test_temperature_scaling_keeps_every_prediction(overconfident):
    logits, labels = overconfident
    T = calibration.fit_temperature(logits, labels)
    assert torch.equal((logits / T).argmax(-1), logits.argmax(-1))


def test_matrix_scaling_reaches_the_optimum_that_logistic_regression_finds(overconfident):
    logits, labels = overconfident
    fitted = calibration.fit_matrix(logits.double(), labels)
    ours = metrics.nll(calibration.affine(logits.double(), fitted), labels).item()
    free = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5_000).fit(logits.double().numpy(), labels.numpy())
    theirs = metrics.nll(torch.from_numpy(free.predict_log_proba(logits.double().numpy())), labels).item()
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_vector_scaling_finds_weights_and_biases_the_logits_were_made_with():
    logits, labels = synthetic.calibrated(40_000, 4, seed=9)
    weight, bias = torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.tensor([0.3, -0.3, 0.6, -0.6])
    fitted = calibration.fit_vector((logits - bias) / weight, labels)
    torch.testing.assert_close(fitted.weight.diagonal(), weight, rtol=0.05, atol=0)
    torch.testing.assert_close(fitted.bias - fitted.bias.mean(), bias - bias.mean(), rtol=0, atol=0.05)
    assert fitted.weight.count_nonzero() == 4


def test_richer_scaling_never_fits_its_own_data_worse(overconfident):
    logits, labels = overconfident
    T = calibration.fit_temperature(logits, labels)
    losses = [
        metrics.nll(logits / T, labels),
        metrics.nll(calibration.affine(logits, calibration.fit_vector(logits, labels)), labels),
        metrics.nll(calibration.affine(logits, calibration.fit_matrix(logits, labels)), labels),
    ]
    assert losses[0] + 1e-6 > losses[1]
    assert losses[1] + 1e-6 > losses[2]


def test_scaling_of_logits_that_span_fewer_dimensions_than_classes_stays_finite(overconfident):
    logits, labels = overconfident
    flat = logits - logits.mean(-1, keepdim=True)
    fitted = calibration.fit_matrix(flat, labels)
    assert fitted.weight.isfinite().all()
    assert metrics.nll(calibration.affine(flat, fitted), labels) <= metrics.nll(flat, labels)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(calibration.histogram, HistogramBinning(15)), (calibration.isotonic, IsotonicRegression())]
)
def test_binning_repairs_equal_netcal(overconfident, ours, theirs):
    logits, labels = overconfident
    probs = logits.double().softmax(-1)
    held, new = probs[:1000], probs[1000:]
    theirs.fit(held.numpy(), labels[:1000].numpy())
    expected = torch.from_numpy(theirs.transform(new.numpy()))
    torch.testing.assert_close(ours(held, labels[:1000], new), expected, rtol=0, atol=1e-6)


def test_bbq_equals_a_loop_over_its_formula():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=64)
    y = (rng.uniform(size=64) < p**2).astype(int)
    order = np.argsort(p)
    scores, values = [], []
    for bins in range(1, 41):  # 64^(1/3) = 4: from 4 / 10 to 4 * 10 bins
        edges = [0.0]
        edges += [(p[order[i * 64 // bins - 1]] + p[order[i * 64 // bins]]) / 2 for i in range(1, bins)] + [1.0]
        score, value = 0.0, 0.0
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            inside = (p > low) & (p <= high)
            a, b = 2 / bins * (low + high) / 2, 2 / bins * (1 - (low + high) / 2)
            hits, n = y[inside].sum(), inside.sum()
            score += betaln(a + hits, b + n - hits) - betaln(a, b)
            value += (a + hits) / (a + b + n) if low < 0.42 <= high else 0.0
        scores.append(score)
        values.append(value)
    weights = np.exp(np.array(scores) - max(scores))
    expected = weights @ values / weights.sum()
    found = calibration._bbq(p, y.astype(float), np.array([0.42]))[0]
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("repair", [calibration.histogram, calibration.isotonic, calibration.bbq])
def test_repairs_of_probabilities_mend_and_give_probabilities(overconfident, repair):
    logits, labels = overconfident
    probs = logits.softmax(-1)
    mended = repair(probs[:1500], labels[:1500], probs[1500:])
    before, after = (calibration.ece(calibration.reliability(p, labels[1500:])) for p in (probs[1500:], mended))
    torch.testing.assert_close(mended.sum(-1), torch.ones(1500))
    assert after < before / 2


@pytest.mark.parametrize("repair", [calibration.histogram, calibration.isotonic, calibration.bbq])
def test_a_repair_of_a_member_does_not_depend_on_its_company(overconfident, repair):
    logits, labels = overconfident
    crowd = torch.stack([logits, -logits])[:, :400].softmax(-1)
    together = repair(crowd[:, :200], labels[:200], crowd[:, 200:])
    torch.testing.assert_close(together[1], repair(crowd[1, :200], labels[:200], crowd[1, 200:]))


def test_affine_fits_of_a_member_do_not_depend_on_its_company(overconfident):
    logits, labels = overconfident
    crowd = torch.stack([logits, -logits])[:, :400]
    together, alone = (calibration.fit_vector(x, labels[:400]) for x in (crowd, crowd[1]))
    torch.testing.assert_close(together.weight[1], alone.weight)


def test_repairs_refuse_nan_and_labels_out_of_range(overconfident):
    logits, labels = overconfident
    with pytest.raises(ValueError, match="got NaN"):
        calibration.fit_temperature(logits * math.nan, labels)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\)"):
        calibration.fit_matrix(logits, labels + 1)
