"""Random feature amplification: its closed forms against integration, simulation and finite networks."""

import math
import types

import numpy as np
import pytest
import torch
from conftest import method
from scipy import integrate

STUDY = "theory/random-feature-amplification"


@pytest.fixture(scope="module")
def study():
    return types.SimpleNamespace(**method(STUDY))


def normal(x, spread):
    return math.exp(-x * x / (2 * spread**2)) / (spread * math.sqrt(2 * math.pi))


def test_best_error_equals_integration_over_both_projections(study):
    for spread in (0.3, 0.6, 1.0):

        def wrong(u, spread=spread):
            share = 1 - math.erf(abs(u) / (spread * math.sqrt(2)))
            return share * normal(u - 1, spread)

        expected, _ = integrate.quad(wrong, 1 - 9 * spread, 1 + 9 * spread, points=[0], epsabs=1e-13)
        assert study.best_error(spread) == pytest.approx(expected, abs=1e-10)


def test_best_error_and_half_plane_equal_counting(study):
    points, clean, noisy = study.clusters(200_000, 3, 0.5, 0.2, 5)
    decided = (points[:, 0].abs() > points[:, 1].abs()).long()
    error = float((decided != clean).double().mean())
    assert error == pytest.approx(study.best_error(0.5), abs=0.005)
    assert float((noisy != clean).double().mean()) == pytest.approx(0.2, abs=0.005)
    cuts = [float(((points[:, 0] > c).long() != clean).double().mean()) for c in np.linspace(0, 2, 41)]
    assert min(cuts) == pytest.approx(study.best_half_plane(0.5), abs=0.005)
    direction = torch.randn(3, generator=torch.Generator().manual_seed(1))
    through = float((((points @ direction) > 0).long() != clean).double().mean())
    assert through == pytest.approx(0.5, abs=0.005)


def test_one_step_equals_the_mean_gradient_over_many_points(study):
    """The only approximation, outputs constant within a cluster, is exact where the output is zero."""
    width, spread, flipped, rate = 6, 0.4, 0.15, 0.5
    half = torch.randn(width // 2, 5, generator=torch.Generator().manual_seed(2)).double()
    layer = torch.cat([half, half])
    points, _, noisy = study.clusters(400_000, 5, spread, flipped, 3)
    weights = layer.clone().requires_grad_()
    study.loss((points.double() @ weights.T).relu(), noisy).mean().backward()
    axes = torch.eye(5).double()[:2]
    moved = study.components(layer - rate * weights.grad, *axes)
    forecast = study.step(study.components(layer, *axes), spread, flipped, rate)
    change = (forecast - study.components(layer, *axes)).abs().max()
    assert (moved - forecast).abs().max() < 0.03 * change


def test_early_growth_is_proportional_to_the_start_and_of_the_right_sign(study):
    parts = torch.tensor([[1e-3, 2e-3, 1.0], [-2e-3, 1e-3, 1.0]], dtype=torch.float64)
    parts = torch.cat([parts, parts])  # the first two speak for label 1
    moved = study.step(parts, 0.3, 0.0, 1e-3) - parts
    slope = 1e-3 / math.sqrt(4) / 8 * 2 / math.sqrt(2 * math.pi) / 0.3
    assert moved[0, 0].item() == pytest.approx(slope * 2 * 1e-3 / 2, rel=0.01)
    assert moved[1, 0].item() == pytest.approx(-2 * moved[0, 0].item(), rel=0.01)
    assert moved[2, 0].item() == pytest.approx(-moved[0, 0].item(), rel=0.01)
    assert (moved[:2, 1] * parts[:2, 1] < 0).all()
    assert (moved[2:, 1] * parts[2:, 1] > 0).all()


def test_components_and_cosine_of_known_layers(study):
    layer = torch.tensor([[3.0, 0, 4.0], [0, 2.0, 0]])
    parts = study.components(layer, torch.eye(3)[0], torch.eye(3)[1])
    assert parts.tolist() == [[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]]
    assert study.useful(parts).tolist() == [3.0, 2.0]
    assert float(study.cosine(parts)) == pytest.approx(math.sqrt(13 / 29))


def test_a_classifier_through_the_origin_has_no_offset(study):
    parts = [study.clusters(300, 4, 0.3, 0.1, seed) for seed in range(3)]
    sets = [value for x, clean, noisy in parts for value in (x, noisy)][:4] + [parts[2][0], parts[2][1]]
    found = study.without_offset(*sets)
    assert abs(found - 0.5) < 0.12
    easy = [torch.where(y[:, None] == 1, 1.0, -1.0) + 0.1 * torch.randn(len(y), 4) for y in sets[1::2]]
    assert study.without_offset(*[v for x, y in zip(easy, sets[1::2], strict=True) for v in (x, y)]) < 0.01


def test_digits_side_by_side(study):
    classes = [torch.zeros(4, 196), torch.ones(4, 196)]
    x, clean, noisy = study.side_by_side(classes, 500, 0.3, 1)
    equal = (x[:, 0] == x[:, -1]).long()
    assert torch.equal(equal, clean)
    assert x.shape == (500, 392)
    assert abs(float((clean != noisy).double().mean()) - 0.3) < 0.08


def test_looks_are_dense_at_first_and_end_with_training(study):
    at = study.stops(100)
    assert at[:4] == [0, 1, 2, 3]
    assert at[-1] == 100
    assert at == sorted(set(at))
