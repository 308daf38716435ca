"""Sweeps on Dask: schedulers and workers are started by their own commands, on loopback."""

import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, heed_interrupts
from test_data import pictures, write_parquet

from studybook import data, sweep, workers

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of processes that these tests kill
DASK = str(Path(sys.executable).with_name("dask"))
SIZE = 40


class Cluster:
    """A scheduler on loopback and its workers, each a process that `dask` started; their output is in `folder`."""

    def __init__(self, folder, port=0, scheme="tcp", flags=()):
        self.folder, self.flags, self.workers, self.scheme = folder, flags, [], scheme
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"scheduler-{time.monotonic_ns()}.json"
        words = ["--port", str(port), "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(self.file)]
        self.scheduler = self.start("scheduler", "--protocol", scheme, *words)
        wait_for(lambda: self.file.exists() and self.file.read_text().strip().endswith("}"))
        self.address = json.loads(self.file.read_text())["address"]

    def start(self, what, *words, **environment):
        log = (self.folder / f"{what}-{time.monotonic_ns()}.log").open("w")
        return subprocess.Popen(
            [DASK, what, *words, "--host", "127.0.0.1", *self.flags],
            env={**os.environ, "PYTHONWARNINGS": "ignore", **environment},
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def add(self, *words, nthreads=1, **environment):
        flags = ["--nthreads", str(nthreads), "--dashboard-address", "127.0.0.1:0"]
        flags += ["--local-directory", str(self.folder), *words]
        self.workers.append(self.start("worker", self.address, *flags, **environment))
        return self.workers[-1]

    def close(self):
        for process in [*self.workers, self.scheduler]:
            process.kill()  # a worker ends with its nanny
            process.wait()


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A scheduler with two workers of one thread, for tests that leave them alive."""
    cluster = Cluster(tmp_path_factory.mktemp("pair"))
    try:
        cluster.add()
        cluster.add()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def two(pair, monkeypatch):
    """`sweep.run` measures on two workers."""
    monkeypatch.setenv("STUDYBOOK_SCHEDULER", pair.address)
    monkeypatch.setenv("STUDYBOOK_THREADS", "1")
    return pair


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A maker of clusters for one test, which may do to them what it likes."""
    made = []

    def make(**settings):
        made.append(Cluster(tmp_path / "cluster", **settings))
        monkeypatch.setenv("STUDYBOOK_SCHEDULER", made[-1].address)
        monkeypatch.setenv("STUDYBOOK_THREADS", "1")
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def trained(case):
    """A small network, a few steps of SGD and everything that could differ between machines in the last bit."""
    torch.manual_seed(int(torch.randint(1 << 30, ())) + case["seed"])
    network = torch.nn.Sequential(torch.nn.Linear(SIZE, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3))
    x, y = torch.randn(128, SIZE), torch.randint(3, (128,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
    noise = np.random.normal(size=(30, 30))  # noqa: NPY002
    return {
        "loss": loss.item(),
        "weights": network[0].weight.detach().numpy(),
        "values": np.linalg.svd(noise)[1],
        "threads": torch.get_num_threads(),
    }


TRAINED = [{"seed": seed, "width": width} for seed in range(4) for width in ("a", "b")]


def bits(table):
    """A table as bytes, whatever its order was: equal for equal bits only."""
    rows = [
        json.dumps([v.tobytes().hex() if isinstance(v, np.ndarray) else repr(v) for v in row])
        for row in table.to_numpy(dtype=object)
    ]
    return sorted(rows)


# ---------------------------------------------------------------- the same table


def test_none_one_two_and_four_workers_and_any_order_give_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_THREADS", "1")
    here = sweep.run(trained, TRAINED)
    shuffled = [TRAINED[i] for i in (5, 2, 7, 0, 3, 6, 1, 4)]
    for count in (1, 2, 4):
        monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / f"cache{count}"))
        with workers.local(count, threads=1) as address:
            monkeypatch.setenv("STUDYBOOK_SCHEDULER", address)
            there = sweep.run(trained, shuffled if count == 2 else TRAINED)
        assert there.attrs["sweep"]["computed"] == len(TRAINED)
        assert there[["seed", "width"]].to_dict("records") == (shuffled if count == 2 else TRAINED)
        assert bits(there) == bits(here)
    assert set(here["threads"]) == {1}


def test_the_comparison_sees_one_bit():
    table = pd.DataFrame([{"a": 1.0, "b": np.array([1.0, 2.0])}])
    other = pd.DataFrame([{"a": 1.0, "b": np.array([1.0, np.nextafter(2.0, 3)])}])
    assert bits(table) == bits(table.copy())
    assert bits(table) != bits(other)


def test_a_row_says_on_which_machine_it_was_measured_and_serves_without_workers_too(two, monkeypatch):
    table = sweep.run(trained, TRAINED[:2])
    (machine,) = map(json.loads, table.attrs["sweep"]["measured"])
    assert machine["cores"] == 1
    assert machine["device"] == "cpu"
    monkeypatch.delenv("STUDYBOOK_SCHEDULER")
    again = sweep.run(trained, TRAINED[:2])
    assert again.attrs["sweep"]["stored"] == 2
    assert bits(again) == bits(table)


def test_a_case_uses_as_many_threads_as_asked_for_and_blas_obeys(two, monkeypatch):
    for count in (1, 2):
        monkeypatch.setenv("STUDYBOOK_THREADS", str(count))
        table = sweep.run(threads_seen, [{"count": count}])
        assert table["torch"][0] == count
        assert table["most"][0] == count
        assert table["pools"][0] >= 2  # numpy's OpenBLAS and torch's OpenMP at least


def threads_seen(case):
    import threadpoolctl

    pools = threadpoolctl.threadpool_info()
    return {"torch": torch.get_num_threads(), "most": max(p["num_threads"] for p in pools), "pools": len(pools)}


def test_threads_are_the_cores_shared_by_the_workers(monkeypatch):
    with workers.local(2) as address:
        monkeypatch.setenv("STUDYBOOK_SCHEDULER", address)
        with workers.team() as team:
            assert team.threads == max(1, workers.cores() // 2)
            assert team.size == 2


def test_threads_leave_every_worker_cores_of_its_own():
    def worker(host, cores, bound):
        return {"host": host, "cores": cores, "bound": list(bound)}

    free = [worker("a", 8, range(8)) for _ in range(3)]
    assert workers._threads(free) == 2
    batch = [worker("a", 4, range(4 * i, 4 * i + 4)) for i in range(4)]  # each bound to four cores of its own
    assert workers._threads(batch) == 4
    assert workers._threads([*batch, *free]) == 2  # as many as the narrowest share allows
    container = [worker("a", 2, range(64)), worker("b", 2, range(64))]
    assert workers._threads(container) == 2
    assert workers._threads([worker("a", 1, range(1))] * 3) == 1


# ---------------------------------------------------------------- what travels


@functools.cache
def table_of(base):
    return [base * i for i in range(5)]


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


def looked_up(case):
    return {"x": Scale(2)(table_of(case["a"])[3])}


def test_code_travels_by_value_with_its_helpers_classes_and_caches(two):
    assert sweep.run(looked_up, [{"a": 1}, {"a": 10}])["x"].tolist() == [6, 60]


def test_a_notebook_opened_by_hand_measures_on_the_workers(two, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    cells = [
        "import functools, os, torch\nfrom studybook import sweep\nBIG = torch.arange(1000.0)",
        "@functools.cache\ndef helper(a):\n    return a + 1",
        "def measure(case):\n    return {'x': helper(case['a']), 'sum': BIG.sum(), 'process': os.getpid()}",
        "table = sweep.run(measure, [{'a': a} for a in range(4)])",
        "print(table['x'].tolist(), set(table['sum']), os.getpid() in set(table['process']))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert notebook.cells[-1].outputs[0].text == "[1, 2, 3, 4] {499500.0} False\n"
    shown = "".join(output.text for output in notebook.cells[3].outputs)
    assert "2 workers, 1 thread each, cpu; dashboard: http://127.0.0.1" in shown


class Travels:
    """A function that notes in a file whenever it is unpacked from its bytes."""

    def __init__(self, file, content):
        self.file, self.content = file, content

    def __call__(self, item):
        return item + len(self.content)

    def __setstate__(self, state):
        self.__dict__.update(state)
        with open(self.file, "a") as log:
            log.write(f"{os.getpid()}\n")


def test_a_large_input_is_sent_and_unpacked_once_per_worker(two, tmp_path):
    function = Travels(str(tmp_path / "log"), bytes(3_000_000))
    with workers.team() as team:
        found = sorted(team.outcomes(function, range(40)))
        moved = team.client.run(lambda dask_worker: sum(one["total"] for one in dask_worker.transfer_incoming_log))
    assert [outcome.value for outcome in found] == [3_000_000 + i for i in range(40)]
    assert set(Counter((tmp_path / "log").read_text().split()).values()) == {1}
    assert len((tmp_path / "log").read_text().split()) <= 2
    assert sum(moved.values()) < 10_000_000  # one worker from the other, once; not forty times three megabytes


def test_a_bounded_number_of_cases_is_in_flight_whatever_their_number(two, monkeypatch):
    monkeypatch.setattr(workers, "IN_FLIGHT", 20)
    most = []
    with workers.team() as team:
        for _ in team.outcomes(str, range(300)):
            most.append(len(team.client.futures))
    assert len(most) == 300
    assert max(most) <= 21  # and the code


# ---------------------------------------------------------------- order, progress


def noted(case):
    with open(case["log"], "a") as log:
        log.write(f"{case['a']}\n")
    return {"b": case["a"]}


def order_of(tmp_path, monkeypatch, own, cases):
    cluster = own()
    cluster.add()
    sweep.run(noted, cases)
    return [int(line) for line in (tmp_path / "log").read_text().split()]


def test_the_longest_cases_begin_first_by_what_the_yaml_says(tmp_path, monkeypatch, own):
    cases = [{"a": a, "kind": "big" if a in (3, 5) else "small", "log": str(tmp_path / "log")} for a in range(6)]
    hints = [{"case": {"kind": "big", "a": 5}, "seconds": 100}, {"case": {"kind": "big"}, "seconds": 50}]
    monkeypatch.setenv("STUDYBOOK_SECONDS", json.dumps([*hints, {"case": {}, "seconds": 1}]))
    assert order_of(tmp_path, monkeypatch, own, cases) == [5, 3, 0, 1, 2, 4]


def test_the_longest_cases_begin_first_by_earlier_rows_of_other_code(tmp_path, monkeypatch, own):
    log = str(tmp_path / "log")
    cases = [{"a": a, "log": log} for a in range(5)]
    sweep.run(slow_by_a, cases[1:4])  # a = 2 sleeps longest
    monkeypatch.setattr(slow_by_a, "__qualname__", "noted")
    before = {json.dumps(case): sweep._pace_file("slow_by_a", case).read_text() for case in cases[1:4]}
    for case in cases[1:4]:
        target = sweep._pace_file("noted", case)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(before[json.dumps(case)])
    assert order_of(tmp_path, monkeypatch, own, cases)[0] == 2


def slow_by_a(case):
    time.sleep({1: 0.0, 2: 0.5, 3: 0.1}[case["a"]])
    return {"b": 0}


def test_the_bar_tells_rate_failures_and_what_is_left(tmp_path, two, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_COLLECT", str(tmp_path / "collect"))
    with pytest.raises(sweep.Failed):
        sweep.run(fails_for_two, [{"a": a} for a in range(5)])
    state = json.loads((tmp_path / "collect" / "progress.json").read_text())
    assert state == {"done": 5, "total": 5, "failed": 1, "left": 0.0, "words": "2 workers", "before": 0}


def test_a_log_gets_a_line_now_and_then_and_a_terminal_a_bar(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now[0])
    bar = sweep.Bar("study")
    for done in range(101):
        now[0] = float(done)
        bar.show(done, 200, failed=2, left=(200 - done) * 1.0, words="3 workers")
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[-1] == "study: 96/200 cases, 1.0 cases/s, about 2 min left, 2 failed, 3 workers"


# ---------------------------------------------------------------- failure


def fails_for_two(case):
    if "log" in case:
        noted(case)
    if case["a"] == 2:
        raise ValueError(f"no luck with {case['a']}")
    return {"b": case["a"] ** 2}


def test_a_case_that_raises_is_not_repeated_and_keeps_traceback_worker_and_case(tmp_path, two):
    cases = [{"a": a, "log": str(tmp_path / "log")} for a in range(5)]
    with pytest.raises(sweep.Failed, match="1 of 5 cases failed .*the others are stored.* no luck with 2") as caught:
        sweep.run(fails_for_two, cases)
    assert sorted((tmp_path / "log").read_text().split()) == list("01234")
    (failure,) = caught.value.failures
    assert failure.case == cases[2]
    assert failure.worker.startswith("tcp://127.0.0.1:")
    assert "in fails_for_two" in failure.traceback
    (kept,) = (data.cache_folder() / "failures").glob("*.json")
    assert json.loads(kept.read_text()) == failure._asdict()
    with pytest.raises(sweep.Failed, match="1 of 5"):
        sweep.run(fails_for_two, cases)
    assert (tmp_path / "log").read_text().split().count("2") == 2
    assert len((tmp_path / "log").read_text().split()) == 6


def kills(case):
    noted(case)
    if case["a"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"b": 0}


def test_a_case_that_kills_its_workers_is_tried_four_times_and_the_others_finish(tmp_path, monkeypatch):
    cases = [{"a": a, "log": str(tmp_path / "log")} for a in range(6)]
    with workers.local(2, threads=1) as address:
        monkeypatch.setenv("STUDYBOOK_SCHEDULER", address)
        with pytest.raises(sweep.Failed, match="1 of 6 cases failed") as caught:
            sweep.run(kills, cases)
    assert "died while they measured this case" in caught.value.failures[0].traceback
    tries = Counter((tmp_path / "log").read_text().split())
    assert tries["1"] in (4, 8)  # 8 if a case that waited behind it died with it each time
    assert len(list((data.cache_folder() / "rows").glob("*/*.json"))) == 5


def test_a_local_worker_that_is_long_in_coming_back_is_waited_for(tmp_path, monkeypatch):
    from dask import config

    with workers.local(1, threads=1):
        assert config.get("distributed.deploy.lost-worker-timeout") == "300 days"
    assert config.get("distributed.deploy.lost-worker-timeout") != "300 days"


def test_a_case_that_waited_behind_one_that_kills_is_not_blamed_for_it(tmp_path, monkeypatch):
    cases = [{"a": a, "log": str(tmp_path / "log")} for a in (1, 5)]
    with workers.local(1, threads=1) as address:
        monkeypatch.setenv("STUDYBOOK_SCHEDULER", address)
        with pytest.raises(sweep.Failed, match="1 of 2 cases failed") as caught:
            sweep.run(kills, cases)
    assert [failure.case for failure in caught.value.failures] == cases[:1]
    tries = Counter((tmp_path / "log").read_text().split())
    assert tries == {"1": 8, "5": 1}


SLOW = """
    import os, sys, time
    from studybook import sweep

    def measure(case):
        with open(os.environ["LOG"], "a") as log:
            log.write(f"{case['a']}\\n")
        time.sleep(0.25)
        return {"b": case["a"] ** 2, "c": list(range(3))[1]}

    if __name__ == "__main__":
        table = sweep.run(measure, [{"a": a} for a in range(24)])
        print(table["b"].tolist(), table.attrs["sweep"]["computed"])
"""


@pytest.mark.parametrize("victim", ["worker", "submitter", "scheduler"])
def test_after_any_death_the_same_command_ends_with_the_whole_table_and_repeats_no_finished_case(
    victim, tmp_path, monkeypatch, own
):
    program, log = tmp_path / "slow.py", tmp_path / "log"
    program.write_text(textwrap.dedent(SLOW))
    log.touch()
    monkeypatch.setenv("LOG", str(log))
    cluster = own()
    first = cluster.add("--no-nanny")
    cluster.add("--no-nanny")
    command = [sys.executable, str(program)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(log.read_text().split()) >= 8 or running.poll() is not None)
    before = {json.loads(f.read_text())["case"]["a"] for f in (data.cache_folder() / "rows").glob("*/*.json")}
    {"worker": first, "submitter": running, "scheduler": cluster.scheduler}[victim].kill()
    out, err = running.communicate(timeout=90)
    stored = {json.loads(f.read_text())["case"]["a"] for f in (data.cache_folder() / "rows").glob("*/*.json")}
    if victim == "worker":
        assert running.returncode == 0, err
        repeated = {int(a) for a, times in Counter(log.read_text().split()).items() if times > 1}
        assert not repeated & before
        assert len(repeated) <= 4  # the one that it was in the middle of, and answers that had not left it yet
    else:
        assert running.returncode != 0
        assert 4 <= len(stored) < 24
        if victim == "scheduler":
            assert f"{len(stored)} of 24 cases are stored; the same command goes on from there" in err
            cluster.close()
            cluster = own(port=int(cluster.address.rpartition(":")[2]))
            cluster.add("--no-nanny")
        begun = Counter(log.read_text().split())
        again = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        assert again.returncode == 0, again.stderr
        out = again.stdout
        assert out.strip().endswith(f" {24 - len(stored)}")
        repeated = Counter(log.read_text().split()) - begun
        assert not {int(a) for a in repeated} & stored
    assert json.loads(out[: out.index("]") + 1]) == [a**2 for a in range(24)]


def test_a_full_disk_ends_the_sweep_and_what_was_stored_is_not_repeated(tmp_path, two, monkeypatch):
    cases = [{"a": a, "log": str(tmp_path / "log")} for a in range(12)]
    real, left = sweep._replace, [4]

    def full(file, content):
        if file.parent.parent.name == "rows":
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(file, content)

    monkeypatch.setattr(sweep, "_replace", full)
    with pytest.raises(OSError, match=r"rows cannot be stored in .* \(No space left on device\); make room"):
        sweep.run(noted, cases)
    monkeypatch.setattr(sweep, "_replace", real)
    stored = [json.loads(f.read_text())["case"]["a"] for f in (data.cache_folder() / "rows").glob("*/*.json")]
    assert len(stored) == 4
    begun = Counter((tmp_path / "log").read_text().split())
    table = sweep.run(noted, cases)
    assert table["b"].tolist() == list(range(12))
    assert table.attrs["sweep"]["stored"] == 4
    assert not {int(a) for a in Counter((tmp_path / "log").read_text().split()) - begun} & set(stored)


def test_ctrl_c_keeps_what_was_finished_and_leaves_no_worker_behind(tmp_path, monkeypatch):
    program, log = tmp_path / "slow.py", tmp_path / "log"
    program.write_text(textwrap.dedent(SLOW))
    log.touch()
    environment = {**os.environ, "LOG": str(log), "STUDYBOOK_WORKERS": "2"}
    command = [sys.executable, str(program)]
    running = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=heed_interrupts,
    )  # fmt: skip
    wait_for(lambda: len(log.read_text().split()) >= 8 or running.poll() is not None)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    _, err = running.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert err.count("Traceback") == 1  # of this process, none of its workers
    assert running.returncode != 0
    wait_for(lambda: not processes_of(running.pid), 30)
    stored = len(list((data.cache_folder() / "rows").glob("*/*.json")))
    assert 4 <= stored < 24
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=True)
    assert again.stdout.strip().endswith(f" {24 - stored}")


def processes_of(session):
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


# ---------------------------------------------------------------- workers that must not be used


def loading(case):
    return {"n": len(data.load("digits").y)}


def test_a_worker_with_another_package_version_is_refused_with_both(tmp_path, own):
    fake = tmp_path / "fake" / "timm-0.0.9.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.0.9\n")
    cluster = own()
    cluster.add(PYTHONPATH=str(fake.parent))
    ours = workers.packages()["timm"]
    with pytest.raises(workers.Unfit, match=rf"worker tcp://\S+ has timm 0\.0\.9 where this process has {ours}"):
        sweep.run(noted, [{"a": 1, "log": str(tmp_path / "log")}])
    assert not (tmp_path / "log").exists()


@pytest.fixture
def other_code(tmp_path):
    """A folder with a copy of the library in which one line differs."""
    copy = tmp_path / "other" / "studybook"
    shutil.copytree(ROOT / "lib" / "studybook", copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "metrics.py").open("a") as file:
        file.write("\nMORE = 1\n")
    return str(copy.parent)


def test_a_worker_with_other_library_code_is_refused_with_both(tmp_path, own, other_code):
    cluster = own()
    cluster.add(PYTHONPATH=other_code)
    with pytest.raises(
        workers.Unfit, match=rf"has studybook's code \w{{16}} where this process has {workers.library()}"
    ):
        sweep.run(noted, [{"a": 1, "log": str(tmp_path / "log")}])
    assert not (tmp_path / "log").exists()


def test_a_worker_with_other_code_that_joins_later_measures_nothing(tmp_path, own, other_code):
    cluster = own()
    cluster.add()
    cases = [{"a": a, "log": str(tmp_path / "log")} for a in range(400)]
    late = []

    def slow_and_late(function, items, *rest):
        for outcome in real(function, items, *rest):
            if not late:
                late.append(cluster.add(PYTHONPATH=other_code))
            yield outcome

    with workers.team() as team:
        real = team.outcomes
        with pytest.raises(workers.Unfit, match="has studybook's code"):
            for _ in slow_and_late(functools.partial(sweep._measured, noted_slowly), cases):
                pass


def noted_slowly(case):
    time.sleep(0.05)
    return noted(case)


def test_workers_without_the_data_say_which_set_is_missing(tmp_path, own, monkeypatch):
    for split in ("train", "test"):
        (tmp_path / "sets" / "cifar10").mkdir(parents=True, exist_ok=True)
        write_parquet(tmp_path / "sets" / "cifar10" / f"{split}.parquet", pictures(3, (5, 4, 3)), [0, 1, 0])
    cluster = own()
    cluster.add(STUDYBOOK_DATA=str(tmp_path), STUDYBOOK_CACHE=str(tmp_path / "empty"))
    monkeypatch.setenv("STUDYBOOK_DATA", str(tmp_path / "sets"))
    with pytest.raises(workers.Unfit, match=r"worker tcp://\S+ on \S+ lacks the data set 'cifar10': .*\(0 of 1 cases"):
        sweep.run(loading_cifar, [{"a": 1}], data="cifar10")


def loading_cifar(case):
    return {"n": len(data.load("cifar10", "test").y)}


def test_a_set_that_only_the_workers_have_needs_not_be_here(two, monkeypatch):
    real = data.fingerprint("digits")

    def missing(name):
        raise FileNotFoundError(f"{name} is not here")

    monkeypatch.setattr(data, "fingerprint", missing)
    table = sweep.run(loading, [{"a": 1}], data="digits")
    assert table["n"].tolist() == [1797]
    assert table.attrs["sweep"]["data"] == {"digits": real}


def test_a_worker_whose_data_differ_is_refused(two, monkeypatch):
    monkeypatch.setattr(data, "fingerprint", lambda name: "another")
    with pytest.raises(workers.Unfit, match=r"has another 'digits' \(fingerprint \w+\) than this process \(another\)"):
        sweep.run(loading, [{"a": 1}], data="digits")


def test_a_worker_that_takes_several_cases_at_a_time_is_refused(own):
    cluster = own()
    cluster.add(nthreads=2)
    with pytest.raises(workers.Unfit, match="takes 2 cases at a time.*--nthreads 1"):
        sweep.run(trained, TRAINED)


def test_addresses_where_nobody_answers_and_settings_without_sense_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_ANSWER", 0.5)
    for address, words in (
        ("tcp://127.0.0.1:9", r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 .*start one with `dask scheduler`"),
        ("nonsense://x", "'nonsense://x' is no scheduler's address; give tcp://HOST:8786"),
        ("foo", "'foo' is no scheduler's address; give tcp://HOST:8786"),
        ("nohost.invalid:8786", "no Dask scheduler answers at nohost.invalid:8786 .*start one"),
        ("tls://127.0.0.1:9", "tls://127.0.0.1:9 wants certificates: --tls-ca-file"),
        (str(tmp_path / "none.json"), "there is no scheduler file"),
    ):
        monkeypatch.setenv("STUDYBOOK_SCHEDULER", address)
        with pytest.raises(ConnectionError, match=words):
            sweep.run(trained, TRAINED)
    monkeypatch.setenv("STUDYBOOK_WORKERS", "2")
    with pytest.raises(ValueError, match="set one of the two"):
        sweep.run(trained, TRAINED)
    monkeypatch.delenv("STUDYBOOK_SCHEDULER")
    monkeypatch.delenv("STUDYBOOK_WORKERS")
    for name in ("STUDYBOOK_WORKERS", "STUDYBOOK_THREADS"):
        with monkeypatch.context() as changed:
            changed.setenv(name, "many")
            with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 'many'"):
                sweep.run(trained, TRAINED)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"), workers.local(0):
        pass


def test_a_script_without_a_guard_is_refused_in_one_sentence(tmp_path):
    program = tmp_path / "unguarded.py"
    program.write_text(
        "from studybook import sweep\ndef measure(case):\n    return case\nsweep.run(measure, [{'a': 1}])\n"
    )
    environment = {**os.environ, "STUDYBOOK_WORKERS": "2"}
    run = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "unguarded.py when it starts, which would run the sweep once more: put the lines" in run.stderr
    assert run.stderr.count("Traceback") == 1


# ---------------------------------------------------------------- GPUs

FAKE_GPU = """
    import types
    import torch
    import studybook.workers as workers

    def dask_setup(worker):
        card = worker.name
        workers.device_kind = lambda: "NVIDIA Fake"
        torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid=str(card).partition("-")[0])
"""


@pytest.fixture
def fake_gpu(tmp_path):
    """Words that make a worker believe in a GPU, whose id is the first part of the worker's name."""
    (tmp_path / "fake_gpu.py").write_text(textwrap.dedent(FAKE_GPU))
    return ["--preload", str(tmp_path / "fake_gpu.py"), "--resources", "GPU=1"]


def test_cases_go_to_workers_with_a_gpu_only_and_their_rows_say_so(own, fake_gpu):
    cluster = own()
    cluster.add()
    cluster.add(*fake_gpu, "--name", "card1")
    wait_for(lambda: present(cluster) == 2)
    with workers.team() as team:
        assert team.device == "NVIDIA Fake"
        assert team.resources == {"GPU": 1}
        assert team.size == 1
    table = sweep.run(trained, TRAINED)
    assert {json.loads(machine)["device"] for machine in table.attrs["sweep"]["measured"]} == {"NVIDIA Fake"}
    assert table.attrs["sweep"]["computed"] == len(TRAINED)


def test_two_workers_on_one_card_are_refused_unless_asked_for(own, fake_gpu, monkeypatch):
    cluster = own()
    cluster.add(*fake_gpu, "--name", "card1-a")
    cluster.add(*fake_gpu, "--name", "card1-b")
    wait_for(lambda: present(cluster) == 2)
    with pytest.raises(workers.Unfit, match=r"measure on one card \(NVIDIA Fake, card1\); start one worker a card"):
        sweep.run(trained, TRAINED)
    monkeypatch.setenv("STUDYBOOK_SHARE_GPU", "1")
    assert len(sweep.run(trained, TRAINED)) == len(TRAINED)


def present(cluster):
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        return len(client.scheduler_info()["workers"])


def test_workers_of_different_devices_are_refused(own, fake_gpu, tmp_path):
    other = tmp_path / "other_gpu.py"
    other.write_text((tmp_path / "fake_gpu.py").read_text().replace("NVIDIA Fake", "NVIDIA Other"))
    cluster = own()
    cluster.add(*fake_gpu, "--name", "card1")
    cluster.add("--preload", str(other), "--resources", "GPU=1", "--name", "card2")
    wait_for(lambda: present(cluster) == 2)
    with pytest.raises(workers.Unfit, match=r"different devices \(NVIDIA Fake, NVIDIA Other\)"):
        sweep.run(trained, TRAINED)


def test_each_local_worker_has_one_card_to_itself(monkeypatch):
    monkeypatch.setattr(workers.ensemble, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    too_many = pytest.raises(ValueError, match="3 workers, but this machine has 2 GPUs and a case has one to itself")
    with too_many, workers.local(3):
        pass
    with workers.local(2) as address:
        from distributed import Client

        with Client(address, set_as_default=False) as client:
            seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
            resources = [one["resources"] for one in client.scheduler_info()["workers"].values()]
    assert sorted(seen.values()) == ["3", "5"]
    assert resources == [{"GPU": 1}, {"GPU": 1}]


# ---------------------------------------------------------------- what it costs


def test_the_cost_model_is_bound_by_the_worker_or_by_the_one_process_that_feeds_all():
    costs = workers.Costs(latency=0.25, serial=0.001, setup=0.0)
    assert workers.efficiency(costs, 1, 1.0) == pytest.approx(0.8)  # 1 s of every 1.25 s
    assert workers.efficiency(costs, 1250, 1.0) == pytest.approx(0.8)  # a case a millisecond
    assert workers.efficiency(costs, 2500, 1.0) == pytest.approx(0.4)
    assert workers.most_workers(costs, 1.0) == 1250
    assert workers.most_workers(costs, 100.0) == 125_000
    assert workers.most_workers(costs, 0.9) == 0  # not even one worker is busy enough
    late = costs._replace(setup=12.5)
    assert workers.efficiency(late, 10, 1.0, cases=100.0) == pytest.approx(0.4)  # half the time is set-up


@pytest.mark.parametrize("seconds", [0.5, 2.0, 30.0])
def test_the_largest_count_of_workers_is_the_last_that_is_busy_enough(seconds):
    costs = workers.Costs(latency=0.004, serial=0.0013, setup=0.3)
    count = workers.most_workers(costs, seconds)
    assert workers.efficiency(costs, count, seconds) >= 0.8 > workers.efficiency(costs, count + 1, seconds)


# ---------------------------------------------------------------- TLS


def test_workers_of_this_machine_listen_on_loopback_only():
    import psutil

    with workers.local(1):
        me = psutil.Process()
        found = [
            connection.laddr.ip
            for process in [me, *me.children(recursive=True)]
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert len(found) >= 4  # scheduler and dashboard, nanny, worker
    assert {address for address in found if not address.startswith("127.") and address != "::1"} == set()


def test_tls_with_real_certificates(tmp_path, own, monkeypatch):
    trustme = pytest.importorskip("trustme")
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, ca in (("mine", authority), ("foreign", stranger)):
        made = ca.issue_cert("127.0.0.1", "localhost")
        made.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    flags = [
        f"--tls-{what}={tmp_path / file}.pem" for what, file in (("ca-file", "ca"), ("cert", "mine"), ("key", "mine"))
    ]
    cluster = own(scheme="tls", flags=flags)
    assert cluster.address.startswith("tls://127.0.0.1:")
    cluster.add()
    from dask.config import set as configured

    def certificates(name):
        pem = str(tmp_path / f"{name}.pem")
        return configured({
            "distributed.comm.tls.ca-file": str(tmp_path / "ca.pem"),
            "distributed.comm.tls.client.cert": pem,
            "distributed.comm.tls.client.key": pem,
        })  # fmt: skip

    with certificates("mine"):
        assert len(sweep.run(trained, TRAINED)) == len(TRAINED)
    monkeypatch.setattr(workers, "_ANSWER", 3.0)
    with certificates("foreign"), pytest.raises(ConnectionError, match="no Dask scheduler answers at tls://"):
        sweep.run(trained, TRAINED[:1])
