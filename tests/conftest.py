"""Every test has its own cache folder and no data but what packages ship, unless it asks for more."""

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("STUDYBOOK_DATA") or ROOT.parent / "shared" / "data")
USERS_ENVIRONMENT = dict(os.environ)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def heed_interrupts():
    """For a process about to start: a shell's background jobs, and all that they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


PLAIN = {"tuple", "list", "dict", "range", "len", "sorted", "float", "int", "str", "zip", "frozenset"}


def method(study, **parameters):
    """What a study's notebook defines: imports, parameters, plain constants, functions and classes, with nothing run.

    For tests of a study's own method: `method("labels/confident-learning-test-errors")["candidates"](...)`.
    """

    def defines(node):
        calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
        plain = all(isinstance(call.func, ast.Name) and call.func.id in PLAIN for call in calls)
        kinds = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
        return isinstance(node, kinds) or isinstance(node, ast.Assign) and plain

    names = {}
    cells = nbformat.read(ROOT / "notebooks" / f"{study}.ipynb", 4).cells
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        tree = ast.parse(cell.source)
        tree.body = [node for node in tree.body if defines(node)]
        for node in tree.body:
            alone = ast.Module([node], [])
            try:
                exec(compile(alone, study, "exec"), names)  # noqa: S102
            except NameError:
                assert isinstance(node, ast.Assign), f"{study} defines a function by something that was not run"
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters
    return names


BOOK = ("test_book", "test_course", "test_notebooks")  # these read the built book, which only one process may make
LONGEST = (*BOOK, "test_workers", "test_runner", "test_benchmarks")  # begun first, so that processes end together


def pytest_collection_modifyitems(items):
    """The longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several processes (-n 2): a file's tests stay together, and so do the files that need the book."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            name = Path(nodeid.partition("::")[0]).stem
            return "book" if name in BOOK else name

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STUDYBOOK_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("COLLECT", "COMMITTED", "FRESH", "COMPUTE", "SECONDS", "SCHEDULER", "WORKERS", "THREADS"):
        name = f"STUDYBOOK_{name}"
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def real_data(monkeypatch):
    """The folder of real data sets; the test is skipped where there is none."""
    if not (SHARED / "cifar10" / "test.parquet").exists():
        pytest.skip("STUDYBOOK_DATA names no folder with cifar10")
    monkeypatch.setenv("STUDYBOOK_DATA", str(SHARED))
    return SHARED


DRAWN = ROOT / "build" / "drawn"  # a copy of the project, in which tests build the book: nobody's own pages are touched


def copied(folder):
    """The project's files, committed or not, brought into `folder`; gives the environment of commands on that copy."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    there = {name: (ROOT / name).read_bytes() for name in names if name and (ROOT / name).is_file()}
    listed = folder / "build" / "files"
    listed.parent.mkdir(parents=True, exist_ok=True)
    for name in listed.read_text().split("\0") if listed.exists() else []:
        if name not in there:
            (folder / name).unlink(missing_ok=True)
    listed.write_text("\0".join(there))
    for name, content in there.items():
        file = folder / name
        if not file.exists() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    rows = folder / "build" / "rows"
    return {**USERS_ENVIRONMENT, "STUDYBOOK_ROOT": str(folder), "STUDYBOOK_CACHE": str(rows), "STUDYBOOK_DATA": ""}


@pytest.fixture(scope="session")
def drawn_book():
    """The environment of commands on a built book whose studies were drawn from committed rows, without data.

    Pages and records are in `DRAWN / "book" / "studies"`, the site in `DRAWN / "book" / "_build" / "html"`. What has
    not changed is not drawn again.
    """
    environment = copied(DRAWN)
    command = [sys.executable, "-m", "studybook.runner"]
    for words in (["run", "--all", "--profile", "standard", "--drawn"], ["build"]):
        done = subprocess.run([*command, *words], cwd=DRAWN, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return environment


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()
