import copy
import math
from functools import partial
from inspect import unwrap  # what a user calls: without the shape checks of the tests

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from studybook import data, ensemble, metrics, models, stats, synthetic

FAST = {"epochs": 3, "batch": 32, "lr": 1e-2}
NESTEROV = ensemble.SGD(momentum=0.9, nesterov=True)


def small():
    return models.mlp(20, 16, 5)


def dropping():
    return nn.Sequential(nn.Linear(20, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 5))


def linear():
    return models.mlp(10, 1)


def linear_alone():
    return nn.Sequential(nn.Dropout(0.0), nn.Linear(10, 1))


BOTH = pytest.mark.parametrize("make", [small, dropping])  # stacked, one after another
BOTH_LINEAR = pytest.mark.parametrize("make", [linear, linear_alone])


@pytest.fixture(scope="module")
def points():
    return synthetic.blobs(300, 5, 20, 0.3, seed=0)


@pytest.fixture(scope="module")
def overlapping():
    return synthetic.blobs(200, 2, 10, 1.0, seed=1)


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(48, 3, 24, 24, generator=generator), torch.arange(48) % 4


def weights(nets):
    """All weights of each member, (E, P)."""
    return torch.stack([torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets.members])


def assert_near(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)


def assert_matches(found, expected, atol=1e-5):
    """Two ensembles have the same weights and buffers."""
    for a, b in zip(found.members, expected.members, strict=True):
        for name, value in a.state_dict().items():
            assert_near(value, b.state_dict()[name], atol)


def by_hand(nets, x, y, epochs, batch, lr, optimizer=torch.optim.Adam, loss=F.cross_entropy, clip=None, schedule=None):
    """Plain training loops: each member's weights after every step, (steps + 1, E, P), and its losses, (steps, E)."""
    paths, losses = [], []
    for net, seed in zip(copy.deepcopy(nets.members), nets.seeds, strict=True):
        shuffle, optim = torch.Generator().manual_seed(seed), optimizer(net.train().parameters(), lr=lr)
        path, seen, total = [weights(ensemble.Nets((net,), (seed,)))[0]], [], epochs * (len(x) // batch)
        with torch.random.fork_rng(devices=[]):
            for epoch in range(epochs):
                torch.manual_seed(ensemble._mixed(seed, epoch + 1))  # what dropout draws
                for rows in torch.randperm(len(x), generator=shuffle)[: len(x) // batch * batch].split(batch):
                    if schedule is not None:
                        optim.param_groups[0]["lr"] = lr * schedule(len(seen) / total)
                    optim.zero_grad()
                    value = loss(net(x[rows]), y[rows])
                    value.backward()
                    if clip is not None:
                        nn.utils.clip_grad_norm_(net.parameters(), clip)
                    optim.step()
                    seen.append(value.detach())
                    path.append(weights(ensemble.Nets((net,), (seed,)))[0])
        paths.append(torch.stack(path))
        losses.append(torch.stack(seen))
    return torch.stack(paths, 1), torch.stack(losses, 1)


def assert_follows(nets, x, y, ours, theirs):
    """`fit(**ours)` has the weights of the plain loop of `theirs` after every fourth step and at the end."""
    shared = {"epochs": 3, "batch": 32}
    path, _ = by_hand(nets, x, y, **shared, **theirs)
    at = (0, *range(1, len(path), 4), len(path) - 1)
    found = ensemble.fit(nets, x, y, **shared, **ours, record=weights, at=at)
    assert found.log.at == at
    assert_near(found.log.curves, path[list(at)])
    assert_near(weights(found), path[-1])
    assert (path[-1] - path[0]).abs().max() > 1e-3  # there was something to follow


# ---------------------------------------------------------------- the helpers


def test_the_helpers_see_a_difference(points):
    nets = ensemble.init(small, [0])
    with pytest.raises(AssertionError):
        assert_matches(nets, ensemble.init(small, [1]))
    with pytest.raises(AssertionError):
        assert_near(torch.zeros(1), torch.full((1,), 2e-5))
    with pytest.raises(AssertionError):
        assert_follows(nets, *points, {"lr": 1e-2}, {"lr": 1.01e-2})


# ---------------------------------------------------------------- known answers


def test_fit_learns_separable_points(points):
    x, y = points
    nets = ensemble.fit(ensemble.init(small, range(3)), x, y, epochs=20, batch=32, lr=1e-2)
    assert metrics.accuracy(ensemble.logits(nets, x), y).min() > 0.95


@pytest.mark.parametrize("make", [lambda: models.mlp(10, 2), lambda: nn.Sequential(nn.Dropout(0.0), nn.Linear(10, 2))])
def test_squared_loss_of_a_linear_model_ends_at_least_squares(overlapping, make):
    x, _ = overlapping
    targets = torch.randn(200, 2, generator=torch.Generator().manual_seed(5))
    exact = torch.linalg.lstsq(torch.cat([x, torch.ones(200, 1)], 1), targets).solution  # (D + 1, C)
    nets = ensemble.fit(
        ensemble.init(make, [0, 1]),
        x,
        targets,
        epochs=400,
        batch=200,
        lr=0.1,
        optimizer=ensemble.SGD(momentum=0.9),
        loss=ensemble.squared,
        tolerance=1e-5,
    )
    assert nets.log.converged.all()
    for net in nets.members:
        assert_near(net[-1].weight, exact[:-1].T, 1e-4)
        assert_near(net[-1].bias, exact[-1], 1e-4)


@pytest.mark.parametrize(("outputs", "classes"), [(5, 5), (1, 2)])
def test_label_noise_draws_its_share_of_labels_anew_once(outputs, classes):
    n, seen = 20_000, []

    def spy(logits, labels):
        seen.append(labels)
        return logits.sum(-1)

    nets = ensemble.init(lambda: models.mlp(1, outputs), [0, 1, 2])
    noise = torch.tensor([0.0, 0.4, 1.0])
    zeros = torch.zeros(n, dtype=torch.int64)
    ensemble.fit(nets, torch.zeros(n, 1), zeros, epochs=2, batch=n, lr=1e-3, loss=spy, label_noise=noise)
    shares = torch.stack([(seen[0] == c).float().mean(-1) for c in range(1, classes)])  # (C - 1, E)
    assert_near(shares, (noise / classes).expand(classes - 1, 3), 0.015)
    assert (shares[:, 0] == 0).all()
    torch.testing.assert_close(seen[0].sort().values, seen[1].sort().values)


def test_drops_divide_by_ten_after_the_named_fractions():
    factor = ensemble.drops(0.5, 0.75)
    assert [factor(done) for done in (0.0, 0.25, 0.5, 0.75, 0.99)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_cosine_rises_and_falls():
    factor = ensemble.cosine(0.2)
    assert [factor(done) for done in (0.0, 0.1, 0.2, 0.6)] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    assert factor(1 - 1e-9) == pytest.approx(0.0, abs=1e-9)


def test_the_log_counts_steps_and_keeps_what_was_recorded(points):
    x, y = points
    nets = ensemble.init(small, [0, 1])
    assert nets.log is None
    found = ensemble.fit(nets, x, y, **FAST, record=lambda n: ensemble.logits(n, x), at=(0, 9, 10, 27))
    log = found.log
    assert log.steps.tolist() == [27, 27]
    assert log.diverged.tolist() == [0, 0]
    assert log.converged.tolist() == [False, False]
    assert log.gradient.isnan().all()
    assert log.at == (0, 9, 10, 27)
    assert log.curves.shape == (4, 2, 300, 5)
    assert_near(log.curves[0], ensemble.logits(nets, x))
    assert_near(log.curves[3], ensemble.logits(found, x))
    assert ensemble.fit(nets, x, y, **FAST).log.curves is None


# ---------------------------------------------------------------- references


SGDS = {
    "plain": (ensemble.SGD(), torch.optim.SGD, 0.1, 0.0),
    "decay": (ensemble.SGD(), torch.optim.SGD, 0.1, 0.03),
    "momentum": (ensemble.SGD(0.9), partial(torch.optim.SGD, momentum=0.9), 0.05, 0.03),
    "nesterov": (NESTEROV, partial(torch.optim.SGD, momentum=0.9, nesterov=True), 0.05, 0.03),
}
ADAMS = {
    "Adam": (ensemble.Adam(), torch.optim.Adam, 3e-3, 0.0),
    "Adam-decay": (ensemble.Adam(), torch.optim.Adam, 3e-3, 0.03),
    "Adam-betas": (ensemble.Adam(0.8, 0.9, 1e-4), partial(torch.optim.Adam, betas=(0.8, 0.9), eps=1e-4), 3e-3, 0.0),
    "AdamW": (ensemble.Adam(decoupled=True), torch.optim.AdamW, 3e-3, 0.3),
}  # fmt: skip
OPTIMIZERS = SGDS | ADAMS


@BOTH
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("schedule", [None, ensemble.cosine(0.3)], ids=["constant", "cosine"])
def test_members_equal_a_plain_training_loop(points, make, name, clip, schedule):
    optimizer, peer, lr, decay = OPTIMIZERS[name]
    assert ensemble._stackable(make()) == (make is small)
    common = {"lr": lr, "clip": clip, "schedule": schedule}
    ours = {"optimizer": optimizer, "weight_decay": decay, **common}
    theirs = {"optimizer": partial(peer, weight_decay=decay), **common}
    assert_follows(ensemble.init(make, [0, 3]), *points, ours, theirs)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_every_activation_equals_a_plain_training_loop(points, activation, bias, last):
    def make():
        layers = [nn.Linear(20, 16, bias), activation(), nn.Linear(16, 1, bias), activation(), nn.Linear(1, 5, bias)]
        return nn.Sequential(nn.Flatten(), *layers, *([activation()] if last else []))

    assert ensemble._stackable(make())
    rate = {"lr": 0.1}
    assert_follows(
        ensemble.init(make, [0, 3]),
        *points,
        {**rate, "optimizer": ensemble.SGD(0.9)},
        {**rate, "optimizer": partial(torch.optim.SGD, momentum=0.9)},
    )


def one_hot(logits, labels):
    return (logits - F.one_hot(labels, logits.shape[-1])).square().sum(-1).mean()


LOSSES = {
    "cross_entropy": (ensemble.cross_entropy, F.cross_entropy, 5, "labels"),
    "logistic": (ensemble.logistic, lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y.float()), 1, "binary"),
    "squared-labels": (ensemble.squared, one_hot, 5, "labels"),
    "squared-signs": (ensemble.squared, lambda z, y: F.mse_loss(z[:, 0], 2.0 * y - 1), 1, "binary"),
    "squared-targets": (ensemble.squared, lambda z, y: 3 * F.mse_loss(z, y), 3, "targets"),
    "own": (lambda z, y: z.square().sum(-1) * y, lambda z, y: (z.square().sum(-1) * y).mean(), 2, "binary"),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dropout", [False, True])
def test_every_loss_equals_a_plain_training_loop(points, name, dropout):
    loss, peer, outputs, kind = LOSSES[name]
    x, labels = points
    targets = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(5))
    y = {"labels": labels, "binary": labels % 2, "targets": targets}[kind]

    def make():
        return nn.Sequential(*models.mlp(20, 16, outputs), *([nn.Dropout(0.1)] if dropout else []))

    ours, theirs = {"loss": loss, "optimizer": ensemble.SGD()}, {"loss": peer, "optimizer": torch.optim.SGD}
    assert_follows(ensemble.init(make, [0, 3]), x, y, {"lr": 0.05, **ours}, {"lr": 0.05, **theirs})


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("pixels", [24, 12])  # channels last, plain layout
def test_a_resnet_equals_a_plain_training_loop(pictures, batch_norm, pixels):
    x, y = pictures[0][..., :pixels, :pixels].double(), pictures[1]
    peer = partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=1e-3)
    assert_follows(
        ensemble.init(lambda: models.resnet(8, 4, 3, 4, batch_norm).double(), [0]),
        x,
        y,
        {"lr": 0.02, "optimizer": NESTEROV, "weight_decay": 1e-3, "clip": 1.0},
        {"lr": 0.02, "optimizer": peer, "clip": 1.0},
    )


def test_stacked_members_equal_members_trained_one_after_another(points, monkeypatch):
    x, y = points
    options = {**FAST, "optimizer": NESTEROV, "weight_decay": 1e-3, "schedule": ensemble.drops(0.5)}
    used = []
    dense = ensemble._Dense
    monkeypatch.setattr(ensemble, "_Dense", lambda members: used.append(len(members)) or dense(members))
    together = ensemble.fit(ensemble.init(small, [0, 3, 7]), x, y, **options)
    assert used == [3]
    monkeypatch.setattr(ensemble, "_stackable", lambda net: False)
    after = ensemble.fit(ensemble.init(small, [0, 3, 7]), x, y, **options)
    assert used == [3]
    assert_matches(together, after)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Residual(nn.Linear(20, 20), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 5)),
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(20, 5)),
        lambda: nn.Sequential(nn.Linear(20, 16), nn.SiLU(), nn.Tanh(), nn.Linear(16, 5)),
        lambda: nn.Sequential(*[nn.Linear(20, 20)] * 2),
    ],
    ids=["residual", "other activation", "activation first", "two activations", "shared layer"],
)
def test_networks_that_only_look_stackable_are_trained_as_they_are(points, make):
    assert not ensemble._stackable(make())
    nets = ensemble.init(make, [0, 3])
    assert_follows(nets, *points, {"lr": 0.1, "optimizer": ensemble.SGD()}, {"lr": 0.1, "optimizer": torch.optim.SGD})
    assert_near(ensemble.logits(nets, points[0]), torch.stack([net(points[0]).detach() for net in nets.members]))


def test_frozen_weights_stay(points):
    def make():
        net = small()
        net[1].weight.requires_grad_(False)
        return net

    nets = ensemble.init(make, [0, 3])
    found = ensemble.fit(nets, *points, **FAST, weight_decay=0.1)
    for before, after in zip(nets.members, found.members, strict=True):
        assert_near(after[1].weight, before[1].weight, 0.0)
        assert (after[1].bias - before[1].bias).abs().max() > 1e-3


@given(st.integers(0, 2**16), st.integers(2, 6), st.sampled_from([1.0, 30.0, 1000.0]))
def test_losses_equal_those_of_torch(seed, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, 7, classes, generator=generator)
    labels = torch.randint(classes, (3, 7), generator=generator)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(3, 7)
    torch.testing.assert_close(ensemble.cross_entropy(logits, labels), expected)
    one, binary = logits[..., :1], labels % 2
    expected = F.binary_cross_entropy_with_logits(one[..., 0], binary.float(), reduction="none")
    torch.testing.assert_close(ensemble.logistic(one, binary), expected)
    expected = F.mse_loss(logits, F.one_hot(labels, classes).float(), reduction="none").sum(-1)
    torch.testing.assert_close(ensemble.squared(logits, labels), expected)
    torch.testing.assert_close(ensemble.squared(logits, F.one_hot(labels, classes).float()), expected)
    expected = F.mse_loss(one[..., 0], 2.0 * binary - 1, reduction="none")
    torch.testing.assert_close(ensemble.squared(one, binary), expected)


@pytest.mark.parametrize(
    ("factor", "make"),
    [
        (ensemble.drops(0.5, 0.75), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 15])),
        (ensemble.cosine(), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)),
    ],
    ids=["drops", "cosine"],
)
def test_schedules_equal_those_of_torch(factor, make):
    optim = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, expected = make(optim), []
    for _ in range(20):
        expected.append(scheduler.get_last_lr()[0])
        optim.step()
        scheduler.step()
    assert [factor(step / 20) for step in range(20)] == pytest.approx(expected)


# ---------------------------------------------------------------- early stop


CONVEX = {"epochs": 300, "batch": 200, "loss": ensemble.logistic, "tolerance": 1e-4, "weight_decay": 0.01}
RATES = (0.3, 0.01, 1.0)  # the second is too slow


def gradient_norms(w, x, y, decay):
    """Of the objective of linear logistic regression at each of the weights (..., D + 1), in float64."""
    w = w.double().requires_grad_()
    logits = w[..., :-1] @ x.double().T + w[..., -1:]
    losses = F.binary_cross_entropy_with_logits(logits, y.double().expand(logits.shape), reduction="none").mean(-1)
    (gradient,) = torch.autograd.grad((losses + decay / 2 * w.square().sum(-1)).sum(), w)
    return gradient.norm(dim=-1)


@BOTH_LINEAR
@pytest.mark.parametrize("optimizer", [ensemble.SGD(0.5), ensemble.Adam()], ids=["SGD", "Adam"])
@pytest.mark.parametrize("every", [1, 7])
def test_members_stop_where_the_gradient_is_small_and_others_go_on(overlapping, make, optimizer, every):
    x, y = overlapping
    nets = ensemble.init(make, [0, 1, 2])
    options = {**CONVEX, "lr": RATES, "optimizer": optimizer, "every": every}
    found = ensemble.fit(nets, x, y, **options, record=weights, at=range(301))
    log = found.log
    assert log.converged.tolist() == [True, False, True]
    assert log.steps[1] == 300
    assert log.steps[0] != log.steps[2]
    assert (log.steps[[0, 2]] % every == 0).all()
    assert (log.steps[[0, 2]] < 300).all()
    norms = gradient_norms(log.curves, x, y, 0.01)  # (T, E)
    small_enough = norms[every::every] <= 1e-4
    torch.testing.assert_close(norms[log.steps, range(3)][[0, 2]].float(), log.gradient[[0, 2]], rtol=1e-2, atol=0.0)
    torch.testing.assert_close(norms[300 // every * every, 1].float(), log.gradient[1], rtol=1e-2, atol=0.0)
    for e in (0, 2):
        stop = int(log.steps[e])
        assert every * (1 + int(small_enough[:, e].int().argmax())) == stop
        assert_near(log.curves[stop:, e], log.curves[stop, e].expand(301 - stop, -1), 0.0)
        assert (log.curves[stop, e] - log.curves[stop - 1, e]).abs().max() > 0
    assert (log.curves[-1, 1] - log.curves[-2, 1]).abs().max() > 0
    assert_near(weights(found), log.curves[-1], 0.0)


@BOTH_LINEAR
@pytest.mark.parametrize("rates", [(0.5,), (0.5, 0.5)])
def test_all_members_may_stop_at_once_and_are_still_recorded(overlapping, make, rates):
    x, y = overlapping
    nets = ensemble.Nets(ensemble.init(make, [0]).members * len(rates), (0,) * len(rates))
    found = ensemble.fit(nets, x, y, **CONVEX, lr=rates, optimizer=ensemble.SGD(0.9), record=weights, at=(1, 299, 300))
    assert found.log.converged.all()
    assert (found.log.steps < 299).all()
    assert (gradient_norms(weights(found), x, y, 0.01) <= 1.01e-4).all()
    assert_near(found.log.curves[1:], weights(found).expand(2, -1, -1), 0.0)


def test_the_gradient_is_over_all_rows_of_minibatches_of_each_members_own(overlapping):
    x, y = (torch.stack([t, t.roll(1, 0)]) for t in overlapping)
    x = torch.stack([x[0], 2 * x[1]])
    nets = ensemble.init(linear, [0, 1])
    options = {"epochs": 2, "batch": 30, "lr": 0.1, "loss": ensemble.logistic, "weight_decay": (0.0, 0.5)}
    found = ensemble.fit(nets, x, y, **options, tolerance=1e-9)
    assert found.log.steps.tolist() == [12, 12]
    for e, decay in enumerate((0.0, 0.5)):
        expected = gradient_norms(weights(found)[e], x[e], y[e], decay).float()
        torch.testing.assert_close(found.log.gradient[e], expected, rtol=1e-4, atol=0.0)


def test_the_gradient_is_that_of_evaluation_mode(points):
    x, y = points
    found = ensemble.fit(ensemble.init(dropping, [0]), x, y, **FAST, tolerance=1e-9)
    (net,) = found.members
    gradient = torch.autograd.grad(F.cross_entropy(net.eval()(x), y), list(net.parameters()))
    expected = torch.cat([g.flatten() for g in gradient]).norm()
    torch.testing.assert_close(found.log.gradient[0], expected, rtol=1e-4, atol=0.0)


# ---------------------------------------------------------------- members are independent


def assert_members_match_those_alone(make, x, y, options, own=(), seeds=(0, 3, 7)):
    """Each member of an ensemble equals the same member trained alone with its own numbers (and rows)."""
    together = ensemble.fit(ensemble.init(make, seeds), x, y, **options)
    for e, seed in enumerate(seeds):
        mine = {name: value[e] if name in own else value for name, value in options.items()}
        rows = (x[e], y[e]) if "rows" in own else (x, y)
        alone = ensemble.fit(ensemble.init(make, [seed]), *rows, **mine)
        assert_near(weights(together)[e], weights(alone)[0])
        assert together.log.steps[e] == alone.log.steps[0]
        assert together.log.converged[e] == alone.log.converged[0]
    return together


OWN = {
    "lr": (1e-3, 1e-2, 3e-2),
    "weight_decay": (0.0, 0.03, 0.3),
    "label_noise": (0.0, 0.3, 0.9),
}


@BOTH
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("optimizer", [NESTEROV, ensemble.Adam(), ensemble.Adam(decoupled=True)])
def test_a_members_own_number_is_that_of_the_member_alone(points, make, name, optimizer):
    options = {**FAST, "weight_decay": 0.03, "optimizer": optimizer, name: OWN[name]}
    found = assert_members_match_those_alone(make, *points, options, own=[name])
    plain = ensemble.fit(ensemble.init(make, [0, 3, 7]), *points, **{**options, name: OWN[name][0]})
    assert ((weights(found) - weights(plain)).abs().amax(-1) > 1e-3).tolist() == [False, True, True]


def test_all_own_numbers_go_together_also_as_tensors(points):
    options = FAST | {name: torch.tensor(values) for name, values in OWN.items()}
    options |= {"optimizer": ensemble.Adam(decoupled=True), "schedule": ensemble.cosine(), "clip": 0.5}
    assert_members_match_those_alone(small, *points, options, own=OWN)


@BOTH
@pytest.mark.parametrize("kind", ["labels", "targets"])
def test_a_members_own_rows_are_those_of_the_member_alone(make, kind):
    x, y = (torch.stack(t) for t in zip(*(synthetic.blobs(90, 5, 20, 0.3, seed) for seed in range(3)), strict=True))
    options = {**FAST, "label_noise": 0.2}
    if kind == "targets":
        y = F.one_hot(y, 5).float() + 0.1 * torch.randn(3, 90, 5, generator=torch.Generator().manual_seed(0))
        options = {**FAST, "loss": ensemble.squared}
    assert_members_match_those_alone(make, x, y, options, own=["rows"])


def test_dropout_does_not_know_the_companions(points):
    assert_members_match_those_alone(dropping, *points, FAST)


def test_dropout_does_not_know_whether_it_was_recorded(points):
    x, y = points
    nets = ensemble.init(dropping, [0, 3])
    plain = ensemble.fit(nets, x, y, **FAST)
    recorded = ensemble.fit(nets, x, y, **FAST, record=lambda n: ensemble.logits(n, x), at=(0, 4, 9, 13))
    assert_matches(recorded, plain, 0.0)


@BOTH
def test_clipping_does_not_know_the_companions(points, make):
    x, y = points
    x = torch.stack([x, 10 * x, 100 * x])  # so that one member's gradient is far longer
    options = {**FAST, "clip": 0.5, "optimizer": ensemble.SGD()}
    found = assert_members_match_those_alone(make, x, y.expand(3, -1), options, own=["rows"])
    free = ensemble.fit(ensemble.init(make, [0, 3, 7]), x, y.expand(3, -1), **{**options, "clip": None})
    assert (weights(found)[2] - weights(free)[2]).abs().max() > 1e-3


@BOTH
def test_weight_decay_does_not_know_the_companions(points, make):
    options = {**FAST, "weight_decay": 0.1, "optimizer": NESTEROV}
    assert_members_match_those_alone(make, *points, options)


@BOTH_LINEAR
@pytest.mark.parametrize("optimizer", [ensemble.SGD(0.5), ensemble.Adam()], ids=["SGD", "Adam"])
def test_an_early_stop_does_not_know_the_companions(overlapping, make, optimizer):
    options = {**CONVEX, "lr": RATES, "weight_decay": (0.01, 0.02, 0.0), "optimizer": optimizer, "tolerance": 1e-3}
    found = assert_members_match_those_alone(make, *overlapping, options, own=["lr", "weight_decay"])
    assert len(set(found.log.steps.tolist())) == 3


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("augment", [None, data.crop_flip])
def test_a_resnet_is_the_same_alone_and_in_company(pictures, batch_norm, augment):
    def make():
        return models.resnet(8, 4, 3, 4, batch_norm)

    options = {**FAST, "optimizer": NESTEROV, "augment": augment, "label_noise": 0.2}
    alone, crowd = (ensemble.fit(ensemble.init(make, seeds), *pictures, **options) for seeds in ([3], [0, 3]))
    assert_near(ensemble.logits(crowd, pictures[0])[1], ensemble.logits(alone, pictures[0])[0])


@pytest.mark.parametrize(("members", "sizes"), [(1, [1, 1, 1, 1, 1]), (2.2, [2, 2, 1])])
def test_groups_give_the_same_as_one_group(points, monkeypatch, members, sizes):
    x, y = (torch.stack([t.roll(i, 0) for i in range(5)]) for t in points)
    nets = ensemble.init(small, range(5))
    options = FAST | {"lr": (1e-3, 3e-3, 1e-2, 3e-2, 0.1), "weight_decay": (0.0, 0.1, 0.2, 0.3, 0.4), "clip": 1.0}
    options |= {"label_noise": 0.2, "record": lambda n: ensemble.logits(n, x, own=True), "at": (0, 5, 18), "epochs": 2}
    together = ensemble.fit(nets, x, y, **options, tolerance=0.2)
    one = 4 * (5 * weights(nets).shape[1] + 2 * 32 * 21)  # bytes of a member: weights, gradient, moments, activations
    monkeypatch.setitem(ensemble._GROUP_BYTES, "cpu", int(members * one))
    used = []
    dense = ensemble._Dense
    monkeypatch.setattr(ensemble, "_Dense", lambda members: used.append(len(members)) or dense(members))
    apart = ensemble.fit(nets, x, y, **{**options, "record": weights}, tolerance=0.2)
    assert used == sizes
    monkeypatch.setattr(ensemble, "_Dense", dense)
    assert_matches(apart, together)
    apart = ensemble.fit(nets, x, y, **options, tolerance=0.2)
    assert together.log.converged.any()
    assert not together.log.converged.all()
    for name in ("steps", "gradient", "converged", "diverged", "curves"):
        torch.testing.assert_close(getattr(apart.log, name), getattr(together.log, name), rtol=0.0, atol=1e-5)


def test_the_order_of_members_only_reorders_them(points):
    x, y = points
    one, other = (ensemble.fit(ensemble.init(small, seeds), x, y, **FAST) for seeds in ([0, 3, 7], [7, 0, 3]))
    assert_near(weights(other), weights(one)[[2, 0, 1]])


@BOTH
def test_members_differ_by_their_seeds_and_do_not_touch_the_global_state(points, make):
    x, y = points
    before = torch.get_rng_state()
    nets = ensemble.fit(
        ensemble.init(make, [0, 1]), x, y, **FAST, label_noise=0.1, tolerance=1e-3, record=weights, at=(5,)
    )
    out = ensemble.logits(nets, x)
    assert (out[0] - out[1]).abs().max() > 0.01
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", [small, dropping, lambda: nn.Sequential(nn.Linear(20, 5), nn.BatchNorm1d(5))])
def test_fit_leaves_its_argument_alone(points, make):
    x, y = points
    nets = ensemble.init(make, [0, 1])
    kept = copy.deepcopy(nets)
    inputs, labels = x.clone(), y.clone()
    ensemble.fit(nets, x, y, **FAST, label_noise=0.5, record=weights, at=(5,))
    assert_matches(nets, kept, 0.0)
    assert all(p.grad is None and p.requires_grad for net in nets.members for p in net.parameters())
    assert all(net.training for net in nets.members)
    assert_near(x, inputs, 0.0)
    assert_near(y, labels, 0)


def test_fitted_networks_are_plain_modules_that_can_be_trained_further(points):
    x, y = points
    nets = ensemble.fit(ensemble.init(small, [0, 1]), x, y, **FAST)
    again = ensemble.fit(nets, x, y, **FAST)
    assert (weights(again) - weights(nets)).abs().amax(-1).min() > 1e-3
    kept = weights(nets)
    first, second = (net[1].weight for net in nets.members)
    with torch.no_grad():
        first.zero_()
    assert_near(second.flatten(), kept[1][: second.numel()], 0.0)
    assert len(first.untyped_storage()) == 4 * first.numel()  # not a view of everybody's weights
    assert not any(net.training for net in nets.members)
    assert all(p.grad is None for net in nets.members for p in net.parameters())


# ---------------------------------------------------------------- divergence


EXPLODING = {"epochs": 6, "batch": 32, "lr": (1e-2, 8.0, 3.0), "optimizer": ensemble.SGD(), "loss": ensemble.squared}


def first_bad_loss(nets, points, lr):
    _, losses = by_hand(nets, *points, 6, 32, lr, torch.optim.SGD, one_hot)
    assert not losses.isfinite().all()
    return 1 + (~losses.isfinite()).int().argmax(0)


@pytest.fixture
def exploding(points):
    """For networks of a kind: the ensemble, and the first steps whose loss is not finite, by plain loops."""

    def made(make):
        front = [] if make is small else [nn.Dropout(0.0)]
        nets = ensemble.init(lambda: nn.Sequential(*front, nn.Linear(20, 5)), [4, 5, 6])
        steps = [
            int(first_bad_loss(ensemble.Nets((nets.members[e],), (nets.seeds[e],)), points, EXPLODING["lr"][e]))
            for e in (1, 2)
        ]
        return nets, steps

    return made


@BOTH
def test_divergence_names_members_and_step(points, exploding, make):
    nets, (step, _) = exploding(make)
    message = rf"of 3 members diverged: member 1 \(seed 5, lr 8\) at step {step}.*lower lr"
    with pytest.raises(FloatingPointError, match=message):
        ensemble.fit(nets, *points, **EXPLODING)


@BOTH
@pytest.mark.parametrize("grouped", [False, True])
def test_diverged_members_are_kept_as_nan_and_others_are_as_alone(points, exploding, monkeypatch, make, grouped):
    x, y = points
    nets, steps = exploding(make)
    assert steps[0] != steps[1]
    if grouped:
        monkeypatch.setitem(ensemble._GROUP_BYTES, "cpu", 4300)  # two stacked members, then one
    options = {**EXPLODING, "record": lambda n: ensemble.logits(n, x), "at": (0, 10, 54)}
    first, second = (
        rf"member {e} \(seed {4 + e}, .* at step {s}; lower lr" for e, s in zip((1, 2), steps, strict=True)
    )
    with pytest.warns(UserWarning, match=first), pytest.warns(UserWarning, match=second):
        found = ensemble.fit(nets, x, y, **options, keep_diverged=True)
    alone = ensemble.fit(ensemble.Nets(nets.members[:1], nets.seeds[:1]), x, y, **{**options, "lr": 1e-2})
    assert_near(weights(found)[0], weights(alone)[0])
    assert_near(found.log.curves[:, 0], alone.log.curves[:, 0])
    assert found.log.diverged.tolist() == [0, *steps]
    assert found.log.steps[0] == 54
    assert found.log.curves[-1, 1:].isnan().all()
    out = ensemble.logits(found, x)
    assert out[0].isfinite().all()
    assert out[1:].isnan().all()
    with pytest.raises(ValueError, match="values must be finite numbers"):
        stats.interval(out.mean((1, 2)))
    with pytest.raises(ValueError, match="scores must be numbers, got NaN"):
        metrics.accuracy(out, y)


@pytest.mark.filterwarnings("ignore:2 of 2 members diverged")
@BOTH
def test_all_members_may_diverge_at_once(points, make):
    x, y = points
    options = {"epochs": 3, "batch": 32, "lr": 1e30, "optimizer": ensemble.SGD(), "record": weights, "at": (20,)}
    found = ensemble.fit(ensemble.init(make, [0, 1]), x, y, **options, tolerance=1e-3, keep_diverged=True)
    assert weights(found).isnan().all()
    assert found.log.curves.isnan().all()
    assert (found.log.diverged > 0).all()
    assert not found.log.converged.any()


@BOTH
def test_weights_that_overflow_in_the_last_step_are_a_divergence(points, make):
    x, y = points
    options = {"epochs": 1, "batch": 300, "lr": 1e38, "optimizer": ensemble.SGD(), "loss": ensemble.squared}
    with pytest.raises(FloatingPointError, match=r"1 of 1 members diverged: member 0 \(seed 5, lr 1e\+38\) at step 1;"):
        ensemble.fit(ensemble.init(make, [5]), 100 * x, y, **options)


# ---------------------------------------------------------------- logits


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU])
@pytest.mark.parametrize("grouped", [False, True])
def test_stacked_logits_are_those_of_each_module(activation, grouped, monkeypatch):
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8, bias=False), activation(), nn.Linear(8, 3), activation())

    if grouped:
        monkeypatch.setitem(ensemble._GROUP_BYTES, "cpu", 8 * 123 * 2)  # two members, then one
    x = torch.randn(2, 1100, 3, 4, generator=torch.Generator().manual_seed(0))  # two batches of evaluation
    nets = ensemble.init(make, [0, 1, 2])
    kept, before = x.clone(), weights(nets)
    found = ensemble.logits(nets, x[0])
    assert_near(found, torch.stack([net(x[0]).detach() for net in nets.members]), 1e-6)
    assert not found.requires_grad
    assert_near(x, kept, 0.0)
    assert_near(weights(nets), before, 0.0)


@BOTH
@pytest.mark.parametrize("members", [1, 3])
def test_with_own_rows_each_member_answers_to_its_inputs(make, members):
    x = torch.randn(members, 1100, 20, generator=torch.Generator().manual_seed(0))
    nets = ensemble.init(make, range(members))
    expected = torch.stack([net.eval()(rows).detach() for net, rows in zip(nets.members, x, strict=True)])
    assert_near(ensemble.logits(nets, x, own=True), expected, 1e-6)


def test_logits_are_those_of_evaluation_mode_also_for_untrained_nets(points):
    x, _ = points
    nets = ensemble.init(dropping, [0])
    torch.testing.assert_close(ensemble.logits(nets, x), ensemble.logits(nets, x))
    torch.testing.assert_close(ensemble.logits(nets, x)[0], nets.members[0].eval()(x))


@pytest.mark.parametrize("make", [lambda: models.resnet(8, 4, 3, 4), lambda: models.mlp(3 * 24 * 24, 8, 4)])
def test_uint8_images_are_scaled_to_one(pictures, make):
    x = (pictures[0] * 255).round().byte()
    nets = ensemble.init(make, [0, 1])
    assert_near(ensemble.logits(nets, x), ensemble.logits(nets, x.float() / 255))
    a, b = (ensemble.fit(nets, part, pictures[1], **FAST, tolerance=1e-3) for part in (x, x.float() / 255))
    assert_matches(a, b)
    torch.testing.assert_close(a.log.gradient, b.log.gradient)


@BOTH
def test_networks_in_float64_stay_so_and_equal_a_plain_loop_to_its_precision(points, make):
    x, y = points[0].double(), points[1]
    nets = ensemble.init(lambda: make().double(), [0, 3])
    path, _ = by_hand(nets, x, y, **FAST)
    found = ensemble.fit(nets, x, y, **FAST)
    assert weights(found).dtype == torch.float64
    assert_near(weights(found), path[-1], 1e-8)  # Adam's rate, 0.01, is rounded to no less than float64
    out = ensemble.logits(found, x)
    assert out.dtype == torch.float32
    assert_near(out, torch.stack([net(x).detach().float() for net in found.members]), 1e-6)


# ---------------------------------------------------------------- edges


def test_a_batch_larger_than_the_rows_is_all_rows(points):
    x, y = points
    nets = ensemble.init(small, [0])
    a, b = (ensemble.fit(nets, x, y, epochs=3, batch=batch, lr=1e-2) for batch in (300, 1000))
    assert_matches(a, b)
    assert b.log.steps.tolist() == [3]


def test_the_smaller_last_batch_is_left_out(points):
    x, y = points
    nets = ensemble.init(small, [0])
    left_out = torch.randperm(300, generator=torch.Generator().manual_seed(0))[288:]
    changed = x.index_fill(0, left_out, 100.0)
    a, b = (ensemble.fit(nets, part, y, **{**FAST, "epochs": 1}) for part in (x, changed))
    assert_matches(a, b)
    assert a.log.steps.tolist() == [9]


def test_a_single_row_and_a_single_member_train(points):
    x, y = points
    found = ensemble.fit(ensemble.init(small, [0]), x[:1], y[:1], epochs=200, batch=1, lr=1e-2, tolerance=0.05)
    assert found.log.converged.all()
    assert ensemble.logits(found, x[:1]).argmax(-1).tolist() == [[int(y[0])]]


def test_record_sees_all_members_in_evaluation_mode_and_training_goes_on(points):
    x, y = points
    modes = []

    def record(nets):
        modes.extend(net.training for net in nets.members)
        return torch.arange(len(nets.members))

    found = ensemble.fit(ensemble.init(dropping, [0, 1, 2]), x, y, **FAST, record=record, at=(0, 5, 27))
    assert modes == [False] * 9
    assert found.log.curves.tolist() == [[0, 1, 2]] * 3


def test_mixed_precision_stays_near_full_precision_and_keeps_float32_weights(points):
    x, y = points
    full, mixed = (
        ensemble.fit(ensemble.init(small, [0]), x, y, **FAST, autocast=kind) for kind in (None, torch.bfloat16)
    )
    assert next(mixed.members[0].parameters()).dtype == torch.float32
    torch.testing.assert_close(ensemble.logits(mixed, x), ensemble.logits(full, x), rtol=0.1, atol=0.2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@BOTH
def test_a_gpu_gives_the_same_as_the_cpu(points, monkeypatch, make):
    x, y = points
    options = {**FAST, "clip": 0.5, "tolerance": 1e-9, "record": weights, "at": (0, 9, 27)}
    options |= {"optimizer": NESTEROV, "lr": (0.01, 0.03)}
    found = []
    for where in ("cuda", "cpu"):
        monkeypatch.setenv("STUDYBOOK_DEVICE", where)
        make_same = small if make is small else lambda: nn.Sequential(nn.Dropout(0.0), nn.Linear(20, 5))
        found.append(ensemble.fit(ensemble.init(make_same, [0, 1]), x, y, **options))
    assert_matches(*found, 1e-4)
    assert_near(found[0].log.curves, found[1].log.curves, 1e-4)
    assert next(found[0].members[0].parameters()).device.type == "cpu"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "must be positive, got epochs=0, batch=32, every=1"),
        ({"batch": 0}, "must be positive, got epochs=3, batch=0, every=1"),
        ({"every": 0}, "must be positive, got epochs=3, batch=32, every=0"),
        ({"clip": 0.0}, "clip must be positive, got clip=0.0"),
        ({"tolerance": -1.0}, "tolerance must be positive, got tolerance=-1.0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": (0.1, 0.0)}, r"lr must be positive, got \(0.1, 0.0\)"),
        ({"lr": math.nan}, "lr must be finite and not negative, got nan"),
        ({"lr": (0.1, 0.1, 0.1)}, r"lr must be one number or one per member, 2, got shape \(3,\)"),
        ({"lr": torch.ones(2, 2)}, r"lr must be one number or one per member, 2, got shape \(2, 2\)"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and not negative, got -0.1"),
        ({"weight_decay": (0.1,)}, r"weight_decay must be one number or one per member, 2, got shape \(1,\)"),
        ({"label_noise": -0.1}, "label_noise must be finite and not negative"),
        ({"label_noise": 1.5}, "label_noise is a share of labels, from 0 to 1, got 1.5"),
        ({"at": (1,)}, r"record needs at, and at record: rising steps between 0 and 27, got at=\(1,\)"),
        ({"record": weights}, r"record needs at, .* got at=\(\)"),
        ({"tolerance": 0.1, "optimizer": ensemble.Adam(decoupled=True)}, "decoupled weight decay does not have"),
        ({"record": weights, "at": (28,)}, r"between 0 and 27, got at=\(28,\)"),
        ({"record": weights, "at": (-1,)}, r"got at=\(-1,\)"),
        ({"record": weights, "at": (5, 3)}, r"rising steps .* got at=\(5, 3\)"),
        ({"record": weights, "at": (5, 5)}, r"rising steps .* got at=\(5, 5\)"),
        ({"record": lambda n: torch.ones(3), "at": (5,)}, r"one row per member, 2, got shape \(3,\)"),
        ({"record": lambda n: torch.tensor(1.0), "at": (5,)}, r"one row per member, 2, got shape \(\)"),
        ({"loss": ensemble.logistic}, "takes one output and cross-entropy two or more, got 5 with logistic"),
    ],
)
@BOTH
def test_bad_options_are_refused_in_words(points, change, message, make):
    with pytest.raises(ValueError, match=message):
        unwrap(ensemble.fit)(ensemble.init(make, [0, 1]), *points, **{**FAST, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:-1]), "same positive number of rows, got 300 and 299"),
        (lambda x, y: (x[:0], y[:0]), "same positive number of rows, got 0 and 0"),
        (lambda x, y: (x * math.nan, y), "x must be finite, got NaN or infinity"),
        (lambda x, y: (x, torch.full((300, 5), math.inf)), "y must be finite, got NaN or infinity"),
        (lambda x, y: (x, torch.zeros(300, 4)), "as many columns as the networks have outputs, 5, got 4"),
        (lambda x, y: (x, y + 1), "labels must be 0 to 4, got 1 to 5"),
        (lambda x, y: (x, y - 1), "labels must be 0 to 4, got -1 to 3"),
        (lambda x, y: (x, torch.zeros(300)), r"float targets \(N, C\) or \(E, N, C\), got \(300,\)"),
        (lambda x, y: (x, y[None, None]), r"y must be labels \(N\) or \(E, N\), .* got \(1, 1, 300\)"),
        (lambda x, y: (x[None], y[None]), r"one set per member, 2, got x \(1, 300, 20\) and y \(1, 300\)"),
        (lambda x, y: (x, y.expand(2, -1)), r"one set per member, 2, got x \(300, 20\) and y \(2, 300\)"),
        (lambda x, y: (x.expand(2, -1, -1), y[:9].expand(2, -1)), "same positive number of rows, got 300 and 9"),
    ],
)
def test_bad_rows_are_refused_in_words(points, change, message):
    with pytest.raises(ValueError, match=message):
        unwrap(ensemble.fit)(ensemble.init(small, [0, 1]), *change(*points), **FAST, loss=ensemble.squared)


def test_losses_that_do_not_fit_the_outputs_are_refused_in_words(overlapping):
    x, y = overlapping
    nets, fit = ensemble.init(linear, [0]), unwrap(ensemble.fit)
    with pytest.raises(ValueError, match="cross-entropy two or more, got 1 with cross_entropy"):
        fit(nets, x, y, **FAST)
    with pytest.raises(ValueError, match="labels must be 0 to 1, got 0 to 2"):
        fit(nets, x, 2 * y, **FAST, loss=ensemble.logistic)
    with pytest.raises(ValueError, match="from 0 to 1, got 0.5 and torch.float32 targets"):
        fit(nets, x, y[:, None].float(), **FAST, loss=ensemble.squared, label_noise=0.5)


def test_no_members_and_bad_schedules_are_refused_in_words():
    with pytest.raises(ValueError, match="at least one member, got none"):
        ensemble.init(small, [])
    for fractions in ((50,), (0.5, 1.0), (0.0,)):
        with pytest.raises(ValueError, match="drops takes fractions of training, between 0 and 1, got "):
            unwrap(ensemble.drops)(*fractions)
    for warmup in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"from 0 to below 1, got warmup={warmup}"):
            unwrap(ensemble.cosine)(warmup)


@BOTH
def test_own_inputs_for_another_number_of_members_are_refused_in_words(points, make):
    with pytest.raises(ValueError, match="one set of inputs per member, 2, got 3"):
        unwrap(ensemble.logits)(ensemble.init(make, [0, 1]), points[0].expand(3, -1, -1), own=True)


def test_a_device_that_does_not_exist_is_refused_in_words(points, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_DEVICE", "gpu")
    with pytest.raises(ValueError, match="STUDYBOOK_DEVICE must be a torch device"):
        ensemble.logits(ensemble.init(small, [0]), points[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_clear_sentence(points, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_DEVICE", "cuda")
    with pytest.raises(ValueError, match="torch sees no CUDA GPU here"):
        ensemble.logits(ensemble.init(small, [0]), points[0])


def test_networks_whose_layers_share_weights_are_not_stacked():
    def tied():
        first, second = nn.Linear(20, 20), nn.Linear(20, 20)
        second.weight = first.weight
        return nn.Sequential(first, nn.ReLU(), second)

    assert not ensemble._stackable(tied())
    assert ensemble._stackable(nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)))
