"""How long the quick profile takes from nothing: each study, loading its libraries, and the whole book.

python -m benchmarks.quick          about a quarter of an hour; writes quick.json, which the book's page on speed shows

Nothing that was stored or committed is read: a copy of the project runs every study with `--fresh` and an empty cache,
and is built. A study starts as `studybook run` starts it: the first of a command loads its libraries in a process of
its own, and those that follow are forks of that; the first four studies tell how long. Targets: 60 seconds for each of
the first four studies, 30 for others, 6 to start the kernel and load the libraries, ten minutes for the book.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from benchmarks import __main__ as suite
from benchmarks import rebuild
from studybook import preload

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("quick.json")
FIRST = ("calibration", "grokking", "knn-vs-linear", "shortcut-learning")
TARGETS = {"first": 60, "study": 30, "start": 6, "book": 600}


def start(source: Path) -> float:
    """Seconds to start a kernel and run the notebook's first two cells: parameters and imports."""
    page = nbformat.read(source, 4)
    page.cells = [cell for cell in page.cells if cell.cell_type == "code"][:2]
    assert "from studybook import" in page.cells[1].source
    begun = time.perf_counter()
    preload.start()
    NotebookClient(page, resources={"metadata": {"path": str(source.parent)}}).execute()
    return time.perf_counter() - begun


def starts(source: Path) -> list[float]:
    """Seconds in which a study starts as the first of a command, and as one that follows."""
    code = f"from benchmarks.quick import *; print(*(start(Path({str(source)!r})) for _ in range(2)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return [float(word) for word in done.stdout.split()]


def measured(folder: Path) -> list[dict]:
    """What was timed, in seconds, and how long it may take; the book last."""
    found = []
    names = rebuild.sources(folder, 0)
    for study in (study for study in names if study.partition("/")[2] in FIRST):
        name, seconds = study.partition("/")[2], starts(folder / "notebooks" / f"{study}.ipynb")
        for what, taken in zip(("first", "later"), seconds, strict=True):
            what = f"{name}, starting and loading libraries, {what} of a command"
            found.append({"what": what, "seconds": round(taken, 1), "target": TARGETS["start"]})
    begun = time.perf_counter()
    rebuild.studybook(folder, "run", "--all", "--fresh")
    rebuild.studybook(folder, "build")
    book = time.perf_counter() - begun
    for study in names:
        name = study.partition("/")[2]
        record = json.loads((folder / "book" / "studies" / f"{study}.json").read_text())
        limit = TARGETS["first" if name in FIRST else "study"]
        found.append({"what": f"{name}, from nothing", "seconds": record["seconds"], "target": limit})
    return [*found, {"what": "the whole book, from nothing", "seconds": round(book, 1), "target": TARGETS["book"]}]


def main() -> None:
    """Prints a line for each and writes them down."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = measured(Path(scratch) / "book")
    for row in rows:
        met = "met" if row["seconds"] < row["target"] else "MISSED"
        print(f"{row['what']:<80} {row['seconds']:>6.1f} s  target {row['target']} s {met}")
    RESULTS.write_text(json.dumps({**suite.about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
