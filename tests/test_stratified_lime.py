"""The study of stratified LIME: its regression, its weights and its exact answers, against scikit-learn and captum."""

import pytest
import torch
from captum import attr
from captum._utils.models.linear_model import SkLearnRidge
from conftest import method
from sklearn.linear_model import Ridge

from studybook import data, explanations, studies

STUDY = "explanations/stratified-lime"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum.*")


@pytest.fixture(scope="module")
def own():
    return method(STUDY)


def drawn(own, even=True, draws=2, calls=40, n=6):
    masks = own["neighbors"](even, draws, calls, n, torch.Generator().manual_seed(3))
    return masks, torch.rand(draws, calls, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ["plain", "adjusted", "unadjusted", "distances"])
def test_the_regression_is_that_of_scikit_learn(own, kind):
    masks, scores = drawn(own)
    w = own["weights"](kind, masks)
    found, fit = own["ridge"](masks, scores, w)
    for i in range(2):
        reference = Ridge(alpha=1).fit(masks[i], scores[i], sample_weight=w[i])
        torch.testing.assert_close(found[i], torch.tensor(reference.coef_))
        assert float(fit[i]) == pytest.approx(reference.score(masks[i], scores[i], sample_weight=w[i]))


def test_plain_lime_is_that_of_captum(own):
    masks, _ = drawn(own, even=False, draws=1, calls=30)
    masks = masks[0]
    slopes = torch.linspace(-1, 1, 6, dtype=torch.float64)

    def model(x):
        return (x @ slopes).sigmoid() + x[:, 0] * x[:, 1]

    def neighbors(_, **options):
        yield from masks[:, None]

    lime = attr.LimeBase(
        model,
        SkLearnRidge(alpha=1),
        lambda original, other, shown, **options: own["kernel"](own["distances"](shown.sum(), 6)),
        neighbors,
        True,
        lambda shown, original, **options: shown,
        None,
    )
    reference = lime.attribute(torch.ones(1, 6, dtype=torch.float64), n_samples=30)
    found, _ = own["ridge"](masks, model(masks), own["weights"]("plain", masks))
    torch.testing.assert_close(found[None].float(), reference.float(), rtol=1e-4, atol=1e-5)


def test_shapley_values_are_those_of_captum_and_of_a_product(own):
    masks = own["subsets"](5)

    def model(x):
        return x[:, 0] * x[:, 1] + 2 * x[:, 2] - x[:, 3] * x[:, 4] * x[:, 0]

    torch.manual_seed(1)
    reference = attr.ShapleyValueSampling(model).attribute(torch.ones(1, 5).double(), n_samples=1500)
    exact = own["shapley"](masks, model(masks))
    torch.testing.assert_close(exact, torch.tensor([1 / 2 - 1 / 3, 1 / 2, 2, -1 / 3, -1 / 3], dtype=torch.float64))
    torch.testing.assert_close(exact.float(), reference[0].float(), atol=0.05, rtol=0)


def test_every_number_of_kept_segments_is_equally_likely(own):
    masks = own["neighbors"](True, 1, 20_001, 4, torch.Generator().manual_seed(5))[0]
    assert masks[0].tolist() == [1] * 4
    counts = torch.bincount(masks[1:].sum(-1).long(), minlength=5) / 20_000
    torch.testing.assert_close(counts, torch.full((5,), 0.2), atol=0.02, rtol=0)


def test_probabilities_of_subsets_sum_to_one_and_the_adjustment_is_their_quotient(own):
    masks = own["subsets"](7)
    even, coins = own["chances"](masks, True), own["chances"](masks, False)
    assert float(even.sum()) == pytest.approx(1)
    torch.testing.assert_close(coins / even, own["adjustment"](masks.sum(-1), 7))
    torch.testing.assert_close(own["adjustment"](torch.tensor([60.0]).double(), 120) > 8, torch.tensor([True]))


def test_adjusted_sums_have_plain_samplings_expectation_and_unadjusted_ones_do_not(own):
    assert own["sums"]({"n": 6, "seed": 1})["gap"] < 1e-12
    masks = own["subsets"](6)
    scores = masks[:, :4].prod(1)
    plain, adjusted, unadjusted = (own["limit"](kind, masks, scores, 1e6) for kind in own["KINDS"][:3])
    torch.testing.assert_close(adjusted, plain)
    assert float((unadjusted - plain).norm() / plain.norm()) > 0.1


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_products_get_the_predicted_coefficients(own, order):
    found = own["product"]({"n": 7, "order": order})
    assert found["plain"] == pytest.approx(2.0 ** (1 - order))
    assert found["adjusted"] == pytest.approx(2.0 ** (1 - order))
    assert found["unadjusted"] == pytest.approx(6 / ((order + 1) * (order + 2)))
    assert found["unadjusted rest"] == pytest.approx(0, abs=1e-9)
    assert found["shapley"] == pytest.approx(1 / order)


@pytest.mark.parametrize("kind", ["plain", "adjusted", "unadjusted", "distances"])
def test_many_draws_come_to_the_limit(own, kind):
    masks = own["subsets"](5)
    table = torch.rand(32, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    some = own["neighbors"](kind != "plain", 1, 100_000, 5, torch.Generator().manual_seed(7))
    rows = (some @ 2 ** torch.arange(5).double()).long()
    found, _ = own["ridge"](some, table[rows], own["weights"](kind, some))
    torch.testing.assert_close(found[0], own["limit"](kind, masks, table, 100_000), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "adjusted", "distances"])
def test_the_effective_share_is_that_of_drawn_weights(own, kind):
    masks = own["neighbors"](kind != "plain", 1, 100_000, 12, torch.Generator().manual_seed(8))
    w = own["weights"](kind, masks)[0]
    assert own["effective"](kind, 12) == pytest.approx(float(w.sum() ** 2 / (w**2).sum() / len(w)), rel=0.03)


def test_orders_keep_the_largest_first_and_then_all_but_them(own):
    masks = own["ordered"](torch.tensor([0.1, 3, -1, 2, 0.5, 0.4, 0.3, 0.2, 0.15, 0.12]))
    assert masks.shape == (18, 10)
    assert masks[1].nonzero()[:, 0].tolist() == [1, 3]
    assert (masks[:9] + masks[9:] == 1).all()


def test_a_cut_photo_has_the_mean_color_in_each_segment(own):
    x = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(9)) * 2 - 1
    labels, blurred = own["cut"](x, 6)
    for i in range(int(labels.max()) + 1):
        torch.testing.assert_close(blurred[:, labels == i].mean(1), x[:, labels == i].mean(1))
        assert float(blurred[:, labels == i].std(1).max()) < 1e-5


@pytest.mark.parametrize("count", [4, 10, 40])
def test_there_are_at_most_so_many_segments_without_gaps(count):
    picture = data.pixels(data.photos().files[0])[:, :96, :96]
    found = explanations.segments(picture, count)
    assert found.shape == (96, 96)
    assert found.unique().tolist() == list(range(int(found.max()) + 1))
    assert count / 2 < int(found.max()) + 1 <= count


def test_one_segment_is_refused():
    with pytest.raises(ValueError, match="segments needs a count of at least 2, got 1"):
        explanations.segments(torch.zeros(3, 8, 8, dtype=torch.uint8), 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PHOTOS", "mine", "PHOTOS must be packaged or imagenet-samples, got 'mine'"),
        ("COUNT", 7, "COUNT must be 3 to 6 for packaged photos, got 7"),
        ("FEW", 20, "FEW must be 3 to 12"),
        ("MANY", "5, 60", "MANY must rise and begin above FEW=6, got 5, 60"),
        ("CALLS", 1, "CALLS must be at least 20, got 1"),
        ("SIZE", 8, "SIZE must be 64 to 224, got 8"),
    ],
)
def test_a_wrong_parameter_is_refused(name, value, message):
    found = studies.notebook(studies.find("stratified-lime").source)["cells"]
    cells = [cell["source"] for cell in found if cell["cell_type"] == "code"]
    settings = {}
    exec(cells[0], settings)  # noqa: S102
    settings[name] = value
    with pytest.raises(ValueError, match=message):
        exec(cells[1], settings)  # noqa: S102
