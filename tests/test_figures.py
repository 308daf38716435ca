import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studybook import figures, plots


@pytest.fixture
def drawn():
    """A function that saves a figure as SVG text."""
    plots.style()

    def save(draw, **size):
        fig, ax = plt.subplots(**size)
        draw(ax)
        out = io.StringIO()
        fig.savefig(out, format="svg")
        plt.close(fig)
        return out.getvalue()

    return save


def test_known_contrasts():
    assert figures.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert figures.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the guidelines' own example
    assert figures.contrast("#ffffff", "#777777") == figures.contrast("#777777", "#ffffff")


def test_a_lighter_figure_draws_the_same_without_metadata(drawn):
    svg = drawn(lambda ax: ax.plot([1, 2], [3, 4]))
    light = figures.lighter(svg)
    assert len(light) < len(svg)
    assert "metadata" not in light
    assert "<!--" not in light
    assert figures.size(light) == figures.size(svg)
    assert light.count("<path") == svg.count("<path")
    assert figures.lighter(light) == light


def test_photos_become_jpegs_and_flat_pictures_stay_exact(drawn):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    photo = figures.lighter(drawn(lambda ax: ax.imshow(noise, interpolation="none")))
    assert "data:image/jpeg;base64," in photo
    flat = figures.lighter(drawn(lambda ax: ax.imshow(np.zeros((8, 8, 3), np.uint8), interpolation="none")))
    assert "data:image/png;base64," in flat
    from PIL import Image

    encoded = photo.partition("jpeg;base64,")[2].partition('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).format == "JPEG"


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK], ids=lambda theme: theme.name)
def test_white_becomes_the_ground_and_black_the_ink(drawn, theme):
    svg = figures.themed(drawn(lambda ax: ax.plot([1, 2], color="black")), theme)
    assert theme.ground in svg
    assert theme.ink in svg
    if theme == figures.DARK:
        assert "#ffffff" not in svg
        assert "#000000" not in svg


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK], ids=lambda theme: theme.name)
@given(color=st.integers(0, 0xFFFFFF).map("#{:06x}".format))
def test_every_line_can_be_seen(theme, color):
    line = f'<svg xmlns="http://www.w3.org/2000/svg"><path style="stroke: {color}"/></svg>'
    rgb = figures._channels(color)
    if max(rgb) - min(rgb) > figures._GREY:  # greys keep their place between ground and ink: a pale grid stays pale
        found = figures.themed(line, theme).partition("stroke: ")[2][:7]
        assert figures.contrast(found, theme.ground) >= figures.LINES - 0.05
    if figures.contrast(color, theme.ground) >= figures.LINES and max(rgb) - min(rgb) > figures._GREY:
        assert color in figures.themed(line, theme)


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK], ids=lambda theme: theme.name)
def test_a_grey_curve_can_be_seen_and_a_grid_stays_pale(drawn, theme):
    grey = "#b2b2b2"
    svg = drawn(lambda ax: (ax.plot([1, 2], color=grey, lw=1.5), ax.plot([2, 1], color=grey, lw=0.8)))
    strokes = re.findall(r'id="line2d_\d+">\s*<path [^>]*stroke: (#[0-9a-f]{6})[^>]*stroke-width: ([\d.]+)', svg)
    assert (grey, "1.5") in strokes
    found = re.findall(
        r'id="line2d_\d+">\s*<path [^>]*stroke: (#[0-9a-f]{6})[^>]*stroke-width: ([\d.]+)', figures.themed(svg, theme)
    )
    contrasts = {width: figures.contrast(color, theme.ground) for color, width in found}
    assert contrasts["1.5"] >= figures.LINES
    assert contrasts["0.8"] < figures.LINES


def test_a_heat_maps_cells_and_the_numbers_in_them_stay_as_they_are(drawn):
    import torch

    values = torch.tensor([[0.9, -0.9], [0.1, 0.0]])
    svg = drawn(lambda ax: plots.heatmap(ax, values, ["a", "b"], ["c", "d"], limit=1.0))
    dark = figures.themed(svg, figures.DARK)
    mesh = svg.partition('id="QuadMesh_1"')[2].partition("</g>")[0]
    cells = sorted(part[:7] for part in mesh.split("fill: ")[1:])
    dark_mesh = dark.partition('id="QuadMesh_1"')[2].partition("</g>")[0]
    assert len(cells) == 4
    assert sorted(part[:7] for part in dark_mesh.split("fill: ")[1:]) == cells
    assert dark.count("fill: #ffffff") == 2  # the numbers on the two strong cells; figure and axes are dark
    assert 0 < dark.count("#262626") < svg.count("#262626")  # on pale cells; the ticks are bright now


def test_a_figure_of_many_cells_is_stored_as_pixels(drawn):
    import torch

    svg = drawn(lambda ax: plots.heatmap(ax, torch.rand(40, 40), [], []))
    assert "<image" in svg
    assert len(svg) < 100_000


def test_the_same_figure_gives_the_same_text(drawn):
    def draw(ax):
        ax.plot([1, 2], [3, 4], label="a line")
        ax.fill_between([1, 2], [1, 1], [2, 2], hatch="//")
        ax.legend()

    assert figures.lighter(drawn(draw)) == figures.lighter(drawn(draw))


def test_a_figure_without_a_size_is_refused():
    with pytest.raises(ValueError, match="does not say how large it is"):
        figures.size('<svg xmlns="http://www.w3.org/2000/svg"/>')
