"""How long the quick profile takes from nothing: each study, loading its libraries, and the whole book.

python -m benchmarks.quick          about five minutes; writes quick.json, which the book's page on speed shows

Nothing that was stored or committed is read: a copy of the project runs every study with `--fresh` and an empty cache,
and is built. Targets: 60 seconds for each of the first four studies, 30 for others, 6 to start the kernel and load the
libraries, ten minutes for the book.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from benchmarks import __main__ as suite
from benchmarks import rebuild

RESULTS = Path(__file__).with_name("quick.json")
FIRST = ("calibration", "grokking", "knn-vs-linear", "shortcut-learning")
TARGETS = {"first": 60, "study": 30, "start": 6, "book": 600}


def start(source: Path) -> float:
    """Seconds to start a kernel and run the notebook's first two cells: parameters and imports."""
    page = nbformat.read(source, 4)
    page.cells = [cell for cell in page.cells if cell.cell_type == "code"][:2]
    assert "from studybook import" in page.cells[1].source
    begun = time.perf_counter()
    NotebookClient(page, resources={"metadata": {"path": str(source.parent)}}).execute()
    return time.perf_counter() - begun


def measured(folder: Path) -> list[dict]:
    """What was timed, in seconds, and how long it may take; the book last."""
    found = []
    names = rebuild.sources(folder, 0)
    for study in names:
        starts = [start(folder / "notebooks" / f"{study}.ipynb") for _ in range(3)]
        what = f"{study.partition('/')[2]}, starting and loading libraries"
        found.append({"what": what, "seconds": round(statistics.median(starts), 1), "target": TARGETS["start"]})
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
        print(f"{row['what']:<50} {row['seconds']:>6.1f} s  target {row['target']} s {met}")
    RESULTS.write_text(json.dumps({**suite.about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
