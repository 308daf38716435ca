"""Pooled features of EfficientNet-Lite0: `features.embed` beside the loop that timm's documentation shows.

The peer is tuned as its users tune it: timm's own evaluation transform on PIL pictures, a DataLoader of batches of 32
with two worker processes, evaluation mode, no gradients, float32. Both start from the same encoded photos. Ours stores
what it finds in an empty folder each time.
"""

import io
import os
import shutil
import tempfile

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.pair import Benchmark, scratch
from studybook import data, features, models


class Encoded(Dataset):
    """Encoded pictures under timm's evaluation transform."""

    def __init__(self, files, prepare):
        self.files, self.prepare = files, prepare

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.prepare(Image.open(io.BytesIO(self.files[i])).convert("RGB"))


def photos(n: int) -> tuple:
    """The network, and `n` photos: ImageNet's, repeated; where those are not here, scikit-learn's two."""
    folder = scratch()
    os.environ["STUDYBOOK_CACHE"] = str(folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    try:
        found = data.pictures("imagenet-samples", "test").files
    except FileNotFoundError:
        found = [path.read_bytes() for path in data.pictures("sample-photos").files]
    files = [found[i % len(found)] for i in range(n)]
    some = data.Pictures(files, torch.zeros(n, dtype=torch.int64), ("photo",), f"{n} photos")
    return models.backbone("tf_efficientnet_lite0.packaged"), some


def embedded(held: tuple) -> torch.Tensor:
    """As on a first call: nothing is stored yet."""
    shutil.rmtree(data.cache_folder() / "features", ignore_errors=True)
    return features.embed(*held).clone()


def by_timm(held: tuple) -> torch.Tensor:
    import timm

    net, some = held
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    found = []
    with torch.no_grad():
        for x in DataLoader(Encoded(some.files, prepare), batch_size=32, num_workers=2):
            found.append(net.forward_head(net.forward_features(x), pre_logits=True))
    return torch.cat(found)


def rows(_: object, found: torch.Tensor) -> np.ndarray:
    return found.numpy()


def near(ours: np.ndarray, theirs: np.ndarray) -> None:
    """bfloat16 moves a photo's features by about 4 % of their length."""
    worst = (np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)).max()
    if worst > 0.2:
        raise AssertionError(f"features differ by {worst:.3f} of their length, more than 0.2")


BENCHMARKS = [
    Benchmark(
        "embed, EfficientNet-Lite0", "a plain timm loop", photos, embedded, by_timm, rows, near,
        size={"n": 3_000}, small={"n": 8}, target=5.0, limit="decoding", work=lambda n: float(n), pairs=1,
        axes={"n": tuple({"n": n} for n in (30, 100, 300, 1_000))}, memory=10.0,
    ),
]  # fmt: skip


def main() -> None:
    """How much each precision moves the features of 1,000 photos, and how many its classifier then gets right.

    The photos come from ImageNet's training set, so that share is no test accuracy. `python -m benchmarks.features`
    """
    some = data.pictures("imagenet-samples", "test")
    net, many = models.backbone("tf_efficientnet_lite0.packaged"), features._WORTH
    repeated = [some.files[i % len(some.files)] for i in range(many)]
    compiled = some._replace(files=repeated, y=torch.arange(many) % len(some.files), fingerprint="repeated")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STUDYBOOK_CACHE"] = folder
        exact = features.embed(net, some, exact=True)
        share = {}
        for images, float32 in ((some, True), (some, False), (compiled, False)):
            name = features.precision(len(images.files), float32)
            found = features.embed(net, images, float32)[: len(some.files)]
            with torch.no_grad():
                share[name] = (net.get_classifier()(found).argmax(1) == some.y).float().mean().item()
            away = (found - exact).norm(dim=1) / exact.norm(dim=1)
            print(
                f"{name}: features moved by {away.mean():.3f} of their length, at most {away.max():.3f}; right on "
                f"training photos {share[name]:.3f} ({100 * (share[name] - next(iter(share.values()))):+.1f} points)"
            )


if __name__ == "__main__":
    main()
