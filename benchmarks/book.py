"""What the published book costs: building 300 copies of a page, one changed page, how soon and heavy a page is.

python -m benchmarks.book          build at full size
python -m benchmarks.book 40       fewer copies
Needs a built book (make book) and, for the pages, Chromium. Targets: 300 copies in 3 minutes, one changed page in
15 seconds; a study page (its text, figures of one theme, scripts) below 1.5 MB, its largest contentful paint within
1.5 s.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUDY = "calibration/calibration"
PAINT = """() => new Promise(done => new PerformanceObserver(list => done(list.getEntries().at(-1).startTime))
    .observe({type: "largest-contentful-paint", buffered: true}))"""


def copies(folder: Path, count: int) -> Path:
    """A book of `count` copies of one study's page, with the project's own settings."""
    book = folder / "book"
    for name in ("_static", "_published", "_extra"):
        shutil.copytree(ROOT / "book" / name, book / name)
    shutil.copy(ROOT / "book" / "references.bib", book)
    (book / "_vendor").mkdir()
    page = json.loads((ROOT / "book" / "studies" / f"{STUDY}.ipynb").read_text())
    lines = ["format: jb-book", "root: intro", "chapters:"]
    (book / "intro.md").write_text("# Copies\n\n```{bibliography}\n:all:\n```\n")
    (book / "parts").mkdir()
    (book / "parts" / "calibration.md").write_text("# Part\n")
    lines.append("  - file: parts/calibration")
    (book / "studies" / "calibration").mkdir(parents=True)
    for i in range(count):
        page["cells"][0]["source"] = f"# Copy {i}\n"
        (book / "studies" / "calibration" / f"copy{i}.ipynb").write_text(json.dumps(page))
        lines.append(f"  - file: studies/calibration/copy{i}")
    (book / "_toc.yml").write_text("\n".join(lines) + "\n")
    shutil.copy(ROOT / "_config.yml", folder)
    return book


def build(folder: Path) -> float:
    """Seconds of one `jupyter-book build`."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "book", "--path-output", "book"]
    started = time.perf_counter()
    done = subprocess.run([*command, "--config", "_config.yml"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the copies did not build:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def pages() -> None:
    """Weight and largest contentful paint of each study page, from disk, without a network."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium here: pages are not measured")
    html = ROOT / "book" / "_build" / "html"
    with sync_playwright() as playwright:
        flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for file in sorted(html.glob("studies/*/*.html")):
            found = []
            for _ in range(5):
                context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
                page, loaded = context.new_page(), set()
                page.on("requestfinished", lambda request, loaded=loaded: loaded.add(request.url.partition("?")[0]))
                page.goto(file.as_uri())
                page.wait_for_load_state("load")
                found.append(page.evaluate(PAINT) / 1000)
                page.evaluate("document.querySelectorAll('img:not(.only-dark)').forEach(i => i.loading = 'eager')")
                page.wait_for_function("[...document.images].every(i => i.complete || !i.offsetParent)")
                context.close()
            paths = [Path(url.removeprefix("file://")) for url in loaded if "%" not in url]
            own = [p for p in paths if p == file or "_images" in p.parts or "scripts" in p.relative_to(html).parts[:1]]
            weigh = [sum(p.stat().st_size for p in some) / 1e6 for some in (own, paths)]
            print(
                f"{file.stem:20} its own {weigh[0]:.2f} MB, with the theme and MathJax {weigh[1]:.2f} MB; "
                f"largest contentful paint {sorted(found)[2]:.2f} s (of 5: {min(found):.2f} to {max(found):.2f})"
            )
        browser.close()


def main() -> None:
    """Prints one line for each thing measured."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    pages()
    with tempfile.TemporaryDirectory() as scratch:
        book = copies(Path(scratch), count)
        print(f"{count} copies, from nothing: {build(book.parent):.1f} s")
        print(f"nothing changed: {build(book.parent):.1f} s")
        page = book / "studies" / "calibration" / "copy7.ipynb"
        page.write_text(page.read_text().replace("# Copy 7", "# Copy seven"))
        print(f"one page changed: {build(book.parent):.1f} s")


if __name__ == "__main__":
    main()
