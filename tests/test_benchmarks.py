"""The benchmarks themselves: both sides give the same answer, memory stays within its bound, rows are kept.

Seconds are not tested.
"""

import json
import math
import os
import time

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from benchmarks import __main__ as suite
from benchmarks import limits, pair, probes, quick, rebuild

KNOWN = suite.known()


@pytest.fixture
def anywhere(tmp_path, monkeypatch):
    """Set-ups may point the environment to folders of their own."""
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path))
    for name in ("STUDYBOOK_DATA", "STUDYBOOK_WORKERS", "STUDYBOOK_THREADS", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", KNOWN)
def test_both_sides_of_a_benchmark_give_the_same_answer_on_its_smallest_size(name, anywhere):
    benchmark = KNOWN[name]
    data = benchmark.setup(**benchmark.small)
    answers = [np.asarray(benchmark.answer(data, run(data))) for run in (benchmark.ours, benchmark.theirs)]
    assert answers[0].size
    benchmark.same(*answers)
    with pytest.raises(AssertionError):
        benchmark.same(answers[0] + 1.0, answers[1])


# ---------------------------------------------------------------- processes


def numbers(n, extra=0):
    return {"x": np.ones(n * pair.MIB // 8), "extra": extra}


def total(data):
    return data["x"].sum()


def hoarding(data):
    """Takes 200 MiB for a moment."""
    taken = np.ones(200 * pair.MIB // 8)
    return data["x"].sum() + 0 * taken[0]


def asleep(data):
    if len(data["x"]) > pair.MIB // 8:  # not at the smallest size
        time.sleep(60)


def greedy(data):
    if len(data["x"]) > pair.MIB // 8:
        held = [np.ones(pair.MIB * 100 // 8) for _ in range(20)]
        time.sleep(60)
        return len(held)
    return 1


def broken(data):
    if len(data["x"]) > pair.MIB // 8:
        raise KeyError("lost")


def absent(data):
    if len(data["x"]) > pair.MIB // 8:
        raise FileNotFoundError("the photos are not here")


def full(data):
    if len(data["x"]) > pair.MIB // 8:
        raise MemoryError


def number(data, given):
    return np.array(given, dtype=float)


def equal(one, other):
    if not np.allclose(one, other):
        raise AssertionError("the sums differ")


def bench(ours=total, theirs=total, **more):
    return pair.Benchmark("sums", "sums", numbers, ours, theirs, number, equal, {"n": 8}, {"n": 1}, **more)


def compared(benchmark, seconds=60.0, **more):
    return pair.compare(benchmark, {"n": 8}, pair.Limits(seconds=seconds, memory=1_500.0), pairs=2, **more)


def test_a_first_pair_counts_only_if_it_is_slow(monkeypatch):
    assert len(compared(bench()).ours.seconds) == 2
    monkeypatch.setattr(pair, "SLOW", 0.0)
    assert len(pair.compare(bench(), {"n": 8}, pairs=1).ours.seconds) == 1


def test_two_sides_run_in_turn_and_their_memory_is_told_apart():
    found = compared(bench(theirs=hoarding))
    assert len(found.ours.seconds) == len(found.peer.seconds) == 2
    assert found.ratios() == [p / o for o, p in zip(found.ours.seconds, found.peer.seconds, strict=True)]
    assert found.given == pytest.approx(8)
    assert found.ours.peak < 20
    assert 190 < found.peer.peak < 230


def test_a_side_that_is_too_slow_or_takes_too_much_memory_is_stopped_and_the_other_goes_on():
    for side, seconds, why in ((asleep, 2.0, "over 2 s"), (greedy, 50.0, "over 1 GiB"), (full, 60.0, "out of memory")):
        found = compared(bench(theirs=side), seconds)
        assert found.peer.stopped == why
        assert not found.peer.seconds
        assert len(found.ours.seconds) == 2
        assert math.isnan(found.middle()[2])


def test_a_side_that_was_too_slow_before_is_not_run():
    found = compared(bench(theirs=broken), skip=["peer"])
    assert (found.peer.stopped, len(found.ours.seconds)) == ("too slow", 2)


def test_a_side_that_fails_is_an_error_with_its_traceback():
    with pytest.raises(RuntimeError, match="KeyError: 'lost'"):
        compared(bench(theirs=broken))


def test_data_that_are_not_here_are_named():
    with pytest.raises(FileNotFoundError, match="the photos are not here"):
        compared(bench(theirs=absent))


def writing(data):
    folder = pair.scratch()
    folder.mkdir(exist_ok=True)
    (folder / "something").write_text("kept")
    return float(str(folder).rpartition("-")[2])


def as_written(one, other):
    """Both sides give their process's number: different, and neither this one's."""
    if one == other or os.getpid() in (one, other):
        raise AssertionError("one process")
    left.extend([int(one), int(other)])


left: list[int] = []


def test_what_a_side_wrote_goes_when_it_ends():
    left.clear()
    compared(bench(ours=writing, theirs=writing)._replace(same=as_written))
    assert len(left) >= 4
    assert not any(pair.scratch(process).exists() for process in left)


def different(data):
    return 2 * data["x"].sum()


def test_answers_that_differ_end_the_comparison():
    with pytest.raises(AssertionError, match="the sums differ"):
        compared(bench(theirs=different))


# ---------------------------------------------------------------- memory


CHECKED = {
    "neighbors": {"m": 50_000, "n": 5_000, "d": 256},
    "linear probe, warm": {"n": 20_000, "d": 512, "c": 10, "l": 3},
    "scores": {"n": 1_000_000, "c": 20},
    "temperature": {"e": 20, "n": 10_000, "c": 100},
    "bootstrap": {"n": 300_000},
    "CIFAR-10 from the cache": {"n": 5_000},
    "64 small networks": {"e": 64},
    "3 ResNet-8": {"e": 2, "n": 2_560},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_peak_memory_stays_within_a_multiple_of_the_input(name):
    benchmark = KNOWN[name]
    found = pair.compare(benchmark, CHECKED[name], pairs=1, skip=["peer"])
    if math.isnan(found.ours.peak):
        pytest.skip("this system does not tell peak memory")
    assert found.ours.peak <= benchmark.memory * found.given + benchmark.room


def test_every_recorded_row_is_within_its_bound_of_memory():
    table = pd.read_csv(suite.RESULTS)
    for row in table[table["ours_mib"].notna() & table["ours_stopped"].isna()].itertuples():
        benchmark = KNOWN[row.benchmark]
        assert row.ours_mib <= benchmark.memory * row.input_mib + benchmark.room, row.benchmark


# ---------------------------------------------------------------- the command


def test_every_benchmark_of_the_table_of_results_still_exists_with_its_peer():
    table = pd.read_csv(suite.RESULTS)
    there = {(b.name, b.peer) for b in [*KNOWN.values(), rebuild.BENCHMARK]}
    assert set(zip(table["benchmark"], table["peer"], strict=True)) <= there


def test_a_book_of_copies_has_each_study_and_a_title_that_changes(tmp_path):
    found = rebuild.sources(tmp_path, 40)
    assert len(set(found)) == 40
    for study in found:
        assert (tmp_path / "notebooks" / f"{study}.ipynb").exists()
        assert (tmp_path / "notebooks" / f"{study}.yml").exists()
    assert rebuild.STUDY in found
    file = tmp_path / "notebooks" / f"{rebuild.STUDY}.ipynb"
    first = rebuild.change(file, 1)
    assert first in file.read_text()
    second = rebuild.change(file, 2)
    assert second in file.read_text()
    assert first not in file.read_text()


def test_what_the_quick_profile_takes_was_measured_of_studies_that_there_are():
    rows = json.loads(quick.RESULTS.read_text())["rows"]
    names = {study.stem for study in rebuild.ROOT.glob("notebooks/*/*.ipynb")}
    measured = {row["what"].partition(",")[0] for row in rows}
    assert "the whole book" in measured
    assert measured <= names | {"the whole book"}
    assert all(row["seconds"] > 0 for row in rows)


def test_limits_are_rates_above_zero(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.1)
    for name in limits.RATES:
        assert limits.rate(name) > 1e2


def test_scikit_learn_is_tuned_for_each_penalty_and_a_size_without_says_so():
    for key, settings in json.loads(probes.TUNED.read_text()).items():
        size = {axis: int(n) for axis, n in (part.split("=") for part in key.split()[:-1])}
        assert len(probes._settings(size, key.endswith("warm"))) == len(settings) == size["l"]
    with pytest.raises(FileNotFoundError, match="not tuned for n=1 d=1 c=2 l=1 warm: python -m benchmarks --tune"):
        probes._settings({"n": 1, "d": 1, "c": 2, "l": 1}, warm=True)


def test_a_new_row_takes_the_place_of_an_older_one_and_others_stay(tmp_path):
    file = tmp_path / "rows.csv"
    old = {"benchmark": "scores", "axis": "", "size": "n=1", "machine": "a", "device": "cpu", "ratio": 1.0}
    suite.keep([old, {**old, "benchmark": "neighbors"}], file)
    suite.keep([{**old, "ratio": 2.0}], file)
    table = pd.read_csv(file)
    assert table["benchmark"].tolist() == ["neighbors", "scores"]
    assert table["ratio"].tolist() == [1.0, 2.0]


def test_the_command_lists_benchmarks_and_refuses_names_that_no_benchmark_has():
    listed = CliRunner().invoke(suite.main, ["--list"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in KNOWN)
    refused = CliRunner().invoke(suite.main, ["nothing"])
    assert refused.exit_code == 2
    assert "no benchmark's name holds nothing" in refused.output


def test_the_command_measures_and_keeps_a_row(tmp_path, monkeypatch):
    small = {"tiny": bench(limit="bandwidth", work=lambda n: float(n * pair.MIB), target=1e9)}
    monkeypatch.setattr(suite, "known", lambda: small)
    monkeypatch.setattr(limits, "SECONDS", 0.1)
    limits.rate.cache_clear()
    done = CliRunner().invoke(suite.main, ["--pairs", "1", "--output", str(tmp_path / "rows.csv")])
    assert done.exit_code == 0, done.output
    assert "MISSED" in done.output
    (row,) = pd.read_csv(tmp_path / "rows.csv").to_dict("records")
    assert (row["benchmark"], row["size"], row["pairs"]) == ("sums", "n=8", 1)
    assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"], rel=1e-3)
    assert 0 < row["share"] < 20
    assert f"torch={torch.__version__}".partition("+")[0] in row["versions"]
