"""Scores of predictions and their repair: against torchmetrics, netcal, scikit-learn and the published loop."""

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.pair import Benchmark
from studybook import calibration

BINS = 15


def predictions(n: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right logits, and labels drawn from their softmax."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, c, generator=generator)
    gumbel = torch.rand(n, c, generator=generator).clamp_(1e-9).log_().neg_().log_().neg_()
    return logits, (logits + gumbel).argmax(-1)


def probabilities(n: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident: the logits are twice what is right."""
    logits, labels = predictions(n, c)
    return (2 * logits).softmax(-1), labels


def same(ours: np.ndarray, theirs: np.ndarray, within: float = 2e-4) -> None:
    """Raises if two arrays of scores differ by more than torchmetrics' sums of a million float32 numbers are off."""
    if (far := np.abs(np.asarray(ours) - np.asarray(theirs)).max()) > within:
        raise AssertionError(f"the answers are {far:.1e} apart, more than {within}: {ours} and {theirs}")


def array(_: object, given: object) -> np.ndarray:
    return np.asarray(given, dtype=np.float64)


def stacked(_: object, given: list) -> np.ndarray:
    return np.stack([np.asarray(part, dtype=np.float64) for part in given])


def ours_top(data: tuple) -> list[float]:
    found = calibration.scores(*data, bins=BINS)
    gap, share = found.bins.accuracy - found.bins.confidence, found.bins.count / found.bins.count.sum()
    square = (share * gap.square()).sum().sqrt()
    return [float(v) for v in (found.accuracy, calibration.ece(found.bins), square, calibration.mce(found.bins))]


def torchmetrics_top(data: tuple) -> list[float]:
    """Its three norms of the calibration error, and accuracy; without its own checks, as its documentation advises."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    probs, labels = data
    classes = probs.shape[-1]
    error = [
        multiclass_calibration_error(probs, labels, classes, BINS, norm, validate_args=False)
        for norm in ("l1", "l2", "max")
    ]
    return [multiclass_accuracy(probs, labels, classes, average="micro", validate_args=False), *error]


def ours_all(data: tuple) -> list[float]:
    found = calibration.scores(*data, bins=BINS)
    return [
        float(v) for v in (calibration.ece(found.bins), calibration.mce(found.bins), found.classwise_ece, found.nll)
    ]


def netcal_all(data: tuple) -> list[float]:
    """netcal's two errors, its ECE of each class against the rest, and the loss as scikit-learn computes it."""
    from netcal.metrics import ECE, MCE
    from sklearn.metrics import log_loss

    probs, labels = (part.numpy() for part in data)
    each = [ECE(BINS).measure(probs[:, c], (labels == c).astype(int)) for c in range(probs.shape[-1])]
    return [ECE(BINS).measure(probs, labels), MCE(BINS).measure(probs, labels), np.mean(each), log_loss(labels, probs)]


def curve(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return probabilities(n, 2)


def ours_curve(data: tuple) -> list[torch.Tensor]:
    bins = calibration.reliability(*data, bins=BINS)
    some = bins.count > 0
    return [bins.accuracy[some], bins.confidence[some]]


def by_curve(data: tuple) -> list[np.ndarray]:
    """scikit-learn's curve knows two classes: the confidence against whether the prediction is right."""
    from sklearn.calibration import calibration_curve

    confidence, predicted = data[0].max(-1)
    return list(calibration_curve((predicted == data[1]).numpy(), confidence.numpy(), n_bins=BINS))


def held_and_new(n: int, c: int) -> tuple[torch.Tensor, ...]:
    probs, labels = probabilities(2 * n, c)
    return probs[:n], labels[:n], probs[n:]


def ours_isotonic(data: tuple) -> np.ndarray:
    return calibration.isotonic(*data).numpy()


def by_isotonic(data: tuple) -> np.ndarray:
    """A loop over classes, as scikit-learn's own multiclass calibration has it."""
    from sklearn.isotonic import IsotonicRegression

    held, labels, new = data[0].double().numpy(), data[1].numpy(), data[2].double().numpy()
    found = np.empty(new.shape)
    for c in range(held.shape[1]):
        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(held[:, c], labels == c)
        found[:, c] = fitted.predict(new[:, c])
    return found / found.sum(1, keepdims=True)


def members(e: int, n: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Member i's logits are the right ones, a little off, times a factor between 1 and 3."""
    right, labels = predictions(n, c)
    logits = torch.randn(e, n, c, generator=torch.Generator().manual_seed(1)).mul_(0.3).add_(right)
    return logits.mul_(torch.linspace(1, 3, e)[:, None, None]), labels


def ours_temperature(data: tuple) -> np.ndarray:
    return calibration.fit_temperature(*data).numpy()


def published_temperature(data: tuple) -> np.ndarray:
    """The loop of the paper's own code, with its settings: L-BFGS on T from 1.5, rate 0.01, 50 iterations.

    Reference: Guo, Pleiss, Sun, Weinberger (2017), On Calibration of Modern Neural Networks, and their published code.
    """
    logits, labels = data
    found = []
    for own in logits:
        temperature = torch.full((1,), 1.5, requires_grad=True)
        optimizer = torch.optim.LBFGS([temperature], lr=0.01, max_iter=50)

        def loss(own=own, temperature=temperature, optimizer=optimizer):
            optimizer.zero_grad()
            value = F.cross_entropy(own / temperature, labels)
            value.backward()
            return value

        optimizer.step(loss)
        found.append(temperature.detach()[0])
    return torch.stack(found).numpy()


def slopes(data: tuple, temperatures: np.ndarray) -> np.ndarray:
    """Each temperature, and the slope of the NLL there in 1 / T relative to its curvature: how far off it is."""
    logits, labels = data
    found = []
    for own, t in zip(logits, temperatures.tolist(), strict=True):
        z = own.double()
        probs = (z / t).softmax(-1)
        mean = (probs * z).sum(-1)
        slope = (mean - z.gather(-1, labels[:, None])[:, 0]).mean()
        curvature = ((probs * z.square()).sum(-1) - mean.square()).mean()
        found.append([t, float(slope / curvature * t)])
    return np.array(found)


def ours_right(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Ours must be at the optimum; the published loop often stops before it, so that only the right ones compare."""
    if (far := np.abs(ours[:, 1]).max()) > 1e-5:
        raise AssertionError(f"a temperature is off by {far:.1e} of itself")
    there = np.abs(theirs[:, 1]) < 1e-4
    if there.any():
        same(ours[there, 0], theirs[there, 0], 1e-3)


TOP = {"n": 1_000_000, "c": 10}
GRID = {
    "n": tuple({"n": n, "c": 10} for n in (1_000, 10_000, 100_000, 1_000_000)),
    "c": tuple({"n": 50_000, "c": c} for c in (2, 10, 100, 1_000)),
}
BENCHMARKS = [
    Benchmark(
        "scores", "torchmetrics", probabilities, ours_top, torchmetrics_top, array, same,
        size=TOP, small={"n": 500, "c": 10}, target=2.0, axes=GRID, limit="bandwidth", work=lambda n, c: 4.0 * n * c,
        memory=1.0,
    ),
    Benchmark(
        "scores, by class too", "netcal", probabilities, ours_all, netcal_all, array, same,
        size=TOP, small={"n": 500, "c": 10}, target=2.0, limit="bandwidth", work=lambda n, c: 4.0 * n * c, memory=1.0,
    ),
    Benchmark(
        "reliability curve", "scikit-learn", curve, ours_curve, by_curve, stacked, same,
        size={"n": 1_000_000}, small={"n": 500}, limit="bandwidth", work=lambda n: 8.0 * n, memory=20.0,
    ),
    Benchmark(
        "isotonic", "scikit-learn", held_and_new, ours_isotonic, by_isotonic, array, same,
        size={"n": 100_000, "c": 10}, small={"n": 200, "c": 3}, memory=20.0,
    ),
    Benchmark(
        "temperature", "the published loop", members, ours_temperature, published_temperature, slopes, ours_right,
        size={"e": 100, "n": 10_000, "c": 100}, small={"e": 2, "n": 500, "c": 10}, target=50.0, pairs=2,
        limit="bandwidth", work=lambda e, n, c: 4.0 * e * n * c, memory=8.0,
        axes={
            "e": tuple({"e": e, "n": 10_000, "c": 10} for e in (1, 3, 10, 30, 100)),
            "n": tuple({"e": 1, "n": n, "c": 10} for n in (1_000, 10_000, 100_000, 1_000_000)),
            "c": tuple({"e": 1, "n": 10_000, "c": c} for c in (2, 10, 100, 1_000)),
        },
    ),
]  # fmt: skip
