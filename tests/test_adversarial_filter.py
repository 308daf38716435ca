"""The method of the study of adversarially filtered photos: trends, gains and filters whose truth is known."""

import functools

import numpy as np
import pytest
import statsmodels.api
import torch
from conftest import method

from studybook import published


@functools.cache
def study():
    return method("robustness/adversarially-filtered-natural-images")


def test_the_trend_and_the_excess_are_those_of_least_squares_on_the_plain_networks():
    g = torch.Generator().manual_seed(1)
    x = 2 + torch.rand(60, generator=g, dtype=torch.float64)
    plain = (torch.arange(60) < 40).double()
    y = -6 + x + 0.3 * x**2 + 0.1 * torch.randn(60, generator=g, dtype=torch.float64) + 0.7 * (1 - plain)
    found = study()["excess"](x, y, plain, torch.ones(1, 60))[0]
    columns = np.stack([np.ones(60), x, x**2], 1)
    known = statsmodels.api.OLS(y.numpy()[:40], columns[:40]).fit()
    np.testing.assert_allclose(found.numpy(), y.numpy() - known.predict(columns), atol=1e-6)
    mean = study()["mean_excess"](x, y, plain, 1 - plain, torch.ones(1, 60))
    assert float(mean) == pytest.approx(0.7, abs=0.15)


def test_the_planted_excesses_are_recovered():
    rows = {row["what"]: row for row in study()["trend"]({"seed": 0, "resamples": 400})}
    for group, truth in (("more data", 0.8), ("ResNet-50", -0.6), ("other ResNets", -0.3)):
        assert rows[group]["low"] < truth < rows[group]["high"], group
    assert rows["nearer"]["low"] < -0.3 < rows["nearer"]["high"]
    assert 0.3 < rows["families below"]["mean"] < 0.7


def test_gains_are_over_the_same_network_and_the_filter_is_never_the_baseline():
    retrained = study()["RETRAINED"]
    on_a = dict(zip(retrained, (0.01, 0.02, 0.03), strict=True)) | {"new": 0.10, "old": 0.04, "other": 0.07}
    found = study()["gains"]({"method": [("new", ""), ("other", "old")]}, on_a)
    assert found["method"] == pytest.approx(((0.10 - 0.02) + (0.07 - 0.04)) / 2)
    pairs = [pair for part in ("AUGMENTED", "BUILT", "FED") for several in study()[part].values() for pair in several]
    assert "resnet50" not in {name for pair in pairs for name in pair}


def test_recipes_are_read_from_timms_names():
    told = study()["timm_group"]
    assert told("resnet50.a1_in1k") == ("ResNet-50", "resnet50 a1_in1k")
    assert told("resnet101.tv_in1k") == ("other ResNets", "resnet101 tv_in1k")
    assert told("convnext_tiny.fb_in22k_ft_in1k") == ("more data", "convnext")
    assert told("resnet50.fb_swsl_ig1b_ft_in1k")[0] == "more data"
    assert told("efficientnet_b0.ra_in1k") == ("plain", "efficientnet")
    assert told("deit_base_distilled_patch16_224.fb_in1k")[0] == "left out"
    assert told("seresnext50_32x4d.racm_in1k")[0] == "left out"


def test_a_filter_that_errs_alone_costs_nothing_and_one_that_shares_errors_costs_what_it_shares():
    right = torch.ones(1000, 3, dtype=torch.float64)
    right[:100, 0] = 0  # the filter
    right[:50, 1] = 0  # shares half of its errors
    right[200:300, 2] = 0  # shares none
    wrong = right[:, 0] == 0
    assert study()["lost"](right, wrong, torch.tensor([False, True, False])) == pytest.approx(0.5 - 0.05)
    assert study()["lost"](right, wrong, torch.tensor([False, False, True])) == pytest.approx(-0.1)


def test_planted_kinship_is_found_and_controls_cost_nothing():
    rows = [study()["filtered"]({"filter": f}) for f in (0, 10, 20)]
    assert all(row["kinship"] < -0.2 for row in rows)
    assert all(row["kin_fall"] > row["stranger_fall"] for row in rows)
    assert all(abs(row["random"]) < 0.02 and abs(row["independent"]) < 0.02 for row in rows)
    assert all(row["agreement"] > 0 for row in rows)


def test_all_networks_that_are_compared_are_in_the_published_table(real_data):
    names = set(published.table("imagenet-testbed", index_col=0).index)
    pairs = [pair for part in ("AUGMENTED", "BUILT", "FED") for several in study()[part].values() for pair in several]
    assert {name for pair in pairs for name in pair if name} <= names
    assert {*study()["RETRAINED"], *(n for family in study()["PLAIN"].values() for n in family)} <= names
