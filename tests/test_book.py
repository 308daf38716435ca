"""The built book, read in a browser without a network."""

import json
import re
import shutil

import pytest
from conftest import ROOT

HTML = ROOT / "book" / "_build" / "html"
STUDIES = sorted(f"{file.parent.name}/{file.stem}" for file in (ROOT / "notebooks").glob("*/*.ipynb"))
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("users_book")]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pages():
    return [
        file for file in sorted(HTML.rglob("*.html")) if file.name not in ("index.html", "search.html", "genindex.html")
    ]


def test_every_page_of_the_toc_is_there():
    built = {str(file.relative_to(HTML)) for file in pages()}
    parts = {f"parts/{study.partition('/')[0]}.html" for study in STUDIES}
    assert {"intro.html", "scoreboard.html", *parts, *(f"studies/{study}.html" for study in STUDIES)} <= built


def test_pages_load_nothing_from_elsewhere():
    for file in pages():
        text = file.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link[^>]* rel=\"(?:stylesheet|preload)\"[^>]* href=\"([^\"]+)\"", text)
        assert loaded
        assert [address for address in loaded if "://" in address or address.startswith("//")] == [], file


@pytest.mark.parametrize("study", STUDIES)
def test_every_figure_of_a_study_has_alt_text(study):
    text = (HTML / "studies" / f"{study}.html").read_text()
    images = re.findall(r"<img[^>]*>", text.partition("<article")[2])
    assert len(images) >= 3
    assert all(len(re.search(r'alt="([^"]*)"', image)[1]) > 40 for image in images if "_images" in image)


@pytest.mark.parametrize("study", STUDIES)
def test_pages_show_no_error_and_no_progress_bars(study):
    text = (HTML / "studies" / f"{study}.html").read_text()
    assert "Traceback" not in text
    assert "it/s]" not in text
    assert "img/s]" not in text


def test_the_sources_are_not_published():
    assert not list(HTML.rglob("*.ipynb"))


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.failed = []  # but for the theme, which declares the address of its live-code script twice and loads it never
    page.on("requestfailed", lambda request: page.failed.append(request.url))
    page.on("pageerror", lambda error: page.failed.append(str(error)) if "THEBE_JS_URL" not in str(error) else None)
    yield page
    context.close()


def test_formulas_are_set_without_a_network(page):
    page.goto((HTML / "studies" / "calibration" / "calibration.html").as_uri())
    page.wait_for_selector("mjx-container mjx-math")
    assert page.locator("mjx-container").count() >= 4
    assert page.failed == []


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_page_shows_verdicts_provenance_and_answers(page, study):
    record = json.loads((ROOT / "book" / "studies" / f"{study}.json").read_text())
    page.goto((HTML / "studies" / f"{study}.html").as_uri())
    shown = page.locator("div.verdict .badge").all_inner_texts()
    assert shown == [claim["verdict"] for claim in record["claims"]]
    page.get_by_text("How this page was made").click()
    assert page.locator("table.provenance").is_visible()
    assert record["inputs"]["notebook"] in page.locator("table.provenance").inner_text()
    answer = page.locator("details.answer").first
    assert not answer.locator("p").last.is_visible()
    answer.locator("summary").click()
    assert answer.locator("p").last.is_visible()


def test_the_scoreboard_lists_every_claim_of_every_record(page):
    page.goto((HTML / "scoreboard.html").as_uri())
    records = [json.loads((ROOT / "book" / "studies" / f"{study}.json").read_text()) for study in STUDIES]
    records += [
        json.loads(f.read_text()) for f in (ROOT / "book" / "results").glob("*/*/run.json") if "quick" not in f.parts
    ]
    assert page.locator("table.scoreboard tbody tr").count() == sum(len(record["claims"]) for record in records)
    assert page.locator("svg.interval").count() == page.locator("table.scoreboard tbody tr").count()


def test_search_finds_a_word_offline(page):
    page.goto((HTML / "search.html").as_uri() + "?q=temperature")
    page.wait_for_selector("#search-results li")
    assert "Modern networks are overconfident" in page.locator("#search-results").inner_text()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_page(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    for name in ("intro", "scoreboard", "rerun", *(f"studies/{study}" for study in STUDIES)):
        page.goto((HTML / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
