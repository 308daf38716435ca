"""What the library costs, for the pages that say so: sweeps on many workers, and speed against what else there is."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studybook import workers
from studybook.studies import write

if TYPE_CHECKING:
    import pandas as pd


def write_scale(found: Mapping[str, Any], folder: Path) -> None:
    """Tables and a figure of what benchmarks/workers.py measured and of the cost model, for the page on scale."""
    one, two = found["workers1"], found["workers2"]
    serial = max(two["submitter"], two["scheduler"])
    setup = statistics.median([one["setup"], two["setup"]])
    costs = workers.Costs(one["elapsed"] / 1000, serial / 1000, setup / 1000)
    machine, computing = found["machine"], found["computing"]
    sleeping = sorted(found["sleeping"], key=lambda row: (row["seconds"], row["workers"]))
    measured = {
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['memory']} GiB",
        "date, commit": f"{found['date']}, {(found['commit'] or 'none')[:12]}",
        "an empty case, no workers": f"{found['here']:.1f} ms",
        "an empty case, one worker": f"{one['elapsed']:.1f} ms",
        "an empty case, two workers": f"{two['elapsed']:.1f} ms",
        "... of which the submitting process computes": f"{two['submitter']:.1f} ms",
        "... of which the scheduler computes": f"{two['scheduler']:.1f} ms",
        "a sweep's set-up": f"{setup:.0f} ms",
        f"memory that {found['cases']:,} cases add, with workers": f"{max(one['grown'], two['grown']):.0f} MiB",
        "the same without workers": f"{found['here_grown']:.0f} MiB",
        f"efficiency from one to two workers, cases that compute for {computing['seconds']:.1f} s":
            f"{computing['efficiency']:.0%} ({', '.join(f'{e:.0%}' for e in computing['all'])})",
    }  # fmt: skip
    largest = {f"{s:g} s": f"{_rounded_down(workers.most_workers(costs, s)):,}" for s in (1.0, 10.0, 100.0)}
    points = [
        (f"{row['seconds']:g} s", str(row["workers"]), f"{row['efficiency']:.1%}", f"{model:.1%}")
        for row in sleeping
        for model in [workers.efficiency(costs, row["workers"], row["seconds"], float(row["cases"]))]
    ]
    for name, head, rows in (
        ("costs", ("what", "measured"), list(measured.items())),
        ("workers", ("a case takes", "workers, at least 80 % busy"), list(largest.items())),
        ("points", ("a case sleeps", "workers", "efficiency, measured", "model"), points),
    ):
        _write_table(folder / f"scale-{name}.md", [head, *rows])
    _draw_scale(costs, sleeping, folder / "scale.png")


def _draw_scale(costs: Any, sleeping: Sequence[Mapping[str, Any]], file: Path) -> None:
    from studybook import plots

    figure = plots.figure(7.0, 3.5)
    counts = [round(10 ** (i / 20)) for i in range(101)]
    curves = {f"{s:g} s": [workers.efficiency(costs, n, s) for n in counts] for s in (0.1, 1.0, 10.0, 100.0)}
    measured = {
        name: {r["workers"]: r["efficiency"] for r in sleeping if f"{r['seconds']:g} s" == name} for name in curves
    }
    plots.efficiency(figure.add_subplot(), counts, curves, measured, 0.8)
    _save(figure, file)


def _rounded_down(count: int) -> int:
    """To two digits: a model's third one means nothing."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit


def write_speed(results: Path, quick: Path, folder: Path) -> None:
    """Tables and figures for the page on speed, of what `python -m benchmarks` and `benchmarks.quick` measured."""
    import pandas as pd

    table = pd.read_csv(results)
    machines = table["machine"] + ", " + table["device"]
    targets = table[table["axis"].isna()]
    rows = [("what, against what", "ours, theirs", "ratio (least to greatest)", "target", "of the limit", "MiB")]
    rows += [_speed_line(row) for row in targets.to_dict("records")]
    _write_table(folder / "speed-targets.md", rows)
    facts = [("machine", "benchmarks", "dates", "code", "versions")]
    for machine, some in table.groupby(machines):
        span = " to ".join(sorted({some["date"].min(), some["date"].max()}))
        codes = ", ".join(some["commit"].drop_duplicates())
        facts.append((machine, str(len(some)), span, codes, some["versions"].iloc[-1].replace(" ", ", ")))
    _write_table(folder / "speed-machines.md", facts)
    _write_quick(quick, folder)
    _draw_ratios(targets[targets["ratio"].notna()], folder / "speed-ratios.png")
    _draw_scaling(table[table["axis"].notna()], folder / "speed-scaling.png")


def _write_quick(quick: Path, folder: Path) -> None:
    """What the quick profile takes; before it was first measured, that it was not."""
    whole = json.loads(quick.read_text()) if quick.exists() else {"rows": []}
    runs = [("what", "seconds", "target")]
    for one in whole["rows"]:
        met = "met" if one["seconds"] < one["target"] else "**missed**"
        runs.append((one["what"], f"{one['seconds']:.3g}", f"{one['target']}, {met}"))
    _write_table(folder / "speed-quick.md", runs)
    about = f"{whole['machine']}, {whole['date']}, code {whole['commit']}." if whole["rows"] else "Not measured yet."
    write(folder / "speed-quick-machine.md", about + "\n")


def _speed_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    def known(value: Any) -> bool:
        return value == value  # not NaN

    def seconds(side: str) -> str:
        return row[f"{side}_stopped"] if known(row[f"{side}_stopped"]) else _seconds(row[f"{side}_s"])

    ratio, target, limit = "", "", ""
    if known(row["ratio"]):
        middle, least, greatest = (
            f"{row[name]:.0f}" if row[name] >= 10 else f"{row[name]:.2g}" for name in ("ratio", "least", "greatest")
        )
        ratio = f"{middle} ({least} to {greatest})"
    if known(row["target"]):
        verdict = "" if not known(row["ratio"]) else ", met" if row["ratio"] >= row["target"] else ", **missed**"
        target = f"{row['target']:.2g}{verdict}"
    if known(row["share"]):
        limit = f"{row['share']:.0%}, {row['limit']}"
    if known(row["share_target"]):
        target = f"{row['share_target']:.0%} of limit, {'met' if row['share'] >= row['share_target'] else '**missed**'}"
    peaks = [f"{row[name]:.0f}" if known(row[name]) else "?" for name in ("ours_mib", "peer_mib")]
    memory = f"{peaks[0]}, {peaks[1]}; {row['input_mib']:.0f}" if known(row["input_mib"]) else ""
    sizes = _sizes(row["size"]).items()
    size = ", ".join(f"{axis.upper() if len(axis) == 1 else axis} {n:,}" for axis, n in sizes)
    what = f"**{row['benchmark']}**, {row['peer']} ({size})"
    return what, f"{seconds('ours')}, {seconds('peer')}", ratio, target, limit, memory


def _sizes(text: str) -> dict[str, int]:
    return {axis: int(value) for axis, value in (part.split("=") for part in text.split())}


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _write_table(file: Path, rows: Sequence[Sequence[str]]) -> None:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    write(file, "".join(f"| {' | '.join(line)} |\n" for line in lines))


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Software": None})


def _draw_ratios(table: "pd.DataFrame", file: Path) -> None:
    from studybook import plots

    table = table.sort_values("ratio", ascending=False)
    figure = plots.figure(7.0, 0.6 + 0.32 * len(table))
    names = [f"{name}\n{peer}" for name, peer in zip(table["benchmark"], table["peer"], strict=True)]
    spans = [tuple(row) for row in table[["ratio", "least", "greatest", "target"]].to_numpy().tolist()]
    plots.ratios(figure.add_subplot(), names, spans)
    _save(figure, file)


def _draw_scaling(table: "pd.DataFrame", file: Path) -> None:
    """One small figure for each benchmark and axis: seconds of both sides, and the exponent fitted to each."""
    from studybook import plots

    panels = list(table.groupby(["benchmark", "axis"], sort=False))
    columns = 3
    figure = plots.figure(8.0, 2.4 * -(-len(panels) // columns))
    for i, ((name, axis), some) in enumerate(panels):
        sizes = [_sizes(text)[axis] for text in some["size"]]
        series = {}
        for side, label in (("ours", "ours"), ("peer", some["peer"].iloc[0])):
            points = [(n, s) for n, s in zip(sizes, some[f"{side}_s"], strict=True) if s == s]
            if points:
                power = exponent(points)
                series[label if power is None else f"{label}, {axis.upper()}^{power:.1f}"] = points
        plots.scaling(figure.add_subplot(-(-len(panels) // columns), columns, i + 1), name, axis.upper(), series)
    _save(figure, file)


def exponent(points: Sequence[tuple[int | float, float]]) -> float | None:
    """The power of size that seconds grow with: the slope of a line through the logarithms, least squares.

    Small sizes are dominated by what every call costs, so only points of more than 5 ms count; None for fewer than two.
    """
    large = [(n, seconds) for n, seconds in points if seconds > 0.005]
    if len(large) < 2:
        return None
    import numpy as np

    x, y = np.log(np.array(large, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])
