"""JupyterLab as `make lab` starts it, used from a browser: by keyboard and menu, as a reader does."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

NOTEBOOKS = ROOT / "notebooks"
STUDY = "calibration/calibration.ipynb"
SHORT = {"SEEDS": 2, "EPOCHS": 1}
SECONDS = 180
SETTINGS = {  # JupyterLab as it comes, but for its questions to the world outside
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
pytestmark = pytest.mark.slow


def make(*words):
    """`make` with the environment that runs the tests, which need not be the one that `make` installs."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    return ["make", "--old-file=.venv/.ready", *words, f"BIN={Path(sys.executable).parent}"]


def files():
    return {file: file.read_bytes() for file in sorted(NOTEBOOKS.rglob("*")) if file.is_file()}


def claims():
    """The names of the claims that the study declares, in the order in which it does."""
    cells = json.loads((NOTEBOOKS / STUDY).read_text())["cells"]
    return [name for cell in cells for name in re.findall(r'ledger\.Claim\(\s*"([^"]+)"', "".join(cell["source"]))]


def answers(address):
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        return urllib.request.urlopen(address, timeout=10).status == 200
    return False


@contextlib.contextmanager
def ended(process):
    """Ends the process and all that it started, whatever happens; Jupyter gets the time to end its kernels."""
    try:
        yield
    finally:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()  # make does not hand it on
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(word.endswith("jupyter-lab") for word in one.cmdline()):
                    one.terminate()
        _, left = psutil.wait_procs(family, timeout=30)
        for other in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                other.kill()
        process.wait()


@pytest.fixture
def lab(browser, tmp_path, monkeypatch):
    """Starts JupyterLab on a folder, with the user's own settings out of sight; gives the addresses of its files."""
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    own |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
    for name, folder in own.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    for name in ("JUPYTER_CONFIG_PATH", "JUPYTER_PATH", "JUPYTER_TOKEN", "MAKEFLAGS", "MAKELEVEL", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    for name, values in SETTINGS.items():
        file = tmp_path / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    with contextlib.ExitStack() as started:
        yield lambda folder: started.enter_context(serving(folder, tmp_path / "lab.log"))


@contextlib.contextmanager
def serving(folder, log):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    args = f"--no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 --IdentityProvider.token={token}"
    args += " --allow-root" * (os.geteuid() == 0)  # as in a container, where Jupyter asks for it
    command = make("lab", f"NOTEBOOKS={folder}", f"ARGS={args}")
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    with ended(process):
        deadline = time.monotonic() + SECONDS
        while not answers(f"http://127.0.0.1:{port}/api/status?token={token}"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield lambda path: f"http://127.0.0.1:{port}/lab/tree/{path}?token={token}"


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * SECONDS)
    yield context.new_page()
    context.close()


def set_parameter(page, name, value):
    """Types over the parameter's line in its cell."""
    line = page.locator(".jp-CodeCell .cm-line").filter(has_text=re.compile(rf"^{name} = ")).first
    line.click()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+End")
    page.keyboard.type(f"{name} = {value}  # changed by hand")
    page.get_by_text(re.compile(rf"^{name} = {value}  # changed by hand$")).wait_for()


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def test_a_study_runs_by_hand_in_jupyterlab(lab, page, tmp_path):
    from playwright.sync_api import expect

    before, declared = files(), claims()
    assert len(declared) == 16
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    page.goto(lab(tmp_path / "notebooks")(STUDY))
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    assert page.locator(".jp-OutputArea-output").count() == 0
    for name, value in SHORT.items():
        set_parameter(page, name, value)
    run_all(page)

    failed = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    verdicts = page.locator(".jp-OutputArea-output div.verdict")
    verdicts.nth(len(declared) - 1).or_(failed.first).first.wait_for(state="attached")
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    assert failed.all_inner_texts() == []
    names = [verdict.removeprefix("claim-") for verdict in verdicts.evaluate_all("all => all.map(v => v.id)")]
    assert sorted(names) == sorted(declared)
    for verdict in verdicts.all():
        verdict.scroll_into_view_if_needed()
        expect(verdict.locator(".badge")).to_be_visible()
        expect(verdict.locator(".badge")).to_have_text("inconclusive")
        expect(verdict).to_contain_text("n = 2")
    assert files() == before


def test_an_assignment_goes_from_release_to_feedback(lab, page, tmp_path):
    course = tmp_path / "course"
    made = ("release", "handout", "submitted", "autograded", "feedback", "gradebook.db")
    shutil.copytree(ROOT / "book" / "course", course, ignore=shutil.ignore_patterns(*made))
    run(course, "studybook.runner", "assign", "calibration", "--course", ".", "--student", "ann")
    folder = course / "handout" / "ann" / "calibration"
    source = json.loads((ROOT / "book" / "course" / "source" / "calibration" / "calibration.ipynb").read_text())
    (solution,) = ["".join(c["source"]) for c in source["cells"] if c["metadata"]["nbgrader"]["grade_id"] == "ece"]

    page.goto(lab(folder)("calibration.ipynb"))
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    page.locator(".jp-CodeCell .cm-line").filter(has_text=re.compile(r"^def ece\(")).click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(solution)
    run_all(page)
    page.get_by_text("The checks that you can see pass; the grader has more.", exact=True).first.wait_for()
    page.get_by_text(re.compile(r"^- logits that are twice too large: not written yet")).wait_for()
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+S")
    deadline = time.monotonic() + SECONDS
    while "BEGIN SOLUTION" not in (folder / "calibration.ipynb").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)

    handed_in = course / "submitted" / "ann" / "calibration"
    handed_in.mkdir(parents=True)
    shutil.copy(folder / "calibration.ipynb", handed_in)
    run(course, "nbgrader", "autograde", "calibration")
    run(course, "nbgrader", "generate_feedback", "calibration")
    page.goto((course / "feedback" / "ann" / "calibration" / "calibration.html").as_uri())
    assert "4 of 4 points" in page.content()
    assert page.content().count("not written yet") >= 8
    assert "(Score: 4.0 / 20.0)" in page.inner_text("body")


def run(folder, *words):
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
