"""The method of the study of new test sets: what it finds in a world whose truth is known."""

import functools
import math

import pytest
import torch
from conftest import method
from scipy import stats as reference

from studybook import stats

STUDY = "labels/imagenet-v2-replication"


@functools.cache
def study():
    return method(STUDY, RESAMPLES=400)


@functools.cache
def world():
    return study()["generated"]()


def test_accuracies_of_the_generated_world_are_those_of_the_formula():
    old, new, votes, names = world()
    ability = torch.linspace(1.3, 2.8, 30)
    for right, mu in ((old, 0.0), (new["v6"], 0.5)):
        expected = torch.special.ndtr((ability - mu) / math.sqrt(2)).double()
        torch.testing.assert_close(right.mean(0), expected, atol=4 * 0.5 / math.sqrt(len(right)), rtol=0)
    assert len(names) == 30
    assert len(votes) == len(old)


def test_the_two_way_bootstrap_finds_the_slope_that_was_built_in():
    old, new, *_ = world()
    values = study()["two_way"](old, new["v6"], 0, 400)
    found = study()["spanned"](values["probit slope"], 30)
    assert found.low < 1 < found.high  # the same deviation of difficulties, so slope 1
    assert 0.9 < found.mean < 1.1
    known = reference.linregress(old.mean(0).numpy(), new["v6"].mean(0).numpy())
    assert float(values["slope"][0]) == pytest.approx(known.slope)
    rank = reference.spearmanr(old.mean(0).numpy(), new["v6"].mean(0).numpy()).statistic
    assert float(values["rank correlation"][0]) == pytest.approx(rank)


def test_drawing_images_too_widens_the_interval_of_drawing_classifiers():
    old, new, *_ = world()
    both = study()["spanned"](study()["two_way"](old, new["v6"], 0, 1000)["slope"], 30)
    x, y = old.mean(0), new["v6"].mean(0)
    alone = stats.resampled(lambda w: stats.line(x, y, w).slope, 30, seed=0)
    assert both.high - both.low > 1.2 * (alone.high - alone.low)


def test_resampled_counts_sum_to_what_was_drawn():
    found = study()["counts"](5, 40, torch.Generator().manual_seed(0))
    assert found.sum(1).tolist() == [40.0] * 5
    assert found.shape == (5, 40)
    assert float(found.max()) > 1


def test_the_drop_is_welchs():
    old, new, *_ = world()
    found = study()["welch"](old, new["v6"])
    assert found.mean == pytest.approx(float(old.mean() - new["v6"].mean()))
    a, b = old.mean(1), new["v6"].mean(1)
    error = math.sqrt(float(a.var() / len(a) + b.var() / len(b)))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.01)


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.05])
def test_a_harder_set_has_the_agreement_that_was_asked_for(shift):
    agreement = world()[2]
    rows = study()["tilted"](agreement, 1000, shift, torch.Generator().manual_seed(0))
    assert len(rows.unique()) == 1000
    noise = 4 * float(agreement.std()) / math.sqrt(1000) if shift == 0 else 1e-3
    assert float(agreement.mean() - agreement[rows].mean()) == pytest.approx(shift, abs=noise)


def test_a_shift_that_cannot_be_reached_is_refused():
    with pytest.raises(ValueError, match="no 1000 images agree less by 0.9"):
        study()["tilted"](world()[2], 1000, 0.9, torch.Generator().manual_seed(0))


def test_planted_overfitting_lifts_only_the_better_half():
    old = world()[0]
    lifted = study()["overfitted"](old, 0)
    gain = lifted.mean(0) - old.mean(0)
    median = old.mean(0).quantile(0.5)
    assert (lifted >= old).all()
    assert gain[old.mean(0) <= median].abs().max() == 0
    torch.testing.assert_close(gain, (old.mean(0) - median).clamp(min=0) / 2, atol=0.01, rtol=0)


def test_the_upper_slope_is_that_of_the_better_half():
    x = torch.arange(10.0, dtype=torch.float64)
    y = torch.where(x < 4.5, x, 4.5 + 0.2 * (x - 4.5))
    assert float(study()["upper_slope"](x[None], y[None], torch.ones(1, 10))) == pytest.approx(0.2)


def test_every_released_classifier_has_a_kind(real_data):
    _, new, agreement, names = study()["released"]()
    assert len({study()["kind"](name) for name in names}) == 4
    assert {version: right.shape for version, right in new.items()} == {"v6": (2000, 30), "v4": (2021, 30)}
    assert 0.9 < float(agreement.mean()) < 1
