"""Data whose right answer is known; studies and tests share it."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


def calibrated(n: int, classes: int, seed: int) -> tuple[Float[Tensor, "n classes"], Int[Tensor, " n"]]:
    """Logits that are right about themselves: each label is drawn from the softmax of its own row.

    Rows are normal with deviation 2, so confidence spreads over most of [1 / classes, 1]. Multiplying the logits by T
    makes them overconfident by exactly the temperature T.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return logits, labels


def blobs(
    n: int, classes: int, dims: int, noise: float, seed: int
) -> tuple[Float[Tensor, "n dims"], Int[Tensor, " n"]]:
    """Gaussian clouds of deviation `noise` around one random unit center per class; labels are balanced and shuffled.

    The same `classes`, `dims` and `seed` give the same centers whatever `n` and `noise` are.
    """
    generator = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(torch.randn(classes, dims, generator=generator), dim=-1)
    labels = torch.arange(n)[torch.randperm(n, generator=generator)] % classes
    return centers[labels] + noise * torch.randn(n, dims, generator=generator), labels


def two_latents(
    n: int, predictivity: tuple[float, float], correlation: float, seed: int
) -> tuple[Float[Tensor, "n 2"], Int[Tensor, " n"]]:
    """Two latent features, shortcut and core, and the class that they predict; labels are balanced and shuffled.

    Given the class, the latents are normal with deviation 1 and the given correlation, around plus (class 1) or minus
    (class 0) the mean sqrt(2) erfinv(2 rho - 1), so that the sign of a latent alone is right with probability rho, its
    predictivity. The same seed gives the same noise and labels whatever predictivity and correlation are. Raises
    ValueError for a predictivity outside (0.5, 1) or a correlation outside (-1, 1).

    Reference: Hermann, Mobahi, Fel, Mozer (2024), On the Foundations of Shortcut Learning.
    """
    means = _means(predictivity, correlation)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n)[torch.randperm(n, generator=generator)] % 2
    noise = torch.randn(n, 2, generator=generator)
    noise[:, 1] = correlation * noise[:, 0] + math.sqrt(1 - correlation**2) * noise[:, 1]
    return (2 * labels[:, None] - 1) * means.float() + noise, labels


class Optimal(NamedTuple):
    """The best classifier of `two_latents`: the sign of latents @ weights, and how often it errs."""

    weights: Float[Tensor, " 2"]
    error: float


def optimal(predictivity: tuple[float, float], correlation: float) -> Optimal:
    """Linear discriminant analysis with the true means and covariance, which is Bayes-optimal for `two_latents`.

    With a positive correlation the weight of a weak latent can be negative: it then tells of the other's noise.
    """
    means = _means(predictivity, correlation)
    covariance = torch.tensor([[1, correlation], [correlation, 1]], dtype=torch.float64)
    weights = torch.linalg.solve(covariance, means)
    return Optimal(weights.float(), float(torch.special.ndtr(-(means @ weights).sqrt())))


def embedding(
    latents: Float[Tensor, "n 2"],
    availability: tuple[float, float],
    dims: int,
    seed: int,
    nesting: tuple[int, int] = (0, 0),
) -> Float[Tensor, "n dims"]:
    """Inputs in which each latent lies along its own random unit direction, amplified by its availability.

    A latent of nesting depth k is first passed through k random layers (ReLU, then a random matrix of width `dims`),
    scaled so that it reaches as far from the origin as without them. Each layer bends its line further: the sides of
    positive and of negative latents, opposite before, stand at a right angle after one layer and closer after more.
    The same seed gives the same directions and layers, so that training points and a grid can be embedded alike.
    Raises ValueError for an availability that is not positive or a negative nesting depth.
    """
    if min(availability) <= 0 or not all(math.isfinite(a) for a in availability):
        raise ValueError(f"availability must be positive and finite, got {tuple(availability)}")
    if min(nesting) < 0 or dims < 2:
        raise ValueError(f"nesting must be 0 or more and dims 2 or more, got nesting={nesting}, dims={dims}")
    x = torch.zeros(len(latents), dims)
    for i in range(2):
        generator = torch.Generator().manual_seed(2 * seed + i)
        direction = torch.nn.functional.normalize(torch.randn(dims, generator=generator), dim=0)
        sides = torch.stack([direction, -direction])  # where the latents 1 and -1 lie; all others on rays through them
        for _ in range(nesting[i]):
            sides = sides.relu() @ torch.randn(dims, dims, generator=generator)
            sides /= sides.square().sum(1).mean().sqrt()
        up, down = latents[:, i].clamp(min=0), (-latents[:, i]).clamp(min=0)
        x += availability[i] * torch.stack([up, down], 1) @ sides
    return x


def _means(predictivity: tuple[float, float], correlation: float) -> Float[Tensor, " 2"]:
    rho = torch.tensor(predictivity, dtype=torch.float64)
    if not ((rho > 0.5) & (rho < 1)).all():
        raise ValueError(f"predictivity must be between 0.5 and 1 for both latents, got {tuple(predictivity)}")
    if not -1 < correlation < 1:
        raise ValueError(f"correlation must be between -1 and 1, got {correlation}")
    return math.sqrt(2) * torch.erfinv(2 * rho - 1)
