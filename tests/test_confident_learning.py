"""The study of wrong labels in test sets: its confident learning is cleanlab's, and it finds what was planted."""

import itertools

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT, method
from scipy.stats import kendalltau, spearmanr

STUDY = "labels/confident-learning-test-errors"


@pytest.fixture(scope="module")
def study():
    return method(STUDY, IMAGES=4000, RESAMPLES=200)


@pytest.fixture(scope="module")
def whole(study):
    """The study with the sets and classifiers of its generated profile."""
    names = [f"{letter}{step}" for letter in study["LETTERS"] for step in range(study["STEPS"])]
    study |= {"models": names, "pairs": [(f"{letter}0", f"{letter}4") for letter in study["LETTERS"]]}
    return study


def noisy(seed, n=700, classes=6):
    """Labels, a fifth of them wrong, and doubtful probabilities without ties."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(classes, (n,), generator=generator)
    logits = 2 * torch.eye(classes)[true] + 1.2 * torch.randn(n, classes, generator=generator)
    wrong = torch.rand(n, generator=generator) < 0.2
    labels = torch.where(wrong, torch.randint(classes, (n,), generator=generator), true)
    return labels, logits.double().softmax(-1)


@pytest.mark.parametrize("seed", range(4))
def test_joints_are_those_of_cleanlab(study, seed):
    from cleanlab import count

    labels, probs = noisy(seed)
    ours = study["confident_joint"](labels, probs)
    theirs = count.compute_confident_joint(labels.numpy(), probs.numpy(), calibrate=False)
    np.testing.assert_array_equal(ours.numpy(), theirs)
    scaled = study["calibrated"](ours, labels)
    theirs = torch.from_numpy(count.compute_confident_joint(labels.numpy(), probs.numpy()))
    for counts, one, other in zip(ours, scaled, theirs, strict=True):  # of equal counts either may be rounded up
        for value in counts.unique():
            assert sorted(one[counts == value].tolist()) == sorted(other[counts == value].tolist())
    estimated = count.estimate_joint(labels.numpy(), probs.numpy(), confident_joint=ours.numpy())
    np.testing.assert_allclose(scaled.numpy() / len(labels), estimated, atol=1.01 / len(labels))
    assert torch.equal(scaled.sum(-1), labels.bincount())


@pytest.mark.parametrize("seed", range(4))
def test_every_way_of_choosing_is_cleanlabs_filter(study, seed):
    from cleanlab import filter as cleaning
    from cleanlab import rank

    labels, probs = noisy(seed)
    chosen = study["flags"](labels, probs, "joint", torch.Generator().manual_seed(0))
    theirs = {
        "off": "confident_learning",
        "class": "prune_by_class",
        "rate": "prune_by_noise_rate",
        "both": "both",
        "argmax": "predicted_neq_given",
    }
    counts = study["confident_joint"](labels, probs)
    scaled = study["calibrated"](counts, labels).numpy()
    for ours, name in theirs.items():
        found = cleaning.find_label_issues(
            labels.numpy(),
            probs.numpy(),
            filter_by=name,
            n_jobs=1,
            confident_joint=None if ours in ("off", "argmax") else scaled,
        )
        np.testing.assert_array_equal(chosen[ours].numpy(), found, err_msg=name)
    order = rank.get_normalized_margin_for_each_label(labels.numpy(), probs.numpy()).argsort()
    rows = study["candidates"](labels, probs)
    np.testing.assert_array_equal(rows.numpy(), order[: len(rows)])
    assert len(rows) == int((1 - counts.trace() / counts.sum()) * len(labels))
    assert int(chosen["paper"].sum()) == int(chosen["self"].sum()) == int(chosen["random"].sum()) == len(rows)


def test_rows_of_a_calibrated_joint_keep_their_sum_where_rounding_is_hard(study):
    counts = torch.tensor([[1, 1, 1], [0, 2, 1], [5, 0, 0]])
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 4)
    assert study["calibrated"](counts, labels).sum(-1).tolist() == [10, 7, 4]


def test_a_confident_image_is_found_by_hand(study):
    labels = torch.tensor([0, 0, 0, 1, 1])
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.2, 0.8], [0.3, 0.7]], dtype=torch.float64)
    # thresholds 0.58 and 0.75: the third image belongs to class 1, the fifth to none
    assert study["confident_class"](labels, probs).tolist() == [0, 0, 1, 1, -1]
    assert study["confident_joint"](labels, probs).tolist() == [[2, 1], [0, 1]]
    torch.testing.assert_close(study["margin"](labels, probs)[2], torch.tensor(-0.9, dtype=torch.float64))
    assert study["candidates"](labels, probs).tolist() == [2]
    assert study["candidates"](labels, probs, "class").tolist() == [2]


def test_a_noise_matrix_has_rows_that_sum_to_one_and_confusions_that_do_not_occur(study):
    matrix = study["noise_matrix"](0.2, torch.Generator().manual_seed(3))
    torch.testing.assert_close(matrix.sum(-1), torch.ones(10, dtype=torch.float64))
    off = matrix[~torch.eye(10, dtype=torch.bool)]
    assert int((off == 0).sum()) == 40
    assert 0.1 < float(1 - matrix.diagonal().mean()) < 0.3


def test_the_planted_joint_is_recovered(study):
    made = study["generated"]()
    labels, probs, true = made["labels"], made["probs"], made["true"]
    truth = study["counted"](labels, true, 10) / len(labels)
    estimate = study["calibrated"](study["confident_joint"](labels, probs), labels) / len(labels)
    assert float((estimate - truth).abs().max()) < 0.002
    assert abs(float(1 - estimate.trace()) - float((labels != true).double().mean())) < 0.004
    for draw in range(3):
        row = study["planted"]({"data": "generated", "share": 0.2, "draw": draw})
        assert abs(row["joint_wrong"] - row["wrong"]) < 0.01
        assert row["joint_error"] < row["confusion_error"]
        assert row["paper_recall"] > 0.9
        assert abs(row["random_precision"] - row["wrong"]) < 0.1


def test_the_generated_judges_see_the_truth_within_their_intervals(study):
    made, row = study["generated"](), study["checked"]({"data": "generated"})
    wrong = float((made["labels"] != made["true"]).double().mean())
    assert row["base_low"] < wrong < row["base_high"]
    rows = study["verdicts"]("generated")[0]
    bad = float((made["labels"] != made["true"])[rows].double().mean())
    assert row["confirmed_low"] < bad < row["confirmed_high"]
    assert row["common"] == row["listed"] == row["ours"]


def test_candidates_of_shuffled_probabilities_are_like_any_image(study):
    excess = [study["shuffled"]({"shuffle": draw})["excess"] for draw in range(6)]
    assert abs(float(np.mean(excess))) < 0.005


def test_the_generated_classifiers_cross_where_they_were_made_to(whole):
    rows = {row["model"]: row for row in whole["ranked"]({"judge": "voters"})}
    leads = [rows[f"{letter}4"]["benign"] - rows[f"{letter}0"]["benign"] for letter in "abcdef"]
    lags = [rows[f"{letter}0"]["new"] - rows[f"{letter}4"]["new"] for letter in "abcdef"]
    lead, lag = float(np.mean(leads)), float(np.mean(lags))
    assert abs(lead - 0.02) < 0.008
    assert abs(lag - 0.4) < 0.1
    assert 0.02 < lead / (lead + lag) < 0.08
    row = whole["steady"]({"judge": "voters"})
    assert row["reversed_high"] < 0 < row["kept_low"]
    assert row["flipped_mean"] > 0.5
    assert abs(row["shuffled_mean"]) < 0.1
    assert row["within_mean"] < -0.5


def test_raising_the_prevalence_is_removing_benign_images(whole):
    old, new, benign, correctable = whole["outcomes"]("voters")
    hard, level, generator = int(correctable.sum()), 0.1, torch.Generator().manual_seed(0)
    left = round(hard * (1 - level) / level)
    rows, found = benign.nonzero()[:, 0], []
    for _ in range(200):
        some = rows[torch.randperm(len(rows), generator=generator)[:left]]
        found.append((old[:, some].double().sum(-1) + new[:, correctable].double().sum(-1)) / (left + hard))
    formula = (1 - level) * old[:, benign].double().mean(-1) + level * new[:, correctable].double().mean(-1)
    torch.testing.assert_close(torch.stack(found).mean(0), formula, atol=0.004, rtol=0)


def test_rank_statistics_are_scipys_and_weights_are_repetitions(study):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randint(8, (2, 5, 12), generator=generator).double()
    ones = torch.ones(5, 12, dtype=torch.float64)
    rho = study["spearman"](x, y, ones)
    np.testing.assert_allclose(rho, [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)], atol=1e-12)
    a, b = torch.rand(2, 5, 12, generator=generator).double()  # no ties
    tau = study["kendall"](a, b)
    np.testing.assert_allclose(tau, [kendalltau(p, q).statistic for p, q in zip(a, b, strict=True)], atol=1e-12)
    times = torch.tensor([2.0, 1, 0, 3, 1, 1, 2, 1, 0, 1, 1, 1]).double()
    again = torch.arange(12).repeat_interleave(times.long())
    weighted = study["spearman"](x[:1], y[:1], times[None])
    np.testing.assert_allclose(weighted, [spearmanr(x[0, again], y[0, again]).statistic], atol=1e-12)


def test_majorities_of_workers_and_voters(study):
    answers = torch.tensor([[3, 2, 0, 0], [2, 3, 0, 0], [1, 1, 3, 0], [0, 0, 1, 4], [2, 2, 1, 0], [5, 5, 0, 0]])
    assert study["majority"](answers).tolist() == [0, 1, 2, 3, -1, 0]
    votes = torch.tensor([[3, 2], [2, 2], [1, 4]])
    assert study["outvoted"](torch.tensor([0, 1, 0]), votes).tolist() == [False, False, True]


def test_every_classifier_has_a_family(study):
    found = [study["family"](name) for name in ("wrn_28_10", "wide_resnet_tf", "resnext_29_4x64d", "vgg16_keras", "b3")]
    assert found == ["wide_resnet", "wide_resnet", "resnext", "vgg", "b"]


REFUSED = [
    ("DATA", "both", "DATA must be generated or published, got 'both'"),
    ("IMAGES", 10, "IMAGES must be at least 1000 and WRONG between 0 and 0.2, got 10 and 0.02"),
    ("WRONG", 0.5, "WRONG between 0 and 0.2, got 6000 and 0.5"),
    ("SHARES", "0.1, 0.1", "SHARES must list different numbers above 0 and up to 0.5, got 0.1, 0.1"),
    ("SHARES", "0.9", "SHARES must list different numbers"),
    ("DRAWS", 0, "DRAWS must be at least 1"),
    ("RESAMPLES", 10, "RESAMPLES at least 100, got 6 and 10"),
    ("RISE", 1.0, "RISE must be between 0 and 0.9, got 1.0"),
]


@pytest.mark.parametrize(("parameter", "value", "message"), REFUSED)
def test_a_wrong_parameter_is_refused_in_one_sentence(parameter, value, message):
    cells = nbformat.read(ROOT / "notebooks" / f"{STUDY}.ipynb", 4).cells
    first, second = itertools.islice((cell.source for cell in cells if cell.cell_type == "code"), 2)
    names = {}
    exec(first, names)  # noqa: S102
    assert parameter in names
    names[parameter] = value
    with pytest.raises(ValueError, match=message):
        exec(second, names)  # noqa: S102


def test_the_published_list_of_cifar10_is_found_exactly(real_data):
    study = method(STUDY, DATA="published")
    labels, probs = study["labels_and_probs"]("cifar10")
    rows, guessed, answers = study["verdicts"]("cifar10")
    assert sorted(study["candidates"](labels, probs).tolist()) == sorted(rows.tolist())
    assert torch.equal(guessed, probs[rows].argmax(-1))
    assert int((study["majority"](answers) != 0).sum()) == 54
    labels, probs = study["labels_and_probs"]("mnist")
    rows = study["verdicts"]("mnist")[0]
    least = study["least"](study["margin"](labels, probs), 100)
    assert sorted(least.tolist()) == sorted(rows.tolist())
    assert int((study["majority"](study["verdicts"]("mnist")[2]) != 0).sum()) == 15


def test_published_classifiers_answer_in_the_order_of_the_labels(real_data):
    from studybook import published

    study = method(STUDY, DATA="published")
    labels = study["labels_and_probs"]("cifar10")[0]
    files = [file for file in published.files("cifar10.1") if file.startswith("original/")]
    right = [float((published.tensor("cifar10.1", file) == labels).double().mean()) for file in files]
    assert len(files) == 30
    assert min(right) > 0.8
    assert max(right) > 0.97
