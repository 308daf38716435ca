"""Losses of joint-embedding self-supervised learning, from the embeddings of two views, and their way into `ensemble`.

A batch's losses depend on all its members, so they are single numbers; `on_pairs` turns them into what `ensemble.fit`
wants, and `Pair` embeds both views: `fit(init(lambda: Pair(encoder()), seeds), x, y, augment=views.pairs(how),
loss=on_pairs(vicreg))`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PairLoss = Callable[[Tensor, Tensor], Tensor]


class Pair(nn.Module):
    """An encoder applied to two views that lie behind each other: (B, 2 C, H, W) to both embeddings, (B, 2 D).

    Both go through the encoder as one batch. An input of one view, (B, C, H, W), gives one embedding, (B, D).
    """

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder, self.channels = encoder, channels

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == self.channels:
            return self.encoder(x)
        if x.shape[1] != 2 * self.channels:
            raise ValueError(f"x must have {self.channels} channels or twice as many, got {x.shape[1]}")
        first, second = self.encoder(torch.cat(x.chunk(2, 1))).chunk(2)
        return torch.cat([first, second], 1)


def on_pairs(loss: PairLoss) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as `ensemble.fit` takes it: of embeddings (B, 2 D) and labels that it does not read, (B,)."""

    def each(out: Tensor, labels: Tensor) -> Tensor:
        return loss(*out.chunk(2, -1)).expand(len(out))

    return each


def cross_correlation(a: Float[Tensor, "N D"], b: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    """(a^T b + b^T a) / 2N, neither centered nor scaled: the matrix of the linearized Barlow Twins.

    Reference: Simon, Knutins, Ziyin, Geisz, Fetterman, Albrecht (2023), On the Stepwise Nature of SSL.
    """
    c = a.T @ b / len(_same(a, b))
    return (c + c.T) / 2


def linearized_barlow_twins(a: Float[Tensor, "N D"], b: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Squared Frobenius distance of `cross_correlation` from the identity."""
    c = cross_correlation(a, b)
    return (c - torch.eye(len(c), dtype=c.dtype, device=c.device)).square().sum()


def barlow_twins(a: Float[Tensor, "N D"], b: Float[Tensor, "N D"], redundancy: float = 0.005) -> Float[Tensor, ""]:
    """Embeddings standardized over the batch; their correlations should be 1 with themselves and 0 with others.

    Reference: Zbontar, Jing, Misra, LeCun, Deny (2021), Barlow Twins.
    """
    n = len(_same(a, b))
    a, b = ((z - z.mean(0)) / z.std(0, correction=0) for z in (a, b))
    c = a.T @ b / n
    diagonal = c.diagonal()
    return (1 - diagonal).square().sum() + redundancy * (c.square().sum() - diagonal.square().sum())


def simclr(a: Float[Tensor, "N D"], b: Float[Tensor, "N D"], temperature: float = 0.5) -> Float[Tensor, ""]:
    """NT-Xent: each of the 2N views must find its partner among the other 2N - 1 by cosine similarity.

    Reference: Chen, Kornblith, Norouzi, Hinton (2020), A Simple Framework for Contrastive Learning.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    n = len(_same(a, b))
    z = F.normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


def vicreg(
    a: Float[Tensor, "N D"],
    b: Float[Tensor, "N D"],
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Float[Tensor, ""]:
    """Views close (mean square), every dimension's deviation at least 1 (hinge), dimensions uncorrelated.

    Reference: Bardes, Ponce, LeCun (2022), VICReg.
    """
    n, d = _same(a, b).shape
    near = F.mse_loss(a, b)
    spread = sum((1 - (z.var(0) + 1e-4).sqrt()).relu().mean() for z in (a, b)) / 2
    mixed = 0.0
    for z in (a, b):
        centered = z - z.mean(0)
        c = centered.T @ centered / (n - 1)
        mixed = mixed + (c.square().sum() - c.diagonal().square().sum()) / d
    return invariance * near + variance * spread + covariance * mixed


def _same(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(f"a and b must be embeddings of the same two images or more, got {a.shape} and {b.shape}")
    return a
