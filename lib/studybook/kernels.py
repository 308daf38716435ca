"""Kernels of infinitely wide fully connected networks: what a wide network is at first (NNGP) and as it learns (NTK).

The parameterization is the NTK's: a layer computes weight * W h / sqrt(width) + bias * b with standard normal W, b
and h = phi(previous layer); kernels are per unit of input dimension, as neural-tangents gives them. `wide` takes any
data, with ReLU, erf or no activation, at everyday depth; `convolutional` is the NNGP of pictures; `deep_ntk` takes unit
vectors with a cosine above 0 and any activation that keeps unit variance, in logarithms: depths of thousands neither
overflow nor cancel.

References: Cho, Saul (2009), Kernel Methods for Deep Learning; Williams (1997), Computing with Infinite Networks;
Jacot, Gabriel, Hongler (2018), Neural Tangent Kernel; Daniely, Frostig, Singer (2016), Toward Deeper Understanding of
Neural Networks (dual activations).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_ROWS = 2**22  # cells of a kernel that are computed at once


class Wide(NamedTuple):
    """The kernel of the outputs at initialization, and the neural tangent kernel, of the same network."""

    nngp: Float[Tensor, "N M"]
    ntk: Float[Tensor, "N M"]


class Dual(NamedTuple):
    """An activation of unit variance as pairs of normals see it: E[phi(u) phi(v)] = sum of a_k cosine^k.

    `series` holds a_0, a_1, ... (not negative, with sum 1); empty means ReLU, whose series is long and sum known.
    """

    series: tuple[float, ...]


RELU = Dual(())


def wide(
    x: Float[Tensor, "N D"],
    z: Float[Tensor, "M D"],
    depth: int,
    activation: Literal["relu", "erf", "linear"] = "relu",
    weight: float = math.sqrt(2),
    bias: float = 0.0,
) -> Wide:
    """Kernels between rows of `x` and of `z`, in float64, for `depth` layers of weights (1: a linear model).

    `weight` and `bias` are the deviations; sqrt(2) and 0 keep a ReLU network's signal at its size. Raises ValueError
    for a depth below 1, a negative deviation, sizes that do not fit, NaN or infinity.
    """
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, got {depth}")
    if min(weight, bias) < 0:
        raise ValueError(f"weight and bias are deviations, 0 or more, got {weight} and {bias}")
    if x.shape[1] != z.shape[1]:
        raise ValueError(f"x and z must have the same features, got {x.shape[1]} and {z.shape[1]}")
    for name, rows in (("x", x), ("z", z)):
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    x, z = x.double(), z.double()
    found = [_wide(part, z, depth, activation, weight**2, bias**2) for part in x.split(max(1, _ROWS // max(1, len(z))))]
    return Wide(torch.cat([nngp for nngp, _ in found]), torch.cat([ntk for _, ntk in found]))


def convolutional(
    x: Float[Tensor, "N C H W"],
    z: Float[Tensor, "M C H W"],
    depth: int,
    weight: float = math.sqrt(2),
    bias: float = 0.0,
) -> Float[Tensor, "N M"]:
    """NNGP kernel, in float64, of `depth` 3 x 3 convolutions, each with a ReLU, and one dense layer over all positions.

    Convolutions have infinitely many channels, stride 1 and zeros around the picture. Without pooling a position meets
    only itself in the other picture, so time grows as N * M * H * W. Raises as `wide` does.

    Reference: Novak et al. (2019), Bayesian Deep Convolutional Networks with Many Channels are Gaussian Processes.
    """
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, got {depth}")
    if min(weight, bias) < 0:
        raise ValueError(f"weight and bias are deviations, 0 or more, got {weight} and {bias}")
    if x.shape[1:] != z.shape[1:]:
        raise ValueError(f"x and z must be pictures of one size, got {tuple(x.shape[1:])} and {tuple(z.shape[1:])}")
    for name, pictures in (("x", x), ("z", z)):
        if not bool(pictures.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    x, z = x.double(), z.double()
    rows = max(1, _ROWS // max(1, len(z) * x.shape[2] * x.shape[3]))
    return torch.cat([_convolutional(part, z, depth, weight**2, bias**2) for part in x.split(rows)])


def hermite(activation: Callable[[Tensor], Tensor], terms: int, nodes: int = 256) -> Float[Tensor, " terms"]:
    """Coefficients of an activation in the Hermite polynomials that are orthonormal under a standard normal.

    By Gauss quadrature, which is exact for polynomials of degree below 2 * nodes - terms and good for smooth functions.
    Raises ValueError for more terms than nodes.
    """
    if not 1 <= terms <= nodes:
        raise ValueError(f"terms must be 1 to nodes={nodes}, got {terms}")
    at, share = np.polynomial.hermite_e.hermegauss(nodes)
    at, share = torch.from_numpy(at), torch.from_numpy(share / share.sum())
    values = activation(at) * share
    before, now = torch.zeros_like(at), torch.ones_like(at)
    found = []
    for k in range(terms):
        found.append((values * now).sum())
        before, now = now, (at * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return torch.stack(found)


def dual(coefficients: Sequence[float | int] | Float[Tensor, " K"]) -> Dual:
    """The dual of an activation with these Hermite coefficients, divided by its deviation.

    Raises ValueError where none, or only the first, differs from 0: such an activation does not depend on its input.
    """
    squares = torch.as_tensor(coefficients, dtype=torch.float64).square()
    if not bool(squares.isfinite().all()) or not float(squares[1:].sum()) > 0:
        raise ValueError(f"coefficients must be finite, one past the first not 0, got {list(coefficients)}")
    return Dual(tuple((squares / squares.sum()).tolist()))


def slope_at(activation: Dual, cosine: Literal[0, 1]) -> float:
    """The dual's derivative at 0 (phi's mean slope, squared) or at 1 (its mean squared slope)."""
    if not activation.series:
        return 0.5 if cosine == 0 else 1.0
    if cosine == 0:
        return activation.series[1] if len(activation.series) > 1 else 0.0
    return sum(k * a for k, a in enumerate(activation.series))


def layers(activation: Dual, log_cosine: Float[Tensor, "*S"], depth: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of `depth` layers: the logarithm of the dual's slope at its input, and of the cosine that comes out.

    Everything is float64 in the logarithm of the cosine, which is as precise next to 1 (its distance from 1 is not
    a difference) as next to 0. Raises ValueError for positive logarithms or NaN; minus infinity is a cosine of 0.
    """
    t = log_cosine.double()
    if bool((t > 0).any()) or bool(t.isnan().any()):
        raise ValueError("log_cosine must be logarithms of cosines from 0 to 1, got values above 0 or NaN")
    for _ in range(depth):
        slope, t = _relu_step(t) if not activation.series else _series_step(activation.series, t)
        yield slope, t


def deep_ntk(activation: Dual, log_cosine: Float[Tensor, "*S"], depth: int) -> Float[Tensor, "*S"]:
    """Logarithm of the NTK of unit vectors after `depth` layers of the activation, whatever the depth.

    The recursion is K(0) = cosine, K(l + 1) = cosine(l + 1) + K(l) * slope(l), which is `wide` without bias, where
    `weight` keeps the variance at 1. A logarithm of 0 gives the kernel of a vector with itself. Raises as `layers`.
    """
    kernel = log_cosine.double()
    for slope, t in layers(activation, log_cosine, depth):
        kernel = torch.logaddexp(t, kernel + slope)
    return kernel


def _series_step(series: tuple[float, ...], t: Tensor) -> tuple[Tensor, Tensor]:
    a = torch.tensor(series, dtype=torch.float64, device=t.device)
    some = a[1:].nonzero()[:, 0] + 1  # the powers that there are, but the 0th
    a, k, lead = a[some], some.double(), float(a[0])
    terms = t[..., None] * k
    rest = torch.where(k == 1, 0.0, t[..., None] * (k - 1))  # which would be 0 * infinity at a cosine of 0
    slope = torch.logsumexp((a * k).log() + rest, -1)
    below = (a * torch.expm1(terms)).sum(-1)  # the next cosine less 1
    far = torch.logsumexp(a.log() + terms, -1)
    if lead > 0:
        far = torch.logaddexp(far, torch.full_like(far, math.log(lead)))
    return slope, torch.where(below > -0.5, torch.log1p(below.clamp(min=-0.75)), far)


def _relu_step(t: Tensor) -> tuple[Tensor, Tensor]:
    """Cho and Saul's arc-cosine kernels of degree 0 and 1, from the angle."""
    angle = 2 * torch.asin((-torch.expm1(t) / 2).clamp(max=0.5).sqrt())
    square = angle.square()
    near = angle * square * (1 / 3 - square / 30 + square.square() / 840)  # sin - angle * cos, by its series
    bend = torch.where(angle < 0.05, near, angle.sin() - angle * angle.cos())
    return torch.log1p(-angle / math.pi), torch.log1p(torch.expm1(t) + bend / math.pi)


def _wide(x: Tensor, z: Tensor, depth: int, activation: str, weight: float, bias: float) -> tuple[Tensor, Tensor]:
    """`wide` for some rows; `weight` and `bias` are variances."""
    dims = x.shape[1]
    q, qx, qz = x @ z.T / dims, x.square().mean(1)[:, None], z.square().mean(1)[None]
    q, qx, qz = (weight * part + bias for part in (q, qx, qz))
    ntk = q
    for _ in range(depth - 1):
        value, slope = _expectation(activation, q, qx, qz)
        qx, qz = (_expectation(activation, part, part, part)[0] for part in (qx, qz))
        q, qx, qz = (weight * part + bias for part in (value, qx, qz))
        ntk = q + weight * slope * ntk
    return q, ntk


def _convolutional(x: Tensor, z: Tensor, depth: int, weight: float, bias: float) -> Tensor:
    """`convolutional` for some pictures; `weight` and `bias` are variances."""

    def around(q: Tensor) -> Tensor:
        """The mean over 3 x 3 positions, those beyond the edge being 0."""
        flat = torch.nn.functional.avg_pool2d(q.flatten(0, 1)[:, None], 3, 1, 1)
        return weight * flat.view(q.shape) + bias

    q = torch.einsum("nchw,mchw->nmhw", x, z) / x.shape[1]
    qx, qz = x.square().mean(1)[:, None], z.square().mean(1)[None]
    for _ in range(depth):
        q, qx, qz = around(q), around(qx), around(qz)
        own = (_expectation("relu", part, part, part)[0] for part in (qx, qz))
        q = _expectation("relu", q, qx, qz)[0]
        qx, qz = own
    return weight * q.mean((2, 3)) + bias


def _expectation(activation: str, q: Tensor, qx: Tensor, qz: Tensor) -> tuple[Tensor, Tensor]:
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)] for normals u, v of variances qx, qz and covariance q."""
    if activation == "linear":
        return q, torch.ones_like(q)
    if activation == "erf":
        both = (1 + 2 * qx) * (1 + 2 * qz)
        return 2 / math.pi * torch.asin(2 * q / both.sqrt()), 4 / math.pi / (both - 4 * q.square()).sqrt()
    size = (qx * qz).sqrt()
    cosine = torch.where(size > 0, q / torch.where(size > 0, size, 1.0), 0.0).clamp(-1, 1)
    slope = (math.pi - cosine.acos()) / (2 * math.pi)
    return size * ((1 - cosine.square()).sqrt() / (2 * math.pi) + cosine * slope), slope
