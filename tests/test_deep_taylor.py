"""The study of deep Taylor decomposition: its own rules, the foretold loss, and roots, where the answer is known."""

import ast

import pytest
import torch
from conftest import ROOT, method

from studybook import explanations, studies

RULE = explanations.Rule


@pytest.fixture(scope="module")
def study():
    return method("explanations/deep-taylor", PAIRS=200, TEST=8)


@pytest.fixture(params=["mlp", "twin", "cnn", "local"])
def network(request, study):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return study["Detector"](request.param, -1).eval().requires_grad_(False)


@pytest.fixture
def pictures():
    return torch.rand(3, 1, 28, 56, generator=torch.Generator().manual_seed(2)) * 2 - 0.5


def test_the_notebooks_way_back_is_the_librarys(study, network, pictures):
    ours = study["deep_taylor"](network, pictures, -0.5, 1.5)
    target = torch.zeros(3, dtype=torch.long)
    theirs = explanations.relevance(network, pictures, target, RULE("z+"), RULE("z-beta", -0.5, 1.5))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_relevance_is_positive_and_adds_up_without_positive_biases(study, network, pictures):
    found = study["deep_taylor"](network, pictures, -0.5, 1.5)
    torch.testing.assert_close(found.flatten(1).sum(1), network(pictures)[:, 0], rtol=1e-4, atol=1e-6)
    assert float(found.min()) > -1e-6


def test_a_share_goes_by_contributions_and_a_unit_without_any_hands_on_nothing(study):
    x, w = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    found = study["handed"](torch.tensor([[8.0, 5.0]]), [(x, lambda a: a @ w.clamp(min=0).T)])
    torch.testing.assert_close(found, torch.tensor([[2.0, 6.0]]))


def test_the_loss_of_empty_places_is_foretold_and_known(study):
    net = study["Detector"]("local", -1).eval().requires_grad_(False)
    net.lift = 0.5
    empty = torch.zeros(2, 1, 28, 56)  # every unit is active by its bias alone
    torch.testing.assert_close(study["foretold_loss"](net, empty), torch.ones(2))
    target = torch.zeros(2, dtype=torch.long)
    total = explanations.relevance(net, empty, target, RULE("z+"), RULE("z-beta", 0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(total, torch.zeros(2))
    net.lift = 0.0
    torch.testing.assert_close(net(empty), torch.zeros(2, 1))


def test_pairs_hold_the_digit_where_they_say(study):
    digits = study["parts"]("mnist5k")[0]
    x, label, side = study["pairs"](digits, 40, 3)
    assert x.shape == (40, 1, 28, 56)
    assert label.tolist() == [0, 1] * 20
    few = {image.numpy().tobytes() for image in digits.x[digits.y < 4]}
    halves = (255 * x).round().byte().unflatten(3, (2, 28)).movedim(3, 1)  # (N, 2, 1, 28, 28)
    held = torch.tensor([[half.numpy().tobytes() in few for half in pair] for pair in halves])
    assert held.sum(1).tolist() == label.tolist()
    assert (held[label == 1].long().argmax(1) == side[label == 1]).all()


def test_the_share_on_the_distractor_counts_positive_relevance_of_the_other_half(study):
    found = torch.zeros(2, 1, 28, 56)
    found[:, :, :, :28], found[:, :, 0, 28] = 3 / 784, -9.0
    found[:, :, 1, 28] = 1.0
    torch.testing.assert_close(study["on_distractor"](found, torch.tensor([0, 1])), torch.tensor([0.25, 0.75]))


def test_roots_leave_little_of_the_output_and_stay_within_bounds(study, network, pictures):
    whole = network(pictures)[:, 0]
    segment = study["segment_root"](network, pictures)
    torch.testing.assert_close(network(segment)[:, 0], 0.01 * whole, rtol=0.05, atol=1e-5)
    near = study["near_root"](network, pictures, -0.5, 1.5)
    assert float(near.min()) >= -0.5
    assert float(near.max()) <= 1.5
    assert (network(near)[:, 0] < whole).all()
    assert (network(near)[:, 0] > 0).all()


REFUSED = [
    ("DIGITS", "cifar10", "DIGITS must be mnist5k or mnist, got 'cifar10'"),
    ("SHARES", "0.1, 0.2, 0.3", "SHARES must rise from 0"),
    ("LIFTS", "0.1, 0.2", "LIFTS must rise from 0"),
    ("SEEDS", 0, "SEEDS, PAIRS, EPOCHS and TEST must be positive, got 0"),
]


@pytest.mark.parametrize(("parameter", "value", "message"), REFUSED)
def test_a_wrong_parameter_is_refused(parameter, value, message):
    source = ROOT / "notebooks" / "explanations" / "deep-taylor.ipynb"
    cells = [c["source"] for c in studies.notebook(source)["cells"] if c["cell_type"] == "code"]
    settings = {}
    for source in cells[:1]:
        exec(compile(ast.parse(source), "parameters", "exec"), settings)  # noqa: S102
    settings[parameter] = value
    with pytest.raises(ValueError, match=message):
        exec(compile(ast.parse(cells[1]), "checks", "exec"), settings)  # noqa: S102
