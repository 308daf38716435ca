import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from studybook import probes, synthetic

L2S = (1e-6, 1e-4, 1e-2, 1.0, 10.0)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def integers(*shape, high=3, seed=0):
    """Points of a small grid, as floats: many distances are equal, and exact in float32."""
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.fixture(scope="module")
def clouds():
    """Three overlapping clouds in six dimensions: 60 rows, float64."""
    x, y = synthetic.blobs(60, 3, 6, noise=0.5, seed=1)
    return x.double(), y


# ---------------------------------------------------------------- neighbors


def neighbors_by_loop(query, bank, k, leave_one_out=False):
    """Squared distances (N, k) and rows (N, k), one query at a time, in float64; of equals the lower row first."""
    query, bank = query.double().numpy(), bank.double().numpy()
    distances, rows = [], []
    for i, point in enumerate(query):
        distance = ((bank - point) ** 2).sum(1)
        if leave_one_out:
            distance[i] = np.inf
        order = np.argsort(distance, kind="stable")[:k]
        distances.append(distance[order])
        rows.append(order)
    return torch.from_numpy(np.array(distances)), torch.from_numpy(np.array(rows))


def assert_matches_loop(query, bank, k, leave_one_out=False, rtol=1e-5):
    similarity, rows = probes.neighbors(query, bank, k, leave_one_out)
    distance, expected = neighbors_by_loop(query, bank, k, leave_one_out)
    assert torch.equal(rows, expected)
    scale = bank.double().square().sum(-1).amax().item()
    torch.testing.assert_close(-similarity.double(), distance, rtol=rtol, atol=1e-6 * scale)


class NarrowChunks(probes._Centered):
    """The bank in chunks of seven rows, made anew for each chunk of queries."""

    def __init__(self, bank, middle):
        super().__init__(bank, middle)
        self.wide, self.only = min(7, self.wide), None


def test_the_helper_sees_rows_that_are_swapped(monkeypatch):
    real = probes.neighbors
    monkeypatch.setattr(probes, "neighbors", lambda *a: (real(*a)[0], real(*a)[1].flip(-1)))
    with pytest.raises(AssertionError):
        assert_matches_loop(normal(5, 3), normal(20, 3, seed=1), 4)


def test_neighbors_on_a_line_are_those_one_would_point_at():
    bank = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    similarity, rows = probes.neighbors(torch.tensor([[0.9], [6.0]]), bank, 3)
    assert rows.tolist() == [[1, 0, 2], [3, 2, 1]]
    expected = torch.tensor([[0.1, 0.9, 2.1], [1.0, 3.0, 5.0]])
    torch.testing.assert_close(similarity, -expected.square(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 5, 150])
def test_neighbors_equal_a_loop(k, dtype):
    assert_matches_loop(normal(40, 20, dtype=dtype), normal(150, 20, seed=1, dtype=dtype), k)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("k", [1, 3, 10, 79])
def test_ties_on_a_grid_equal_a_loop(k, leave_one_out):
    grid = integers(80, 3)
    assert_matches_loop(grid if leave_one_out else integers(30, 3, seed=1), grid, k, leave_one_out)


@pytest.mark.parametrize("copies", [2, 8, 9, 40])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_copies_in_the_bank_come_in_the_order_of_their_rows(copies, leave_one_out):
    bank = normal(12, 16).repeat(copies, 1)[torch.randperm(12 * copies, generator=torch.Generator().manual_seed(3))]
    query = bank if leave_one_out else bank[:20] + 0.1
    for k in (1, 4, 12 * copies - 1):
        assert_matches_loop(query, bank, k, leave_one_out)


def test_distances_that_float32_products_cannot_tell_apart_are_told_apart():
    bank = F.normalize(normal(1, 64) + 1e-4 * normal(60, 64, seed=1), dim=-1)
    far = F.normalize(normal(40, 64, seed=2), dim=-1)  # so that the bank's mean lies elsewhere
    assert_matches_loop(bank[:20] + 1e-5 * normal(20, 64, seed=3), torch.cat([bank, far]), 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_offset_leaves_the_neighbors_right(dtype):
    query, bank = normal(30, 8, dtype=dtype) + 1000, normal(200, 8, seed=1, dtype=dtype) + 1000
    assert torch.equal(probes.neighbors(query, bank, 9)[1], neighbors_by_loop(query, bank, 9)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_of_half_precision_have_the_neighbors_of_the_same_numbers_in_float64(dtype):
    query, bank = normal(50, 64).to(dtype), normal(500, 64, seed=1).to(dtype)
    assert torch.equal(probes.neighbors(query, bank, 10)[1], neighbors_by_loop(query, bank, 10)[1])


def test_neighbors_equal_scikit_learn():
    query, bank = normal(50, 30, dtype=torch.float64), normal(400, 30, seed=1, dtype=torch.float64)
    distance, expected = NearestNeighbors(algorithm="brute").fit(bank.numpy()).kneighbors(query.numpy(), 25)
    similarity, rows = probes.neighbors(query, bank, 25)
    assert torch.equal(rows, torch.from_numpy(expected))
    torch.testing.assert_close((-similarity).sqrt(), torch.from_numpy(distance), rtol=1e-9, atol=0)
    assert torch.equal(probes.neighbors(query.float(), bank.float(), 25)[1], rows)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("points", [normal(60, 5), integers(60, 3)])
def test_chunks_do_not_show(monkeypatch, points, leave_one_out):
    query = points if leave_one_out else points[:25] + 0.5
    whole = {k: probes.neighbors(query, points, k, leave_one_out) for k in (1, 6, 59)}
    monkeypatch.setattr(probes, "_CELLS", 200)
    for chunks in (probes._Centered, NarrowChunks):
        monkeypatch.setattr(probes, "_Centered", chunks)
        for k, (similarity, rows) in whole.items():
            parts = probes.neighbors(query, points, k, leave_one_out)
            assert torch.equal(parts[1], rows)
            torch.testing.assert_close(parts[0], similarity, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bank", [normal(70_000, 4), integers(70_000, 4, high=30)])
def test_a_bank_of_more_rows_than_one_chunk_equals_a_loop(bank):
    query = torch.cat([bank[:3], bank[-3:], normal(4, 4, seed=1)])
    assert_matches_loop(query, bank, 12)


def test_no_row_is_its_own_neighbor_in_a_bank_of_more_than_one_chunk(monkeypatch):
    monkeypatch.setattr(probes, "_Centered", NarrowChunks)
    points = integers(50, 2)
    rows = probes.neighbors(points, points, 49, leave_one_out=True)[1]
    others = [[j for j in range(50) if j != i] for i in range(50)]
    assert torch.equal(rows.sort(-1).values, torch.tensor(others))


def test_a_stack_of_banks_is_searched_as_each_alone():
    query, bank = integers(3, 20, 4), torch.cat([integers(2, 60, 4, seed=1), normal(1, 60, 4)])
    query[2] = normal(20, 4, seed=2)
    similarity, rows = probes.neighbors(query, bank, 10)
    for e in range(3):
        alone = probes.neighbors(query[e], bank[e], 10)
        assert torch.equal(rows[e], alone[1])
        torch.testing.assert_close(similarity[e], alone[0], rtol=1e-5, atol=1e-5)
    twice = probes.neighbors(query[None], bank[None], 10)
    assert torch.equal(twice[1][0], rows)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(40)), st.sampled_from([1e-6, 0.5, 8.0, 1e6]))
def test_order_of_the_bank_scale_and_rotation_do_not_matter_to_neighbors(order, scale):
    query, bank, order = normal(10, 6), normal(40, 6, seed=1), torch.tensor(order)
    rows = probes.neighbors(query, bank, 8)[1]
    assert torch.equal(order[probes.neighbors(query, bank[order], 8)[1]], rows)
    assert torch.equal(probes.neighbors(scale * query, scale * bank, 8)[1], rows)
    turn = torch.linalg.qr(normal(6, 6, seed=2)).Q
    assert torch.equal(probes.neighbors(query @ turn, bank @ turn, 8)[1], rows)
    assert torch.equal(probes.neighbors(query[order[order < 10]], bank, 8)[1], rows[order[order < 10]])


def test_a_row_is_nearest_to_itself_and_not_with_leave_one_out():
    x = normal(30, 5)
    similarity, rows = probes.neighbors(x, x.clone(), 1)
    assert torch.equal(rows[:, 0], torch.arange(30))
    torch.testing.assert_close(similarity, torch.zeros(30, 1), rtol=0, atol=1e-5)
    assert (probes.neighbors(x, x, 1, leave_one_out=True)[1][:, 0] != torch.arange(30)).all()


def test_a_bank_of_one_row_or_of_equal_rows_answers_in_order():
    assert probes.neighbors(normal(3, 2), normal(1, 2), 1)[1].tolist() == [[0], [0], [0]]
    equal = torch.ones(30, 2)
    assert probes.neighbors(normal(2, 2), equal, 4)[1].tolist() == [[0, 1, 2, 3]] * 2
    assert probes.neighbors(equal, equal, 2, leave_one_out=True)[1][:3].tolist() == [[1, 2], [0, 2], [0, 1]]


def test_no_queries_have_no_neighbors():
    assert probes.neighbors(torch.zeros(0, 3), normal(10, 3), 2)[1].shape == (0, 2)


def test_neighbors_refuse_a_k_that_the_bank_cannot_serve():
    x = normal(50, 3)
    for k in (0, 51):
        with pytest.raises(ValueError, match=f"k must be between 1 and the bank's 50 rows, got k={k}"):
            probes.neighbors(x, x, k)
    with pytest.raises(ValueError, match="k must be between 1 and the bank's 49 other rows, got k=50"):
        probes.neighbors(x, x, 50, leave_one_out=True)


def test_neighbors_refuse_nan_and_infinity():
    x = normal(20, 3)
    for bad in (math.nan, math.inf, -math.inf):
        holed = x.clone()
        holed[[4, 9], 1] = bad
        with pytest.raises(ValueError, match="query must be finite numbers, but 2 rows hold NaN or infinity, first 4"):
            probes.neighbors(holed, x, 2)
        with pytest.raises(ValueError, match="bank must be finite numbers, but 2 rows .* first 4"):
            probes.neighbors(x, holed, 2)
        with pytest.raises(ValueError, match="must be finite numbers"):
            probes.neighbors(holed, holed, 2, leave_one_out=True)


def test_neighbors_refuse_sizes_that_do_not_fit():
    neighbors = inspect.unwrap(probes.neighbors)  # the type hook refuses them before
    with pytest.raises(ValueError, match="query and bank must have the same features, got 3 and 4"):
        neighbors(normal(5, 3), normal(20, 4), 2)
    with pytest.raises(ValueError, match=r"leave_one_out needs .* the same set, got \(5, 3\) and \(20, 3\)"):
        neighbors(normal(5, 3), normal(20, 3), 2, leave_one_out=True)


def test_neighbors_of_finite_features_are_never_nan():
    # squared distances of 1e40 are beyond float32: rows that follow from NaN would be wrong in silence
    query, bank = 1e20 * normal(3, 4), 1e20 * normal(30, 4, seed=1)
    try:
        rows = probes.neighbors(query, bank, 2)[1]
    except ValueError:
        return
    assert torch.equal(rows, neighbors_by_loop(query, bank, 2)[1])


# ---------------------------------------------------------------- votes


@pytest.fixture(scope="module")
def search():
    """Similarities and labels (40, 30) of neighbors, with the features and labels they came from, float64."""
    x, y = synthetic.blobs(240, 4, 5, noise=0.6, seed=2)
    x = x.double()
    similarity, rows = probes.neighbors(x[200:], x[:200], 30)
    return similarity, y[:200][rows], x, y


def test_votes_of_three_neighbors_worked_out_by_hand():
    similarity, labels = torch.tensor([[-1.0, -2.0, -4.0]]), torch.tensor([[1, 0, 0]])
    votes = probes.knn_votes(similarity, labels, 3, ks=(1, 2, 3), temperatures=(1.0, math.inf))
    e = math.exp
    expected = [
        [[0, 1, 0], [0, 1, 0]],
        [[e(-2) / (e(-1) + e(-2)), e(-1) / (e(-1) + e(-2)), 0], [1 / 2, 1 / 2, 0]],
        [[(e(-2) + e(-4)) / (s := e(-1) + e(-2) + e(-4)), e(-1) / s, 0], [2 / 3, 1 / 3, 0]],
    ]
    torch.testing.assert_close(votes[:, :, 0], torch.tensor(expected))


def test_votes_equal_a_loop_over_k_and_temperature(search):
    similarity, labels, _, _ = search
    ks, temperatures = (1, 3, 7, 30), (0.01, 0.3, 2.0, math.inf)
    votes = probes.knn_votes(similarity, labels, 4, ks, temperatures)
    assert votes.shape == (4, 4, 40, 4)
    for i, k in enumerate(ks):
        for j, T in enumerate(temperatures):
            for n in range(40):
                counts = [0.0] * 4
                for m in range(k):
                    weight = math.exp((similarity[n, m] - similarity[n, 0]).item() / T)
                    counts[labels[n, m]] += weight
                expected = torch.tensor(counts, dtype=torch.float64) / sum(counts)
                torch.testing.assert_close(votes[i, j, n], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("T", [0.05, 1.0, math.inf])
def test_votes_equal_scikit_learn(search, k, T):
    similarity, labels, x, y = search
    weights = "uniform" if math.isinf(T) else lambda d: np.exp(-(d**2) / T)
    peer = KNeighborsClassifier(k, weights=weights, algorithm="brute").fit(x[:200].numpy(), y[:200].numpy())
    ours = probes.knn_votes(similarity, labels, 4, ks=[k], temperatures=[T])[0, 0]
    torch.testing.assert_close(ours, torch.from_numpy(peer.predict_proba(x[200:].numpy())), rtol=1e-8, atol=1e-10)


def test_votes_of_a_member_do_not_depend_on_its_company(search):
    similarity, labels, _, _ = search
    crowd = probes.knn_votes(
        torch.stack([similarity, 3 * similarity]), torch.stack([labels, 3 - labels]), 4, (2, 9), (0.5, 2.0)
    )
    assert crowd.shape == (2, 2, 2, 40, 4)
    alone = probes.knn_votes(3 * similarity, 3 - labels, 4, (2, 9), (0.5, 2.0))
    torch.testing.assert_close(crowd[:, :, 1], alone)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.permutations(range(40)), st.permutations(range(4)))
def test_order_of_ks_rows_and_classes_and_a_common_factor_do_not_matter_to_votes(search, ks, rows, classes):
    similarity, labels, _, _ = search
    rows, classes = torch.tensor(rows), torch.tensor(classes)
    votes = probes.knn_votes(similarity, labels, 4, ks, (0.2, math.inf))
    for i, k in enumerate(ks):
        torch.testing.assert_close(votes[i], probes.knn_votes(similarity, labels, 4, [k], (0.2, math.inf))[0])
    moved = probes.knn_votes(similarity[rows], classes.argsort()[labels[rows]], 4, ks, (0.2, math.inf))
    torch.testing.assert_close(moved, votes[:, :, rows][..., classes])
    torch.testing.assert_close(probes.knn_votes(5 * similarity, labels, 4, ks, (1.0, math.inf)), votes)
    torch.testing.assert_close(votes.sum(-1), torch.ones(votes.shape[:-1], dtype=votes.dtype))


@pytest.mark.parametrize("T", [1e-6, 1e-30, 1e-39, 5e-324])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_temperature_leaves_the_nearest_neighbor_alone(search, T, dtype):
    similarity, labels, _, _ = search
    votes = probes.knn_votes(similarity.to(dtype), labels, 4, (1, 30), (T,))
    expected = F.one_hot(labels[:, 0], 4).to(dtype)
    torch.testing.assert_close(votes, expected.expand(2, 1, 40, 4))


def test_far_neighbors_at_a_small_temperature_do_not_underflow():
    votes = probes.knn_votes(torch.tensor([[-1e6, -1e6 - 0.5]]), torch.tensor([[1, 0]]), 2, [2], [0.5])
    torch.testing.assert_close(votes[0, 0, 0], torch.tensor([math.exp(-1), 1.0]) / (1 + math.exp(-1)))


def test_nearest_neighbors_at_one_distance_share_a_tiny_temperature():
    votes = probes.knn_votes(torch.tensor([[-1.0, -1.0, -2.0]]), torch.tensor([[2, 0, 1]]), 3, [3], [1e-6])
    torch.testing.assert_close(votes[0, 0, 0], torch.tensor([0.5, 0.0, 0.5]))


def test_votes_refuse_ks_and_temperatures_out_of_range(search):
    similarity, labels, _, _ = search
    for ks in ([0, 3], [5, 31], []):
        with pytest.raises(ValueError, match=r"ks must be between 1 and the 30 neighbors that were searched, got ks="):
            probes.knn_votes(similarity, labels, 4, ks)
    for temperatures in ([1.0, 0.0], [-1.0], []):
        with pytest.raises(ValueError, match="temperatures must be above 0, got temperatures="):
            probes.knn_votes(similarity, labels, 4, [3], temperatures)


def test_votes_refuse_a_temperature_that_is_nan(search):
    with pytest.raises(ValueError, match="temperatures must be above 0"):
        probes.knn_votes(search[0], search[1], 4, [3], [math.nan])


def test_votes_refuse_labels_out_of_range_and_labels_of_the_bank(search):
    similarity, labels, _, y = search
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 0 to 3"):
        probes.knn_votes(similarity, labels, 3, [3])
    with pytest.raises(ValueError, match=r"labels must be those of the neighbors, \(40, 30\), got \(200,\); pass y"):
        inspect.unwrap(probes.knn_votes)(similarity, y[:200], 4, [3])


# ---------------------------------------------------------------- linear probes


def objective(w, x, y, l2, weights=None):
    """What a linear probe minimizes, from its definition, in float64."""
    w, x = w.double(), x.double()
    log_probs = (x @ w[:-1] + w[-1]).log_softmax(-1)
    losses = torch.stack([-log_probs[i, c] for i, c in enumerate(y.tolist())])
    weights = torch.ones(len(y)) if weights is None else weights
    return (weights.double() * losses).mean() + l2 / 2 * w[:-1].square().sum()


def optimum_by_scikit_learn(x, y, l2, weights=None):
    """Weights (D + 1, C), in float64 and to a tolerance far below ours."""
    classes = len(y.unique())
    C = (2 if classes == 2 else 1) / (len(y) * l2)
    peer = LogisticRegression(C=C, tol=1e-11, max_iter=20_000)
    peer.fit(x.double().numpy(), y.numpy(), None if weights is None else weights.double().numpy())
    w = np.vstack([peer.coef_.T, peer.intercept_])
    return torch.from_numpy(np.hstack([-w / 2, w / 2]) if classes == 2 else w)


def shipped(load):
    bunch = load()
    return torch.from_numpy(StandardScaler().fit_transform(bunch.data)), torch.from_numpy(bunch.target)


def digits():
    x, y = shipped(datasets.load_digits)
    return x[:400], y[:400]


def wide(separation, classes, dtype):
    """60 rows of 500 features; with a separation far beyond the noise the classes are separable by one feature."""
    y = torch.arange(60) % classes
    return (normal(60, 500) + separation * F.one_hot(y, 500)).to(dtype), y


def narrow_separable():
    x, y = synthetic.blobs(90, 3, 4, noise=0.02, seed=0)
    return x, y


DATA = {
    "digits": digits,
    "wine": lambda: shipped(datasets.load_wine),
    "breast cancer, two classes": lambda: shipped(datasets.load_breast_cancer),
    "iris in float32": lambda: (torch.from_numpy(datasets.load_iris().data).float(), shipped(datasets.load_iris)[1]),
    "overlapping clouds": lambda: synthetic.blobs(300, 5, 8, noise=0.5, seed=0),
    "separable clouds": narrow_separable,
    "wide": lambda: wide(0.0, 3, torch.float64),
    "wide, two classes": lambda: wide(0.5, 2, torch.float32),
    "wide and separable": lambda: wide(10.0, 3, torch.float32),
}


def test_one_feature_and_two_points_have_the_optimum_of_their_equation():
    # By symmetry W = (-a, a), no bias; the derivative is -s / (1 + exp(2 a)) * 2 + 2 * l2 * a with s = 1.
    l2 = 0.1
    w = probes.linear_probe(torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0, 1]), [l2], 2)[0]
    a = w[0, 1].item()
    torch.testing.assert_close(w[0], torch.tensor([-a, a]).double())
    assert 1 / (1 + math.exp(2 * a)) == pytest.approx(l2 * a, rel=1e-3)
    assert (w[1, 1] - w[1, 0]).item() == pytest.approx(0, abs=1e-6)


def test_a_heavy_penalty_and_features_that_say_nothing_leave_the_shares_of_the_classes():
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    shares = torch.tensor([3 / 6, 2 / 6, 1 / 6])
    for x, l2 in ((normal(6, 3), 1e6), (torch.ones(6, 3), 1e-3), (torch.ones(6, 30), 1e-3)):
        w = probes.linear_probe(x, y, [l2], 3)
        probs = probes.probe_logits(w, x)[0].softmax(-1)
        torch.testing.assert_close(probs, shares.expand(6, 3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", DATA)
def test_linear_probes_reach_the_optimum_that_scikit_learn_finds(name):
    x, y = DATA[name]()
    fitted = probes.linear_probe(x, y, L2S, int(y.max()) + 1)
    for l2, w in zip(L2S, fitted, strict=True):
        ours, theirs = (objective(found, x, y, l2).item() for found in (w, optimum_by_scikit_learn(x, y, l2)))
        assert ours == pytest.approx(theirs, rel=1e-5), f"{name}, l2 = {l2}"


@pytest.mark.parametrize("name", DATA)
def test_the_gradient_at_a_linear_probe_is_near_zero(name):
    x, y = DATA[name]()
    w = probes.linear_probe(x, y, L2S, int(y.max()) + 1)
    for l2, found in zip(L2S, w, strict=True):
        at_answer, at_start = (
            torch.func.grad(objective)(v, x, y, l2).norm() for v in (found.double(), torch.zeros_like(found).double())
        )
        assert at_answer < 1e-3 * at_start, f"{name}, l2 = {l2}"


def newton_decrement(w, x, y, l2, weights=None):
    """The loss that one Newton step would still gain, as a share of the loss; the whole Hessian by autograd."""
    shape, flat = w.shape, w.double().flatten()

    def loss(v):
        return objective(v.reshape(shape), x, y, l2, weights)

    gradient, hessian = torch.func.grad(loss)(flat), torch.autograd.functional.hessian(loss, flat)
    step = torch.linalg.lstsq(hessian + 1e-12 * hessian.diagonal().mean() * torch.eye(len(flat)), gradient).solution
    return (gradient @ step / 2 / loss(flat)).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_newton_step_from_a_linear_probe_gains_less_than_a_hundred_thousandth(clouds, dtype):
    x, y = clouds[0].to(dtype), clouds[1]
    for l2, w in zip(L2S, probes.linear_probe(x, y, L2S, 3), strict=True):
        assert newton_decrement(w, x, y, l2) < 1e-5


@pytest.mark.parametrize("outlier", [10.0, 100.0, 1000.0])
def test_one_row_far_from_all_others_does_not_stop_a_linear_probe_short(outlier):
    # Its direction has a large variance and, once the row is classified, hardly any curvature.
    x, y = normal(60, 12, dtype=torch.float64), torch.arange(60) % 3
    x[0] *= outlier
    for l2, w in zip(L2S, probes.linear_probe(x, y, L2S, 3), strict=True):
        theirs = objective(optimum_by_scikit_learn(x, y, l2), x, y, l2).item()
        gained = newton_decrement(w, x, y, l2)
        assert gained < 1e-5, f"l2 = {l2}: a Newton step still gains {gained:.1e} of the loss"
        assert objective(w, x, y, l2).item() <= theirs * (1 + 1e-5)


def test_rows_of_no_weight_do_not_stop_a_linear_probe_short():
    # Rows that do not count, but are large, make up the covariance that preconditions.
    x, y = normal(60, 12, dtype=torch.float64), torch.arange(60) % 3
    x[12:] *= 1000
    weights = (torch.arange(60) < 12).double()
    few = probes.linear_probe(x[:12], y[:12], [5 * l2 for l2 in L2S], 3)  # the mean is over 60
    many = probes.linear_probe(x, y, L2S, 3, weights)
    for l2, ours, theirs in zip(L2S, many, few, strict=True):
        found, best = (objective(w, x, y, l2, weights).item() for w in (ours, theirs))
        assert found == pytest.approx(best, rel=1e-5), f"l2 = {l2}"


def test_weighted_linear_probes_reach_the_optimum_that_scikit_learn_finds(clouds):
    x, y = clouds
    weights = normal(3, 60, dtype=torch.float64).exp()
    swept = probes.linear_probe(x, y, L2S, 3, weights)
    assert swept.shape == (3, 5, 7, 3)
    for a in range(3):
        alone = probes.linear_probe(x, y, L2S, 3, weights[a])
        for l2, w, one in zip(L2S, swept[a], alone, strict=True):
            theirs = objective(optimum_by_scikit_learn(x, y, l2, weights[a]), x, y, l2, weights[a]).item()
            assert objective(w, x, y, l2, weights[a]).item() == pytest.approx(theirs, rel=1e-5)
            assert objective(one, x, y, l2, weights[a]).item() == pytest.approx(theirs, rel=1e-5)


def test_whole_weights_are_repeated_rows_and_weight_zero_is_a_row_left_out(clouds):
    x, y = clouds
    times = torch.arange(60) % 4
    weighted = probes.linear_probe(x, y, L2S, 3, times.double())
    share = times.sum().item() / 60  # weights are divided by the 60 rows, not by their sum
    repeated = probes.linear_probe(
        x.repeat_interleave(times, 0), y.repeat_interleave(times), [l2 / share for l2 in L2S], 3
    )
    torch.testing.assert_close(probs_of(weighted, x), probs_of(repeated, x), rtol=0, atol=1e-3)
    for l2, one, other in zip(L2S, weighted, repeated, strict=True):
        first, second = (objective(w, x, y, l2, times).item() for w in (one, other))
        assert first == pytest.approx(second, rel=1e-5)


def probs_of(w, x):
    return probes.probe_logits(w, x).softmax(-1)


def test_weights_of_one_change_nothing(clouds):
    x, y = clouds
    plain, ones = (probes.linear_probe(x, y, L2S, 3, w) for w in (None, torch.ones(60)))
    torch.testing.assert_close(ones, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 6), (12, 40)])
def test_linear_probes_of_a_member_do_not_depend_on_its_company(shape):
    x = torch.stack([normal(*shape, seed=s, dtype=torch.float64) for s in range(3)])
    x[2] *= 100
    y = torch.stack([(torch.arange(shape[0]) + s) % 3 for s in range(3)])
    weights = normal(2, 3, shape[0], seed=5).exp()
    crowd, swept = probes.linear_probe(x, y, L2S, 3), probes.linear_probe(x, y, L2S, 3, weights)
    assert crowd.shape == (5, 3, shape[1] + 1, 3)
    assert swept.shape == (2, 5, 3, shape[1] + 1, 3)
    for e in range(3):
        alone = probes.linear_probe(x[e], y[e], L2S, 3)
        weighted = probes.linear_probe(x[e], y[e], L2S, 3, weights[:, e])
        for i, l2 in enumerate(L2S):
            one, many = (objective(w, x[e], y[e], l2).item() for w in (alone[i], crowd[i, e]))
            assert one == pytest.approx(many, rel=1e-5)
            for a in range(2):
                some = (weighted[a, i], swept[a, i, e])
                one, many = (objective(w, x[e], y[e], l2, weights[a, e]).item() for w in some)
                assert one == pytest.approx(many, rel=1e-5)
    shared = probes.linear_probe(x, y[0], [1e-2], 3)
    torch.testing.assert_close(shared[:, 0], crowd[2:3, 0], rtol=0, atol=1e-3)


def test_penalties_fitted_in_portions_and_in_any_order_are_the_same(clouds, monkeypatch):
    x, y = clouds
    together = probs_of(probes.linear_probe(x, y, L2S, 3), x)
    backward = probs_of(probes.linear_probe(x, y, L2S[::-1], 3), x)
    torch.testing.assert_close(backward.flip(0), together, rtol=0, atol=1e-3)
    monkeypatch.setattr(probes, "_SCORES", 2 * 60 * 3)  # room for two fits at a time
    torch.testing.assert_close(probs_of(probes.linear_probe(x, y, L2S, 3), x), together, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dims", [6, 90])
@settings(max_examples=8, deadline=None)
@given(rows=st.permutations(range(60)), classes=st.permutations(range(3)), shift=st.sampled_from([-100.0, 0.5, 1e3]))
def test_order_of_rows_and_classes_shift_and_rotation_do_not_matter_to_a_linear_probe(dims, rows, classes, shift):
    x, y = normal(60, dims, dtype=torch.float64), torch.arange(60) % 3
    rows, classes, l2s = torch.tensor(rows), torch.tensor(classes), [1e-4, 1e-1]
    expected = probs_of(probes.linear_probe(x, y, l2s, 3), x)
    moved = probes.linear_probe(x[rows], classes.argsort()[y[rows]], l2s, 3)
    torch.testing.assert_close(probs_of(moved, x), expected[..., classes], rtol=0, atol=1e-3)
    turn = torch.linalg.qr(normal(dims, dims, seed=7, dtype=torch.float64)).Q
    turned = x @ turn + shift
    torch.testing.assert_close(probs_of(probes.linear_probe(turned, y, l2s, 3), turned), expected, rtol=0, atol=1e-3)


def test_features_and_the_root_of_the_penalty_scale_together(clouds):
    x, y = clouds
    expected = probs_of(probes.linear_probe(x, y, L2S, 3), x)
    for scale in (1e-3, 1e3):
        scaled = probes.linear_probe(scale * x, y, [scale**2 * l2 for l2 in L2S], 3)
        torch.testing.assert_close(probs_of(scaled, scale * x), expected, rtol=0, atol=1e-3)


def test_a_fit_that_runs_out_of_steps_says_so(clouds, monkeypatch):
    monkeypatch.setattr(probes, "_STEPS", 2)
    with pytest.raises(RuntimeError, match=r"linear_probe: 2 steps did not reach the optimum for l2 = \[1e-06"):
        probes.linear_probe(*clouds, [1e-6], 3)


@pytest.fixture(
    params=[
        (probes.linear_probe, {"l2s": [1.0]}),
        (probes.ridge, {"l2s": [1.0]}),
        (probes.nearest_mean, {}),
        (probes.naive_bayes, {}),
    ],
    ids=lambda param: param[0].__name__,
)
def fit(request):
    """Each of the four fits in turn; `hook=False` calls it without the type hook, which has its own refusals."""
    function, options = request.param

    def call(x, y, classes, hook=True):
        return (function if hook else inspect.unwrap(function))(x=x, y=y, classes=classes, **options)

    return call


def test_every_fit_refuses_nan_and_infinity_in_the_features(fit, clouds):
    for bad in (math.nan, math.inf):
        x, y = clouds[0].clone(), clouds[1]
        x[7, 2] = bad
        with pytest.raises(ValueError, match="x must be finite numbers, but 1 rows hold NaN or infinity, first 7"):
            fit(x, y, 3)


def test_every_fit_refuses_labels_out_of_range(fit, clouds):
    x, y = clouds
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 1 to 3"):
        fit(x, y + 1, 3)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got -1 to 1"):
        fit(x, y - 1, 3)


def test_every_fit_refuses_a_class_without_examples(fit, clouds):
    x, y = clouds
    with pytest.raises(ValueError, match=r"every one of the 5 classes, but has no example of \[3, 4\]"):
        fit(x, y, 5)
    with pytest.raises(ValueError, match=r"every one of the 3 classes, but has no example of \[1\]"):
        fit(torch.stack([x, x]), torch.stack([y, torch.where(y == 1, 0, y)]), 3)


def test_every_fit_refuses_one_class_only(fit, clouds):
    x, y = clouds
    with pytest.raises(ValueError, match=r"y holds one class only \(2\); a probe needs at least two"):
        fit(x, torch.full_like(y, 2), 3)
    with pytest.raises(ValueError, match=r"y holds one class only \(0\)"):
        fit(x, torch.zeros_like(y), 1)


def test_every_fit_refuses_numbers_of_examples_that_differ_and_no_examples(fit, clouds):
    x, y = clouds
    with pytest.raises(ValueError, match="x and y must have the same positive number of examples, got 60 and 59"):
        fit(x, y[1:], 3, hook=False)
    with pytest.raises(ValueError, match="the same positive number of examples, got 0 and 0"):
        fit(x[:0], y[:0], 3)


def test_every_fit_refuses_labels_of_other_members_than_the_features_have(fit, clouds):
    x, y = clouds
    with pytest.raises(ValueError, match=r"\by\b"):
        fit(x, torch.stack([y, y]), 3)
    with pytest.raises(ValueError, match=r"\by\b"):
        fit(torch.stack([x, x]), torch.stack([y, y, y]), 3)


@pytest.mark.parametrize("l2s", [[1.0, 0.0], [-1e-3], [math.nan], [math.inf], []])
def test_penalties_that_are_not_positive_are_refused(clouds, l2s):
    x, y = clouds
    for fit in (probes.linear_probe, probes.ridge):
        with pytest.raises(ValueError, match="l2s must be positive numbers, at least one, got l2s="):
            fit(x, y, l2s, 3)


def test_weights_that_are_negative_or_leave_a_class_empty_are_refused(clouds):
    x, y = clouds
    ones = torch.ones(60)
    for bad in (ones - 2 * (torch.arange(60) == 3), (y != 1).float(), ones * math.nan, ones * math.inf, 0 * ones):
        with pytest.raises(ValueError, match="weights must be finite, 0 or more, and leave every class some weight"):
            probes.linear_probe(x, y, [1.0], 3, bad)
        with pytest.raises(ValueError, match="weights must be finite"):
            probes.linear_probe(x, y, [1.0], 3, torch.stack([ones, bad]))


def test_weights_of_another_shape_are_refused(clouds):
    x, y = clouds
    fit = inspect.unwrap(probes.linear_probe)  # the type hook refuses the first before
    for shape in ((59,), (2, 2, 60)):
        with pytest.raises(ValueError, match=r"weights must be one per example, \(60,\), or so with one axis in front"):
            fit(x, y, [1.0], 3, torch.ones(shape))


@pytest.mark.parametrize("shape", [(3, 60), (3, 1, 60), (2, 3, 60)])
def test_weights_of_another_number_of_members_are_refused(clouds, shape):
    x, y = clouds
    with pytest.raises(ValueError, match="weights must be one per example"):
        probes.linear_probe(torch.stack([x, x]), y, [1.0], 3, torch.ones(shape))


# ---------------------------------------------------------------- logits of linear probes


def test_probe_logits_of_two_features_worked_out_by_hand():
    w = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.5, 3.0]])
    torch.testing.assert_close(probes.probe_logits(w, torch.tensor([[1.0, 10.0]])), torch.tensor([[21.5, -7.0]]))


@pytest.mark.parametrize(
    ("w", "x", "logits"),
    [
        ((7, 3), (5, 6), (5, 3)),
        ((4, 7, 3), (5, 6), (4, 5, 3)),
        ((2, 4, 7, 3), (5, 6), (2, 4, 5, 3)),
        ((8, 7, 3), (8, 5, 6), (8, 5, 3)),
        ((2, 4, 8, 7, 3), (8, 5, 6), (2, 4, 8, 5, 3)),
    ],
)
def test_probe_logits_of_swept_and_stacked_weights_equal_each_alone(w, x, logits):
    w, x = normal(*w), normal(*x, seed=1)
    found = probes.probe_logits(w, x)
    assert found.shape == logits
    many = x.expand(*logits[:-2], *x.shape[-2:]).reshape(-1, 5, 6)
    expected = torch.stack([b @ a[:-1] + a[-1] for a, b in zip(w.reshape(-1, 7, 3), many, strict=True)])
    torch.testing.assert_close(found.reshape(-1, 5, 3), expected)


def test_probe_logits_refuse_features_of_another_number():
    with pytest.raises(ValueError, match="w must have one row per feature and one for the bias, 7, got 6"):
        probes.probe_logits(normal(6, 3), normal(5, 6))


# ---------------------------------------------------------------- closed forms


def test_nearest_mean_of_two_points_parts_the_plane_in_the_middle():
    w = probes.nearest_mean(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]), 2)
    logits = probes.probe_logits(w, torch.tensor([[1.0, 5.0], [0.9, -3.0], [1.1, 0.0]]))
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], torch.tensor([0.0, -0.2, 0.2]), rtol=1e-5, atol=1e-6)


def test_nearest_mean_equals_scikit_learn(clouds):
    x, y = clouds
    peer = NearestCentroid().fit(x.numpy(), y.numpy())
    w, new = probes.nearest_mean(x, y, 3), normal(200, 6, dtype=torch.float64)
    torch.testing.assert_close(w[:-1].mT, torch.from_numpy(peer.centroids_))
    logits = probes.probe_logits(w, new)
    assert torch.equal(logits.argmax(-1), torch.from_numpy(peer.predict(new.numpy())))
    distance = (new[:, None] - torch.from_numpy(peer.centroids_)).square().sum(-1)
    torch.testing.assert_close(logits - logits[:, :1], (distance[:, :1] - distance) / 2, rtol=1e-9, atol=1e-9)


def test_naive_bayes_of_four_points_worked_out_by_hand():
    x, y = torch.tensor([[0.0], [2.0], [5.0], [9.0], [13.0]]).double(), torch.tensor([0, 0, 1, 1, 1])
    fitted = probes.naive_bayes(x, y, 2)
    torch.testing.assert_close(fitted.mean, torch.tensor([[1.0], [9.0]]).double())
    torch.testing.assert_close(fitted.variance, torch.tensor([[1.0], [32 / 3]]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(fitted.log_prior.exp(), torch.tensor([0.4, 0.6]).double())
    logits = probes.gaussian_logits(fitted, torch.tensor([[3.0]]).double())
    expected = [math.log(0.4) - 2 - math.log(2 * math.pi) / 2]
    expected += [math.log(0.6) - 36 / (64 / 3) - math.log(2 * math.pi * 32 / 3) / 2]
    torch.testing.assert_close(logits, torch.tensor([expected]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_naive_bayes_equals_scikit_learn(clouds, offset):
    x, y = clouds[0] * torch.logspace(-2, 2, 6).double() + offset, clouds[1]
    peer = GaussianNB().fit(x[:40].numpy(), y[:40].numpy())
    fitted = probes.naive_bayes(x[:40], y[:40], 3)
    torch.testing.assert_close(fitted.variance, torch.from_numpy(peer.var_), rtol=1e-8, atol=0)
    ours, new = probes.gaussian_logits(fitted, x[40:]), x[40:].numpy()
    torch.testing.assert_close(ours, torch.from_numpy(peer.predict_joint_log_proba(new)), rtol=1e-6, atol=1e-6)
    ours, theirs = ours.log_softmax(-1), torch.from_numpy(peer.predict_log_proba(new))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 6), (20, 90)])
def test_ridge_equals_scikit_learn(shape):
    x, y = normal(*shape, dtype=torch.float64) + 3, torch.arange(shape[0]) % 4
    fitted = probes.ridge(x, y, L2S, 4)
    assert fitted.shape == (5, shape[1] + 1, 4)
    for l2, w in zip(L2S, fitted, strict=True):
        peer = Ridge(alpha=shape[0] * l2, solver="cholesky").fit(x.numpy(), F.one_hot(y, 4).double().numpy())
        torch.testing.assert_close(w[:-1].mT, torch.from_numpy(peer.coef_), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(w[-1], torch.from_numpy(peer.intercept_), rtol=1e-6, atol=1e-7)
    close = probes.ridge(x.float(), y, L2S, 4).double()
    torch.testing.assert_close(probes.probe_logits(close, x), probes.probe_logits(fitted, x), rtol=0, atol=1e-4)


def test_ridge_of_a_heavy_penalty_answers_the_shares_of_the_classes():
    w = probes.ridge(normal(10, 3), torch.tensor([0] * 7 + [1] * 3), [1e9], 2)
    expected = torch.tensor([0.7, 0.3]).expand(10, 2)
    torch.testing.assert_close(probes.probe_logits(w, normal(10, 3))[0], expected, rtol=0, atol=1e-5)


CLOSED = {
    "nearest_mean": lambda x, y, new: probes.probe_logits(probes.nearest_mean(x, y, 3), new),
    "naive_bayes": lambda x, y, new: probes.gaussian_logits(probes.naive_bayes(x, y, 3), new),
    "ridge": lambda x, y, new: probes.probe_logits(probes.ridge(x, y, [1e-2], 3), new)[0],
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_form_of_a_member_does_not_depend_on_its_company(name):
    x = normal(2, 2, 30, 5, dtype=torch.float64)
    y = (torch.arange(30) + torch.arange(4).reshape(2, 2, 1)) % 3
    crowd = CLOSED[name](x, y, x)
    assert crowd.shape == (2, 2, 30, 3)
    for a in range(2):
        for b in range(2):
            torch.testing.assert_close(crowd[a, b], CLOSED[name](x[a, b], y[a, b], x[a, b]))
    torch.testing.assert_close(CLOSED[name](x, y[0, 0], x)[0, 0], crowd[0, 0])


@pytest.mark.parametrize("name", CLOSED)
@settings(max_examples=20, deadline=None)
@given(rows=st.permutations(range(30)), classes=st.permutations(range(3)), shift=st.floats(-100, 100))
def test_order_of_rows_and_classes_and_a_shift_do_not_matter_to_a_closed_form(name, rows, classes, shift):
    x, y, new = normal(30, 5, dtype=torch.float64), torch.arange(30) % 3, normal(9, 5, seed=1, dtype=torch.float64)
    rows, classes = torch.tensor(rows), torch.tensor(classes)
    moved = CLOSED[name](x[rows] + shift, classes.argsort()[y[rows]], new + shift).softmax(-1)
    torch.testing.assert_close(moved, CLOSED[name](x, y, new).softmax(-1)[:, classes], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["nearest_mean", "ridge"])
def test_a_rotation_does_not_matter_to_nearest_mean_and_ridge(name):
    x, y, turn = normal(30, 5, dtype=torch.float64), torch.arange(30) % 3, torch.linalg.qr(normal(5, 5).double()).Q
    torch.testing.assert_close(CLOSED[name](x @ turn, y, x @ turn).softmax(-1), CLOSED[name](x, y, x).softmax(-1))


def test_a_scale_of_each_feature_does_not_matter_to_naive_bayes():
    x, y = normal(30, 5, dtype=torch.float64), torch.arange(30) % 3
    scale = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.2]).double()
    scaled = CLOSED["naive_bayes"](x * scale, y, x * scale).softmax(-1)
    torch.testing.assert_close(scaled, CLOSED["naive_bayes"](x, y, x).softmax(-1), rtol=1e-5, atol=1e-6)


def test_a_class_of_one_example_has_a_variance_above_zero():
    x, y = normal(7, 3), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    fitted = probes.naive_bayes(x, y, 3)
    assert (fitted.variance > 0).all()
    assert probes.gaussian_logits(fitted, x).argmax(-1)[6] == 2


# ---------------------------------------------------------------- mixtures


def test_a_mixture_of_two_certainties_is_the_weight():
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    mixed = probes.mixture(first, second, (0, 0.25, 1.0))
    torch.testing.assert_close(mixed, torch.tensor([[[0.0, 1.0]], [[0.25, 0.75]], [[1.0, 0.0]]]))


def test_mixtures_of_a_stack_equal_each_alone():
    first, second = normal(3, 5, 4).softmax(-1), normal(3, 5, 4, seed=1).softmax(-1)
    mixed = probes.mixture(first, second, (0.1, 0.7))
    assert mixed.shape == (2, 3, 5, 4)
    for i, weight in enumerate((0.1, 0.7)):
        for e in range(3):
            torch.testing.assert_close(mixed[i, e], weight * first[e] + (1 - weight) * second[e])
    torch.testing.assert_close(mixed.sum(-1), torch.ones(2, 3, 5))


@pytest.mark.parametrize("weights", [[], [0.5, 1.5], [-0.1], [math.nan]])
def test_mixtures_refuse_weights_out_of_range(weights):
    first = normal(5, 4).softmax(-1)
    with pytest.raises(ValueError, match=r"weights must be in \[0, 1\], got weights="):
        probes.mixture(first, first, weights)


def test_mixtures_refuse_probabilities_of_two_shapes():
    with pytest.raises(ValueError, match=r"first and second must have one shape, got \(5, 4\) and \(5, 3\)"):
        inspect.unwrap(probes.mixture)(normal(5, 4), normal(5, 3), [0.5])
