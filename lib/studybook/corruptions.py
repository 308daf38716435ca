"""Common corruptions of photos: noise, blur, weather and digital defects at five severities each.

The fifteen of ImageNet-C, written to the definitions in the paper with the severities that its authors published for
photos of 224 x 224 pixels (`SEVERITIES`). What differs from theirs: frost needs photos of frost, and here it is a
made-up texture with the brightness, tint and contrast of their photos; snow and motion blur follow ImageMagick's motion
kernel without ImageMagick. Glass blur does what their code does, which copies a near pixel where an exchange was meant.

Reference: Hendrycks, Dietterich (2019), Benchmarking Neural Network Robustness to Common Corruptions and Perturbations;
constants from ImageNet-C/create_c/make_imagenet_c.py in their repository, hendrycks/robustness.
"""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_SIDE = 244  # of the elastic warp; the authors note that it was meant to be 224

SEVERITIES: Mapping[str, tuple] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # deviation
    "shot_noise": (60, 25, 12, 5, 3),  # photons of a white pixel
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # share of values
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),  # radius of the disk, softness of its edge
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),  # deviation, reach, rounds
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, deviation
    "zoom_blur": ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),  # how many zooms, step
    "snow": (  # mean, deviation, size and threshold of flakes; radius and deviation of their fall; share of the photo
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),  # weights of the photo and of the frost
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # weight of the fog, decay of its detail
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added to the value in HSV
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # what is left of the distance to the mean
    "elastic_transform": (  # displacement, its smoothness, shift of the corners
        (_SIDE * 2, _SIDE * 0.7, _SIDE * 0.1),
        (_SIDE * 2, _SIDE * 0.08, _SIDE * 0.2),
        (_SIDE * 0.05, _SIDE * 0.01, _SIDE * 0.02),
        (_SIDE * 0.07, _SIDE * 0.01, _SIDE * 0.02),
        (_SIDE * 0.12, _SIDE * 0.01, _SIDE * 0.02),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # what is left of the side
    "jpeg_compression": (25, 18, 15, 10, 7),  # quality
}


def corrupted(
    x: Float[Tensor, "*N C H W"], name: str, severity: int, generator: torch.Generator
) -> Float[Tensor, "*N C H W"]:
    """Photos `x` in [0, 1], grey or RGB, with the corruption `name` of `SEVERITIES`; severity 0 gives them back.

    The severities are meant for about 224 pixels a side and are not scaled to other sizes; 32 pixels are the least.
    Random parts come from `generator`, photo by photo in order, so a photo's noise depends on those before it. Raises
    ValueError for an unknown name or severity, values outside [0, 1], other channels or smaller photos.
    """
    if name not in SEVERITIES:
        raise ValueError(f"name must be one of {', '.join(SEVERITIES)}, got {name!r}")
    if severity not in range(6):
        raise ValueError(f"severity must be a whole number from 0 to 5, got severity={severity}")
    if x.ndim not in (3, 4) or x.shape[-3] not in (1, 3) or min(x.shape[-2:]) < 32:
        raise ValueError(
            "x must hold photos (C, H, W) or (N, C, H, W) of one or three channels and at least 32 pixels a side, "
            f"got {tuple(x.shape)}"
        )
    if not (x.is_floating_point() and x.numel() and float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ValueError(f"x must hold floats in [0, 1], got {x.dtype} from {float(x.min()):g} to {float(x.max()):g}")
    if severity == 0:
        return x
    photos = x if x.ndim == 4 else x[None]
    setting = SEVERITIES[name][severity - 1]
    made = [_MAKERS[name](photo, setting, generator).clamp(0, 1).to(x) for photo in photos]
    return torch.stack(made).reshape(x.shape)


SMALL: Mapping[str, tuple] = {  # as SEVERITIES, for photos of 32 x 32 pixels
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((6, 0.01), (11, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}


def corrupted_small(
    x: Float[Tensor, "*N C H W"], name: str, severity: int, generator: torch.Generator
) -> Float[Tensor, "*N C H W"]:
    """`corrupted` with the severities of `SMALL`, which are meant for 32 pixels a side: CIFAR-10-C's.

    Constants from ImageNet-C/create_c/make_cifar_c.py in the authors' repository. Raises as `corrupted` does.
    """
    if severity not in range(6):
        raise ValueError(f"severity must be a whole number from 0 to 5, got severity={severity}")
    x = corrupted(x, name, 0, generator)  # checked, and as it was
    if severity == 0:
        return x
    make = _defocus_small if name == "defocus_blur" else _MAKERS[name]
    setting = SMALL[name][severity - 1]
    made = [make(photo, setting, generator).clamp(0, 1).to(x) for photo in x.reshape(-1, *x.shape[-3:])]
    return torch.stack(made).reshape(x.shape)


def jpeg(x: Float[Tensor, "C H W"], quality: int) -> Float[Tensor, "C H W"]:
    """A photo in [0, 1] as it is after saving and reading it as JPEG; it is rounded down to 8 bits first."""
    from PIL import Image

    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=quality, optimize=True)
    return _values(Image.open(file), x)


# ---------------------------------------------------------------- noise


def _gaussian_noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return x + deviation * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, photons: int | float, generator: torch.Generator) -> Tensor:
    return torch.poisson(x * photons, generator=generator) / photons


def _impulse_noise(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    hit, white = torch.rand(2, *x.shape, generator=generator)
    return torch.where(hit < share, (white < 0.5).to(x), x)


# ---------------------------------------------------------------- blur


def _defocus_blur(x: Tensor, setting: tuple[int, int | float], generator: torch.Generator) -> Tensor:
    kernel = _disk(*setting)
    pad = kernel.shape[-1] // 2
    padded = F.pad(x[:, None], (pad,) * 4, mode="reflect")
    return F.conv2d(padded, kernel[None, None].to(x))[:, 0]


def _defocus_small(x: Tensor, setting: tuple[int | float, int | float], generator: torch.Generator) -> Tensor:
    """The same for circles within 3 x 3 pixels, whose radius need not be whole."""
    radius, softness = setting
    at = torch.arange(-1, 2).double()
    circle = (at[:, None] ** 2 + at**2 <= radius**2).double()
    edge = torch.exp(-(at**2) / (2 * softness**2))
    soft = torch.outer(edge, edge) / edge.sum() ** 2
    kernel = F.conv2d((circle / circle.sum())[None, None], soft[None, None], padding=2)
    return F.conv2d(F.pad(x[:, None], (2,) * 4, mode="reflect"), kernel.to(x))[:, 0]


def _disk(radius: int, softness: float) -> Tensor:
    """A filled circle of sum 1 whose edge is smoothed by a Gaussian of three (wide circles: five) taps a side."""
    from scipy.ndimage import correlate1d

    half, taps = (8, 1) if radius <= 8 else (radius, 2)
    at = torch.arange(-half, half + 1)
    circle = (at[:, None] ** 2 + at**2 <= radius**2).double()
    weights = torch.exp(-(torch.arange(-taps, taps + 1).double() ** 2) / (2 * softness**2))
    weights = (weights / weights.sum()).numpy()
    soft = (circle / circle.sum()).numpy()
    for axis in (0, 1):
        soft = correlate1d(soft, weights, axis, mode="mirror")
    return torch.from_numpy(soft)


def _glass_blur(x: Tensor, setting: tuple[int | float, int, int], generator: torch.Generator) -> Tensor:
    """Blurred, each pixel replaced by a near one, from the last to the first, blurred again.

    The authors' line exchanges two rows of an array by views of them, which copies one onto the other.
    """
    deviation, reach, rounds = setting
    x = (_smoothed(x, deviation) * 255).floor() / 255
    height, width = x.shape[-2:]
    at = list(range(height * width))
    for _ in range(rounds):
        moves = torch.randint(-reach, reach, (2, height, width), generator=generator)
        moves = (moves[0] * width + moves[1]).flatten().tolist()
        for row in range(height - reach, reach, -1):
            for pixel in range(row * width + width - reach, row * width + reach, -1):
                at[pixel] = at[pixel + moves[pixel]]
    return _smoothed(x.flatten(1)[:, at].reshape(x.shape), deviation)


def _smoothed(x: Tensor, deviation: int | float, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """The last two axes through a Gaussian."""
    from scipy.ndimage import gaussian_filter

    sigma = (0,) * (x.ndim - 2) + (deviation, deviation)
    return torch.from_numpy(gaussian_filter(x.numpy(), sigma, mode=mode, truncate=truncate))


def _motion_blur(x: Tensor, setting: tuple[int, int | float], generator: torch.Generator) -> Tensor:
    return _moved(x, *setting, angle=_uniform(-45, 45, generator))


def _moved(x: Tensor, radius: int, deviation: int | float, angle: float) -> Tensor:
    """Half a Gaussian along a line of 2 * radius + 1 pixels, edges repeated; the angle is in degrees."""
    steps = torch.arange(2 * radius + 1, dtype=torch.float64)
    weights = torch.exp(-(steps**2) / (2 * deviation**2))
    weights = weights / weights.sum()
    turn = math.radians(angle)
    down = torch.ceil(steps * math.sin(turn) - 0.5).long()
    right = torch.ceil(steps * math.cos(turn) - 0.5).long()
    pad = 2 * radius + 1
    padded = F.pad(x[None], (pad,) * 4, mode="replicate")[0]
    height, width = x.shape[-2:]
    out = torch.zeros_like(x)
    for weight, row, column in zip(weights.tolist(), down.tolist(), right.tolist(), strict=True):
        out += weight * padded[:, pad + row : pad + row + height, pad + column : pad + column + width]
    return out


def _zoom_blur(x: Tensor, setting: tuple[int, int | float], generator: torch.Generator) -> Tensor:
    zooms, step = setting
    return (x + sum(_zoomed(x, 1 + i * step) for i in range(zooms))) / (zooms + 1)


def _zoomed(x: Tensor, factor: int | float) -> Tensor:
    """The middle of the photo, enlarged to its size; bilinear, corners on corners."""
    height, width = x.shape[-2:]
    inner = [math.ceil(side / factor) for side in (height, width)]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    part = x[:, top : top + inner[0], left : left + inner[1]]
    size = [round(side * factor) for side in inner]
    large = F.interpolate(part[None], size=size, mode="bilinear", align_corners=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[:, top : top + height, left : left + width]


# ---------------------------------------------------------------- weather


def _snow(x: Tensor, setting: tuple, generator: torch.Generator) -> Tensor:
    mean, deviation, size, threshold, radius, fall, share = setting
    flakes = mean + deviation * torch.randn(1, *x.shape[-2:], generator=generator)
    flakes = _zoomed(flakes, size)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = _moved((flakes * 255).floor() / 255, radius, fall, _uniform(-135, -45, generator))
    grey = _grey(x)
    x = share * x + (1 - share) * torch.maximum(x, 1.5 * grey + 0.5)
    return x + flakes + flakes.flip(-1, -2)


def _frost(x: Tensor, setting: tuple[int | float, int | float], generator: torch.Generator) -> Tensor:
    return setting[0] * x + setting[1] * _ice(x.shape[-2], x.shape[-1], generator)[: x.shape[0]]


def _ice(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A texture (3, H, W) in place of a photo of frost: needles that branch, on pale blue of uneven brightness.

    Mean brightness, spread within a photo and tint were chosen to match the five photos that the authors' code uses
    (means 0.47 to 0.83, deviations 0.06 to 0.14, blue above red by 0.05 to 0.35).
    """
    wide = _plasma(max(height, width), 1.9, generator)[:height, :width]
    seeds = torch.rand(1, height, width, generator=generator)
    needles = sum(_moved((seeds > 0.97).to(seeds), 14, 6, a) for a in (15.0, 75.0, 135.0, 195.0, 255.0, 315.0))
    needles = needles[0] / needles.std().clamp(min=1e-6)
    edges = 1 - (2 * _plasma(max(height, width), 1.5, generator)[:height, :width] - 1).abs()
    rough = (wide - wide.mean()) / wide.std().clamp(min=1e-6) + 0.7 * needles + edges / edges.std().clamp(min=1e-6)
    spread, mean, tint = (_uniform(low, high, generator) for low, high in ((0.06, 0.14), (0.47, 0.83), (0.02, 0.15)))
    brightness = mean + spread * (rough - rough.mean()) / rough.std().clamp(min=1e-6)
    return torch.stack([brightness - tint, brightness, brightness + tint / 2]).clamp(0, 1)


def _fog(x: Tensor, setting: tuple[int | float, int | float], generator: torch.Generator) -> Tensor:
    weight, decay = setting
    height, width = x.shape[-2:]
    brightest = float(x.max())
    fog = _plasma(max(height, width), decay, generator)[:height, :width]
    return (x + weight * fog) * brightest / (brightest + weight)


def _plasma(side: int, decay: int | float, generator: torch.Generator) -> Tensor:
    """Heights in [0, 1] on a square grid of at least `side` points a side that closes on itself.

    Middles of squares, then of their edges, are the mean of four neighbors plus noise that shrinks by `decay` each
    time the grid is halved (diamond-square). Reference: Fournier, Fussell, Carpenter (1982), Computer Rendering of
    Stochastic Models.
    """
    size = 2 ** math.ceil(math.log2(side))
    heights, noise, step = torch.zeros(1, 1, dtype=torch.float64), 1.0, size
    while step > 1:
        n = len(heights)
        corners = heights

        def drawn(of_four: Tensor, noise: float = noise, n: int = n) -> Tensor:
            shake = 2 * torch.rand(n, n, generator=generator, dtype=torch.float64) - 1
            return of_four / 4 + noise * shake

        across = corners + corners.roll(-1, 0)
        middles = drawn(across + across.roll(-1, 1))
        beside = drawn(corners + corners.roll(-1, 1) + middles + middles.roll(1, 0))
        below = drawn(corners + corners.roll(-1, 0) + middles + middles.roll(1, 1))
        heights = torch.stack([torch.stack([corners, beside], -1), torch.stack([below, middles], -1)], 1)
        heights = heights.reshape(2 * n, 2 * n)
        noise, step = noise / decay, step // 2
    heights = heights - heights.min()
    return (heights / heights.max()).float()


def _brightness(x: Tensor, more: float, generator: torch.Generator) -> Tensor:
    """Hue and saturation stay; a black pixel becomes grey."""
    value = x.amax(0, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value.clamp(min=1e-12)), brighter)


# ---------------------------------------------------------------- digital


def _contrast(x: Tensor, left: float, generator: torch.Generator) -> Tensor:
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * left + mean


def _elastic_transform(x: Tensor, setting: tuple[int | float, ...], generator: torch.Generator) -> Tensor:
    """Three points near the middle are moved, and all with them (an affine map); then every pixel by a smooth field."""
    strength, smoothness, shift = setting
    height, width = x.shape[-2:]
    middle = torch.tensor([width // 2, height // 2], dtype=torch.float64)
    arm = min(height, width) // 3
    before = middle + arm * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    moves = 2 * torch.rand(3, 2, generator=generator, dtype=torch.float64) - 1
    after = before + shift * moves
    ones = torch.ones(3, 1, dtype=torch.float64)
    back = torch.linalg.solve(torch.cat([after, ones], 1), before)  # (3, 2): where a pixel of the result comes from
    down, right = (torch.arange(side, dtype=torch.float64) for side in (height, width))
    grid = torch.stack([right.expand(height, width), down[:, None].expand(height, width)], -1)
    source = torch.cat([grid, torch.ones_like(grid[..., :1])], -1) @ back
    x = _sampled(x, source, True)
    field = 2 * torch.rand(2, height, width, generator=generator, dtype=torch.float64) - 1
    field = _smoothed(field, smoothness, "reflect", 3.0) * strength
    return _sampled(x, grid + field.movedim(0, -1), False)


def _sampled(x: Tensor, at: Tensor, on_centers: bool) -> Tensor:
    """Bilinear values of `x` at points (H, W, 2) of column and row; the photo is mirrored beyond its border, which runs
    through the centers of the outermost pixels or along their outer sides.
    """
    size = torch.tensor([x.shape[-1], x.shape[-2]], dtype=at.dtype)
    scaled = 2 * at / (size - 1) - 1 if on_centers else (2 * at + 1) / size - 1
    return F.grid_sample(
        x[None], scaled[None].to(x), mode="bilinear", padding_mode="reflection", align_corners=on_centers
    )[0]


def _pixelate(x: Tensor, left: float, generator: torch.Generator) -> Tensor:
    from PIL import Image

    height, width = x.shape[-2:]
    small = _picture(x).resize((int(width * left), int(height * left)), Image.Resampling.BOX)
    return _values(small.resize((width, height), Image.Resampling.BOX), x)


def _jpeg_compression(x: Tensor, quality: int, generator: torch.Generator) -> Tensor:
    return jpeg(x, quality)


# ---------------------------------------------------------------- parts


def _uniform(low: int | float, high: int | float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None] if len(x) == 3 else torch.ones(1, 1, 1)
    return (weights.to(x) * x).sum(0, keepdim=True)


def _picture(x: Tensor) -> Any:
    from PIL import Image

    pixels = (x * 255 + 1e-4).clamp(0, 255).to(torch.uint8)  # 1e-4: 200 / 255 * 255 may be a little less than 200
    return Image.fromarray(pixels[0].numpy() if len(x) == 1 else pixels.permute(1, 2, 0).numpy())


def _values(picture: Any, like: Tensor) -> Tensor:
    import numpy as np

    pixels = torch.from_numpy(np.array(picture))
    return (pixels[None] if len(like) == 1 else pixels.permute(2, 0, 1)).to(like) / 255


_MAKERS: Mapping[str, Callable[[Tensor, Any, torch.Generator], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
