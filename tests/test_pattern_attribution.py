"""The study of PatternAttribution: its own functions, on linear models and networks whose right answer is known."""

import math

import pytest
import torch
from conftest import method

from studybook import explanations, studies

STUDY = "explanations/pattern-attribution"


@pytest.fixture(scope="module")
def own():
    return method(STUDY)


@pytest.fixture(scope="module")
def network(own):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return own["small_network"](1, 28).eval()


@pytest.fixture(scope="module")
def x():
    return torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(4))


def test_the_formula_is_that_of_the_covariance(own):
    for angle, strength in ((15, 4.0), (45, 0.5), (60, 1.0), (90, 2.0)):
        c = math.cos(math.radians(angle))
        a, d = torch.eye(3).double()[0], torch.tensor([c, math.sqrt(1 - c**2), 0.0], dtype=torch.float64)
        cov = torch.outer(a, a) + strength**2 * torch.outer(d, d) + own["NOISE"] ** 2 * torch.eye(3).double()
        w = torch.linalg.solve(cov, a)
        assert own["predicted"](angle, strength) == pytest.approx(float(w @ a / w.norm()), abs=1e-12)


def test_a_sample_has_the_signal_and_the_angle_it_was_asked_for(own):
    x, s, a = own["sample"](50_000, 30.0, 3.0, torch.Generator().manual_seed(5))
    slope = (s[:, None] * x).mean(0)
    torch.testing.assert_close(slope, a, atol=0.06, rtol=0)
    rest = x - s[:, None] * a
    values, directions = torch.linalg.eigh(rest.T @ rest / len(rest))
    assert float(values[-1]) == pytest.approx(9 + own["NOISE"] ** 2, rel=0.03)
    assert float((directions[:, -1] @ a).abs()) == pytest.approx(math.cos(math.radians(30)), abs=0.02)


def test_the_network_of_two_neurons_is_the_linear_model(own):
    w, x = torch.randn(2, 5, generator=torch.Generator().manual_seed(6)).unbind()
    assert own["as_network"](w)(x[None]).item() == pytest.approx(float(w @ x), abs=1e-5)


def test_patterns_find_a_known_signal_and_weights_do_not(own):
    x, s, a = own["sample"](20_000, 20.0, 3.0, torch.Generator().manual_seed(7))
    w = torch.linalg.lstsq(x, s[:, None]).solution[:, 0].float()
    net = own["as_network"](w)
    found = own["patterns"](net[0], *own["neurons"](net, x.float())[0])
    for one in found:
        assert torch.nn.functional.cosine_similarity(one[0], a.float(), dim=0) > 0.995
        torch.testing.assert_close((one * net[0].weight).sum(1), torch.ones(2), atol=1e-4, rtol=0)
    assert torch.nn.functional.cosine_similarity(w, a.float(), dim=0) < 0.5


def test_two_component_patterns_are_the_papers_formula(own):
    generator = torch.Generator().manual_seed(8)
    layer = torch.nn.Linear(4, 1)
    x = torch.rand(300, 4, generator=generator)
    w, b = layer.weight.detach()[0], layer.bias.detach()[0]
    y = x @ w
    opened = y + b > y.median() + b  # any gate will do
    linear, up, down = own["patterns"](layer, x, y[:, None], opened[:, None])
    for got, on in ((up, opened), (down, ~opened)):
        a = (x[on] * y[on, None]).mean(0) - x[on].mean(0) * y.mean()
        torch.testing.assert_close(got[0], a / (w @ a), atol=1e-4, rtol=1e-3)
    cov = ((x - x.mean(0)) * (y - y.mean())[:, None]).mean(0)
    torch.testing.assert_close(linear[0], cov / y.var(correction=0), atol=1e-4, rtol=1e-3)


def test_the_way_back_with_weights_is_the_gradient(own, network, x):
    target = torch.arange(6)
    found = own["way_back"](network, x, target, own["weights"](network), logit=False)
    torch.testing.assert_close(found, explanations.gradient(network, x, target))
    scaled = own["way_back"](network, x, target, own["weights"](network))
    logits = network(x).detach()[torch.arange(6), target]
    torch.testing.assert_close(scaled, found * logits[:, None, None, None])


def test_neurons_outputs_are_those_of_the_network(own, network, x):
    seen = own["neurons"](network, x, places=5)
    shapes = [(30, 9), (30, 72), (30, 144), (6, 288), (6, 48), (6, 48)]
    assert [tuple(rows.shape) for rows, _, _ in seen] == shapes
    torch.testing.assert_close(seen[-1][1] + network[-1].bias, network(x), atol=1e-5, rtol=1e-4)
    out = network[0](x).detach().flatten(2).transpose(1, 2).flatten(0, 1)
    first = seen[0][1] + network[0].bias.detach()
    assert float(torch.cdist(first, out, compute_mode="donot_use_mm_for_euclid_dist").amin(1).max()) < 1e-4
    assert seen[0][2].equal(first > 0)


def test_covariances_of_residuals_are_those_of_the_rows(own):
    generator = torch.Generator().manual_seed(9)
    x, y = torch.randn(200, 5, generator=generator), torch.randn(200, generator=generator)
    gate, p = y > 0.3, torch.randn(3, 5, 2, generator=generator).double()
    spread, with_y, variance = own["residual"](own["blocks"](x, y, gate), p)
    for m in range(3):
        rest = x.double() - (y * gate)[:, None] * p[m, :, 0] - (y * ~gate)[:, None] * p[m, :, 1]
        whole = torch.cov(torch.cat([rest, y[:, None].double()], 1).T, correction=0)
        torch.testing.assert_close(spread[m], whole[:5, :5], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(with_y[m], whole[:5, 5], atol=1e-5, rtol=1e-4)
    assert float(variance) == pytest.approx(float(y.var(correction=0)), rel=1e-4)


def test_quality_is_one_minus_the_multiple_correlation(own):
    from sklearn.linear_model import LinearRegression

    generator = torch.Generator().manual_seed(10)
    x = torch.randn(4000, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    w = torch.randn(6, generator=generator)
    y = x @ w
    u = torch.randn(6, generator=generator)
    p = torch.stack(
        [u / (u @ w), own["covariance"](torch.cat([x, y[:, None]], 1))[:6, 6].float() / y.var(correction=0)]
    )
    parts = own["blocks"](x, y, y > 0)
    found = own["left_over"](parts, parts, p[..., None].expand(-1, -1, 2).double())
    rest = (x - y[:, None] * p[0]).numpy()
    r = LinearRegression().fit(rest, y.numpy()).score(rest, y.numpy()) ** 0.5
    assert float(found[0]) == pytest.approx(1 - r, abs=0.01)
    assert float(found[1]) > 0.98


def test_patches_go_in_the_order_of_the_map(own):
    class Mean(torch.nn.Module):
        """Two classes; the first one's logit is the contrast within the upper left patch."""

        def forward(self, x):
            contrast = x[:, 0, :4, :4].flatten(1).amax(1) - x[:, 0, :4, :4].flatten(1).amin(1)
            return torch.stack([4 * contrast, torch.zeros_like(contrast)], 1)

    x = torch.zeros(2, 1, 8, 8)
    x[:, :, 0, 0] = 1.0
    maps = torch.zeros(2, 1, 8, 8)
    maps[0, 0, 1, 1], maps[1, 0, 1, 1] = 1.0, -1.0
    found = own["falling"](Mean(), x, torch.zeros(2, dtype=torch.long), maps, [0, 0.25, 0.75, 1])
    high, low = 1 / (1 + math.exp(-4)), 0.5
    wanted = torch.tensor([[high, low, low, low], [high, high, high, low]])
    torch.testing.assert_close(found, wanted)


def test_gradient_input_and_the_epsilon_rule_agree(own, network, x):
    target = torch.arange(6)
    product = explanations.gradient_input(network, x, target)
    torch.testing.assert_close(explanations.relevance(network, x, target), product, atol=1e-5, rtol=1e-3)


def test_a_dark_digit_on_paper_is_turned(own, tmp_path):
    from PIL import Image

    paper = Image.new("L", (60, 60), 255)
    paper.paste(0, (25, 10, 35, 50))
    paper.save(tmp_path / "one.png")
    found = own["own_digits"](str(tmp_path / "one.png"))
    assert found.shape == (1, 1, 28, 28)
    assert float(found[0, 0, 14, 14]) > 0.9
    assert float(found[0, 0, 0, 0]) < 0.1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SETS", "cifar10", "SETS must be mnist5k or mnist, then perhaps cifar10, got cifar10"),
        ("ANGLES", "0, 30", "ANGLES must rise, above 0 and up to 90, got 0, 30"),
        ("STRENGTHS", "2, 1", "STRENGTHS must rise from 0 or more, got 2, 1"),
        ("FLIPPED", 501, "FLIPPED must be 1 to KEPT=500, got 501"),
    ],
)
def test_wrong_parameters_are_refused(name, value, words):
    source = studies.notebook(studies.find("pattern-attribution").source)
    cells = [cell["source"] for cell in source["cells"] if cell["cell_type"] == "code"][:2]
    names = {}
    exec(cells[0], names)
    names[name] = value
    with pytest.raises(ValueError, match=words):
        exec(cells[1], names)
