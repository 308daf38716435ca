"""`studybook.probes` against faiss (nearest neighbors) and scikit-learn (45 penalties): same answers, timed in turn."""

import os
import warnings

import click
import numpy as np
import torch
from ab import HEADER, compare
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from studybook import probes

CLASSES = 10
L2S = np.logspace(-6, 1, 45).tolist()
LIMIT = 1e-5  # of the loss: how far above the optimum both may end


def features(rows: int, dims: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class means plus noise whose feature j has deviation j^-0.5, as the features of a trained network decay."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dims + 1) ** -0.5
    means = 0.5 * scale * torch.randn(CLASSES, dims, generator=torch.Generator().manual_seed(99))
    y = torch.arange(rows)[torch.randperm(rows, generator=generator)] % CLASSES
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=torch.Generator().manual_seed(98))).Q
    return (means[y] + scale * torch.randn(rows, dims, generator=generator)) @ turn, y


def loss(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor, l2: float) -> float:
    """The objective of a linear probe's weights (D + 1, C), in float64."""
    w = w.double()
    nll = torch.nn.functional.cross_entropy(x.double() @ w[:-1] + w[-1], y)
    return (nll + l2 / 2 * w[:-1].square().sum()).item()


def losses(weights: torch.Tensor | list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    x = x.double()
    return np.array([loss(w, x, y, l2) for l2, w in zip(L2S, weights, strict=True)])


class Fits:
    """scikit-learn's fits, largest penalty first, each at the loosest setting that comes within LIMIT of `best`.

    A setting is a tolerance and a precision of the data; each penalty has its own, which favors scikit-learn: a user
    would have to know them. With `warm` each fit starts from the answer of the one before.
    """

    tols = 10.0 ** -np.arange(2, 10.1, 0.5)

    def __init__(self, x: torch.Tensor, y: torch.Tensor, best: np.ndarray, warm: bool) -> None:
        self.data, self.y, self.warm = (x.numpy(), x.double().numpy()), y.numpy(), warm
        ladder = [(tol, data) for data in (0, 1) for tol in self.tols]
        self.settings: list[tuple[float, int]] = []  # largest penalty first
        before, loosest = None, 0
        for l2, least in zip(tqdm(L2S[::-1], "tuning scikit-learn", leave=False), best[::-1], strict=True):
            for step in range(max(0, loosest - 2), len(ladder)):
                w = self.fit(l2, *ladder[step], before)
                if loss(w, x, y, l2) <= least * (1 + LIMIT):
                    break
            else:
                raise SystemExit(f"scikit-learn does not come within {LIMIT} of the optimum for l2 = {l2:.1e}.")
            before, loosest = w, step
            self.settings.append(ladder[step])

    def fit(self, l2: float, tol: float, data: int, before: torch.Tensor | None) -> torch.Tensor:
        model = LogisticRegression(C=1 / (len(self.y) * l2), tol=tol, max_iter=10_000, warm_start=self.warm)
        if self.warm and before is not None:
            model.coef_, model.intercept_ = before[:-1].T.numpy(), before[-1].numpy()
        model.fit(self.data[data], self.y)
        return torch.from_numpy(np.vstack([model.coef_.T, model.intercept_]))

    def all(self) -> list[torch.Tensor]:
        """Weights (D + 1, C) for each of L2S."""
        found: list[torch.Tensor] = []
        for l2, setting in zip(L2S[::-1], self.settings, strict=True):
            found.append(self.fit(l2, *setting, found[-1] if found else None))
        return found[::-1]

    def __str__(self) -> str:
        tols, data = zip(*self.settings, strict=True)
        return f"    scikit-learn's tol from {max(tols):.0e} to {min(tols):.0e}, {sum(data)} of {len(data)} in float64"


def search(pairs: int) -> str:
    """The line for `neighbors`: 4,000 queries in a bank of 10,000, 1,280 features of length 1, 20 neighbors."""
    try:
        import faiss
    except ImportError:
        return "neighbors: not compared, since faiss is not installed (pip install faiss-cpu)"
    faiss.omp_set_num_threads(torch.get_num_threads())
    x = torch.nn.functional.normalize(features(14_000, 1_280, seed=0)[0], dim=-1)
    bank, query = x[:10_000].contiguous(), x[10_000:].contiguous()

    def peer() -> np.ndarray:
        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank.numpy())
        return index.search(query.numpy(), 20)

    def same(ours: tuple, theirs: tuple) -> None:
        rows, (i, j) = theirs[1], (differ := ours[1].numpy() != theirs[1]).nonzero()
        far = (query[i] - bank[rows[i, j]]).double().square().sum(-1) + ours[0].double()[i, j]
        if differ.mean() > 1e-3 or (far.abs() > 4e-6).any():  # only rows at one distance, to float32, change places
            raise AssertionError(f"neighbors and faiss give different rows: {differ.mean():.1%} of them")

    return compare(lambda: probes.neighbors(query, bank, 20), peer, same, pairs, "faiss").row("neighbors / faiss")


def sweep(rows: int, pairs: int, warm: bool) -> str:
    """The line for `linear_probe`: 45 penalties at once / one scikit-learn fit for each."""
    x, y = features(rows, 1_280, seed=1)
    best = losses(probes.linear_probe(x.double(), y, L2S, CLASSES), x, y)
    peer = Fits(x, y, best, warm)

    def same(ours: torch.Tensor, theirs: list[torch.Tensor]) -> None:
        for name, found in (("ours", losses(ours, x, y)), ("scikit-learn", losses(theirs, x, y))):
            if (found > best * (1 + LIMIT)).any():
                raise AssertionError(f"{name}: {np.max(found / best - 1):.1e} above the optimum, more than {LIMIT}")

    def ours() -> torch.Tensor:
        return probes.linear_probe(x, y, L2S, CLASSES)

    times = compare(ours, peer.all, same, pairs, "scikit-learn", warmup=0)  # tuning has warmed both up
    start = "warm" if warm else "cold"
    return f"{times.row(f'{len(L2S)} penalties / scikit-learn, {start}')}\n{peer}"


@click.command(context_settings={"show_default": True})
@click.option("--rows", default=2_000, help="Examples that the linear probes are fitted to.")
@click.option("--full", is_flag=True, help="10,000 examples, whatever --rows says: many minutes.")
@click.option("--pairs", default=5, help="Timed runs of each side of `neighbors`.")
@click.option("--fit-pairs", default=3, help="Timed runs of each side of the linear probes.")
def main(rows: int, full: bool, pairs: int, fit_pairs: int) -> None:
    """Time studybook.probes against faiss and scikit-learn, in turn, where both give the same answer."""
    warnings.simplefilter("error", ConvergenceWarning)
    rows = 10_000 if full else rows
    load = os.getloadavg()[0]
    click.echo(f"{torch.get_num_threads()} threads, load {load:.1f}; probes of {rows:,} x 1,280, {CLASSES} classes")
    click.echo(HEADER)
    click.echo(search(pairs))
    for warm in (False, True):
        click.echo(sweep(rows, fit_pairs, warm))


if __name__ == "__main__":
    main()
