import functools
import math
from inspect import unwrap  # what a user calls: without the shape checks of the tests

import pytest
import torch
from torch import nn

from studybook import data, ensemble, metrics, models, synthetic

FAST = {"epochs": 3, "batch": 32, "lr": 1e-2}
SGD = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=1e-3)


def assert_matches(found, expected):
    for a, b in zip(found.members, expected.members, strict=True):
        for name, value in a.state_dict().items():
            torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_the_helper_sees_a_difference():
    with pytest.raises(AssertionError):
        assert_matches(ensemble.init(small, [0]), ensemble.init(small, [1]))


def small():
    return models.mlp(20, 16, 5)


def dropping():
    return nn.Sequential(nn.Linear(20, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 5))


@pytest.fixture(scope="module")
def points():
    return synthetic.blobs(300, 5, 20, 0.3, seed=0)


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(48, 3, 24, 24, generator=generator), torch.arange(48) % 4


def by_hand(net, seed, x, y, epochs, batch, lr):
    """Plain training loop: what `fit` promises of a member's batches and updates."""
    shuffle = torch.Generator().manual_seed(seed)
    optim = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=shuffle)
        for rows in order[: len(x) // batch * batch].split(batch):
            optim.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optim.step()
    return net


def test_fit_learns_separable_points(points):
    x, y = points
    nets = ensemble.fit(ensemble.init(small, range(3)), x, y, epochs=20, batch=32, lr=1e-2)
    assert metrics.accuracy(ensemble.logits(nets, x), y).min() > 0.95


def test_members_equal_a_plain_training_loop(points):
    x, y = points
    nets = ensemble.init(small, [0, 3])
    found = ensemble.fit(nets, x, y, **FAST)
    loops = [
        by_hand(net, seed, x, y, **FAST) for net, seed in zip(ensemble.init(small, [0, 3]).members, (0, 3), strict=True)
    ]
    assert_matches(found, ensemble.Nets(tuple(loops), (0, 3)))


def test_stacked_members_equal_members_trained_one_after_another(points, monkeypatch):
    x, y = points
    used = []
    stacked = ensemble._Stacked
    monkeypatch.setattr(ensemble, "_Stacked", lambda members: used.append(len(members)) or stacked(members))
    together = ensemble.fit(ensemble.init(small, [0, 3, 7]), x, y, **FAST, optimizer=SGD, drops=(0.5,))
    assert used == [3]
    monkeypatch.setattr(ensemble, "_stackable", lambda net: False)
    after = ensemble.fit(ensemble.init(small, [0, 3, 7]), x, y, **FAST, optimizer=SGD, drops=(0.5,))
    assert used == [3]
    assert_matches(together, after)


@pytest.mark.parametrize("make", [small, dropping])
def test_a_member_is_the_same_alone_and_in_company(points, make):
    x, y = points
    alone, crowd = (ensemble.fit(ensemble.init(make, seeds), x, y, **FAST) for seeds in ([3], [0, 3, 7]))
    torch.testing.assert_close(ensemble.logits(crowd, x)[1], ensemble.logits(alone, x)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("augment", [None, data.crop_flip])
def test_a_resnet_is_the_same_alone_and_in_company(pictures, batch_norm, augment):
    def make():
        return models.resnet(8, 4, 3, 4, batch_norm)

    alone, crowd = (
        ensemble.fit(ensemble.init(make, seeds), *pictures, **FAST, optimizer=SGD, augment=augment)
        for seeds in ([3], [0, 3])
    )
    torch.testing.assert_close(ensemble.logits(crowd, pictures[0])[1], ensemble.logits(alone, pictures[0])[0])


def test_members_differ_by_their_seeds_and_do_not_touch_the_global_state(points):
    x, y = points
    before = torch.get_rng_state()
    nets = ensemble.fit(ensemble.init(dropping, [0, 1]), x, y, **FAST)
    out = ensemble.logits(nets, x)
    assert (out[0] - out[1]).abs().max() > 0.01
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_leaves_its_argument_alone(points):
    x, y = points
    nets = ensemble.init(small, [0])
    kept = [p.clone() for p in nets.members[0].parameters()]
    ensemble.fit(nets, x, y, **FAST)
    for now, then in zip(nets.members[0].parameters(), kept, strict=True):
        torch.testing.assert_close(now, then)


def test_logits_are_those_of_evaluation_mode_also_for_untrained_nets(points):
    x, _ = points
    nets = ensemble.init(dropping, [0])
    torch.testing.assert_close(ensemble.logits(nets, x), ensemble.logits(nets, x))
    torch.testing.assert_close(ensemble.logits(nets, x)[0], nets.members[0].eval()(x))


def test_the_learning_rate_drops_after_the_named_fractions(points):
    x, y = points
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, *args, **kwargs):
            seen.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    ensemble.fit(ensemble.init(small, [0]), x, y, epochs=4, batch=300, lr=0.1, optimizer=Spy, drops=(0.5, 0.75))
    assert seen == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_watch_sees_every_epoch_and_all_members(points):
    x, y = points
    seen = []
    nets = ensemble.fit(
        ensemble.init(small, [0, 1]), x, y, **FAST, watch=lambda e, n: seen.append((e, ensemble.logits(n, x)))
    )
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert seen[0][1].shape == (2, 300, 5)
    torch.testing.assert_close(seen[-1][1], ensemble.logits(nets, x))
    assert (seen[0][1] - seen[-1][1]).abs().max() > 1e-3


def test_uint8_images_are_scaled_to_one(pictures):
    x = (pictures[0] * 255).round().byte()
    nets = ensemble.init(lambda: models.resnet(8, 4, 3, 4), [0])
    torch.testing.assert_close(ensemble.logits(nets, x), ensemble.logits(nets, x.float() / 255))
    a, b = (ensemble.fit(nets, part, pictures[1], **FAST) for part in (x, x.float() / 255))
    assert_matches(a, b)


def test_mixed_precision_stays_near_full_precision_and_keeps_float32_weights(points):
    x, y = points
    full, mixed = (
        ensemble.fit(ensemble.init(small, [0]), x, y, **FAST, autocast=kind) for kind in (None, torch.bfloat16)
    )
    assert next(mixed.members[0].parameters()).dtype == torch.float32
    torch.testing.assert_close(ensemble.logits(mixed, x), ensemble.logits(full, x), rtol=0.1, atol=0.2)


def test_divergence_names_member_and_epoch(points):
    x, y = points
    with pytest.raises(FloatingPointError, match="seed 5 diverged in epoch 1: lower lr"):
        ensemble.fit(ensemble.init(small, [5]), 1e30 * x, y, epochs=2, batch=32, lr=1e30, optimizer=torch.optim.SGD)


def test_bad_input_is_refused_in_words(points, monkeypatch):
    x, y = points
    nets = ensemble.init(small, [0])
    fit = unwrap(ensemble.fit)
    with pytest.raises(ValueError, match="at least one member, got none"):
        ensemble.init(small, [])
    with pytest.raises(ValueError, match="same positive number of rows, got 300 and 299"):
        fit(nets, x, y[:-1], **FAST)
    with pytest.raises(ValueError, match="x must be finite"):
        fit(nets, x * math.nan, y, **FAST)
    with pytest.raises(ValueError, match="got epochs=0, batch=32"):
        fit(nets, x, y, epochs=0, batch=32, lr=0.1)
    with pytest.raises(ValueError, match="drops must be fractions"):
        fit(nets, x, y, **FAST, drops=(50,))
    monkeypatch.setenv("STUDYBOOK_DEVICE", "gpu")
    with pytest.raises(ValueError, match="STUDYBOOK_DEVICE must be a torch device"):
        ensemble.logits(nets, x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_clear_sentence(points, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_DEVICE", "cuda")
    with pytest.raises(ValueError, match="torch sees no CUDA GPU here"):
        ensemble.logits(ensemble.init(small, [0]), points[0])
