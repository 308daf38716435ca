"""Nearest neighbors against faiss and scikit-learn, linear probes against scikit-learn."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.pair import Benchmark, Size
from studybook import probes

CLASSES = 10
K = 20
NEAR = 1e-5  # of the loss: how far apart the optima may be
TUNED = Path(__file__).with_name("tuned.json")  # scikit-learn's settings, found once


def features(rows: int, dims: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class means plus noise whose feature j has deviation j^-0.5, as the features of a trained network decay."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dims + 1) ** -0.5
    means = 0.5 * scale * torch.randn(classes, dims, generator=torch.Generator().manual_seed(99))
    y = torch.arange(rows)[torch.randperm(rows, generator=generator)] % classes
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=torch.Generator().manual_seed(98))).Q
    x = torch.randn(rows, dims, generator=generator).mul_(scale).add_(means[y])
    return x @ turn, y


# ---------------------------------------------------------------- neighbors


def bank_and_queries(m: int, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A bank of `m` rows and `n` queries of length 1, and the bank's labels."""
    x, y = features(m + n, d, CLASSES, seed=0)
    x /= x.norm(dim=-1, keepdim=True)
    return x[:m].contiguous(), x[m:].contiguous(), y[:m]


def ours_search(data: tuple) -> np.ndarray:
    bank, query, _ = data
    return probes.neighbors(query, bank, K)[1].numpy()


def by_faiss(data: tuple) -> np.ndarray:
    import faiss

    bank, query, _ = data
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank.numpy())
    return index.search(query.numpy(), K)[1]


def distances(data: tuple, rows: np.ndarray) -> np.ndarray:
    """Squared distances of the found rows, computed again in float64: equal only if the rows are as near."""
    bank, query, _ = data
    found = []
    for some, near in zip(query.split(256), torch.from_numpy(rows).split(256), strict=True):
        found.append((bank[near].double() - some[:, None].double()).square().sum(-1))
    return torch.cat(found).numpy()


def same_distances(ours: np.ndarray, theirs: np.ndarray) -> None:
    if (far := np.abs(ours - theirs).max()) > 4e-6:  # of rows at one distance, to float32, either will do
        raise AssertionError(f"the neighbors' squared distances differ by {far:.1e}")


def ours_votes(data: tuple) -> np.ndarray:
    bank, query, y = data
    similarity, rows = probes.neighbors(query, bank, K)
    return probes.knn_votes(similarity, y[rows], CLASSES, [K])[0, 0].numpy()


def by_classifier(data: tuple) -> np.ndarray:
    from sklearn.neighbors import KNeighborsClassifier

    bank, query, y = data
    return KNeighborsClassifier(K, algorithm="brute").fit(bank.numpy(), y.numpy()).predict_proba(query.numpy())


def as_given(_: object, given: np.ndarray) -> np.ndarray:
    return given


def same_votes(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The 20th neighbor of a few queries is as far as the 21st, to float32."""
    if (share := (np.abs(ours - theirs).max(-1) > 1e-6).mean()) > 1e-3:
        raise AssertionError(f"{share:.2%} of the queries have other votes")


# ---------------------------------------------------------------- linear probes


def examples(n: int, d: int, c: int, l: int) -> dict[str, object]:  # noqa: E741 (the axis of penalties)
    x, y = features(n, d, c, seed=1)
    size = {"n": n, "d": d, "c": c, "l": l}
    return {"x": x, "y": y, "l2s": np.logspace(-6, 1, l).tolist(), "classes": c, "size": size}


def ours_probe(data: dict) -> torch.Tensor:
    return probes.linear_probe(data["x"], data["y"], data["l2s"], data["classes"])


def cold(data: dict) -> list[torch.Tensor]:
    return _fits(data, warm=False)


def warm(data: dict) -> list[torch.Tensor]:
    return _fits(data, warm=True)


def losses(data: dict, weights: torch.Tensor | list[torch.Tensor]) -> np.ndarray:
    """The objective at each penalty's weights (D + 1, C), in float64."""
    x = data["x"].double()
    found = []
    for l2, w in zip(data["l2s"], weights, strict=True):
        w = w.double()
        nll = torch.nn.functional.cross_entropy(x @ w[:-1] + w[-1], data["y"])
        found.append((nll + l2 / 2 * w[:-1].square().sum()).item())
    return np.array(found)


def same_losses(ours: np.ndarray, theirs: np.ndarray) -> None:
    for name, one, other in (("ours", ours, theirs), ("scikit-learn's", theirs, ours)):
        if (over := (one / other - 1).max()) > NEAR:
            raise AssertionError(f"{name} loss is {over:.1e} above the other's, more than {NEAR}")


def _fit(data: dict, l2: float, tol: float, exact: int, before: torch.Tensor | None) -> torch.Tensor:
    from sklearn.linear_model import LogisticRegression

    x = data["x"].double() if exact else data["x"]
    model = LogisticRegression(C=1 / (len(x) * l2), tol=tol, max_iter=10_000, warm_start=before is not None)
    if before is not None:
        model.coef_, model.intercept_ = before[:-1].T.numpy(), before[-1].numpy()
    model.fit(x.numpy(), data["y"].numpy())
    return torch.from_numpy(np.vstack([model.coef_.T, model.intercept_]))


def _fits(data: dict, warm: bool) -> list[torch.Tensor]:
    """scikit-learn's fits, largest penalty first, each at the loosest setting that comes within NEAR of the optimum.

    A setting is a tolerance and a precision of the data; each penalty has its own, which favors scikit-learn: a user
    would have to know them. With `warm` each fit starts from the answer of the one before.
    """
    found: list[torch.Tensor] = []
    for l2, (tol, exact) in zip(data["l2s"][::-1], _settings(data["size"], warm), strict=True):
        found.append(_fit(data, l2, tol, exact, found[-1] if warm and found else None))
    return found[::-1]


def _settings(size: Size, warm: bool) -> list[tuple[float, int]]:
    known = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    if (key := _key(size, warm)) not in known:
        raise FileNotFoundError(f"scikit-learn is not tuned for {key}: python -m benchmarks --tune")
    return [(tol, exact) for tol, exact in known[key]]


def tune_all(some: list[Benchmark]) -> None:
    """Settings for all sizes of the benchmarks that need them; what is known stays."""
    for benchmark in (b for b in some if b.theirs in (cold, warm)):
        for size in (benchmark.size, benchmark.small, *(s for sizes in benchmark.axes.values() for s in sizes)):
            known = json.loads(TUNED.read_text()) if TUNED.exists() else {}
            if (key := _key(size, benchmark.theirs is warm)) not in known:
                known[key] = tune(size, benchmark.theirs is warm)
                TUNED.write_text(json.dumps(known, indent=0) + "\n")


def _key(size: Size, warm: bool) -> str:
    return " ".join(f"{k}={v}" for k, v in size.items()) + (" warm" if warm else " cold")


def tune(size: Size, warm: bool) -> list[tuple[float, int]]:
    """The settings for a size, largest penalty first; `python -m benchmarks --tune` stores them."""
    from sklearn.exceptions import ConvergenceWarning
    from tqdm import tqdm

    warnings.simplefilter("error", ConvergenceWarning)
    data = examples(**size)
    best = losses(data, ours_probe(data))
    ladder = [(tol, exact) for exact in (0, 1) for tol in 10.0 ** -np.arange(2, 10.1, 0.5)]
    settings: list[tuple[float, int]] = []
    before, step = None, 0
    pairs = list(zip(data["l2s"], best, strict=True))[::-1]
    for l2, least in tqdm(pairs, f"tuning {size} {'warm' if warm else 'cold'}"):
        for step in range(max(0, step - 2), len(ladder)):  # noqa: B020, PLW2901 (the next penalty starts near this one)
            w = _fit(data, l2, *ladder[step], before)
            if losses({**data, "l2s": [l2]}, [w])[0] <= least * (1 + 0.5 * NEAR):
                break
        else:
            raise SystemExit(f"scikit-learn does not come within {NEAR} of the optimum for l2 = {l2:.1e}.")
        before = w if warm else None
        settings.append((float(f"{ladder[step][0]:.3g}"), ladder[step][1]))
    return settings


def _search_work(m: int, n: int, d: int) -> float:
    return 2.0 * m * n * d


BANK = {"m": 10_000, "n": 4_000, "d": 1_280}
PROBE = {"n": 10_000, "d": 1_280, "c": 10, "l": 45}
SMALL_PROBE = {"n": 200, "d": 16, "c": 3, "l": 5}
BENCHMARKS = [
    Benchmark(
        "neighbors", "faiss, flat index", bank_and_queries, ours_search, by_faiss, distances, same_distances,
        size=BANK, small={"m": 1_000, "n": 200, "d": 64}, target=1 / 1.2, limit="products", work=_search_work,
        axes={
            "m": tuple({"m": m, "n": 1_000, "d": 768} for m in (1_000, 10_000, 100_000, 1_000_000)),
            "n": tuple({"m": 10_000, "n": n, "d": 64} for n in (100, 1_000, 10_000, 100_000)),
            "d": tuple({"m": 10_000, "n": 1_000, "d": d} for d in (64, 256, 1_024, 4_096)),
        },
        memory=5.0, room=256.0,  # near ties are settled in float64, some thousand rows at once
    ),
    Benchmark(
        "k-NN votes", "scikit-learn, brute force", bank_and_queries, ours_votes, by_classifier, as_given, same_votes,
        size=BANK, small={"m": 1_000, "n": 200, "d": 64}, limit="products", work=_search_work,
        axes={"m": tuple({"m": m, "n": 1_000, "d": 64} for m in (1_000, 10_000, 100_000, 1_000_000))},
        memory=5.0, room=256.0,
    ),
    Benchmark(
        "linear probe, 45 penalties", "scikit-learn, each from zero", examples, ours_probe, cold, losses, same_losses,
        size=PROBE, small=SMALL_PROBE, target=5.0, memory=20.0, pairs=2,
    ),
    Benchmark(
        "linear probe, warm", "scikit-learn, each from the last", examples, ours_probe, warm, losses, same_losses,
        size=PROBE, small=SMALL_PROBE, target=3.0, memory=20.0, pairs=2,
        axes={
            "n": tuple({"n": n, "d": 64, "c": 10, "l": 45} for n in (1_000, 3_000, 10_000, 30_000)),
            "d": tuple({"n": 3_000, "d": d, "c": 10, "l": 45} for d in (64, 256, 1_024)),
            "c": tuple({"n": 3_000, "d": 64, "c": c, "l": 45} for c in (3, 10, 30)),
        },
    ),
]  # fmt: skip
