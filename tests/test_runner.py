import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import click
import nbformat
import psutil
import pytest
from click.testing import CliRunner
from conftest import heed_interrupts
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from studybook import book, data, pages, provenance, runner, studies

ABOUT = """
title: Coins
paper: {key: a2020, title: On Coins, authors: "A, B", year: 2020, venue: ICML, url: "https://example.org"}
quick: {says: three coins, seconds: 1}
profiles:
  standard: {says: more coins, seconds: 9, parameters: {FLIPS: 50}}
  full: {says: all coins, seconds: 9, needs: {gpu: true}, parameters: {FLIPS: 500}}
"""
PARAMETERS = """
FLIPS = 20       # flips of each coin
BIAS = 0.25      # added to a half
LABEL = "heads"  # which side counts
STRICT = False   # whether to fail
"""
CLAIMS = """
from studybook import ledger, stats, sweep
import torch
biased = ledger.Claim("biased", "heads come up more often than not", above=0.5, paper="0.75", unit=".2f")
"""
SWEEP = """
def measure(case):
    if STRICT:
        raise RuntimeError("the coin broke")
    g = torch.Generator().manual_seed(case["seed"])
    return {"heads": (torch.rand(FLIPS, generator=g) < 0.5 + BIAS).double().mean()}

table = sweep.run(measure, [{"seed": s} for s in range(4)])
"""
JUDGE = """
ledger.judge(biased, stats.interval(torch.tensor(table["heads"])));
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A book of one small study, as the current folder."""
    folder = tmp_path / "book of coins"
    write(folder, JUDGE)
    (folder / "_config.yml").write_text("title: Coins\n")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("STUDYBOOK_ROOT", raising=False)
    return folder


def write(folder, judge, claims=CLAIMS, about=ABOUT):
    (folder / "notebooks" / "money").mkdir(parents=True, exist_ok=True)
    parameters = new_code_cell(textwrap.dedent(PARAMETERS).strip(), metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# Coins"), parameters, *(new_code_cell(c.strip()) for c in (claims, SWEEP, judge))]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    nbformat.write(notebook, folder / "notebooks" / "money" / "coins.ipynb")
    (folder / "notebooks" / "money" / "coins.yml").write_text(about)


def command(*words):
    return CliRunner().invoke(runner.main, words)


def record(project):
    return json.loads((project / "book" / "studies" / "money" / "coins.json").read_text())


# ---------------------------------------------------------------- refusals, before any kernel starts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "coin"], "no study is called 'coin'; did you mean 'coins'?"),
        (["run", "coins", "-p", "FLIP", "3"], "no parameter 'FLIP'; did you mean 'FLIPS'?"),
        (["run", "coins", "-p", "FLIPS", "many"], "FLIPS must be a whole number (as its default 20), got 'many'"),
        (["run", "coins", "-p", "FLIPS", "2.5"], "FLIPS must be a whole number"),
        (["run", "coins", "-p", "BIAS", "nan"], "BIAS must be a number (as its default 0.25), got 'nan'"),
        (["run", "coins", "-p", "STRICT", "maybe"], "STRICT must be true or false"),
        (["run", "coins", "--profile", "huge"], "no profile 'huge'; it has quick, standard, full"),
        (["run"], "name a study (studybook list shows them), or give --all"),
        (["run", "coins", "--record", "-p", "FLIPS", "3"], "--record keeps a profile as it stands"),
        (["check", "coins"], "no committed quick record: studybook run coins --record writes it"),
        (["build"], "coins has not been run yet: studybook run coins"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(project, monkeypatch, words, message):
    monkeypatch.setattr(runner, "_papermill", lambda *_: pytest.fail("a kernel was started"))
    answer = command(*words)
    assert answer.exit_code == 1
    assert message in answer.output
    assert "Traceback" not in answer.output


def test_a_profile_that_needs_a_gpu_says_so(project, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    answer = command("run", "coins", "--profile", "full")
    assert answer.exit_code == 1
    assert "coins [full] needs a GPU and torch sees none here" in answer.output


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("title: {a\nb", "coins.yml, line 2: malformed YAML"),
        (ABOUT.replace("title: Coins", "name: Coins"), "the key 'title' must be there and be a text"),
        (ABOUT.replace("parameters: {FLIPS: 50}", "FLIPS: 50"), "profile 'standard' must be a mapping"),
        (ABOUT.replace("seconds: 1}", "cases: [{seed: 1}]}"), "'cases' of profile 'quick' must hold {case: {...}, sec"),
    ],
)
def test_malformed_yaml_is_refused_by_file_and_line(project, about, message):
    write(project, JUDGE, about=about)
    answer = command("list")
    assert answer.exit_code == 1
    assert message in answer.output


def test_a_profile_with_an_unknown_parameter_is_refused(project):
    write(project, JUDGE, about=ABOUT.replace("FLIPS: 50", "FLOPS: 50"))
    answer = command("run", "coins", "--profile", "standard")
    assert answer.exit_code == 1
    assert "no parameter 'FLOPS'; did you mean 'FLIPS'?" in answer.output


def test_outside_a_project_the_command_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = command("list")
    assert answer.exit_code == 1
    assert "run this inside a clone, or set STUDYBOOK_ROOT" in answer.output


def test_parameters_must_be_plain_lines(project):
    notebook = nbformat.read(project / "notebooks" / "money" / "coins.ipynb", 4)
    notebook.cells[1].source = "A, B = 1, 2"
    nbformat.write(notebook, project / "notebooks" / "money" / "coins.ipynb")
    answer = command("run", "coins")
    assert "must hold one plain assignment a line" in answer.output


def test_values_take_the_type_of_their_default(project):
    study = studies.find("coins")
    given = {"FLIPS": "7", "BIAS": "1", "LABEL": "tails", "STRICT": "true"}
    typed = studies.typed(study, given)
    assert typed == {"FLIPS": 7, "BIAS": 1.0, "LABEL": "tails", "STRICT": True}
    assert [type(v) for v in typed.values()] == [int, float, str, bool]


# ---------------------------------------------------------------- runs


def test_a_run_leaves_a_page_and_a_record(project):
    answer = command("run", "coins", "-p", "FLIPS", "40")
    assert answer.exit_code == 0, answer.output
    assert "coins [quick]: 1 reproduced" in answer.output
    done = record(project)
    assert done["parameters"] == {"FLIPS": 40, "BIAS": 0.25, "LABEL": "heads", "STRICT": False}
    assert done["overrides"] == {"FLIPS": 40}
    assert [(c["name"], c["verdict"], c["n"]) for c in done["claims"]] == [("biased", "reproduced", 4)]
    assert done["sweeps"][0]["computed"] == 4
    assert done["peak_memory_mib"] > 50
    assert {"python", "torch", "studybook"} <= set(done["versions"])
    assert {"processor", "cores", "device", "memory"} == set(done["machine"])
    book.write_pages()
    page = nbformat.read(project / "book" / "studies" / "money" / "coins.ipynb", 4)
    nbformat.validate(page)
    box = page.cells[-1].source
    for part in ("How this page was made", "FLIPS = 40", "studybook run coins -p FLIPS 40", "4 cases"):
        assert part in box
    assert "A, B, ICML 2020" in page.cells[1].source
    assert "profile <code>quick</code> with <code>FLIPS = 40</code>" in page.cells[1].source
    assert "three coins" not in page.cells[1].source


def test_an_unchanged_study_is_not_run_again_and_a_changed_one_is(project, monkeypatch):
    command("run", "coins")
    runs = []
    real = runner._papermill
    monkeypatch.setattr(runner, "_papermill", lambda *a: runs.append(a) or real(*a))
    assert "(unchanged)" in command("run", "coins").output
    assert runs == []
    write(project, JUDGE + "# changed")
    assert "1 reproduced" in command("run", "coins").output
    assert len(runs) == 1
    assert record(project)["sweeps"][0]["stored"] == 4


def test_a_failure_names_the_cell_keeps_the_earlier_page_and_lets_other_studies_go_on(project):
    command("run", "coins")
    before = (project / "book" / "studies" / "money" / "coins.ipynb").read_text()
    other = project / "notebooks" / "money"
    for suffix in ("ipynb", "yml"):
        (other / f"dice.{suffix}").write_text((other / f"coins.{suffix}").read_text())
    write(project, JUDGE, claims=CLAIMS + "\n1 / 0")
    answer = command("run", "--all")
    assert answer.exit_code == 1
    assert "coins failed in cell 2: ZeroDivisionError: division by zero" in answer.output
    assert "dice [quick]: 1 reproduced" in answer.output
    assert "1 of 2 studies failed: coins" in answer.output
    assert (project / "book" / "studies" / "money" / "coins.ipynb").read_text() == before
    assert "ZeroDivisionError" in (project / ".studybook" / "failed" / "coins.log").read_text()
    assert (project / ".studybook" / "failed" / "coins.ipynb").exists()


def test_a_claim_without_a_verdict_is_an_error(project):
    write(project, "1 + 1")
    answer = command("run", "coins")
    assert answer.exit_code == 1
    assert "no verdict on biased" in answer.output


def test_recorded_rows_draw_a_page_where_nothing_can_be_computed(project, tmp_path, monkeypatch):
    answer = command("run", "coins", "--profile", "standard", "--record")
    assert answer.exit_code == 0, answer.output
    results = project / "book" / "results" / "coins" / "standard"
    assert len(json.loads((results / "rows.json").read_text())) == 4
    claims = json.loads((results / "run.json").read_text())["claims"]
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "nothing"))
    answer = command("run", "--all", "--profile", "standard", "--drawn", "--force")
    assert answer.exit_code == 0, answer.output
    assert "coins [standard]: 1 reproduced" in answer.output
    assert record(project)["sweeps"][0]["committed"] == 4
    assert record(project)["claims"] == claims
    full = command("run", "--all", "--profile", "full", "--drawn").output
    assert "the repository has no rows of its full profile; drawing quick" in full
    assert "coins [quick]" in full


def test_a_page_drawn_from_rows_whose_code_moved_on_is_marked_stale(project, tmp_path, monkeypatch):
    command("run", "coins", "--profile", "standard", "--record")
    assert "fresh" in [line for line in command("status").output.splitlines() if "standard" in line][0]
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "nothing"))
    file = project / "notebooks" / "money" / "coins.ipynb"
    file.write_text(file.read_text().replace("0.5 + BIAS", "BIAS + 0.5"))
    answer = command("run", "coins", "--profile", "standard")
    assert "stale (code)" in answer.output
    book.write_pages()
    page = nbformat.read(project / "book" / "studies" / "money" / "coins.ipynb", 4)
    assert "Stale: the code behind the stored numbers" in page.cells[1].source
    assert "stale (notebook)" in command("status").output
    assert "stale" not in command("run", "coins", "--profile", "standard", "--fresh").output


def test_check_finds_the_committed_numbers_again_and_sees_a_change(project):
    command("run", "coins", "--record")
    answer = command("check", "coins")
    assert answer.exit_code == 0, answer.output
    assert "1 claims agree with the committed record" in answer.output
    file = project / "book" / "results" / "coins" / "quick" / "run.json"
    saved = json.loads(file.read_text())
    saved["claims"][0]["mean"] += 0.01
    saved["claims"][0]["verdict"] = "contradicted"
    file.write_text(json.dumps(saved))
    answer = command("check", "coins")
    assert answer.exit_code == 1
    assert "biased: verdict contradicted, now reproduced" in answer.output
    assert "biased: mean" in answer.output


def test_records_are_compared_number_by_number_within_the_tolerance():
    claim = {"name": "c", "verdict": "reproduced", "mean": 0.5, "low": 0.4, "high": None, "n": 3}
    assert runner.compare({"claims": [claim]}, {"claims": [{**claim, "mean": 0.5004}]}) == []
    assert runner.compare({"claims": [claim]}, {"claims": [{**claim, "mean": 0.502}]}) == ["c: mean 0.5, now 0.502"]
    assert runner.compare({"claims": [claim]}, {"claims": [{**claim, "high": 1.0}]}) == ["c: high None, now 1.0"]
    assert runner.compare({"claims": [claim]}, {"claims": []}) == ["c: only in the committed record"]


def test_status_and_list_show_every_study_and_profile(project):
    command("run", "coins")
    lines = command("status").output.splitlines()
    assert [line.split()[:2] for line in lines] == [["coins", "quick"], ["coins", "standard"], ["coins", "full"]]
    assert "1 reproduced; 0 days old; cpu; fresh" in lines[0]
    assert "not run" in lines[1]
    assert "more coins, about 9 s" in command("list").output


def test_help_names_every_command_and_option():
    for words, wanted in (
        ([], ["list", "run", "build", "status", "check", "assign"]),
        (["run"], ["--profile", "-p", "--record"]),
    ):
        text = command(*words, "--help").output
        assert all(word in text for word in wanted)
    lines = command("--help").output.splitlines()
    assert sum(line.strip().startswith("studybook ") for line in lines) == 7


def test_study_names_complete(project):
    run = runner.main.commands["run"]
    found = run.params[0].shell_complete(click.Context(run), "co")
    assert [item.value for item in found] == ["coins"]


# ---------------------------------------------------------------- pages and scoreboard


def card(project):
    book.write_pages()
    return nbformat.read(project / "book" / "studies" / "money" / "coins.ipynb", 4).cells[1].source


def test_a_book_without_a_studys_run_stops_and_says_which(project):
    answer = command("build")
    assert answer.exit_code == 1
    assert "coins has not been run yet: studybook run coins" in answer.output


def test_a_failed_run_leaves_the_page_and_marks_it_until_one_succeeds(project):
    command("run", "coins")
    assert "A later run of this study failed" not in card(project)
    assert command("run", "coins", "-p", "STRICT", "true").exit_code == 1
    assert "A later run of this study failed; this page shows the one before." in card(project)
    assert "coins failed in cell 4: Failed: 4 of 4 cases failed" in card(project)
    assert command("run", "coins").exit_code == 0
    assert "A later run of this study failed" not in card(project)


def test_what_a_run_measured_can_be_downloaded(project):
    command("run", "coins")
    command("run", "coins", "--profile", "standard", "--record")
    command("run", "coins")
    book.write_pages()
    extra = project / "book" / "_extra"
    for profile in ("quick", "standard"):
        rows = (extra / "data" / "coins" / profile / "measure.csv").read_text().splitlines()
        assert rows[0] == "seed,heads"
        assert len(rows) == 5
        assert json.loads((extra / "data" / "coins" / profile / "run.json").read_text())["profile"] == profile
    offered = nbformat.read(extra / "notebooks" / "money" / "coins.ipynb", 4)
    assert offered == nbformat.read(project / "notebooks" / "money" / "coins.ipynb", 4)  # it has no exercises
    (extra / "data" / "coins" / "quick" / "gone.csv").write_text("of an earlier sweep")
    book.write_pages()
    assert not (extra / "data" / "coins" / "quick" / "gone.csv").exists()
    assert len(json.loads((extra / "claims.json").read_text())["claims"]) == 2


def test_an_unknown_format_and_a_missing_browser_are_refused(project, monkeypatch):
    assert "No such option" in command("build", "--epub").output
    monkeypatch.setattr(book.shutil, "which", lambda name: None)
    with pytest.raises(click.ClickException, match="a PDF needs Chromium"):
        book._pdf(project)


def test_a_drawn_interval_shows_side_threshold_and_ends():
    claim = {"above": 0.5, "below": None, "mean": 0.7, "low": 0.6, "high": 0.8, "unit": ".1f", "verdict": "reproduced"}
    svg = pages.drawn(claim)
    assert 'class="claimed" x="80"' in svg
    assert "interval 0.6 to 0.8, claimed above 0.5" in svg
    below = pages.drawn({**claim, "above": None, "below": 0.9})
    assert 'class="claimed" x="0"' in below
    assert pages.drawn({**claim, "low": None, "high": None}).count("<circle") == 1


def test_ctrl_c_keeps_finished_cases_and_the_same_command_goes_on(project):
    slow = SWEEP.replace("    g = ", '    import time\n    time.sleep(1.5 if case["seed"] > 1 else 0)\n    g = ')
    notebook = nbformat.read(project / "notebooks" / "money" / "coins.ipynb", 4)
    notebook.cells[3].source = slow.strip()
    nbformat.write(notebook, project / "notebooks" / "money" / "coins.ipynb")
    run = [sys.executable, "-m", "studybook.runner", "run", "coins"]
    rows = Path(os.environ["STUDYBOOK_CACHE"]) / "rows"

    first = subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 120
    while len(list(rows.glob("*/*.json"))) < 2:
        assert time.monotonic() < deadline
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    kernels = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGINT)
    output = first.communicate(timeout=60)[0]
    assert first.returncode == 130, output
    assert "finished cases are stored, the same command goes on from there" in output
    assert "Traceback" not in output
    assert psutil.wait_procs(kernels, timeout=20)[1] == []
    second = subprocess.run(run, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert record(project)["sweeps"][0]["stored"] >= 2


def test_the_library_code_behind_a_page_is_what_its_notebook_reaches(project):
    found = json.loads(provenance._library(studies.find("coins")))
    assert {"ledger.judge", "ledger.Claim", "stats.interval", "stats._checked", "stats.Interval"} <= set(found)
    assert not any(name.startswith(("calibration", "sweep", "plots", "runner")) for name in found)


def test_a_library_change_that_a_notebook_does_not_reach_leaves_it_fresh(project, tmp_path, monkeypatch):
    package = tmp_path / "package"
    shutil.copytree(Path(runner.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "__file__", str(package / "runner.py"))
    study, stats = studies.find("coins"), package / "stats.py"
    before, source = provenance._library(study), stats.read_text()
    stats.write_text(source.replace("def bootstrap(", "def unused():\n    return 7\n\n\ndef bootstrap("))
    assert provenance._library(study) == before
    local = "def values():\n    return 7\n\n\ndef bootstrap("  # `_checked` has an argument of that name
    stats.write_text(source.replace("def bootstrap(", local))
    assert provenance._library(study) == before
    stats.write_text(source.replace("must be finite numbers", "must be numbers"))
    assert provenance._library(study) != before


def test_what_is_kept_of_code_is_made_anew_when_it_is_damaged_or_the_library_has_moved_on(
    project, tmp_path, monkeypatch
):
    package = tmp_path / "package"
    shutil.copytree(Path(runner.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "__file__", str(package / "runner.py"))
    study, store = studies.find("coins"), project / ".studybook" / "code.json"
    first = provenance._code(study)
    kept = store.read_text()
    assert first in json.loads(kept)["found"].values()
    store.write_text(kept[: len(kept) // 2])
    assert provenance._code(study) == first
    assert store.read_text() == kept
    wrong = kept.replace(first["library"], "0" * 16)
    store.write_text(wrong)
    assert provenance._code(study)["library"] == "0" * 16  # read, not made
    stats = package / "stats.py"
    stats.write_text(stats.read_text().replace("must be finite numbers", "must be numbers"))
    assert provenance._code(study)["library"] not in ("0" * 16, first["library"])
    assert provenance._code(study)["notebook"] == first["notebook"]


def test_a_cell_that_is_not_plain_python_is_named(project):
    write(project, "%matplotlib inline")
    answer = command("run", "coins")
    assert answer.exit_code == 1
    assert "coins.ipynb: cell 4, line 1 is not plain Python" in answer.output


def test_changed_data_or_another_device_is_run_again(project, monkeypatch):
    command("run", "coins")
    for name, value in (("data_moved", lambda record: True), ("device", lambda: "NVIDIA H200")):
        with monkeypatch.context() as changed:
            changed.setattr(provenance, name, value)
            assert "unchanged" not in command("run", "coins").output
        command("run", "coins")
    assert "unchanged" in command("run", "coins").output


def test_a_record_whose_data_changed_is_seen(monkeypatch):
    record = {"sweeps": [{"data": {"digits": data.fingerprint("digits")}}, {"data": None}]}
    assert not provenance.data_moved(record)
    monkeypatch.setattr(data, "fingerprint", lambda name: "other")
    assert provenance.data_moved(record)


def test_a_changed_profile_makes_its_record_stale(project):
    command("run", "coins", "--profile", "standard", "--record")
    write(project, JUDGE, about=ABOUT.replace("FLIPS: 50", "FLIPS: 60"))
    assert "stale (parameters)" in [x for x in command("status").output.splitlines() if "standard" in x][0]


def test_results_that_cannot_be_written_lose_no_page(project):
    (project / "book" / "results").mkdir(parents=True)
    (project / "book" / "results" / "coins").write_text("in the way")
    answer = command("run", "coins", "--profile", "standard", "--record")
    assert answer.exit_code == 1
    assert "the run is done, but" in answer.output
    assert record(project)["profile"] == "standard"


# ---------------------------------------------------------------- workers

HARMLESS = SWEEP.replace("range(4)", "range(12)").replace("    if STRICT", "    time.sleep(0.3)\n    if STRICT")


@pytest.fixture
def several(project):
    """Three studies; the one called broken fails."""
    source = (project / "notebooks" / "money" / "coins.ipynb").read_text()
    for name in ("dice", "broken"):
        changed = source.replace("STRICT = False", f"STRICT = {name == 'broken'}")
        (project / "notebooks" / "money" / f"{name}.ipynb").write_text(changed)
        (project / "notebooks" / "money" / f"{name}.yml").write_text(ABOUT)
    return project


def test_workers_give_the_same_numbers_and_the_page_says_the_same(project, tmp_path, monkeypatch):
    assert command("run", "coins", "--threads", "1").exit_code == 0
    here = record(project)
    assert here["machine"]["cores"] != 0
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "another"))
    answer = command("run", "coins", "--workers", "2", "--threads", "1", "--force")
    assert answer.exit_code == 0, answer.output
    assert "2 workers, 1 thread each, cpu; dashboard: http://127.0.0.1:" in answer.output
    there = record(project)
    assert there["claims"] == here["claims"]
    assert there["sweeps"][0]["computed"] == 4
    assert [json.loads(m)["cores"] for m in there["sweeps"][0]["measured"]] == [1]
    assert "127.0.0.1" not in (project / "book" / "studies" / "money" / "coins.ipynb").read_text()
    assert "unchanged" in command("run", "coins", "--workers", "1").output


def test_a_sweep_hears_what_the_yaml_says_of_its_cases(project):
    hint = {"case": {"seed": 2}, "seconds": 9}
    write(
        project,
        JUDGE + "import os; print(os.environ['STUDYBOOK_SECONDS'])",
        about=ABOUT.replace("seconds: 1}", f"seconds: 1, cases: [{json.dumps(hint)}]}}"),
    )
    answer = command("run", "coins")
    assert answer.exit_code == 0, answer.output
    page = nbformat.read(project / "book" / "studies" / "money" / "coins.ipynb", 4)
    printed = [o.text for cell in page.cells for o in cell.get("outputs", []) if o.get("name") == "stdout"]
    assert json.loads(printed[-1]) == [hint]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:9"], "give one of the two"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
        (["--workers", "0"], "0 is not in the range x>=1"),
        (["--scheduler", "tls://127.0.0.1:9", "--tls-cert", "none.pem"], "'none.pem' does not exist"),
    ],
)
def test_workers_that_cannot_be_had_are_refused_before_any_kernel_starts(project, monkeypatch, words, message):
    monkeypatch.setattr(runner, "_papermill", lambda *_: pytest.fail("a kernel was started"))
    monkeypatch.setattr("studybook.workers._ANSWER", 0.5)
    answer = command("run", "coins", *words)
    assert answer.exit_code in (1, 2)
    assert message in answer.output
    assert "Traceback" not in answer.output


def test_several_studies_share_the_workers_and_one_that_fails_stops_no_other(several):
    answer = command("run", "--all", "--workers", "2")
    assert answer.exit_code == 1
    for name in ("coins", "dice"):
        assert f"{name} [quick]: 1 " in answer.output
        made = json.loads((several / "book" / "studies" / "money" / f"{name}.json").read_text())
        assert made["sweeps"][0]["computed"] + made["sweeps"][0]["stored"] == 4
    assert "broken failed in cell" in answer.output
    assert "Error: 1 of 3 studies failed: broken" in answer.output
    again = command("run", "--all", "--workers", "2")
    assert again.output.count("(unchanged)") == 2


@pytest.mark.parametrize(("names", "end"), [(["coins"], signal.SIGKILL), (["coins", "dice"], signal.SIGINT)])
def test_a_run_on_workers_that_is_ended_leaves_nothing_behind_and_goes_on(several, tmp_path, names, end):
    file = several / "notebooks" / "money" / "coins.ipynb"
    for name in names:
        notebook = nbformat.reads(file.read_text(), 4)
        notebook.cells[3].source = "import time\n" + HARMLESS.strip().replace("measure", f"measure_{name}")
        nbformat.write(notebook, file.with_stem(name))
    words = [sys.executable, "-m", "studybook.runner", "run", *names, "--workers", "2"]
    rows = data.cache_folder() / "rows"
    run = subprocess.Popen(
        words, cwd=several, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 120
    while len(list(rows.glob("*/*.json"))) < 3:
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    run.send_signal(end)
    out, _ = run.communicate(timeout=60)
    if end == signal.SIGINT:
        assert run.returncode == 130
        assert "interrupted; finished cases are stored, the same command goes on from there" in out
    deadline = time.monotonic() + 60
    while left := using(data.cache_folder()):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    stored = len(list(rows.glob("*/*.json")))
    assert 3 <= stored < 12 * len(names)
    again = subprocess.run(words, cwd=several, capture_output=True, text=True, timeout=120, check=True)
    assert len(list(rows.glob("*/*.json"))) == 12 * len(names)
    made = [json.loads((several / "book" / "studies" / "money" / f"{name}.json").read_text()) for name in names]
    assert sum(one["sweeps"][0]["stored"] for one in made) == stored, again.stdout


def using(cache):
    """Processes other than this one that were started with the given cache folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STUDYBOOK_CACHE") == str(cache) and process.status() != psutil.STATUS_ZOMBIE:
                found += [process] if process.pid != os.getpid() else []
        except psutil.Error:
            continue
    return found
