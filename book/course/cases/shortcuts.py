"""The shortcut assignment's cases: a model that leans on a loud latent, and four data sets, one falsely described."""

from statistics import NormalDist

import numpy as np

TRAIN, STEPS, SIDE, SIZE = 2000, 40, 40, 4000


def case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A setting, a model's decisions on a grid of the latent plane, and the sets with what is stated of them."""
    setting = np.array([rng.uniform(0.65, 0.75), rng.uniform(0.85, 0.92), rng.uniform(0.2, 0.4)]).round(3)
    ratio = float(rng.integers(6, 13))
    latents, labels = _drawn(TRAIN, *setting, rng)
    side = np.linspace(-3, 3, SIDE + 1)[:-1] + 3 / SIDE
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    decisions = np.sign(grid @ _trained(latents, labels, ratio))

    stated = np.column_stack([rng.uniform(0.6, 0.75, 4), rng.uniform(0.8, 0.88, 4), rng.uniform(-0.3, 0.3, 4)]).round(2)
    true, which, what = stated.copy(), rng.integers(4), rng.integers(3)
    true[which, what] += rng.choice([-1, 1]) * (0.3 if what == 2 else 0.09)
    while True:
        sets = [_drawn(SIZE, *row, rng) for row in true]
        off = np.sort(np.abs(np.array([_seen(*one) for one in sets]) - stated).ravel())
        if off[-1] > 2 * off[-2]:  # else chance could pass for the false statement
            break
    return {
        "setting": setting, "ratio": np.array(ratio), "grid": grid, "decisions": decisions.astype(np.int8),
        "sets": np.stack([x for x, _ in sets]).astype(np.float32), "sets_labels": np.stack([y for _, y in sets]),
        "stated": stated,
    }  # fmt: skip


def _drawn(n: int, shortcut: float, core: float, correlation: float, rng: np.random.Generator) -> tuple:
    labels = rng.permutation(np.arange(n) % 2)
    noise = rng.standard_normal((n, 2))
    noise[:, 1] = correlation * noise[:, 0] + np.sqrt(1 - correlation**2) * noise[:, 1]
    means = np.array([NormalDist().inv_cdf(rho) for rho in (shortcut, core)])
    return (2 * labels[:, None] - 1) * means + noise, labels


def _seen(latents: np.ndarray, labels: np.ndarray) -> list[float]:
    right = ((latents > 0) == (labels[:, None] == 1)).mean(0)
    return [*right, np.mean([np.corrcoef(latents[labels == c].T)[0, 1] for c in (0, 1)])]


def _trained(latents: np.ndarray, labels: np.ndarray, ratio: float) -> np.ndarray:
    """What logistic regression does with each latent after a few steps on inputs of unequal loudness."""
    loud = np.array([np.sqrt(ratio), 1 / np.sqrt(ratio)])
    x, weights = latents * loud, np.zeros(2)
    for _ in range(STEPS):
        weights += 0.05 * x.T @ (labels - 1 / (1 + np.exp(-x @ weights))) / len(x)
    return weights * loud
