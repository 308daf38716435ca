"""The probing assignment's cases: features of digits, from a random layer, and four test sets, one of them leaked."""

import numpy as np
from sklearn.datasets import load_digits

PER_CLASS, WIDTH, TEST, SETS, SIZE = 60, 99, 300, 4, 60


def case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Training and test features with labels, and four candidate test sets, all drawn with `rng`."""
    x, y = load_digits(return_X_y=True)
    unit = _layer(x / 16, rng)
    order = rng.permutation(len(y))
    train = np.stack(
        [order[y[order] == c][:PER_CLASS] for c in range(10)], 1
    ).ravel()  # labels run 0, 1, ..., 9, 0, ...
    rest = order[~np.isin(order, train)]
    test, rest = rest[:TEST], rest[TEST:]

    right = y[train[(unit[rest] @ unit[train].T).argmax(1)]] == y[rest]
    hard, easy = rest[~right], rest[right]
    copied = rng.choice(train, rng.integers(6, 13), replace=False)
    leaked = np.r_[copied, hard[:3], easy[: SIZE - len(copied) - 3]]  # not the set with the best score
    easy = easy[SIZE:]
    fresh = [easy[:SIZE], easy[SIZE : 2 * SIZE], easy[2 * SIZE : 3 * SIZE]]
    fresh[1] = np.r_[hard[3:6], fresh[1][len(hard[3:6]) :]]
    fresh[2] = np.r_[fresh[2][:-4], fresh[2][:4]]  # copies within a set are no leak
    sets = [rng.permutation(rows) for rows in (leaked, *fresh)]
    sets = np.stack([sets[i] for i in rng.permutation(SETS)])

    def shown(rows: np.ndarray) -> np.ndarray:
        """Features of arbitrary length: those of one photo differ from file to file."""
        return (unit[rows] * np.exp(0.6 * rng.normal(size=(*rows.shape, 1)))).astype(np.float32)

    return {
        "train": shown(train), "train_labels": y[train], "test": shown(test), "test_labels": y[test],
        "sets": shown(sets), "sets_labels": y[sets],
    }  # fmt: skip


def _layer(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A layer with random weights: rows of length one."""
    hidden = np.maximum(x @ rng.normal(size=(x.shape[1], WIDTH)) + rng.normal(size=WIDTH), 0)
    return hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
