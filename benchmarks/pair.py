"""Two ways to one answer, each in a process of its own, run in turn: A B A B ..., so that both see the same machine."""

import contextlib
import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from tqdm import tqdm

MIB = 2**20
ROOM = 64  # MiB that libraries may keep for themselves, whatever the input
SLOW = 5.0  # seconds: a first pair that is slower counts, since a warm-up would cost more than it shows

Size = Mapping[str, int]


class Benchmark(NamedTuple):
    """What is timed. Functions are at module level, since the two processes import them by name.

    `setup(**size)` makes the same data in both processes; `ours(data)` and `theirs(data)` are timed, and what they give
    goes through `answer(data, given)`, outside the clock, to become the arrays that `same(ours, theirs)` compares; it
    raises AssertionError where they differ.
    """

    name: str
    peer: str  # what one would use instead
    setup: Callable[..., Any]
    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]
    answer: Callable[[Any, Any], Any]
    same: Callable[[Any, Any], None]
    size: Size  # of the target
    small: Size  # for tests, and to load libraries before memory is counted
    target: float | None = None  # the least ratio of the peer's seconds to ours
    share: float | None = None  # the least share of `limit` that ours is to reach
    axes: Mapping[str, tuple[Size, ...]] = {}  # sizes along one axis, for the scaling curves
    limit: str | None = None  # the measured rate (of `limits`) that bounds ours
    work: Callable[..., float] | None = None  # of size: products, bytes or pictures that the answer needs at least
    memory: float = 1.0  # most that ours may add to the memory of the input, as a multiple of it ...
    room: float = ROOM  # ... and MiB besides
    pairs: int = 5


class Side(NamedTuple):
    """One side's seconds, its peak memory beyond the input in MiB (NaN if unknown), and why it stopped, if it did."""

    seconds: list[float]
    peak: float
    stopped: str


class Result(NamedTuple):
    """One benchmark at one size."""

    ours: Side
    peer: Side
    given: float  # MiB of input

    def ratios(self) -> list[float]:
        """The peer's seconds over ours, pair by pair; above 1 ours is faster."""
        return [peer / ours for ours, peer in zip(self.ours.seconds, self.peer.seconds, strict=False)]

    def middle(self) -> tuple[float, float, float]:
        """Median seconds of ours, of the peer, and the median ratio; NaN where there is none."""
        ours, peer, ratio = (
            statistics.median(some or [math.nan]) for some in (self.ours.seconds, self.peer.seconds, self.ratios())
        )
        return ours, peer, ratio


class Limits(NamedTuple):
    """When a side is stopped: seconds of one run, MiB of its process; and seconds after which no pair is begun."""

    seconds: float = 120.0
    memory: float = 0.75 * psutil.virtual_memory().total / MIB
    together: float = 90.0


def compare(
    benchmark: Benchmark,
    size: Size,
    limits: Limits | None = None,
    pairs: int | None = None,
    skip: Sequence[str] = (),
) -> Result:
    """Runs both sides in turn after one uncounted pair (which counts if one of its runs takes over five seconds).

    `skip` names sides, "ours" or "peer", that are not run since a smaller size was too much for them.

    A side that is stopped leaves the other to go on alone; that is a result, not an error. Raises AssertionError where
    the answers differ, RuntimeError, with the traceback, where a side fails, and FileNotFoundError for missing data.
    """
    limits, pairs = limits or Limits(), pairs or benchmark.pairs
    begun = time.perf_counter()
    with contextlib.ExitStack() as entered:
        runs = {"ours": benchmark.ours, "peer": benchmark.theirs}
        sides = [
            entered.enter_context(_started(benchmark, run, size, limits)) if name not in skip else _Process(limits)
            for name, run in runs.items()
        ]
        for turn in tqdm(range(pairs + 1), benchmark.name, delay=2, leave=False):
            answers = [side.run() for side in sides]
            if not any(side.stopped for side in sides):
                benchmark.same(*answers)
            if turn == 0 and max((one for side in sides for one in side.seconds), default=0.0) <= SLOW:
                for side in sides:
                    side.seconds.clear()
            counted = [len(side.seconds) for side in sides if not side.stopped]
            late = time.perf_counter() - begun > limits.together
            if not counted or min(counted) >= (1 if late else pairs):
                break
        return Result(*(Side(side.seconds, side.peak, side.stopped) for side in sides), max(s.given for s in sides))


class _Process:
    """One side's process, which does what it is told over a pipe."""

    def __init__(self, limits: Limits, process: Any = None, pipe: Connection | None = None) -> None:
        self.process, self.pipe, self.limits = process, pipe, limits
        self.seconds: list[float] = []
        self.peak, self.given, self.stopped = math.nan, 0.0, ""
        if process is None:
            self.stopped = "too slow"  # at a smaller size already
        elif (ready := self.hear(math.inf)) is not None:
            self.given = ready

    def run(self) -> Any:
        """The answer of one run, or None if the side is stopped."""
        if self.stopped:
            return None
        self.pipe.send("run")
        if (heard := self.hear(self.limits.seconds)) is None:
            return None
        seconds, self.peak, answer = heard
        self.seconds.append(seconds)
        return answer

    def hear(self, patience: float) -> Any:
        """What the process sends next; None once it is stopped, for time or memory."""
        end, watched = time.perf_counter() + patience, psutil.Process(self.process.pid)
        while not self.pipe.poll(0.1):
            used = _resident(watched)
            if used > self.limits.memory:
                self.stop(f"over {self.limits.memory / 1024:.0f} GiB")
            elif time.perf_counter() > end:
                self.stop(f"over {self.limits.seconds:.0f} s")
            elif not self.process.is_alive() and not self.pipe.poll():
                self.stop("died")
            if self.stopped:
                return None
        try:
            kind, value = self.pipe.recv()
        except EOFError:
            kind, value = "failed", f"it ended with exit code {self.process.exitcode}"
        if kind == "memory":
            self.stop("out of memory")
            return None
        if kind == "missing":
            raise FileNotFoundError(value)
        if kind == "failed":
            raise RuntimeError(f"one side failed:\n{value}")
        return value

    def stop(self, why: str) -> None:
        self.stopped = why
        self.process.kill()
        self.process.join()


def scratch(process: int | None = None) -> Path:
    """A folder for what one side writes, which goes when the side ends."""
    return Path(tempfile.gettempdir(), f"studybook-bench-{process or os.getpid()}")


@contextlib.contextmanager
def _started(benchmark: Benchmark, run: Callable, size: Size, limits: Limits) -> Iterator[_Process]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, benchmark._replace(work=None), run, size), daemon=False)
    process.start()
    there.close()
    try:
        yield _Process(limits, process, here)
    finally:
        process.kill()
        process.join()
        shutil.rmtree(scratch(process.pid), ignore_errors=True)


def _serve(pipe: Connection, benchmark: Benchmark, run: Callable, size: Size) -> None:
    """The life of one side's process: load, make the data, and run whenever told to."""
    try:
        small = benchmark.setup(**benchmark.small)
        benchmark.answer(small, run(small))  # libraries are loaded
        del small
        data = benchmark.setup(**size)
        pipe.send(("ready", _bytes(data) / MIB))
        base = _resident(psutil.Process())
        while True:
            pipe.recv()
            _forget_peak()
            start = time.perf_counter()
            given = run(data)
            seconds = time.perf_counter() - start
            peak = _peak() - base
            pipe.send(("ran", (seconds, peak, benchmark.answer(data, given))))
            del given
    except (EOFError, KeyboardInterrupt):
        return
    except FileNotFoundError as error:
        pipe.send(("missing", str(error)))
    except MemoryError:
        pipe.send(("memory", None))
    except BaseException as error:  # whatever it is, the parent says it
        if "not enough memory" in str(error):  # torch's allocator
            pipe.send(("memory", None))
        else:
            pipe.send(("failed", traceback.format_exc()))


def _resident(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / MIB
    except psutil.NoSuchProcess:
        return 0.0


def _forget_peak() -> None:
    """The system begins anew to note the most memory that this process has had (Linux only)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Most resident memory since `_forget_peak`, MiB; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _bytes(data: Any) -> int:
    """Bytes of all tensors and arrays in (nested) tuples, lists and dicts, and of files."""
    if isinstance(data, torch.Tensor | np.ndarray):
        return data.nbytes
    if isinstance(data, bytes):
        return len(data)
    if isinstance(data, Path):
        return data.stat().st_size
    if isinstance(data, Mapping):
        return sum(map(_bytes, data.values()))
    if isinstance(data, torch.nn.Module):
        return sum(map(_bytes, data.state_dict().values()))
    return sum(map(_bytes, data)) if isinstance(data, tuple | list) else 0
