"""Stepwise self-supervision: closed forms against an ODE solver, known spectra and kernels with known features."""

import math
import types

import numpy as np
import pytest
import torch
from conftest import method
from scipy.integrate import solve_ivp
from scipy.linalg import subspace_angles
from torch import nn

from studybook import kernels, selfsup


@pytest.fixture(scope="module")
def study():
    return types.SimpleNamespace(**method("selfsup/stepwise-ssl"))


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(4)
    a = torch.randn(60, 7, generator=generator, dtype=torch.float64) * (1.5 ** torch.arange(7)).double()
    return a, a + 0.1 * torch.randn(60, 7, generator=generator, dtype=torch.float64)


def test_contrastive_matrix_has_the_loss_of_the_embeddings(study, pairs):
    a, b = pairs
    values, vectors = study.contrastive(a, b)
    assert (values.diff() <= 0).all()
    w = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = w @ vectors @ values.diag() @ vectors.T @ w.T
    loss = float((c - torch.eye(3, dtype=torch.float64)).square().sum())
    assert loss == pytest.approx(float(selfsup.linearized_barlow_twins(a @ w.T, b @ w.T)), rel=1e-12)


def test_the_gradient_flow_is_the_one_on_the_page(pairs):
    a, b = pairs
    w = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    selfsup.linearized_barlow_twins(a @ w.T, b @ w.T).backward()
    gamma = (a.T @ b + b.T @ a) / 120
    c = w @ gamma @ w.T
    expected = 4 * (c - torch.eye(3, dtype=torch.float64)) @ w @ gamma
    torch.testing.assert_close(w.grad, expected.detach(), rtol=1e-10, atol=1e-10)


def test_aligned_starts_follow_the_logistic_curve_exactly(study, pairs):
    values, vectors = study.contrastive(*pairs)
    start = torch.diag(torch.tensor([0.02, 0.05, 0.01], dtype=torch.float64)) @ vectors[:, :3].T
    gamma = (vectors * values @ vectors.T).numpy()

    def flow(_, flat):
        w = flat.reshape(3, 7)
        return (-4 * (w @ gamma @ w.T - np.eye(3)) @ w @ gamma).ravel()

    at = torch.linspace(0, 0.6, 7, dtype=torch.float64)
    solved = solve_ivp(flow, (0, 0.6), start.numpy().ravel(), t_eval=at.numpy(), rtol=1e-10, atol=1e-13).y.T
    begin = study.first_values(start, values, vectors)
    torch.testing.assert_close(begin, values[:3] * torch.tensor([0.02, 0.05, 0.01]).double().square())
    forecast = study.logistic_curves(begin, values[:3], at)
    for k in range(7):
        w = solved[k].reshape(3, 7)
        np.testing.assert_allclose(np.diag(w @ gamma @ w.T), forecast[k].numpy(), rtol=1e-6, atol=1e-9)


def test_a_small_random_start_behaves_like_its_triangular_part(study, pairs):
    values, vectors = study.contrastive(*pairs)
    w = 1e-6 * torch.randn(3, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    begin = study.first_values(w, values, vectors)
    closed = (1 / begin - 1).log() / (8 * values[:3])
    gamma = vectors * values @ vectors.T
    rate, at, curves = 0.01 / (8 * float(values[0])), [], []
    for step in range(int(1.2 * float(closed.max()) / rate)):
        c = w @ gamma @ w.T
        if step % 50 == 0:
            at.append(step * rate)
            curves.append(torch.linalg.eigvalsh(c).flip(0))
        w = w - 4 * rate * (c - torch.eye(3, dtype=torch.float64)) @ w @ gamma
    found = study.half_times(torch.tensor(at, dtype=torch.float64), torch.stack(curves))
    np.testing.assert_allclose(found.numpy(), closed.numpy(), rtol=0.02)
    assert math.degrees(subspace_angles(w.T.numpy(), vectors[:, :3].numpy()).max()) < 1


def test_half_times_and_head_starts_of_known_curves(study):
    at = torch.arange(5).double()
    curves = torch.tensor([[0.0, 0, 0], [0.4, 0, 0], [0.8, 0.1, 0], [1.0, 0.6, 0], [1.0, 1.0, 0.2]]).double()
    times = study.half_times(at, curves)
    assert times[:2].tolist() == pytest.approx([1.25, 2.8])
    assert math.isnan(times[2])
    assert study.head_starts(curves).tolist() == pytest.approx([0.1, 0.0])
    together = torch.linspace(0, 1, 11).double()[:, None].expand(-1, 3)
    assert study.head_starts(together).tolist() == pytest.approx([0.5, 0.5])


def test_kernel_components_with_known_features_are_the_linear_solution(study, monkeypatch):
    """With a linear kernel the kernel version must find the embedding of the contrastive matrix's eigenvectors."""
    x = torch.randn(40, 1, 2, 3, generator=torch.Generator().manual_seed(5)).double()
    middle = x - x.mean(0)

    def linear(a, b, depth):
        return kernels.Wide(a @ b.T, a @ b.T)

    monkeypatch.setattr(kernels, "wide", linear)
    columns = study.kernel_components(middle, 3)
    a, b = middle.flatten(1).chunk(2)
    _, vectors = study.contrastive(a, b)
    expected, _ = torch.linalg.qr(middle.flatten(1) @ vectors[:, :3])
    assert math.degrees(subspace_angles(columns.numpy(), expected.numpy()).max()) < 1e-5


def test_what_components_explain(study):
    z = torch.randn(30, 6, generator=torch.Generator().manual_seed(6)).double()
    top = study.leading(z, 5)
    assert study.explained(z, top) == pytest.approx(1)
    others = torch.linalg.svd((z - z.mean(0)).double())[0][:, 10:20]
    assert study.explained(z, others) == pytest.approx(0, abs=1e-12)
    assert study.spectrum(z).sum() == pytest.approx(float(z.var(0, correction=0).sum()))


def test_a_smaller_start_scales_the_embedding_and_leaves_simclr_as_it_is(study):
    x = torch.rand(10, 1, 14, 14, generator=torch.Generator().manual_seed(7))
    made = []
    for scale in (1.0, 0.3):
        torch.manual_seed(3)
        made.append(study.scaled(lambda: study.convolutional(1), scale)())
    assert all(layer.bias is None for layer in made[0] if isinstance(layer, nn.Conv2d | nn.Linear))
    z, small = (net(x).detach() for net in made)
    torch.testing.assert_close(small, 0.3**3 * z, rtol=1e-4, atol=1e-6)
    losses = [float(selfsup.simclr(part, part.flip(0))) for part in (z, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_control_pairs_views_of_different_images(study):
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 6, 6) / 4
    both = study.different(study.views.How())(x, torch.Generator().manual_seed(0))
    assert torch.equal(both[:, :1], x)
    assert torch.equal(both[:, 1:], x.roll(1, 0))


def test_head_starts_are_taken_among_directions_that_have_arrived(study):
    curves = torch.tensor([[0.0, 0, 0], [0.4, 0, 0], [0.8, 0.1, 0.001], *[[1.0, 1.0, 0.02]] * 10]).double()
    assert study.arrived_head(curves) == pytest.approx(0.1)
    assert math.isnan(study.arrived_head(curves[:, [0, 2]]))


def test_norms_of_residual_networks_look_at_the_batch_and_at_nothing_that_they_remember(study):
    x = torch.rand(12, 1, 14, 14, generator=torch.Generator().manual_seed(8))
    torch.manual_seed(4)
    net = study.residual(1)
    learning, looked_at = net.train()(x).detach(), net.eval()(x).detach()
    torch.testing.assert_close(looked_at, learning)
    assert learning.shape == (12, study.NET_DIMS)
    assert list(net.buffers()) == []
    assert any(isinstance(part, nn.BatchNorm2d) for part in net.modules())
    torch.manual_seed(4)
    small = study.scaled(lambda: study.residual(1), 0.5)().eval()
    assert 0 < float(small(x).detach().var(0).sum()) < 0.25 * float(looked_at.var(0).sum())
