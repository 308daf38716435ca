"""Activations of a network nobody trains: named layers of any network, pooled features of pretrained backbones.

Nothing here has gradients. `embed` streams pictures through a backbone and keeps what it found in the cache
(`STUDYBOOK_CACHE`), under a fingerprint of pictures, weights, preprocessing and precision.
"""

import contextlib
import copy
import difflib
import errno
import hashlib
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from studybook import data, ensemble

_FORMAT = 2  # of the stored features
_WORTH = 20_000  # pictures from which compiling (10 to 20 s, for a tenth to a fifth more a second) pays on a processor


class Plan(NamedTuple):
    """How `embed` computes: device, precision of the network, whether it is compiled, pictures at once."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool
    batch: int

    @property
    def precision(self) -> str:
        """What tells stored features of one precision from those of another."""
        return f"{self.device.type} {str(self.dtype).removeprefix('torch.')}{' compiled' * self.compiled}"


def record(
    model: nn.Module, x: Shaped[Tensor, "N ..."], layers: Sequence[str], batch: int = 256
) -> dict[str, Shaped[Tensor, "N ..."]]:
    """What the named layers of `model` put out for `x`: a dict from layer to activations (N, ...).

    Layers are called as in `model.named_modules()`; the model computes in evaluation mode, `batch` examples at a
    time, and is left as it was found, without hooks, also after an error. Raises ValueError for a layer that does
    not exist (nearest names offered), is not reached, is called more than once, or puts out no tensor whose first axis
    are the examples.
    """
    if isinstance(layers, str) or not layers or len(x) == 0 or batch < 1:
        raise ValueError(
            "record needs a list of at least one layer, one example and a batch of one, "
            f"got layers={layers!r}, {len(x)} examples, batch={batch}"
        )
    modules = dict(model.named_modules())
    for layer in layers:
        if layer not in modules or not layer:
            named = [name for name in modules if name]
            near = difflib.get_close_matches(layer, named, 4, 0.4) or named[:4]
            raise ValueError(f"no layer is called {layer!r}; the nearest of {len(modules) - 1} are {', '.join(near)}")
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    seen: dict[str, Any] = {}
    size = 0

    def hook(layer: str) -> Callable:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if layer in seen:
                raise ValueError(f"layer {layer!r} is called more than once in one pass; record another one")
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"layer {layer!r} puts out a {type(output).__name__}, not a tensor; record another one"
                )
            if output.ndim == 0 or len(output) != size:
                raise ValueError(
                    f"layer {layer!r} puts out {tuple(output.shape)} for {size} examples, which are not its first "
                    "axis; record another one"
                )
            seen[layer] = output.clone()  # later layers may write in place

        return keep

    training = {module: module.training for module in model.modules()}
    handles = [modules[layer].register_forward_hook(hook(layer)) for layer in parts]
    try:
        model.eval()
        with torch.no_grad():
            for some in x.split(batch):
                seen.clear()
                size = len(some)
                model(some)
                if missing := [layer for layer in parts if layer not in seen]:
                    raise ValueError(f"the pass did not reach the layers {missing}; record others")
                for layer in parts:
                    parts[layer].append(seen[layer])
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return {layer: torch.cat(found) for layer, found in parts.items()}


def embed(backbone: nn.Module, images: data.Images | data.Pictures, exact: bool = False) -> Float[Tensor, "N D"]:
    """Pooled features (N, D) of the layer before the classifier, with the backbone's own preprocessing.

    They are float32, on the device that the networks use (`ensemble.device`).

    `backbone` is a network of `models.backbone`, or any of timm's that has pretrained weights; pictures of any size
    are resized, cropped and normalized as its configuration says. They are decoded while others are computed and
    written to disk batch by batch, so memory does not grow with N and a killed run goes on where it stopped.

    By default the network computes in bfloat16 where the hardware gains from it (float16 on graphics cards without
    bfloat16), channels last, batch norm folded into convolutions, compiled where that pays. That moves the features
    of EfficientNet-Lite0 by about 4 % of their length, and its top-1 accuracy on 1,000 photos by less than half a
    point (`python -m benchmarks.features` measures it again); `exact=True` computes in float32, uncompiled. Each
    precision is stored under its own key. Pictures are known by their set's fingerprint and number: who reorders or
    selects some gives the selection a fingerprint of its own.

    Raises ValueError for a network without timm's configuration or without pooling, images that are not uint8, or a
    damaged picture, OSError for a full disk.
    """
    files = images.files if isinstance(images, data.Pictures) else images.x
    if isinstance(files, Tensor) and files.dtype != torch.uint8:
        raise ValueError(
            f"embed prepares pictures itself and needs them as uint8, got {files.dtype}; pass them as loaded"
        )
    if len(files) == 0:
        raise ValueError("embed needs at least one picture, got none")
    if not getattr(backbone, "pretrained_cfg", None):
        raise ValueError(
            f"embed needs a timm network, which says how pictures are prepared; got {type(backbone).__name__} "
            "(take models.backbone, or features.record for layers of other networks)"
        )
    plan = _plan(len(files), exact)
    stored = _file(backbone, f"{images.fingerprint} {len(files)}", plan)
    if (found := _read(stored, len(files))) is not None:
        return found.to(plan.device)
    from filelock import FileLock

    stored.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(stored.with_suffix(".lock")):  # two processes that want the same features compute them once
        if (found := _read(stored, len(files))) is None:
            _stream(backbone, files, plan, stored)
            found = _read(stored, len(files))
    return found.to(plan.device)


def prepared(backbone: nn.Module, images: data.Images | data.Pictures) -> Float[Tensor, "N C H W"]:
    """Pictures as `backbone` wants them: resized, cropped and normalized as its configuration in timm says.

    All at once, for networks that somebody looks into; `embed` streams. Raises ValueError for a damaged picture.
    """
    from PIL import Image
    from timm.data import create_transform

    about = _preparation(backbone)
    transform, mode = create_transform(**about, is_training=False), "RGB" if about["input_size"][0] == 3 else "L"
    files = images.files if isinstance(images, data.Pictures) else images.x
    found = []
    for file in files:
        pixels = data.pixels(file)
        picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
        found.append(transform(picture.convert(mode)))
    return torch.stack(found)


def precision(count: int, exact: bool = False) -> str:
    """How `embed` computes the features of `count` pictures on this machine: device, precision, compiled or not."""
    return _plan(count, exact).precision


def fingerprint(model: nn.Module) -> str:
    """What identifies the weights and buffers of `model`: 16 hexadecimal digits of their content."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _plan(count: int, exact: bool) -> Plan:
    device = ensemble.device()
    if device.type == "cuda":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return Plan(device, torch.float32 if exact else half, False, 256)
    gains = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    compiled = gains and not exact and count >= _WORTH and shutil.which(os.environ.get("CXX", "g++")) is not None
    return Plan(device, torch.bfloat16 if gains and not exact else torch.float32, compiled, 8)


def _file(backbone: nn.Module, pictures: str, plan: Plan) -> Path:
    import timm

    about = {
        "pictures": pictures,
        "weights": fingerprint(backbone),
        "network": hashlib.sha256(repr(backbone).encode()).hexdigest(),
        "input": {name: str(value) for name, value in _preparation(backbone).items()},
        "precision": plan.precision,
        "versions": [torch.__version__, timm.__version__, _FORMAT],
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    return data.cache_folder() / "features" / f"{key}.npy"


def _preparation(backbone: nn.Module) -> Mapping[str, Any]:
    from timm.data import resolve_model_data_config

    return resolve_model_data_config(backbone)


def _read(stored: Path, count: int) -> Tensor | None:
    """Stored features, mapped from disk; a damaged file is removed, since it can be computed again."""
    if not stored.exists():
        return None
    try:
        array = np.load(stored, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        stored.unlink()
        return None
    if array.ndim != 2 or len(array) != count:
        stored.unlink()
        return None
    return torch.from_numpy(array)


def _stream(backbone: nn.Module, files: Any, plan: Plan, stored: Path) -> None:
    """Writes features batch by batch behind an NPY header, going on after the rows that an earlier run has written."""
    from tqdm import tqdm

    partial = stored.with_suffix(".part")
    with _threads(plan) as pool:
        pooled = _Network(backbone, plan)
        first = pooled(files[: plan.batch])  # also compiles
        if first.ndim != 2:
            raise ValueError(f"embed needs a backbone that pools, but this one puts out {first.shape[1:]} a picture")
        layout = {"descr": "<f4", "fortran_order": False, "shape": (len(files), first.shape[1])}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, layout)
        head, row = header.getvalue(), 4 * first.shape[1]
        done = 0
        if partial.exists() and _starts_with(partial, head):
            done = (partial.stat().st_size - len(head)) // row // plan.batch * plan.batch
        starts = range(done, len(files), plan.batch)
        try:
            with (
                partial.open("r+b" if done else "wb") as out,
                tqdm(total=len(files), initial=done, desc="embedding", unit="img", delay=2, leave=False) as bar,
            ):
                out.write(head)
                out.truncate(len(head) + done * row)
                out.seek(len(head) + done * row)
                for found in _ahead(pool, pooled, (files[i : i + plan.batch] for i in starts)):
                    out.write(found.tobytes())
                    bar.update(len(found))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise OSError(
                f"features cannot be stored in {stored.parent} ({error.strerror}); make room or set STUDYBOOK_CACHE"
            ) from error
    partial.replace(stored)


def _starts_with(file: Path, head: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(head)) == head


@contextlib.contextmanager
def _threads(plan: Plan) -> Iterator[ThreadPoolExecutor]:
    """Threads for batches. On a processor each computes on one core: nobody waits for others at every operation, and
    the numbers do not depend on how many there are. On a graphics card they decode.
    """
    before = torch.get_num_threads()
    alone = plan.device.type == "cpu"
    if alone:
        torch.set_num_threads(1)
    pool = ThreadPoolExecutor(
        before if alone else os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _ahead(pool: ThreadPoolExecutor, work: "_Network", batches: Iterator[Any]) -> Iterator[np.ndarray]:
    """Features of the batches in order, while the next ones are under way."""
    whole = work.plan.device.type == "cpu"
    ahead = pool._max_workers + 2
    waiting = deque(pool.submit(work if whole else work.prepared, some) for some in islice(batches, ahead))
    while waiting:
        ready = waiting.popleft().result()
        waiting.extend(pool.submit(work if whole else work.prepared, some) for some in islice(batches, 1))
        yield ready if whole else work.computed(ready)


class _Pooled(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)


class _Network:
    """A copy of the backbone up to its pooled features, in the plan's precision, with its preparation of pictures."""

    def __init__(self, backbone: nn.Module, plan: Plan) -> None:
        from timm.data import create_transform

        self.plan = plan
        network = _Pooled(copy.deepcopy(backbone)).eval().requires_grad_(False)
        if plan.dtype != torch.float32:
            size = _preparation(backbone)["input_size"]
            network = _folded(network, torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))
        network = network.to(plan.device, plan.dtype, memory_format=torch.channels_last)
        self.network = torch.compile(network) if plan.compiled else network
        about = _preparation(backbone)
        self.mode = "RGB" if about["input_size"][0] == 3 else "L"
        self.prepare = create_transform(**about, is_training=False, use_prefetcher=True)  # normalized on the device
        self.mean, self.std = (
            255 * torch.tensor(about[part], device=plan.device)[:, None, None] for part in ("mean", "std")
        )

    def __call__(self, files: Any) -> np.ndarray:
        return self.computed(self.prepared(files))

    def prepared(self, files: Any) -> np.ndarray:
        """Pictures decoded, resized and cropped as timm does it: uint8 (n, C, H, W)."""
        from PIL import Image

        out = []
        for file in files:
            pixels = data.pixels(file)
            picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
            out.append(np.asarray(self.prepare(picture.convert(self.mode))))
        return np.stack(out)

    def computed(self, batch: np.ndarray) -> np.ndarray:
        """Features (n, D) of prepared pictures; a short batch is filled up, so that all are computed alike."""
        fill = self.plan.batch - len(batch)
        filled = np.concatenate([batch, np.repeat(batch[-1:], fill, 0)]) if fill else batch
        x = torch.from_numpy(filled).to(self.plan.device)
        with torch.no_grad(), _mode(self.plan):
            x = ((x - self.mean) / self.std).to(self.plan.dtype, memory_format=torch.channels_last)
            return self.network(x).float().cpu().numpy()[: len(batch)]


def _folded(network: nn.Module, x: Tensor) -> nn.Module:
    """The same network with each batch norm that directly follows a convolution folded into it, in float32.

    Done before weights are rounded to half precision, it loses less than rounding both, and nothing is left to compute
    of a norm but the activation that timm's have. Which follows which is seen in a pass over `x`; if the folded
    network does not give the same, the network comes back as it was.
    """
    from timm.layers import BatchNormAct2d

    folded = copy.deepcopy(network)
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}
    pairs: list[tuple[Any, Any]] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = module, output
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and id(inputs[0]) in outputs and module.affine:
            pairs.append((outputs[id(inputs[0])][0], module))

    handles = [module.register_forward_hook(look) for module in folded.modules()]
    with torch.no_grad():
        before = folded(x)
        for handle in handles:
            handle.remove()
        for convolution, norm in pairs:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            offset = 0 if convolution.bias is None else convolution.bias
            bias = norm.bias + (offset - norm.running_mean) * scale
            convolution.weight.mul_(scale[:, None, None, None])
            convolution.bias = nn.Parameter(bias, requires_grad=False)
        left = {
            norm: nn.Sequential(norm.drop, norm.act) if type(norm) is BatchNormAct2d else nn.Identity()
            for _, norm in pairs
        }
        for module in [*folded.modules()]:
            for name, inner in module.named_children():
                if inner in left:
                    setattr(module, name, left[inner])
        same = torch.allclose(folded(x), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    return folded if same else network


def _mode(plan: Plan) -> contextlib.AbstractContextManager:
    """Weights as constants for the compiler; whole float32 products on graphics cards, which else shorten them."""
    if plan.compiled:
        from torch._inductor import config

        return config.patch(freezing=True)
    if plan.device.type == "cuda" and plan.dtype == torch.float32:
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return contextlib.nullcontext()
