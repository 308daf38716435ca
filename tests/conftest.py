"""Every test has its own cache folder and no data but what packages ship, unless it asks for more."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("STUDYBOOK_DATA") or ROOT.parent / "shared" / "data")
USERS_ENVIRONMENT = dict(os.environ)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def heed_interrupts():
    """For a process about to start: a shell's background jobs, and all that they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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


@pytest.fixture(scope="session")
def users_book():
    """What `make book` does, with the user's own environment and store: run what has changed, build the book."""
    command = [sys.executable, "-m", "studybook.runner"]
    for words in (["run", "--all"], ["build"]):
        done = subprocess.run([*command, *words], cwd=ROOT, env=USERS_ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


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
