"""The figures that readers set, in a browser without a network: what they compute and how they are worked."""

import functools
import json
import math
import re

import pytest
import torch
from conftest import ROOT
from scipy.special import erf, erfinv

from studybook import calibration, metrics, synthetic

SCRIPTS = ROOT / "book" / "_published" / "scripts"
RATIOS = (0.1, 0.5, 0.9, 0.95, 1.05, 2.0)
THRESHOLDS = (0.1, 1e-3, 1e-6)
LR, LEVEL, LAST = 0.01, 0.95, 1_000_000
STEPS = sorted({0} | {round(10 ** (k / 8)) for k in range(6 * 8 + 1)})
BACKGROUNDS = {"light": "#ffffff", "dark": "#121212"}
THEME = """
html { --pst-color-background: #fff; --pst-color-text-base: #222832; --pst-color-text-muted: #48566b; }
html[data-theme="dark"] {
  --pst-color-background: #121212; --pst-color-text-base: #ced6dd; --pst-color-text-muted: #9ca4af;
}
body { margin: 16px; font-family: sans-serif; background: var(--pst-color-background); }
"""
pytestmark = pytest.mark.slow


@functools.cache
def law(ratio):
    return synthetic.marchenko_pastur(ratio)


def expected(ratio, step):
    """Training and generalization loss in the limit of many dimensions, as the study has them."""
    values, weights = law(ratio)
    left = (1 - 2 * LR * values) ** (2 * step)
    return [float(weights * values @ left), float(weights @ left)]


def arrivals(ratio, threshold):
    """The first steps at which the accuracies reach the level; infinity if not before the last."""
    goal = threshold / (2 * erfinv(LEVEL) ** 2)
    found = []
    for which in range(2):
        low, high = 0, LAST
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if expected(ratio, middle)[which] <= goal else (middle + 1, high)
        found.append(low if low < LAST else math.inf)
    return found


@functools.cache
def temperature():
    """One network's scores: logits that are right about themselves, times 2."""
    logits, labels = synthetic.calibrated(4000, 10, 0)
    temperatures = [2 ** (i / 6) for i in range(-12, 19)]
    swept = 2 * logits / torch.tensor(temperatures)[:, None, None]
    bins = calibration.reliability(swept.softmax(-1), labels, 15)
    return {
        "label": "ResNet-14",
        "networks": 1,
        "temperatures": temperatures,
        **{name: getattr(bins, name).tolist() for name in ("count", "accuracy", "confidence")},
        "ece": calibration.ece(bins).tolist(),
        "nll": metrics.nll(swept, labels).tolist(),
        "fitted": 1.98,
    }


@functools.cache
def grokking():
    runs = {}
    for ratio in (0.5, 0.9, 1.05):
        loss = [list(pair) for pair in zip(*(expected(ratio, step) for step in STEPS), strict=True)]
        right = [[float(erf(math.sqrt(1e-3 / (2 * max(one, 1e-300))))) for one in row] for row in loss]
        runs[f"{ratio:g}"] = {"loss": loss, "accuracy": right}
    numbers = {"lr": LR, "level": LEVEL, "threshold": 1e-3, "main": 0.9, "last": LAST}
    return numbers | {"steps": STEPS, "ratios": runs}


DATA = {"temperature": temperature, "grokking": grokking}


@pytest.fixture
def page(browser):
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.failed = []
    page.on("requestfailed", lambda request: page.failed.append(request.url))
    page.on("pageerror", lambda error: page.failed.append(str(error)))
    page.on("console", lambda message: page.failed.append(message.text))
    yield page
    assert page.failed == []
    context.close()


@pytest.fixture
def show(page, tmp_path):
    """Opens a page with one explorer per text of data; the scripts and the style lie where the book has them."""

    def show(kind, *texts, theme="light"):
        divs = [
            f'<div class="explorer" data-explorer="{kind}"><script type="application/json">{text}</script></div>'
            for text in texts or (json.dumps(DATA[kind]()),)
        ]
        names = [SCRIPTS / f"{name}.js" for name in ("explorer", kind)]
        scripts = "".join(f'<script src="{name.as_uri()}" defer></script>' for name in names)
        file = tmp_path / "page.html"
        file.write_text(
            f'<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8"><title>page</title>'
            '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
            f'<style>{THEME}</style><link rel="stylesheet" href="{(SCRIPTS / "explorer.css").as_uri()}">'
            f"{scripts}<body>{''.join(divs)}"
        )
        page.goto(file.as_uri())
        return page

    return show


@pytest.mark.parametrize("ratio", RATIOS)
def test_losses_in_the_page_are_those_of_the_closed_form(show, ratio):
    page = show("grokking")
    steps = [0, 1, 10, 100, 1000, 10_000, 100_000, 1_000_000]
    found = page.evaluate("([r, steps]) => steps.map((t) => studybook.grokking.expected(r, t))", [ratio, steps])
    for step, pair in zip(steps, found, strict=True):
        for mine, reference in zip(pair, expected(ratio, step), strict=True):
            assert mine == pytest.approx(reference, rel=1e-8 if reference > 1e-13 else 1e-3, abs=1e-40), step


def test_accuracies_in_the_page_are_those_of_the_error_function(show):
    page = show("grokking")
    losses = [10 ** (k / 4) for k in range(-60, 9)]
    for threshold in (1e-12, 1e-3, 10):
        found = page.evaluate(
            "([losses, e]) => losses.map((loss) => studybook.grokking.accuracy(loss, e))", [losses, threshold]
        )
        assert found == pytest.approx([float(erf(math.sqrt(threshold / 2 / loss))) for loss in losses], rel=1e-12)
    assert page.evaluate("studybook.grokking.accuracy(0, 0.001)") == 1


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_delays_in_the_page_are_those_of_the_closed_form(show, ratio, threshold):
    train, general = arrivals(ratio, threshold)
    grokking = "window.studybook.grokking"
    found = show("grokking").evaluate(
        f"([r, e]) => [...{grokking}.arrivals(r, e), {grokking}.delay(r, e)].map((t) => t === Infinity ? null : t)",
        [ratio, threshold],
    )
    wanted = [train, general, math.inf if general == math.inf else general - train]
    assert [math.inf if step is None else step for step in found] == wanted


def readout(page):
    return page.locator("output").inner_text()


def drawn_ece(page):
    """The mean gap of the bars in the picture, each weighed by the share of images that its opacity shows."""
    total = weighed = 0.0
    bars = page.locator("svg.explorer-panel .explorer-bar").all()
    gaps = page.locator("svg.explorer-panel .explorer-gap").all()
    for bar, gap in zip(bars, gaps, strict=True):
        share = (float(bar.get_attribute("fill-opacity")) - 0.35) / 0.65
        total, weighed = total + share, weighed + share * float(gap.get_attribute("height")) / 290
    return weighed / total


def test_the_drawn_bins_have_the_expected_calibration_error(show):
    page, data = show("temperature"), temperature()
    slider = page.get_by_role("slider")
    for key in ("Home", "PageUp", "End"):
        slider.press(key)
        place = int(slider.input_value())
        assert drawn_ece(page) == pytest.approx(data["ece"][place], abs=1e-6)
        assert page.locator("svg.explorer-panel .explorer-bar").count() == sum(n > 0 for n in data["count"][place])


def test_the_keyboard_moves_the_temperature_and_readout_and_dots_follow(show):
    page, data = show("temperature"), temperature()
    slider, dots = page.get_by_label("temperature T"), page.locator(".explorer-dot")
    assert slider.get_attribute("aria-valuetext") == "temperature 1.00"
    page.keyboard.press("Tab")
    before = [dot.get_attribute("cx") for dot in dots.all()]
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "temperature 1.12"
    assert readout(page) == (
        f"T = 1.12: ECE {100 * data['ece'][13]:.1f} %, NLL {data['nll'][13]:.2f}; accuracy never changes"
    )
    assert page.locator(".explorer-value").inner_text() == "1.12"
    after = [dot.get_attribute("cx") for dot in dots.all()]
    assert len(after) == 2
    assert all(float(a) - float(b) == pytest.approx(294 / 30, abs=1e-6) for a, b in zip(after, before, strict=True))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert readout(page).startswith("T = 2.00: ")
    page.get_by_role("button", name="T = 1", exact=True).press("Space")
    assert readout(page).startswith("T = 1.00: ")


def test_the_keyboard_moves_ratio_and_threshold_and_the_delay_follows(show):
    page = show("grokking")
    train, general = arrivals(0.9, 1e-3)
    assert readout(page) == (
        f"λ = 0.9, ε = 0.001: training reaches 95 % at step {train:,}, generalization at step {general:,}; "
        f"a delay of {general - train:,} steps"
    )
    ratio, threshold = page.get_by_role("slider").all()
    mark = page.locator("svg.explorer-panel line.explorer-delay").first
    before = mark.get_attribute("x2")
    threshold.press("ArrowRight")
    assert threshold.get_attribute("aria-valuetext") == "threshold 0.0018"
    train, general = arrivals(0.9, 0.0018)
    assert readout(page).endswith(f"a delay of {general - train:,} steps")
    assert float(mark.get_attribute("x2")) < float(before)
    ratio.press("End")
    assert ratio.get_attribute("aria-valuetext") == "ratio 3"
    assert "generalization never by step 1,000,000; the delay never ends" in readout(page)


def test_simulated_dots_are_drawn_only_where_they_were_simulated(show):
    page = show("grokking")
    losses, accuracies = (svg.locator("circle.explorer-run") for svg in page.locator("svg.explorer-panel").all())
    ratio, threshold = page.get_by_role("slider").all()
    assert losses.count() > 60
    assert accuracies.count() == 2 * len(STEPS)
    threshold.press("ArrowLeft")
    assert losses.count() > 60
    assert accuracies.count() == 0
    ratio.press("ArrowLeft")
    assert losses.count() == 0


def test_every_simulated_ratio_and_threshold_is_a_stop_and_none_is_near_one(show):
    page = show("grokking")
    expected_stops = (({"0.5", "0.9", "1.05"}, ("0.05", "3")), ({"0.001"}, ("1e-12", "10")))
    for slider, (wanted, ends) in zip(page.get_by_role("slider").all(), expected_stops, strict=True):
        slider.press("Home")
        seen = []
        for _ in range(int(slider.get_attribute("max")) + 1):
            seen.append(slider.get_attribute("aria-valuetext").split()[1])
            slider.press("ArrowRight")
        assert (seen[0], seen[-1]) == ends
        assert wanted <= set(seen)
        assert len(set(seen)) == len(seen)
        if wanted != {"0.001"}:
            assert min(abs(float(one) - 1) for one in seen) >= 0.03


@pytest.mark.parametrize("kind", DATA)
def test_pictures_have_names_that_change_with_the_readout(show, kind):
    page = show(kind)
    pictures = page.get_by_role("img").all()
    assert len(pictures) == 2
    for _ in range(2):
        assert all(picture.get_attribute("aria-label").endswith(readout(page)) for picture in pictures)
        page.get_by_role("slider").first.press("ArrowRight")
    assert page.locator("output").get_attribute("aria-live") == "polite"


WRONG = [
    ("temperature", {"ece": [0.1]}, "ece must hold a number in [0, 1] for each temperature"),
    ("temperature", {"temperatures": [2, 1]}, "temperatures must be two or more rising positive numbers"),
    ("temperature", {"count": [[0] * 15] * 31}, "count must hold a row of bins, not all empty, for each temperature"),
    (
        "temperature",
        {"accuracy": [[None] * 15] * 31},
        "accuracy must hold a number in [0, 1] for each bin of count that is not empty",
    ),
    ("grokking", {"ratios": {}}, "ratios must hold one ratio or more"),
    ("grokking", {"main": 1}, "main must be positive and not near 1"),
    ("grokking", {"lr": 0.2}, "lr must be so small that the loss falls"),
    ("grokking", {"ratios": {"0.9": {"loss": [[1], [1]]}}}, "loss at ratio 0.9 must hold two numbers for each step"),
]


def assert_one_sentence_and_one_explorer(page, why):
    wrong, right = page.locator(".explorer").all()
    assert wrong.inner_text() == f"This explorer cannot be drawn, for its data are wrong: {why}."
    assert wrong.locator("svg").count() == 0
    assert right.locator("svg.explorer-panel").count() == 2


@pytest.mark.parametrize(("kind", "change", "why"), WRONG)
def test_wrong_data_give_one_sentence_and_spare_the_other_explorers(show, kind, change, why):
    data = DATA[kind]()
    assert_one_sentence_and_one_explorer(show(kind, json.dumps(data | change), json.dumps(data)), why)


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "they are not JSON"), ('{"label": "Res', "they are not JSON"), ("null", "they are no object")],
)
def test_what_is_no_data_gives_one_sentence(show, text, why):
    assert_one_sentence_and_one_explorer(show("temperature", text, json.dumps(temperature())), why)


def test_empty_bins_may_hold_anything(show):
    data = json.loads(json.dumps(temperature()))
    for count, row in zip(data["count"], data["accuracy"], strict=True):
        row[:] = [value if images else None for value, images in zip(row, count, strict=True)]
    assert show("temperature", json.dumps(data)).locator("svg.explorer-panel").count() == 2


def luminance(color):
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", BACKGROUNDS)
@pytest.mark.parametrize("kind", DATA)
def test_text_and_lines_stand_out_from_the_page(show, kind, theme):
    page = show(kind, theme=theme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert luminance(ground) == pytest.approx(luminance(str(tuple(bytes.fromhex(BACKGROUNDS[theme][1:])))))
    for what, selector, least in (
        ("fill", "svg.explorer-panel text", 4.5),
        ("color", ".explorer label, .explorer button, .explorer li, .explorer output, .explorer-value", 4.5),
        ("stroke", "svg.explorer-panel :is(path, line), .explorer-bar, .explorer-gap", 3),
        ("fill", ".explorer-dot, .explorer-run", 3),
    ):
        colors = page.evaluate(
            "([s, w]) => [...document.querySelectorAll(s)].map((e) => getComputedStyle(e)[w])", [selector, what]
        )
        assert colors
        assert min(contrast(color, ground) for color in colors) >= least, (selector, set(colors))


@pytest.mark.parametrize("kind", DATA)
def test_panels_stack_on_a_phone_and_text_stays_legible(show, kind):
    page = show(kind)
    wide = [picture.bounding_box() for picture in page.locator("svg.explorer-panel").all()]
    assert wide[0]["y"] == wide[1]["y"]
    page.set_viewport_size({"width": 390, "height": 800})
    narrow = [picture.bounding_box() for picture in page.locator("svg.explorer-panel").all()]
    assert narrow[1]["y"] >= narrow[0]["y"] + narrow[0]["height"]
    assert all(box["width"] >= 280 for box in narrow)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    heights = page.evaluate(
        "[...document.querySelectorAll('svg.explorer-panel text')].map("
        "(e) => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)"
    )
    assert min(heights) >= 11


def test_explorers_are_not_printed(show):
    page = show("temperature")
    page.emulate_media(media="print")
    assert not page.locator(".explorer").is_visible()
