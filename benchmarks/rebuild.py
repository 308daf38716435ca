"""One study of forty has changed: `studybook run` and `build`, beside `jupyter-book build` with jupyter-cache.

python -m benchmarks.rebuild          40 studies; about a quarter of an hour
python -m benchmarks.rebuild 8        fewer

Each side has a book of copies of the studies, built once, of which nothing is timed. Then a title in a figure
of the calibration study changes, and both build again, in turn. Ours draws the page from its stored rows; the peer, as
its documentation advises for slow notebooks (`execute_notebooks: cache`), executes the changed notebook, and has fewer
pages to write: no scoreboard, indexes, slides or course. The verdicts of both are compared, claim by claim.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
import yaml
from jupyter_cache import get_cache

from benchmarks import __main__ as suite
from benchmarks.pair import Benchmark, Result, Side
from studybook import studies

ROOT = Path(__file__).parents[1]
BENCHMARK = Benchmark(  # its sides are other programs, so `pair` cannot run them
    "one changed study", "jupyter-book with jupyter-cache", *[None] * 5, size={"studies": 40}, small={}, target=2.0
)
STUDY, TITLE = "calibration/calibration", "fitted T (dashed"
LEFT_OUT = (".*", "tests", "lib", "build", "_build", "_generated", "_extra", "_vendor", "studies", "__pycache__")


def sources(folder: Path, copies: int) -> list[str]:
    """The project in `folder`, its studies copied until there are `copies`; gives those as `part/name`."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
    originals = sorted((folder / "notebooks").glob("*/*.ipynb"))
    found = [f"{file.parent.name}/{file.stem}" for file in originals]
    while len(found) < copies:
        file, name = originals[len(found) % len(originals)], f"copy-{len(found)}"
        for suffix in (".ipynb", ".yml"):
            shutil.copy(file.with_suffix(suffix), file.with_name(name + suffix))
        found.append(f"{file.parent.name}/{name}")
    return found


def ours(folder: Path, copies: int) -> None:
    """A book as this project makes it; copies take the rows that the originals' runs have stored."""
    found = sources(folder, copies)
    toc = yaml.safe_load((folder / "book" / "_toc.yml").read_text())
    toc["parts"].append({"caption": "Copies", "chapters": [{"file": f"studies/{s}"} for s in found if "/copy-" in s]})
    (folder / "book" / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    studybook(folder, "run", "--all")
    studybook(folder, "build")


def studybook(folder: Path, *words: str) -> None:
    run([sys.executable, "-m", "studybook.runner", *words], folder)


def peer(folder: Path, copies: int, rows: Path) -> None:
    """The same notebooks as a plain Jupyter Book, whose cache holds what they put out; `rows` saves computing it."""
    from nbclient import NotebookClient

    made = folder / "project"
    found = sources(made, copies)
    book = folder / "book"
    book.mkdir()
    shutil.copy(made / "book" / "references.bib", book)
    (book / "intro.md").write_text("# Copies\n\n```{bibliography}\n:all:\n```\n")
    toc = {"format": "jb-book", "root": "intro", "chapters": [{"file": f"studies/{study}"} for study in found]}
    (book / "_toc.yml").write_text(yaml.safe_dump(toc))
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["execute"] = {"execute_notebooks": "cache", "timeout": -1, "stderr_output": "remove"}
    config["sphinx"] = {"extra_extensions": ["sphinx_design"]}
    (folder / "_config.yml").write_text(yaml.safe_dump(config))
    cache, executed = get_cache(book / "_build" / ".jupyter_cache"), {}
    for study in found:
        source, target = made / "notebooks" / f"{study}.ipynb", book / "studies" / f"{study}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        code = source.read_bytes()
        if code not in executed:  # the first of its copies
            page = nbformat.reads(code.decode(), 4)
            client = NotebookClient(page, timeout=None, resources={"metadata": {"path": str(folder)}})
            client.execute(env={**os.environ, "STUDYBOOK_CACHE": str(rows)})
            executed[code] = page
        nbformat.write(executed[code], target.with_suffix(".out"))
        cache.cache_notebook_file(target.with_suffix(".out"), uri=str(target), check_validity=False, overwrite=True)
        target.with_suffix(".out").unlink()
    jupyter_book(folder)


def jupyter_book(folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "book", "--path-output", "book"]
    run(
        [*command, "--config", "_config.yml"], folder, STUDYBOOK_CACHE=str(folder / f"rows-{time.time_ns()}")
    )  # it knows of no stored rows


def run(command: list[str], folder: Path, **environment: str) -> None:
    """Raises RuntimeError with the last lines of what was said if it fails."""
    settings = {**os.environ, "STUDYBOOK_CACHE": str(folder / "cache"), **environment}
    for name in ("STUDYBOOK_ROOT", "STUDYBOOK_WORKERS"):
        settings.pop(name, None)
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[-3:])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def change(file: Path, turn: int) -> str:
    """Another title in one figure of the notebook; gives what the page is now to hold."""
    page = json.loads(file.read_text())
    ((cell, at),) = ((cell, i) for cell in page["cells"] for i, line in enumerate(cell["source"]) if TITLE in line)
    before, _, after = cell["source"][at].partition(TITLE)
    wanted = f"{TITLE}, drawn {turn})"
    cell["source"][at] = before + wanted + after.partition(")")[2]
    file.write_text(json.dumps(page, indent=1))
    return wanted


def verdicts(page: Mapping) -> list[tuple[str, str]]:
    return [(claim["name"], claim["verdict"]) for claim in studies.claims(page["cells"])]


def check(mine: Path, other: Path, wanted: str) -> None:
    """Raises AssertionError where a page lacks the change, or the two judge differently."""
    for folder in (mine, other):
        if wanted not in (folder / "book" / "_build" / "html" / "studies" / f"{STUDY}.html").read_text():
            raise AssertionError(f"the page in {folder.name} does not hold {wanted!r}")
    cache = get_cache(other / "book" / "_build" / ".jupyter_cache")
    record = cache.match_cache_notebook(nbformat.read(other / "book" / "studies" / f"{STUDY}.ipynb", 4))
    theirs = verdicts(cache.get_cache_bundle(record.pk).nb)
    if not theirs or verdicts(json.loads((mine / "book" / "studies" / f"{STUDY}.ipynb").read_text())) != theirs:
        raise AssertionError("the two pages judge differently")


def compare(folder: Path, copies: int, pairs: int) -> list[tuple[float, float]]:
    """Seconds of both sides, pair by pair."""
    mine, other = folder / "ours", folder / "peer"
    ours(mine, copies)
    peer(other, copies, mine / "cache")
    found = []
    for turn in range(pairs):
        wanted = change(mine / "notebooks" / f"{STUDY}.ipynb", turn)
        shutil.copy(mine / "notebooks" / f"{STUDY}.ipynb", other / "book" / "studies" / f"{STUDY}.ipynb")
        seconds = []
        for build in (
            lambda: (studybook(mine, "run", STUDY.partition("/")[2]), studybook(mine, "build")),
            lambda: jupyter_book(other),
        ):
            start = time.perf_counter()
            build()
            seconds.append(time.perf_counter() - start)
        found.append((seconds[0], seconds[1]))
        check(mine, other, wanted)
        print(
            f"ours {seconds[0]:.1f} s, {BENCHMARK.peer} {seconds[1]:.1f} s: {seconds[1] / seconds[0]:.2f}x", flush=True
        )
    return found


def main() -> None:
    """Prints each pair and puts their row into results.csv."""
    copies, nan = int(sys.argv[1]) if len(sys.argv) > 1 else 40, float("nan")
    with tempfile.TemporaryDirectory() as scratch:
        pairs = compare(Path(scratch), copies, 3)
    sides = (Side(list(seconds), nan, "") for seconds in zip(*pairs, strict=True))
    row = suite.row(BENCHMARK, "", {"studies": copies}, Result(*sides, nan), {})
    suite.keep([{**row, **suite.about()}], suite.RESULTS)


if __name__ == "__main__":
    main()
