"""Scores of predictions. Each maps `(*E, N, C)` and labels `(N,)` to one number per member, `(*E,)`.

Labels may also carry the leading axes, `(*E, N)`, where members were scored on different examples.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def accuracy(scores: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"], top: int = 1) -> Float[Tensor, "*E"]:
    """Share of examples whose label is among the `top` highest scores (logits or probabilities), in [0, 1].

    Of equal scores the first counts as higher, so a constant score is right for class 0 only.
    """
    labels = checked(scores, labels)
    if not 1 <= top <= scores.shape[-1]:
        raise ValueError(f"top must be between 1 and the {scores.shape[-1]} classes, got top={top}")
    own = scores.gather(-1, labels[..., None])
    before = torch.arange(scores.shape[-1], device=scores.device) < labels[..., None]
    rank = ((scores > own) | ((scores == own) & before)).sum(-1)
    return (rank < top).to(scores.dtype).mean(-1)


def nll(logits: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"]) -> Float[Tensor, "*E"]:
    """Mean negative log-likelihood of the labels, in nats, at least 0."""
    labels = checked(logits, labels)
    return -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0].mean(-1)


def brier(probs: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"]) -> Float[Tensor, "*E"]:
    """Mean squared distance between probabilities and the one-hot label, summed over classes, in [0, 2].

    Reference: Brier (1950), Verification of Forecasts Expressed in Terms of Probability.
    """
    labels = checked(probs, labels)
    check_probs("brier", probs)
    return (probs - F.one_hot(labels, probs.shape[-1])).square().sum(-1).mean(-1)


def checked(scores: Tensor, labels: Tensor) -> Tensor:
    """`labels` broadcast to the rows of `scores`; ValueError for shapes that do not fit, NaN, labels out of range."""
    if labels.shape[-1] != scores.shape[-2] or scores.shape[-2] == 0:
        raise ValueError(
            "scores and labels must have the same positive number of examples, "
            f"got {scores.shape[-2]} and {labels.shape[-1]}"
        )
    if scores.isnan().any():
        raise ValueError("scores must be numbers, got NaN")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= scores.shape[-1]:
        raise ValueError(f"labels must be in [0, {scores.shape[-1]}), got {low} to {high}")
    return labels.expand(scores.shape[:-1])


def check_probs(caller: str, probs: Tensor) -> None:
    """Raises ValueError unless the rows of `probs` are probabilities."""
    sums = probs.sum(-1)
    if float(probs.min()) < 0 or not torch.allclose(sums, torch.ones(()).to(sums), atol=1e-3):
        raise ValueError(f"{caller}: rows of probs must be 0 or more and sum to 1; for logits pass logits.softmax(-1)")
