"""Attributions against captum, against networks whose right answer is known, and what they leave behind."""

import inspect

import pytest
import torch
from captum import attr
from torch import nn

from studybook import explanations, models

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum.*")
RULES = explanations.Rule


def network(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, bias=bias), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 2 * 2, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3, bias=bias),
    ).double().eval()  # fmt: skip


class Residual(nn.Module):
    """Branches, batch norm, rectifiers as functions and in place: what hooks on modules do not see."""

    def __init__(self, cap=6.0):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.one, self.two, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 3, bias=False)
        self.act = nn.ReLU6(inplace=True) if cap == 6 else nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.one(self.first(x)))
        return self.head(torch.relu(x + self.two(self.second(x))).mean((2, 3)))


@pytest.fixture
def residual():
    torch.manual_seed(3)
    net = Residual().double()
    for norm in (net.one, net.two):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias, 0, 0.1)
    return net.eval()


@pytest.fixture
def some():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 2, 1, 1, 0])


def assert_close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- captum's answers


def test_gradients_are_captums(some):
    x, y = some
    net = network()
    assert_close(explanations.gradient(net, x, y, batch=2), attr.Saliency(net).attribute(x, y, abs=False))
    assert_close(explanations.gradient_input(net, x, y), attr.InputXGradient(net).attribute(x, y))


@pytest.mark.parametrize(("rule", "captums"), [("gauss", "gausslegendre"), ("right", "riemann_right"),
                                               ("middle", "riemann_middle")])  # fmt: skip
def test_integrated_gradients_are_captums_for_every_rule_and_batch(some, rule, captums):
    x, y = some
    net, baseline = network(), torch.full_like(x[:1], 0.3)
    ours = explanations.integrated_gradients(net, x, y, baseline, steps=16, rule=rule, batch=7)
    theirs = attr.IntegratedGradients(net).attribute(x, baseline.expand_as(x), y, n_steps=16, method=captums)
    assert_close(ours, theirs)


def test_integrated_gradients_fold_batch_norm_and_say_the_same(residual, some):
    x, y = some
    assert_close(
        explanations.integrated_gradients(residual, x, y, steps=16),
        attr.IntegratedGradients(residual).attribute(x, target=y, n_steps=16),
    )


def test_guided_backprop_and_deconvnet_are_captums(some):
    x, y = some
    net = network()
    assert_close(explanations.guided_backprop(net, x, y), attr.GuidedBackprop(net).attribute(x, y))
    assert_close(explanations.deconvnet(net, x, y), attr.Deconvolution(net).attribute(x, y))


@pytest.mark.parametrize("curve", [nn.ReLU, nn.Tanh, nn.Softplus])
def test_deeplift_is_captums(some, curve):
    x, y = some
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), curve(), nn.Flatten(), nn.Linear(144, 9), curve(), nn.Linear(9, 3)).double()
    baseline = 0.1 * torch.ones_like(x)
    assert_close(explanations.deeplift(net, x, y, baseline, batch=2), attr.DeepLift(net).attribute(x, baseline, y))


def test_relevance_by_epsilon_and_by_positive_contributions_is_captums(some):
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule

    x, y = some
    for ours, theirs, bias in ((RULES("epsilon"), EpsilonRule, True), (RULES("z+"), Alpha1_Beta0_Rule, False)):
        net = network(bias=bias)
        positive = x.abs()
        found = explanations.relevance(net, positive, y, ours)
        for layer in net:
            weighed = isinstance(layer, nn.Conv2d | nn.Linear)
            layer.rule = Alpha1_Beta0_Rule() if theirs is Alpha1_Beta0_Rule and weighed else EpsilonRule(epsilon=1e-12)
        assert_close(found, attr.LRP(net).attribute(positive, y), 1e-6)


def test_grad_cam_is_cam_where_the_head_is_pooled_and_linear(residual, some):
    x, y = some
    maps = torch.relu(residual.act(residual.one(residual.first(x))) + residual.two(
        residual.second(residual.act(residual.one(residual.first(x))))))  # fmt: skip
    cam = torch.einsum("nchw,nc->nhw", maps, residual.head.weight[y])[:, None]
    net = nn.Sequential(Maps(residual), nn.AdaptiveAvgPool2d(1), nn.Flatten(), residual.head)
    assert_close(64 * explanations.grad_cam(net, x, y, "0", positive=False), cam.detach())
    assert explanations.grad_cam(net, x, y, "0", batch=2).amin() >= 0


class Maps(nn.Module):
    """The residual network up to its last maps."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x = self.net.act(self.net.one(self.net.first(x)))
        return torch.relu(x + self.net.two(self.net.second(x)))


# ---------------------------------------------------------------- known answers


def test_a_saturated_unit_has_no_slope_but_integrated_gradients_and_deeplift():
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()  # f(x) = 1 - relu(1 - x)
    with torch.no_grad():
        for layer, weight, bias in ((net[0], -1.0, 1.0), (net[2], -1.0, 1.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    x, y = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([0])
    assert float(explanations.gradient(net, x, y)) == 0
    assert float(explanations.integrated_gradients(net, x, y, steps=1000)) == pytest.approx(1, abs=1e-3)
    assert float(explanations.deeplift(net, x, y)) == pytest.approx(1, abs=1e-12)


def test_capped_rectifiers_block_guided_slopes_above_the_cap_too():
    net = nn.Sequential(nn.ReLU6(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))
    x = torch.tensor([[3.0, 9.0], [3.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    zero, one = torch.zeros(3, dtype=int), torch.ones(3, dtype=int)
    assert explanations.guided_backprop(net, x, zero).tolist() == [[1, 0], [1, 1], [1, 0]]
    assert explanations.guided_backprop(net, x, one).tolist() == [[0, 0], [0, 1], [0, 0]]
    assert explanations.deconvnet(net, x, one).tolist() == [[0, 1]] * 3


def test_linear_networks_have_one_attribution(some):
    x, y = some
    net = models.mlp(128, 3).double()
    with torch.no_grad():
        net[-1].bias.zero_()
    right = explanations.gradient_input(net, x, y)
    for method in (explanations.integrated_gradients, explanations.deeplift, explanations.relevance):
        assert_close(method(net, x, y), right)


def test_deep_taylor_hands_out_the_whole_logit_and_nothing_negative(some):
    x, y = some[0].clamp(-1, 1), some[1]
    rules = {"rule": RULES("z+"), "first": RULES("z-beta", -1.0, 1.0)}
    net = network(bias=False)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -0.05, 0.2)
    found = explanations.relevance(net, x, y, **rules)
    logits = net(x).gather(1, y[:, None])[:, 0].detach()
    assert logits.amin() > 0
    assert found.amin() >= 0
    assert_close(found.flatten(1).sum(1), logits)
    squared = explanations.relevance(net, x, y, RULES("z+"), first=RULES("w2"))
    assert squared.amin() >= 0
    assert_close(squared.flatten(1).sum(1), logits)


def test_relevance_of_a_network_with_branches_is_kept_but_for_offsets(residual, some):
    x, y = some
    with torch.no_grad():
        for norm in (residual.one, residual.two):
            norm.bias.zero_()
            norm.running_mean.zero_()
    found = explanations.relevance(residual, x, y)
    logits = residual(x).gather(1, y[:, None])[:, 0].detach()
    assert_close(found.flatten(1).sum(1), logits, 1e-6)


def test_completeness_is_the_gap_between_the_sum_and_the_logits(some):
    x, y = some
    net, baseline = network(), torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    gaps = [
        explanations.completeness(net, x, y, explanations.integrated_gradients(net, x, y, baseline, n), baseline)
        for n in (8, 512)
    ]
    assert gaps[1].abs().amax() < gaps[0].abs().amax()
    assert gaps[1].abs().amax() < 1e-3
    assert_close(
        explanations.completeness(net, x, y, explanations.deeplift(net, x, y)), torch.zeros(5, dtype=torch.float64)
    )


def test_pixels_go_in_the_order_of_their_attribution():
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    left = explanations.removed(x, x, torch.tensor([0, 2 / 9, 1.0]))
    assert left[0].equal(x)
    assert left[1].flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 0]
    assert left[2].abs().sum() == 0
    assert explanations.removed(x, x, torch.tensor([1 / 9]), torch.full((1, 1, 1, 1), 5.0))[0].flatten()[-1] == 5


def test_deletion_and_insertion_of_a_sum_are_its_partial_sums():
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([torch.ones(9), torch.zeros(9)]))
        net[1].bias.zero_()
    x, y = torch.arange(1.0, 10, dtype=torch.float64).view(1, 1, 3, 3), torch.tensor([0])
    shares = torch.arange(10) / 9
    gone = explanations.deletion(net, x, y, x, shares, score="logit")[0]
    come = explanations.insertion(net, x, y, x, shares, score="logit")[0]
    assert gone.tolist() == [45, 36, 28, 21, 15, 10, 6, 3, 1, 0]
    assert (gone + come).tolist() == [45] * 10
    chance = explanations.deletion(net, x, y, x, shares)[0]
    assert chance[-1] == 0.5
    assert chance[0] > 0.99


def test_remove_and_retrain_gives_each_share_to_a_new_network():
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = explanations.remove_and_retrain(
        lambda a, b: torch.stack([(a > 0).double().mean(), (b > 0).double().mean()]),
        (x, x), (x[:2], x[:2]), torch.tensor([0, 0.25, 0.5]),
    )  # fmt: skip
    assert seen.tolist() == [[1, 1], [0.75, 0.75], [0.5, 0.5]]


def test_randomized_copies_lose_layer_after_layer_from_the_top(some):
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    copies = list(explanations.randomized(net, 1))
    assert [name for name, _ in copies] == ["8", "6", "3", "0"]
    for i, (_, one) in enumerate(copies):
        changed = {name.split(".")[0] for name, value in one.state_dict().items() if not value.equal(before[name])}
        assert changed == set(["8", "6", "3", "0"][: i + 1])
        assert all(
            value.flatten().sort()[0].equal(before[name].flatten().sort()[0])
            for name, value in one.state_dict().items()
        )
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


def test_randomized_copies_may_be_few(some):
    net = network()
    every = dict(explanations.randomized(net, 1))
    few = dict(explanations.randomized(net, 1, ["3", "8"]))
    assert list(few) == ["8", "3"]
    for name, one in few.items():
        assert all(a.equal(b) for a, b in zip(one.parameters(), every[name].parameters(), strict=True))
    with pytest.raises(ValueError, match="no layer with parameters is called 4"):
        list(explanations.randomized(net, 1, ["4", "8"]))


def test_similarity_is_spearmans():
    from scipy.stats import spearmanr

    a, b = torch.randn(3, 1, 4, 4).round(decimals=1), torch.randn(3, 1, 4, 4).round(decimals=1)
    right = [spearmanr(one.flatten(), other.flatten()).statistic for one, other in zip(a, b, strict=True)]
    assert_close(explanations.similarity(a, b), torch.tensor(right, dtype=torch.float64))
    assert explanations.similarity(a, a).tolist() == pytest.approx([1, 1, 1])


# ---------------------------------------------------------------- what is left behind, what is refused

METHODS = {
    "gradient": explanations.gradient,
    "integrated": explanations.integrated_gradients,
    "guided": explanations.guided_backprop,
    "deconvnet": explanations.deconvnet,
    "deeplift": explanations.deeplift,
    "relevance": explanations.relevance,
    "cam": lambda model, x, y: explanations.grad_cam(model, x, y, "second"),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_network_is_as_it_was_also_after_an_error(residual, some, name):
    x, y = some
    residual.train()
    residual.two.eval()
    before = {key: value.clone() for key, value in residual.state_dict().items()}
    first = METHODS[name](residual, x, y)
    assert first.shape[0] == 5
    assert first.isfinite().all()
    assert not first.requires_grad
    with pytest.raises(ValueError, match="target must be classes"):
        METHODS[name](residual, x, y + 7) if name != "cam" else explanations.gradient(residual, x, y + 7)
    assert residual.training
    assert not residual.two.training
    assert all(value.equal(before[key]) for key, value in residual.state_dict().items())
    assert all(value.requires_grad and value.grad is None for value in residual.parameters())
    assert not any(part._forward_hooks or part._backward_hooks for part in residual.modules())
    assert_close(METHODS[name](residual, x, y), first)


def test_examples_do_not_depend_on_their_batch(residual, some):
    x, y = some
    for method in METHODS.values():
        assert_close(method(residual, x, y)[1:2], method(residual, x[1:2], y[1:2]))


plain = inspect.unwrap  # without the checks of shapes that tests add


@pytest.mark.parametrize(("call", "words"), [
    (lambda net, x, y: plain(explanations.gradient)(net, x, y[:2]), "a target for each"),
    (lambda net, x, y: plain(explanations.gradient)(net, x / 0, y), "finite numbers"),
    (lambda net, x, y: plain(explanations.integrated_gradients)(net, x, y, steps=0), "at least one step, got steps=0"),
    (lambda net, x, y: plain(explanations.integrated_gradients)(net, x, y, x[:, :, :3]), "baseline must fit x"),
    (lambda net, x, y: plain(explanations.integrated_gradients)(net, x, y, rule="left"), 'rule must be "gauss"'),
    (lambda net, x, y: plain(explanations.guided_backprop)(models.mlp(128, 3).double(), x, y),
     "need a network with rectifiers"),
    (lambda net, x, y: plain(explanations.grad_cam)(net, x, y, "last"), "no layer is called 'last'"),
    (lambda net, x, y: plain(explanations.grad_cam)(net, x, y, "6"), "needs a layer of maps"),
    (lambda net, x, y: plain(explanations.deeplift)(nn.Sequential(nn.MaxPool2d(2), *net), x, y),
     "no rule for max_pool2d"),
    (lambda net, x, y: plain(explanations.relevance)(nn.Sequential(*net, nn.Softmax(1)), x, y), "no rule for softmax"),
    (lambda net, x, y: plain(explanations.removed)(x, x[:, :, :2], torch.tensor([0.5])), "a value for each pixel"),
    (lambda net, x, y: plain(explanations.removed)(x, x, torch.tensor([1.5])), "shares must lie between 0 and 1"),
    (lambda net, x, y: plain(explanations.deletion)(net, x, y, x, torch.tensor([0.5]), score="odds"), "score must be"),
    (lambda net, x, y: plain(explanations.similarity)(x, x[:2]), "same shape"),
    (lambda net, x, y: plain(explanations.completeness)(net, x, y, x[:2]), "one value for each input"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(some, call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call(network(), *some)
    assert len(str(caught.value).splitlines()) == 1
