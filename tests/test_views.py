"""Views of images: their random state belongs to the sample, and every change equals an independent one."""

import inspect
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as V
from scipy import ndimage
from scipy.stats import kstest

from studybook import ensemble, models, views

SEEDS = torch.tensor([3, 2**61 + 5, 0, 17, 2**40])


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 16, 20, generator=torch.Generator().manual_seed(1))


def split_mix(seed, count):
    """SplitMix64 in whole numbers, started from the mixed seed."""

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    state, found = mix(seed), []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        found.append((mix(state) >> 40) / 2**24)
    return found


def test_uniform_is_the_published_generator():
    expected = torch.tensor([split_mix(seed, 6) for seed in SEEDS.tolist()])
    assert torch.equal(views.uniform(SEEDS, 6), expected)


def test_uniform_is_uniform_over_seeds_and_over_columns():
    drawn = views.uniform(torch.arange(4000), 8)
    assert min(kstest(column.numpy(), "uniform").pvalue for column in drawn.T) > 1e-4
    assert kstest(views.uniform(torch.tensor([5]), 8000)[0].numpy(), "uniform").pvalue > 1e-3
    between = torch.corrcoef(drawn.T.double()) - torch.eye(8, dtype=torch.float64)
    assert between.abs().max() < 5 / math.sqrt(4000)


EVERYTHING = views.How(0.3, 1.5, 2, 20.0, 0.5, 0.4, 0.4, 0.4, 0.3)


def test_a_view_depends_on_its_image_and_seed_alone(images):
    together = views.view(images, SEEDS, EVERYTHING)
    alone = torch.cat([views.view(images[i : i + 1], SEEDS[i : i + 1], EVERYTHING) for i in range(5)])
    order = torch.tensor([4, 2, 0, 3, 1])
    assert torch.equal(together, alone)
    assert torch.equal(together[order], views.view(images[order], SEEDS[order], EVERYTHING))
    assert not torch.allclose(together, views.view(images, SEEDS + 1, EVERYTHING))
    assert together.min() >= 0
    assert together.max() <= 1


def test_the_defaults_change_nothing(images):
    assert torch.equal(views.view(images, SEEDS, views.How()), images)


def bilinear(image, top, left, h, w):
    """A crop (in pixels, fractions allowed) resized to the whole, pixel by pixel; nothing outside it is read."""
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height, 0.5), h - 0.5) + top - 0.5
            x = min(max((j + 0.5) * w / width, 0.5), w - 0.5) + left - 0.5
            i0, j0 = int(np.floor(y)), int(np.floor(x))
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                share = (y - i0 if a else 1 - y + i0) * (x - j0 if b else 1 - x + j0)
                if share > 1e-9:
                    inside = 0 <= i0 + a < height and 0 <= j0 + b < width
                    out[:, i, j] += share * image[:, i0 + a, j0 + b] if inside else 0
    return out


def test_crops_equal_bilinear_resampling_by_hand(images):
    how = views.How(area=0.3, stretch=1.5)
    u = views.uniform(SEEDS, 4).double().numpy()
    found = views.view(images.double(), SEEDS, how)
    for k in range(len(images)):
        area, ratio = 0.3 + 0.7 * u[k, 0], math.exp((2 * u[k, 1] - 1) * math.log(1.5))
        h, w = min(math.sqrt(area / ratio), 1), min(math.sqrt(area * ratio), 1)
        box = (u[k, 2] * (1 - h) * 16, u[k, 3] * (1 - w) * 20, h * 16, w * 20)
        np.testing.assert_allclose(found[k].numpy(), bilinear(images[k].double().numpy(), *box), atol=1e-6)


def test_a_quarter_turn_is_exact_and_other_angles_equal_scipy(images):
    square = images[..., :16].double()
    np.testing.assert_allclose(views.rotated(square, 90.0), square.rot90(1, (-2, -1)), atol=1e-6)
    angles = torch.tensor([10.0, -35.0, 60.0, 120.0, 0.0], dtype=torch.float64)
    turned = views.rotated(square, angles)
    for k, angle in enumerate(angles.tolist()):
        other = ndimage.rotate(square[k].numpy(), angle, axes=(2, 1), reshape=False, order=1)
        i, j = np.mgrid[-7.5:8, -7.5:8]
        inside = i**2 + j**2 < 6.5**2  # at the border scipy does not fade into the zeros
        np.testing.assert_allclose(turned[k].numpy()[:, inside], np.asarray(other)[:, inside], atol=1e-6)


def test_mirroring_and_moving_are_exact(images):
    np.testing.assert_allclose(views.view(images, SEEDS, views.How(flip=1.0)), images.flip(-1), atol=1e-5)
    moved = views.view(images, SEEDS, views.How(shift=2))
    steps = ((views.uniform(SEEDS, 7)[:, 5:] * 5).floor() - 2).int().tolist()
    assert len({tuple(step) for step in steps}) > 2
    for k, (down, right) in enumerate(steps):
        padded = torch.nn.functional.pad(images[k], (2, 2, 2, 2))
        expected = padded[:, 2 - down : 18 - down, 2 - right : 22 - right]
        np.testing.assert_allclose(moved[k], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "column", "same"),
    [
        (views.How(brightness=0.4), 8, V.adjust_brightness),
        (views.How(contrast=0.4), 9, V.adjust_contrast),
        (views.How(saturation=0.4), 10, V.adjust_saturation),
    ],
)
def test_colors_equal_torchvision(images, how, column, same):
    factors = 1 + (2 * views.uniform(SEEDS, 12)[:, column] - 1) * 0.4
    expected = torch.stack([same(image, float(f)) for image, f in zip(images, factors, strict=True)])
    np.testing.assert_allclose(views.view(images, SEEDS, how), expected, atol=2e-4)


def test_grey_equals_torchvision_and_comes_as_often_as_asked(images):
    grey = views.view(images, SEEDS, views.How(grey=1.0)).expand_as(images)
    np.testing.assert_allclose(grey, V.rgb_to_grayscale(images, 3), atol=2e-4)
    many = images[:1].expand(2000, -1, -1, -1)
    found = views.view(many, torch.arange(2000), views.How(grey=0.2))
    share = (found == found[:, :1]).flatten(1).all(1).double().mean()
    assert abs(share - 0.2) < 4 * math.sqrt(0.16 / 2000)


def test_pairs_and_once_feed_training(images):
    two = views.pairs(EVERYTHING)(images, torch.Generator().manual_seed(0))
    assert two.shape == (5, 6, 16, 20)
    assert not torch.allclose(two[:, :3], two[:, 3:])
    x, y = torch.rand(32, 1, 16, 16), torch.arange(32) % 2

    def trained():
        nets = ensemble.init(lambda: models.lenet(1, 16, 2), [0])
        augment = views.once(views.How(shift=2))
        return ensemble.fit(nets, x, y, epochs=2, batch=8, lr=0.01, augment=augment).members[0][0].weight

    assert torch.equal(trained(), trained())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (views.How(area=0.0), "area must be in"),
        (views.How(stretch=0.5), "stretch 1 or more"),
        (views.How(flip=1.5), "from 0 to 1"),
    ],
)
def test_refusals(images, how, message):
    view = inspect.unwrap(views.view)
    with pytest.raises(ValueError, match=message):
        view(images, SEEDS, how)
    with pytest.raises(ValueError, match="one per image"):
        view(images, SEEDS[:2], views.How())
    with pytest.raises(ValueError, match="3 channels"):
        view(images[:, :1], SEEDS, views.How(grey=0.5))
