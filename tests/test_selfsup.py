"""Self-supervised losses against loops over examples and against an independent library."""

import inspect
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from studybook import ensemble, selfsup, views


@pytest.fixture(scope="module")
def embeddings():
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(12, 5, generator=generator, dtype=torch.float64) @ torch.diag(torch.arange(1.0, 6.0).double())
    return a, a + 0.5 * torch.randn(12, 5, generator=generator, dtype=torch.float64)


def test_barlow_twins_equals_correlations_one_by_one(embeddings):
    a, b = (z.numpy() for z in embeddings)
    expected = 0.0
    for i in range(5):
        for j in range(5):
            c = np.corrcoef(a[:, i], b[:, j])[0, 1]
            expected += (1 - c) ** 2 if i == j else 0.01 * c**2
    assert float(selfsup.barlow_twins(*embeddings, redundancy=0.01)) == pytest.approx(expected, rel=1e-10)


def test_simclr_equals_a_loop_and_an_independent_library(embeddings):
    a, b = embeddings
    z = torch.cat([a, b]).numpy()
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for i in range(24):
        scores = [math.exp(z[i] @ z[j] / 0.3) for j in range(24) if j != i]
        total -= math.log(math.exp(z[i] @ z[(i + 12) % 24] / 0.3) / sum(scores))
    ours = float(selfsup.simclr(a, b, 0.3))
    assert ours == pytest.approx(total / 24, rel=1e-10)
    labels = torch.arange(12).repeat(2)
    theirs = losses.NTXentLoss(temperature=0.3)(torch.cat([a, b]), labels)
    assert ours == pytest.approx(float(theirs), rel=1e-6)


def test_vicreg_equals_an_independent_library(embeddings):
    a, b = embeddings
    theirs = losses.VICRegLoss(invariance_lambda=25, variance_mu=25, covariance_v=1)(a, ref_emb=b)
    assert float(selfsup.vicreg(a, b)) == pytest.approx(float(theirs), rel=1e-6)


def test_vicreg_equals_its_terms_one_by_one(embeddings):
    a, b = (0.3 * z.numpy() for z in embeddings)
    near = np.mean((a - b) ** 2)
    spread = np.mean([max(0, 1 - math.sqrt(np.var(z[:, k], ddof=1) + 1e-4)) for z in (a, b) for k in range(5)])
    mixed = sum(np.cov(z[:, i], z[:, j])[0, 1] ** 2 for z in (a, b) for i in range(5) for j in range(5) if i != j) / 5
    found = selfsup.vicreg(*(0.3 * z for z in embeddings), 3.0, 2.0, 0.5)
    assert float(found) == pytest.approx(3 * near + 2 * spread + 0.5 * mixed, rel=1e-10)


def test_linearized_loss_is_zero_exactly_for_whitened_embeddings(embeddings):
    a, _ = embeddings
    white = a @ torch.linalg.inv(torch.linalg.cholesky(a.T @ a / 12)).T
    assert float(selfsup.linearized_barlow_twins(white, white)) == pytest.approx(0, abs=1e-20)
    assert float(selfsup.linearized_barlow_twins(a, 0 * a)) == pytest.approx(5)
    swapped = [selfsup.cross_correlation(*pair) for pair in (embeddings, embeddings[::-1])]
    assert torch.allclose(*swapped)
    assert torch.allclose(swapped[0], swapped[0].T)


@pytest.mark.parametrize("loss", [selfsup.barlow_twins, selfsup.simclr, selfsup.vicreg])
def test_which_view_comes_first_does_not_matter_and_gradients_are_right(embeddings, loss):
    a, b = embeddings
    assert float(loss(a, b)) == pytest.approx(float(loss(b, a)), rel=1e-12)
    z = a.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, b), (z,), atol=1e-5)


def encoder():
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 6))


def test_a_pair_embeds_both_views_and_ensemble_trains_it():
    x = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    net = ensemble.init(lambda: selfsup.Pair(encoder(), 1), [3]).members[0]
    both = net(torch.cat([x, x.flip(-1)], 1))
    assert torch.allclose(both[:, :6], net(x), atol=1e-6)
    assert torch.allclose(both[:, 6:], net(x.flip(-1)), atol=1e-6)

    def trained(seeds):
        nets = ensemble.init(lambda: selfsup.Pair(encoder(), 1), seeds)
        how = views.pairs(views.How(shift=2))
        loss = selfsup.on_pairs(selfsup.vicreg)
        return ensemble.fit(nets, x, torch.zeros(64).long(), epochs=60, batch=32, lr=0.01, augment=how, loss=loss)

    pair = trained([3, 4])
    two = torch.cat([x, x.roll(1, -1)], 1)
    before, after = (selfsup.vicreg(*n(two).chunk(2, 1)) for n in (net, pair.members[0]))
    assert after < 0.8 * before
    alone = trained([4]).members[0]
    assert torch.equal(alone.encoder[0].weight, pair.members[1].encoder[0].weight)


def test_refusals(embeddings):
    a, b = embeddings
    with pytest.raises(ValueError, match="same two images or more"):
        inspect.unwrap(selfsup.barlow_twins)(a, b[:3])
    with pytest.raises(ValueError, match="temperature must be positive"):
        selfsup.simclr(a, b, 0.0)
    with pytest.raises(ValueError, match="1 channels or twice as many"):
        selfsup.Pair(encoder(), 1)(torch.zeros(2, 3, 16, 16))
