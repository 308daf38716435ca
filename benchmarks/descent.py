"""`studybook.synthetic.descent`, which solves gradient descent, against the loop that takes every step."""

import numpy as np
import torch

from benchmarks.pair import Benchmark
from studybook import synthetic

LR = 0.1


def problem(d: int, steps: int) -> dict:
    """A linear student of `d` dimensions and a little over as many points."""
    x, teacher, start = synthetic.teacher_student(round(d / 0.9), d, 1, seed=0)
    return {"x": x, "teacher": teacher, "start": start, "steps": steps}


def solved(data: dict) -> torch.Tensor:
    """From taking the covariance apart to the answer."""
    x, teacher = data["x"], data["teacher"]
    path = synthetic.descent(synthetic.spectrum(x), x @ teacher, data["start"], lr=LR)
    return path.weights(torch.tensor([data["steps"]]))[0]


def stepped(data: dict) -> torch.Tensor:
    """The fastest plain loop: the covariance is computed once, so that a step is one product."""
    x, teacher, w = data["x"], data["teacher"], data["start"]
    covariance, pull = x.T @ x / len(x), x.T @ (x @ teacher) / len(x)
    for _ in range(data["steps"]):
        w = w - 2 * LR * (covariance @ w - pull)
    return w


def weights(_: dict, found: torch.Tensor) -> np.ndarray:
    return found.numpy()


def same(one: np.ndarray, other: np.ndarray) -> None:
    if (far := np.abs(one - other).max()) > 1e-8:
        raise AssertionError(f"descent and the loop end {far:.1e} apart")


BENCHMARKS = [
    Benchmark(
        "gradient descent, solved", "a loop over steps", problem, solved, stepped, weights, same,
        size={"d": 500, "steps": 100_000}, small={"d": 20, "steps": 100}, pairs=3, memory=8.0,
        axes={"steps": tuple({"d": 500, "steps": steps} for steps in (100, 1_000, 10_000, 100_000))},
    ),
]  # fmt: skip
