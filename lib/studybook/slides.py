"""Slides of a study as it was run: what was claimed, one figure a slide, then verdicts; reveal.js through nbconvert."""

import html
import importlib.util
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studybook import figures
from studybook.pages import Entry
from studybook.studies import Problem, notebook, write

CLAIMS_A_SLIDE = 4
TEMPLATES = Path(__file__).parent / "templates"  # nbconvert's


def slides(shown: Entry, executed: Mapping[str, Any], module: str, folder: Path) -> Path:
    """Writes `<study>.html` and its figures into `folder`; `module` is the text of the course's page on it, or "".

    `folder` gets reveal.js too; formulas want MathJax at `../mathjax`.
    """
    import nbformat
    from nbconvert import SlidesExporter

    install_reveal(folder / "reveal")
    name = shown.study.name
    for old in folder.glob(f"{name}-*.svg"):
        old.unlink()
    cells = [_slide(nbformat, text, kind) for text, kind in _story(shown, executed, module, folder)]
    exporter = SlidesExporter(
        template_name="studybook",
        extra_template_basedirs=[str(TEMPLATES)],
        reveal_url_prefix="reveal",
        reveal_theme="white",
    )
    made = nbformat.v4.new_notebook(cells=cells, metadata={"title": shown.study.about["title"]})
    for i, cell in enumerate(made.cells):
        cell.id = f"slide-{i}"
    text, _ = exporter.from_notebook_node(made, {"metadata": {"name": name}})
    write(folder / f"{name}.html", text)
    return folder / f"{name}.html"


def install_reveal(folder: Path) -> None:
    """Copies reveal.js out of the package that ships it, so that slides show without a network."""
    spec = importlib.util.find_spec("sphinx_revealjs")
    if spec is None or spec.origin is None:
        raise Problem("the package sphinx-revealjs, which ships reveal.js, is not installed: make book installs it")
    shipped = Path(spec.origin).parent / "_static" / "revealjs"
    for part in ("dist/reveal.js", "dist/reveal.css", "dist/theme/white.css", "plugin/notes/notes.js", "LICENSE"):
        if not (folder / part).exists():
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(shipped / part, folder / part)
    fonts = folder / "dist" / "theme" / "fonts"
    if not fonts.exists():
        shutil.copytree(shipped / "dist" / "theme" / "fonts", fonts)


def _story(shown: Entry, executed: Mapping[str, Any], module: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The slides' texts in Markdown, each with nbconvert's kind: slide, fragment or notes."""
    about, claims = shown.study.about, shown.record["claims"]
    paper = about["paper"]
    yield (
        f"# {about['title']}\n\n{paper['authors']}: *{paper['title']}*, {paper['venue']} {paper['year']}\n\n"
        f"<small>{html.escape(shown.study.profile(shown.profile).get('says', ''))} (profile {shown.profile})</small>",
        "slide",
    )
    if demo := section(module, "Live demo"):
        yield demo, "notes"
    if goals := section(module, "Goals"):
        yield f"## After this session\n\n{goals}", "slide"
    for some in _chunks(claims):
        rows = [f"| {one['name']} | {_cell(one['text'])} | {_cell(one['paper'] or '')} | |" for one in some]
        head = "| claim | in words | the paper | your guess |\n| --- | --- | --- | --- |\n"
        yield "## What will hold? Write it down\n\n" + head + "\n".join(rows), "slide"
    for number, (title, formulas, svg, alt) in enumerate(_figures(executed), 1):
        file = f"{shown.study.name}-{number}.svg"
        write(folder / file, figures.themed(svg, figures.LIGHT))
        for formula in formulas:
            yield f"## {title}\n\n{formula}", "slide"
        yield f'## {title}\n\n<img src="{file}" alt="{html.escape(alt)}">', "slide"
    for some in _chunks(claims):
        rows = [
            f"| {one['name']} | {_cell(one['paper'] or '')} | {_ours(one)} | "
            f'<span class="{one["verdict"]}">{one["verdict"]}</span>{" (control)" * one["control"]} |'
            for one in some
        ]
        head = "| claim | the paper | here, with its 95 % interval | verdict |\n| --- | --- | --- | --- |\n"
        yield "## What held\n\n" + head + "\n".join(rows), "slide"
    questions = re.findall(r"^\d+\. (.+?)\n(?=\n|:::|$)", section(module, "Discussion"), re.M | re.S)
    questions = questions or exercises(notebook(shown.study.source))
    for i, question in enumerate(questions, 1):
        yield f"## Discussion, {i} of {len(questions)}\n\n{question.strip()}", "slide"


def exercises(source: Mapping[str, Any]) -> list[str]:
    """The questions in a study's notebook without their answers, for a study that no module of the course is on."""
    texts = ("".join(cell["source"]) for cell in source["cells"] if cell["cell_type"] == "markdown")
    asked = "\n".join(section(text, "Exercises") for text in texts)
    asked = re.sub(r"<details.*?</details>", "", asked, flags=re.S)
    return [question.strip() for question in re.findall(r"^\d+\. (.+?)\n\n", asked + "\n\n", re.M | re.S)]


def section(page: str, title: str) -> str:
    """The text under one heading of a page, "" if there is no such heading."""
    found = re.search(rf"^## {re.escape(title)}\n+(.*?)(?=^## |\Z)", page, re.M | re.S)
    return found[1].strip() if found else ""


def _figures(executed: Mapping[str, Any]) -> Iterator[tuple[str, list[str], str, str]]:
    """Every figure: the heading above it, the displayed formulas since the figure before, the picture, its alt text."""
    title, formulas = "", []
    for cell in executed["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            if heading := re.search(r"^##+ (.+)$", text, re.M):
                title = heading[1]
            formulas += re.findall(r"^\$\$.+?\$\$", text, re.M | re.S)
        for output in cell.get("outputs", []):
            if svg := output.get("data", {}).get("image/svg+xml"):
                alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
                yield title, formulas, "".join(svg), alt
                formulas = []


def _chunks(claims: list) -> Iterator[list]:
    for i in range(0, len(claims), CLAIMS_A_SLIDE):
        yield claims[i : i + CLAIMS_A_SLIDE]


def _ours(claim: Mapping[str, Any]) -> str:
    if claim["low"] is None or claim["high"] is None:
        return "no interval" if claim["mean"] is None else format(claim["mean"], claim["unit"])
    mean, low, high = (format(claim[key], claim["unit"]) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _cell(text: str) -> str:
    return html.escape(text).replace("|", "&#124;").replace("\n", " ")


def _slide(nbformat: Any, text: str, kind: str) -> Any:
    return nbformat.v4.new_markdown_cell(text, metadata={"slideshow": {"slide_type": kind}})
