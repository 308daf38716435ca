"""The study of integrated gradients: its own functions, against known answers and the paper's example."""

import pytest
import torch
from conftest import method

from studybook import explanations, models, studies

STUDY = "explanations/integrated-gradients"
SMALL = ("mnist5k", 60, 8, 1)


@pytest.fixture(scope="module")
def own():
    return method(STUDY, EXACT=512)


@pytest.fixture(scope="module")
def reader(own):
    nets, x, y, _ = own["readers"](*SMALL)
    return nets[0], x, y


@pytest.mark.parametrize("kind", ["scaled", "doubled", "factorized", "split"])
def test_rewired_networks_compute_the_same_and_are_others(own, reader, kind):
    net, x, _ = reader
    other = own["rewired"](net, kind, 3)
    torch.testing.assert_close(other(x), net(x), rtol=1e-5, atol=1e-5)
    before, after = ([tuple(p.shape) for p in one.parameters()] for one in (net, other))
    moved = before != after or not torch.equal(next(net.parameters()), next(other.parameters()))
    assert moved
    assert own["rewired"](net, "none", 3)(x).equal(net(x))


def test_the_papers_pair_is_one_function_with_the_papers_attributions(own):
    outside, inside = own["Pair"](False).double(), own["Pair"](True).double()
    points = 6 * torch.rand(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    torch.testing.assert_close(outside(points), inside(points), rtol=0, atol=1e-12)
    x, y = torch.tensor([[3.0, 1.0]], dtype=torch.float64), torch.tensor([0])
    for one in (outside, inside):
        found = explanations.integrated_gradients(one, x, y, steps=4000, rule="middle", batch=500)
        assert found[0].tolist() == pytest.approx([1.5, -0.5], abs=2e-3)
    assert explanations.deeplift(outside, x, y)[0].tolist() == pytest.approx([1.5, -0.5])
    assert explanations.deeplift(inside, x, y)[0].tolist() == pytest.approx([2, -1])


def test_saturating_functions_have_the_attribution_that_is_called_right(own):
    rows = {row["method"]: row for row in own["saturating"]({"seed": 0})}
    assert rows["integrated gradients"]["error"] < 2e-3
    assert rows["DeepLIFT"]["error"] < 1e-9
    assert rows["DeepLIFT"]["nothing"] == 0
    assert 0.2 < rows["gradients"]["nothing"] < 0.6
    assert rows["gradients"]["nothing"] == rows["gradients x input"]["nothing"]


def test_relevance_by_epsilon_is_slopes_times_input_for_rectifiers(own, reader):
    net, x, y = reader
    relevance, product = explanations.relevance(net, x, y), explanations.gradient_input(net, x, y)
    torch.testing.assert_close(relevance, product, rtol=1e-8, atol=1e-10)


def test_gaps_of_a_linear_network_are_nothing(own):
    net = models.mlp(784, 10).double()
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    y = torch.tensor([0, 1, 2])
    found = explanations.integrated_gradients(net, x, y, -torch.ones_like(x), 1, "right")
    assert explanations.completeness(net, x, y, found, -torch.ones_like(x)).abs().max() < 1e-12


def test_baselines_are_pictures_of_the_same_shape_and_noise_is_the_same_each_time(own):
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    for name in own["BASELINES"]:
        made = own["baseline"](name, x)
        assert made.shape == x.shape
        assert -1 <= float(made.min()) <= float(made.max()) <= 1
        assert made.equal(own["baseline"](name, x))
    assert own["baseline"]("blurred", x).mean() == pytest.approx(float(x.mean()), abs=1e-2)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PHOTOS", "cats", "PHOTOS must be packaged or imagenet-samples, got 'cats'"),
        ("DIGITS", "digits", "DIGITS must be mnist5k or mnist, got 'digits'"),
        ("COUNT", 7, "COUNT must be at least 2, and 6 at most for packaged photos, got 7"),
        ("STEPS", "16, 4", "STEPS must be rising numbers from 1"),
    ],
)
def test_wrong_parameters_are_refused(name, value, words):
    source = studies.notebook(studies.find("integrated-gradients").source)
    cells = [cell["source"] for cell in source["cells"] if cell["cell_type"] == "code"][:2]
    names = {}
    exec(cells[0], names)
    names[name] = value
    with pytest.raises(ValueError, match=words):
        exec(cells[1], names)
