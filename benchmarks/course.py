"""An assignment for a class: how long generating and grading take, how much memory, and what the fence costs.

python -m benchmarks.course [STUDENTS=200] [ASSIGNMENT=calibration]

Prints seconds a student for handing out and for autograding, an interruption in the middle included, the peak memory
of the grader with its kernels, and the time of a graded submission as a ratio to nbgrader's own execution without fence
and case.
"""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

COURSE = Path(__file__).parents[1] / "book" / "course"


def run(folder: Path, *words: str, stop_after: float | None = None) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a command and all that it starts; interrupted after some seconds if asked."""
    started, peak, done = time.perf_counter(), 0.0, threading.Event()
    process = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, stderr=subprocess.DEVNULL)

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            used = 0
            for one in family:
                try:
                    used += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, used / 2**20)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        process.wait(stop_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
    done.set()
    return time.perf_counter() - started, peak


def graded(folder: Path, name: str) -> int:
    return len(list((folder / "autograded").glob(f"*/{name}/{name}.ipynb")))


def main(students: int = 200, name: str = "calibration") -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "course"
        made = ("release", "handout", "submitted", "autograded", "feedback", "gradebook.db")
        shutil.copytree(COURSE, folder, ignore=shutil.ignore_patterns(*made))
        (folder / "ids").write_text("".join(f"student-{i:03}\n" for i in range(students)))
        seconds, peak = run(folder, "studybook.runner", "assign", name, "--course", ".", "--roster", "ids")
        print(f"handing out: {students} in {seconds:.1f} s ({1000 * seconds / students:.0f} ms each), {peak:.0f} MiB")
        for i in range(students):
            target = folder / "submitted" / f"student-{i:03}" / name
            target.mkdir(parents=True)
            shutil.copy(folder / "source" / name / f"{name}.ipynb", target)
        first, peak = run(folder, "nbgrader", "autograde", name, stop_after=20)
        there = graded(folder, name)
        second, later = run(folder, "nbgrader", "autograde", name)
        rest = graded(folder, name) - there
        print(f"grading: interrupted after {first:.1f} s with {there} done, then the other {rest}")
        print(f"  in {second:.1f} s ({second / max(1, students - there):.2f} s each), peak {max(peak, later):.0f} MiB")
        few = min(10, students)
        shutil.rmtree(folder / "autograded")
        for extra in list((folder / "submitted").iterdir())[few:]:
            shutil.rmtree(extra)
        ours = run(folder, "nbgrader", "autograde", name)[0]
        shutil.rmtree(folder / "autograded")
        config = folder / "nbgrader_config.py"
        config.write_text(re.sub(r"studybook\.grading\.Fenced", "nbgrader.preprocessors.Execute", config.read_text()))
        for target in (folder / "submitted").glob(f"*/{name}"):
            shutil.copy(folder / "handout" / target.parent.name / name / "case.npz", target)
        plain = run(folder, "nbgrader", "autograde", name)[0]
        print(f"{few} submissions: {ours:.1f} s fenced, {plain:.1f} s without; ratio {ours / plain:.2f}")


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, str), sys.argv[1:], strict=False)))
