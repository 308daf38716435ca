"""Kernels of wide networks against quadrature, against finite networks, against what is known in the limit."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy import integrate

from studybook import kernels


def rows(n, d, seed=0, positive=False):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.abs() if positive else x


def assert_close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def expectation(f, qx, qz, q):
    """E[f(u) f(v)] by Gauss quadrature over two independent normals, and adaptively over their kinks."""
    rest = math.sqrt(qz - q * q / qx)

    def inner(a):
        def outer(b):
            return f(q / math.sqrt(qx) * a + rest * b) * math.exp(-b * b / 2)

        kink = -q / math.sqrt(qx) * a / rest
        points = [min(max(kink, -9), 9)]
        return (
            integrate.quad(outer, -9, 9, points=points, epsabs=1e-12)[0] * f(math.sqrt(qx) * a) * math.exp(-a * a / 2)
        )

    return integrate.quad(inner, -9, 9, points=[0], epsabs=1e-11)[0] / (2 * math.pi)


@pytest.mark.parametrize(
    ("name", "value", "slope"),
    [
        ("relu", lambda u: max(u, 0.0), lambda u: float(u > 0)),
        ("erf", math.erf, lambda u: 2 / math.sqrt(math.pi) * math.exp(-u * u)),
        ("linear", lambda u: u, lambda u: 1.0),
    ],
)
def test_two_layers_are_the_integrals(name, value, slope):
    x, z, weight, bias = rows(1, 3), rows(1, 3, seed=1), 1.3, 0.4
    found = kernels.wide(x, z, 2, name, weight, bias)
    qx, qz, q = (float(weight**2 * (a @ b.T) / 3 + bias**2) for a, b in ((x, x), (z, z), (x, z)))
    nngp = weight**2 * expectation(value, qx, qz, q) + bias**2
    assert_close(found.nngp.item(), nngp, 1e-7)
    assert_close(found.ntk.item(), nngp + weight**2 * expectation(slope, qx, qz, q) * q, 1e-7)


def test_a_wide_network_has_these_kernels():
    x = rows(3, 5)
    weight, bias, width, drawn = math.sqrt(2), 0.3, 1024, 24
    found = {"nngp": [], "ntk": []}
    for seed in range(drawn):
        generator = torch.Generator().manual_seed(seed)
        sizes = [5, width, width, 1]
        w = [
            torch.randn(o, i, generator=generator, dtype=torch.float64) for i, o in zip(sizes, sizes[1:], strict=False)
        ]
        b = [torch.randn(o, generator=generator, dtype=torch.float64) for o in sizes[1:]]
        for part in (*w, *b):
            part.requires_grad_()
        h = x
        for layer, (one, off) in enumerate(zip(w, b, strict=True)):
            h = weight * (h.relu() if layer else h) @ one.T / math.sqrt(one.shape[1]) + bias * off
        grads = [
            torch.cat([g.flatten() for g in torch.autograd.grad(out, [*w, *b], retain_graph=True)]) for out in h[:, 0]
        ]
        grads = torch.stack(grads)
        found["ntk"].append(grads @ grads.T)
        found["nngp"].append(h.detach() @ h.detach().T)
    expected = kernels.wide(x, x, 3, "relu", weight, bias)
    ntk = torch.stack(found["ntk"])
    error = (ntk.mean(0) - expected.ntk).abs() / (ntk.std(0) / math.sqrt(drawn))
    assert error.max() < 4.5
    assert ((ntk.mean(0) / expected.ntk - 1).abs() < 0.05).all()
    nngp = torch.stack(found["nngp"])
    assert ((nngp.mean(0) - expected.nngp).abs() / (nngp.std(0) / math.sqrt(drawn))).max() < 4.5


def test_a_wide_convolutional_network_has_this_kernel():
    x = rows(3, 2 * 4 * 5).view(3, 2, 4, 5)
    weight, bias, channels, drawn = 1.3, 0.2, 256, 60
    found = []
    for seed in range(drawn):
        generator = torch.Generator().manual_seed(seed)
        h = x
        for inner in (2, channels):
            w = torch.randn(channels, inner, 3, 3, generator=generator).double()
            b = torch.randn(channels, generator=generator).double()
            h = torch.nn.functional.conv2d(h, weight / math.sqrt(9 * inner) * w, bias * b, padding=1).relu()
        h = h.flatten(1)
        found.append(weight**2 * h @ h.T / h.shape[1] + bias**2)  # its last layer's covariance, given the others
    found = torch.stack(found)
    expected = kernels.convolutional(x, x, 2, weight, bias)
    assert ((found.mean(0) - expected).abs() / (found.std(0) / math.sqrt(drawn))).max() < 4.5
    assert ((found.mean(0) / expected - 1).abs() < 0.02).all()


def test_pictures_of_one_pixel_are_rows_of_a_wide_network():
    """Only the middle of the 3 x 3 weights meets the picture, so a convolution's weight counts a ninth."""
    x, z = rows(4, 3), rows(2, 3, seed=1)
    found = kernels.convolutional(x.view(4, 3, 1, 1), z.view(2, 3, 1, 1), 1, 3.0)
    assert_close(found, 9 * kernels.wide(x, z, 2, "relu", 1.0).nngp)


def test_rows_at_a_time_change_nothing(monkeypatch):
    x, z = rows(7, 4), rows(5, 4, seed=1)
    whole = kernels.wide(x, z, 4)
    monkeypatch.setattr(kernels, "_ROWS", 10)
    assert_close(kernels.wide(x, z, 4).ntk, whole.ntk)
    pictures = rows(5, 12).view(5, 1, 3, 4)
    few = kernels.convolutional(pictures, pictures, 2)
    monkeypatch.undo()
    assert_close(few, kernels.convolutional(pictures, pictures, 2))


def test_a_row_of_zeros_has_no_kernel_and_no_nan():
    found = kernels.wide(torch.zeros(1, 4), rows(2, 4), 3)
    assert found.nngp.tolist() == [[0, 0]]
    assert found.ntk.tolist() == [[0, 0]]


def test_hermite_coefficients_of_known_functions():
    assert_close(kernels.hermite(lambda u: u**3, 5), torch.tensor([0, 3, 0, math.sqrt(6), 0], dtype=torch.float64))
    sine = kernels.hermite(torch.sin, 8)
    known = [0 if k % 2 == 0 else (-1) ** (k // 2) * math.exp(-0.5) / math.sqrt(math.factorial(k)) for k in range(8)]
    assert_close(sine, torch.tensor(known, dtype=torch.float64))


@pytest.mark.parametrize("coefficients", [(0, 1, 0.5), (0.3, 1, 0, 0.7), (0, 0, 1, 1)])
def test_the_dual_is_the_expectation(coefficients):
    """Of the normalized activation; its slope by differences."""
    activation = kernels.dual(coefficients)
    size = math.sqrt(sum(c * c for c in coefficients))
    polynomials = [
        lambda u: 1,
        lambda u: u,
        lambda u: (u * u - 1) / math.sqrt(2),
        lambda u: (u**3 - 3 * u) / math.sqrt(6),
    ]
    at, share = np.polynomial.hermite_e.hermegauss(20)
    cosine = 0.6
    u, v = at[:, None], cosine * at[:, None] + math.sqrt(1 - cosine**2) * at[None]

    def f(w):
        return sum(c * p(w) for c, p in zip(coefficients, polynomials, strict=False)) / size

    expected = (f(u) * f(v) * share[:, None] * share[None]).sum() / share.sum() ** 2
    step = 1e-6
    t = torch.tensor([cosine, cosine + step, cosine - step], dtype=torch.float64).log()
    ((slope, out),) = kernels.layers(activation, t, 1)
    assert_close(out.exp()[0].item(), expected, 1e-10)
    assert_close(slope.exp()[0].item(), ((out[1].exp() - out[2].exp()) / (2 * step)).item(), 1e-6)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_deep_is_wide_where_both_can(depth):
    x = torch.nn.functional.normalize(rows(4, 6, positive=True))
    found = kernels.wide(x, x, depth + 1, "relu")  # weight of sqrt(2) keeps the variance, but the first layer's 2 / D
    log_cosine = (x @ x.T).clamp(max=1).log()
    log_cosine.fill_diagonal_(0)
    assert_close(kernels.deep_ntk(kernels.RELU, log_cosine, depth).exp(), found.ntk * 6 / 2)


def test_next_to_one_nothing_cancels():
    """A step from 1 - gap: 1 - dual(1) * gap to first order; for ReLU the next term is gap^1.5."""
    gap = torch.tensor([1e-12, 1e-15, 1e-18], dtype=torch.float64)
    for activation in (kernels.RELU, kernels.dual([0, 1, 1, 0.5])):
        ((_, out),) = kernels.layers(activation, torch.log1p(-gap), 1)
        ratio = -torch.expm1(out) / gap
        assert_close(ratio / kernels.slope_at(activation, 1), torch.ones(3, dtype=torch.float64), 1e-5)


def test_next_to_zero_nothing_underflows():
    t = torch.tensor([-1e5, -math.inf], dtype=torch.float64)
    ((slope, out),) = kernels.layers(kernels.dual([0, 0, 1, 1]), t, 1)
    assert_close(out[0].item(), 2 * t[0].item() + math.log(0.5))
    assert out[1] == -math.inf
    assert_close(slope[0].item(), t[0].item() + math.log(1))
    ((slope, out),) = kernels.layers(kernels.dual([1, 1]), t, 1)
    assert_close(out.exp(), torch.full((2,), 0.5, dtype=torch.float64))
    assert_close(slope.exp(), torch.full((2,), 0.5, dtype=torch.float64))


def test_at_great_depth_the_kernel_is_finite_and_its_own_is_the_sum():
    activation = kernels.dual([0, 1, 0, 1])  # slope 2 at 1: K(l) = 1 + 2 K(l - 1)
    own = kernels.deep_ntk(activation, torch.zeros(1, dtype=torch.float64), 3000)
    assert_close(own.item() / (3001 * math.log(2)), 1.0, 1e-12)
    other = kernels.deep_ntk(activation, torch.tensor([0.5], dtype=torch.float64).log(), 3000)
    assert torch.isfinite(other).all()
    assert other < 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.wide(rows(2, 3), rows(2, 3), 0), "depth must be 1 or more, got 0"),
        (
            lambda: inspect.unwrap(kernels.wide)(rows(2, 3), rows(2, 4), 2),
            "x and z must have the same features",
        ),
        (lambda: kernels.wide(rows(2, 3) * math.nan, rows(2, 3), 2), "x must be finite, got NaN or infinity"),
        (lambda: kernels.wide(rows(2, 3), rows(2, 3), 2, "relu", -1.0), "weight and bias are deviations, 0 or more"),
        (lambda: kernels.convolutional(rows(2, 4).view(2, 1, 2, 2), rows(2, 4).view(2, 1, 2, 2), 0), "depth must be 1"),
        (lambda: kernels.hermite(torch.sin, 9, nodes=8), "terms must be 1 to nodes=8, got 9"),
        (lambda: kernels.dual([1.0, 0.0]), "coefficients must be finite, one past the first not 0"),
        (lambda: list(kernels.layers(kernels.RELU, torch.ones(1).double(), 1)), "log_cosine must be logarithms"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
