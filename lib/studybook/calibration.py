"""Confidence against accuracy, and its repair.

Measures take probabilities `(*E, N, C)` and give one number per member. Repairs are fitted on held-out examples:
parametric ones return their parameters; the others take the held-out set and the probabilities to mend, and give
mended probabilities.

Reference for all but where noted: Guo, Pleiss, Sun, Weinberger (2017), On Calibration of Modern Neural Networks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from studybook import metrics

_BLOCK = 2**17  # numbers that `scores` looks at together
_LARGE_BLOCK = 2**19  # numbers that `fit_temperature` looks at together
_FEW = 1_000  # examples on which `fit_temperature` looks for a start
_HOTTEST = 1e3  # temperatures are looked for up to here, and down to its inverse


class Bins(NamedTuple):
    """Confidence bins: count of examples, accuracy and mean confidence in each (0 where a bin is empty), (*E, B)."""

    count: Float[Tensor, "*E B"]
    accuracy: Float[Tensor, "*E B"]
    confidence: Float[Tensor, "*E B"]


class Scores(NamedTuple):
    """What `scores` finds for each member: means over examples, the confidence bins, and the mean over classes."""

    accuracy: Float[Tensor, "*E"]
    nll: Float[Tensor, "*E"]
    brier: Float[Tensor, "*E"]
    bins: Bins
    classwise_ece: Float[Tensor, "*E"]


class Affine(NamedTuple):
    """A linear map of logits: `weight` (*E, C, C) and `bias` (*E, C)."""

    weight: Float[Tensor, "*E C C"]
    bias: Float[Tensor, "*E C"]


def reliability(probs: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"], bins: int = 15) -> Bins:
    """Top-class confidence sorted into `bins` bins of equal width, closed on the right: ((b - 1) / B, b / B]."""
    labels = metrics.checked(probs, labels)
    metrics.check_probs("reliability", probs)
    confidence, predicted = probs.max(-1)
    return _binned(confidence, predicted == labels, _cells(confidence, bins), bins)


def equal_mass(probs: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"], bins: int = 15) -> Bins:
    """Like `reliability`, but each bin holds the same number of examples (the first N mod B bins one more).

    Examples of equal confidence are kept in their order, so a tie can fall into two bins.

    Reference: Nguyen, O'Connor (2015), Posterior Calibration and Exploratory Analysis for NLP Models.
    """
    labels = metrics.checked(probs, labels)
    metrics.check_probs("equal_mass", probs)
    confidence, predicted = probs.max(-1)
    rank = confidence.argsort(dim=-1, stable=True).argsort(-1)
    return _binned(confidence, predicted == labels, _shares(rank, _positive(bins)), bins)


def ece(bins: Bins) -> Float[Tensor, "*E"]:
    """Expected calibration error: |accuracy - confidence| averaged over examples, in [0, 1].

    With few examples it is biased upward: a perfectly calibrated classifier does not score 0.

    Reference: Naeini, Cooper, Hauskrecht (2015), Obtaining Well Calibrated Probabilities Using Bayesian Binning.
    """
    return (bins.count * (bins.accuracy - bins.confidence).abs()).sum(-1) / bins.count.sum(-1)


def mce(bins: Bins) -> Float[Tensor, "*E"]:
    """Maximum calibration error: the largest |accuracy - confidence| of any bin that is not empty, in [0, 1]."""
    return (bins.accuracy - bins.confidence).abs().where(bins.count > 0, 0.0).amax(-1)


def classwise_ece(probs: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"], bins: int = 15) -> Float[Tensor, "*E"]:
    """Mean over classes of the ECE of each class's probability against how often that class is true, in [0, 1].

    Reference: Kull et al. (2019), Beyond Temperature Scaling, equation 1.
    """
    labels = metrics.checked(probs, labels)
    metrics.check_probs("classwise_ece", probs)
    each = probs.mT.contiguous()  # (*E, C, N)
    true = torch.nn.functional.one_hot(labels, probs.shape[-1]).mT.bool()
    return ece(_binned(each, true, _cells(each, bins), bins)).mean(-1)


def scores(probs: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"], bins: int = 15) -> Scores:
    """What this module and `metrics` say of probabilities, from one pass over them.

    Accuracy, NLL (infinite where a label has probability 0), Brier score, the bins of `reliability` (from which `ece`
    and `mce` follow) and `classwise_ece`: each what its own function gives, up to rounding. Rows are read block by
    block, each once, and memory beyond the arguments is a few MB whatever N.
    """
    if labels.shape[-1] != probs.shape[-2] or labels.shape[-1] == 0:
        raise ValueError(
            "probs and labels must have the same positive number of examples, "
            f"got {probs.shape[-2]} and {labels.shape[-1]}"
        )
    lead, (n, classes) = probs.shape[:-2], probs.shape[-2:]
    rows = max(1, _BLOCK // classes)
    means, pooled, gaps = [], [], []
    for own, true in zip(probs.reshape(-1, n, classes), labels.expand(*lead, n).reshape(-1, n), strict=True):
        blocks = [_sums(part, y, _positive(bins)) for part, y in zip(own.split(rows), true.split(rows), strict=True)]
        for found, parts in zip((means, pooled, gaps), zip(*blocks, strict=True), strict=True):
            found.append(torch.stack(parts).sum(0))
    accuracy, nll, brier = (torch.stack(means) / n).to(probs.dtype).reshape(*lead, 3).unbind(-1)
    count, hits, total = torch.stack(pooled).reshape(*lead, 3, bins).unbind(-2)
    some = count.clamp_min(1)
    each = torch.stack(gaps).reshape(*lead, classes * bins)
    return Scores(
        accuracy,
        nll,
        brier,
        Bins(*(part.to(probs.dtype) for part in (count, hits / some, total / some))),
        (each.abs().sum(-1) / (n * classes)).to(probs.dtype),
    )


def fit_temperature(logits: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"]) -> Float[Tensor, "*E"]:
    """The temperature T > 0 that minimizes the NLL of `logits / T`, for all members at once.

    Newton's method on 1 / T, in which the NLL is convex, with corrections from the third and fourth derivative, kept
    between bounds that the slope's sign tightens: first on some of the examples, then on all. Accurate to 1e-6
    relative, within [1e-3, 1e3]; where the best T lies outside (labels that are all predicted right, or that have
    nothing to do with the logits), the nearer end is returned. Memory beyond the arguments is five numbers per example
    of a member, and bounded otherwise. Raises ValueError for logits that are not finite and labels out of range.
    """
    lead, (n, classes) = logits.shape[:-2], logits.shape[-2:]
    if labels.shape[-1] != n or n == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        metrics.checked(logits, labels)
    flat, own = logits.reshape(-1, n, classes), labels.expand(*lead, -1).reshape(-1, labels.shape[-1])
    together = max(1, _LARGE_BLOCK // max(1, n * classes))
    inverse = torch.ones(len(flat), dtype=torch.float64, device=logits.device)  # 1 / T
    groups = list(zip(flat.split(together), own.split(together), strict=True))
    if (every := n // _FEW) > 1:  # a share of the examples leads near the answer
        inverse = _least([(z[:, ::every], y[:, ::every]) for z, y in groups], inverse, 3e-3)
    return (1 / _least(groups, inverse, 3e-7)).reshape(lead).to(logits.dtype)


def fit_vector(logits: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"]) -> Affine:
    """Vector scaling: one weight and one bias per class that minimize the NLL, as a map with a diagonal weight."""
    return _fit_affine(logits, labels, diagonal=True)


def fit_matrix(logits: Float[Tensor, "*E N C"], labels: Int[Tensor, "*L N"]) -> Affine:
    """Matrix scaling: a full weight matrix and a bias that minimize the NLL, to its optimum and without penalty.

    C * (C + 1) parameters: with few held-out examples it fits their noise, which is the paper's point.
    """
    return _fit_affine(logits, labels, diagonal=False)


def affine(logits: Float[Tensor, "*E N C"], fitted: Affine) -> Float[Tensor, "*E N C"]:
    """Logits mapped by `fit_vector`'s or `fit_matrix`'s result."""
    return logits @ fitted.weight.mT + fitted.bias[..., None, :]


def histogram(
    held: Float[Tensor, "*E M C"], labels: Int[Tensor, "*L M"], probs: Float[Tensor, "*E N C"], bins: int = 15
) -> Float[Tensor, "*E N C"]:
    """Histogram binning, one class against the rest, then normalized to sum to 1.

    `bins` bins of equal width per class; an empty one keeps its middle.

    Reference: Zadrozny, Elkan (2001), Obtaining Calibrated Probability Estimates from Decision Trees and Naive
    Bayesian Classifiers; the extension to classes from Guo et al. (2017), section 4.2.
    """
    labels = metrics.checked(held, labels)
    metrics.check_probs("histogram", held)
    each = held.mT.contiguous()  # (*E, C, M)
    true = torch.nn.functional.one_hot(labels, held.shape[-1]).mT.bool()
    seen = _binned(each, true, _cells(each, bins), bins)  # (*E, C, B)
    middle = (torch.arange(bins, dtype=seen.accuracy.dtype) + 0.5) / bins
    value = torch.where(seen.count > 0, seen.accuracy, middle)
    mended = value.gather(-1, _cells(probs.mT.contiguous(), bins)).mT
    return _normalized(mended, probs)


def isotonic(
    held: Float[Tensor, "*E M C"], labels: Int[Tensor, "*L M"], probs: Float[Tensor, "*E N C"]
) -> Float[Tensor, "*E N C"]:
    """Isotonic regression, one class against the rest, then normalized; scikit-learn's, linear between its steps.

    Reference: Zadrozny, Elkan (2002), Transforming Classifier Scores into Accurate Multiclass Probability Estimates.
    """
    from sklearn.isotonic import IsotonicRegression

    def one(p: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
        return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, y).predict(new)

    return _one_against_rest("isotonic", one, held, labels, probs)


def bbq(
    held: Float[Tensor, "*E M C"], labels: Int[Tensor, "*L M"], probs: Float[Tensor, "*E N C"]
) -> Float[Tensor, "*E N C"]:
    """Bayesian binning into quantiles, one class against the rest, then normalized.

    Averages equal-mass histograms of M^(1/3)/10 to 10 M^(1/3) bins, each weighed by its marginal likelihood under a
    Beta prior of strength 2 that is centered on the bin's middle.

    Reference: Naeini, Cooper, Hauskrecht (2015), Obtaining Well Calibrated Probabilities Using Bayesian Binning.
    """
    return _one_against_rest("bbq", _bbq, held, labels, probs)


def _bbq(p: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    from scipy.special import betaln, logsumexp

    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    root = len(p) ** (1 / 3)
    evidence, estimates = [], []
    for bins in range(max(1, int(root / 10)), min(int(np.ceil(10 * root)), len(p)) + 1):
        inner = np.unique([(p[i - 1] + p[i]) / 2 for i in np.arange(1, bins) * len(p) // bins])
        inner = inner[(inner > p[0]) & (inner <= p[-1])]  # ties can empty a bin
        edges = np.concatenate([[0.0], inner, [1.0]])
        count, hits = (np.bincount(np.searchsorted(inner, p), w, len(edges) - 1) for w in (None, y))
        middle = np.clip((edges[:-1] + edges[1:]) / 2, 1e-6, 1 - 1e-6)
        alpha, beta = 2 / bins * middle, 2 / bins * (1 - middle)
        evidence.append(np.sum(betaln(alpha + hits, beta + count - hits) - betaln(alpha, beta)))
        estimates.append(((alpha + hits) / (alpha + beta + count))[np.searchsorted(inner, new)])
    weights = np.exp(np.array(evidence) - logsumexp(evidence))
    return weights @ np.stack(estimates)


def _one_against_rest(caller: str, one, held: Tensor, labels: Tensor, probs: Tensor) -> Tensor:
    labels = metrics.checked(held, labels)
    metrics.check_probs(caller, held)
    classes = held.shape[-1]
    mended = np.empty(probs.shape)
    for e in np.ndindex(held.shape[:-2]):  # scikit-learn and scipy know no member axis
        p, y, new = held[e].double().numpy(), labels[e].numpy(), probs[e].double().numpy()
        for c in range(classes):
            mended[(*e, slice(None), c)] = one(p[:, c], (y == c).astype(float), new[:, c])
    return _normalized(torch.from_numpy(mended), probs)


def _normalized(mended: Tensor, probs: Tensor) -> Tensor:
    """One-against-rest values as probabilities; rows that came out all zero keep what they were."""
    total = mended.sum(-1, keepdim=True)
    return torch.where(total > 0, mended / total.clamp_min(1e-300), probs.double()).to(probs.dtype)


def _fit_affine(logits: Tensor, labels: Tensor, diagonal: bool) -> Affine:
    from scipy.optimize import minimize

    labels = metrics.checked(logits, labels)
    classes = logits.shape[-1]
    weight = torch.zeros(*logits.shape[:-2], classes, classes, dtype=torch.float64)
    bias = torch.zeros(*logits.shape[:-2], classes, dtype=torch.float64)

    def unpack(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        head, tail = flat[:-classes], flat[-classes:]
        return (np.diag(head) if diagonal else head.reshape(classes, classes)), tail

    for e in np.ndindex(logits.shape[:-2]):  # each member alone: a shared line search would couple them
        z, own = logits[e].double().numpy(), labels[e].numpy()
        mean, white, back = _whitening(z, diagonal)
        u, rows = (z - mean) @ white, np.arange(len(z))

        def loss(flat: np.ndarray, u=u, rows=rows, own=own) -> tuple[float, np.ndarray]:
            w, b = unpack(flat)
            out = u @ w.T + b
            out -= out.max(1, keepdims=True)
            probs = np.exp(out)
            total = probs.sum(1, keepdims=True)
            value = (np.log(total[:, 0]) - out[rows, own]).mean()
            probs /= total
            probs[rows, own] -= 1
            slope = probs.T @ u / len(u)
            return value, np.concatenate([np.diag(slope) if diagonal else slope.ravel(), probs.mean(0)])

        start = np.concatenate([np.diag(back) if diagonal else back.T.ravel(), mean])  # the logits as they are
        options = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-14, "gtol": 1e-7}
        w, b = unpack(minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x)
        weight[e] = torch.from_numpy(w @ white.T)
        bias[e] = torch.from_numpy(b - w @ white.T @ mean)
    return Affine(weight.to(logits.dtype), bias.to(logits.dtype))


def _whitening(z: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the rows, a map after which their columns have deviation 1 (and are uncorrelated), and its inverse."""
    mean = z.mean(0)
    covariance = (z - mean).T @ (z - mean) / len(z)
    if diagonal:
        scale = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
        return mean, np.diag(1 / scale), np.diag(scale)
    values, vectors = np.linalg.eigh(covariance)
    scale = np.sqrt(np.maximum(values, 1e-9 * max(values[-1], 1e-12)))
    return mean, vectors / scale, (vectors * scale).T


def _least(groups: Sequence[tuple[Tensor, Tensor]], inverse: Tensor, near: float) -> Tensor:
    """Where each member's NLL is least in 1 / T, (E,), sought from `inverse` on until no answer is farther off than
    `near`, relative to itself, as far as one can tell from how fast each step's series converges.

    Members come in groups that are computed together: logits (G, N, C) and labels (G, N).
    """
    inverse, low, high = inverse.clone(), torch.full_like(inverse, 1 / _HOTTEST), torch.full_like(inverse, _HOTTEST)
    members = torch.arange(len(inverse)).split([len(z) for z, _ in groups])
    for step in range(60):
        at = torch.cat(members)
        b = inverse[at]
        parts = zip(groups, b.split([len(of) for of in members]), strict=True)
        slope, *bends = torch.cat([_derivatives(z, labels, own) for (z, labels), own in parts], 1)
        low[at], high[at] = torch.where(slope <= 0, b, low[at]), torch.where(slope > 0, b, high[at])
        terms = _steps(slope, *bends)
        ratio = (terms[1:] / terms[:-1]).abs().amax(0)
        tame = ratio < 0.5  # false where it is NaN, as the curvature is 0
        new = b + torch.where(tame, terms.sum(0), terms[0])
        inside = (new >= low[at]) & (new <= high[at])
        if step >= 12:  # towards an end of the range steps stay small
            inside &= (new / b).log().abs() < 1e-3
        rest = torch.where(tame, terms[2] * ratio, terms[0]).abs() / b
        new = torch.where(inside, new, (low[at] * high[at]).sqrt())
        inverse[at] = new
        off = torch.where(inside, rest, (new / b).log().abs()).split([len(of) for of in members])
        going = [k for k, part in enumerate(off) if not bool((part < near).all())]
        if not going:
            break
        groups, members = [groups[k] for k in going], [members[k] for k in going]
    return inverse


def _steps(slope: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
    """The step to the root of a slope, (3, E), as a series: Newton's step and two corrections (the slope's Taylor
    series, reverted).
    """
    h = -slope / second
    a, b = third / (2 * second), fourth / (6 * second)
    return torch.stack([h, -a * h**2, (2 * a**2 - b) * h**3])


def _derivatives(z: Tensor, labels: Tensor, inverse: Tensor) -> Float[Tensor, "4 G"]:
    """First to fourth derivative of each member's NLL in 1 / T, from one pass over the logits.

    They are the cumulants of the logits under the softmax, the first less the label's own logit. Rows are computed in
    the precision of the logits (at least float32) and added in float64.
    """
    rows = max(1, _LARGE_BLOCK // (z.shape[-1] * len(z)))
    scale = inverse.to(torch.promote_types(z.dtype, torch.float32))[:, None, None]
    moments = scale.new_empty(4, *labels.shape)
    own = []
    for part, y, at in zip(z.split(rows, 1), labels.split(rows, 1), moments.split(rows, 2), strict=True):
        part = part - part.amax(-1, keepdim=True)
        weight = (part * scale).exp_()
        total = weight.sum(-1)
        for moment in at:
            torch.div(weight.mul_(part).sum(-1), total, out=moment)
        own.append(part.gather(-1, y[..., None])[..., 0])
    m, m2, m3, m4 = moments
    square = m * m
    cumulants = (
        m - torch.cat(own, 1),
        m2 - square,
        m3 - m * (3 * m2 - 2 * square),
        m4 - 4 * m * m3 - 3 * m2 * m2 + square * (12 * m2 - 6 * square),
    )
    found = torch.stack([values.mean(-1, dtype=torch.float64) for values in cumulants])
    if not found.isfinite().all():
        metrics.checked(z, labels)
        raise ValueError("logits must be finite, got infinity")
    return found


def _positive(bins: int) -> int:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got bins={bins}")
    return bins


def _cells(values: Tensor, bins: int) -> Tensor:
    """Which of `bins` right-closed bins of equal width each value in [0, 1] falls into; 0 falls into the first."""
    return torch.bucketize(values, _edges(bins, values))


def _edges(bins: int, values: Tensor) -> Tensor:
    """The edges between `bins` bins of equal width on [0, 1]."""
    return torch.linspace(0, 1, _positive(bins) + 1, dtype=values.dtype, device=values.device)[1:-1]


def _shares(rank: Tensor, bins: int) -> Tensor:
    n = rank.shape[-1]
    small, large = n // bins, n % bins  # the first `large` bins hold small + 1
    cut = large * (small + 1)
    return torch.where(rank < cut, rank // (small + 1), large + (rank - cut) // max(small, 1))


def _sums(probs: Float[Tensor, "N C"], labels: Int[Tensor, " N"], bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Over the rows of one block, in float64: hits, NLL and Brier score (3,); examples, hits and confidence in each bin
    of the top class (3, B); probability less hits in each bin of each class (C * B,).
    """
    if not (float((probs.sum(-1) - 1).abs().amax()) <= 1e-3 and float(probs.min()) >= 0):
        metrics.checked(probs, labels)
        metrics.check_probs("scores", probs)
    if int(labels.min()) < 0 or int(labels.max()) >= probs.shape[-1]:
        metrics.checked(probs, labels)
    classes = probs.shape[-1]
    inner = _edges(bins, probs)
    own = probs.gather(-1, labels[:, None])[:, 0]
    confidence = probs.amax(-1)
    hit = (own == confidence).to(probs.dtype)
    if int((probs == confidence[:, None]).count_nonzero()) > len(probs):  # of equal scores the first counts
        hit = (probs.argmax(-1) == labels).to(probs.dtype)
    brier = probs.square().sum(dtype=torch.float64) - 2 * own.sum(dtype=torch.float64) + len(own)
    means = torch.stack([hit.sum(dtype=torch.float64), -own.double().log().sum(), brier])
    cells = _fast_cells(confidence, inner)
    pooled = torch.stack([torch.bincount(cells, part, bins).double() for part in (None, hit, confidence)])
    first = torch.arange(0, classes * bins, bins, device=probs.device, dtype=torch.int32)
    each = torch.bincount(_fast_cells(probs, inner, first).flatten(), probs.flatten(), classes * bins).double()
    each -= torch.bincount(_fast_cells(own, inner, first[labels]), None, classes * bins)
    return means, pooled, each


def _fast_cells(values: Tensor, inner: Tensor, first: Tensor | int = 0) -> Tensor:
    """`first` plus what `_cells` gives, by rounding; the few values that lie near an edge are looked up."""
    bins = len(inner) + 1
    place = (values * bins).clamp_(0.5, bins - 0.5)
    above = place.ceil()
    near = (place.sub_(above).add_(0.5).abs_() > 0.5 - 1e-5).flatten().nonzero()[:, 0]
    found = above.add_(first - 1).int()
    if len(near):
        doubtful = values.reshape(-1)[near]
        rounded = (doubtful * bins).clamp_(0.5, bins - 0.5).ceil_().int() - 1
        found.view(-1)[near] += torch.bucketize(doubtful, inner, out_int32=True) - rounded
    return found


def _binned(values: Tensor, hit: Tensor, cells: Tensor, bins: int) -> Bins:
    """Count, share of hits and mean value in each cell, summed in float64."""
    zeros = torch.zeros(*values.shape[:-1], bins, dtype=torch.float64, device=values.device)
    count, hits, total = (
        zeros.scatter_add(-1, cells, part.double()) for part in (torch.ones_like(values), hit, values)
    )
    some = count.clamp_min(1)
    return Bins(*(part.to(values.dtype) for part in (count, hits / some, total / some)))
