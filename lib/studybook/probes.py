"""Probes of frozen features: k-nearest neighbors, linear probes at their optimum, and closed-form classifiers.

Features are `(*E, N, D)` with labels `(N,)` or `(*E, N)`; whatever is swept (penalties, neighborhood sizes, mixing
weights) becomes a leading axis of the answer. Linear classifiers are weights `(*E, D + 1, C)`, the last row being the
bias, and `probe_logits` applies them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CELLS = 2**24  # similarities held at once by `neighbors`
_SPARE = 8  # neighbors looked at beyond k, to settle ties
_CLOSE = 2.0**-20  # similarities closer than this, relative to squared norms, are compared again in float64
_SCORES = 2**27  # logits held at once by `linear_probe`
_GAP, _FINE = 1e-8, 1e-10  # of the loss: when a linear probe is done in float32, in float64
_STEPS = 2000  # at most, for a linear probe
_MEMORY = 8  # steps that L-BFGS remembers


class Gaussian(NamedTuple):
    """Gaussian naive Bayes: mean and variance of each feature in each class, and the log of the class's share."""

    mean: Float[Tensor, "*E C D"]
    variance: Float[Tensor, "*E C D"]
    log_prior: Float[Tensor, "*E C"]


def neighbors(
    query: Float[Tensor, "*E N D"], bank: Float[Tensor, "*E M D"], k: int, leave_one_out: bool = False
) -> tuple[Float[Tensor, "*E N k"], Int[Tensor, "*E N k"]]:
    """The `k` rows of `bank` nearest to each row of `query`, nearest first: similarities and row numbers.

    Similarity is minus the squared Euclidean distance; for rows of length 1 its order is that of the cosine. The
    search is exact: distances that the matrix product cannot tell apart (closer than 1e-6 of the squared norms) are
    computed again from differences in float64, and of rows at the same distance the one with the lower number comes
    first, so copies in the bank do not depend on chunks or threads. Other distances carry the matrix product's
    rounding, about 1e-7 of the squared norms. Half precision is computed, and answered, in float32.

    With `leave_one_out` the two must be the same set, and no row is its own neighbor. Memory beyond the arguments and
    the answer is bounded (a few hundred MB), whatever N and M.

    Raises ValueError for a `k` that the bank cannot serve, sizes that do not fit, NaN or infinity.
    """
    _check_finite("query", query)
    if bank is not query:
        _check_finite("bank", bank)
    if query.shape[-1] != bank.shape[-1]:
        raise ValueError(f"query and bank must have the same features, got {query.shape[-1]} and {bank.shape[-1]}")
    if leave_one_out and query.shape != bank.shape:
        raise ValueError(
            f"leave_one_out needs query and bank to be the same set, got {tuple(query.shape)} and {tuple(bank.shape)}"
        )
    rows = bank.shape[-2] - leave_one_out
    if not 1 <= k <= rows:
        raise ValueError(f"k must be between 1 and the bank's {rows} {'other ' * leave_one_out}rows, got k={k}")
    lead = query.shape[:-2]
    if query.dtype in (torch.float16, torch.bfloat16) or bank.dtype != query.dtype:
        query, bank = query.float(), bank.float()
    e, n = math.prod(lead), query.shape[-2]
    q, b = query.reshape(e, *query.shape[-2:]), bank.reshape(e, *bank.shape[-2:])
    similarity = q.new_empty(e, n, k)
    index = torch.empty(e, n, k, dtype=torch.int64, device=q.device)
    middle = b[:, :65_536].mean(1, keepdim=True)  # any point serves: it only keeps the numbers small
    banks = _Centered(b, middle)
    high = max(1, min(n, _CELLS // max(1, e * banks.wide)))
    room = q.new_empty(e * high * banks.wide)  # one for all chunks: new memory costs a tenth of the product
    for start in _progress(range(0, n, high), "neighbors"):
        part = slice(start, min(start + high, n))
        own = torch.arange(part.start, part.stop, device=q.device) if leave_one_out else None
        similarity[:, part], index[:, part] = _nearest(q[:, part], b, banks, k, own, room)
    return similarity.reshape(*lead, n, k), index.reshape(*lead, n, k)


def knn_votes(
    similarity: Float[Tensor, "*E N k"],
    labels: Int[Tensor, "*E N k"],
    classes: int,
    ks: Sequence[int],
    temperatures: Sequence[float | int] = (math.inf,),
) -> Float[Tensor, "K T *E N C"]:
    """Class probabilities from the neighbors of `neighbors`, for every k and every temperature, from one search.

    Each of the k nearest votes for its label with weight exp(similarity / T), and the weights are divided by their
    sum; an infinite temperature counts heads. Weights are taken relative to the nearest neighbor, so a small T does
    not underflow: it leaves the nearest alone. Equal votes are resolved by whoever reads them (`metrics.accuracy`:
    the lower class first).

    Reference: Jia et al. (2021), Rethinking Nearest Neighbors for Visual Classification, whose code takes the squared
    distance of centered features of length 1.
    """
    reach = similarity.shape[-1]
    if not ks or min(ks) < 1 or max(ks) > reach:
        raise ValueError(f"ks must be between 1 and the {reach} neighbors that were searched, got ks={list(ks)}")
    if not temperatures or not all(t > 0 for t in temperatures):
        raise ValueError(f"temperatures must be above 0, got temperatures={list(temperatures)}")
    _check_labels(labels, classes)
    if similarity.shape != labels.shape:
        raise ValueError(
            f"labels must be those of the neighbors, {tuple(similarity.shape)}, got {tuple(labels.shape)}; "
            "pass y[rows], with the rows that neighbors returned"
        )
    largest = torch.finfo(similarity.dtype).max  # 1 / T of a tiny T would be infinite, and 0 * infinity no number
    inverse = torch.tensor([min(1 / t, largest) for t in temperatures], dtype=similarity.dtype).to(similarity.device)
    behind = similarity - similarity[..., :1]
    weights = torch.exp(behind * inverse.reshape(-1, *[1] * similarity.ndim))  # (T, *E, N, k)
    labels = labels.expand(weights.shape)
    votes = weights.new_zeros(*weights.shape[:-1], classes)
    order = sorted(set(ks))
    found = {}
    for before, k in zip([0, *order[:-1]], order, strict=True):
        votes = votes.scatter_add(-1, labels[..., before:k], weights[..., before:k])
        found[k] = votes / votes.sum(-1, keepdim=True)
    return torch.stack([found[k] for k in ks])


def linear_probe(
    x: Float[Tensor, "*E N D"],
    y: Int[Tensor, "*Y N"],
    l2s: Sequence[float | int],
    classes: int,
    weights: Float[Tensor, "*W N"] | None = None,
) -> Float[Tensor, "..."]:
    """Multinomial logistic regression for all penalties at once, to the optimum: weights (L, *E, D + 1, C).

    It minimizes mean(weights * log-loss) + l2 / 2 * ||W||^2, the bias (last row) free of penalty. `weights`, one per
    example, is (N,) or (*E, N); with one axis more in front, each of its rows is a fit of its own and the answer is
    (A, L, *E, D + 1, C). scikit-learn's LogisticRegression minimizes the same with C = 1 / (N * l2); for two classes,
    where it fits one weight vector, with C = 2 / (N * l2).

    All fits advance together: L-BFGS in the eigenbasis of the features' covariance, where the Hessian's diagonal
    preconditions every penalty, first in the data's precision, then in float64. A fit is done when half its squared
    gradient norm, in the metric of the estimated inverse Hessian (the loss that a Newton step could still gain), is
    below 1e-8 of its loss. That left less than 1e-5 of the loss in every case compared with scikit-learn or with
    Newton's method, whatever N and D, separable data and outliers included; float32 data get float32 weights, whose
    rounding can cost as much again.

    Raises ValueError for NaN, labels out of range, a class without examples (its bias has no optimum), penalties that
    are not positive (separable data have no optimum without one), weights that are negative or leave a class without
    any, and RuntimeError if 2,000 steps do not suffice.
    """
    x3, y3, lead = _stacked(x, y, classes)
    _check_classes(y3, classes)
    l2s = _positive("l2s", l2s)
    swept = weights is not None and weights.ndim == len(lead) + 2
    w3 = _example_weights(weights, y3, classes, lead)  # (A, E, N), float64
    e, n, d = x3.shape
    counted = w3.mean(0)  # (E, N)
    if weights is None:
        mean = x3.mean(-2, keepdim=True, dtype=torch.float64)
    else:  # of the rows that count, so that the bias has little to do with the other weights
        mean = (counted / counted.sum(-1, keepdim=True))[:, None] @ x3.double()
    basis, _ = _spectrum(x3, mean, counted)
    z = torch.cat([(x3 - mean) @ basis, mean.new_ones(e, n, 1)], -1)  # (E, N, R + 1), float64, the bias's ones last
    pairs = [(a, float(l2)) for a in range(len(w3)) for l2 in l2s]
    room = max(1, _SCORES // (e * n * classes))
    solved = []
    for some in (pairs[i : i + room] for i in range(0, len(pairs), room)):
        penalty = torch.tensor([l2 for _, l2 in some], dtype=torch.float64, device=x.device)
        share = w3[[a for a, _ in some]].transpose(0, 1) / n  # (E, P, N)
        solved.append(_fit(z, x.dtype, y3, share, penalty, classes))
    w = torch.cat(solved, 1)  # (E, P, C, R + 1), float64
    matrix = torch.einsum("edr,epcr->pedc", basis, w[..., :-1])
    bias = w[..., -1].transpose(0, 1) - torch.einsum("ed,pedc->pec", mean[:, 0], matrix)
    full = torch.cat([matrix, bias[:, :, None]], 2).to(x.dtype)
    sweep = (len(w3), len(l2s)) if swept else (len(l2s),)
    return full.reshape(*sweep, *lead, d + 1, classes)


def probe_logits(w: Float[Tensor, "*S D1 C"], x: Float[Tensor, "*E N D"]) -> Float[Tensor, "*R N C"]:
    """Logits of linear classifiers: `w` (*S, *E, D + 1, C) on `x` (*E, N, D) gives (*S, *E, N, C)."""
    if w.shape[-2] != x.shape[-1] + 1:
        raise ValueError(f"w must have one row per feature and one for the bias, {x.shape[-1] + 1}, got {w.shape[-2]}")
    return x @ w[..., :-1, :] + w[..., -1:, :]


def nearest_mean(x: Float[Tensor, "*E N D"], y: Int[Tensor, "*Y N"], classes: int) -> Float[Tensor, "*E D1 C"]:
    """Nearest class mean as a linear classifier: logits are minus half the squared distance, up to a constant.

    Raises as `linear_probe` does.
    """
    x3, y3, lead = _stacked(x, y, classes)
    _check_classes(y3, classes)
    mean, _ = _class_means(x3.double(), y3, classes)
    bias = -mean.square().sum(-1, keepdim=True) / 2  # (E, C, 1)
    return torch.cat([mean, bias], -1).mT.to(x.dtype).reshape(*lead, x.shape[-1] + 1, classes)


def naive_bayes(x: Float[Tensor, "*E N D"], y: Int[Tensor, "*Y N"], classes: int) -> Gaussian:
    """Gaussian naive Bayes, fitted; `gaussian_logits` applies it.

    To each variance 1e-9 of the largest feature's variance is added, as scikit-learn does. Raises as `linear_probe`.
    """
    x3, y3, lead = _stacked(x, y, classes)
    _check_classes(y3, classes)
    x3 = x3.double()
    mean, count = _class_means(x3, y3, classes)
    own = mean.gather(1, y3[..., None].expand(-1, -1, x3.shape[-1]))
    variance, _ = _class_means((x3 - own).square(), y3, classes)
    variance += 1e-9 * x3.var(1, correction=0).amax(-1)[:, None, None]
    variance = variance.clamp(min=1e-30)  # of features that are all constant
    parts = mean, variance, (count / x3.shape[1]).log()
    return Gaussian(*(part.to(x.dtype).reshape(*lead, *part.shape[1:]) for part in parts))


def gaussian_logits(fitted: Gaussian, x: Float[Tensor, "*E N D"]) -> Float[Tensor, "*E N C"]:
    """Joint log-likelihood of each class under `naive_bayes`'s result; its softmax is the posterior."""
    mean, variance, log_prior = (part.double() for part in fitted)
    middle = mean.mean(-2, keepdim=True)
    shifted, mean = x.double() - middle, mean - middle  # small numbers, so that squares do not cancel
    logits = (
        (shifted @ (mean / variance).mT)
        - shifted.square() @ (0.5 / variance).mT
        - ((mean.square() / variance + (2 * math.pi * variance).log()).sum(-1) / 2 - log_prior)[..., None, :]
    )
    return logits.to(x.dtype)


def ridge(
    x: Float[Tensor, "*E N D"], y: Int[Tensor, "*Y N"], l2s: Sequence[float | int], classes: int
) -> Float[Tensor, "L *E D1 C"]:
    """Least squares on one-hot labels, in closed form for all penalties from one decomposition: (L, *E, D + 1, C).

    It minimizes mean squared error / 2 + l2 / 2 * ||W||^2, the bias free of penalty (scikit-learn's Ridge with
    alpha = N * l2). Raises as `linear_probe` does.
    """
    x3, y3, lead = _stacked(x, y, classes)
    _check_classes(y3, classes)
    l2s = _positive("l2s", l2s)
    mean = x3.mean(-2, keepdim=True, dtype=torch.float64)
    basis, spread = _spectrum(x3, mean)
    sums = _class_sums(x3 - mean, y3, classes)  # the mean label adds nothing, since x - mean sums to 0
    moment = basis.mT @ sums.mT / x3.shape[1]  # (E, R, C)
    penalty = torch.tensor(l2s, dtype=torch.float64, device=x.device).reshape(-1, 1, 1, 1)
    matrix = basis @ (moment / (spread[..., None] + penalty))  # (L, E, D, C)
    share = _class_sums(torch.ones_like(x3[..., 0]), y3, classes)[:, None] / x3.shape[1]
    bias = share - mean @ matrix
    return torch.cat([matrix, bias], -2).to(x.dtype).reshape(len(l2s), *lead, x.shape[-1] + 1, classes)


def mixture(
    first: Float[Tensor, "*E N C"], second: Float[Tensor, "*E N C"], weights: Sequence[float | int]
) -> Float[Tensor, "M *E N C"]:
    """weight * first + (1 - weight) * second for every weight in [0, 1]: probabilities (M, *E, N, C)."""
    if not weights or not all(0 <= weight <= 1 for weight in weights):
        raise ValueError(f"weights must be in [0, 1], got weights={list(weights)}")
    if first.shape != second.shape:
        raise ValueError(f"first and second must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    share = torch.tensor(weights, dtype=first.dtype, device=first.device).reshape(-1, *[1] * first.ndim)
    return share * first + (1 - share) * second


class _Centered:
    """A bank (E, M, D) in chunks of `wide` rows, moved by `middle`, with squared lengths; kept if it is one chunk."""

    def __init__(self, bank: Tensor, middle: Tensor) -> None:
        self.bank, self.middle, self.wide = bank, middle, min(bank.shape[1], 65_536)
        self.only = self._chunk(0) if bank.shape[1] == self.wide else None

    def _chunk(self, start: int) -> tuple[int, Tensor, Tensor]:
        moved = self.bank[:, start : start + self.wide] - self.middle
        return start, moved, _squared_lengths(moved)

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        if self.only is not None:
            return iter([self.only])
        return (self._chunk(start) for start in range(0, self.bank.shape[1], self.wide))


def _nearest(q: Tensor, b: Tensor, banks: _Centered, k: int, own: Tensor | None, room: Tensor) -> tuple[Tensor, Tensor]:
    """`neighbors` for the queries (E, n, D) of one chunk; `own` are their row numbers in the bank, if left out.

    `room` is where similarities are computed.
    """
    count = b.shape[1]
    centered = q - banks.middle
    norms = _squared_lengths(centered)
    keep = min(k + _SPARE, count - (own is not None))
    best = index = None
    longest = q.new_zeros(len(q), 1)
    for start, bank, lengths in banks:
        longest = torch.maximum(longest, lengths.amax(-1, keepdim=True))
        score = room[: norms.numel() * bank.shape[1]].view(*norms.shape, -1)  # (E, n, m): |q|^2 - distance
        torch.baddbmm(lengths[:, None], centered, bank.mT, beta=-1, alpha=2, out=score)
        if own is not None:
            _leave_out(score, own - start)
        top, at = score.topk(min(keep, score.shape[-1]), -1)
        at = at + start
        if best is not None:
            top, order = torch.cat([best, top], -1).topk(min(keep, best.shape[-1] + top.shape[-1]), -1)
            at = torch.cat([index, at], -1).gather(-1, order)
        best, index = top, at
    similarity = (best - norms[..., None]).clamp(max=0)
    near = _CLOSE * (norms + longest)  # (E, n)
    gaps = best[..., : min(k, keep - 1)] - best[..., 1 : min(k, keep - 1) + 1]
    unsure = (gaps <= near[..., None]).any(-1)
    if bool(unsure.any()):
        missed = unsure & (best[..., -1] >= best[..., k - 1] - near) & (keep < count - (own is not None))
        _settle(q, b, similarity, index, unsure & ~missed)
        for e, row in missed.nonzero().tolist():  # more ties than spare neighbors
            _settle_all(q[e, row], b[e], similarity[e, row], index[e, row], None if own is None else int(own[row]))
    return similarity[..., :k], index[..., :k]


def _squared_lengths(rows: Tensor) -> Tensor:
    some = max(1, 2**18 // rows.shape[-1])  # squares stay in the cache
    lengths = torch.cat([part.square().sum(-1) for part in rows.split(some, -2)], -1)
    if not bool(lengths.isfinite().all()):
        raise ValueError("query and bank hold numbers so large that squared distances overflow; scale both down")
    return lengths


def _leave_out(score: Tensor, own: Tensor) -> None:
    """Sets the similarity of query i to row own[i] of this chunk to minus infinity, where it lies in this chunk."""
    inside = ((own >= 0) & (own < score.shape[-1])).nonzero()[:, 0]
    score[:, inside, own[inside]] = -math.inf


def _settle(q: Tensor, b: Tensor, similarity: Tensor, index: Tensor, which: Tensor) -> None:
    """Exact similarities, in float64 from differences, and order of the candidates of the queries `which` (E, n)."""
    e, row = which.nonzero(as_tuple=True)
    chunk = max(1, 2**22 // (index.shape[-1] * q.shape[-1]))
    for members, rows in zip(e.split(chunk), row.split(chunk), strict=True):
        candidates = index[members, rows].sort(-1).values  # (F, keep), so that ties keep the lower row first
        exact = -(b[members[:, None], candidates].double() - q[members, rows][:, None].double()).square().sum(-1)
        values, order = exact.sort(dim=-1, descending=True, stable=True)
        similarity[members, rows] = values.to(similarity.dtype)
        index[members, rows] = candidates.gather(-1, order)


def _settle_all(query: Tensor, bank: Tensor, similarity: Tensor, index: Tensor, own: int | None) -> None:
    """The same for one query whose ties go on beyond its candidates: every row of the bank is compared."""
    chunk = max(1, 2**22 // query.shape[-1])
    exact = torch.cat([-(rows.double() - query.double()).square().sum(-1) for rows in bank.split(chunk)])
    if own is not None:
        exact[own] = -math.inf
    values, order = exact.sort(dim=-1, descending=True, stable=True)
    similarity[:] = values[: len(similarity)].to(similarity.dtype)
    index[:] = order[: len(index)]


def _spectrum(x: Tensor, mean: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvectors (E, D, R) and eigenvalues (E, R) of the second moment of `x - mean`, R = min(N, D), in float64.

    `weights` (E, N) count examples more or less; those of weight 0 do not count.
    """
    e, n, d = x.shape
    root = torch.ones(e, n, 1, dtype=torch.float64, device=x.device) if weights is None else weights[..., None].sqrt()
    if d <= n:
        gram = torch.zeros(e, d, d, dtype=torch.float64, device=x.device)
        for rows, scale in zip(*(part.split(max(1, 2**24 // d), 1) for part in (x, root)), strict=True):
            scaled = (rows - mean) * scale
            gram += scaled.mT @ scaled
        spread, basis = torch.linalg.eigh(gram / n)
        return basis, spread.clamp(min=0)
    scaled = (x - mean) * root
    spread, left = torch.linalg.eigh(scaled @ scaled.mT / n)
    spread = spread.clamp(min=0)
    real = spread > spread.amax(-1, keepdim=True) * 1e-14 * d  # the rest is rounding: no data lie there
    scale = torch.where(real, (n * spread).clamp(min=1e-300).rsqrt(), 0.0)
    return scaled.mT @ (left * scale[:, None]), torch.where(real, spread, 0.0)


def _fit(z: Tensor, dtype: torch.dtype, y: Tensor, share: Tensor, penalty: Tensor, classes: int) -> Tensor:
    """Optima (E, P, C, R + 1), in the basis of `z` (E, N, R + 1), for P penalties with example shares (E, P, N)."""
    from tqdm import tqdm

    w = z.new_zeros(len(z), len(penalty), classes, z.shape[-1])
    left = torch.arange(len(penalty), device=z.device)
    with tqdm(total=len(penalty), desc="penalties", delay=2, leave=False) as bar:
        if dtype == torch.float32:
            _descend(z.float(), y, share.float(), penalty.float(), w, left, None)
        rest = _descend(z, y, share, penalty, w, left, bar)
    if len(rest):
        raise RuntimeError(
            f"linear_probe: {_STEPS} steps did not reach the optimum for l2 = {penalty[rest].tolist()}; "
            "larger penalties or features of more even scale would help"
        )
    return w


def _descend(z: Tensor, y: Tensor, share: Tensor, penalty: Tensor, solution: Tensor, left: Tensor, bar: Any) -> Tensor:
    """Preconditioned L-BFGS from `solution`, which is overwritten, for the problems `left`; returns those not done.

    With a `bar` problems are done by the stated gap; without, in the quick pass, also when rounding lets them improve
    no more. Logits are (E, P, C, N), examples last: so sums over classes run over whole vectors, and products with few
    columns are several times as fast as the other way round.
    """
    e, n, r = z.shape
    classes = solution.shape[2]
    own = y[:, None, None]  # (E, 1, 1, N)
    w = solution[:, left].to(z.dtype)
    share, penalty = share[:, left, None], penalty[left]
    if bool((share == share[:, :1]).all()):
        share = share[:, :1]  # one row serves all
    free = torch.ones(r, dtype=z.dtype, device=z.device)
    free[-1] = 0  # the bias
    squared = z.square()

    def product(v: Tensor) -> Tensor:
        return (v.reshape(e, -1, r) @ z.mT).view(e, -1, classes, n)

    def moment(rows: Tensor, values: Tensor) -> Tensor:
        return (values.view(e, -1, n) @ rows).view(e, -1, classes, r)

    def residual(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, and shares of (probabilities - one-hot)."""
        probs = logits.softmax(2)
        one = torch.ones((), dtype=z.dtype, device=z.device).expand(e, logits.shape[1], 1, n)
        error = probs.scatter_add(2, own.expand_as(one), -one)
        return probs, error.mul_(share)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("epk,epk->ep", a.flatten(2), b.flatten(2))[:, :, None, None]

    logits = product(w)
    probs, error = residual(logits)
    ridge = free * penalty[:, None, None]  # (P, 1, R)
    gradient = moment(z, error) + ridge * w
    memory: list[tuple[Tensor, Tensor, Tensor]] = []  # steps, changes of the gradient, 1 / their product
    least = w.new_full((1, len(left), 1, 1), math.inf)
    patience = torch.zeros_like(least)
    hessian = None
    for step in range(_STEPS):
        if hessian is None or step % 5 == 0:  # its diagonal
            hessian = moment(squared, share * probs * (1 - probs)) + ridge
            hessian = hessian.clamp(min=torch.finfo(w.dtype).eps * float(hessian.max()))
        direction = -_two_loops(gradient, 1 / hessian, memory, dot)
        slope = dot(gradient, direction)
        downhill = slope < 0
        direction = torch.where(downhill, direction, -gradient / hessian)
        slope = torch.where(downhill, slope, dot(gradient, direction))
        total = logits.amax(2, True) - probs.amax(2, True).log()  # log of the sum of exponentials
        nll = share * (total - logits.gather(2, own.expand_as(total)))
        loss = dot(ridge * w, w) / 2 + nll.sum(-1, keepdim=True)
        gain = torch.maximum(-slope, dot(gradient, gradient / hessian)) / 2
        gap = (gain / loss.clamp(min=torch.finfo(w.dtype).tiny)).amax(0, True)
        sure = (dot(gradient, gradient) / (2 * penalty[:, None, None]) <= 1e-6 * loss).all(0, True)
        done = (gap <= (_GAP if bar is None else _FINE)) | sure & (gap <= _GAP)
        if bar is None:
            better = gap < 0.7 * least
            patience = torch.where(better, 0, patience + 1)
            least = torch.minimum(least, gap)
            done |= patience >= 12
        if bool(done.any()):
            out, stay = done[0, :, 0, 0], ~done[0, :, 0, 0]
            solution[:, left[out]] = w[:, out].double()
            if bar is not None:
                bar.update(int(out.sum()))
            left = left[stay]
            if not len(left):
                break
            w, logits, gradient, hessian, direction, slope, least, patience = (
                part[:, stay] for part in (w, logits, gradient, hessian, direction, slope, least, patience)
            )
            ridge, penalty = ridge[stay], penalty[stay]
            share = share if share.shape[1] == 1 else share[:, stay]
            memory = [tuple(part[:, stay] for part in kept) for kept in memory]
        along = product(direction)
        length, probs, error = _line_search(logits, along, ridge, w, direction, slope, residual, dot)
        moved = length * direction
        logits = logits + length * along
        w = w + moved
        new = moment(z, error) + ridge * w
        change, gradient = new - gradient, new
        inner = dot(moved, change)
        good = inner > 1e-10 * (dot(moved, moved) * dot(change, change)).sqrt()
        memory = [
            *memory[1 - _MEMORY :],
            tuple(torch.where(good, part, 0.0) for part in (moved, change, 1 / inner)),
        ]
    if len(left):
        solution[:, left] = w.double()
    return left


def _two_loops(
    gradient: Tensor, diagonal: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]], dot: Callable
) -> Tensor:
    """The inverse Hessian that L-BFGS has seen so far, times the gradient; `diagonal` is its first guess.

    Reference: Nocedal, Wright (2006), Numerical Optimization, algorithm 7.4.
    """
    q = gradient.clone()
    factors = []
    for moved, change, inverse in reversed(memory):
        factors.append(inverse * dot(moved, q))
        q.addcmul_(factors[-1], change, value=-1)
    q = diagonal * q
    for (moved, change, inverse), factor in zip(memory, reversed(factors), strict=True):
        q.addcmul_(factor - inverse * dot(change, q), moved)
    return q


def _line_search(
    logits: Tensor,
    along: Tensor,
    ridge: Tensor,
    w: Tensor,
    direction: Tensor,
    slope: Tensor,
    residual: Callable,
    dot: Callable,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step lengths (E, P, 1, 1) at which the convex loss has lost half its slope, with probabilities and errors there.

    Only logits are touched: no product with the features is spent on trial steps.
    """
    linear, square = dot(ridge * w, direction), dot(ridge * direction, direction)
    length = torch.ones_like(slope)
    low, high = torch.zeros_like(slope), torch.full_like(slope, math.inf)
    for _ in range(20):
        probs, error = residual(logits + length * along)
        now = dot(error, along) + linear + length * square
        fine = now.abs() <= 0.5 * slope.abs()
        if bool(fine.all()):
            break
        low, high = torch.where(now < 0, length, low), torch.where(now >= 0, length, high)
        secant = torch.nan_to_num(length * slope / (slope - now), posinf=math.inf, neginf=math.inf)
        inside = torch.clamp(secant, low + 0.1 * (high - low), low + 0.9 * (high - low))
        beyond = torch.where(secant > length, secant.clamp(1.5 * length, 10 * length), 10 * length)
        length = torch.where(fine, length, torch.where(high.isinf(), beyond, inside))
    return length, probs, error


def _class_sums(values: Tensor, y: Tensor, classes: int) -> Tensor:
    """Sums of `values` (E, N, ...) over the examples of each class, (E, C, ...)."""
    e = torch.arange(len(y), device=y.device)[:, None] * classes
    sums = values.new_zeros(len(y) * classes, *values.shape[2:])
    return sums.index_add(0, (y + e).flatten(), values.flatten(0, 1)).unflatten(0, (len(y), classes))


def _class_means(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Means of the rows of `x` (E, N, D) in each class, (E, C, D), and how many there are, (E, C)."""
    count = _class_sums(torch.ones_like(x[..., 0]), y, classes)
    return _class_sums(x, y, classes) / count[..., None], count


def _stacked(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Features as (E, N, D), labels as (E, N), and the shape of E; ValueError for what cannot be fitted."""
    if y.shape[-1] != x.shape[-2] or x.shape[-2] == 0:
        raise ValueError(f"x and y must have the same positive number of examples, got {x.shape[-2]} and {y.shape[-1]}")
    _check_finite("x", x)
    _check_labels(y, classes)
    lead = tuple(x.shape[:-2])
    if tuple(y.shape[:-1]) not in ((), lead):
        raise ValueError(f"y must be {(x.shape[-2],)} or {tuple(x.shape[:-1])}, as x has it, got {tuple(y.shape)}")
    y = y.long().expand(*lead, x.shape[-2]).reshape(-1, x.shape[-2])
    return x.reshape(-1, *x.shape[-2:]), y, lead


def _check_classes(y: Tensor, classes: int) -> None:
    """ValueError unless every class has an example in every member."""
    count = _class_sums(torch.ones_like(y), y, classes)
    if int((count[0] > 0).sum()) == 1 and classes > 1 or classes == 1:
        raise ValueError(f"y holds one class only ({int(y[0, 0])}); a probe needs at least two")
    if bool((count == 0).any()):
        missing = (count == 0).any(0).nonzero()[:, 0].tolist()
        raise ValueError(f"y must hold every one of the {classes} classes, but has no example of {missing}")


def _check_labels(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be in [0, {classes}), got {low} to {high}")


def _check_finite(name: str, x: Tensor) -> None:
    if not bool(x.sum().isfinite()) and not bool(x.isfinite().all()):  # the sum is the quicker question
        rows = (~x.isfinite()).any(-1).reshape(-1).nonzero()[:, 0]
        raise ValueError(f"{name} must be finite numbers, but {len(rows)} rows hold NaN or infinity, first {rows[0]}")


def _positive(name: str, values: Sequence[float | int]) -> list[float]:
    if len(values) == 0 or not all(0 < value < math.inf for value in values):
        raise ValueError(f"{name} must be positive numbers, at least one, got {name}={list(values)}")
    return [float(value) for value in values]


def _example_weights(weights: Tensor | None, y: Tensor, classes: int, lead: tuple[int, ...]) -> Tensor:
    """Weights of the examples as (A, E, N), float64."""
    if weights is None:
        return torch.ones(1, *y.shape, dtype=torch.float64, device=y.device)
    own = (*lead, y.shape[-1])
    if tuple(weights.shape) not in ((y.shape[-1],), own) and tuple(weights.shape[1:]) != own:
        raise ValueError(
            f"weights must be one per example, {own}, or so with one axis in front, got {tuple(weights.shape)}"
        )
    weights = weights.double()
    if weights.ndim < len(lead) + 2:
        weights = weights.expand(own)[None]
    weights = weights.reshape(len(weights), *y.shape)
    total = torch.stack([_class_sums(row, y, classes) for row in weights])
    if not bool(weights.isfinite().all()) or float(weights.min()) < 0 or bool((total == 0).any()):
        raise ValueError("weights must be finite, 0 or more, and leave every class some weight")
    return weights


def _progress(steps: Sequence[int], what: str) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(steps, what, delay=2, leave=False, disable=len(steps) < 2)
