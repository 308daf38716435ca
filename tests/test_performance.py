"""The pages on what the library costs."""

import json

import pandas as pd
import pytest

from studybook import performance


def test_the_page_on_scale_is_made_of_what_was_measured(tmp_path):
    one = {"elapsed": 4.0, "submitter": 2.0, "scheduler": 1.0, "setup": 200.0, "grown": 12.3}
    found = {
        "workers1": one, "workers2": {**one, "elapsed": 2.5, "submitter": 1.0, "scheduler": 1.25}, "here": 0.75,
        "here_grown": 10.1, "cases": 10_000, "date": "2026-01-02", "commit": "abcdef1234567890",
        "computing": {"seconds": 1.04, "efficiency": 0.912, "all": [0.9, 0.912, 0.93]},
        "sleeping": [{"workers": 4, "seconds": 1.0, "cases": 80, "efficiency": 0.987}],
        "machine": {"processor": "Some Processor", "cores": 2, "memory": 24},
    }  # fmt: skip
    performance.write_scale(found, tmp_path)
    costs, largest, points = ((tmp_path / f"scale-{n}.md").read_text() for n in ("costs", "workers", "points"))
    assert "| machine | Some Processor, 2 cores, 24 GiB |" in costs
    assert "| an empty case, one worker | 4.0 ms |" in costs
    assert "| 91% (90%, 91%, 93%) |" in costs
    assert "| 1 s | 1,000 |\n| 10 s | 10,000 |\n| 100 s | 100,000 |" in largest  # one every 1.25 ms
    assert "| 1 s | 4 | 98.7% | 98.6% |" in points  # 20 rounds of 1.004 s and 0.2 s of set-up
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


ROW = {
    "benchmark": "neighbors", "axis": "", "size": "m=10000 n=4000", "peer": "faiss", "ours_s": 0.4, "peer_s": 0.5,
    "ratio": 1.25, "least": 1.2, "greatest": 1.3, "pairs": 5, "target": 0.83, "limit": "products", "share": 0.6,
    "share_target": "", "input_mib": 68.4, "ours_mib": 300.2, "peer_mib": 73.0, "ours_stopped": "", "peer_stopped": "",
    "date": "2026-01-02", "commit": "abcdef123456", "machine": "Some Processor, 2 cores", "device": "cpu",
    "threads": 2, "versions": "torch=2 scipy=1",
}  # fmt: skip


def written(folder, *rows):
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    whole = [{"what": "grokking", "seconds": 56.25, "target": 60}, {"what": "book", "seconds": 612.0, "target": 600}]
    quick = {"machine": "Some Processor, 2 cores", "date": "2026-01-02", "commit": "abcdef123456", "rows": whole}
    (folder / "quick.json").write_text(json.dumps(quick))
    performance.write_speed(folder / "results.csv", folder / "quick.json", folder)
    return (folder / "speed-targets.md").read_text(), (folder / "speed-machines.md").read_text()


def test_the_page_on_speed_is_made_of_the_rows(tmp_path):
    slow = {**ROW, "benchmark": "wide", "share_target": 0.5, "target": "", "limit": "products", "share": 0.4}
    stopped = {**ROW, "benchmark": "huge", "peer_s": "", "ratio": "", "least": "", "greatest": "", "target": 2.0}
    stopped["peer_stopped"] = "over 120 s"
    curve = [
        {**ROW, "axis": "m", "size": f"m={m} n=4000", "ours_s": m * 1e-5, "peer_s": m * 1e-6} for m in (1000, 9000)
    ]
    whole = {**ROW, "benchmark": "book", "size": "studies=40", "input_mib": "", "ours_mib": "", "peer_mib": ""}
    late = {**ROW, "benchmark": "late", "ratio": 0.7}
    targets, machines = written(tmp_path, ROW, slow, late, stopped, whole, *curve)
    lines = {line.split("**")[1]: line for line in targets.splitlines()[2:]}
    assert lines["neighbors"] == (
        "| **neighbors**, faiss (M 10,000, N 4,000) | 400 ms, 500 ms | 1.2 (1.2 to 1.3) | 0.83, met | 60%, products | "
        "300, 73; 68 |"
    )
    assert "0.83, **missed**" in lines["late"]
    assert "50% of limit, **missed**" in lines["wide"]
    assert lines["book"].startswith("| **book**, faiss (studies 40) | ")
    assert lines["book"].endswith(", products |  |")
    quick = (tmp_path / "speed-quick.md").read_text()
    assert "| grokking | 56.2 | 60, met |\n| book | 612 | 600, **missed** |" in quick
    assert "2 cores, 2026-01-02, code abcdef123456." in (tmp_path / "speed-quick-machine.md").read_text()
    assert "| 400 ms, over 120 s |" in lines["huge"]
    assert "**missed**" not in lines["huge"]  # nothing to compare with
    assert "Some Processor, 2 cores, cpu | 7 | 2026-01-02 | abcdef123456 | torch=2, scipy=1" in machines
    for name in ("ratios", "scaling"):
        assert (tmp_path / f"speed-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_before_the_quick_profile_was_measured_the_page_says_so(tmp_path):
    curve = {**ROW, "axis": "m", "size": "m=10 n=4000"}
    pd.DataFrame([ROW, curve]).to_csv(tmp_path / "results.csv", index=False)
    performance.write_speed(tmp_path / "results.csv", tmp_path / "none.json", tmp_path)
    assert (tmp_path / "speed-quick-machine.md").read_text() == "Not measured yet.\n"


def test_the_exponent_of_a_power_law_is_found_and_points_of_a_few_milliseconds_do_not_count():
    points = [(n, 0.01 * (n / 100) ** 1.5) for n in (100, 1_000, 10_000)]
    assert performance.exponent(points) == pytest.approx(1.5)
    assert performance.exponent([(1, 0.004), *points]) == pytest.approx(1.5)
    assert performance.exponent(points[:1]) is None
