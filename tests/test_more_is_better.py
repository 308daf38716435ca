"""The study of random features: its formula in known limits, its regressions against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from conftest import method
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from studybook import kernels

INFINITE = 10**9


@pytest.fixture(scope="module")
def own():
    names = method("theory/more-is-better")
    names["INFINITE"] = INFINITE
    names["RIDGES"] = np.logspace(-6, 2, 17)
    return names


def spectrum(modes=400):
    i = torch.arange(1, modes + 1, dtype=torch.float64)
    return i**-1.5, i**-1.4 / (i**-1.4).sum()


@pytest.mark.parametrize(("n", "k"), [(50, 20), (50, 50), (20, 50), (50, INFINITE)])
def test_both_equations_hold(own, n, k):
    values, _ = spectrum()
    ridges = torch.logspace(-6, 1, 8, dtype=torch.float64)
    kappa, gamma = own["solve"](values, n, k, ridges)
    z = (values / (values + gamma[:, None])).sum(1)
    torch.testing.assert_close(z + ridges / kappa, torch.full_like(ridges, n), rtol=1e-6, atol=0)
    torch.testing.assert_close(z + k * kappa / gamma, torch.full_like(ridges, k), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("n", "modes", "noise"), [(30, 100, 0.5), (100, 30, 0.5), (50, 200, 0.0)])
def test_without_ridge_on_equal_eigenvalues_it_is_the_known_risk(own, n, modes, noise):
    """Of least squares on isotropic inputs, least-norm where there are fewer samples than inputs (Hastie et al.)."""
    ridge = torch.tensor([1e-9], dtype=torch.float64)
    values = torch.ones(modes, dtype=torch.float64)
    test, _ = own["predict"](values, values / modes, n, INFINITE, ridge, noise)
    ratio = modes / n
    known = noise * ratio / (1 - ratio) if ratio < 1 else 1 - 1 / ratio + noise / (ratio - 1)
    assert float(test[0]) == pytest.approx(known, rel=1e-4, abs=1e-6)


def test_a_huge_ridge_learns_nothing(own):
    values, v2 = spectrum()
    test, train = own["predict"](values, v2, 50, 80, torch.tensor([1e12]).double(), 0.3)
    assert float(test[0]) == pytest.approx(1.0, abs=1e-6)
    assert float(train[0]) == pytest.approx(1.3, abs=1e-6)


@pytest.mark.parametrize("k", [30, 60, INFINITE])
def test_the_formula_is_the_mean_of_simulations(own, k):
    modes, n, noise, draws = 120, 60, 0.2, 200
    values, v2 = spectrum(modes)
    ridges = values.sum() * torch.tensor([0.003, 0.1], dtype=torch.float64)
    test, train = own["predict"](values, v2, n, k, ridges, noise)
    found = []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n + 200, modes, generator=generator, dtype=torch.float64)
        y = (x @ v2.sqrt())[:, None]
        phi = x * values.sqrt()
        if k != INFINITE:
            phi = phi @ torch.randn(modes, k, generator=generator, dtype=torch.float64) / math.sqrt(k)
        noisy = y[:n] + math.sqrt(noise) * torch.randn(n, 1, generator=generator, dtype=torch.float64)
        errors, left = own["ridge_errors"](phi[:n], phi[n:], noisy, y[n:], ridges.tolist())
        found.append(torch.stack([errors.mean(1), left]))
    found = torch.stack(found)
    off = found.mean(0) - torch.stack([test, train])
    assert (off.abs() < 4 * found.std(0) / math.sqrt(draws) + 0.02 * found.mean(0)).all()


def test_ridge_errors_are_scikit_learns(own):
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 7, generator=generator, dtype=torch.float64) for n in (12, 5))
    y, truth = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (12, 5))
    ridges = [0.01, 3.0]
    found = own["ridge_errors"](train, test, y, truth, ridges)
    again = own["kernel_errors"](train @ train.T, test @ train.T, y, truth, ridges)
    for i, ridge in enumerate(ridges):
        model = Ridge(alpha=ridge, fit_intercept=False).fit(train.numpy(), y.numpy())
        errors = ((model.predict(test.numpy()) - truth.numpy()) ** 2).sum(1)
        left = ((model.predict(train.numpy()) - y.numpy()) ** 2).sum(1).mean()
        kernel = KernelRidge(alpha=ridge).fit(train.numpy(), y.numpy())
        np.testing.assert_allclose(kernel.predict(test.numpy()), model.predict(test.numpy()), atol=1e-9)
        for one in (found, again):
            np.testing.assert_allclose(one[0][i].numpy(), errors, rtol=1e-8)
            assert float(one[1][i]) == pytest.approx(left, rel=1e-8)


def test_products_of_features_have_the_kernel_as_their_mean(own):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    phi = own["relu_features"](x, 400_000, torch.Generator().manual_seed(2))
    expected = kernels.wide(x, x, 2, "relu", math.sqrt(2), own["BIAS"]).nngp
    torch.testing.assert_close(phi @ phi.T, expected, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("pixels", [0, 4])
def test_a_population_has_its_kernels_spectrum_and_the_whole_target(own, pixels):
    x, y, kernel, values, v2 = own["population"]("digits", 200, pixels)
    assert len(x) == 200
    assert float(v2.sum()) == pytest.approx(1.0)
    assert float(values.sum()) == pytest.approx(float(kernel.diagonal().mean()))
    assert (values.diff() <= 0).all()
    assert float(y.square().sum(1).mean()) == pytest.approx(1.0)


def test_the_first_half_chooses_and_the_second_is_read(own):
    errors = torch.tensor([[[3.0, 1.0, 2.0], [7.0, 8.0, 9.0], [0.1, 0.2, 0.3]]])
    assert [part.item() for part in own["tuned"](errors)] == pytest.approx([8.0, 0.2])
