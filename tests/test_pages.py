import csv
import io
import json
import math
import re

import numpy as np
import pytest

from studybook import pages, studies

EXERCISES = """## Exercises

1. *Why is 2 + 2 = 4?*

<details class="answer"><summary>Answer</summary>

Count. It takes

two lines.

</details>

2. *Rerun with* `-p X 1`. *What
changes?*

<details class="answer"><summary>Answer</summary>

Nothing.

</details>
"""
CLAIM = {
    "name": "c", "text": "it is <b>so</b>", "above": 0.5, "below": None, "paper": "0.75", "control": False,
    "unit": ".2f", "mean": 0.7, "low": 0.6, "high": 0.8, "n": 4, "verdict": "reproduced",
}  # fmt: skip
MACHINE = {"processor": "a processor", "cores": 2, "memory": 8, "device": "cpu"}


def entry(study, profile="quick", **changed):
    record = {
        "study": study.name,
        "profile": profile,
        "overrides": {},
        "parameters": {"FLIPS": 20},
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 1.0,
        "peak_memory_mib": 100,
        "commit": "0" * 40,
        "dirty": False,
        "inputs": {"notebook": "a", "library": "b"},
        "versions": {"torch": "2"},
        "sweeps": [
            {"cases": 1, "computed": 1, "stored": 0, "committed": 0, "seconds": 1, "data": {"coins": "ff"},
             "measured": [json.dumps(MACHINE)], "stale": []}
        ],
        "machine": MACHINE,
        "claims": [CLAIM],
        **changed,
    }  # fmt: skip
    return pages.Entry(study, record, ())


@pytest.fixture
def study(tmp_path):
    source = tmp_path / "money" / "coins.ipynb"
    source.parent.mkdir()
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": 'FLIPS = 20  # flips of "each" coin'}
    source.write_text(json.dumps({"cells": [cell]}))
    about = {
        "title": "Coins",
        "paper": {
            "key": "a",
            "title": "On Coins",
            "authors": "A, B, C",
            "year": 2020,
            "venue": "X",
            "url": "https://x",
        },
        "quick": {"says": "few <coins>", "seconds": 1},
        "profiles": {"standard": {"says": "more", "seconds": 90, "parameters": {"FLIPS": 50}, "needs": {"gpu": True}}},
    }
    return studies.Study(source, about)


def executed():
    verdict = {"output_type": "display_data", "data": {"text/plain": "c", "text/html": "old"}}
    figure = {"output_type": "display_data", "data": {"image/svg+xml": "<svg/>"}, "metadata": {}}
    moves = {"output_type": "display_data", "data": {"text/plain": "x"}}
    moves["metadata"] = {"studybook-explorer": {"name": "temperature", "data": {"label": "</script><b>"}}}
    sources = {
        "table = sweep.run(measure, cases)": [],
        "other = sweep.run(measure_other, cases)": [],
        "fig = plt.subplots()\nfor table_row in table: print(table_row)": [figure],
        "ledger.judge(c)": [{**verdict, "metadata": {"studybook": CLAIM}}],
        "plots.explorer('temperature', {})": [moves],
        "plots.explorer('again', {})": [moves],
    }
    cells = [{"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# Title"}]
    cells += [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": source, "outputs": outputs}
        for i, (source, outputs) in enumerate(sources.items())
    ]
    return {"cells": cells, "metadata": {}}


@pytest.mark.parametrize(
    ("changed", "far"),
    [
        ({}, 2.0),
        ({"mean": 0.5, "low": 0.4, "high": 0.6}, 0.0),
        ({"mean": 0.4, "low": 0.3, "high": 0.6}, -0.5),
        ({"above": None, "below": 0.5}, -2.0),
        ({"above": None, "below": 0.8, "low": 0.5, "high": 0.9}, 0.5),
        ({"low": None}, 0.0),
        ({"low": 0.7, "high": 0.7}, math.inf),
        ({"above": None, "below": 0.5, "low": 0.7, "high": 0.7}, -math.inf),
    ],
)
def test_the_distance_of_a_claim_is_measured_in_arms_of_its_interval(changed, far):
    assert pages.distance({**CLAIM, **changed}) == pytest.approx(far)


def test_the_distance_and_the_verdict_agree(study):
    from studybook import ledger, stats

    for mean in (0.1, 0.3, 0.45, 0.5, 0.55, 0.7, 0.9):
        claim = ledger.Claim("c", "t", above=0.5)
        verdict = ledger.judge(claim, stats.Interval(mean, mean - 0.1, mean + 0.1, 5))
        far = pages.distance(verdict.record)
        word = "reproduced" if far > 1 else "contradicted" if far < -1 else "inconclusive"
        assert verdict.verdict == word


def test_rows_are_followed_from_the_sweep_to_the_figure():
    cells = [
        {"cell_type": "code", "source": source}
        for source in (
            "table = sweep.run(measure, cases)\nother = sweep.run(measure_other, more, data=DATA)",
            "def column(name):\n    table_row = table[name]\n    return table_row",
            "one = column('a')",
            "for ax, other_name in zip(axes, one): ax.plot(other_name)",
            "both = one + other",
            "one = 7",
            "print(one)",
        )
    ]
    cells.insert(1, {"cell_type": "markdown", "source": "one"})
    found = pages.drawn_from(cells)
    assert found[1] == []
    assert found[3] == found[4] == ["measure"]
    assert found[5] == ["measure", "measure_other"]
    assert found[7] == []


def test_a_page_gets_card_form_box_and_the_verdicts_of_other_profiles(study):
    other = entry(study, "standard", claims=[{**CLAIM, "verdict": "contradicted", "mean": 0.3}])
    shown = entry(study)
    made = pages.page(executed(), shown, [shown, other], {"quick": ["measure"], "standard": ["measure"]})
    ids = [cell["id"] for cell in made["cells"]]
    assert ids[1] == "studybook-card"
    assert ids[-2:] == ["studybook-rerun", "studybook-made"]
    text = json.dumps(made)
    assert "few &lt;coins&gt;" in text
    assert "1 contradicted" in made["cells"][1]["source"]
    verdict = next(c for c in made["cells"] if c["source"] == "ledger.judge(c)")["outputs"][0]["data"]["text/html"]
    assert 'id="claim-c"' in verdict
    assert "it is &lt;b&gt;so&lt;/b&gt;" in verdict
    assert re.search(r"contradicted</span> at <code>standard</code>: 0.30", verdict)
    figure = next(c for c in made["cells"] if c["source"].startswith("fig"))["outputs"]
    assert [len(figure), "data/coins/quick/measure.csv" in figure[1]["data"]["text/html"]] == [2, True]


def test_adding_to_a_page_twice_changes_nothing(study):
    shown, tables = entry(study), {"quick": ["measure"]}
    once = pages.page(executed(), shown, [shown], tables)
    assert pages.page(once, shown, [shown], tables) == once
    assert pages.page(once, shown, [shown], tables) != pages.page(once, shown, [shown], {})


def test_a_failed_or_stale_run_is_marked_on_the_page(study):
    shown = entry(study)
    plain = pages.page(executed(), shown, [shown], {})["cells"][1]["source"]
    assert "danger" not in plain
    assert "warning" not in plain
    failed = pages.page(executed(), shown, [shown], {}, "coins failed in cell 3")["cells"][1]["source"]
    assert ":::{danger}" in failed
    assert "coins failed in cell 3" in failed
    stale = pages.page(executed(), shown._replace(stale=["code"]), [shown], {})["cells"][1]["source"]
    assert "Stale: the code behind the stored numbers" in stale


def test_scripts_are_loaded_once_and_data_cannot_end_their_element(study):
    shown = entry(study)
    cells = pages.page(executed(), shown, [shown], {})["cells"]
    first, second = (c["outputs"][0]["data"]["text/html"] for c in cells if c["source"].startswith("plots.explorer"))
    assert first.count("explorer.js") == first.count("temperature.js") == first.count("explorer.css") == 1
    assert ".js" not in second
    assert "</script><b>" not in first
    data = re.search(r'<script type="application/json">(.*?)</script>', first)[1]
    assert json.loads(data) == {"label": "</script><b>"}


def test_rows_become_csv_with_case_values_first_and_arrays_as_json():
    rows = [
        {"case": {"seed": 0, "net": "a,b"}, "rows": [{"x": 0.1, "curve": np.array([1 / 3, 2.0])}, {"x": 0.2}]},
        {"case": {"seed": 1, "net": "c"}, "rows": [{"x": 0.3, "y": True}]},
    ]
    found = list(csv.DictReader(io.StringIO(pages.rows_csv(rows))))
    assert list(found[0]) == ["seed", "net", "x", "curve", "y"]
    assert [row["seed"] for row in found] == ["0", "0", "1"]
    assert found[0]["net"] == "a,b"
    assert json.loads(found[0]["curve"]) == [0.333333, 2.0]
    assert found[1]["curve"] == ""
    assert float(found[2]["x"]) == 0.3


def test_an_array_too_long_for_a_cell_is_told_by_its_shape():
    rows = [{"case": {}, "rows": [{"map": np.zeros((50, 1000)), "curve": np.zeros(3)}]}]
    (found,) = csv.DictReader(io.StringIO(pages.rows_csv(rows)))
    assert found == {"map": "50 x 1000 values, too many for a cell", "curve": "[0.0, 0.0, 0.0]"}


def test_claims_as_json_and_csv_say_the_same(study):
    facts = pages.claim_facts([entry(study), entry(study, "standard")._replace(stale=["library"])])
    assert [fact["id"] for fact in facts] == ["coins/c/quick", "coins/c/standard"]
    assert [facts[0]["fresh"], facts[1]["fresh"], facts[1]["stale"]] == [True, False, "library"]
    assert (facts[0]["side"], facts[0]["threshold"], facts[0]["data"]) == ("above", 0.5, "coins:ff")
    assert json.loads(pages.claims_json(facts)) == {"schema": 1, "claims": facts}
    rows = list(csv.DictReader(io.StringIO(pages.claims_csv(facts))))
    assert [{k: str(v) for k, v in fact.items()} for fact in facts] == rows


def test_the_scoreboard_says_of_each_claim_what_filters_ask_for(study):
    text = pages.scoreboard([entry(study)._replace(stale=["library"])])
    row = re.search(r"<tr data-.*?</tr>", text, re.DOTALL)[0]
    wanted = {"part": "money", "study": "coins", "profile": "quick", "state": "stale", "verdict": "reproduced"}
    assert all(f'data-{name}="{value}"' in row for name, value in wanted.items())
    assert "A et al. 2020" in row
    assert "(library)" in row
    assert 'href="studies/money/coins.html#claim-c"' in row


def test_the_index_lists_methods_data_and_papers(study):
    study.about["methods"] = ["tossing"]
    study.about["data"] = ["mint"]
    text = pages.index([study], [])
    assert "- **tossing**: {doc}`Coins </studies/money/coins>`" in text
    assert "- **mint**: {doc}`Coins" in text
    assert "A, B, C (2020), [On Coins](https://x), X" in text
    assert "(not run)" in text


def test_exercises_become_the_books_own_with_folded_answers(study):
    cell = {"cell_type": "markdown", "id": "z", "metadata": {}, "source": EXERCISES}
    shown = entry(study)
    made = pages.page({"cells": [*executed()["cells"], cell], "metadata": {}}, shown, [shown], {})
    (text,) = [c["source"] for c in made["cells"] if c.get("id") == "z"]
    assert re.findall(r"^:::\{(?:exercise|solution)\}.*", text, re.MULTILINE) == [
        ":::{exercise}", ":::{solution} coins-exercise-1", ":::{exercise}", ":::{solution} coins-exercise-2"
    ]  # fmt: skip
    assert text.count(":::\n") == text.count(":::{") == 4
    assert "<details" not in text
    assert "Count. It takes\n\ntwo lines.\n:::" in text
    assert "*What\nchanges?*\n:::" in text
    assert pages.page(made, shown, [shown], {}) == made


def test_without_answers_every_question_stays_and_no_answer(study):
    other = {"cell_type": "code", "id": "y", "metadata": {}, "source": "x = 1", "outputs": []}
    cell = {"cell_type": "markdown", "id": "z", "metadata": {}, "source": EXERCISES}
    left, asked = pages.without_answers({"cells": [other, cell], "metadata": {}})["cells"]
    assert left == other
    assert asked["source"].split("\n\n") == [
        "## Exercises", "1. *Why is 2 + 2 = 4?*", "2. *Rerun with* `-p X 1`. *What\nchanges?*\n"
    ]  # fmt: skip
