"""Measurements that others have published: accuracies of many models, their predictions, people's votes.

A set is one or several small files (`files`), which `table` and `tensor` read. They are looked for in
`STUDYBOOK_DATA`, then fetched from their authors' repository at a pinned commit, once. Either way their checksum must
be the pinned one, so a set never changes under a study. `published.json` beside this lists all of them.

- `imagenet-testbed`: top-1 accuracy of 338 ImageNet models, 200 of them under 206 to 213 conditions, the others (most
  were trained on parts of ImageNet) under two dozen. Reference: Taori and others (2020), Measuring Robustness to
  Natural Distribution Shifts in Image Classification.
- `timm-results`: top-1 and top-5 of about 1,500 of timm's models on ImageNet, ReaL labels, V2, A, R and Sketch.
- `ssl-risk`: risk components and hyper-parameters of 169 self-supervised models. Reference: Dubois, Hashimoto, Liang
  (2023), Evaluating Self-Supervised Learning via Risk Decomposition.
- `cifar10.1`: predictions of 30 classifiers for CIFAR-10's test set and for CIFAR-10.1, v4 and v6, and the labels of
  these. Reference: Recht and others (2019), Do ImageNet Classifiers Generalize to ImageNet?
- `cifar10h`: how many people chose each class for each photo of CIFAR-10's test set. Reference: Peterson and others
  (2019), Human Uncertainty Makes Classification More Robust.
- `label-errors`: test labels of CIFAR-10 and MNIST, cross-validated probabilities, and people's verdicts on suspected
  errors. Reference: Northcutt, Athalye, Mueller (2021), Pervasive Label Errors in Test Sets.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from studybook import data as images

if TYPE_CHECKING:
    import pandas as pd

_RAW = "https://raw.githubusercontent.com"


def names() -> list[str]:
    """The sets that there are."""
    return list(_sets())


def files(name: str) -> list[str]:
    """The files of the set `name`; ValueError for a name that does not exist."""
    if name not in _sets():
        raise ValueError(f"no published set is called {name!r}; there are {', '.join(_sets())}")
    return list(_sets()[name]["files"])


def table(name: str, file: str = "", **options: Any) -> "pd.DataFrame":
    """One file of the set `name` as a data frame, read from CSV or JSON with pandas' own `options`.

    `file` may be left out where the set has only one. Raises ValueError for a name that does not exist or a damaged
    file, and FileNotFoundError, naming every place looked at, for a set that is not here.
    """
    import pandas as pd

    found = _found(name, file)
    return (pd.read_json if found.suffix == ".json" else pd.read_csv)(found, **options)


def tensor(name: str, file: str = "") -> Tensor:
    """One file of the set `name` as a tensor, read from NPY or a list in JSON; raises as `table` does."""
    found = _found(name, file)
    if found.suffix == ".json":
        return torch.tensor(json.loads(found.read_text()))
    return torch.from_numpy(np.load(found, allow_pickle=False))


def fingerprint(name: str) -> str:
    """What identifies the bytes of all files of the set `name`: 16 hexadecimal digits. Raises as `table` does."""
    for file in files(name):
        _found(name, file)
    pinned = "".join(about["sha256"] for about in _sets()[name]["files"].values())
    return hashlib.sha256(pinned.encode()).hexdigest()[:16]


def mark(name: str) -> str:
    """The fingerprint of a published set or of one of `data`'s image sets, whichever `name` is."""
    return fingerprint(name) if name in _sets() else images.fingerprint(name)


@functools.cache
def _sets() -> Mapping[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def _found(name: str, file: str) -> Path:
    """The file's place here, with the bytes that were pinned."""
    there = files(name)
    if not file and len(there) == 1:
        (file,) = there
    if file not in there:
        listed = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
        raise ValueError(f"the published set {name!r} has no file {file!r}; it has {listed}")
    about = _sets()[name]["files"][file]
    looked = "STUDYBOOK_DATA is not set"
    if folder := os.environ.get("STUDYBOOK_DATA"):
        local = Path(folder).expanduser() / about["local"]
        if local.exists():
            return _checked(local, about["sha256"])
        looked = f"no file {local}"
    return _fetched(name, file, about, looked)


def _fetched(name: str, file: str, about: Mapping[str, str], looked: str) -> Path:
    target = images.cache_folder() / "published" / about["local"]
    if target.exists():
        with contextlib.suppress(ValueError):  # a damaged copy of what can be fetched again
            return _checked(target, about["sha256"])
    missing = f"{file} of the published set {name} is not here: {looked}"
    remedy = f"put the file into a folder as {about['local']} and set STUDYBOOK_DATA to that folder"
    if "source" not in about:
        raise FileNotFoundError(
            f"{missing}, and no commit is known at which {_sets()[name]['home']} has this version; {remedy}"
        )
    import pooch

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        pooch.get_logger().setLevel("WARNING")
        pooch.retrieve(
            f"{_RAW}/{about['source']}", f"sha256:{about['sha256']}", target.name, target.parent, progressbar=True
        )
    except Exception as error:  # the network's client raises a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{missing}; and {_sets()[name]['home']} did not give it ({reason}). Connect to the network, or {remedy}"
        ) from error
    return target


def _checked(file: Path, pinned: str) -> Path:
    state = file.stat()
    if _sha256(file, state.st_size, state.st_mtime_ns) != pinned:
        raise ValueError(f"{file} is damaged or another version: its SHA-256 is not the pinned {pinned[:12]}...")
    return file


@functools.lru_cache(1024)
def _sha256(file: Path, size: int, changed: int) -> str:
    """Of the file's bytes, hashed again only when its `size` or time has changed."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
