"""`python -m benchmarks`: the library against what one would use instead, in turn, with the same answers."""

import datetime
import importlib
import math
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch

from benchmarks import limits, pair
from benchmarks.pair import Benchmark, Result, Size
from studybook import workers

RESULTS = Path(__file__).with_name("results.csv")
TOPICS = ("probes", "metrics", "intervals", "sets", "ensembles", "descent", "features", "explanations", "sweeps")
KEY = ["benchmark", "axis", "size", "machine", "device"]
PEERS = ("scikit-learn", "faiss-cpu", "torchmetrics", "netcal", "scipy", "datasets", "timm", "captum", "joblib")


def known() -> dict[str, Benchmark]:
    """All benchmarks by name."""
    modules = [importlib.import_module(f"benchmarks.{topic}") for topic in TOPICS]
    return {benchmark.name: benchmark for module in modules for benchmark in module.BENCHMARKS}


def text(size: Size) -> str:
    return " ".join(f"{axis}={value}" for axis, value in size.items())


def rates() -> dict[str, float]:
    """The machine's own limits, measured now."""
    found = {}
    for name, (_, unit, one) in limits.RATES.items():
        found[name] = limits.rate(name)
        click.echo(f"{name:<16} {found[name] / one:,.0f} {unit}")
    return found


def row(benchmark: Benchmark, axis: str, size: Size, found: Result, limit: Mapping[str, float]) -> dict[str, Any]:
    """One line of results.csv."""
    ours, peer, ratio = found.middle()
    ratios = found.ratios() or [math.nan]
    share = math.nan
    if benchmark.limit and benchmark.work:
        share = benchmark.work(**size) / ours / limit[benchmark.limit]
    return {
        "benchmark": benchmark.name, "axis": axis, "size": text(size), "peer": benchmark.peer,
        "ours_s": ours, "peer_s": peer, "ratio": ratio, "least": min(ratios), "greatest": max(ratios),
        "pairs": len(found.ratios()), "target": benchmark.target,
        "limit": benchmark.limit, "share": share, "share_target": benchmark.share,
        "input_mib": found.given, "ours_mib": found.ours.peak, "peer_mib": found.peer.peak,
        "ours_stopped": found.ours.stopped, "peer_stopped": found.peer.stopped,
    }  # fmt: skip


def line(found: Mapping[str, Any]) -> str:
    """One row as it is printed."""

    def seconds(side: str) -> str:
        return found[f"{side}_stopped"] or f"{found[f'{side}_s']:.3g} s"

    name = f"{found['benchmark']} ({found['size']})"
    said = f"{name:<58} {seconds('ours'):>9} {seconds('peer'):>11}"
    if found["pairs"]:
        said += f" {found['ratio']:>7.3g}x  {found['least']:.3g}..{found['greatest']:.3g} ({found['pairs']})"
        if found["target"] and not found["axis"]:
            said += f"  target {found['target']:.3g}x {'met' if found['ratio'] >= found['target'] else 'MISSED'}"
    if found["limit"]:
        said += f"  {found['share']:.0%} of {found['limit']}"
        if found["share_target"] and not found["axis"]:
            said += (
                f", target {found['share_target']:.0%} {'met' if found['share'] >= found['share_target'] else 'MISSED'}"
            )
    return said + f"  peak {found['ours_mib']:.0f} and {found['peer_mib']:.0f} MiB for {found['input_mib']:.0f}"


def about() -> dict[str, Any]:
    """Of every row: when, which code, which machine, which versions."""
    from importlib.metadata import version

    machine = workers.machine()
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain", "lib"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip() + "+" * bool(dirty.stdout.strip()),
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['memory']} GiB",
        "device": workers.device_kind(),
        "threads": torch.get_num_threads(),
        "versions": " ".join(f"{name}={version(name)}" for name in ("torch", *PEERS)),
    }  # fmt: skip


def keep(rows: list[dict[str, Any]], file: Path) -> None:
    """Adds rows to the file; a newer row of the same benchmark, size, machine and device takes an older one's place."""
    table = pd.DataFrame(rows)
    if file.exists():
        before = pd.read_csv(file, dtype={"axis": str}).fillna({"axis": ""})
        table = pd.concat([before, table]).drop_duplicates(KEY, keep="last")
    order = {name: i for i, name in enumerate(known())}
    table = table.assign(order=table["benchmark"].map(order)).sort_values(["order", "axis"], kind="stable")
    partial = file.with_suffix(".part")
    table.drop(columns="order").to_csv(partial, index=False, float_format="%.4g")
    partial.replace(file)


def planned(some: list[Benchmark], scaling: bool, targets: bool) -> Iterator[tuple[Benchmark, str, Size]]:
    for benchmark in some:
        if targets:
            yield benchmark, "", benchmark.size
        for axis, sizes in (benchmark.axes if scaling else {}).items():
            yield from ((benchmark, axis, size) for size in sizes)


def _names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in known() if incomplete in name]


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, shell_complete=_names)
@click.option("--list", "listed", is_flag=True, help="Name the benchmarks, and run nothing.")
@click.option("--scaling/--no-scaling", default=True, help="Also the sizes of the scaling curves.")
@click.option("--targets/--no-targets", default=True, help="Also the sizes of the targets.")
@click.option("--pairs", type=click.IntRange(1), help="Timed runs of each side, instead of each benchmark's own.")
@click.option("--seconds", default=120.0, help="A run that takes longer is stopped, and the row says so.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, help="Rows go here.")
@click.option("--tune", is_flag=True, help="Find scikit-learn's tolerances anew (benchmarks/tuned.json): long.")
def main(names, listed, scaling, targets, pairs, seconds, output, tune) -> None:
    """Time the library against what one would use instead, in turn, and check that both give the same answer.

    NAMES are parts of benchmarks' names; without any, all run. Each row is written as soon as it is measured.
    """
    found = [b for b in known().values() if not names or any(part in b.name for part in names)]
    if not found:
        raise click.UsageError(f"no benchmark's name holds {' or '.join(names)}; there are: {', '.join(known())}")
    if listed:
        for benchmark in found:
            click.echo(f"{benchmark.name:<28} against {benchmark.peer}; {text(benchmark.size)}")
        return
    if tune:
        from benchmarks import probes

        probes.tune_all(found)
        return
    limit, facts = rates(), about()
    bounds = pair.Limits(seconds=seconds)
    click.echo(f"{facts['machine']}, {facts['threads']} threads; {facts['versions']}")
    click.echo(f"{'':<58} {'ours':>9} {'peer':>11} {'ratio':>8}  least..greatest (pairs)")
    late: set[tuple[str, str, str]] = set()  # benchmark, axis, side: too slow at a smaller size
    for benchmark, axis, size in planned(found, scaling, targets):
        skip = [side for side in ("ours", "peer") if (benchmark.name, axis, side) in late]
        try:
            done = pair.compare(benchmark, size, bounds, pairs, skip)
        except FileNotFoundError as error:
            click.echo(f"{benchmark.name} is left out: {error}")
            continue
        for side in ("ours", "peer"):
            if axis and getattr(done, side).stopped:
                late.add((benchmark.name, axis, side))
        made = row(benchmark, axis, size, done, limit)
        click.echo(line(made))
        keep([{**made, **facts}], output)


if __name__ == "__main__":
    main()
