"""The study of TCAV: its own functions against scikit-learn, scipy and captum, and where the answer is known."""

import numpy as np
import pytest
import torch
from conftest import method
from scipy.stats import ttest_ind

from studybook import studies

STUDY = "explanations/tcav"


@pytest.fixture(scope="module")
def own():
    return method(STUDY)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_cavs_are_the_weights_of_scikit_learns_logistic_regression(own, penalty):
    from sklearn.linear_model import LogisticRegression

    x = normal(3, 40, 60) * 1.3
    y = (torch.arange(40) < 20).expand(3, -1)
    x[:, :20, 0] += 1
    a, offset = own["coefficients"](x @ x.transpose(1, 2), y, penalty)
    for i in range(3):
        fitted = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(x[i].numpy(), y[i].numpy())
        np.testing.assert_allclose((a[i] @ x[i]).numpy(), fitted.coef_[0], atol=1e-5)
        assert float(offset[i]) == pytest.approx(float(fitted.intercept_[0]), abs=1e-5)


def test_slopes_are_those_of_small_steps_in_the_layer(own):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4), torch.nn.Tanh())
    model = model.append(torch.nn.Linear(4, 3)).double()
    x, v = normal(7, 6), normal(5)
    found = own["slopes"](model, 2, x, 1) @ v
    inner = model[:2](x).detach()
    step = 1e-6 * v
    risen = (model[2:](inner + step) - model[2:](inner - step))[:, 1] / 2e-6
    torch.testing.assert_close(found, risen.detach(), rtol=1e-6, atol=1e-8)


def test_the_test_is_scipys_and_knows_constants(own):
    a, b = normal(5, 12), 0.4 + 2 * normal(5, 9, seed=1)
    expected = ttest_ind(a.numpy(), b.numpy(), axis=1, equal_var=False).pvalue
    np.testing.assert_allclose(own["welch"](a, b).numpy(), expected, rtol=1e-9)
    one = torch.ones(2, 4, dtype=torch.float64)
    assert own["welch"](one, torch.stack([one[0], 0 * one[0]])).tolist() == [1.0, 0.0]


def test_scores_are_captums(own, tmp_path):
    """In a layer of a toy network, for a concept and two random sets, with scikit-learn's classifier on both sides."""
    from captum.concept import TCAV, Classifier, Concept
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Linear(8, 10), torch.nn.ReLU(), torch.nn.Linear(10, 6), torch.nn.Tanh())
    model = model.append(torch.nn.Linear(6, 3)).eval()
    with torch.no_grad():
        model[2].weight.mul_(4)  # so that slopes differ from picture to picture
    sets = normal(3, 15, 8).float()
    sets[0, :, 2] += 0.3
    x = normal(20, 8, seed=3).float()
    with torch.no_grad():
        whole = own["scaled"](model[:2](sets.flatten(0, 1)))
        plain = model[:2](sets.flatten(0, 1)).double()
    factor = float((whole[0] - whole[1]).norm() / (plain[0] - plain[1]).norm())

    class Logistic(Classifier):
        def __init__(self):
            self.fitted = None

        def train_and_eval(self, dataloader, **_):
            batches = list(dataloader)
            seen = torch.cat([inputs for inputs, _ in batches]).double().numpy()
            labels = torch.cat([which for _, which in batches]).numpy()
            self.fitted = LogisticRegression(tol=1e-10, max_iter=10_000).fit(factor * seen, labels)
            return {"accs": torch.tensor(self.fitted.score(factor * seen, labels))}

        def weights(self):
            w = torch.tensor(self.fitted.coef_).float()
            return torch.cat([-w, w])

        def classes(self):
            return self.fitted.classes_.tolist()

    loaders = [torch.utils.data.DataLoader(part, batch_size=15) for part in sets]
    concept, *random = [Concept(i, f"set{i}", loader) for i, loader in enumerate(loaders)]
    reference = TCAV(model, ["1"], classifier=Logistic(), save_path=str(tmp_path))
    answer = reference.interpret(x, [[concept, one] for one in random], target=2)
    pair = torch.stack([torch.cat([whole[:15], whole[15 * i : 15 * i + 15]]) for i in (1, 2)])
    a, _ = own["coefficients"](pair @ pair.transpose(1, 2), (torch.arange(30) < 15).expand(2, -1))
    v = torch.einsum("bi,bid->bd", a, pair)
    ours = ((own["slopes"](model, 2, x, 2) @ v.T) > 0).double().mean(0)
    theirs = [float(answer[f"0-{i}"]["1"]["sign_count"][0]) for i in (1, 2)]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-6)
    assert any(0 < score < 1 for score in theirs)


class Corner(torch.nn.Module):
    """Three logits that depend on the brightness of the corner (weight `tag`) and of the rest (weight `rest`)."""

    def __init__(self, tag, rest):
        super().__init__()
        self.weights = torch.tensor([[tag, rest], [-tag, -rest], [0.0, 0.0]])

    def forward(self, means):
        return torch.nn.functional.softplus(means @ self.weights.T)


class Means(torch.nn.Module):
    def forward(self, x):
        inside = x[..., -10:, -10:].mean((1, 2, 3))
        return torch.stack([inside, x[..., :-10, :-10].mean((1, 2, 3))], 1)


@pytest.mark.parametrize(("tag", "rest", "expected"), [(1.0, 0.0, (1, 0, 0)), (-1.0, 0.0, (0, 1, 0))])
def test_scores_of_a_network_that_reads_the_corner_alone(own, tag, rest, expected):
    """A bright corner raises class 0, lowers class 1 and leaves class 2 as it is: scores 1, 0 and 0."""
    model = torch.nn.Sequential(Means(), Corner(tag, rest))
    size, sets = 12, 4
    pool = 0.3 * torch.rand(
        size * (2 * 3 + 2 * 3 + sets + 2 + 3), 3, 32, 32, generator=torch.Generator().manual_seed(4)
    )
    groups = {"tag": (3, 2 * size), "object": (3, 2 * size), "random": (sets, size), "held": (1, 2 * size)}
    rows, start = {}, 0
    for name, shape in {**groups, "pseudo": (3, size)}.items():
        rows[name] = torch.arange(start, start + shape[0] * shape[1]).view(shape)
        start += shape[0] * shape[1]
    pool[rows["tag"].flatten(), :, -10:, -10:] += 0.6
    x = torch.rand(3, 9, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    found = own["scores"](model, 1, pool, rows, x, size, torch.Generator().manual_seed(6))
    assert (found["tag"] == 9 * torch.tensor(expected)[:, None]).all()
    assert found["tag"].shape == (3, sets)
    assert found["null"].shape == (3, sets)
    assert found["pseudo"].shape == (9, sets)
    assert (found["accuracy"][0] == 1).all()
    assert (found["accuracy"][1] < 0.9).all()
    assert abs(float(found["cosine"][0, 0])) > 0.9


def test_scores_are_the_same_from_a_layers_own_inputs(own):
    torch.manual_seed(3)
    model, case = own["network"](), {"pictures": "shapes", "digits": "mnist5k", "seed": 1, "sets": 3, "size": 5}
    pool, rows = own["stacks"](case)
    x = own["explained"]({**case, "explained": 4})
    whole = own["scores"](model, 6, pool, rows, x, 5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        behind = [model[:3](part) for part in (pool, x.flatten(0, 1))]
    inner = behind[1].unflatten(0, x.shape[:2])
    part = own["scores"](model[3:], 3, behind[0], rows, inner, 5, torch.Generator().manual_seed(0))
    assert set(whole) == set(part)
    for name in whole:
        torch.testing.assert_close(whole[name], part[name])


def test_worlds_that_use_the_concept_say_so_and_fresh_pictures_keep_the_level(own):
    """With twenty sets: both signs are told and significant, and an ignored concept passes with fixed pictures only."""
    cases = [{"world": i, "sets": 20, "size": 10} for i in range(40)]
    for alpha in (2.0, -2.0):
        found = [own["world"]({**case, "alpha": alpha}) for case in cases]
        score = np.mean([row["score"] for row in found])
        assert (score if alpha > 0 else 1 - score) > 0.95
        assert np.mean([row["fresh"] < 0.05 for row in found]) > 0.9
    unused = [own["world"]({**case, "alpha": 0.0}) for case in cases]
    fixed, fresh = (np.mean([row[name] < 0.05 for row in unused]) for name in ("fixed", "fresh"))
    assert fresh < 0.15
    assert fixed > fresh + 0.15


def test_tags_are_put_into_the_corner_and_differ_between_training_and_test(own):
    train, test = own["tags"]("mnist5k", "train"), own["tags"]("mnist5k", "test")
    assert train.shape == (10, 200, 10, 10)
    assert not any(one.equal(other) for one in train[0, :20] for other in test[0, :20])
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    found = own["tagged"](x, torch.tensor([0, 1, 2, 2]), test, torch.Generator().manual_seed(8))
    assert found[..., :-10, :].equal(x[..., :-10, :])
    assert found[..., :, :-10].equal(x[..., :, :-10])
    corner = found[..., -10:, -10:]
    assert corner[:, 0].equal(corner[:, 2])
    for picture, digit in zip(corner[:, 0], (0, 1, 2, 2), strict=True):
        assert any(picture.equal(one) for one in test[digit])


def test_the_pool_holds_each_kind_of_picture_once(own):
    case = {"pictures": "shapes", "digits": "mnist5k", "seed": 0, "sets": 3, "size": 5}
    pool, rows = own["stacks"](case)
    every = torch.cat([part.flatten() for part in rows.values()])
    assert every.sort().values.equal(torch.arange(len(pool)))
    assert {name: tuple(part.shape) for name, part in rows.items()} == {
        "random": (3, 5),
        "pseudo": (3, 5),
        "held": (1, 10),
        "tag": (3, 10),
        "object": (3, 10),
    }


def test_the_share_on_the_tag_is_known_for_even_and_for_corner_maps(own):
    even, corner = torch.ones(32, 32), torch.zeros(32, 32)
    corner[-10:, -10:] = 1
    assert own["on_tag"](torch.stack([even, corner])).tolist() == pytest.approx([100 / 1024, 1.0])


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("PICTURES", "photos", "PICTURES must be shapes or cifar10, got 'photos'"),
        ("DIGITS", "digits", "DIGITS must be mnist5k or mnist, got 'digits'"),
        ("NOISES", "0.1, 0.5, 1, none", "NOISES must rise from 0 to 1 in three or more steps, got 0.1"),
        ("NOISES", "0, 0.5, 1", "NOISES must end with none, got 0, 0.5, 1"),
        ("SETS", 2, "SETS must be 3 and SIZE 5 or more, got SETS=2"),
        ("EXPLAINED", 256, "EXPLAINED must be between 1 and 255, got 256"),
    ],
)
def test_a_bad_parameter_is_refused(parameter, value, message):
    cells = [c for c in studies.notebook(studies.find("tcav").source)["cells"] if c["cell_type"] == "code"]
    settings = {}
    exec(cells[0]["source"], settings)
    settings[parameter] = value
    with pytest.raises(ValueError, match=message):
        exec(cells[1]["source"], settings)
