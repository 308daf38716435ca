"""The calibration assignment's cases: an overconfident classifier of digits, and three temperatures."""

import numpy as np
from sklearn.datasets import load_digits

TRAIN, HELD, TEST = 100, 400, 800


def case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Logits on held-out and test images, their labels, and the reported temperatures, all drawn with `rng`."""
    x, y = load_digits(return_X_y=True)
    while True:
        order = rng.permutation(len(y))[: TRAIN + HELD + TEST]
        hidden = np.maximum(x[order] / 16 @ rng.normal(size=(64, 128)), 0) / 2
        logits = _fitted(hidden[:TRAIN], y[order[:TRAIN]], hidden)
        held, test = np.split(logits[TRAIN:], [HELD])
        held_y, test_y = np.split(y[order[TRAIN:]], [HELD])
        half = HELD // 2
        found = [temperature(held, held_y), temperature(held[:half], held_y[:half]), temperature(test, test_y)]
        if np.diff(np.sort(np.log(found))).min() > 0.02 and min(found) > 1.4:  # else nobody could tell them apart
            break
    return {
        "held_logits": held.astype(np.float32), "held_labels": held_y, "test_logits": test.astype(np.float32),
        "test_labels": test_y, "reported": np.round(rng.permutation(found), 4),
    }  # fmt: skip


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the lowest negative log-likelihood, by a fine search."""
    logits, rows = logits - logits.max(1, keepdims=True), np.arange(len(labels))
    low, high = -4.0, 4.0
    for _ in range(4):
        grid = np.linspace(low, high, 41)
        scaled = logits / np.exp(grid)[:, None, None]
        nll = (np.log(np.exp(scaled).sum(-1)) - scaled[:, rows, labels]).mean(-1)
        low, high = grid[max(nll.argmin() - 1, 0)], grid[min(nll.argmin() + 1, 40)]
    return float(np.exp((low + high) / 2))


def _fitted(x: np.ndarray, y: np.ndarray, everywhere: np.ndarray) -> np.ndarray:
    """Softmax regression, trained until it is far too sure of itself."""
    weights, truth = np.zeros((x.shape[1], 10)), np.eye(10)[y]
    for _ in range(1500):
        logits = x @ weights
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        weights += 0.3 * x.T @ (truth - probs) / len(y)
    return everywhere @ weights
