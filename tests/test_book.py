"""The built book, read in a browser without a network."""

import csv
import html.parser
import io
import json
import re
import shlex
import subprocess
import sys
import urllib.parse
import zipfile

import click
import jsonschema
import pytest
from conftest import CHROMIUM, DRAWN, ROOT

from studybook import figures, runner, studies

HTML = DRAWN / "book" / "_build" / "html"
STUDIES = sorted(f"{file.parent.name}/{file.stem}" for file in (ROOT / "notebooks").glob("*/*.ipynb"))
PAGES = ("intro", "scoreboard", *(f"studies/{study}" for study in STUDIES))
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("drawn_book")]


def pages():
    return [
        file
        for file in sorted(HTML.rglob("*.html"))
        if file.relative_to(HTML).as_posix() not in ("index.html", "search.html", "genindex.html")
        and "slides" not in file.parts
    ]


def shown(study):
    return json.loads((DRAWN / "book" / "studies" / f"{study}.json").read_text())


def all_records():
    return [json.loads(file.read_text()) for file in (ROOT / "book" / "results").glob("*/*/run.json")]


# ---------------------------------------------------------------- files


class Addresses(html.parser.HTMLParser):
    """What a page links to and loads, and the ids that can be linked."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id"))
        if tag in ("a", "link", "img", "script", "iframe", "source"):
            self.links += [values[name] for name in ("href", "src") if values.get(name)]


def test_every_page_of_the_toc_is_there():
    built = {str(file.relative_to(HTML)) for file in pages()}
    parts = {f"parts/{study.partition('/')[0]}.html" for study in STUDIES}
    assert {*(f"{name}.html" for name in PAGES), *parts, "find.html", "cite.html", "teach.html"} <= built


def test_every_internal_link_leads_somewhere():
    found = {file.resolve(): Addresses(file.read_text()) for file in HTML.rglob("*.html")}
    broken, checked = [], 0
    for file, page in found.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else file
            anchor = urllib.parse.unquote(parts.fragment)
            checked += 1
            if not target.exists() or (anchor and target in found and anchor not in found[target].ids):
                broken.append(f"{file.relative_to(HTML)}: {link}")
    assert checked > 1000
    assert broken == []


@pytest.mark.parametrize("study", STUDIES)
def test_every_figure_of_a_study_has_alt_text(study):
    text = (HTML / "studies" / f"{study}.html").read_text()
    images = re.findall(r"<img[^>]*>", text.partition("<article")[2])
    assert len(images) >= 6
    assert all(len(re.search(r'alt="([^"]*)"', image)[1]) > 40 for image in images if "_images" in image)


@pytest.mark.parametrize("study", STUDIES)
def test_pages_show_no_error_and_no_progress_bars(study):
    text = (HTML / "studies" / f"{study}.html").read_text()
    assert "Traceback" not in text
    assert "it/s]" not in text
    assert "img/s]" not in text


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_weighs_less_than_a_photo(study):
    page = HTML / "studies" / f"{study}.html"
    loaded = {(page.parent / link).resolve() for link in Addresses(page.read_text()).links if ".light.svg" in link}
    scripts = [HTML / "scripts" / name for name in ("explorer.js", "rerun.js", "grokking.js", "temperature.js")]
    assert len(loaded) >= 3
    assert sum(file.stat().st_size for file in [page, *loaded, *scripts]) < 1_500_000


def test_notebooks_are_published_as_they_are_in_the_repository_but_without_answers():
    published = sorted(HTML.rglob("*.ipynb"))
    assert [str(file.relative_to(HTML / "notebooks"))[:-6] for file in published] == STUDIES
    for file in published:
        offered, source = (json.loads((base / file.relative_to(HTML)).read_text()) for base in (HTML, ROOT))
        *cells, exercises = offered["cells"]
        assert [(c["id"], "".join(c["source"])) for c in cells] == [
            (c["id"], "".join(c["source"])) for c in source["cells"][:-1]
        ]
        assert "## Exercises" in "".join(exercises["source"])
        assert "Answer" not in "".join(exercises["source"])


def test_no_figure_of_an_earlier_build_is_left():
    text = "".join(file.read_text() for file in HTML.rglob("*.html"))
    images = list((HTML / "_images").iterdir())
    assert images
    assert all(image.name in text for image in images)


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK], ids=lambda theme: theme.name)
def test_text_in_figures_can_be_read(theme):
    found = list((HTML / "_images").glob(f"*.{theme.name}.svg"))
    assert len(found) >= 20
    for file in found:
        svg = file.read_text()
        if "<image" in svg or "QuadMesh" in svg:  # text on a heat map's cells is not on the ground
            continue
        for group in re.findall(r'<g id="text_\d+">.*?fill: (#[0-9a-f]{6})', svg, re.DOTALL):
            assert figures.contrast(group, theme.ground) >= figures.TEXT, file
        for stroke in re.findall(r'id="line2d_\d+"><path [^>]*stroke: (#[0-9a-f]{6})[^>]*stroke-width: 1\.[2-9]', svg):
            assert figures.contrast(stroke, theme.ground) >= figures.LINES, file


# ---------------------------------------------------------------- in a browser


def watched(context):
    """A page that notes in `.wrong` what fails, complains, or asks for anything but files of this machine."""
    page = context.new_page()
    page.wrong = []
    page.on("requestfailed", lambda request: page.wrong.append(f"failed: {request.url}"))
    page.on("pageerror", lambda error: page.wrong.append(f"error: {error}"))
    page.on("console", lambda line: page.wrong.append(line.text) if line.type in ("error", "warning") else None)
    page.on(
        "request",
        lambda request: page.wrong.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    return page


@pytest.fixture
def page(browser):
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    yield watched(context)
    context.close()


def open_page(page, name, query=""):
    page.goto((HTML / f"{name}.html").as_uri() + query)
    page.wait_for_load_state("load")


def follow(page, link):
    """Click, and wait until the page that it leads to has loaded: a click alone returns before."""
    with page.expect_navigation(wait_until="load"):
        link.click()


def test_every_page_loads_without_a_complaint_or_a_request_off_the_machine(page):
    slides = sorted((HTML / "slides").glob("*.html"))
    assert [file.stem for file in slides] == sorted(study.partition("/")[2] for study in STUDIES)
    for file in [*pages(), *slides, HTML / "search.html", HTML / "genindex.html"]:  # index.html only leads on
        page.goto(file.as_uri())
        page.wait_for_load_state("load")
        page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        page.wait_for_function("[...document.images].every(i => i.complete || !i.offsetParent)")
        broken = "[...document.images].filter(i => i.offsetParent && !i.naturalWidth).map(i => i.src)"
        assert page.evaluate(broken) == []
        assert page.wrong == [], file


def test_formulas_are_set_without_a_network(page):
    open_page(page, "studies/calibration/calibration")
    page.wait_for_selector("mjx-container mjx-math")
    assert page.locator("mjx-container").count() >= 4
    assert page.wrong == []


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_page_shows_verdicts_of_all_profiles_provenance_and_answers(page, study):
    record, name = shown(study), study.partition("/")[2]
    quick = json.loads((ROOT / "book" / "results" / name / "quick" / "run.json").read_text())
    open_page(page, f"studies/{study}")
    assert page.locator("div.verdict > .badge").all_inner_texts() == [c["verdict"] for c in record["claims"]]
    beside = page.locator("ul.other-profiles li:has(code:text-is('quick')) .badge").all_inner_texts()
    assert beside == [c["verdict"] for c in quick["claims"]]
    page.get_by_text("How this page was made").click()
    assert page.locator("table.provenance").is_visible()
    assert record["inputs"]["notebook"] in page.locator("table.provenance").inner_text()
    assert page.locator(".exercise.admonition").count() >= 3
    answer = page.locator(".solution.dropdown").first
    assert not answer.locator("section p").last.is_visible()
    answer.locator("button.toggle-button").click()
    assert answer.locator("section p").last.is_visible()


@pytest.mark.parametrize("study", STUDIES)
def test_slides_show_claims_figures_and_verdicts_and_move_with_the_keys(page, study):
    name = study.partition("/")[2]
    open_page(page, f"slides/{name}")
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    claims = shown(study)["claims"]
    texts, sizes, told = [], [], []
    verdicts = "Reveal.getCurrentSlide().querySelectorAll('.reproduced, .contradicted, .inconclusive').length"
    for _ in range(page.evaluate("Reveal.getTotalSlides()")):
        texts.append(page.evaluate("Reveal.getCurrentSlide().innerText"))
        sizes.append(page.evaluate("Reveal.getCurrentSlide().scrollHeight"))
        told.append(page.evaluate(verdicts))
        page.keyboard.press("ArrowRight")
    assert page.evaluate("Reveal.isLastSlide()")
    assert max(sizes) <= 750, [text for text, size in zip(texts, sizes, strict=True) if size > 750]
    first = next(i for i, text in enumerate(texts) if text.startswith("What held"))
    for claim in claims:
        assert any(claim["name"] in text for text in texts[:first])
        assert any(claim["name"] in text and claim["verdict"] in text for text in texts[first:])
    assert sum(told[:first]) == 0
    assert sum(told[first:]) == len(claims)
    pictures = "[...document.images].map(i => [i.naturalWidth, i.alt.length])"
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    drawn = page.evaluate(pictures)
    assert len(drawn) >= 3
    assert all(width > 0 and alt > 40 for width, alt in drawn)
    assert sum(text.startswith("Discussion") for text in texts) >= 3  # at least a study's own exercises
    assert page.wrong == []


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_begins_with_a_card(page, study):
    one = studies.find(study.partition("/")[2])
    open_page(page, f"studies/{study}")
    card = page.locator(".study-card").inner_text()
    assert one.about["paper"]["title"].split(" --")[0] in card
    assert re.search(r"\d+ minutes, \d+ claims and \d+ controls", card)
    assert all(f"Verdicts, {profile}" in card for profile in one.profiles)
    counted = [int(text.split()[0]) for text in page.locator(".study-card a.badge").all_inner_texts()]
    assert sum(counted) == 2 * len(shown(study)["claims"])  # quick and standard


@pytest.mark.parametrize("study", STUDIES)
def test_rows_behind_figures_are_linked_and_hold_what_was_measured(page, study):
    open_page(page, f"studies/{study}")
    links = page.locator("p.figure-data a")
    assert links.count() >= 3
    for address in {links.nth(i).get_attribute("href") for i in range(links.count())}:
        rows = list(csv.DictReader(io.StringIO((HTML / "studies" / study).parent.joinpath(address).read_text())))
        assert rows
        assert all(None not in row and None not in row.values() for row in rows)


def test_the_scoreboard_lists_every_claim_of_every_record(page):
    open_page(page, "scoreboard")
    total = sum(len(record["claims"]) for record in all_records())
    assert page.locator("table.scoreboard tbody tr").count() == total
    assert page.locator("table.scoreboard svg.interval").count() == total
    assert page.locator("form.filters output").inner_text() == f"{total} of {total} claims"


def test_the_scoreboard_is_filtered_sorted_and_linked(page):
    open_page(page, "scoreboard", "?verdict=contradicted")
    visible = page.locator("table.scoreboard tbody tr:visible")
    contradicted = [c for record in all_records() for c in record["claims"] if c["verdict"] == "contradicted"]
    assert visible.count() == len(contradicted)
    page.locator("select[name=part]").select_option("dynamics")
    page.locator("select[name=profile]").select_option("standard")
    standard = json.loads((ROOT / "book" / "results" / "grokking" / "standard" / "run.json").read_text())
    assert visible.count() == sum(c["verdict"] == "contradicted" for c in standard["claims"])
    assert "verdict=contradicted" in page.url
    assert "part=dynamics" in page.url
    page.get_by_role("button", name="Show all").click()
    page.locator("select[name=sort]").select_option("distance")
    distances = page.eval_on_selector_all("table.scoreboard tbody tr", "all => all.map(r => r.dataset.distance)")
    assert [float(d) for d in distances] == sorted(float(d) for d in distances)
    page.locator("input[name=words]").fill("one temperature removes")
    assert {text.strip() for text in visible.locator("td:first-child > a").all_inner_texts()} == {
        "one temperature removes at least half of the ECE"
    }
    open_page(page, "scoreboard", "?part=nowhere")
    assert visible.count() > len(contradicted)


def test_claims_as_data_hold_every_claim_and_fit_their_schema():
    facts = json.loads((HTML / "claims.json").read_text())
    schema = json.loads((HTML / "claims.schema.json").read_text())
    jsonschema.validate(facts, schema)
    assert facts["schema"] == 1
    judged = {f"{r['study']}/{c['name']}/{r['profile']}": c for r in all_records() for c in r["claims"]}
    assert {fact["id"] for fact in facts["claims"]} == set(judged)
    for fact in facts["claims"]:
        claim = judged[fact["id"]]
        assert [fact[key] for key in ("mean", "low", "high", "n", "verdict")] == [
            claim[key] for key in ("mean", "low", "high", "n", "verdict")
        ]
        assert fact["threshold"] == claim[fact["side"]]
    rows = list(csv.DictReader(io.StringIO((HTML / "claims.csv").read_text())))
    assert [row["id"] for row in rows] == [fact["id"] for fact in facts["claims"]]
    documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", claims_page(), re.M)))
    assert set(documented) == set(facts["claims"][0]) == set(schema["properties"]["claims"]["items"]["required"])


def claims_page():
    return (ROOT / "book" / "claims.md").read_text()


def test_a_claim_has_an_address_that_leads_to_it(page):
    fact = next(f for f in json.loads((HTML / "claims.json").read_text())["claims"] if f["claim"] == "repaired")
    page.goto(f"{HTML.as_uri()}/{fact['page']}")
    assert page.locator("#claim-repaired").is_visible()
    assert page.evaluate("document.querySelector(':target').id") == "claim-repaired"


def test_the_front_page_has_a_dot_for_each_claim_and_three_ways_in(page):
    open_page(page, "intro")
    biggest = {record["study"]: record for record in all_records()}
    dots = page.locator("svg.all-claims circle")
    assert dots.count() == sum(len(record["claims"]) for record in biggest.values())
    follow(page, dots.first)
    assert "#claim-" in page.url
    for name, place in (("Read", "calibration.html"), ("Rerun", "rerun.html"), ("Teach", "teach.html")):
        open_page(page, "intro")
        follow(page, page.locator(".sd-card", has_text=name).first)
        assert place in page.url


def test_search_finds_a_word_offline(page):
    open_page(page, "search", "?q=temperature")
    page.wait_for_selector("#search-results li")
    assert "Modern networks are overconfident" in page.locator("#search-results").inner_text()
    assert page.wrong == []


def test_the_index_leads_from_method_data_and_paper_to_the_study(page):
    open_page(page, "find")
    text = page.locator("article").inner_text()
    for study in STUDIES:
        one = studies.find(study.partition("/")[2])
        assert text.count(one.about["title"]) >= 1 + len(one.about["methods"]) + max(1, len(one.about["data"]))
    follow(page, page.get_by_role("listitem").filter(has_text="temperature scaling").get_by_role("link"))
    assert page.url.endswith("calibration/calibration.html")


# ---------------------------------------------------------------- the form


def as_studybook(words):
    """What the real command line makes of the words: study, profile, parameters with their types."""
    assert words[:2] == ["studybook", "run"]
    context = runner.main.commands["run"].make_context("run", words[2:])
    (name,) = context.params["names"]
    study, profile = studies.find(name), context.params["profile"]
    given = {**study.profile(profile)["parameters"], **dict(context.params["given"])}
    return {**studies.parameters(study), **studies.typed(study, given)}


def as_papermill(words, study):
    """What papermill's own command line makes of them."""
    from papermill import cli

    context = cli.papermill.make_context("papermill", words[1:])
    typed = {name: cli._resolve_type(value) for name, value in context.params["parameters"]}
    return {**studies.parameters(study), **typed, **dict(context.params["parameters_raw"])}


@pytest.mark.parametrize("study", STUDIES)
def test_the_form_composes_commands_that_mean_what_was_filled_in(page, study):
    one = studies.find(study.partition("/")[2])
    open_page(page, f"studies/{study}")
    form = page.locator("form.rerun")
    form.get_by_text(re.compile(r"\d+ parameters")).click()
    for profile in one.profiles:
        form.get_by_label("Profile").select_option(profile)
        wanted = {**studies.parameters(one), **one.profile(profile)["parameters"]}
        for parameter in studies.parameter_lines(one)[:4]:
            value = other(wanted[parameter.name])
            wanted[parameter.name] = value
            field = form.locator(f"#rerun-{parameter.name}")
            field.set_checked(value) if isinstance(value, bool) else field.fill(str(value))
        first, second = form.locator(".command code").all_inner_texts()
        assert as_studybook(shlex.split(first)) == wanted
        assert as_papermill(shlex.split(second), one) == wanted
        assert {n: type(v) for n, v in as_papermill(shlex.split(second), one).items()} == {
            n: type(v) for n, v in as_studybook(shlex.split(first)).items()
        }


def other(value):
    """A value of the same type that needs care on a command line."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return -2.5e-7
        case _:
            return "it's $HOME, 1"


def test_the_form_refuses_what_is_no_number_and_says_so(page):
    open_page(page, "studies/calibration/calibration")
    form = page.locator("form.rerun")
    form.get_by_text("22 parameters").click()
    form.get_by_label("Profile").select_option("quick")
    form.get_by_label("SEEDS").fill("many")
    assert form.locator(".problem").inner_text() == "SEEDS must be a whole number, got “many”."
    assert form.locator(".command code").all_inner_texts() == ["", ""]
    form.get_by_label("SEEDS").fill("9")
    assert form.locator(".problem").inner_text() == ""
    assert form.locator(".command code").first.inner_text() == "studybook run calibration -p SEEDS 9"
    form.get_by_label("Profile").select_option("standard")
    kept = "studybook run calibration --profile standard -p SEEDS 9"
    assert form.locator(".command code").first.inner_text() == kept
    with pytest.raises(click.ClickException):
        as_studybook(shlex.split("studybook run calibration -p SEEDS many"))


# ---------------------------------------------------------------- for everybody


# colors come from one sheet, and the figures' are tested above: a few dark pages stand for all
@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, "light") for name in PAGES] + [("intro", "dark"), ("scoreboard", "dark"), (PAGES[2], "dark")],
)
def test_axe_finds_no_serious_violation(browser, name, scheme):
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    open_page(page, name)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")
    found = Axe().run(page).response
    context.close()
    assert len(found["passes"]) > 20
    serious = [
        f"{v['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for v in found["violations"]
        for node in v["nodes"][:3]
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


@pytest.mark.parametrize("name", ["intro", "scoreboard", "studies/calibration/calibration"])
def test_the_keyboard_alone_reaches_everything(page, name):
    open_page(page, name)
    can_be_reached = """() => {
        const all = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")];
        return all.filter(e => e.tabIndex >= 0 && !e.disabled && e.checkVisibility({visibilityProperty: true})
            && !e.closest("[inert], dialog:not([open])")).map((e, i) => (e.dataset.stop = i));
    }"""
    stops, reached = set(page.evaluate(can_be_reached)), set()
    for _ in range(2 * len(stops) + 20):
        page.keyboard.press("Tab")
        stop = page.evaluate("document.activeElement.dataset.stop")
        if stop is not None:
            reached.add(int(stop))
    assert len(stops) > 30
    missed = [page.locator(f"[data-stop='{i}']").evaluate("e => e.outerHTML.slice(0, 120)") for i in stops - reached]
    assert missed == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_page(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    for file in pages():
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, file


@pytest.mark.parametrize("study", STUDIES)
def test_figures_are_large_enough_to_read_on_a_phone(page, study):
    page.set_viewport_size({"width": 390, "height": 844})
    open_page(page, f"studies/{study}")
    scales = page.eval_on_selector_all(
        "div.figure img.only-light", "all => all.map(i => i.getBoundingClientRect().width / i.getAttribute('width'))"
    )
    assert len(scales) >= 3
    assert min(scales) >= 0.7  # of the size it was drawn for: labels of ten points keep seven


def test_without_scripts_a_page_shows_each_figure_once_and_plain_commands(browser):
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    open_page(page, "studies/dynamics/grokking")
    figure = page.locator("div.figure")
    assert figure.count() >= 5
    assert all(one.locator("img:visible").count() == 1 for one in figure.all())
    assert page.locator("form.rerun code").first.inner_text() == "studybook run grokking"
    open_page(page, "scoreboard")
    assert page.locator("table.scoreboard tbody tr:visible").count() == sum(len(r["claims"]) for r in all_records())
    context.close()


@pytest.mark.parametrize(
    ("name", "label"), [("calibration/calibration", "temperature"), ("dynamics/grokking", "epsilon")]
)
def test_figures_that_move_do_so_on_the_page_by_keyboard(page, name, label):
    open_page(page, f"studies/{name}")
    explorer = page.locator(".explorer")
    slider = explorer.get_by_role("slider").last
    said = explorer.locator("output").last
    before = said.inner_text()
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert said.inner_text() != before
    assert page.wrong == []


# ---------------------------------------------------------------- other formats


@pytest.fixture(scope="module")
def formats(drawn_book):
    command = [sys.executable, "-m", "studybook.runner", "build", "--archive", *(["--pdf"] if CHROMIUM else [])]
    done = subprocess.run(command, cwd=DRAWN, env=drawn_book, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_archive_opens_from_any_folder(formats, page, tmp_path):
    assert "the archive is at book/_build/studybook.zip" in formats
    with zipfile.ZipFile(DRAWN / "book" / "_build" / "studybook.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "a folder")
    page.goto((tmp_path / "a folder" / "studybook" / "index.html").as_uri())
    page.wait_for_url("**/intro.html")
    follow(page, page.locator(".sd-card", has_text="Read").first)
    page.wait_for_selector("mjx-container mjx-math")
    assert page.locator(".explorer output").first.inner_text()
    assert page.wrong == []


def test_the_pdf_holds_every_study(formats):
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    pdf = (DRAWN / "book" / "_build" / "studybook.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", pdf)) > 10 * len(STUDIES)
