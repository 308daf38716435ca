"""The study of common corruptions: its own functions, on tables whose truth is known."""

import numpy as np
import pytest
import torch
from conftest import method
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from studybook import published, studies

STUDY = "robustness/common-corruptions"


@pytest.fixture(scope="module")
def own():
    return method(STUDY)


@pytest.fixture(scope="module")
def rows(own):
    return own["measure"]({"table": "generated", "permutations": 3})


def test_scores_are_the_papers_formulas_written_as_loops(own):
    errors = torch.rand(4, 15, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    ce, relative = own["scores"](errors, clean, 2)
    for f in range(4):
        for c in range(15):
            over = sum(float(errors[f, c, s]) for s in range(5))
            under = sum(float(errors[2, c, s]) for s in range(5))
            assert float(ce[f, c]) == pytest.approx(over / under)
            lost = over - 5 * float(clean[f])
            assert float(relative[f, c]) == pytest.approx(lost / (under - 5 * float(clean[2])))


def test_left_out_families_are_foretold_as_scikit_learn_does(own):
    g = np.random.default_rng(0)
    families = g.integers(0, 6, 40)
    x, y = g.normal(size=(40, 2)), g.normal(size=40)
    wanted = y - cross_val_predict(LinearRegression(), x, y, groups=families, cv=LeaveOneGroupOut())
    columns = torch.from_numpy(np.column_stack([np.ones(40), x]))
    ours = own["left_out"](columns, torch.from_numpy(y), torch.from_numpy(families))
    np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-9)


def test_the_jackknife_of_a_mean_is_its_t_interval(own):
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    found = own["jackknifed"](lambda w: (w * values).sum(-1) / w.sum(-1), torch.arange(5))
    wanted = own["stats"].interval(values)
    assert found[:3] == pytest.approx(wanted[:3])


def test_the_built_in_truth_comes_back(own, rows):
    by_name = {row["model"]: row for row in rows}
    assert by_name["alexnet"]["mce"] == pytest.approx(100)
    assert by_name["alexnet"]["relative"] == pytest.approx(100)
    for name in own["PAPER"]:
        wanted = 100 - own["TRUE_SLOPE"] * (43.5 - by_name[name]["clean"])
        assert by_name[name]["relative"] == pytest.approx(wanted, abs=2.0)
    plain = [row for row in rows if row["kind"] == "plain"]
    slope = np.polyfit([r["clean"] for r in plain], [r["relative"] for r in plain], 1)[0]
    assert slope == pytest.approx(own["TRUE_SLOPE"], abs=0.05)


def test_on_the_generated_table_mce_adds_what_was_built_in_and_a_permuted_one_nothing(rows):
    for shift in ("v2", "sketch", "r", "objectnet"):
        squares = {word: sum(row[f"{word}_{shift}"] ** 2 for row in rows) for word in ("clean", "both", "shuffled")}
        assert squares["both"] < 0.5 * squares["clean"]
        assert squares["shuffled"] > 0.95 * squares["clean"]


def test_networks_are_sorted_by_their_training(own):
    sorted_as = {
        "resnet50": ("plain", "ResNet"),
        "resnet50_with_fog_aws": ("tested corruptions", "one corruption"),
        "resnet50-randomized_smoothing_noise_1.00": ("tested corruptions", "Gaussian noise"),
        "resnet50-randomized_smoothing_noise_0.00": ("other", "baselines"),
        "efficientnet-b3-advprop-autoaug": ("augmented", "AdvProp"),
        "resnet50_deepaugment_augmix": ("augmented", "DeepAugment"),
        "resnet50_linf_eps4_robust": ("adversarial", "robust, l-infinity"),
        "dpn92": ("more data", "ImageNet-5k"),
        "dpn98": ("plain", "DPN"),
        "plain:plain 3:1": ("plain", "plain 3"),
    }
    assert {name: own["lineage"](name) for name in sorted_as} == sorted_as


def test_a_crop_keeps_the_middle_and_the_range(own):
    wide = torch.zeros(3, 300, 600, dtype=torch.uint8)
    wide[:, :, 290:310] = 255
    made = own["crop"](wide)
    assert made.shape == (3, 224, 224)
    assert float(made[:, 112, 112].min()) > 0.9
    assert float(made[:, 112, :80].max()) == 0.0


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("DATA", "imagenet", "DATA must be generated or imagenet-testbed, got 'imagenet'"),
        ("PHOTOS", "cifar10", "PHOTOS must be mnist5k or imagenet-samples, got 'cifar10'"),
        ("SEVERITIES", "1, 6", "SEVERITIES must rise and lie between 1 and 5, at least two, got 1, 6"),
        ("NETWORKS", "linear, mlp", "NETWORKS must be three or more"),
    ],
)
def test_a_bad_parameter_is_refused(parameter, value, message):
    cells = studies.notebook(studies.find("common-corruptions").source)["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    settings = {}
    exec(sources[0], settings)
    assert parameter in settings
    settings[parameter] = value
    with pytest.raises(ValueError, match=message):
        exec(sources[1], settings)


def test_the_published_table_has_what_the_study_reads(real_data, own):
    found = published.table("imagenet-testbed", index_col=0)
    assert set(own["COLUMNS"]) | set(own["SHIFTS"]) | {"val"} <= set(found.columns)
    complete = own["source"]("imagenet-testbed")
    assert len(complete) == 200
    listed = {name for members in own["PLAIN"].values() for name in members.split()}
    assert listed | set(own["PAPER"]) | set(own["LATER"]) <= set(complete.index)
