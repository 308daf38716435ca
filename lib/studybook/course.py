"""Assignments of the course: another case for every student, decided by the id alone, and the folders handed out."""

import csv
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from studybook.studies import Problem

EVERYONE = "everyone"  # the case of a class in which all get the same
CASE = "case.npz"


def case(course: Path, assignment: str, student: str) -> dict[str, np.ndarray]:
    """What one student is given: drawn by `cases/<assignment>.py` with a generator that the id alone seeds."""
    seed = hashlib.sha256(f"{assignment}/{student}".encode()).digest()
    made = _maker(course, assignment)(np.random.default_rng(list(seed)))
    return {"student": np.array(student), **made}


def write_case(folder: Path, course: Path, assignment: str, student: str) -> None:
    """Writes the student's `case.npz` into `folder`, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
        np.savez_compressed(file, **case(course, assignment, student))
    os.chmod(file.name, 0o644)
    os.replace(file.name, folder / CASE)


def owner(folder: Path) -> str:
    """Whose case lies in a folder, as it says itself; "" if there is none or it cannot be read."""
    try:
        with (folder / CASE).open("rb") as file, np.load(file, allow_pickle=False) as found:
            return str(found["student"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return ""


def assignments(course: Path) -> list[str]:
    """The names of a course's assignments."""
    return sorted(file.stem for file in (course / "source").glob("*/*.ipynb") if file.stem == file.parent.name)


def student_id(text: str) -> str:
    """A student's or group's id, checked: it names a folder and seeds the case."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", text):
        raise Problem(
            "a student's id has 1 to 64 letters, digits, dots, dashes, underscores or @, and begins with a letter or a "
            f"digit; got {text!r}"
        )
    return text


def roster(file: Path) -> list[str]:
    """The ids in a file: one a line, or the column `id` of a CSV file, as nbgrader's own list of students has it."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    delimiter = next((mark for mark in ",;\t" if lines and mark in lines[0]), None)
    if delimiter or lines[:1] == ["id"]:
        table = csv.DictReader(lines, delimiter=delimiter or ",", skipinitialspace=True)
        columns = [name.strip() for name in table.fieldnames]
        if "id" not in columns:
            raise Problem(f"{file.name}: one column must be called id, but its first line is {lines[0]!r}")
        place = table.fieldnames[columns.index("id")]
        return [row[place].strip() for row in table]
    return lines


def hand_out(course: Path, assignment: str, students: Iterable[str], force: bool = False) -> list[Path]:
    """Writes `handout/<student>/<assignment>/` for each, from nbgrader's release; gives the folders that are new.

    A folder that is there stays as it is unless `force`, so an interrupted run goes on. Needs the release.
    """
    release = course / "release" / assignment
    if not (release / f"{assignment}.ipynb").exists():
        raise Problem(f"{assignment} has no release yet: nbgrader generate_assignment {assignment}")
    made = []
    for student in students:
        target = course / "handout" / student_id(student) / assignment
        if target.exists() and not force:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fresh = Path(scratch) / assignment
            shutil.copytree(release, fresh)
            write_case(fresh, course, assignment, student)
            if target.exists():
                shutil.rmtree(target)
            os.replace(fresh, target)
        made.append(target)
    return made


def _maker(course: Path, assignment: str) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    file = course / "cases" / f"{assignment}.py"
    if not file.exists():
        allowed = ", ".join(assignments(course)) or "none"
        raise Problem(f"there is no assignment {assignment!r} in {course.name}; there are: {allowed}")
    spec = importlib.util.spec_from_file_location(f"studybook_case_{assignment.replace('-', '_')}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.case
