"""Data whose right answer is known; studies and tests share it."""

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
