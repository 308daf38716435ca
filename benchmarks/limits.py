"""What this machine can do at best: products, memory, decoding. Measured before anything else."""

import functools
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from studybook import ensemble

SIDE = 3072  # of the matrices
BYTES = 2**30  # of the array that is read: larger than a cache
SECONDS = 2.0  # for each measurement


def products(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of `torch.mm` (a multiplication and an addition are two)."""
    where = ensemble.device()
    a, b = torch.randn(2, SIDE, SIDE, device=where).to(dtype)
    out = torch.empty_like(a)
    return 2 * SIDE**3 / _best(lambda: torch.mm(a, b, out=out))


def double_products() -> float:
    """The same in float64."""
    return products(torch.float64)


def bandwidth() -> float:
    """Bytes a second that a sum over an array reads."""
    x = torch.ones(BYTES // 4, device=ensemble.device())
    return BYTES / _best(lambda: x.sum().item())


def decoding() -> float:
    """JPEG pictures of 500 x 375 that Pillow decodes a second, one thread on each core."""
    import sklearn.datasets
    from PIL import Image

    path = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    with Image.open(path) as picture:
        held = io.BytesIO()
        picture.resize((500, 375)).save(held, "JPEG", quality=90)

    def decode(_: int) -> None:
        Image.open(io.BytesIO(held.getvalue())).convert("RGB")

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return 200 / _best(lambda: list(pool.map(decode, range(200))))


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of many runs."""
    run()
    found, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(found) < 3:
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


RATES = {  # name -> how it is measured, what one unit of it is, units in one that people write
    "products": (products, "GFLOP/s", 1e9),
    "double products": (double_products, "GFLOP/s", 1e9),
    "bandwidth": (bandwidth, "GB/s", 1e9),
    "decoding": (decoding, "pictures/s", 1.0),
}


@functools.cache
def rate(name: str) -> float:
    """One of RATES, measured once in this process."""
    return RATES[name][0]()
