import math
from inspect import unwrap  # what a user calls: without the shape checks of the tests

import pytest
import torch
import torchmetrics.functional.classification as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from studybook import metrics, synthetic


@pytest.fixture(scope="module")
def predictions():
    logits, labels = synthetic.calibrated(2_000, 7, seed=1)
    return torch.stack([logits, 3 * logits, logits.flip(0)]), labels  # (E, N, C)


def test_accuracy_of_four_rows_worked_out_by_hand():
    scores = torch.tensor([[3.0, 1, 2], [1, 3, 2], [1, 2, 3], [3, 2, 1]])
    labels = torch.tensor([0, 2, 2, 2])
    assert metrics.accuracy(scores, labels).item() == pytest.approx(0.5)
    assert metrics.accuracy(scores, labels, top=2).item() == pytest.approx(0.75)
    assert metrics.accuracy(scores, labels, top=3).item() == pytest.approx(1.0)


def test_nll_and_brier_of_a_fair_guess():
    labels = torch.tensor([0, 1, 3])
    assert metrics.nll(torch.zeros(3, 4), labels).item() == pytest.approx(math.log(4))
    assert metrics.brier(torch.full((3, 4), 0.25), labels).item() == pytest.approx(0.75)


def test_brier_of_a_confident_mistake_is_two():
    assert metrics.brier(torch.tensor([[1.0, 0]]), torch.tensor([1])).item() == pytest.approx(2.0)


def test_scores_equal_torchmetrics_and_torch_member_by_member(predictions):
    logits, labels = predictions
    accuracy, nll = metrics.accuracy(logits, labels), metrics.nll(logits, labels)
    for e, member in enumerate(logits):
        one = reference.multiclass_accuracy(member, labels, 7, average="micro")
        torch.testing.assert_close(accuracy[e], one)
        torch.testing.assert_close(nll[e], torch.nn.functional.cross_entropy(member, labels))


def test_brier_equals_a_loop(predictions):
    logits, labels = predictions
    probs = logits[0].softmax(-1)
    total = 0.0
    for row, label in zip(probs.tolist(), labels.tolist(), strict=True):
        total += sum((p - (c == label)) ** 2 for c, p in enumerate(row))
    assert metrics.brier(probs, labels).item() == pytest.approx(total / len(labels), rel=1e-5)


def test_a_member_scores_the_same_alone_and_in_company(predictions):
    logits, labels = predictions
    for score, x in ((metrics.accuracy, logits), (metrics.nll, logits), (metrics.brier, logits.softmax(-1))):
        torch.testing.assert_close(score(x, labels)[1], score(x[1], labels))
        own = torch.stack([labels, labels.flip(0), labels])
        torch.testing.assert_close(score(x, own)[1], score(x[1], labels.flip(0)))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(40)), st.permutations(range(5)))
def test_order_of_examples_and_names_of_classes_do_not_matter(rows, classes):
    logits, labels = synthetic.calibrated(40, 5, seed=2)
    rows, classes = torch.tensor(rows), torch.tensor(classes)
    renamed = classes.argsort()[labels[rows]]
    for score in (metrics.accuracy, metrics.nll):
        torch.testing.assert_close(score(logits[rows][:, classes], renamed), score(logits, labels))


def test_of_equal_scores_the_first_class_counts():
    assert metrics.accuracy(torch.zeros(2, 3), torch.tensor([0, 1])).item() == pytest.approx(0.5)
    assert metrics.accuracy(torch.zeros(2, 3), torch.tensor([0, 1]), top=2).item() == pytest.approx(1.0)


def test_bad_input_is_refused_in_words():
    scores, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="same positive number of examples, got 4 and 3"):
        unwrap(metrics.accuracy)(scores, labels[:3])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 0 to 3"):
        metrics.nll(scores, labels + torch.tensor([0, 0, 1, 0]))
    with pytest.raises(ValueError, match="got NaN"):
        metrics.nll(scores * math.nan, labels)
    with pytest.raises(ValueError, match="for logits pass logits.softmax"):
        metrics.brier(scores, labels)
    with pytest.raises(ValueError, match="top must be between 1 and the 3 classes, got top=4"):
        metrics.accuracy(scores, labels, top=4)
