"""The grokking assignment's cases: training inputs with a delay, and four reported runs, one of them impossible."""

import numpy as np

LR, LAST, GOAL = 0.01, 150_000, 0.001 / 1.959964**2  # the loss at which 95 % of errors are below the threshold
STEPS = np.array([0, 30, 100, 300, 1000, 3000, 10_000])


def case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs, teacher, student, and the losses of four other students as they are reported."""
    while True:
        dims = int(rng.integers(40, 61))
        x = rng.standard_normal((round(dims / rng.uniform(0.6, 0.8)), dims))
        teacher, student = rng.standard_normal((2, dims)) / np.sqrt(2 * dims)
        train, general = _losses(x, teacher, student, np.arange(LAST))
        first, second = (train <= GOAL).argmax(), (general <= GOAL).argmax()
        if first > 0 and 1.7 * first < second:  # a delay, and one that ends
            break
    students = rng.standard_normal((4, dims)) / np.sqrt(2 * dims)
    reported = np.stack([_losses(x, teacher, one, STEPS) for one in students])
    liar = rng.integers(4)
    reported[liar, 1] = 0.6 * reported[liar, 1] + 0.4 * reported[liar, 0]  # trained points among the fresh ones
    reported = reported * rng.uniform(0.98, 1.02, reported.shape)
    return {
        "x": x, "teacher": teacher, "student": student, "students": students, "steps": STEPS, "reported": reported
    }  # fmt: skip


def _losses(x: np.ndarray, teacher: np.ndarray, student: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Training and generalization loss, (2, T)."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    left = (1 - 2 * LR * values) ** (2 * steps[:, None]) * (vectors.T @ (student - teacher)) ** 2
    return np.stack([left @ values, left.sum(1)])
