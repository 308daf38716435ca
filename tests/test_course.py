"""Assignments: another case for each student, and what nbgrader makes of good, wrong and hostile answers."""

import concurrent.futures
import copy
import json
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import DRAWN, ROOT
from nbgrader.api import Gradebook

from studybook import course, runner, studies

COURSE = ROOT / "book" / "course"
NAMES = course.assignments(COURSE)
MADE = ("release", "handout", "submitted", "autograded", "feedback", "gradebook.db", "grades.csv")


def copied(folder):
    shutil.copytree(COURSE, folder, ignore=lambda _, names: [n for n in names if n in (*MADE, "__pycache__")])
    return folder


def nbgrader(folder, *words, ok=True):
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words], cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert (done.returncode == 0) == ok, done.stderr[-3000:]
    return done.stderr


def source(name):
    return nbformat.read(COURSE / "source" / name / f"{name}.ipynb", 4)


def cell_of(notebook, grade_id):
    (found,) = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id]
    return found


def submit(folder, student, name, notebook):
    target = folder / "submitted" / student / name
    target.mkdir(parents=True)
    if isinstance(notebook, str):
        (target / f"{name}.ipynb").write_text(notebook)
    else:
        nbformat.write(notebook, target / f"{name}.ipynb")
    return target


def scores(folder, name, student):
    """Points by test cell, as the machine gave them."""
    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as gradebook:
        tests = {one.name for one in gradebook.find_notebook(name, name).grade_cells if one.cell_type == "code"}
        found = gradebook.find_submission_notebook(name, name, student).grades
        return {one.name: one.auto_score for one in found if one.name in tests}


def full(name):
    return {
        c.metadata.nbgrader.grade_id: c.metadata.nbgrader.points
        for c in source(name).cells
        if c.cell_type == "code" and c.metadata.get("nbgrader", {}).get("grade")
    }


def mistakes(name):
    return yaml.safe_load((ROOT / "tests" / "mistakes" / f"{name}.yml").read_text())


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def rounds(name):
    """The mistakes, at most one of each cell at a time: tasks are independent, so each costs what it costs alone."""
    found = []
    for mistake in mistakes(name):
        free = [some for some in found if mistake["cell"] not in {other["cell"] for other in some}]
        free[0].append(mistake) if free else found.append([mistake])
    return found


def mistaken(name, some):
    notebook = source(name)
    for mistake in some:
        cell = cell_of(notebook, mistake["cell"])
        assert cell.source.count(mistake["old"]) == 1, mistake["name"]
        cell.source = cell.source.replace(mistake["old"], mistake["new"])
    return notebook


def regions(name, kind):
    """The lines between an assignment's marks, those long enough to be nobody else's."""
    text = "\n".join(c.source for c in source(name).cells)
    parts = re.findall(rf"### BEGIN {kind}(.*?)### END {kind}", text, re.S)
    return {line.strip() for part in parts for line in part.splitlines() if len(line.strip()) > 30}


# ---------------------------------------------------------------- cases and handouts


@pytest.mark.parametrize("name", NAMES)
def test_a_case_is_decided_by_the_id_alone(name):
    one, again, other = (course.case(COURSE, name, student) for student in ("ann", "ann", "bob"))
    assert set(one) == set(other)
    assert all(np.array_equal(one[key], again[key]) for key in one)
    assert any(not np.array_equal(one[key], other[key]) for key in set(one) - {"student"})
    assert all(array.dtype != object for array in one.values())


def test_a_case_with_an_unknown_assignment_names_those_there_are():
    with pytest.raises(studies.Problem, match=f"no assignment 'calibratoin'.*there are: {', '.join(NAMES)}"):
        course.case(COURSE, "calibratoin", "ann")


@pytest.mark.parametrize("text", ["", "../ann", "a/b", ".hidden", "a b", "x" * 65, "ü"])
def test_an_id_that_cannot_name_a_folder_is_refused(text):
    with pytest.raises(studies.Problem, match="a student's id has 1 to 64 letters"):
        course.student_id(text)


def test_the_owner_of_a_broken_case_is_nobody(tmp_path):
    assert course.owner(tmp_path) == ""
    (tmp_path / "case.npz").write_bytes(b"PK\x03\x04 cut off")
    assert course.owner(tmp_path) == ""
    np.savez(tmp_path / "case.npz", student=np.array([{"a": "pickle"}], dtype=object))
    assert course.owner(tmp_path) == ""
    course.write_case(tmp_path, COURSE, "calibration", "ann")
    assert course.owner(tmp_path) == "ann"
    assert [file.name for file in tmp_path.iterdir()] == ["case.npz"]


def test_a_roster_is_a_list_or_a_table_with_a_column_id(tmp_path):
    (tmp_path / "list.txt").write_text("# the class of 2026\nann\n\n  bob \n")
    (tmp_path / "table.csv").write_text("\ufefffirst_name, id, email\nAnn, ann, a@b.c\nBob, bob, b@b.c\n")
    (tmp_path / "excel.csv").write_text("id;first_name\nann;Ann\nbob;Bob\n")
    for name in ("list.txt", "table.csv", "excel.csv"):
        assert course.roster(tmp_path / name) == ["ann", "bob"]
    (tmp_path / "other.csv").write_text("student_id,name\nann,Ann\n")
    with pytest.raises(studies.Problem, match="one column must be called id, but its first line is 'student_id,name'"):
        course.roster(tmp_path / "other.csv")


def assign(*words):
    return CliRunner().invoke(runner.main, ["assign", *words])


def test_assign_hands_out_folders_and_goes_on_where_it_stopped(tmp_path):
    folder = copied(tmp_path / "course")
    where = ("calibration", "--course", str(folder))
    first = assign(*where, "--student", "ann", "--student", "ann")
    assert first.exit_code == 0, first.output
    assert "1 of 1 folders" in first.output
    assert course.owner(folder / "release" / "calibration") == course.EVERYONE
    mine = folder / "handout" / "ann" / "calibration"
    assert course.owner(mine) == "ann"
    assert sorted(file.name for file in mine.iterdir()) == ["calibration.ipynb", "case.npz"]
    (mine / "calibration.ipynb").write_text("ann's work")
    (tmp_path / "ids").write_text("ann\nbob\n")
    second = assign(*where, "--roster", str(tmp_path / "ids"))
    assert "1 of 2 folders" in second.output
    assert "(1 were there)" in second.output
    assert (mine / "calibration.ipynb").read_text() == "ann's work"
    assert assign(*where, "--student", "ann", "--force").exit_code == 0
    assert json.loads((mine / "calibration.ipynb").read_text())["nbformat"] == 4


def test_assign_refuses_in_one_sentence(tmp_path):
    assert f"has no assignment 'calibratoin'; it has: {', '.join(NAMES)}" in assign("calibratoin").output
    assert "got '../ann'" in assign("calibration", "--student", "../ann").output
    folder = copied(tmp_path / "course")
    notebook = folder / "source" / "calibration" / "calibration.ipynb"
    notebook.write_text(notebook.read_text().replace("### END SOLUTION", ""))
    said = assign("calibration", "--course", str(folder))
    assert said.exit_code == 1
    assert "nbgrader could not make calibration: " in said.output
    assert len(said.output.strip().splitlines()) == 1


# ---------------------------------------------------------------- what graders and students read


@pytest.mark.parametrize("name", NAMES)
def test_an_assignment_has_twenty_points_and_every_kind_of_task(name):
    cells = source(name).cells
    marks = [c.metadata.nbgrader for c in cells]
    assert sum(m.get("points", 0) for m in marks) == 20
    assert [m.points for m, c in zip(marks, cells, strict=True) if m.grade and c.cell_type == "markdown"] == [4]
    assert "**Rubric.**" in next(c.source for c in cells if c.metadata.nbgrader.grade and c.cell_type == "markdown")
    text = "\n".join(c.source for c in cells)
    assert "predict" in text.lower()
    assert "control" in text.lower()
    assert cell_of(source(name), "setup").source == cell_of(source("calibration"), "setup").source
    assert len({m.grade_id for m in marks}) == len(cells)


def test_there_are_at_least_twelve_wrong_solutions_and_every_test_has_one():
    assert sum(len(mistakes(name)) for name in NAMES) >= 12
    for name in NAMES:
        assert {test for mistake in mistakes(name) for test in mistake["lost"]} == set(full(name))


# ---------------------------------------------------------------- nbgrader


def grade(folder, name):
    """A course in which the model solution, the empty release and all mistakes were handed in and graded."""
    copied(folder)
    nbgrader(folder, "generate_assignment", name)
    released = nbformat.read(folder / "release" / name / f"{name}.ipynb", 4)
    submit(folder, "model", name, source(name))
    submit(folder, "empty", name, released)
    for i, some in enumerate(rounds(name)):
        submit(folder, f"round-{i}", name, mistaken(name, some))
    nbgrader(folder, "autograde", name)
    nbgrader(folder, "generate_feedback", name)
    return folder


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) / "course" for name in NAMES}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(NAMES, pool.map(grade, folders.values(), NAMES), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_model_solution_gets_every_point_that_a_machine_gives(name, graded):
    assert scores(graded[name], name, "model") == full(name)
    assert sum(full(name).values()) == 16


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_empty_release_gets_nothing_and_is_told_why_at_each_task(name, graded):
    assert scores(graded[name], name, "empty") == dict.fromkeys(full(name), 0)
    seen = nbformat.read(graded[name] / "autograded" / "empty" / name / f"{name}.ipynb", 4)
    for grade_id in full(name):
        said = "".join(output.get("text", "") for output in cell_of(seen, grade_id).outputs)
        assert re.search(r"^- .+: not written yet$", said, re.M), grade_id
        assert f"0 of {full(name)[grade_id]} points" in said


@pytest.mark.slow
@pytest.mark.parametrize(("name", "i"), [(name, i) for name in NAMES for i in range(len(rounds(name)))])
def test_wrong_solutions_lose_the_points_of_what_they_break_and_no_others(name, i, graded):
    expected = full(name)
    for mistake in rounds(name)[i]:
        for test, points in mistake["lost"].items():
            expected[test] -= points
    assert scores(graded[name], name, f"round-{i}") == expected, [mistake["name"] for mistake in rounds(name)[i]]


def feedback(folder, name, student):
    """The page that a student gets, without its markup."""
    return re.sub(r"<[^>]+>", "", (folder / "feedback" / student / name / f"{name}.html").read_text())


@pytest.mark.slow
def test_feedback_has_the_points_of_each_check_and_says_which_answers_wait_for_a_reader(graded):
    folder, name = graded["calibration"], "calibration"
    said = feedback(folder, name, "model")
    assert "+ four predictions, worked out by hand (1)" in said
    assert "- four predictions, worked out by hand (0 of 1): not written yet" in feedback(folder, name, "empty")
    assert said.count("Not read yet") == 1
    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as gradebook:
        (answer,) = [
            one for one in gradebook.find_submission(name, "model").notebooks[0].grades if one.needs_manual_grade
        ]
        answer.manual_score, answer.needs_manual_grade = 3, False
        gradebook.db.commit()
    nbgrader(folder, "generate_feedback", name)  # what has changed is shown without --force
    said = feedback(folder, name, "model")
    assert "Not read yet" not in said
    assert "3.0 / 4.0" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_neither_release_nor_feedback_holds_solutions_or_hidden_tests(name, graded):
    solutions, hidden = regions(name, "SOLUTION"), regions(name, "HIDDEN TESTS")
    assert len(solutions) >= 5
    assert len(hidden) >= 20
    released = json.loads((graded[name] / "release" / name / f"{name}.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in released["cells"])
    assert not [line for line in solutions | hidden if line in text]
    assert "Model answer" not in text
    told = (graded[name] / "feedback" / "empty" / name / f"{name}.html").read_text()
    plain = re.sub(r"<[^>]+>", "", told)
    assert "not written yet" in plain
    assert not [line for line in hidden if line in plain]


def all_text(folder):
    kinds = (".html", ".js", ".json", ".ipynb", ".txt", ".csv", ".yml", ".md", ".py", ".inv", ".svg")
    for file in sorted(folder.rglob("*")):
        if file.suffix in kinds and "mathjax" not in file.parts:
            yield file, file.read_text(encoding="utf-8", errors="replace")


@pytest.mark.slow
def test_the_built_site_holds_no_solution_and_its_notebooks_no_answer(drawn_book):
    lines = set().union(*(regions(name, kind) for name in NAMES for kind in ("SOLUTION", "HIDDEN TESTS")))
    answers = set()
    for study in studies.known().values():
        text = "".join(studies.notebook(study.source)["cells"][-1]["source"])
        found = re.findall(r"<summary>Answer</summary>\n\n(.+?)\n", text)
        assert found
        answers |= set(found)
    site = DRAWN / "book" / "_build" / "html"
    offered = 0
    for file, text in all_text(site):
        plain = re.sub(r"<[^>]+>", "", text)
        assert not [line for line in lines if line in plain], file
        if file.suffix == ".ipynb":
            offered += 1
            cells = "".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
            assert not [line for line in answers if line in cells], file
    assert offered == len(studies.known())


# ---------------------------------------------------------------- hostile and broken submissions


def with_code(grade_id, code):
    notebook = source("calibration")
    cell_of(notebook, grade_id).source = code
    return notebook


HOSTILE = {
    "loops": "def ece(confidence, correct, bins):\n    while True:\n        pass",
    "stubborn": "import time\nwhile True:\n    try:\n        time.sleep(1)\n    except BaseException:\n        pass",
    "hungry": "import numpy as np\nhoard = [np.ones(2**27) for _ in range(100)]",
    "chatty": "while True:\n    print('x' * 10_000)",
    "rewrites": "import numpy as np\ngraded = lambda tests, points: points\nnp = None\nece = 1",
    "spies": (
        "import threading, time\n"
        "def spy():\n    for _ in range(200):\n        time.sleep(0.05)\n        print(In[-1])\n"
        "threading.Thread(target=spy, daemon=True).start()"
    ),
    "quits": "import os\nos._exit(0)",
}
ACTS = {
    "open(outside, 'w').write('I was here')": "a submission may only write in its own folder",
    "os.unlink(outside)": "a submission may only write in its own folder",
    "os.rename(outside, 'mine.txt')": "a submission may only write in its own folder",
    "os.mkdir(outside + '.d')": "a submission may only write in its own folder",
    "subprocess.run(['touch', outside])": "a submission may not do this while it is graded: subprocess.Popen",
    "os.system('touch ' + outside)": "a submission may not do this while it is graded: os.system",
    "os.fork()": "a submission may not do this while it is graded: os.fork",
    "os.kill(os.getppid(), 9)": "a submission may not do this while it is graded: os.kill",
    "socket.create_connection(('127.0.0.1', 9), timeout=1)": "a submission may not do this while it is graded: socket.",
    "open('../../../source/calibration/calibration.ipynb')": "a submission may only read its own files of the course",
    "open('../../../gradebook.db', 'rb')": "a submission may only read its own files of the course",
    "open('../../a-model/calibration/calibration.ipynb')": "a submission may only read its own files of the course",
    "open('calibration.ipynb')": "a submission may not open a notebook while it is graded",
    "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))": "a submission may not do this while it is graded: resource.",
}


@pytest.fixture(scope="module")
def besieged(tmp_path_factory):
    """A course whose submissions misbehave in every way; the first and the last are honest."""
    folder = copied(tmp_path_factory.mktemp("besieged") / "course")
    outside = folder.parent / "outside.txt"
    outside.write_text("untouched")
    with (folder / "nbgrader_config.py").open("a") as config:
        config.write("\nc.Fenced.cell_seconds = 4\nc.Fenced.submission_seconds = 12\nc.Fenced.memory_gib = 2.0\n")
    nbgrader(folder, "generate_assignment", "calibration")
    submit(folder, "a-model", "calibration", source("calibration"))
    submit(folder, "z-model", "calibration", source("calibration"))
    for name, code in HOSTILE.items():
        submit(folder, name, "calibration", with_code("ece", code))
    acts = [f"try:\n    {act}\nexcept OSError as error:\n    print(error)" for act in ACTS]
    prelude = f"import os, resource, socket, subprocess\noutside = {str(outside)!r}\n"
    kept = "open('notes.txt', 'w').write('in its own folder')\nprint('went on')"
    submit(folder, "mischief", "calibration", with_code("ece", prelude + "\n".join([*acts, kept])))
    changed = source("calibration")
    for cell in changed.cells:
        if cell.metadata.nbgrader.grade and cell.cell_type == "code":
            cell.source = f"{cell.metadata.nbgrader.points}"
            cell.metadata.nbgrader.points = 100
    cell_of(changed, "ece").source = "def ece(*_):\n    return 0"
    submit(folder, "changed", "calibration", changed)
    deleted = source("calibration")
    deleted.cells = [c for c in deleted.cells if c.metadata.nbgrader.solution]
    submit(folder, "deleted", "calibration", deleted)
    unmarked = source("calibration")
    for cell in unmarked.cells:
        cell.source = re.sub(r"### BEGIN HIDDEN TESTS.*### END HIDDEN TESTS", "", cell.source, flags=re.S)
        cell.metadata = nbformat.NotebookNode()
    submit(folder, "unmarked", "calibration", unmarked)
    older = copy.deepcopy(source("calibration"))
    older.metadata.kernelspec = {"name": "conda-env-old-py", "display_name": "Old", "language": "python"}
    older.nbformat_minor = 2
    for cell in older.cells:
        del cell["id"]
    submit(folder, "older", "calibration", json.dumps(older))
    newer = copy.deepcopy(source("calibration"))
    newer.nbformat_minor = 9
    newer.metadata["something"] = {"new": True}
    submit(folder, "newer", "calibration", json.dumps(newer))
    submit(folder, "cut-off", "calibration", json.dumps(source("calibration"))[:5000])
    submit(folder, "empty-file", "calibration", "")
    said = nbgrader(folder, "autograde", "calibration", ok=False)
    nbgrader(folder, "generate_feedback", "calibration")
    return folder, outside, said


@pytest.mark.slow
def test_honest_submissions_get_their_points_whatever_the_others_do(besieged):
    folder, _, _ = besieged
    for student in ("a-model", "z-model"):
        assert scores(folder, "calibration", student) == full("calibration")


@pytest.mark.slow
@pytest.mark.parametrize("student", ["older", "newer", "deleted", "unmarked"])
def test_what_other_editors_make_of_a_notebook_is_graded_in_full(student, besieged):
    assert scores(besieged[0], "calibration", student) == full("calibration")


@pytest.mark.slow
@pytest.mark.parametrize("student", ["cut-off", "empty-file"])
def test_a_file_that_is_no_notebook_is_refused_with_a_reason(student, besieged):
    folder, _, said = besieged
    assert f"There was an error processing assignment 'calibration' for student '{student}'" in said
    assert "does not appear to be JSON" in said
    assert not (folder / "autograded" / student / "calibration").exists()


@pytest.mark.slow
@pytest.mark.parametrize("student", sorted({"mischief", *HOSTILE} - {"stubborn", "quits"}))
def test_hostile_code_costs_its_own_task_and_nothing_else(student, besieged):
    expected = {**full("calibration"), "test-ece": 0}
    assert scores(besieged[0], "calibration", student) == expected


@pytest.mark.slow
def test_changed_tests_are_what_they_were(besieged):
    found = scores(besieged[0], "calibration", "changed")
    assert found == {**full("calibration"), "test-ece": found["test-ece"]}
    assert found["test-ece"] < 1


@pytest.mark.slow
def test_code_that_will_not_end_ends_and_a_dead_kernel_is_refused_with_a_reason(besieged):
    for student in ("quits", "stubborn"):
        assert f"There was an error processing assignment 'calibration' for student '{student}'" in besieged[2]
    assert "Kernel died" in besieged[2]
    assert "A cell timed out" in besieged[2]


@pytest.mark.slow
def test_nothing_outside_is_touched_and_nothing_of_the_graders_is_told(besieged):
    folder, outside, _ = besieged
    assert outside.read_text() == "untouched"
    hidden = regions("calibration", "HIDDEN TESTS") - regions("calibration", "SOLUTION")
    pages = list((folder / "feedback").rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        plain = re.sub(r"<[^>]+>", "", page.read_text())
        assert not [line for line in hidden if line in plain], page
    seen = nbformat.read(folder / "autograded" / "mischief" / "calibration" / "calibration.ipynb", 4)
    said = "".join(output.get("text", "") for output in cell_of(seen, "ece").outputs).splitlines()
    assert len(said) == len(ACTS) + 1
    assert [line for line, why in zip(said, ACTS.values(), strict=False) if not line.startswith(why)] == []
    assert said[-1] == "went on"


@pytest.mark.slow
def test_grading_uses_the_case_of_the_id_not_the_one_that_was_handed_in(tmp_path):
    folder = copied(tmp_path / "course")
    assert assign("calibration", "--course", str(folder), "--student", "ann", "--student", "bob").exit_code == 0
    for student, borrowed in (("ann", "ann"), ("bob", "ann")):
        target = submit(folder, student, "calibration", source("calibration"))
        shutil.copy(folder / "handout" / borrowed / "calibration" / "case.npz", target)
    copied_results = course.case(folder, "calibration", "ann")
    notebook = source("calibration")
    cell_of(notebook, "outcome").source = outcome_of(copied_results)
    submit(folder, "cat", "calibration", notebook)
    nbgrader(folder, "autograde", "calibration")
    for student in ("ann", "bob"):
        assert course.owner(folder / "autograded" / student / "calibration") == student
        assert scores(folder, "calibration", student) == full("calibration")
    assert scores(folder, "calibration", "cat") == {**full("calibration"), "test-outcome": 0.5}


def outcome_of(case):
    """What somebody would copy: the numbers that the model solution finds on another's case."""
    spaces = {"np": np, "case": case}
    for grade_id in ("ece", "temperature", "outcome"):
        exec(cell_of(source("calibration"), grade_id).source, spaces)
    return f"def outcome():\n    return { {k: tuple(map(float, v)) for k, v in spaces['outcome']().items()} }"
