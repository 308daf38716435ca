"""Random views of images, a whole batch at a time on its own device, each with a random state of its own.

What is drawn for an image depends on its seed alone: not on its place in the batch, on its companions or on the device.
So a view can be made again from (image, seed), and any batch of it is the same as its members one by one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601)
_DRAWS = 12


class How(NamedTuple):
    """What a view may change; the defaults change nothing.

    - `area`: smallest share of the image that a crop keeps before it is resized to the whole.
    - `stretch`: largest ratio of its sides, either way, when it is cropped.
    - `shift`: largest move in pixels each way, whole pixels, zeros coming in.
    - `degrees`: largest rotation each way, bilinear, zeros coming in.
    - `flip`: probability of mirroring left and right.
    - `brightness`, `contrast`, `saturation`: largest relative change each way (0.4: factors from 0.6 to 1.4).
    - `grey`: probability of losing the colors.
    """

    area: float = 1.0
    stretch: float = 1.0
    shift: int = 0
    degrees: float = 0.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0


def uniform(seeds: Int[Tensor, " N"], count: int) -> Float[Tensor, "N count"]:
    """Numbers in [0, 1), `count` for every seed, each a function of its seed and its column alone.

    The generator counts instead of remembering: column k mixes the seed's k-th state (SplitMix64) in 64-bit integers,
    so that all devices agree to the last bit.

    Reference: Steele, Lea, Flood (2014), Fast Splittable Pseudorandom Number Generators.
    """
    steps = torch.arange(1, count + 1, device=seeds.device)
    state = _mix(seeds.long()[:, None]) + steps * _signed(0x9E3779B97F4A7C15)
    return (_mix(state) >> 40 & 0xFFFFFF).float() / 2**24


def view(x: Float[Tensor, "N C H W"], seeds: Int[Tensor, " N"], how: How) -> Float[Tensor, "N C H W"]:
    """One random view of every image in [0, 1]: cropped, turned, moved and mirrored in one resampling, then colored.

    Crops follow Szegedy et al. (2015): an area uniform from `area` to 1 and the logarithm of the ratio of the sides
    uniform, shortened where they do not fit, anywhere in the image. Colors change in the order brightness, contrast,
    saturation, grey. Raises ValueError for seeds that are not one per image, settings out of range, and saturation or
    grey for images without three channels.
    """
    _check(x, seeds, how)
    u = uniform(seeds, _DRAWS).to(x.device)
    if how._replace(brightness=0.0, contrast=0.0, saturation=0.0, grey=0.0) != How():
        x = _resampled(x, u, how)
    return _colored(x, u, how)


def rotated(x: Float[Tensor, "N C H W"], degrees: float | Float[Tensor, " N"]) -> Float[Tensor, "N C H W"]:
    """Images turned counterclockwise by an angle, or by one each, bilinear, zeros coming in."""
    angle = torch.as_tensor(degrees, dtype=x.dtype, device=x.device).expand(len(x))
    whole = x.new_zeros(len(x), 4)
    whole[:, 2:] = 1
    return _sampled(x, whole, angle, x.new_zeros(len(x), 2), x.new_zeros(len(x), dtype=torch.bool), clamp=False)


def pairs(how: How) -> Callable[[Tensor, torch.Generator], Tensor]:
    """For `ensemble.fit(augment=...)`: two views of every image, (B, 2 C, H, W), the second behind the first."""

    def two(x: Tensor, generator: torch.Generator) -> Tensor:
        seeds = torch.randint(0, 2**62, (2, len(x)), generator=generator).to(x.device)
        return torch.cat([view(x, some, how) for some in seeds], 1)

    return two


def once(how: How) -> Callable[[Tensor, torch.Generator], Tensor]:
    """For `ensemble.fit(augment=...)`: one view of every image."""

    def one(x: Tensor, generator: torch.Generator) -> Tensor:
        return view(x, torch.randint(0, 2**62, (len(x),), generator=generator).to(x.device), how)

    return one


def _resampled(x: Tensor, u: Tensor, how: How) -> Tensor:
    height, width = x.shape[-2:]
    area = how.area + (1 - how.area) * u[:, 0]
    ratio = torch.exp((2 * u[:, 1] - 1) * math.log(how.stretch))
    h, w = ((area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1))
    box = torch.stack([u[:, 2] * (1 - h), u[:, 3] * (1 - w), h, w], 1).to(x.dtype)  # top, left, height, width
    angle = (2 * u[:, 4] - 1).to(x.dtype) * how.degrees
    steps = (u[:, 5:7] * (2 * how.shift + 1)).floor() - how.shift
    move = steps.to(x.dtype) / torch.tensor([height, width], dtype=x.dtype, device=x.device)
    return _sampled(x, box, angle, move, u[:, 7] < how.flip, clamp=not (how.degrees or how.shift))


def _sampled(x: Tensor, box: Tensor, angle: Tensor, move: Tensor, mirrored: Tensor, clamp: bool) -> Tensor:
    """`box` (N, 4) in shares of the image becomes the whole image; with `clamp` nothing outside it is looked at."""
    height, width = x.shape[-2:]
    rows = (torch.arange(height, dtype=x.dtype, device=x.device) + 0.5) / height
    columns = (torch.arange(width, dtype=x.dtype, device=x.device) + 0.5) / width
    down, right = torch.meshgrid(rows, columns, indexing="ij")
    down, right = down - move[:, 0, None, None], right - move[:, 1, None, None]  # (N, H, W)
    right = torch.where(mirrored[:, None, None], 1 - right, right)
    turn = angle * math.pi / 180
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    y, z = (down - 0.5) * height, (right - 0.5) * width  # pixels from the middle
    down, right = (cos * y + sin * z) / height + 0.5, (cos * z - sin * y) / width + 0.5
    if clamp:  # as if the crop were cut out before it is resized
        half = torch.tensor([0.5 / height, 0.5 / width], dtype=x.dtype, device=x.device)
        edge = (half / box[:, 2:])[:, :, None, None]  # half a pixel, in shares of the crop
        down = torch.maximum(torch.minimum(down, 1 - edge[:, 0]), edge[:, 0])
        right = torch.maximum(torch.minimum(right, 1 - edge[:, 1]), edge[:, 1])
    down, right = (box[:, k, None, None] + box[:, k + 2, None, None] * part for k, part in enumerate((down, right)))
    grid = torch.stack([2 * right - 1, 2 * down - 1], -1)
    return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def _colored(x: Tensor, u: Tensor, how: How) -> Tensor:
    def factor(column: int, most: float) -> Tensor:
        return (1 + (2 * u[:, column] - 1) * most)[:, None, None, None].to(x.dtype)

    if how.brightness:
        x = (x * factor(8, how.brightness)).clamp(0, 1)
    if how.contrast:
        x = _blend(x, _grey(x).mean((-2, -1), keepdim=True), factor(9, how.contrast))
    if how.saturation:
        x = _blend(x, _grey(x), factor(10, how.saturation))
    if how.grey:
        x = torch.where((u[:, 11] < how.grey)[:, None, None, None], _grey(x), x)
    return x


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + factor * (x - other)).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x
    return (x * torch.tensor(_WEIGHTS, dtype=x.dtype, device=x.device)[:, None, None]).sum(1, keepdim=True)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64 that wrap around; shifts bring in zeros."""
    z = (z ^ (z >> 30 & 2**34 - 1)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27 & 2**37 - 1)) * _signed(0x94D049BB133111EB)
    return z ^ (z >> 31 & 2**33 - 1)


def _check(x: Tensor, seeds: Tensor, how: How) -> None:
    if len(seeds) != len(x):
        raise ValueError(f"seeds must be one per image, {len(x)}, got {len(seeds)}")
    if not 0 < how.area <= 1 or how.stretch < 1 or how.shift < 0 or how.degrees < 0:
        raise ValueError(f"area must be in (0, 1], stretch 1 or more, shift and degrees 0 or more, got {how}")
    shares = (how.flip, how.grey, how.brightness, how.contrast, how.saturation)
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"flip, grey, brightness, contrast and saturation must be from 0 to 1, got {how}")
    if (how.saturation or how.grey) and x.shape[1] != 3:
        raise ValueError(f"saturation and grey need images with 3 channels, got {x.shape[1]}")
