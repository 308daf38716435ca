"""The study of depth over width: its closed forms against independent computations."""

import math

import numpy as np
import pytest
import torch
from conftest import method
from scipy import integrate

from studybook import studies

STUDY = "theory/depth-to-width-effective-theory"


def gaussian(f, variance):
    """The expectation of f(z), z normal, by adaptive quadrature."""
    density = lambda z: math.exp(-(z**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)  # noqa: E731
    return integrate.quad(lambda z: f(z) * density(z), -12, 12, epsabs=1e-12)[0]


def test_the_recursion_equals_adaptive_quadrature_with_a_numerical_derivative():
    found = method(STUDY)["recursion"](50, 4, 1.1)

    def kernel(k):
        return 1.1 * gaussian(lambda z: math.tanh(z) ** 2, k)

    k, v = 1.0, 0.0
    for layer in range(5):
        assert found[0][layer] == pytest.approx(k, rel=1e-6)
        assert found[1][layer] == pytest.approx(v / (50 * k**2), rel=1e-4, abs=1e-12)
        slope = (kernel(k + 1e-4) - kernel(k - 1e-4)) / 2e-4
        fourth = gaussian(lambda z: math.tanh(z) ** 4, k)
        v = slope**2 * v + 1.1**2 * fourth - kernel(k) ** 2
        k = kernel(k)


def test_the_tanh_recursion_tends_to_two_thirds():
    v = method(STUDY)["recursion"](1000, 4000)[1]
    assert (v[4000] - v[3000]) * 1000 / 1000 == pytest.approx(2 / 3, rel=0.02)


@pytest.mark.parametrize(("kind", "s"), [("linear", 2), ("relu", 5)])
def test_slopes_are_moments_of_the_activation_and_one_layer_has_them(kind, s):
    names = method(STUDY)

    def activation(z):
        return float(names["unit"](kind, torch.tensor(z)))

    second, fourth = (gaussian(lambda z, p=p: activation(z) ** p, 1.0) for p in (2, 4))
    assert fourth / second**2 - 1 == pytest.approx(s, rel=1e-6)
    assert names["product"](s, 40, 1)[1] == pytest.approx(s / 40)


@pytest.mark.parametrize("drawn", [False, True])
def test_ensembles_recover_the_product_with_and_without_matrices(drawn):
    names = method(STUDY)
    torch.manual_seed(3)
    case = {"width": 16, "activation": "linear", "gain": 1.0, "nets": 20_000, "depth": 2, "matrices": drawn}
    row = names["measure"](case)
    np.testing.assert_allclose(row["vertex"], names["product"](2, 16, 2), atol=0.025)
    np.testing.assert_allclose(row["variance"], 1, atol=0.03)


def test_shapes_have_the_parameters_asked_for():
    names = method(STUDY)
    for depth in (2, 8, 32):
        net = names["network"](names["size"](depth, 20_000), depth, True)
        assert sum(p.numel() for p in net.parameters()) == pytest.approx(20_000, rel=0.03)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WIDTHS", "64, 32", "WIDTHS must list two or more rising positive numbers, got 64, 32"),
        ("GAINS", "1.1, 1.2", "GAINS must hold one below 1 and one above, got 1.1, 1.2"),
        ("DEEPEST", 2.0, r"DEEPEST in \(0, 1\]"),
    ],
)
def test_wrong_parameters_are_refused_in_a_sentence(name, value, message):
    cells = studies.notebook(studies.find("depth-to-width-effective-theory").source)["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    settings = {}
    exec(sources[0], settings)
    settings[name] = value
    with pytest.raises(ValueError, match=message):
        exec(sources[1], settings)
