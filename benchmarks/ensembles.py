"""Training many networks: `ensemble.fit` against a plain PyTorch loop over them, with the same weights and batches."""

import copy

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.pair import Benchmark
from studybook import ensemble, models

ROWS, BATCH, EPOCHS = 3_200, 64, 4  # of the small networks, each its own
WIDE_BATCH, WIDE_STEPS = 256, 16
CONV_BATCH, CONV_LR = 128, 0.05
NEAR = 1e-3  # how far apart weights may end on average: Adam magnifies float32's rounding of small gradients


def _flat(nets: tuple) -> np.ndarray:
    """All weights of each network, (E, P)."""
    return torch.stack([torch.cat([p.detach().cpu().flatten() for p in net.parameters()]) for net in nets]).numpy()


def weights(_: object, nets: tuple) -> np.ndarray:
    return _flat(nets)


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    if not (far := np.abs(ours - theirs).mean()) <= NEAR:
        raise AssertionError(f"fit and the plain loop end {far:.1e} apart on average, more than {NEAR}")


# ---------------------------------------------------------------- fully connected


def small_networks(e: int) -> dict:
    """Networks of 100-128-128-1 units, the exclusive or of two of 100 numbers."""
    x = torch.randn(e, ROWS, 100, generator=torch.Generator().manual_seed(0))
    nets = ensemble.init(lambda: models.mlp(100, 128, 128, 1), range(e))
    return {"nets": nets, "x": x, "y": (x[..., 0] * x[..., 1] > 0).long(), "batch": BATCH, "epochs": EPOCHS}


def wide_networks(e: int, width: int) -> dict:
    """Networks of width-width-width-10 units on rows that all share."""
    x = torch.randn(WIDE_BATCH * WIDE_STEPS // 2, width, generator=torch.Generator().manual_seed(0))
    nets = ensemble.init(lambda: models.mlp(width, width, width, 10), range(e))
    return {"nets": nets, "x": x, "y": torch.arange(len(x)) % 10, "batch": WIDE_BATCH, "epochs": 2}


def fitted(data: dict) -> tuple:
    loss = ensemble.logistic if data["x"].ndim == 3 else ensemble.cross_entropy
    sizes = {"epochs": data["epochs"], "batch": data["batch"]}
    return ensemble.fit(data["nets"], data["x"], data["y"], lr=1e-3, loss=loss, **sizes).members


def looped(data: dict) -> tuple:
    """What one writes without the library."""
    where, found = ensemble.device(), []
    own = data["x"].ndim == 3
    for e, (net, seed) in enumerate(zip(data["nets"].members, data["nets"].seeds, strict=True)):
        net = copy.deepcopy(net).to(where)  # noqa: PLW2901
        x, y = (data[part][e] if own else data[part] for part in ("x", "y"))
        x, y, optimizer = x.to(where), y.to(where), torch.optim.Adam(net.parameters(), lr=1e-3)
        shuffle = torch.Generator().manual_seed(seed)
        for _ in range(data["epochs"]):
            for part in torch.randperm(len(x), generator=shuffle).to(where).split(data["batch"]):
                optimizer.zero_grad()
                out = net(x[part])
                loss = (
                    F.binary_cross_entropy_with_logits(out[:, 0], y[part].float())
                    if own
                    else F.cross_entropy(out, y[part])
                )
                loss.backward()
                optimizer.step()
        found.append(net)
    return tuple(found)


def _passes(batch: int, *widths: int) -> float:
    """Operations of forward and backward pass over a batch; the first layer's inputs need no gradient."""
    layers = [a * b for a, b in zip(widths[:-1], widths[1:], strict=True)]
    return 2.0 * batch * (3 * sum(layers) - layers[0])


def _small_work(e: int) -> float:
    return e * EPOCHS * (ROWS // BATCH) * _passes(BATCH, 100, 128, 128, 1)


def _wide_work(e: int, width: int) -> float:
    return e * WIDE_STEPS * _passes(WIDE_BATCH, width, width, width, 10)


# ---------------------------------------------------------------- convolutions


def residual_networks(e: int, n: int) -> dict:
    """ResNet-8 of 16, 32 and 64 filters on `n` pictures of CIFAR-10's size."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 10
    x = torch.randn(n, 3, 32, 32, generator=generator) + torch.randn(10, 3, 1, 1, generator=generator)[y]
    return {"nets": ensemble.init(lambda: models.resnet(8, 16, 3, 10), range(e)), "x": x, "y": y}


def fitted_residual(data: dict) -> tuple:
    sgd = ensemble.SGD(momentum=0.9)
    options = {"epochs": 1, "batch": CONV_BATCH, "lr": CONV_LR, "weight_decay": 5e-4, "optimizer": sgd}
    return ensemble.fit(data["nets"], data["x"], data["y"], **options).members


def looped_residual(data: dict) -> tuple:
    """A plain loop in the layout that PyTorch's documentation recommends for convolutions."""
    where, found = ensemble.device(), []
    x, y = data["x"].to(where, memory_format=torch.channels_last), data["y"].to(where)
    for net, seed in zip(data["nets"].members, data["nets"].seeds, strict=True):
        net = copy.deepcopy(net).to(where, memory_format=torch.channels_last).train()  # noqa: PLW2901
        optimizer = torch.optim.SGD(net.parameters(), lr=CONV_LR, momentum=0.9, weight_decay=5e-4)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(where)
        for part in order.split(CONV_BATCH)[: len(x) // CONV_BATCH]:
            optimizer.zero_grad()
            F.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
        found.append(net)
    return tuple(found)


BENCHMARKS = [
    Benchmark(
        "64 small networks", "a plain PyTorch loop", small_networks, fitted, looped, weights, same,
        size={"e": 64}, small={"e": 3}, target=6.0, limit="products", work=_small_work, memory=3.0, pairs=3,
        axes={"e": tuple({"e": e} for e in (1, 4, 16, 64))},
    ),
    Benchmark(
        "4 wide networks", "a plain PyTorch loop", wide_networks, fitted, looped, weights, same,
        size={"e": 4, "width": 2048}, small={"e": 2, "width": 16}, share=0.5, limit="products", work=_wide_work,
        memory=8.0, pairs=3, axes={"width": tuple({"e": 4, "width": w} for w in (128, 512, 1024, 2048))},
    ),
    Benchmark(
        "3 ResNet-8", "a plain loop, channels-last", residual_networks, fitted_residual, looped_residual, weights, same,
        size={"e": 3, "n": 10_000}, small={"e": 2, "n": 256}, target=1.3, memory=8.0, pairs=3,
        axes={"e": tuple({"e": e, "n": 2_560} for e in (1, 3, 10))},
    ),
]  # fmt: skip
