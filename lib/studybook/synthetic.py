"""Data whose right answer is known; studies and tests share it."""

import math
from collections.abc import Sequence
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


class TeacherStudent(NamedTuple):
    """Gaussian inputs, the linear teacher that labels them and a student before training; labels are x @ teacher."""

    x: Float[Tensor, "N D"]
    teacher: Float[Tensor, "D C"]
    student: Float[Tensor, "D C"]


def teacher_student(n: int, dims: int, outputs: int, seed: int) -> TeacherStudent:
    """Standard normal inputs in float64; weights of teacher and student are normal with variance 1 / (2 dims outputs).

    The inputs depend on `n`, `dims` and `seed` alone, so that problems with more outputs share them.

    Reference: Levi, Beck, Bar-Sinai (2024), Grokking in Linear Estimators, section 3.
    """
    if min(n, dims, outputs) < 1:
        raise ValueError(f"n, dims and outputs must be positive, got n={n}, dims={dims}, outputs={outputs}")
    inputs, weights = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    x = torch.randn(n, dims, generator=inputs, dtype=torch.float64)
    drawn = torch.randn(2, dims, outputs, generator=weights, dtype=torch.float64) / math.sqrt(2 * dims * outputs)
    return TeacherStudent(x, drawn[0], drawn[1])


class Spectrum(NamedTuple):
    """The covariance x.T @ x / N of inputs, taken apart once for any number of runs of `descent`."""

    x: Float[Tensor, "N D"]
    values: Float[Tensor, " D"]  # ascending; exactly zero in directions that the inputs do not reach
    basis: Float[Tensor, "D D"]  # the eigenvectors are its columns


def spectrum(x: Float[Tensor, "N D"]) -> Spectrum:
    """Eigenvalues and eigenvectors of the covariance of `x`, whose mean is taken to be zero."""
    if not x.isfinite().all():
        raise ValueError("x must be finite, got NaN or infinity")
    values, basis = torch.linalg.eigh(x.T @ x / len(x))
    noise = x.shape[1] * torch.finfo(x.dtype).eps * float(values[-1])
    return Spectrum(x, torch.where(values > noise, values, torch.zeros_like(values)), basis)


class Path(NamedTuple):
    """Gradient descent, solved: along each eigenvector the weights go geometrically from `start` to `limit`."""

    basis: Float[Tensor, "D D"]
    start: Float[Tensor, "D C"]
    limit: Float[Tensor, "D C"]
    factor: Float[Tensor, " D"]  # what a step leaves of the distance to the limit

    def modes(self, steps: Int[Tensor, " T"]) -> Float[Tensor, "T D C"]:
        """The weights along each eigenvector after these numbers of steps, however large they are."""
        left = self.factor ** steps[:, None]  # (T, D)
        return self.limit + left[..., None] * (self.start - self.limit)

    def weights(self, steps: Int[Tensor, " T"]) -> Float[Tensor, "T D C"]:
        """The weights after these numbers of steps."""
        return self.basis @ self.modes(steps)


def descent(
    spectrum: Spectrum, y: Float[Tensor, "N C"], start: Float[Tensor, "D C"], *, lr: float, weight_decay: float = 0.0
) -> Path:
    """Full-batch gradient descent of a linear model, for any number of steps at the price of one.

    The objective is the squared error, averaged over examples and outputs, plus weight_decay / 2 times the squared
    norm of the weights over the number of outputs. Raises ValueError for a learning rate at which it does not converge.
    """
    x, values, basis = spectrum
    outputs = y.shape[1]
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must not be negative, got weight_decay={weight_decay}")
    largest = outputs / (float(values[-1]) + weight_decay / 2)
    if not 0 < lr < largest:
        raise ValueError(f"lr must be positive and below the stability limit {largest:.6g}, got lr={lr}")
    curvature = (values + weight_decay / 2)[:, None]
    origin, pull = basis.T @ start, basis.T @ (x.T @ y) / len(x)
    limit = torch.where(curvature > 0, pull / curvature.clamp(min=torch.finfo(x.dtype).tiny), origin)
    return Path(basis, origin, limit, 1 - 2 * lr / outputs * curvature[:, 0])


def stepwise_descent(
    x: Float[Tensor, "N D"],
    y: Float[Tensor, "N C"],
    start: Float[Tensor, "D C"],
    *,
    lr: float,
    weight_decay: float = 0.0,
    at: Sequence[int],
) -> Float[Tensor, "T D C"]:
    """The weights after the steps `at`, found by taking every step: what `descent` is checked against."""
    from tqdm import tqdm

    if list(at) != sorted(set(at)) or not at or at[0] < 0:
        raise ValueError(f"at must be rising numbers of steps, at least one, got {list(at)}")
    w, out = start.clone(), []
    for step in tqdm(range(at[-1] + 1), "gradient descent", delay=2, leave=False):
        if step == at[len(out)]:
            out.append(w.clone())
        gradient = 2 * x.T @ (x @ w - y) / len(x) + weight_decay * w
        w = w - lr / y.shape[1] * gradient
    return torch.stack(out)


class Law(NamedTuple):
    """A distribution as values with weights that sum to one: the mean of f over it is weights @ f(values)."""

    values: Float[Tensor, " K"]
    weights: Float[Tensor, " K"]


def marchenko_pastur(ratio: float, nodes: int = 20_000) -> Law:
    """Eigenvalues of the covariance of N standard normal inputs in D dimensions as both grow with D / N = `ratio`.

    In the angle that takes 1 + ratio + 2 sqrt(ratio) cos(angle) over the support, the density is a smooth periodic
    function, for which equal steps are exact but for an error that falls geometrically in the number of nodes. Above
    a ratio of 1 the mass 1 - 1 / ratio of directions without data stands at the value zero. Raises ValueError for a
    ratio that is not positive, or so near 1 that the nodes do not do.

    Reference: Marchenko, Pastur (1967), Distribution of eigenvalues for some sets of random matrices.
    """
    if not (ratio > 0 and math.isfinite(ratio)):
        raise ValueError(f"ratio must be positive and finite, got ratio={ratio}")
    if ratio != 1 and abs(math.log(ratio)) * nodes < 30:
        raise ValueError(f"ratio={ratio} is too near 1 for {nodes} nodes; it needs {30 / abs(math.log(ratio)):.0f}")
    angle = torch.arange(1, nodes + 1, dtype=torch.float64) * math.pi / (nodes + 1)
    low, gap = (1 - math.sqrt(ratio)) ** 2, 4 * math.sqrt(ratio)
    values = low + gap * (angle / 2).cos().square()
    weights = 2 / (nodes + 1) * angle.sin().square() / values
    if ratio < 1:
        return Law(values, weights)
    at_zero = 1 - 1 / ratio if ratio > 1 else 1 / (nodes + 1)  # at 1 the density has a share of the last step there
    pad = torch.nn.functional.pad
    return Law(pad(values, (1, 0)), pad(weights, (1, 0), value=at_zero))


class Sums(NamedTuple):
    """Pairs of numbers as two one-hot vectors side by side, and their sums."""

    x: Float[Tensor, "N P2"]
    y: Int[Tensor, " N"]


def modular_addition(p: int, share: float, seed: int) -> tuple[Sums, Sums]:
    """All p * p sums modulo p in random order, cut into this share for training and the rest for testing.

    (a, b) and (b, a) are two different rows. `p` must be an odd prime, so that all frequencies 1 to (p - 1) / 2 are
    alike: each one's waves are those of another with the numbers renamed.

    Reference: Power et al. (2022), Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets.
    """
    if p < 3 or any(p % k == 0 for k in range(2, math.isqrt(p) + 1)):
        raise ValueError(f"p must be an odd prime, got p={p}")
    train = round(share * p * p) if 0 < share < 1 else 0
    if not 0 < train < p * p:
        raise ValueError(f"share must leave at least one of the {p * p} sums on either side, got share={share}")
    a, b = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed)).split([train, p * p - train])
    return tuple(Sums(_two_hot(rows // p, rows % p, p), (rows // p + rows % p) % p) for rows in (a, b))


def _two_hot(a: Int[Tensor, " N"], b: Int[Tensor, " N"], p: int) -> Float[Tensor, "N P2"]:
    return torch.cat([torch.nn.functional.one_hot(t, p) for t in (a, b)], 1).float()


def _means(predictivity: tuple[float, float], correlation: float) -> Float[Tensor, " 2"]:
    rho = torch.tensor(predictivity, dtype=torch.float64)
    if not ((rho > 0.5) & (rho < 1)).all():
        raise ValueError(f"predictivity must be between 0.5 and 1 for both latents, got {tuple(predictivity)}")
    if not -1 < correlation < 1:
        raise ValueError(f"correlation must be between -1 and 1, got {correlation}")
    return math.sqrt(2) * torch.erfinv(2 * rho - 1)
