"""Slides as files: what they say in which order, and that nothing comes from elsewhere; test_book looks at them."""

import html
import json
import re

import pytest
from conftest import ROOT

from studybook import pages, slides, studies

MODULE = """# Module: coins

On {doc}`/studies/money/coins`.

## Goals

- Toss fairly.

## Live demo

Usual guess: heads.

## Discussion

1. Is a coin
fair?

:::{dropdown} Points to listen for
Say nothing of this.
:::

2. Are two?

:::{dropdown} Points to listen for
Nor of this.
:::

## Assignment

None.
"""


@pytest.fixture
def made(tmp_path):
    study = studies.find("calibration")
    record = json.loads((ROOT / "book" / "results" / "calibration" / "quick" / "run.json").read_text())
    figure = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="10pt" height="10pt" viewBox="0 0 10 10"><g id="axes_1"/></svg>'
    )
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "## A curve\n\n$$a < b$$"},
        {"cell_type": "code", "metadata": {"mystnb": {"image": {"alt": 'a "rising" curve'}}}, "source": "",
         "outputs": [{"output_type": "display_data", "metadata": {}, "data": {"image/svg+xml": figure}}]},
    ]  # fmt: skip
    shown = pages.Entry(study, record, ())
    file = slides.slides(shown, {"cells": cells}, MODULE, tmp_path)
    return record, file, file.read_text()


def test_claims_come_before_figures_and_verdicts_after(made):
    record, _, text = made
    headings = re.findall(r"<h[12][^>]*>(.*?)<", text)
    kinds = list(dict.fromkeys(h for h in headings if not h.startswith("Discussion")))
    assert kinds[1:] == ["After this session", "What will hold? Write it down", "A curve", "What held"]
    before, after = text.split(">What held<", 1)
    assert all(claim["name"] in before and claim["name"] in after for claim in record["claims"])
    assert after.count('<span class="') == len(record["claims"])


def test_discussion_has_the_questions_and_keeps_the_points_for_the_speaker(made):
    _, _, text = made
    assert "Is a coin\nfair?" in text
    assert "Are two?" in text
    assert "Say nothing of this" not in text
    assert re.search(r'<aside class="notes">.*?Usual guess: heads', text, re.S)


def test_without_a_module_the_exercises_are_discussed_without_their_answers(tmp_path):
    text = (
        "## Exercises\n\n1. *Is a coin\nfair?*\n\n<details><summary>Answer</summary>\n\n1. Never.\n\n</details>\n\n"
        "2. *Are two?*\n\n<details>\n\nNor they.\n\n</details>\n"
    )
    assert slides.exercises({"cells": [{"cell_type": "markdown", "source": text}]}) == [
        "*Is a coin\nfair?*",
        "*Are two?*",
    ]
    study = studies.find("calibration")
    record = json.loads((ROOT / "book" / "results" / "calibration" / "quick" / "run.json").read_text())
    made = slides.slides(pages.Entry(study, record, ()), {"cells": []}, "", tmp_path).read_text()
    asked = slides.exercises(studies.notebook(study.source))
    assert len(asked) >= 3
    assert f"Discussion, {len(asked)} of {len(asked)}" in made


def test_figures_are_files_beside_the_slides_with_their_alt_text(made):
    _, file, text = made
    (image,) = re.findall(r"<img [^>]+>", text)
    assert 'src="calibration-1.svg"' in image
    assert html.unescape(re.search(r"""alt=(["'])(.*?)\1""", image)[2]) == 'a "rising" curve'
    assert (file.parent / "calibration-1.svg").exists()


def test_nothing_is_loaded_from_elsewhere_and_all_of_reveal_is_there(made):
    _, file, text = made
    loaded = re.findall(r'<(?:script|link)[^>]+(?:src|href)="([^"]+)"', text)
    assert all((file.parent / name).exists() for name in loaded if not name.startswith("../mathjax/"))
    assert len(loaded) >= 4
    assert not re.search(r"<script[^>]*>[^<]*import .* from '", text)


def test_a_page_without_a_section_gives_nothing():
    assert slides.section(MODULE, "Reading") == ""
    assert slides.section("", "Goals") == ""
