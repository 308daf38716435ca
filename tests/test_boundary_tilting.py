"""The method of the study of boundary tilting, against independent computations."""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT, method
from scipy.optimize import minimize
from scipy.stats import norm
from torch import nn

from studybook import data, studies

STUDY = "robustness/boundary-tilting"


@pytest.fixture(scope="module")
def study():
    return method(STUDY)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def classes(study, generator):
    x, y = study["both"](generator.normal(1, 1, (60, 5)), generator.normal(-1, 2, (60, 5)))
    return x, y


def test_the_mean_signed_distance_of_balanced_classes_is_the_closed_form_for_any_classifier(study, classes, generator):
    x, y = classes
    _, half, z = study["centroids"](x[y > 0], x[y < 0])
    for _ in range(5):
        w, bias = generator.normal(size=5), generator.normal()
        w /= np.linalg.norm(w)
        assert study["margins"](w, bias, x, y).mean() == pytest.approx(half * (w @ z), abs=1e-12)


def test_unbalanced_classes_are_weighed_alike(study):
    assert study["balanced"](np.array([1.0, 3.0, 10.0]), np.array([1, 1, -1])) == pytest.approx(6)


def test_the_svm_is_the_minimum_that_scipy_finds(study, classes):
    x, y = classes
    w, bias, _ = study["svm"](x, y, 10.0)

    def objective(v):
        short = np.maximum(0, 1 - y * (x @ v[:5] + v[5]))
        return 0.5 * (v**2).sum() + 0.1 * (short**2).sum()

    best = minimize(objective, np.zeros(6), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(w, best[:5] / np.linalg.norm(best[:5]), atol=1e-3)
    assert bias == pytest.approx(best[5] / np.linalg.norm(best[:5]), abs=1e-3)


def test_a_strong_penalty_gives_the_nearest_centroid_classifier(study, classes):
    x, y = classes
    middle, _, z = study["centroids"](x[y > 0], x[y < 0])
    w, bias, _ = study["svm"](x - middle, y, 1e7)
    assert w @ z == pytest.approx(1, abs=1e-6)
    nearest = np.linalg.norm(x - x[y < 0].mean(0), axis=1) - np.linalg.norm(x - x[y > 0].mean(0), axis=1)
    assert (np.sign(nearest) == np.sign((x - middle) @ w + bias)).all()


def test_a_tilt_keeps_unit_weights_and_has_the_angle_that_was_asked_for(study):
    w, bias = study["tilted"](np.array([1.0, 0, 0]), 2.0, np.array([0, 1.0, 0]), math.sqrt(3))
    np.testing.assert_allclose(w, [0.5, math.sqrt(3) / 2, 0])
    assert bias == pytest.approx(1)


def test_the_error_after_a_tilt_is_that_of_simulated_images(study, generator):
    margin = generator.normal(1, 0.5, 200_000)
    side = 0.2 + 0.3 * generator.standard_normal(len(margin))
    for tangent in (0.0, 0.5, 2.0, 30.0):
        counted = (margin + tangent * side < 0).mean()
        assert study["tilted_error"](margin, tangent, 0.3, 0.2) == pytest.approx(counted, abs=0.004)


def test_with_the_images_own_law_the_error_is_that_of_all_pairs_of_margins_and_sides(study, generator):
    margin, sides = generator.normal(1, 1, 50), generator.standard_t(2, 70)
    pairs = (margin[:, None] + 3.0 * sides < 0).mean()
    assert study["law_error"](margin, 3.0, sides) == pytest.approx(pairs)


def test_a_constant_direction_changes_no_decision(study):
    margin = np.array([-1.0, 0.1, 2.0, 3.0])
    assert study["tilted_error"](margin, 1e6, 0.0, 0.0) == pytest.approx(0.25)


@pytest.mark.parametrize("tangent", [0.0, 1.0, 15.0])
def test_the_exact_error_of_generated_data_is_the_general_one_of_two_normal_classes(study, tangent):
    w = np.array([1.0, tangent])
    for spread in (0.01, 1.0):
        error = norm.cdf(-w[0] * study["HALF"] / math.sqrt(w @ np.diag([1, spread**2]) @ w))
        found = study["exact_tilt"](tangent, spread)
        np.testing.assert_allclose(found, (error, study["HALF"] / np.linalg.norm(w)))


def test_generated_data_have_the_deviations_and_centroids_they_are_made_with(study, generator):
    x, y = study["generated"]("low", 20_000, generator)
    np.testing.assert_allclose(x[y > 0].mean(0)[[0, 1, -1]], [study["HALF"], 0, 0], atol=0.05)
    spread = study["within"](x, y).std(0)
    np.testing.assert_allclose(spread[[0, study["DIMS"] // 2 - 1]], 1, rtol=0.05)
    np.testing.assert_allclose(spread[study["DIMS"] // 2 :], study["LOW"], rtol=0.05)


def test_directions_have_the_deviations_that_were_asked_for(study, generator):
    names = dict(study)
    scale = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 2.0])
    x, y = study["both"](*(generator.standard_normal((4000, 6)) * scale + shift for shift in (0.5, -0.5)))
    names["directions"].__globals__["spreads"] = [0.01, 0.03, 0.1, 0.3]
    found = names["directions"](x, y)
    np.testing.assert_allclose(abs(np.array(found)), np.eye(6), atol=0.02)


def network(w1, b1, w2, b2):
    net = nn.Sequential(nn.Flatten(), nn.Linear(*w1.shape[::-1]), nn.ReLU(), nn.Linear(len(w2), 1))
    with torch.no_grad():
        for p, value in zip(net.parameters(), (w1, b1, w2[None], b2), strict=True):
            p.copy_(value)
    return net


def test_deepfool_finds_the_foot_on_the_boundary_of_a_network_that_is_linear(study):
    w = torch.tensor([3.0, 4.0])
    net = network(torch.stack([w, -w]), torch.zeros(2), torch.tensor([1.0, -1.0]), torch.tensor([1.0]))
    x = torch.tensor([[2.0, 1.0], [-1.0, 0.5], [0.0, -3.0]]).double()
    moved, gradient, sign, changed = study["foot"](net, x)
    assert changed.all()
    torch.testing.assert_close(moved, (x @ w.double() + 1).abs() / 5, rtol=2e-3, atol=0)
    torch.testing.assert_close(gradient, w.double().expand(3, 2))
    torch.testing.assert_close(sign, (x @ w.double() + 1).sign())


def test_deepfool_is_near_the_distance_that_a_fine_grid_finds_and_never_below_it(study):
    g = torch.Generator().manual_seed(3)
    net = network(*(torch.randn(*size, generator=g) for size in ((16, 2), (16,), (16,), (1,))))
    line = torch.linspace(-4, 4, 801)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        side = net(grid)[:, 0] > 0
        x = torch.randn(40, 2, generator=g)
        own = net(x)[:, 0] > 0
    moved, _, _, changed = study["foot"](net, x.double())
    assert changed.double().mean() > 0.7
    pairs = zip(x, own, strict=True)
    real = torch.stack([(grid[side != mine] - one).norm(dim=1).min() for one, mine in pairs]).double()
    assert (moved >= real - 0.012)[changed].all()
    assert (moved / real)[changed].median() < 1.3  # random weights make a crooked boundary; DeepFool is an upper bound


def test_the_packaged_digits_are_split_into_disjoint_parts(study):
    names = method(STUDY, TRAIN=20, VALID=5)
    pool, test = names["digits"]()
    images = data.load("mnist5k")
    for digit in range(10):
        assert len(pool[digit]) == 25
        assert len(pool[digit]) + len(test[digit]) == int((images.y == digit).sum())


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("STRENGTHS", "1, 2", "STRENGTHS must list three or more different positive numbers, got 1, 2"),
        ("SPREADS", "0.1, -1, 2", "SPREADS must list three or more different positive numbers"),
        ("NET_PAIRS", "35, 53", "NET_PAIRS must list pairs of rising digits such as 35, got 35, 53"),
        ("DIGITS", "cifar10", "DIGITS must be mnist5k or mnist, got cifar10"),
        ("TRAIN", 0, "TRAIN must be positive, got 0"),
        ("DIMS", 7, "DIMS must be even"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_is_measured(parameter, value, message):
    cells = studies.notebook(ROOT / "notebooks" / f"{STUDY}.ipynb")["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    settings = {}
    exec(sources[0], settings)
    assert parameter in settings
    settings[parameter] = value
    with pytest.raises(ValueError, match=message):
        exec(sources[1], settings)
