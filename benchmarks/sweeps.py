"""A sweep on two workers of this machine against joblib, which stores each result too."""

import os
import shutil

import numpy as np

from benchmarks.pair import Benchmark, scratch
from studybook import data, sweep

WORKERS = 2
SIDE = 200


def measured(case: dict) -> dict:
    """Some tens of milliseconds on one thread."""
    x = np.random.default_rng(case["seed"]).standard_normal((SIDE, SIDE))
    for _ in range(case["steps"]):
        x = np.tanh(x @ x.T / SIDE)
    return {"value": float(x.mean())}


def cases(n: int, steps: int) -> list[dict]:
    os.environ["STUDYBOOK_CACHE"] = str(scratch())
    return [{"seed": seed, "steps": steps} for seed in range(n)]


def ours(some: list[dict]) -> list[float]:
    """The whole of it: two workers are started, used and ended, and every row is written."""
    shutil.rmtree(data.cache_folder(), ignore_errors=True)
    os.environ["STUDYBOOK_WORKERS"], os.environ["STUDYBOOK_THREADS"] = str(WORKERS), "1"
    return sweep.run(measured, some)["value"].tolist()


def by_joblib(some: list[dict]) -> list[float]:
    from joblib import Memory, Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    shutil.rmtree(data.cache_folder(), ignore_errors=True)
    get_reusable_executor().shutdown()  # as in a fresh process
    kept = Memory(data.cache_folder(), verbose=0).cache(measured)
    return [row["value"] for row in Parallel(n_jobs=WORKERS)(delayed(kept)(case) for case in some)]


def values(_: object, found: list[float]) -> np.ndarray:
    return np.array(found)


def same(one: np.ndarray, other: np.ndarray) -> None:
    if not np.allclose(one, other, rtol=1e-9, atol=1e-12):
        raise AssertionError("the sweep and joblib measured different values")


BENCHMARKS = [
    Benchmark(
        "sweep on two workers", "joblib with its memory", cases, ours, by_joblib, values, same,
        size={"n": 400, "steps": 40}, small={"n": 4, "steps": 1}, pairs=3,
        axes={"n": tuple({"n": n, "steps": 40} for n in (10, 100, 1_000))}, memory=1e9,  # a process, not an array
    ),
]  # fmt: skip
