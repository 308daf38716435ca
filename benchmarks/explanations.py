"""Integrated gradients against captum's, the same network, photos and steps."""

import numpy as np
import torch

from benchmarks.features import photos
from benchmarks.pair import Benchmark
from studybook import explanations, features

BATCH = 16  # captum's least is the number of photos it is given, and 100 at once take it 9 GB and longer
NEAR = 2e-2  # of their length: in float32 each is up to 7e-3 from the same in float64, since slopes of rectifiers jump


def prepared(n: int, steps: int) -> tuple:
    """The network, its photos as it wants them, their classes as it sees them, and the number of steps."""
    network, pictures = photos(n)[:2]
    x = features.prepared(network, pictures)
    with torch.no_grad():
        target = torch.cat([network(some).argmax(1) for some in x.split(16)])
    return network, x, target, steps


def ours(data: tuple) -> torch.Tensor:
    network, x, target, steps = data
    return explanations.integrated_gradients(network, x, target, steps=steps)


def by_captum(data: tuple) -> torch.Tensor:
    from captum.attr import IntegratedGradients

    network, x, target, steps = data
    method, parts = IntegratedGradients(network), zip(x.split(BATCH), target.split(BATCH), strict=True)
    return torch.cat(
        [method.attribute(some, target=of, n_steps=steps, internal_batch_size=BATCH) for some, of in parts]
    )


def summed(_: object, given: torch.Tensor) -> np.ndarray:
    return given.sum(1).float().numpy()


def near(ours: np.ndarray, theirs: np.ndarray) -> None:
    off = np.linalg.norm((ours - theirs).reshape(len(ours), -1), axis=1)
    if (worst := (off / np.linalg.norm(theirs.reshape(len(ours), -1), axis=1)).max()) > NEAR:
        raise AssertionError(f"the attributions differ by {worst:.1e} of their length")


BENCHMARKS = [
    Benchmark(
        "integrated gradients", "captum", prepared, ours, by_captum, summed, near,
        size={"n": 100, "steps": 64}, small={"n": 2, "steps": 4}, target=1.5,
        axes={"N": tuple({"n": n, "steps": 16} for n in (4, 16, 64))}, pairs=3, memory=20, room=2_000,
    ),
]  # fmt: skip
