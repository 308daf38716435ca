"""What Dask workers cost and gain: overhead of a case against plain Dask, memory, efficiency, and a model from these.

python -m benchmarks.workers             # the numbers
python -m benchmarks.workers --record    # ... into book/results/scale.json, from which the book's page is made

The scheduler and the workers are processes of their own, started by Dask's commands, as on a cluster.
"""

import argparse
import contextlib
import datetime
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from studybook import runner, sweep, workers

DASK = str(Path(sys.executable).with_name("dask"))
RECORD = Path(__file__).parents[1] / "book" / "results" / "scale.json"


def empty(case):
    return {"b": case["a"]}


def sleeping(case):
    time.sleep(case["seconds"])
    return {"b": case["a"]}


def computing(case):
    x = torch.randn(400, 400)
    for _ in range(case["steps"]):
        x = torch.tanh(x @ x.T / 20)
    return {"b": x.mean()}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and its seconds."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


@contextlib.contextmanager
def cluster(count: int) -> Iterator[tuple[psutil.Process, list[psutil.Process]]]:
    """A scheduler and `count` workers that have done something; `sweep.run` uses them."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "scheduler.json"
        words = {
            "scheduler": ["--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"],
            "worker": ["--nthreads", "1", "--nworkers", str(count), "--no-dashboard", "--local-directory", folder],
        }
        started = []
        for what, more in words.items():
            command = [DASK, what, "--host", "127.0.0.1", "--scheduler-file", str(file), *more]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(lambda process=process: (process.kill(), process.wait()))
            started.append(psutil.Process(process.pid))
            while not file.exists() or not file.read_text().strip().endswith("}"):
                time.sleep(0.05)
        os.environ["STUDYBOOK_SCHEDULER"] = str(file)
        stack.callback(os.environ.pop, "STUDYBOOK_SCHEDULER")
        with workers._client(str(file)) as client:
            client.wait_for_workers(count, 300)
        run(sleeping, [{"a": a, "seconds": 0.2} for a in range(3 * count)])
        yield started[0], started[1].children()


def run(measure, cases):
    """The table and the seconds that it took, with nothing stored before."""
    with tempfile.TemporaryDirectory() as store:
        os.environ["STUDYBOOK_CACHE"] = store
        with contextlib.redirect_stderr(io.StringIO()):  # bars and dashboards
            start = time.perf_counter()
            table = sweep.run(measure, cases)
            seconds = time.perf_counter() - start
    assert table["b"].notna().all()
    assert len(table) == len(cases)
    return table, seconds


def plain_dask(function, items):
    """What one would write instead: map and gather, with nothing stored, keyed or checked."""
    with workers._client(os.environ["STUDYBOOK_SCHEDULER"]) as client:
        return client.gather(client.map(function, items, pure=False))


def processor_seconds(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def overhead(count: int, cases: int, pairs: int) -> dict[str, float]:
    """Milliseconds of an empty case, elapsed and on the processor, and of a sweep of one; MiB that memory grew."""
    items = [{"a": a} for a in range(cases)]
    me = psutil.Process()
    with cluster(count) as (scheduler, _):
        run(empty, items[: cases // 10])
        before, memory = [processor_seconds(p) for p in (me, scheduler)], me.memory_info().rss
        _, seconds = run(empty, items)
        spent = [processor_seconds(p) - b for p, b in zip((me, scheduler), before, strict=True)]
        setup = statistics.median(run(empty, items[:1])[1] for _ in range(5))
        found = {"elapsed": seconds, "submitter": spent[0], "scheduler": spent[1]}
        grown = (me.memory_info().rss - memory) / 2**20

        def same(ours, peer):
            assert [row["b"] for row in peer] == ours[0]["b"].tolist()

        ratios = []
        for _ in range(pairs):
            ours, theirs = timed(lambda: run(empty, items)), timed(lambda: plain_dask(empty, items))
            same(ours[0], theirs[0])
            ratios.append(theirs[1] / ours[1])
        print(
            f"{cases:,} empty cases, {count} worker{'s' * (count > 1)}: plain Dask's time over ours "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return {**{name: 1000 * value / cases for name, value in found.items()}, "setup": 1000 * setup, "grown": grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="empty cases (default 10,000)")
    parser.add_argument("--pairs", type=int, default=3, help="times that each is timed (default 3)")
    parser.add_argument("--record", action="store_true", help="write book/results/scale.json")
    options = parser.parse_args()
    os.environ["STUDYBOOK_THREADS"] = "1"
    items = [{"a": a} for a in range(options.cases)]
    run(empty, items[:100])
    memory = psutil.Process().memory_info().rss
    here = 1000 * run(empty, items)[1] / options.cases
    found: dict = {"here": here, "here_grown": (psutil.Process().memory_info().rss - memory) / 2**20}
    print(f"no workers: {here:.2f} ms a case; memory grew by {found['here_grown']:.0f} MiB for {options.cases:,} cases")
    for count in (1, 2):
        found[f"workers{count}"] = one = overhead(count, options.cases, options.pairs)
        print(
            f"{'':4}{one['elapsed']:.2f} ms a case; processor time: submitter {one['submitter']:.2f} ms, scheduler "
            f"{one['scheduler']:.2f} ms; a sweep's set-up {one['setup']:.0f} ms; memory grew by {one['grown']:.0f} MiB"
        )

    torch.set_num_threads(1)
    start = time.perf_counter()
    computing({"a": 0, "steps": 200})
    steps = round(200 / (time.perf_counter() - start))
    cases = [{"a": a, "steps": steps} for a in range(16)]
    seen = []
    for _ in tqdm(range(options.pairs), "compute-bound", leave=False):
        taken = {}
        for count in (1, 2):
            with cluster(count):
                taken[count] = run(computing, cases)[1]
        seen.append(taken[1] / taken[2] / 2)
    found["computing"] = {"seconds": taken[1] / len(cases), "efficiency": statistics.median(seen), "all": sorted(seen)}
    print(
        f"compute-bound cases of {found['computing']['seconds']:.2f} s, from one to two workers: efficiency "
        f"{found['computing']['efficiency']:.3f} ({', '.join(f'{one:.3f}' for one in sorted(seen))})"
    )

    found["sleeping"] = []
    for count in tqdm((1, 2, 4, 8, 16), "sleeping", leave=False):
        with cluster(count):
            for seconds in (0.1, 1.0):
                cases = [{"a": a, "seconds": seconds} for a in range(round(10 / seconds) if count == 1 else 20 * count)]
                share = len(cases) * seconds / count / run(sleeping, cases)[1]
                row = {"workers": count, "seconds": seconds, "cases": len(cases), "efficiency": share}
                found["sleeping"].append(row)
                print(f"cases that sleep {seconds} s on {count} workers: efficiency {share:.3f}")
    if options.record:
        found |= {
            "cases": options.cases,
            "machine": {**workers.machine(), "cores": workers.cores()},
            "versions": workers._self(),
            "date": datetime.date.today().isoformat(),
            **runner._commit(),
        }
        RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
