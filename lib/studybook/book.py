"""Builds the book from what was run: pages, scoreboard, indexes, downloads; HTML, a PDF and an archive of it."""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from studybook import pages, performance, slides, sweep
from studybook.pages import Entry
from studybook.provenance import moved_on
from studybook.studies import (
    QUICK,
    Problem,
    Study,
    check_page,
    failure,
    known,
    notebook,
    page,
    read_record,
    results_folder,
    root,
    write,
)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


def records() -> list[dict[str, Any]]:
    """The record of every study and profile that has one: the committed ones, and the quick pages made here."""
    return [entry.record for entry in _entries(stale=False)]


def entries() -> list[Entry]:
    """The same, each with its study and what has changed since."""
    return _entries(stale=True)


def _entries(stale: bool) -> list[Entry]:
    found = []
    for study in known().values():
        for profile in study.profiles:
            committed, made = results_folder(study, profile) / "run.json", _made_here(study)
            if profile == QUICK and made.get("profile") == QUICK and not made["overrides"]:
                record = made
            elif committed.exists():
                record = read_record(committed)
            else:
                continue
            found.append(Entry(study, record, moved_on(record) if stale else record["stale"]))
    return found


def _made_here(study: Study) -> dict[str, Any]:
    file = page(study).with_suffix(".json")
    return read_record(file) if file.exists() else {}


# ---------------------------------------------------------------- HTML


def build(pdf: bool = False, archive: bool = False, answers: bool = True) -> dict[str, Path]:
    """Writes all pages and calls Jupyter Book with warnings as errors; gives what was made and where it is.

    Without `answers` the pages hold the exercises alone.

    Raises Problem if a study was not run, its page holds an error or lacks a verdict, or Jupyter Book warns.
    """
    os.environ["STUDYBOOK_ANSWERS"] = "1" if answers else "0"  # for the Sphinx extension
    with _jupyter_book("html"):
        write_pages()
        _install_mathjax(root() / "book" / "_vendor" / "mathjax")
    folder = root() / "book" / "_build"
    _drop_leftovers(folder / "html")
    made = {"book": folder / "html" / "index.html"}
    if pdf:
        made["PDF"] = _pdf(folder)
    if archive:
        made["archive"] = _archive(folder / "html", folder / "studybook.zip")
    return made


def write_pages() -> None:
    """Checks the executed pages, adds to each what the book adds, and writes scoreboard, indexes and downloads."""
    book, found, shown = root() / "book", entries(), {}
    for study in known().values():
        if not page(study).exists() or not _made_here(study):
            raise Problem(f"{study.name} has not been run yet: studybook run {study.name}")
        record = _made_here(study)
        check_page(study, notebook(page(study)), record["claims"])
        shown[study.name] = Entry(study, record, record["stale"])
    tables = _downloads(book / "_extra", found, shown)
    for name, entry in shown.items():
        own = [e for e in found if e.study.name == name]
        made = pages.page(notebook(page(entry.study)), entry, own, tables.get(name, {}), _failed_since(entry))
        write(page(entry.study), as_text(made))
        _slides(book, entry)  # after that, so that the second build finds them made from the same page
    facts = pages.claim_facts(found)
    write(book / "_extra" / "claims.json", pages.claims_json(facts))
    write(book / "_extra" / "claims.csv", pages.claims_csv(facts))
    for name, text in (
        ("scoreboard", pages.scoreboard(found)),
        ("front", pages.front(found)),
        ("index", pages.index(list(known().values()), found)),
    ):
        write(book / "_generated" / f"{name}.md", text)
    made = book / "_generated"
    if (scale := book / "results" / "scale.json").exists():
        known_scale = scale.read_text(encoding="utf-8")
        _unless_made(made / "scale.png", [known_scale], lambda: performance.write_scale(read_record(scale), made))
    if (speed := root() / "benchmarks" / "results.csv").exists():
        quick = speed.with_name("quick.json")
        measured = [file.read_text(encoding="utf-8") if file.exists() else "" for file in (speed, quick)]
        _unless_made(made / "speed-scaling.png", measured, lambda: performance.write_speed(speed, quick, made))


def as_text(cells: Mapping[str, Any]) -> str:
    """A notebook as it is written."""
    return json.dumps(cells, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _failed_since(entry: Entry) -> str:
    """What a later run of the study than the one shown died of."""
    log = failure(entry.study)
    return pages.escaped(log.read_text(encoding="utf-8").partition("\n")[0]) if log.exists() else ""


def _downloads(extra: Path, found: Sequence[Entry], shown: Mapping[str, Entry]) -> dict[str, dict[str, list[str]]]:
    """Writes source notebooks, records and rows for download; gives the names of the sweeps by study and profile."""
    tables: dict[str, dict[str, list[str]]] = {}
    kept = set()
    for name, entry in shown.items():
        study = entry.study
        offered = extra / "notebooks" / study.part
        kept |= _put(offered / study.source.name, as_text(pages.without_answers(notebook(study.source))))
        about = study.source.with_suffix(".yml")
        kept |= _put(offered / about.name, about.read_text(encoding="utf-8"))
        here = {e.profile: results_folder(study, e.profile) for e in found if e.study.name == name}
        if (page(study).with_suffix("") / "rows.json").exists():
            here[entry.profile] = page(study).with_suffix("")
        for profile, folder in here.items():
            into = extra / "data" / name / profile
            if measures := _rows(folder, into) if (folder / "rows.json").exists() else []:
                tables.setdefault(name, {})[profile] = measures
                kept |= {into / f"{measure}.csv" for measure in measures}
    for entry in found:
        file = extra / "data" / entry.study.name / entry.profile / "run.json"
        kept |= _put(file, json.dumps(entry.record, indent=1, sort_keys=True) + "\n")
    for folder in (extra / "data", extra / "notebooks"):
        for file in [f for f in folder.rglob("*") if f.is_file() and f not in kept]:
            file.unlink()
    return tables


def _rows(folder: Path, target: Path) -> list[str]:
    """Writes the stored rows of each sweep as CSV, unless they are there; gives the sweeps' names."""
    note = root() / ".studybook" / "made" / "rows" / f"{target.parent.name}-{target.name}.json"

    def make() -> None:
        rows: dict[str, list] = {}
        for one in sweep.read_rows(folder):
            rows.setdefault(one["parts"]["measure"], []).append(one)
        for measure, some in rows.items():
            write(target / f"{measure}.csv", pages.rows_csv(some))
        write(note, json.dumps(list(rows)))

    arrays = folder / "rows.npz"
    parts = [(folder / "rows.json").read_text(), _sha(arrays.read_bytes() if arrays.exists() else b"")]
    if not note.exists() or not all((target / f"{measure}.csv").exists() for measure in json.loads(note.read_text())):
        note.unlink(missing_ok=True)
    _unless_made(note, parts, make)
    return json.loads(note.read_text())


def _put(file: Path, text: str) -> set[Path]:
    write(file, text)
    return {file}


def _drop_leftovers(html: Path) -> None:
    """Deletes figures of earlier builds, which no page shows now, and the theme's templates, which are no pages."""
    for template in (html / "_static").glob("*macros.html"):
        template.unlink()
    used = set()
    for file in html.rglob("*.html"):
        used |= set(re.findall(r"_images/([^\"'?# ]+)", file.read_text(encoding="utf-8")))
    for image in (html / "_images").glob("*"):
        if image.name not in used:
            image.unlink()


_LOADED = """
import sys
sys.modules.setdefault("rfc3987_syntax", None)  # compiles for seconds grammars of which no page has a use
from jupyter_book.cli.main import main
import jupyter_book.sphinx, myst_nb.sphinx_ext, sphinx.builders.html, sphinx_book_theme
if sys.stdin.read() == "build":
    sys.argv[0] = "jupyter-book"
    sys.exit(main())
"""


@contextlib.contextmanager
def _jupyter_book(builder: str) -> Iterator[None]:
    """Loads Jupyter Book, in a process of its own, while the block writes what it then builds."""
    log = root() / "book" / "_build" / f"build{'' if builder == 'html' else '-' + builder}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-c", _LOADED, "build", "book", "--path-output", "book"]
    command += ["--config", "_config.yml", "--builder", builder, "-W", "--keep-going"]
    read = root() / "book" / "_build" / ".doctrees" / "environment.pickle"
    if read.exists() and (root() / "book" / "_toc.yml").stat().st_mtime > read.stat().st_mtime:
        command.append("--all")  # each page's sidebar and links, not only those of pages that changed
    with log.open("w") as out, subprocess.Popen(
        command, cwd=root(), stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, text=True
    ) as process:  # fmt: skip
        try:
            yield
            process.communicate("build")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = [x for x in log.read_text().splitlines() if "WARNING" in x or "ERROR" in x or "Error" in x]
        place = log.relative_to(root())
        raise Problem(f"the book did not build: {'; '.join(lines[:5]) or 'see the log'} (log: {place})")


def _slides(book: Path, shown: Entry) -> None:
    study, folder = shown.study, book / "_extra" / "slides"
    named = f"{{doc}}`/studies/{study.part}/{study.name}`"
    texts = [page.read_text(encoding="utf-8") for page in sorted((book / "course").glob("*.md"))]
    module = next((text for text in texts if text.startswith("# Module") and named in text), "")
    executed, source = page(study).read_text(encoding="utf-8"), study.source.read_text(encoding="utf-8")
    ingredients = (executed, source, str(study.about), str(shown), module)
    _unless_made(
        folder / f"{study.name}.html", ingredients, lambda: slides.slides(shown, notebook(page(study)), module, folder)
    )


def _unless_made(product: Path, ingredients: Sequence[str], make: Callable[[], object]) -> None:
    """Calls `make` unless the product is there, from the same ingredients, by the same code and packages."""
    lock = root() / "requirements.lock"
    files = [
        file for file in sorted(Path(__file__).parent.rglob("*")) if file.suffix in (".py", ".j2", ".css", ".json")
    ]
    code = _code_of(tuple((file, file.stat().st_mtime_ns) for file in [*files, *([lock] if lock.exists() else [])]))
    wanted = _sha("".join([code, *(_sha(text.encode()) for text in ingredients)]).encode())
    note = root() / ".studybook" / "made" / f"{product.relative_to(root())}.sha256"
    if product.exists() and note.exists() and note.read_text() == wanted:
        return
    note.unlink(missing_ok=True)
    make()
    write(note, wanted)


@functools.lru_cache(maxsize=2)
def _code_of(files: tuple[tuple[Path, int], ...]) -> str:
    return _sha("".join(_sha(file.read_bytes()) for file, _ in files).encode())


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _install_mathjax(folder: Path) -> None:
    """Copies MathJax out of the package that ships it, so that formulas render without a network."""
    spec = importlib.util.find_spec("mathjax")
    if spec is None or spec.origin is None:
        raise Problem("the package django-static-mathjax, which ships MathJax, is not installed: make book installs it")
    shipped = Path(spec.origin).parent / "static" / "mathjax" / "es5"
    fonts = Path("output") / "chtml" / "fonts" / "woff-v2"
    if not (folder / fonts).exists():
        shutil.copytree(shipped / fonts, folder / fonts)
    if not (folder / "tex-mml-chtml.js").exists():
        shutil.copy(shipped / "tex-mml-chtml.js", folder)


# ---------------------------------------------------------------- other formats


def _pdf(build: Path) -> Path:
    """The whole book as one PDF, printed from one long page by Chromium."""
    chromium = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if chromium is None:
        raise Problem(f"a PDF needs Chromium, and none of {', '.join(CHROMIUM)} is on the path")
    with _jupyter_book("singlehtml"):
        pass
    source, target = build / "singlehtml" / "intro.html", build / "studybook.pdf"
    text = source.read_text(encoding="utf-8")
    alone = source.with_name("print.html")  # a PDF travels without the files beside it
    alone.write_text(re.sub(r'(<a\b[^>]*?) href="(?!#|https?:)[^"]*"', r"\1", text), encoding="utf-8")
    command = [
        chromium, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-pdf-header-footer", "--virtual-time-budget=60000",
        *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
        f"--print-to-pdf={target}", alone.as_uri(),
    ]  # fmt: skip
    target.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode or not target.exists():
        raise Problem(f"Chromium printed no PDF: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return target


def _archive(html: Path, target: Path) -> Path:
    """The built pages as a ZIP file that opens from a folder; the same pages give the same bytes."""
    partial = target.with_name(f".{target.name}.part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as out:
        for file in sorted(f for f in html.rglob("*") if f.is_file()):
            info = zipfile.ZipInfo(f"studybook/{file.relative_to(html)}", (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            out.writestr(info, file.read_bytes())
    partial.replace(target)
    return target
