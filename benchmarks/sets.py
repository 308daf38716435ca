"""Reading an image set: the decoded cache against `datasets`' own iteration over the same file."""

import io
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.pair import Benchmark, scratch
from studybook import data

CIFAR10 = 50_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCH = 1_000
FOLDER = os.environ.get("STUDYBOOK_DATA")  # as it was before generated pictures took its place


def stored(n: int) -> tuple[Path, object]:
    """CIFAR-10's training set, or where `n` is smaller as many generated pictures: its name, and as `datasets` has it.

    Both have read it once: what is timed is every reading but the first.
    """
    folder = scratch()
    os.environ["STUDYBOOK_CACHE"] = str(folder / "studybook")
    if n == CIFAR10:
        if FOLDER is None:
            os.environ.pop("STUDYBOOK_DATA", None)
        else:
            os.environ["STUDYBOOK_DATA"] = FOLDER
        file = data._parquet("cifar10", "train")
    else:
        os.environ["STUDYBOOK_DATA"] = str(folder)
        _generate(file := folder / "cifar10" / "train.parquet", n)
    data._recent.clear()
    data.load("cifar10", "train")
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(folder / "datasets"))
    return file, rows.with_format("numpy")


def _generate(file: Path, n: int) -> None:
    """`n` pictures of CIFAR-10's size, encoded as PNG, in the layout of the hub's files."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    cells = []
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
        coarse.save(held := io.BytesIO(), "PNG")
        cells.append({"bytes": held.getvalue(), "path": f"{i}.png"})
    features = {"img": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    table = pyarrow.table({"img": cells, "label": [i % 10 for i in range(n)]})
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table.replace_schema_metadata(about), file)


def ours(_: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """As a fresh process loads it: what this one remembers is forgotten."""
    data._recent.clear()
    data._sha256_once.cache_clear()
    found = data.load("cifar10", "train")
    return found.x.clone(), found.y  # every byte is read


def iterated(held: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """Batches as the documentation has them, decoded to arrays, joined to one tensor."""
    parts = [(part["img"], part["label"]) for part in held[1].iter(batch_size=BATCH)]
    images, labels = (np.concatenate(some) for some in zip(*parts, strict=True))
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)


def sums(_: tuple, found: tuple) -> np.ndarray:
    """Sum of each picture's pixels by channel, and its label."""
    x, y = found
    return np.concatenate([x.sum((2, 3), dtype=torch.int64).numpy(), y.numpy()[:, None]], 1)


def same(one: np.ndarray, other: np.ndarray) -> None:
    if not np.array_equal(one, other):
        raise AssertionError("the cache and datasets give different pictures or labels")


BENCHMARKS = [
    Benchmark(
        "CIFAR-10 from the cache", "datasets", stored, ours, iterated, sums, same,
        size={"n": CIFAR10}, small={"n": 100}, target=20.0, limit="bandwidth", work=lambda n: n * 3072, memory=2.5,
    ),
]  # fmt: skip
