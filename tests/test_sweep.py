import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from studybook import data, sweep

FACTOR = 2
CALLS = 0


def measure(case):
    """Measures nothing."""
    count()
    return {"twice": FACTOR * case["a"], "drawn": torch.rand(()), "array": np.arange(case["a"])}


def count():
    globals()["CALLS"] = globals()["CALLS"] + 1


@pytest.fixture(autouse=True)
def _no_calls():
    globals()["CALLS"] = 0


CASES = [{"a": a} for a in (1, 2, 3)]


def module(tmp_path, source, name="written"):
    """A module with the given source, as a notebook would define it."""
    file = tmp_path / f"{name}_{time.monotonic_ns()}.py"
    file.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, file)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


# ---------------------------------------------------------------- rows


def test_rows_come_in_the_order_of_the_cases_with_their_columns_first():
    table = sweep.run(measure, CASES[::-1])
    assert list(table.columns) == ["a", "twice", "drawn", "array"]
    assert table["a"].tolist() == [3, 2, 1]
    assert table["twice"].tolist() == [6, 4, 2]
    assert table["array"][0].tolist() == [0, 1, 2]


def test_a_case_may_give_several_rows():
    table = sweep.run(several_rows, [{"a": 2}, {"a": 1}])
    assert table[["a", "row"]].to_numpy().tolist() == [[2, 0], [2, 1], [1, 0]]


def several_rows(case):
    return [{"row": i} for i in range(case["a"])]


def test_what_was_measured_is_not_measured_again():
    first, second = sweep.run(measure, CASES), sweep.run(measure, [*CASES, {"a": 4}])
    assert CALLS == 4
    assert second.attrs["sweep"]["stored"] == 3
    assert second.attrs["sweep"]["computed"] == 1
    assert second["drawn"][:3].tolist() == first["drawn"].tolist()
    np.testing.assert_array_equal(second["array"][2], first["array"][2])


def test_random_numbers_depend_on_the_case_alone(tmp_path, monkeypatch):
    together = sweep.run(measure, CASES)
    state = torch.get_rng_state()
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "other"))
    alone = sweep.run(measure, CASES[2:])
    assert alone["drawn"][0] == pytest.approx(together["drawn"][2])
    assert together["drawn"].nunique() == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_a_damaged_row_is_measured_again():
    sweep.run(measure, CASES[:1])
    for file in (data.cache_folder() / "rows").glob("*/*"):
        file.write_bytes(file.read_bytes()[:10])
    assert sweep.run(measure, CASES[:1])["twice"].tolist() == [2]
    assert CALLS == 2


def test_a_failing_case_does_not_stop_the_others_and_is_named():
    with pytest.raises(
        sweep.Failed, match=r"1 of 3 cases failed \(the others .*, the first with ZeroDivisionError: .*\n- {'a': 2}"
    ):
        sweep.run(failing, CASES)
    with pytest.raises(sweep.Failed, match="1 of 3"):
        sweep.run(failing, CASES)
    assert CALLS == 2 + 2  # 1 and 3 once, 2 twice


def failing(case):
    count()
    return {"x": 1 / (case["a"] - 2)}


def test_bad_cases_and_measures_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="at least one case"):
        sweep.run(measure, [])
    with pytest.raises(ValueError, match="some are equal"):
        sweep.run(measure, [{"a": 1}, {"a": 1}])
    with pytest.raises(ValueError, match="a case must hold plain numbers"):
        sweep.run(measure, [{"a": torch.ones(1)}])
    with pytest.raises(ValueError, match="a case must hold plain numbers"):
        sweep.run(measure, [{"a": float("nan")}])
    with pytest.raises(ValueError, match="must name the sets"):
        sweep.run(loading, CASES)
    with pytest.raises(TypeError, match="reads the global HIDDEN, a Linear, which cannot become part"):
        sweep.run(reading_a_network, CASES)
    assert CALLS == 0


def loading(case):
    return {"n": len(data.load("digits").y)}


HIDDEN = torch.nn.Linear(2, 1)


def reading_a_network(case):
    return {"x": HIDDEN.bias.sum()}


# ---------------------------------------------------------------- keys

PROGRAM = '''
from studybook import calibration, metrics

SIZE = 10


def helper(x):
    """Says something."""
    return x + 1  # a comment


def measure(case):
    local = helper(case["a"])
    return {"x": local, "y": SIZE, "f": metrics.accuracy}
'''


def reach(tmp_path, source):
    return sweep.reach(module(tmp_path, source).measure)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Says something.", "Says it better."),
        ("a comment", "another comment"),
        ("\n\n\ndef helper(x)", "\n# above\ndef helper( x )"),
        ("SIZE = 10", "SIZE = 10\nOTHER = 3"),
        ("def helper", "def unused():\n    return 7\n\n\ndef helper"),
    ],
)
def test_comments_docstrings_layout_and_unused_names_do_not_count(tmp_path, old, new):
    assert old in PROGRAM
    assert reach(tmp_path, PROGRAM.replace(old, new)) == reach(tmp_path, PROGRAM)


def test_code_that_measure_reaches_counts(tmp_path):
    before, after = reach(tmp_path, PROGRAM), reach(tmp_path, PROGRAM.replace("x + 1", "x + 2"))
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_values_that_measure_reads_count(tmp_path):
    before, after = reach(tmp_path, PROGRAM), reach(tmp_path, PROGRAM.replace("SIZE = 10", "SIZE = 11"))
    assert before[0] == after[0]
    assert (before[1]["SIZE"], after[1]["SIZE"]) == (10, 11)


def test_a_local_name_is_not_mistaken_for_a_global(tmp_path):
    assert "local" not in reach(tmp_path, PROGRAM + "\nlocal = object()\n")[1]


def test_library_code_that_measure_reaches_counts_and_other_library_code_does_not(tmp_path, monkeypatch):
    from studybook import metrics

    before = reach(tmp_path, PROGRAM)
    with monkeypatch.context() as changed:
        changed.setattr(metrics, "checked", other_checked)
        assert reach(tmp_path, PROGRAM)[0] != before[0]
    with monkeypatch.context() as changed:
        changed.setattr(metrics, "brier", other_checked)
        assert reach(tmp_path, PROGRAM) == before


def other_checked(scores, labels):
    return labels


other_checked.__module__ = "studybook.metrics"


def test_data_count_by_their_fingerprint_and_not_by_the_code_that_loads_them():
    digest, values, loads = sweep.reach(loading)
    assert loads
    assert values == {}
    assert digest != sweep.reach(several_rows)[0]


def test_pictures_count_by_their_fingerprint_as_loaded_data_do(monkeypatch):
    digest, values, loads = sweep.reach(streaming)
    assert loads
    assert values == {}
    with monkeypatch.context() as changed:
        changed.setattr(data, "_source", other_source)
        assert sweep.reach(streaming)[0] == digest
    with monkeypatch.context() as changed:
        changed.setattr(data, "_called", other_source)
        assert sweep.reach(streaming)[0] != digest  # `pixels`, which decodes them, is looked into
    with pytest.raises(ValueError, match="must name the sets"):
        sweep.run(streaming, CASES)
    assert sweep.run(streaming, CASES[:1], data="digits").n.tolist() == [64]


def streaming(case):
    return {"n": data.pixels(data.pictures("digits").files[0]).numel()}


def test_adding_a_data_set_makes_no_rows_stale(monkeypatch):
    def measure(case):
        return {"n": len(data.splits("digits"))}

    digest = sweep.reach(measure)[0]
    monkeypatch.setitem(data._FILES, "another", other_source)
    assert sweep.reach(measure)[0] == digest


def other_source(name, split):
    return None


other_source.__module__ = "studybook.data"


def test_other_data_other_packages_or_another_device_is_measured_again(monkeypatch):
    sweep.run(loading, CASES[:1], data="digits")
    for module, name, value in (
        (sweep.workers, "packages", lambda: {"torch": "9"}),
        (sweep.workers, "device_kind", lambda: "NVIDIA H200"),
        (sweep, "_fingerprints", lambda names, team: {"digits": "changed"}),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, value)
            assert sweep.run(loading, CASES[:1], data="digits").attrs["sweep"]["computed"] == 1


def test_tensors_and_arrays_that_measure_reads_are_part_of_the_key(monkeypatch):
    first = sweep.run(reads_globals, [{"a": 1}])
    assert first["x"][0] == 3.0
    assert sweep.run(reads_globals, [{"a": 1}]).attrs["sweep"]["stored"] == 1
    for name, value in (
        ("TENSOR", torch.tensor([1.0, 3.0])),
        ("TENSOR", torch.tensor([1.0, 2.0], dtype=torch.bfloat16)),
        ("ARRAY", np.array([5])),
        ("ARRAY", np.array([[0]])),
    ):
        with monkeypatch.context() as changed:
            changed.setitem(globals(), name, value)
            assert sweep.run(reads_globals, [{"a": 1}]).attrs["sweep"]["computed"] == 1


TENSOR, ARRAY = torch.tensor([1.0, 2.0]), np.array([0])


def reads_globals(case):
    return {"x": float(TENSOR.sum()) + int(ARRAY.sum())}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("functools.partial(max, 1)", "functools.partial(max, 2)"),
        ("functools.partial(helper, x=1)", "functools.partial(helper, x=2)"),
        ("{'a': helper, 'b': 1}", "{'a': helper, 'b': 2}"),
        ("torch.float32", "torch.float64"),
        ("[1, (2, 3)]", "[1, (2, 4)]"),
    ],
)
def test_a_change_inside_a_global_value_counts(tmp_path, before, after):
    program = PROGRAM.replace("SIZE = 10\n", "import functools, torch\n").replace('"y": SIZE', '"y": SIZE()')
    one, two = (reach(tmp_path, f"{program}\nSIZE = {value}\n") for value in (before, after))
    assert one != two
    assert one == reach(tmp_path, f"{program}\nSIZE = {before}\n")


def test_values_that_no_key_can_hold_are_refused(tmp_path):
    for value in ("torch.nn.Linear(1, 1)", "types.SimpleNamespace(a=1)", "torch.ones(1).sum"):
        program = PROGRAM.replace("SIZE = 10", f"import torch, types\nSIZE = {value}")
        with pytest.raises(TypeError, match="reads the global SIZE, a .* which cannot become part"):
            reach(tmp_path, program)


def test_studybook_imported_inside_a_function_is_refused(tmp_path):
    program = PROGRAM.replace("    local =", "    from studybook import models\n    local =")
    with pytest.raises(TypeError, match="measure imports studybook inside; import it at the top"):
        reach(tmp_path, program)


def test_a_class_in_a_notebooks_cell_counts():
    from IPython.core.interactiveshell import InteractiveShell

    def digest(body):
        shell = InteractiveShell.instance()
        shell.run_cell(f"class Net:\n    def __call__(self, x):\n        {body}\n", store_history=True)
        shell.run_cell("def measure(case):\n    return {'x': Net()(case['a'])}\n", store_history=True)
        main = sys.modules["__main__"]
        sys.modules["__main__"] = shell.user_module
        try:
            return sweep.reach(shell.user_ns["measure"])
        finally:
            sys.modules["__main__"] = main

    assert digest("return x") == digest("return x  # the same")
    assert digest("return x") != digest("return x + 1")


def test_the_digest_of_code_is_the_same_in_every_version_of_python():
    # 3.12 gave definitions type parameters, 3.13 left empty fields out of ast.dump: neither may show
    assert "type_params" not in sweep.bare("def f(): pass")
    assert sweep.bare("f(1)") == (
        "Module(body=[Expr(value=Call(func=Name(id='f', ctx=Load()), args=[Constant(value=1)]))])"
    )


# ---------------------------------------------------------------- committed rows


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """Rows of the three cases, committed; and an empty store."""
    monkeypatch.setenv("STUDYBOOK_COLLECT", str(tmp_path / "collected"))
    table = sweep.run(measure, CASES)
    monkeypatch.delenv("STUDYBOOK_COLLECT")
    monkeypatch.setenv("STUDYBOOK_COMMITTED", str(tmp_path / "collected"))
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "empty"))
    globals()["CALLS"] = 0
    return table


def test_committed_rows_serve_and_give_the_same_table(committed):
    table = sweep.run(measure, CASES)
    assert table.attrs["sweep"]["committed"] == 3
    assert table.attrs["sweep"]["stale"] == []
    assert CALLS == 0
    assert table.drop(columns="array").equals(committed.drop(columns="array"))
    np.testing.assert_array_equal(table["array"][2], committed["array"][2])


def test_committed_rows_whose_code_moved_on_serve_as_stale_until_fresh_is_asked_for(committed, monkeypatch):
    real = sweep.reach
    monkeypatch.setattr(sweep, "reach", lambda function: ("moved", *real(function)[1:]))
    assert sweep.run(measure, CASES).attrs["sweep"]["stale"] == ["code"]
    assert CALLS == 0
    monkeypatch.setenv("STUDYBOOK_FRESH", "1")
    assert sweep.run(measure, CASES).attrs["sweep"]["computed"] == 3
    assert CALLS == 3


def test_committed_rows_of_another_value_do_not_serve(committed, monkeypatch):
    monkeypatch.setitem(globals(), "FACTOR", 5)
    table = sweep.run(measure, CASES)
    assert table["twice"].tolist() == [5, 10, 15]
    assert table.attrs["sweep"]["computed"] == 3


def test_two_sweeps_of_one_study_keep_their_rows_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_COLLECT", str(tmp_path / "collected"))
    sweep.run(plus, CASES)
    sweep.run(minus, CASES)
    monkeypatch.setenv("STUDYBOOK_COMMITTED", str(tmp_path / "collected"))
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("STUDYBOOK_COMPUTE", "0")
    monkeypatch.delenv("STUDYBOOK_COLLECT")
    assert sweep.run(plus, CASES)["x"].tolist() == [2, 3, 4]
    assert sweep.run(minus, CASES)["x"].tolist() == [0, 1, 2]


def plus(case):
    return {"x": case["a"] + 1}


def minus(case):
    return {"x": case["a"] - 1}


def test_a_store_that_cannot_be_written_ends_the_sweep_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="rows cannot be stored in .*; make room or set STUDYBOOK_CACHE"):
        sweep.run(measure, CASES)
    assert CALLS == 1


def test_committed_rows_serve_where_the_data_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_COLLECT", str(tmp_path / "collected"))
    sweep.run(loading, CASES[:1], data="digits")
    monkeypatch.setenv("STUDYBOOK_COMMITTED", str(tmp_path / "collected"))
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("STUDYBOOK_COLLECT")

    def missing(name):
        raise FileNotFoundError(f"{name} is not here")

    monkeypatch.setattr(data, "fingerprint", missing)
    assert sweep.run(loading, CASES[:1], data="digits")["n"].tolist() == [1797]
    with pytest.raises(FileNotFoundError, match="digits is not here"):
        sweep.run(loading, CASES[:2], data="digits")


def test_a_run_that_may_compute_nothing_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("STUDYBOOK_COMPUTE", "0")
    with pytest.raises(sweep.Failed, match="3 of 3 cases are not stored"):
        sweep.run(measure, CASES)


def test_damaged_committed_rows_are_refused_by_name(committed, tmp_path):
    (tmp_path / "collected" / "rows.json").write_text("[{")
    with pytest.raises(ValueError, match=r"rows\.json is damaged .* restore it from git"):
        sweep.run(measure, CASES)


# ---------------------------------------------------------------- death

KILLED = """
    import sys, time
    from studybook import sweep

    def measure(case):
        with open(sys.argv[1], "a") as log:
            log.write(f"{case['a']}\\n")
        time.sleep(0.5 if case["a"] else 0)
        return {"b": case["a"] ** 2}

    table = sweep.run(measure, [{"a": a} for a in range(6)])
    print(table["b"].tolist())
"""


def test_a_killed_sweep_resumes_with_what_is_missing(tmp_path):
    program, log = tmp_path / "killed.py", tmp_path / "log"
    program.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, str(program), str(log)]
    first = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().split()) >= 3):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    begun = log.read_text().split()
    stored = len(list((data.cache_folder() / "rows").glob("*/*.json")))
    assert 2 <= stored <= len(begun)
    second = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    assert json.loads(second.stdout) == [0, 1, 4, 9, 16, 25]
    assert len(log.read_text().split()) == len(begun) + 6 - stored


def test_many_small_arrays_are_stored_as_few_and_come_back_the_same(tmp_path):
    generator = np.random.default_rng(0)
    rows = [
        {"curve": generator.random(3 + i % 2), "pixels": generator.integers(0, 255, (2, 2), np.uint8), "n": i}
        for i in range(40)
    ]
    entries = [{"case": {"seed": i}, "rows": rows[4 * i : 4 * i + 4]} for i in range(10)]
    sweep.write_rows(entries, tmp_path)
    with np.load(tmp_path / "rows.npz") as stored:
        assert len(stored.files) == 6  # curves of two lengths and pixels, each with its names
    found = [row for entry in sweep.read_rows(tmp_path) for row in entry["rows"]]
    assert len(found) == 40
    for row, expected in zip(found, rows, strict=True):
        assert row["n"] == expected["n"]
        for name in ("curve", "pixels"):
            np.testing.assert_array_equal(row[name], expected[name])
            assert row[name].dtype == expected[name].dtype


def test_rows_stored_one_array_at_a_time_are_still_read(tmp_path):
    rows = [{"curve": {"array": [2]}}]
    (tmp_path / "rows.json").write_text(json.dumps([{"case": {}, "rows": rows}]))
    np.savez_compressed(tmp_path / "rows.npz", **{"0.0.curve": np.array([1.0, 2.0])})
    (entry,) = sweep.read_rows(tmp_path)
    np.testing.assert_array_equal(entry["rows"][0]["curve"], [1.0, 2.0])


def test_a_table_by_functions_has_the_same_key_in_every_process_or_none():
    codes = []
    assert sweep._plain_value("TABLE", {torch.relu: 1, counted: 2}, codes) == sweep._plain_value(
        "TABLE", {torch.relu: 1, counted: 2}, []
    )
    assert not any("0x" in key for key in sweep._plain_value("TABLE", {torch.relu: 1, counted: 2}, []))
    assert codes == [counted]
    assert sweep._plain_value("TABLE", {torch.nn.ReLU: 1}, []) == {str(torch.nn.ReLU): 1}
    with pytest.raises(TypeError, match="reads the global TABLE, a method_descriptor, which cannot become part"):
        sweep._plain_value("TABLE", {torch.Tensor.relu: 1}, [])


def counted(case):
    return {"b": case["a"]}
