"""Grading strangers' code with nbgrader: what it lacks, as classes that `book/course/nbgrader_config.py` hands it.

The fence around a submission stops accidents and simple mischief; it is no sandbox. The instructors' page says more.
"""

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.api import Gradebook
from nbgrader.preprocessors import Execute, NbGraderPreprocessor
from traitlets import Float, Integer

from studybook import fence
from studybook.course import EVERYONE, assignments, owner, write_case

_HIDDEN = re.compile(r"^[^\n]*### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS[^\n]*\n?", re.M | re.S)


def common_case(assignment: str, **_: Any) -> None:
    """nbgrader's hook after `generate_assignment`: the release holds the case of a class in which all get the same."""
    for name in assignments(Path.cwd()):
        folder = Path("release") / name
        if assignment in (name, "*") and folder.exists():
            write_case(folder, Path.cwd(), name, EVERYONE)


class Whole(NbGraderPreprocessor):
    """Puts back what a submission lacks of its assignment: locked cells, tests and unanswered cells, in their places.

    Cells whose nbgrader marks are gone (another editor dropped them) stay and run as they are; the tests come after.
    """

    def preprocess(self, nb: NotebookNode, resources: Mapping) -> tuple[NotebookNode, Mapping]:
        about = resources["nbgrader"]
        with Gradebook(about["db_url"]) as gradebook:
            found = gradebook.find_notebook(about["notebook"], about["assignment"])
            cells = {one.name: one for one in found.source_cells}
            points = {one.name: one.max_score for one in found.grade_cells}
            answers = {one.name for one in found.solution_cells}
            order = [name for name in _order(about) if name in cells]
            present = [_grade_id(cell) for cell in nb.cells]
            for place, name in enumerate(order):
                if name in present or (name in answers and name not in points):
                    continue
                self.log.warning("cell %s was missing from the submission and was put back", name)
                at = _place(order, place, present, name in points)
                nb.cells.insert(at, _restored(cells[name], points.get(name), name in answers))
                present.insert(at, name)
        return nb, resources


class Fenced(Execute):
    """nbgrader's execution, on the student's own case, in a kernel with a fence around it and an end to its patience.

    Before each test the notebook's set-up cell runs again, so that what a submission made of its names counts nothing.
    """

    cell_seconds = Integer(30, help="Seconds that a cell may take.").tag(config=True)
    submission_seconds = Integer(180, help="Seconds that all cells of a notebook may take.").tag(config=True)
    memory_gib = Float(4.0, help="Address space that a submission may have, in GiB.").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: Any = None, km: Any = None) -> tuple[NotebookNode, Any]:
        about, folder = resources["nbgrader"], Path(resources["metadata"]["path"] or ".").resolve()
        course = Path.cwd()
        individual = (course / "handout" / about["student"] / about["assignment"]).exists()
        common = owner(folder) == EVERYONE and not individual
        if not (common or individual):
            self.log.warning(
                "nothing was handed out to %s (handout/%s/%s is missing); graded on the case that this id would have",
                about["student"], about["student"], about["assignment"],
            )  # fmt: skip
        write_case(folder, course, about["assignment"], EVERYONE if common else about["student"])
        self._setup = next((cell.source for cell in nb.cells if _grade_id(cell) == "setup"), "")
        self._end = time.monotonic() + self.submission_seconds
        self.timeout_func = lambda cell: int(max(1, min(self.cell_seconds, self._end - time.monotonic())))
        self.kernel_name = "python3"
        with tempfile.TemporaryDirectory(prefix="studybook-grading-") as scratch:
            self.extra_arguments = [f"--IPKernelApp.exec_files={fence.__file__}"]
            terms = {"own": str(folder), "course": str(course), "memory": int(self.memory_gib * 2**30)}
            limits = {
                "STUDYBOOK_FENCE": json.dumps(terms),
                "TMPDIR": scratch, "IPYTHONDIR": scratch, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            }  # fmt: skip
            with _environment(limits):
                return super().preprocess(nb, resources, km)

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> tuple[NotebookNode, Any]:
        if not (cell.cell_type == "code" and utils.is_grade(cell) and self._setup):
            return super().preprocess_cell(cell, resources, index)
        test, cell.source = cell.source, f"{self._setup}\n{cell.source}"
        try:
            return super().preprocess_cell(cell, resources, index)
        finally:
            cell.source = test


class Discreet(NbGraderPreprocessor):
    """Takes hidden tests out of the feedback: their code, tracebacks, and what a submission printed of them.

    Where an answer waits for a reader it says so, since nbgrader shows 0 points there.
    """

    def preprocess(self, nb: NotebookNode, resources: Mapping) -> tuple[NotebookNode, Mapping]:
        unread = _unread(resources["nbgrader"])
        for cell in nb.cells:
            if _grade_id(cell) in unread:
                cell.metadata.nbgrader["comment"] = "Not read yet: the points of this answer are still to come."
        parts = [part for cell in nb.cells for part in _HIDDEN.findall(cell.source)]
        hidden = {line.strip() for part in parts for line in part.split("\n") if len(line.strip()) > 30}
        for cell in nb.cells:
            tested = cell.cell_type == "code" and bool(_HIDDEN.search(cell.source))
            cell.source = _HIDDEN.sub("", cell.source)
            for place, output in enumerate(cell.get("outputs", [])):
                if output.output_type == "error" and tested:
                    output.traceback = [f"{output.ename}: {output.evalue}"]
                if any(line in json.dumps(output, ensure_ascii=False) for line in map(_as_json, hidden)):
                    cell.outputs[place] = _said("(output withheld: it quotes the tests)\n")
        return nb, resources


def _unread(about: Mapping[str, str]) -> set[str]:
    """The ids of a submission's cells whose points a person has yet to give."""
    with Gradebook(about["db_url"]) as gradebook:
        found = gradebook.find_submission_notebook(about["notebook"], about["assignment"], about["student"])
        return {grade.name for grade in found.grades if grade.needs_manual_grade}


def _order(about: Mapping[str, str]) -> list[str]:
    """The ids of an assignment's cells, from top to bottom; nbgrader works in the course's folder."""
    source = Path("source") / about["assignment"] / f"{about['notebook']}.ipynb"
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    return [one["metadata"]["nbgrader"]["grade_id"] for one in cells if "nbgrader" in one["metadata"]]


def _place(order: list[str], place: int, present: list[str], graded: bool) -> int:
    """Where a missing cell belongs: before what follows it; else tests at the end, others after what precedes."""
    if later := [name for name in order[place + 1 :] if name in present]:
        return present.index(later[0])
    if graded:
        return len(present)
    return present.index(order[place - 1]) + 1 if place and order[place - 1] in present else 0


def _grade_id(cell: Mapping) -> str:
    return cell["metadata"].get("nbgrader", {}).get("grade_id", "")


def _restored(found: Any, points: float | None, answer: bool) -> NotebookNode:
    mark = {
        "schema_version": 3, "grade_id": found.name, "grade": points is not None, "solution": answer, "task": False,
        "locked": found.locked, "checksum": found.checksum, "cell_type": found.cell_type,
    }  # fmt: skip
    if points is not None:
        mark["points"] = points
    code = {"outputs": [], "execution_count": None} if found.cell_type == "code" else {}
    return nbformat.from_dict(
        {"id": found.name, "cell_type": found.cell_type, "metadata": {"nbgrader": mark}, "source": found.source, **code}
    )


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _said(text: str) -> NotebookNode:
    return nbformat.v4.new_output("stream", name="stdout", text=text)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
