"""Figures as SVG texts: made lighter, and recolored so that they can be read on a light and on a dark page."""

import base64
import colorsys
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import NamedTuple

LINES = 3.0  # least contrast of lines and marks with the page behind them (WCAG 2.2, 1.4.11)
TEXT = 4.5  # least contrast of text (WCAG 2.2, 1.4.3)
_SVG = "http://www.w3.org/2000/svg"
_COLOR = re.compile(r"#[0-9a-fA-F]{6}\b")
_GREY = 12  # channels that differ by no more count as grey
_WIDE = 1.2  # points; lines of a grid and of guides are narrower


class Theme(NamedTuple):
    """What a page looks like behind and between its figures."""

    name: str
    ground: str
    ink: str


LIGHT = Theme("light", "#ffffff", "#222832")
DARK = Theme("dark", "#121212", "#ced6dd")  # the theme's own


def lighter(svg: str) -> str:
    """The figure without metadata, comments and line breaks, its photos as JPEG where that saves bytes."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<!DOCTYPE.*?>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", lambda found: _photo(found[1]), svg)
    return re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><").strip()


def _photo(encoded: str) -> str:
    from PIL import Image

    raw = base64.b64decode(encoded)
    kept = f"data:image/png;base64,{base64.b64encode(raw).decode()}"
    image, out = Image.open(io.BytesIO(raw)), io.BytesIO()
    if image.mode == "RGBA" and image.getextrema()[3][0] < 255:
        return kept
    image.convert("RGB").save(out, "JPEG", quality=90, subsampling=0)
    if len(out.getvalue()) > 0.7 * len(raw):
        return kept
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def themed(svg: str, theme: Theme) -> str:
    """The figure for one theme: white becomes the ground, black the ink, greys lie between them; colors keep their hue.

    Lines and marks get at least the contrast LINES and text TEXT. What shows data by its shade stays as it is: photos,
    the cells of heat maps, and text inside either.
    """
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    figure = ET.fromstring(svg)
    _recolor(figure, theme, None)
    return ET.tostring(figure, encoding="unicode")


def size(svg: str) -> tuple[float, float]:
    """Width and height of a figure in pixels of a page."""
    figure = ET.fromstring(svg)
    sides = [re.fullmatch(r"([\d.]+)pt", figure.get(side, "")) for side in ("width", "height")]
    if None in sides:
        raise ValueError("the figure does not say how large it is in points")
    return float(sides[0][1]) * 4 / 3, float(sides[1][1]) * 4 / 3


Box = tuple[float, float, float, float]


def _recolor(node: ET.Element, theme: Theme, shaded: Box | None, line: bool = False) -> None:
    """`shaded` is the place of a heat map or photo that this axes shows; `line`: the node belongs to a line."""
    name = node.get("id", "")
    if name.startswith("QuadMesh") or node.tag == f"{{{_SVG}}}image":
        return
    if name.startswith("axes_"):
        shaded = _shaded(node)
    text = name.startswith("text_")
    if text and shaded and _inside(node, shaded):
        return
    for part in node.iter() if text else [node]:
        for attribute in ("style", "fill", "stroke"):
            if value := part.get(attribute):
                least = TEXT if text else LINES if _solid(part) else 1.0
                part.set(attribute, _COLOR.sub(_mapping(theme, least, text or line and _curve(part)), value))
    if text:
        for part in node.iter():  # glyphs without a color of their own are black
            if part.tag == f"{{{_SVG}}}g" and part.get("transform") and "fill" not in (part.get("style") or ""):
                part.set("style", f"fill: {theme.ink}; {part.get('style') or ''}".strip())
        return
    for child in node:
        _recolor(child, theme, shaded, name.startswith("line2d_"))


def _solid(part: ET.Element) -> bool:
    """Whether the element is a line or mark that must be seen: neither pale nor the background of something."""
    style = part.get("style", "")
    return not re.search(r"opacity: 0?\.\d", style) and "hatch" not in style


def _curve(part: ET.Element) -> bool:
    """Whether this part of a line is too wide for a grid's line, so that a grey of it is a color like others."""
    width = re.search(r"stroke-width: ([\d.]+)", part.get("style", ""))
    return _solid(part) and width is not None and float(width[1]) >= _WIDE


def _mapping(theme: Theme, least: float, greys: bool) -> Callable[[re.Match], str]:
    def color(found: re.Match) -> str:
        rgb = _channels(found[0])
        if max(rgb) - min(rgb) <= _GREY:
            ground, ink = _channels(theme.ground), _channels(theme.ink)
            share = sum(rgb) / 3 / 255  # 1: ground
            mixed = tuple(round(g * share + i * (1 - share)) for g, i in zip(ground, ink, strict=True))
            return _readable(mixed, theme, least) if greys else _hex(mixed)  # a grid is meant to be pale
        return _readable(rgb, theme, least)

    return color


def _readable(rgb: tuple[int, ...], theme: Theme, least: float) -> str:
    """The color, made darker or brighter until it has the contrast."""
    hue, light, saturation = colorsys.rgb_to_hls(*(v / 255 for v in rgb))
    away = 0.01 if luminance(theme.ground) < 0.2 else -0.01
    color = _hex(rgb)
    while contrast(color, theme.ground) < least and 0 < light + away < 1:
        light += away
        color = _hex(tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue, light, saturation)))
    return color


def contrast(one: str, other: str) -> float:
    """Contrast of two colors, from 1 to 21.

    Reference: Web Content Accessibility Guidelines 2.2, "contrast ratio".
    """
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """Relative luminance of `#rrggbb`, from 0 to 1."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in _channels(color))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def _hex(rgb: tuple[int, ...]) -> str:
    return "#" + "".join(f"{v:02x}" for v in rgb)


def _shaded(axes: ET.Element) -> Box | None:
    """Where an axes lies, if it shows a heat map or photo: the extent of its background."""
    shows = any(part.get("id", "").startswith("QuadMesh") or part.tag == f"{{{_SVG}}}image" for part in axes.iter())
    path = next((part.get("d", "") for part in axes.iter(f"{{{_SVG}}}path")), "")
    numbers = [float(v) for v in re.findall(r"-?\d+\.?\d*", path)]
    if not shows or len(numbers) < 4:
        return None
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])


def _inside(text: ET.Element, box: Box) -> bool:
    for part in text.iter():
        if found := re.match(r"translate\((-?[\d.]+)[ ,]+(-?[\d.]+)\)", part.get("transform", "")):
            x, y = float(found[1]), float(found[2])
            return box[0] <= x <= box[2] and box[1] <= y <= box[3]
    return False
