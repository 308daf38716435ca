"""The study of the four errors of self-supervised networks: its own functions against references and known truth."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import method

STUDY = "selfsup/ssl-risk-decomposition"


@pytest.fixture(scope="module")
def study():
    return method(STUDY, RESAMPLES=300)


def random_table(n=90, p=4, groups=15):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, p, generator=g, dtype=torch.float64)
    x[:, 0] = 1
    y = torch.randn(n, 2, generator=g, dtype=torch.float64) + x[:, 1:3]
    return x, y, torch.arange(n) % groups


@pytest.mark.parametrize(("ours", "theirs"), [("holm", "holm"), ("benjamini_hochberg", "fdr_bh")])
def test_adjusted_p_values_are_statsmodels(study, ours, theirs):
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    p = np.random.default_rng(1).random(40) ** 3
    p[5] = p[9]  # a tie
    np.testing.assert_allclose(study[ours](torch.from_numpy(p)).numpy(), multipletests(p, method=theirs)[1])


def test_the_share_of_false_discoveries_is_scipys(study):
    from scipy.stats import false_discovery_control

    p = np.random.default_rng(2).random(25) ** 2
    np.testing.assert_allclose(study["benjamini_hochberg"](torch.from_numpy(p)), false_discovery_control(p))


def test_coefficients_and_plain_p_values_are_statsmodels(study):
    sm = pytest.importorskip("statsmodels.api")
    x, y, groups = random_table()
    b, plain, _ = study["effects"](x, y, groups)
    for k in range(2):
        fit = sm.OLS(y[:, k].numpy(), x.numpy()).fit()
        np.testing.assert_allclose(b[:, k], fit.params, rtol=1e-8)
        np.testing.assert_allclose(plain[:, k], fit.pvalues, rtol=1e-6)


def test_leaving_out_families_of_one_is_statsmodels_hc3(study):
    sm = pytest.importorskip("statsmodels.api")
    from scipy.stats import t

    x, y, _ = random_table()
    b, _, family = study["effects"](x, y, torch.arange(len(x)))
    fit = sm.OLS(y[:, 0].numpy(), x.numpy()).fit(cov_type="HC3")
    n = len(x)
    expected = 2 * t.sf(np.abs(fit.params / (fit.bse * np.sqrt((n - 1) / n))), n - 1)
    np.testing.assert_allclose(family[:, 0], expected, rtol=1e-5)


def test_families_are_left_out_as_in_a_loop(study):
    from scipy.stats import t

    x, y, groups = random_table()
    _, _, family = study["effects"](x, y, groups)
    x, y = x.numpy(), y.numpy()
    full, *_ = np.linalg.lstsq(x, y, rcond=None)
    rest = [groups.numpy() != g for g in range(15)]
    without = np.stack([np.linalg.lstsq(x[keep], y[keep], rcond=None)[0] for keep in rest])
    error = np.sqrt(14 / 15 * ((without - full) ** 2).sum(0))
    np.testing.assert_allclose(family, 2 * t.sf(np.abs(full / error), 14), rtol=1e-6)


def test_the_interval_of_a_coefficient_has_statsmodels_estimate_as_its_mean(study):
    sm = pytest.importorskip("statsmodels.api")
    x, y, _ = random_table(groups=30)
    found = study["coefficient"](x, y[:, 0], 1, torch.arange(90) % 30, 0)
    assert found.mean == pytest.approx(sm.OLS(y[:, 0].numpy(), x.numpy()).fit().params[1])
    assert found.low < 1.0 < found.high
    assert found.n == 30


def test_the_generated_truth_is_recovered(study):
    rows = pd.DataFrame(study["choices"]({})[:-1])
    found = rows.set_index(["part", "choice"])
    missed = [key for key, true in study["TRUTH"].items() if not found.loc[key, "low"] < true < found.loc[key, "high"]]
    assert len(missed) <= 1
    for key, true in study["TRUTH"].items():
        assert found.loc[key, "mean"] == pytest.approx(true, abs=0.35 * abs(true) + 0.2)
    planted = set(study["TRUTH"])
    discovered = {key for key, row in found.iterrows() if row["holm"] < 0.05}
    assert len(planted & discovered) >= 5


def test_the_generated_parts_add_up(study):
    frame = study["generated"]()
    total = frame[list(study["PARTS"])].sum(axis=1)
    np.testing.assert_allclose(total, frame["full"])


def test_a_familys_prediction_does_not_depend_on_its_own_errors(study):
    x, y, groups = random_table()
    before = study["unseen"](x, y[:, 0], groups)
    changed = y[:, 0].clone()
    changed[groups == 4] += 50
    after = study["unseen"](x, changed, groups)
    torch.testing.assert_close(after[groups == 4], before[groups == 4])
    assert (after[groups != 4] - before[groups != 4]).abs().max() > 0.1


def test_removed_is_one_for_a_perfect_prediction_and_zero_for_the_same(study):
    base = torch.tensor([1.0, 4.0, 9.0])
    assert study["removed"](torch.zeros(3), base, torch.ones(1, 3)).tolist() == [1.0]
    assert study["removed"](base, base, torch.ones(1, 3)).tolist() == [0.0]


def test_the_probe_is_scikit_learns_ridge_on_one_hot_labels(study):
    from sklearn.linear_model import RidgeClassifier

    g = torch.Generator().manual_seed(1)
    y = torch.arange(400) % 10
    x = torch.randn(400, 12, generator=g, dtype=torch.float64) + torch.nn.functional.one_hot(y, 12)
    ours = study["probe_error"](x[:300], y[:300], x[300:], y[300:])
    theirs = RidgeClassifier(alpha=0.3).fit(x[:300].numpy(), y[:300].numpy()).score(x[300:].numpy(), y[300:].numpy())
    assert ours == pytest.approx(100 * (1 - theirs), abs=1.01)  # its constant is not penalized


def test_parts_without_negative_ones_add_up_to_the_total(study):
    g = torch.Generator().manual_seed(2)
    y = torch.arange(600) % 10
    x = 0.8 * torch.randn(600, 30, generator=g, dtype=torch.float64) + torch.nn.functional.one_hot(y, 30)
    parts, total = study["decomposed"](x[:400], y[:400], x[400:], y[400:], x[:400, :15])
    assert min(parts) >= 0
    assert sum(parts) >= total - 1e-9


def test_planted_errors_land_in_their_own_parts(study):
    moves = study["encoders"]({"seed": 77})["moves"]
    assert (moves.diagonal() / np.abs(moves).sum(1)).min() > 0.5
    assert moves.diagonal().min() > 1.0
    assert moves.argmax(1).tolist() == [0, 1, 2, 3]


def test_the_published_table_has_the_networks_of_the_paper(study, real_data):
    frame = study["released"]()
    complete = frame.dropna(subset=list(study["PARTS"]))
    assert (len(frame), len(complete)) == (169, 146)
    assert complete[list(study["COVARIATES"])].notna().all().all()
    assert complete["family"].nunique() == 28


def test_a_bad_parameter_is_refused():
    from conftest import ROOT

    from studybook import studies

    cells = studies.notebook(ROOT / "notebooks" / f"{STUDY}.ipynb")["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    for name, value, words in (
        ("DATA", "imagenet", "DATA must be generated or published, got imagenet"),
        ("ENCODERS", 1, "ENCODERS must be at least 3, got 1"),
    ):
        settings = {}
        exec(sources[0], settings)
        settings[name] = value
        with pytest.raises(ValueError, match=words):
            exec(sources[1], settings)
