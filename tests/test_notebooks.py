"""What every study must be, and that its pages can be made."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import DRAWN, ROOT, USERS_ENVIRONMENT, copied, method

from studybook import provenance, studies

STUDIES = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
FORBIDDEN = ("argparse", "sys.path", ".cuda()", ".to(device", "eval(", "manual_seed(0)", "savefig", "filterwarnings")


def ids(path):
    return path.stem


@pytest.fixture(params=STUDIES, ids=ids)
def study(request):
    return request.param


@pytest.fixture
def cells(study):
    return studies.notebook(study)["cells"]


def code(cells):
    return [cell["source"] for cell in cells if cell["cell_type"] == "code"]


def test_there_are_studies():
    assert STUDIES


def test_a_studys_functions_can_be_tested_without_running_it():
    found = method("probing/knn-vs-linear", SPLITS=2)
    assert found["rank"](torch.tensor([3, 3, 1, 3])).tolist() == [0, 1, 0, 2]
    assert found["SPLITS"] == 2
    assert "table" not in found


def test_sources_carry_no_outputs(study):
    for cell in json.loads(study.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_notebook_begins_with_a_title_a_citation_and_parameters(cells):
    assert re.match(r"# \S", cells[0]["source"])
    assert "{cite" in cells[0]["source"]
    tagged = [i for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    lines = cells[tagged[0]]["source"].splitlines()
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]* = .+  # .+", line) for line in lines), "each parameter needs a comment"


def test_claims_stand_before_the_measurement_and_each_is_judged(cells):
    notebook = {"cells": cells}
    claims = studies._calls(notebook["cells"], "Claim")
    first_run = next(i for i, c in enumerate(cells) if c["cell_type"] == "code" and "sweep.run(" in c["source"])
    assert claims
    assert all(i < first_run for i, _ in claims)
    assert len({name for _, name in claims}) == len(claims)
    assert any("control=True" in source for source in code(cells))
    assert sum(source.count("ledger.judge(") for source in code(cells)) >= 1


def test_no_cell_does_what_the_library_is_for(cells):
    for source in code(cells):
        assert not any(word in source for word in FORBIDDEN), source
        assert not any(isinstance(node, ast.Try) for node in ast.walk(ast.parse(source)))


def test_figures_have_alt_text(cells):
    for cell in cells:
        if cell["cell_type"] == "code" and "plt.subplots" in cell["source"]:
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) > 40, cell["source"]


REFUSED = [
    ("grokking", "RATIOS", "0, 0.5, 0.9, 2", "RATIOS must list different positive numbers, got 0, 0.5"),
    ("grokking", "RATIOS", "0.5, 0.9", "RATIOS must hold 0.5, MAIN .* and one from 1.5 on"),
    ("grokking", "THRESHOLD", 0.0, "THRESHOLD must be positive, got 0.0"),
    ("grokking", "THRESHOLDS", "1, -1", "THRESHOLDS must list different positive numbers"),
    ("grokking", "POINTS", 0, "POINTS must be positive, got 0"),
    ("grokking", "SCALES", "1, 2", "SCALES numbers above 1"),
    ("grokking", "ADDITION_DECAYS", "0.5, 0.6", "ADDITION_DECAYS hold one twice another"),
    ("grokking", "OUTPUTS", "5, 2.5", "OUTPUTS must list different positive whole numbers"),
    ("grokking", "LR", 0.2, "LR must be below the stability limit 0.171, got 0.2"),
    ("grokking", "PRIMES", "96", "p must be an odd prime, got p=96"),
    ("grokking", "SHARES", "1.5", "share must leave at least one of the 841 sums"),
    ("shortcut-learning", "RATIOS", "2, 4", "RATIOS must rise from 1, got 2, 4"),
]


@pytest.mark.parametrize(("name", "parameter", "value", "message"), REFUSED)
def test_a_bad_parameter_is_refused_before_anything_is_measured(name, parameter, value, message):
    sources = code(studies.notebook(studies.find(name).source)["cells"])
    settings = {}
    exec(sources[0], settings)
    assert parameter in settings
    settings[parameter] = value
    with pytest.raises(ValueError, match=message):
        exec(sources[1], settings)


def test_profiles_name_parameters_that_the_notebook_has(study):
    one = studies.Study(study, yaml.safe_load(study.with_suffix(".yml").read_text()))
    for profile in one.profiles:
        studies.typed(one, one.profile(profile)["parameters"])
        assert one.profile(profile)["says"]
        assert one.profile(profile)["seconds"] > 0
    assert len(one.about["methods"]) >= 3
    assert one.about["paper"]["key"] in (ROOT / "book" / "references.bib").read_text()


def test_every_study_is_in_the_table_of_contents_and_its_parts_opener(study):
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert f"studies/{study.parent.name}/{study.stem}" in files
    assert f"/{study.stem}`" in (ROOT / "book" / "parts" / f"{study.parent.name}.md").read_text()


def committed(pattern):
    return sorted((ROOT / "book" / "results").glob(pattern))


def test_every_study_has_a_committed_quick_record(study):
    record = json.loads((ROOT / "book" / "results" / study.stem / "quick" / "run.json").read_text())
    assert [c["name"] for c in record["claims"]] == studies.declared_claims(studies.notebook(study)["cells"])


@pytest.mark.parametrize("file", committed("*/*/run.json"), ids=lambda f: "/".join(f.parts[-3:-1]))
def test_committed_records_are_of_unchanged_profiles_with_every_verdict(file):
    record = json.loads(file.read_text())
    one = studies.find(record["study"])
    expected = {**studies.parameters(one), **one.profile(record["profile"])["parameters"]}
    assert record["parameters"] == expected
    assert not record["overrides"]
    assert not record["stale"]
    assert {c["verdict"] for c in record["claims"]} <= {"reproduced", "contradicted", "inconclusive"}
    assert file.stat().st_size < 100_000


@pytest.mark.slow
def test_the_quick_profiles_of_studies_that_have_changed_since_their_records_run(tmp_path):
    """The others' records are of this very code; `make book` runs them all."""
    changed = [
        study.stem
        for study in STUDIES
        if provenance.moved_on(json.loads((ROOT / "book" / "results" / study.stem / "quick" / "run.json").read_text()))
    ]
    command = [sys.executable, "-m", "studybook.runner", "run", "calibration", *changed]
    done = subprocess.run(command, cwd=tmp_path, env=copied(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in {"calibration", *changed}:
        (made,) = (tmp_path / "book" / "studies").glob(f"*/{name}.json")
        record = json.loads(made.read_text())
        assert record["profile"] == "quick"
        assert not record["stale"]
        assert [c["name"] for c in record["claims"]] == studies.declared_claims(
            studies.notebook(studies.find(name).source)["cells"]
        )


@pytest.mark.slow
def test_every_standard_page_is_drawn_from_committed_rows_without_data_or_computing(drawn_book):
    for study in STUDIES:
        made = DRAWN / "book" / "studies" / study.parent.name / f"{study.stem}.json"
        committed = json.loads((ROOT / "book" / "results" / study.stem / "standard" / "run.json").read_text())
        record = json.loads(made.read_text())
        assert record["profile"] == "standard"
        assert not record["stale"]
        assert sum(sweep["computed"] for sweep in record["sweeps"]) == 0
        assert [c["verdict"] for c in record["claims"]] == [c["verdict"] for c in committed["claims"]]


@pytest.mark.slow
def test_plain_papermill_runs_the_calibration_study(tmp_path):
    source = ROOT / "notebooks" / "calibration" / "calibration.ipynb"
    command = [str(Path(sys.executable).with_name("papermill")), str(source), str(tmp_path / "out.ipynb")]
    command += ["-p", "SEEDS", "2", "-p", "EPOCHS", "1", "--no-progress-bar"]
    environment = {**USERS_ENVIRONMENT, "STUDYBOOK_CACHE": os.environ["STUDYBOOK_CACHE"]}
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
    claims = studies.claims(studies.notebook(tmp_path / "out.ipynb")["cells"])
    assert {claim["n"] for claim in claims} == {2}
    assert {claim["verdict"] for claim in claims} == {"inconclusive"}
