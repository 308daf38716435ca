"""Pooled features of EfficientNet-Lite0: `features.embed` beside the loop that timm's documentation shows.

The peer is tuned as its users tune it: timm's own evaluation transform on PIL pictures, a DataLoader of batches of 32
with two worker processes, evaluation mode, no gradients, float32. Both start from the same encoded photos. The network
is compiled into an empty cache, so the compiler's seconds count; features are stored in a temporary folder.

Then the same classifier on the features of each precision: photos out of 1,000 that it gets right. The photos come from
ImageNet's training set, so that share is no test accuracy.
"""

import argparse
import functools
import io
import os
import shutil
import tempfile
import time
from pathlib import Path

import ab
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from studybook import data, features, models

SUBSET = 300  # photos for the peer


class Encoded(Dataset):
    """Encoded pictures under timm's evaluation transform."""

    def __init__(self, files, prepare):
        self.files, self.prepare = files, prepare

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.prepare(Image.open(io.BytesIO(self.files[i])).convert("RGB"))


def by_timm(net, files):
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    found = []
    with torch.no_grad():
        for x in DataLoader(Encoded(files, prepare), batch_size=32, num_workers=2):
            found.append(net.forward_head(net.forward_features(x), pre_logits=True))
    return torch.cat(found)


def embedded(net, photos, exact=False):
    """`embed` as on its first call: nothing is stored yet."""
    shutil.rmtree(data.cache_folder() / "features", ignore_errors=True)
    return features.embed(net, photos, exact).clone()


def away(found, exact):
    """How far each row was moved, as a share of its length."""
    return (found - exact).norm(dim=1) / exact.norm(dim=1)


def near(within, ours, peer):
    if (worst := away(ours, peer).max().item()) > within:
        raise ValueError(f"features differ by {worst:.3f} of their length, more than {within}")


def timed(run):
    """What `run` gives, and its seconds."""
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000, help="photos to embed, the 1,000 repeated (10000)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side on 300 photos (3)")
    options = parser.parse_args()
    if options.pictures < 1000 or options.pairs < 1:
        parser.error("--pictures must be at least 1000, since top-1 is of 1,000 photos, and --pairs at least 1")
    try:
        samples = data.pictures("imagenet-samples", "test")
    except FileNotFoundError as error:
        parser.exit(1, f"{error}\n")
    net = models.backbone("tf_efficientnet_lite0.packaged")
    repeated = [samples.files[i % 1000] for i in range(options.pictures)]
    many = samples._replace(files=repeated, y=torch.arange(options.pictures) % 1000, fingerprint="repeated")
    few = samples._replace(files=samples.files[:SUBSET], y=samples.y[:SUBSET], fingerprint="few")
    precision = features._plan(len(repeated), exact=False).precision
    print(
        f"{features.ensemble.device()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start"
    )

    print(ab.HEADER)
    for name, exact, within in (("exact", True, 1e-3), (features._plan(SUBSET, False).precision, False, 0.2)):
        ours, same = functools.partial(embedded, net, few, exact), functools.partial(near, within)
        times = ab.compare(ours, lambda: by_timm(net, few.files), same, options.pairs, name)
        print(times.row(f"{SUBSET} photos, {name}"))
    found, seconds = timed(lambda: embedded(net, many))
    peer = 1000 / timed(lambda: by_timm(net, samples.files))[1]
    ours = options.pictures / seconds
    print(f"{options.pictures} photos, {precision}, compile time included: {ours:.0f} images/s")
    print(f"timm's loop on 1,000 of them: {peer:.0f} images/s; ratio {ours / peer:.2f}x")

    exact = embedded(net, samples, exact=True)
    plain = embedded(net, samples)
    right = {}
    for name, rows in (("exact", exact), (features._plan(1000, False).precision, plain), (precision, found[:1000])):
        with torch.no_grad():
            right[name] = (net.get_classifier()(rows).argmax(1) == samples.y).float().mean().item()
        points, moved = 100 * (right[name] - right["exact"]), away(rows, exact)
        print(f"right on training photos of ImageNet: {right[name]:.3f} ({points:+.1f} points), {name}; ", end="")
        print(f"features moved by {moved.mean():.3f} of their length, at most {moved.max():.3f}")
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STUDYBOOK_CACHE"] = folder
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder, "compiled"))
        main()
