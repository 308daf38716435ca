"""The study of infinitely deep networks: its own functions against closed forms and independent libraries."""

import math

import numpy as np
import pytest
import torch
from conftest import method
from scipy.stats import dirichlet
from sklearn.kernel_ridge import KernelRidge
from sklearn.neighbors import KNeighborsClassifier

from studybook import kernels


@pytest.fixture(scope="module")
def own():
    names = method("theory/infinitely-deep-ntk-classifiers")
    names["GRID"] = np.linspace(-37, 60, 4001)
    return names


@pytest.fixture(scope="module")
def cosine():
    return torch.linspace(0.001, 0.9999, 97, dtype=torch.float64)


@pytest.mark.parametrize("order", ["1", "1.5", "2", "3", "8", "128"])
def test_an_activation_of_an_order_has_the_slopes_that_give_it(own, order):
    dual = own["activation"](order)
    assert min(dual.series) >= 0
    assert sum(dual.series) == pytest.approx(1)
    assert dual.series[0] == 0
    assert kernels.slope_at(dual, 1) == pytest.approx(2)
    assert -2 * math.log2(kernels.slope_at(dual, 0)) == pytest.approx(float(order))


def test_the_optimal_activation_in_dimension_2_has_degree_3(own):
    assert own["activation"]("2").series[:4] == pytest.approx((0, 0.5, 0, 0.5))


@pytest.mark.parametrize(("name", "depth"), [("relu", 3), ("2", 500), ("nearest", 12), ("majority", 256)])
def test_kernels_read_off_the_grid_are_those_of_the_recursion(own, cosine, name, depth):
    curve, diagonal = own["deep"](name, depth)
    exact = kernels.deep_ntk(own["activation"](name), cosine.log(), depth)
    read = torch.from_numpy(curve(own["coordinate"](cosine).numpy()))
    torch.testing.assert_close(read, exact, rtol=1e-7, atol=1e-7)
    assert diagonal == float(kernels.deep_ntk(own["activation"](name), torch.zeros(1).double(), depth))


@pytest.mark.parametrize("order", ["1", "2", "8"])
def test_the_singular_kernel_solves_koenigs_equation(own, cosine, order):
    dual = own["activation"](order)
    ((_, after),) = kernels.layers(dual, cosine.log(), 1)
    h = own["koenigs"](order)
    one, other = (h(own["coordinate"](at).numpy()) for at in (cosine, after.exp()))
    np.testing.assert_allclose(other - one, math.log(kernels.slope_at(dual, 0)), atol=1e-7)


def test_the_density_is_the_dirichlet_one(own):
    shares = np.random.default_rng(0).dirichlet([1.0, 2.0, 3.0], 9)
    cloud = np.array([1.3, 4.0, 2.0])
    np.testing.assert_allclose(own["density"](shares, cloud), dirichlet.pdf(shares.T, cloud), rtol=1e-10)


def test_the_mixtures_probabilities_are_those_of_its_labels(own):
    x, y, eta = own["mixture"](20_000, 2, 0.4, 5)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(20_000).double())
    pair, other = own["clouds"](2)

    at = (np.arange(400) + 0.5) / 400
    a, b = (part.ravel() for part in np.meshgrid(at, at))
    points = np.stack([a, b, 1 - a - b])[:, a + b < 1 - 1e-9]  # midpoints of a grid over the simplex
    inside = 0.2 * (dirichlet.pdf(points, pair[0]) + dirichlet.pdf(points, pair[1]))
    bayes = np.minimum(inside, 0.6 * dirichlet.pdf(points, other)).sum() / 400**2
    assert float(torch.minimum(eta, 1 - eta).mean()) == pytest.approx(bayes, abs=0.005)
    wrong = (torch.where(eta > 0.5, 1.0, -1.0) != y[:, 0]).double().mean()
    assert float(wrong) == pytest.approx(bayes, abs=0.012)
    for low in (0.1, 0.4, 0.7):
        some = (eta > low) & (eta < low + 0.2)
        assert float((y[some] > 0).double().mean()) == pytest.approx(float(eta[some].mean()), abs=0.03)


def test_the_error_is_conditional_on_the_point(own):
    outputs, eta = torch.tensor([[1.0], [-1.0]]), torch.tensor([0.9, 0.3])
    assert own["conditional_error"](outputs, eta) == pytest.approx(0.2)


def test_regression_is_kernel_ridge_without_a_ridge_up_to_a_factor(own):
    train, y, _ = own["mixture"](40, 2, 0.4, 1)
    test, _, _ = own["mixture"](30, 2, 0.4, 2)
    ours = own["regress"]("relu", 3, train, test, y)
    model = KernelRidge(alpha=1e-13, kernel="precomputed").fit(kernels.wide(train, train, 4).ntk.numpy(), y.numpy())
    theirs = torch.from_numpy(model.predict(kernels.wide(test, train, 4).ntk.numpy()))
    ratio = ours / theirs
    assert (ratio > 0).all()
    largest = kernels.wide(test, train, 4).ntk.amax(1, keepdim=True)
    own_kernel = kernels.wide(train[:1], train[:1], 4).ntk
    torch.testing.assert_close(ours, theirs * own_kernel / largest, rtol=1e-5, atol=1e-6)


def test_the_deepest_kernel_of_its_kind_is_the_nearest_neighbor(own):
    train, y, _ = own["mixture"](60, 2, 0.4, 3)
    test, _, _ = own["mixture"](200, 2, 0.4, 4)
    model = KNeighborsClassifier(1).fit(train.numpy(), y[:, 0].numpy())
    ours = own["regress"]("nearest", 300, train, test, y)[:, 0].sign()
    assert (ours.numpy() == model.predict(test.numpy())).all()
