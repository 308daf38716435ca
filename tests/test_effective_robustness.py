"""The study of effective robustness: its lines, its averages, its groups, and a table whose truth is known."""

import functools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from conftest import method
from scipy.special import expit

from studybook import stats

STUDY = "robustness/effective-robustness"
study = functools.cache(lambda: method(STUDY))


def accuracies(n, seed):
    rng = np.random.default_rng(seed)
    clean = expit(rng.normal(1.0, 0.5, n))
    return torch.tensor(clean), torch.tensor(expit(rng.normal(0.0, 0.6, n) + np.log(clean / (1 - clean))))


def test_weighted_lines_on_log_odds_equal_statsmodels():
    clean, shifted = accuracies(60, seed=3)
    weights = torch.rand(4, 60, generator=torch.Generator().manual_seed(2)).double()
    predicted, (line,) = study()["baselines"](clean, shifted, weights)
    x = sm.add_constant(torch.logit(clean).numpy())
    for w, slope, intercept, guess in zip(weights, line.slope, line.intercept, predicted, strict=True):
        fit = sm.WLS(torch.logit(shifted).numpy(), x, weights=w.numpy()).fit()
        np.testing.assert_allclose([float(intercept), float(slope)], fit.params, rtol=1e-9)
        np.testing.assert_allclose(guess.numpy(), expit(fit.predict(x)), rtol=1e-9)


def test_two_lines_meet_no_model_of_the_other_side_and_leave_out_the_pivot():
    clean, shifted = accuracies(60, seed=4)
    pivot = float(clean[7])
    predicted, lines = study()["baselines"](clean, shifted, torch.ones(1, 60).double(), pivot)
    for line, side in zip(lines, (clean < pivot, clean > pivot), strict=True):
        x = sm.add_constant(torch.logit(clean[side]).numpy())
        fit = sm.OLS(torch.logit(shifted[side]).numpy(), x).fit()
        np.testing.assert_allclose([float(line.intercept), float(line.slope)], fit.params, rtol=1e-9)
        np.testing.assert_allclose(predicted[0, side].numpy(), expit(fit.predict(x)), rtol=1e-9)


def test_models_without_a_number_do_not_move_the_line():
    clean, shifted = accuracies(30, seed=5)
    holes = shifted.clone()
    holes[:10] = torch.nan
    found, _ = study()["baselines"](clean, holes, torch.ones(1, 30).double())
    wanted, _ = study()["baselines"](clean, shifted, (torch.arange(30) >= 10).double()[None])
    torch.testing.assert_close(found, wanted)


def test_severities_are_averaged_first_and_then_corruptions():
    columns = ["imagenet-c.fog.1_on-disk", "imagenet-c.fog.2_on-disk", "imagenet-c.fog.1_in-memory"]
    columns += ["stylized_imagenet", "greyscale", "pgd.l2.eps0.1", "pgd.linf.eps2", "val"]
    table = pd.DataFrame([[10.0, 30.0, 40.0, 0.0, 60.0, 2.0, 4.0, 70.0]], index=["a"], columns=columns)
    short = study()["averaged"](table)
    assert short.loc["a", "fog_on-disk"] == pytest.approx(20.0)
    assert short.loc["a", "avg_corruptions"] == pytest.approx((20 + 40 + 0 + 60) / 4)
    assert short.loc["a", "avg_pgd"] == pytest.approx(3.0)
    table.loc["a", "imagenet-c.fog.2_on-disk"] = math.nan
    assert study()["averaged"](table).loc["a", ["fog_on-disk", "avg_corruptions"]].isna().all()


GROUPED = [
    ("resnet50_with_gaussian_noise_aws", "intervention", "corruptions", "resnet50_aws_baseline"),
    ("resnet50_aws_baseline", "left out", "retrained", ""),
    ("resnet50-randomized_smoothing_noise_0.00", "standard", "resnet", ""),
    ("resnet50_linf_eps4_robust", "attack", "PGD-trained", "resnet50"),
    ("vgg16_bn_lpf2", "intervention", "anti-aliased", "vgg16_bn"),
    ("efficientnet-b3-advprop-autoaug", "intervention", "AdvProp", "efficientnet-b3-autoaug"),
    ("FixResNet50CutMix_v2", "intervention", "CutMix", "FixResNet50_v2"),
    ("resnet50_feature_cutmix", "intervention", "CutMix", "resnet50"),
    ("resnext50_32x4d_swsl", "more data", "SWSL", "resnext50_32x4d"),
    ("bninception-imagenet21k", "more data", "ImageNet-21k", "bninception"),
    ("dpn68b", "more data", "DPN (ImageNet-5k)", ""),
    ("densenet121", "standard", "densenet", ""),
    ("resnet50-vtab-rotation", "standard", "vtab", ""),
]


@pytest.mark.parametrize(("name", "kind", "family", "own"), GROUPED)
def test_a_model_has_its_group_family_and_baseline(name, kind, family, own):
    names = [one for row in GROUPED for one in (row[0], row[3])] + ["resnet50"]
    assert study()["group"](name) == (kind, family)
    assert study()["own_baseline"](name, names) == own


def measured(seed, shift):
    rows = study()["measure"]({"data": "generated", "seed": seed, "shift": shift})
    return {row["condition"]: row for row in rows}


def kinds():
    return np.array([study()["group"](name)[0] for name in study()["generated"](0).index])


@pytest.mark.parametrize("seed", range(3))
def test_what_was_planted_is_found_and_nothing_else(seed):
    group = kinds()
    for shift, holder in (("ImageNetV2", "more data"), ("Vid ±10", "attack"), ("Sketch", "")):
        row = measured(seed, shift)[shift]
        predicted = row["shifted"] - row["rho"]
        truth = expit(np.log(predicted / (1 - predicted)) + study()["PLANTED"]) - predicted
        for kind in ("intervention", "attack", "more data"):
            some = group == kind
            wanted = truth[some].mean() if kind == holder else 0.0
            assert row["rho"][some].mean() == pytest.approx(wanted, abs=0.012), (shift, kind)


def test_the_kink_is_found_with_its_size():
    row = measured(1, "ImageNet-A")["ImageNet-A"]
    assert row["slope"] == pytest.approx(1.0, abs=0.25)
    assert row["slope_above"] == pytest.approx(3.0, abs=0.25)


def test_independent_synthetic_robustness_does_not_correlate_once_accuracy_is_known():
    others, found, raw = kinds() != "standard", [], []
    for seed in range(8):
        synthetic, natural = measured(seed, "")["avg_corruptions"], measured(seed, "ImageNetV2")["ImageNetV2"]
        for name, into in (("rho", found), ("shifted", raw)):
            x, y = (torch.tensor(row[name][others]) for row in (synthetic, natural))
            into.append(float(stats.correlation(x, y)))
    assert np.mean(found) == pytest.approx(0.0, abs=0.15)
    assert np.mean(raw) > 0.6


def test_the_published_table_has_the_papers_models(real_data):
    rows = pd.DataFrame(study()["listed"]({"data": "testbed", "seed": 0}))
    counts = rows["kind"].value_counts().to_dict()
    assert counts == {"standard": 78, "intervention": 70, "attack": 16, "more data": 30, "left out": 7}
    assert set(rows["own"]) - {""} <= set(rows["model"])


REFUSED = [
    ("DATA", "imagenet", "DATA must be generated or testbed, got imagenet"),
    ("RESAMPLES", 10, "RESAMPLES must be at least 200, got 10"),
    ("PERMUTATIONS", 5, "PERMUTATIONS must be at least 100, got 5"),
]


@pytest.mark.parametrize(("parameter", "value", "message"), REFUSED)
def test_a_wrong_parameter_is_one_clear_sentence(parameter, value, message):
    from studybook import studies

    cells = studies.notebook(studies.find("effective-robustness").source)["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    settings = {}
    exec(sources[0], settings)
    settings[parameter] = value
    with pytest.raises(ValueError, match=message):
        exec(sources[1], settings)
