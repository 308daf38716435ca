"""What studies compute themselves, against known answers."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from scipy.special import hyp0f1

from studybook import studies, synthetic


def defined(study, until):
    """What the code cells of a study define, up to the first that contains `until`; nothing is measured before it."""
    names = {}
    for cell in studies.notebook(studies.find(study).source)["cells"]:
        if cell["cell_type"] == "code":
            if until in cell["source"]:
                break
            exec(cell["source"], names)
    plt.close("all")
    return names


@pytest.fixture(scope="module")
def grokking():
    return defined("grokking", until="cases = [")


@pytest.mark.parametrize("ratio", [0.5, 0.95, 2.0])
def test_the_training_loss_is_the_papers_closed_form_for_small_learning_rates(grokking, ratio):
    law, lr = synthetic.marchenko_pastur(ratio), 1e-6
    steps = torch.tensor([0, 10**5, 10**6])
    found = grokking["expected"](law, steps, lr=lr)[0]
    time = lr * steps.double()
    closed = (-4 * (1 + ratio) * time).exp() * torch.from_numpy(hyp0f1(2, 16 * ratio * time.numpy() ** 2))
    torch.testing.assert_close(found, closed, rtol=1e-4, atol=0)  # Eq. 9; Gamma(2) is 1


@pytest.mark.parametrize("setting", [{"outputs": 3}, {"decay": 0.05}, {"scale": 4.0}, {"outputs": 3, "decay": 0.1}])
def test_expected_losses_are_those_of_large_problems(grokking, setting):
    steps, found = torch.tensor([0, 30, 300]), []
    outputs, decay, scale = ({"outputs": 1, "decay": 0.0, "scale": 1.0} | setting).values()
    for seed in range(16):
        x, teacher, student = synthetic.teacher_student(1200, 600, outputs, seed)
        parts = synthetic.spectrum(x)
        path = synthetic.descent(parts, x @ teacher, scale * student, lr=grokking["LR"], weight_decay=decay)
        squares = (path.modes(steps) - parts.basis.T @ teacher).square().sum(-1)
        found.append(torch.stack([squares @ parts.values, squares.sum(1)]) / outputs)
    expected = grokking["expected"](synthetic.marchenko_pastur(0.5), steps, outputs, decay, scale)
    torch.testing.assert_close(torch.stack(found).mean(0), expected, rtol=0.06, atol=0)


def test_with_little_weight_decay_the_last_loss_is_half_of_the_papers_equation_16(grokking):
    law, steps = synthetic.marchenko_pastur(0.5), torch.tensor([10**7])
    train, general = grokking["expected"](law, steps, decay=1e-5)[:, 0].tolist()
    assert train == pytest.approx(1e-10 / 8 / (1 - 0.5), rel=1e-3)
    assert general == pytest.approx(1e-10 / 8 / (1 - 0.5) ** 3, rel=1e-3)


@pytest.mark.parametrize("outputs", [1, 7])
def test_accuracy_is_the_share_of_normal_errors_below_the_threshold(grokking, outputs):
    loss = torch.tensor(0.02, dtype=torch.float64)
    errors = loss.sqrt() * torch.randn(200_000, outputs, dtype=torch.float64)
    counted = (errors.square().mean(1) < 0.03).double().mean()
    found = grokking["expected_accuracy"](loss, 0.03, outputs)
    assert float(found) == pytest.approx(float(counted), abs=0.004)
    if outputs == 1:
        assert float(found) == pytest.approx(math.erf(math.sqrt(0.03 / 2 / 0.02)), rel=1e-12)


def test_the_predicted_delay_ends_where_the_predicted_accuracies_pass_the_level(grokking):
    law, level, threshold = synthetic.marchenko_pastur(0.5), grokking["LEVEL"], grokking["THRESHOLD"]
    right = grokking["expected_accuracy"](grokking["expected"](law, torch.arange(3_000)), threshold)
    first = [int((row >= level).nonzero()[0]) for row in right]
    assert grokking["expected_delay"](0.5) == first[1] - first[0] > 100
    assert grokking["expected_delay"](2.0) == math.inf
    assert grokking["expected_delay"](0.5, threshold=100.0) == 0


def test_delays_approach_the_formula_as_thresholds_shrink(grokking):
    apart = [
        grokking["expected_delay"](0.5, threshold) / grokking["formula"](0.5) for threshold in (1e-3, 1e-12, 1e-90)
    ]
    assert apart[0] < apart[1] < apart[2]
    assert apart[2] == pytest.approx(1, abs=0.02)


def test_the_gini_coefficient_of_known_shares(grokking):
    shares = torch.tensor([[1.0, 1, 1, 1], [0, 0, 5, 0], [1, 2, 3, 4], [0, 0, 0, 0]])
    torch.testing.assert_close(grokking["gini"](shares), torch.tensor([0, 0.75, 0.25, 0]))


def test_the_first_step_is_the_first_or_infinity(grokking):
    assert grokking["first_step"](lambda step: step >= 1_234) == 1_234
    assert grokking["first_step"](lambda step: True) == 0
    assert grokking["first_step"](lambda step: False) == math.inf
