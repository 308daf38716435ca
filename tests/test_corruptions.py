"""Corruptions of photos, against numbers from imagecorruptions 1.1.2 (OpenCV 4.11, scikit-image 0.22, Pillow 9.5)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from studybook import corruptions

RANDOM = [
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
    "elastic_transform",
]  # fmt: skip
FIXED = [name for name in corruptions.SEVERITIES if name not in RANDOM]


@pytest.fixture(scope="module")
def chart():
    """A picture (3, 224, 224) of stripes and moire that the reference numbers were made with."""
    down, right = np.mgrid[0:224, 0:224]
    channels = [right * 3 + down, right * down // 7, down * 5 + 2 * right]
    return torch.from_numpy(np.stack(channels) % 256).float() / 255


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def distance(a, b):
    return float((a - b).square().mean().sqrt())


# mean, distance to the picture, and two of its values: of imagecorruptions, severities 1, 3 and 5
KNOWN = {
    "defocus_blur": (
        (0.49493, 0.13163, 0.84192, 0.78039),
        (0.49508, 0.17994, 0.66036, 0.78605),
        (0.50061, 0.20234, 0.59356, 0.81094),
    ),
    "zoom_blur": (
        (0.49988, 0.18752, 0.35989, 0.83446),
        (0.50073, 0.21317, 0.27896, 0.87619),
        (0.50050, 0.23112, 0.27765, 0.65799),
    ),
    "brightness": (
        (0.55193, 0.06721, 1.0, 0.88039),
        (0.62215, 0.16285, 1.0, 1.0),
        (0.65251, 0.21439, 1.0, 1.0),
    ),
    "contrast": (
        (0.49480, 0.17397, 0.69516, 0.61278),
        (0.49480, 0.23196, 0.60008, 0.55691),
        (0.49480, 0.27545, 0.52877, 0.51501),
    ),
    "pixelate": (
        (0.49690, 0.09494, 0.99216, 0.78824),
        (0.49579, 0.12114, 0.87843, 0.78824),
        (0.49717, 0.14901, 0.92157, 0.76471),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_without_chance_a_corruption_is_that_of_the_reference_package(chart, name):
    for severity, numbers in zip((1, 3, 5), KNOWN[name], strict=True):
        made = corruptions.corrupted(chart, name, severity, seeded())
        ours = [float(made.mean()), distance(made, chart), float(made[0, 100, 50]), float(made[2, 3, 220])]
        assert ours == pytest.approx(numbers, abs=2e-5)


def test_jpeg_is_that_of_the_reference_package_up_to_the_coder(chart):
    for severity, (mean, moved) in {1: (0.49453, 0.13088), 3: (0.49437, 0.14393), 5: (0.49436, 0.15969)}.items():
        made = corruptions.corrupted(chart, "jpeg_compression", severity, seeded())
        assert float(made.mean()) == pytest.approx(mean, abs=1e-3)
        assert distance(made, chart) == pytest.approx(moved, abs=2e-3)


def test_motion_follows_the_reference_packages_kernel(chart):
    ours = [corruptions._moved(chart, 10, 3, 30.0), corruptions._moved(chart, 12, 8, -100.0)]
    found = [(float(m.mean()), distance(m, chart), float(m[0, 100, 50])) for m in ours]
    assert found[0] == pytest.approx((0.49690, 0.15959, 0.46042), abs=2e-5)
    assert found[1] == pytest.approx((0.48832, 0.21822, 0.94425), abs=2e-5)


# mean distance to the picture of six draws of imagecorruptions, severities 1, 3 and 5
MOVED = {
    "gaussian_noise": (0.0763, 0.1614, 0.2930),
    "shot_noise": (0.0851, 0.1764, 0.3147),
    "impulse_noise": (0.1002, 0.1732, 0.3006),
    "glass_blur": (0.1662, 0.2177, 0.2020),
    "snow": (0.1867, 0.2984, 0.4166),
    "fog": (0.1992, 0.2407, 0.2569),
    "motion_blur": (0.1450, 0.2008, 0.2374),
    "frost": (0.2373, 0.3148, 0.3172),  # with photos of frost, which ours only resembles
}


@pytest.mark.parametrize("name", MOVED)
def test_with_chance_a_corruption_moves_a_picture_as_far_as_the_reference_package_does(chart, name):
    spread = 0.07 if name in ("motion_blur", "frost", "fog") else 0.015
    for severity, theirs in zip((1, 3, 5), MOVED[name], strict=True):
        many = chart.expand(4 if name in ("glass_blur", "frost") else 6, 3, 224, 224)
        ours = np.mean([distance(made, chart) for made in corruptions.corrupted(many, name, severity, seeded(1))])
        assert ours == pytest.approx(theirs, rel=spread)


def test_noise_has_the_deviation_and_the_share_that_it_says():
    grey = torch.full((1, 224, 224), 0.5)
    assert float(corruptions.corrupted(grey, "gaussian_noise", 1, seeded()).std()) == pytest.approx(0.08, rel=0.02)
    shot = corruptions.corrupted(grey, "shot_noise", 2, seeded())
    assert float(shot.std()) == pytest.approx((0.5 / 25) ** 0.5, rel=0.02)  # Poisson: variance is the mean
    hit = corruptions.corrupted(grey, "impulse_noise", 4, seeded())
    assert float((hit != 0.5).float().mean()) == pytest.approx(0.17, rel=0.05)
    assert float(hit[hit != 0.5].mean()) == pytest.approx(0.5, abs=0.03)
    assert set(hit.unique().tolist()) == {0.0, 0.5, 1.0}


def test_the_disk_is_symmetric_and_has_nearly_sum_one_and_the_area_of_a_circle():
    for radius, softness in corruptions.SEVERITIES["defocus_blur"]:
        disk = corruptions._disk(radius, softness)
        assert float(disk.sum()) == pytest.approx(1.0, abs=0.015)  # mirrored at the border, as OpenCV does
        assert float(1 / disk.max()) == pytest.approx(np.pi * radius**2, rel=0.1)
        torch.testing.assert_close(disk, disk.flip(0, 1))


def test_brightness_keeps_hue_and_saturation():
    import colorsys

    x = torch.rand(3, 40, 40, generator=seeded()) * 0.8
    made = corruptions.corrupted(x, "brightness", 2, seeded())
    for place in ((0, 0), (7, 31), (39, 12)):
        before, after = (colorsys.rgb_to_hsv(*part[:, place[0], place[1]].tolist()) for part in (x, made))
        assert after[:2] == pytest.approx(before[:2], abs=1e-4)
        assert after[2] == pytest.approx(min(before[2] + 0.2, 1.0), abs=1e-6)


def test_sampling_is_scipys_on_both_kinds_of_border(chart):
    at = torch.stack(
        torch.meshgrid(torch.linspace(-20, 240, 30), torch.linspace(-10, 235, 25), indexing="xy"), -1
    ).double()
    for on_centers, mode in ((True, "mirror"), (False, "reflect")):
        wanted = map_coordinates(chart[1].double().numpy(), [at[..., 1], at[..., 0]], order=1, mode=mode)
        ours = corruptions._sampled(chart.double(), at, on_centers)[1]
        np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-9)


def test_plasma_is_rough_where_its_detail_decays_slowly():
    heights = [corruptions._plasma(224, decay, seeded()) for decay in (3.0, 1.4)]
    rough = [float((h[1:] - h[:-1]).abs().mean()) for h in heights]
    assert rough[1] > 3 * rough[0]
    for h in heights:
        assert h.shape == (256, 256)
        assert (float(h.min()), float(h.max())) == (0.0, 1.0)
        seam, inside = (h[0] - h[-1]).abs().mean(), (h[1:] - h[:-1]).abs().mean()
        assert float(seam) < 3 * float(inside)  # it closes on itself


@pytest.mark.parametrize("name", corruptions.SEVERITIES)
def test_shape_range_and_repetition(name):
    x = torch.rand(2, 3, 48, 40, generator=seeded())
    for severity in (1, 5):
        made = corruptions.corrupted(x, name, severity, seeded(3))
        assert made.shape == x.shape
        assert made.dtype == x.dtype
        assert float(made.min()) >= 0
        assert float(made.max()) <= 1
        assert not torch.equal(made, x)
        torch.testing.assert_close(made, corruptions.corrupted(x, name, severity, seeded(3)), rtol=0, atol=0)
        first = corruptions.corrupted(x[0], name, severity, seeded(3))
        torch.testing.assert_close(first, made[0], rtol=0, atol=0)  # a photo alone, before others
        grey = corruptions.corrupted(x[:, :1], name, severity, seeded(3))
        assert grey.shape == (2, 1, 48, 40)
    assert torch.equal(corruptions.corrupted(x, name, 0, seeded()), x)


@pytest.mark.parametrize(
    "name", [n for n in corruptions.SEVERITIES if n not in ("glass_blur", "frost", "fog", "elastic_transform")]
)
def test_a_picture_moves_further_with_every_severity(chart, name):
    moved = [distance(corruptions.corrupted(chart, name, s, seeded()), chart) for s in range(1, 6)]
    assert moved[0] < moved[2] < moved[4]


def test_the_elastic_field_grows_as_the_severities_say():
    down, right = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    ramp = (right / 223)[None]  # its values say which column they come from
    inner = slice(40, -40)
    plane = torch.stack([torch.ones(224, 224), right / 224, down / 224])[:, inner, inner].flatten(1).T.double()
    left = []
    for severity in (3, 4, 5):
        made = 223 * corruptions.corrupted(ramp, "elastic_transform", severity, seeded(2))[0, inner, inner].flatten()
        made = made.double()
        affine = plane @ torch.linalg.lstsq(plane, made[:, None]).solution[:, 0]
        left.append(float((made - affine).std()))
    assert left[1] / left[0] == pytest.approx(7 / 5, rel=0.02)
    assert left[2] / left[0] == pytest.approx(12 / 5, rel=0.02)
    assert left[0] == pytest.approx(244 * 0.05 * 3**-0.5 / (2 * np.pi**0.5 * 2.44), rel=0.1)  # uniform noise, smoothed


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["contrast", "defocus_blur", "zoom_blur", "motion_blur"]), st.integers(1, 5))
def test_linear_corruptions_keep_an_even_surface(name, severity):
    x = torch.full((3, 64, 64), 0.4)
    torch.testing.assert_close(corruptions.corrupted(x, name, severity, seeded()), x, rtol=0, atol=0.006)


def test_refusals_name_what_came_and_what_is_allowed():
    x = torch.rand(3, 40, 40, generator=seeded())
    with pytest.raises(ValueError, match="name must be one of gaussian_noise, .*, got 'rain'"):
        corruptions.corrupted(x, "rain", 1, seeded())
    with pytest.raises(ValueError, match="whole number from 0 to 5, got severity=6"):
        corruptions.corrupted(x, "fog", 6, seeded())
    with pytest.raises(ValueError, match=r"at least 32 pixels a side, got \(3, 28, 28\)"):
        corruptions.corrupted(x[:, :28, :28], "fog", 1, seeded())
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], got torch.float32 from"):
        corruptions.corrupted(2 * x, "fog", 1, seeded())


# ---------------------------------------------------------------- photos of 32 pixels


@pytest.fixture(scope="module")
def small():
    coarse = torch.rand(2, 3, 8, 8, generator=seeded(1))
    return torch.nn.functional.interpolate(coarse, 32, mode="bilinear")


def test_small_photos_lose_more_with_each_severity_and_nothing_at_zero(small):
    for name in corruptions.SMALL:
        found = [corruptions.corrupted_small(small, name, severity, seeded(5)) for severity in range(6)]
        assert found[0].equal(small)
        moved = [distance(small, one) for one in found]
        assert moved[1] > 0 or name == "elastic_transform"
        assert moved[5] > moved[1] or name == "elastic_transform"  # whose shift falls while its warp grows
        assert all(one.shape == small.shape and 0 <= float(one.min()) <= float(one.max()) <= 1 for one in found)


def test_small_corruptions_are_milder_than_those_for_large_photos(small):
    for name in ("gaussian_noise", "shot_noise", "impulse_noise", "contrast", "pixelate", "jpeg_compression"):
        mild, strong = (
            make(small, name, 3, seeded(2)) for make in (corruptions.corrupted_small, corruptions.corrupted)
        )
        assert distance(small, mild) < distance(small, strong)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_small_defocus_is_opencvs_disk(small, severity):
    from scipy.ndimage import correlate, correlate1d

    radius, softness = corruptions.SMALL["defocus_blur"][severity - 1]
    at = np.arange(-8, 9)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(float)
    weights = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
    for axis in (0, 1):
        disk = correlate1d(disk, weights / weights.sum(), axis, mode="mirror")
    disk /= disk.sum()
    wanted = np.stack([correlate(channel, disk, mode="mirror") for channel in small[0].double().numpy()])
    found = corruptions.corrupted_small(small[0], "defocus_blur", severity, seeded())
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_small_refusals_are_those_of_large_photos(small):
    for severity, name, words in ((6, "fog", "severity must be"), (1, "rain", "name must be one of")):
        with pytest.raises(ValueError, match=words):
            corruptions.corrupted_small(small, name, severity, seeded())
