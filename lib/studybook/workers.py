"""Where cases are measured: in this process, or on Dask workers that this process only feeds.

Dask distributed does the scheduling: https://distributed.dask.org. Three settings choose, in the environment of the
`studybook` command or of a notebook that was opened by hand:

STUDYBOOK_SCHEDULER   a scheduler that is there: tcp://HOST:8786, tls://HOST:8786 or the scheduler file it wrote
STUDYBOOK_WORKERS     how many workers to start on this machine, for as long as this process lives
STUDYBOOK_THREADS     threads of a case; its machine's cores // workers, unless given

A scheduler runs whatever anybody who reaches it sends: open ones belong on loopback or a network of your own, others
behind TLS. Cases share their process's random state and threads, so a worker takes one case at a time.
"""

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import queue
import re
import signal
import socket
import sys
import sysconfig
import time
import traceback
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from studybook import ensemble, published

if TYPE_CHECKING:
    from distributed import Client

PACKAGES = ("torch", "timm", "numpy", "scipy", "scikit-learn")
IN_FLIGHT = 500  # cases handed to the scheduler at once, or four per worker if that is more: memory stays bounded
_ANSWER = 15.0  # seconds that a scheduler has to answer
_CACHED = type(functools.cache(int))
_CARRIERS = ("python", "dask", "distributed", "cloudpickle")  # what code and rows travel through


class Unfit(RuntimeError):
    """Workers that must not measure this sweep: other versions or code, missing data, several threads."""


class Lost(RuntimeError):
    """The scheduler went away, or this process's connection to it."""


class Outcome(NamedTuple):
    """What became of one case: its value, or the traceback of what it raised; and on which worker ("": here)."""

    index: int
    value: Any
    failure: str | None
    worker: str


# ---------------------------------------------------------------- this process


def packages() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def library() -> str:
    """A digest of the library's files as they are: 16 hexadecimal digits."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()[:16]


def device_kind() -> str:
    """`cpu`, or the name of the GPU that `ensemble.device` chose."""
    where = ensemble.device()
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def machine() -> dict[str, Any]:
    """Processor, cores in use, device and memory (GiB) of this machine."""
    return {**_hardware(), "cores": torch.get_num_threads(), "device": device_kind()}


@functools.cache
def _hardware() -> dict[str, Any]:
    import psutil

    name = platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return {"processor": name, "memory": round(psutil.virtual_memory().total / 2**30)}


def cores() -> int:
    """Cores that this process may use: affinity and a container's share count."""
    from dask.system import cpu_count

    return cpu_count()


def limit_threads(count: int) -> None:
    """Lets torch and every BLAS that is loaded use `count` threads in this process."""
    import threadpoolctl

    torch.set_num_threads(count)
    threadpoolctl.threadpool_limits(count)


def threads_asked() -> int | None:
    """STUDYBOOK_THREADS, if set; ValueError unless it is a positive whole number."""
    return _number("STUDYBOOK_THREADS")


def here(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Outcome]:
    """The outcome of every item, one after another, in this process."""
    if count := threads_asked():
        limit_threads(count)
    for i, item in enumerate(items):
        try:
            outcome = Outcome(i, function(item), None, "")
        except Exception:
            outcome = Outcome(i, None, traceback.format_exc(), "")
        yield outcome


# ---------------------------------------------------------------- workers


@contextlib.contextmanager
def team(say: Callable[[str], None] = lambda words: None) -> Iterator["Team | None"]:
    """The workers that the environment asks for, checked; None where it asks for none.

    Raises Unfit, ConnectionError if no scheduler answers, ImportError if Dask is not installed and ValueError for
    settings that make no sense. `say` hears what is waited for.
    """
    address, count = os.environ.get("STUDYBOOK_SCHEDULER"), _number("STUDYBOOK_WORKERS")
    if not address and not count:
        yield None
        return
    if address and count:
        raise ValueError("STUDYBOOK_WORKERS starts workers here, STUDYBOOK_SCHEDULER uses others: set one of the two")
    with contextlib.closing(_client(address or _kept_cluster(count))) as client:
        yield Team(client, say)


# Dask gives up a worker that is not there 15 s after it died, though a new one may take longer to start on a busy
# machine, or have died again; then nobody is left to measure
_PATIENCE = {"distributed.deploy.lost-worker-timeout": "300 days"}


@contextlib.contextmanager
def local(count: int, threads: int | None = None, share_gpu: bool = False) -> Iterator[str]:
    """The address of a scheduler on loopback with `count` workers of this machine, gone at the end.

    Where torch sees GPUs each worker has one to itself; ValueError for more workers than GPUs unless `share_gpu`.
    `threads` are those of a case, cores // count unless given.
    """
    if count < 1:
        raise ValueError(f"workers must be at least 1, got {count}")
    _need_dask()
    import dask
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    threads = threads or max(1, cores() // count)
    cards = torch.cuda.device_count() if ensemble.device().type == "cuda" else 0
    if cards and count > cards and not share_gpu:
        raise ValueError(
            f"{count} workers, but this machine has {cards} GPU{'s' * (cards > 1)} and a case has one to itself; "
            "ask for fewer workers, or let cases share a card with --share-gpu (STUDYBOOK_SHARE_GPU=1)"
        )
    limits = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    specs = {}
    for i in range(count):
        card = {"CUDA_VISIBLE_DEVICES": _visible(i % cards)} if cards else {}
        options = {
            "nthreads": 1,
            "memory_limit": MEMORY_LIMIT // count,
            "resources": {"GPU": 1} if cards else {},
            "env": {**limits, **card, "STUDYBOOK_SCHEDULER": "", "STUDYBOOK_WORKERS": ""},
            "host": "127.0.0.1",
            "dashboard": False,
        }
        specs[i] = {"cls": Nanny, "options": options}
    spawning = {**limits, "DASK_LOGGING__DISTRIBUTED": "warning", "TQDM_DISABLE": "1"}  # bars of cases, all at once
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    with contextlib.ExitStack() as stack:
        with _interrupts_held():
            stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": spawning, **_PATIENCE}))
            cluster = SpecCluster(workers=specs, scheduler=scheduler, asynchronous=False)
            stack.callback(cluster.close)
        yield cluster.scheduler_address


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C reaches this process when the block ends, and never the threads and processes that start in it: a terminal
    sends it to all, and each worker would print a traceback of its own."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # to start it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Team:
    """The workers of one scheduler, all fit to measure the same thing."""

    device: str  # the kind of device that cases are measured on
    threads: int  # of a case
    size: int  # workers when the team was asked
    resources: Mapping[str, int]  # what a case asks for
    dashboard: str  # the address of the scheduler's web pages, "" if it has none

    def __init__(self, client: "Client", say: Callable[[str], None]) -> None:
        self.client = client
        self.dashboard = client.dashboard_link if client.scheduler_info()["services"].get("dashboard") else ""
        found = self._survey(say)
        using = [one for one in found.values() if one["gpu"] and one["device"] != "cpu"]
        self.resources = {"GPU": 1} if using else {}
        using = using or list(found.values())
        kinds = sorted({one["device"] for one in using})
        if len(kinds) > 1:
            raise Unfit(f"the workers measure on different devices ({', '.join(kinds)}), which round differently")
        self.device = kinds[0]
        asked = os.environ.get("STUDYBOOK_DEVICE", "")
        if asked and asked.startswith("cpu") != (self.device == "cpu"):
            raise Unfit(f"STUDYBOOK_DEVICE={asked} here, but the workers measure on {self.device}: set it for them too")
        self.threads = threads_asked() or _threads(using)
        self.size = len(using)

    def describe(self) -> str:
        """How many workers there are, with how many threads and what device, and where to watch them."""
        each = f"{self.threads} thread{'s' * (self.threads > 1)} each, {self.device}"
        return f"{self.size} worker{'s' * (self.size > 1)}, {each}; dashboard: {self.dashboard or 'none'}"

    def outcomes(
        self, function: Callable[[Any], Any], items: Sequence[Any], data: Mapping[str, str] | None = None,
        tick: Callable[[str], None] = lambda words: None,
    ) -> Iterator[Outcome]:  # fmt: skip
        """The outcome of every item as it comes, begun in the order given.

        `function` travels by value, once; each worker takes what it holds from the first that has it. `data` are
        fingerprints that the sets must have on every worker. `tick` is called about twice a second with what there
        is to say of the workers. A case whose worker dies goes to another one, three times at most; one that raises
        does not. Dask blames a death on every case that was sent to the worker, also on those that had not begun: if
        several are given up, each is tried again when nothing else is under way. Raises Unfit for a worker that cannot
        measure this, and Lost when the scheduler is gone.
        """
        label = f"{getattr(function, '__name__', 'case')}-{uuid.uuid4().hex[:8]}"
        terms = {
            **_self(), "device": self.device, "threads": self.threads, "data": dict(data or {}), "label": label
        }  # fmt: skip
        # a task rather than scattered data, which nothing brings back once the worker that holds it has died
        with _quiet():
            code = self.client.submit(bytes, _pickled(function), key=f"code-{label}", pure=False)
        measure = functools.partial(self._measured, code=code, terms=terms, tick=tick)
        killed = []
        for outcome in measure(dict(enumerate(items))):
            if outcome.failure and outcome.failure.startswith(KILLED):
                killed.append(outcome)
            else:
                yield outcome
        if len(killed) == 1:
            yield killed[0]
        else:
            for i, *_ in killed:
                yield from measure({i: items[i]}, again=True)

    def _measured(
        self, items: Mapping[int, Any], code: Any, terms: Mapping[str, Any], tick: Callable[[str], None],
        again: bool = False,
    ) -> Iterator[Outcome]:  # fmt: skip
        """The outcomes of some cases by index, as they come; `again` when they have been given up once."""
        label = terms["label"] + "-again" * again
        done: queue.SimpleQueue = queue.SimpleQueue()
        waiting: dict[Any, tuple[int, Any]] = {}
        keys, begun, looked, count = list(items), 0, time.monotonic(), self.size
        try:
            while begun < len(items) or waiting:
                room = max(IN_FLIGHT, 4 * count)
                if len(waiting) <= room // 2 and begun < len(items):
                    some = keys[begun : begun + room - len(waiting)]
                    begun += len(some)
                    futures = self.client.map(
                        _task, [items[i] for i in some], code=code, terms=terms, key=[(label, i) for i in some],
                        pure=False, resources=self.resources or None,
                    )  # fmt: skip
                    for i, future in zip(some, futures, strict=True):
                        waiting[future.key] = (i, future)
                        future.add_done_callback(done.put)
                    del futures, future
                if time.monotonic() - looked > 2:
                    looked, count = time.monotonic(), self._count()
                lost = f" of {self.size}" * (count < self.size)
                tick(f"{count}{lost} worker{'s' * (max(count, self.size) > 1)}" if count else "waiting for workers")
                yield from self._gathered(_drained(done), waiting)
        finally:
            rest = [future for _, future in waiting.values()]
            if rest and self.client.status == "running":
                with contextlib.suppress(Exception):
                    self.client.cancel(rest, force=True)

    def fingerprints(self, names: Sequence[str]) -> dict[str, str]:
        """Fingerprints of sets as a worker has them, for a machine without them; Unfit if that has none either."""
        try:
            return self.client.submit(_fingerprints, tuple(names), pure=False, priority=10).result()
        except (FileNotFoundError, ValueError) as error:
            raise Unfit(f"a data set is missing here and on a worker: {error}") from None

    def _gathered(self, futures: list, waiting: dict) -> Iterator[Outcome]:
        finished = []
        for future in futures:
            if future.status == "finished":
                finished.append(future)
                continue
            i, _ = waiting.pop(future.key)
            if future.status == "cancelled":
                raise self._lost()
            yield Outcome(i, None, _died(future), "")
        try:
            answers = self.client.gather(finished)
        except Exception as error:
            if self.client.status == "running" and not isinstance(error, OSError | CancelledError):
                raise
            raise self._lost() from error
        for future, (kind, value, worker) in zip(finished, answers, strict=True):
            i, _ = waiting.pop(future.key)
            if kind == "unfit":
                raise Unfit(f"worker {worker} {value}")
            yield Outcome(i, *((value, None) if kind == "value" else (None, value)), worker)

    def _lost(self) -> Lost:
        return Lost(f"the Dask scheduler at {self.client.scheduler.address} went away")

    def _count(self) -> int:
        try:
            return self.client.scheduler_info(n_workers=0)["n_workers"]
        except Exception as error:
            raise self._lost() from error

    def _survey(self, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
        """What each worker says of itself; Unfit, with both versions, if one is not like this process."""
        client = self.client
        began = said = time.monotonic()
        while not (known := client.scheduler_info()["workers"]):
            if said == began or time.monotonic() - said > 60:
                said = time.monotonic()
                where = client.scheduler.address
                say(f"waiting for workers ({said - began:.0f} s): dask worker {where} --nthreads 1 starts one")
            time.sleep(0.2)
        ours = _self()
        versions = client.get_versions(packages=["studybook", *PACKAGES])
        if trouble := _differences({**_plain(versions["scheduler"])}, ours, ("dask", "distributed")):
            raise Unfit(f"the scheduler at {client.scheduler.address} {trouble}")
        for address, theirs in versions["workers"].items():
            if trouble := _differences(_plain(theirs), ours, (*_CARRIERS, *PACKAGES, "studybook")):
                raise Unfit(f"worker {address} {trouble}")
        found = client.run(_passport, on_error="return")
        cards: dict[str, str] = {}
        for address, theirs in found.items():
            if isinstance(theirs, BaseException):
                raise Unfit(f"worker {address} cannot use this library ({type(theirs).__name__}: {theirs})")
            if trouble := _differences(theirs, ours) or _crowded(theirs):
                raise Unfit(f"worker {address} {trouble}")
            theirs["gpu"] = known.get(address, {}).get("resources", {}).get("GPU", 0) >= 1
            if (card := theirs["card"]) in cards and card and os.environ.get("STUDYBOOK_SHARE_GPU") != "1":
                raise Unfit(
                    f"workers {cards[card]} and {address} measure on one card ({theirs['device']}, {card}); start one "
                    "worker a card (dask cuda worker does), or let cases share it with STUDYBOOK_SHARE_GPU=1"
                )
            cards[card] = address
        return found


# ---------------------------------------------------------------- what it costs


class Costs(NamedTuple):
    """Seconds that a case costs beside its own measuring."""

    latency: float  # on its worker
    serial: float  # of the submitting process or the scheduler, whichever is more: no two cases at once
    setup: float  # of a whole sweep


def efficiency(costs: Costs, count: int, seconds: float, cases: float = math.inf) -> float:
    """The share of `count` workers' time that goes into measuring, for cases of `seconds` each.

    Workers wait for one another only at the submitting process and the scheduler; that they may also share cores,
    memory bandwidth or a disk is left out.
    """
    each = max((seconds + costs.latency) / count, costs.serial)
    return seconds / count / (each + costs.setup / cases)


def most_workers(costs: Costs, seconds: float, wanted: float = 0.8) -> int:
    """The largest count whose `efficiency` on a long sweep is at least `wanted`; 0 if there is none."""
    if seconds < wanted * (seconds + costs.latency):
        return 0
    return math.floor(seconds / (wanted * costs.serial))


# ---------------------------------------------------------------- on the worker

KILLED = "KilledWorker: "  # how the failure of a case begins whose workers died
_LOADED: dict[str, Callable] = {}  # functions that came by value, by the label of their sweep


def _task(item: Any, code: bytes, terms: dict[str, Any]) -> tuple[str, Any, str]:
    """One case on a worker: ("value", value, worker), ("failure", traceback, worker) or ("unfit", why, worker)."""
    import cloudpickle
    from distributed import get_worker

    worker = get_worker()
    where = f"{worker.address} on {socket.gethostname()}"
    try:
        if terms["label"] not in _LOADED:
            if trouble := _trouble(_passport(worker), terms):
                return "unfit", trouble, where
            limit_threads(terms["threads"])
            while len(_LOADED) > 7:  # sweeps that are long over
                _LOADED.pop(next(iter(_LOADED)))
            _LOADED[terms["label"]] = cloudpickle.loads(code)
        return "value", _LOADED[terms["label"]](item), where
    except Exception:
        return "failure", traceback.format_exc(), where


def _trouble(passport: Mapping[str, Any], terms: Mapping[str, Any]) -> str:
    """Why this worker must not measure, "" if it may: it may have joined after the others were asked."""
    if trouble := _differences(passport, terms) or _crowded(passport):
        return trouble
    if passport["device"] != terms["device"]:
        return f"measures on {passport['device']}, the others on {terms['device']}, which rounds differently"
    return _data_trouble(terms["data"])


def _passport(dask_worker: Any) -> dict[str, Any]:
    """What a worker says of itself."""
    card = str(torch.cuda.get_device_properties(ensemble.device()).uuid) if device_kind() not in ("cpu", "mps") else ""
    return {
        **_self(),
        "host": socket.gethostname(),
        "cores": cores(),
        "bound": _bound_cores(),
        "slots": dask_worker.state.nthreads,
        "device": device_kind(),
        "card": card,
    }


def _bound_cores() -> list[int]:
    """The cores that this process may run on: a part of the machine's where a batch system has bound it."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores()))


def _threads(passports: Sequence[Mapping[str, Any]]) -> int:
    """Threads that every worker can use without taking another's cores: one number, so that results do not depend on
    which worker measures."""
    hosts: dict[str, list] = {}
    for one in passports:
        hosts.setdefault(one["host"], []).append(one)
    shares = []
    for ones in hosts.values():
        quota = [one["cores"] for one in ones if one["cores"] < len(one["bound"])]  # a container may have fewer
        total = max(quota) if quota else len({core for one in ones for core in one["bound"]})
        shares.append(total // len(ones))
    return max(1, min(shares))


def _self() -> dict[str, str]:
    """Versions that must be the same on both sides."""
    from studybook import __version__

    carriers = {name: importlib.metadata.version(name) for name in _CARRIERS[1:]}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **carriers, **packages(), "studybook": __version__, "library": library()}


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Every version that differs, both sides, as the end of a sentence; "" if none does."""
    names = names or (*_CARRIERS, *PACKAGES, "studybook", "library")
    words = {"library": "studybook's code"}
    found = [
        f"{words.get(name, name)} {theirs.get(name) or 'missing'} where this process has {ours[name]}"
        for name in names
        if theirs.get(name) != ours[name]
    ]
    cure = "; install the same requirements.lock and check out the same commit on both"
    return f"has {', '.join(found)}{cure}" if found else ""


def _crowded(passport: Mapping[str, Any]) -> str:
    if passport["slots"] == 1:
        return ""
    return (
        f"takes {passport['slots']} cases at a time, which would share one random state; "
        f"start it with --nthreads 1 (and --nworkers {passport['slots']} for as many cases)"
    )


def _data_trouble(data: Mapping[str, str]) -> str:
    for name, mark in data.items():
        try:
            found = published.mark(name)
        except Exception as error:  # whatever keeps a set from being read: no case could run here
            return f"lacks the data set {name!r}: {error}"
        if found != mark:
            return f"has another {name!r} (fingerprint {found}) than this process ({mark})"
    return ""


def _fingerprints(names: Sequence[str]) -> dict[str, str]:
    return {name: published.mark(name) for name in names}


# ---------------------------------------------------------------- connections


def _client(address: str) -> "Client":
    _need_dask()
    from distributed import Client

    where = _answering(address)
    try:
        with _quiet():
            return Client(where, timeout=_ANSWER, set_as_default=False, asynchronous=False)
    except (OSError, TimeoutError, TypeError, ValueError, RuntimeError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address} ({_reason(error)}); it may be something else that listens there, "
            "speak another protocol or not know this machine's certificate"
        ) from None


def _answering(address: str) -> str:
    """The address behind a setting, once something listens there: at once, with the reason, if nothing does."""
    import dask

    where = address
    if address.endswith(".json"):
        try:
            where = json.loads(Path(address).read_text())["address"]
        except (OSError, ValueError, KeyError) as error:
            raise ConnectionError(
                f"there is no scheduler file {address} ({_reason(error)}); `dask scheduler --scheduler-file` writes it"
            ) from None
    parts = re.fullmatch(r"(?:(tcp|tls|ucx|ws|wss)://)?(\[[\da-fA-F:]+\]|[^\s:/]+):(\d+)", where)
    if not parts:
        raise ConnectionError(
            f"{address!r} is no scheduler's address; give tcp://HOST:8786, tls://HOST:8786 or a scheduler file"
        )
    settings = [dask.config.get(f"distributed.comm.tls.{name}") for name in ("ca-file", "client.cert")]
    if parts[1] == "tls" and not all(settings):
        raise ConnectionError(
            f"{address} wants certificates: --tls-ca-file, --tls-cert and --tls-key "
            "(or DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ...__CLIENT__CERT and ...__CLIENT__KEY)"
        )
    try:
        socket.create_connection((parts[2].strip("[]"), int(parts[3])), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address} ({_reason(error)}); start one with `dask scheduler`, "
            "or measure without --scheduler (STUDYBOOK_SCHEDULER)"
        ) from None
    return where


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@functools.cache
def _kept_cluster(count: int) -> str:
    """A cluster of this process's own, for a notebook opened by hand; it ends with the process."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file and Path(file).suffix == ".py" and "__name__" not in Path(file).read_text():
        raise RuntimeError(
            f"each worker imports {file} when it starts, which would run the sweep once more: put the lines that "
            'run it under `if __name__ == "__main__":`'
        )
    stack = contextlib.ExitStack()
    address = stack.enter_context(local(count, threads_asked(), os.environ.get("STUDYBOOK_SHARE_GPU") == "1"))
    atexit.register(stack.close)
    return address


def _need_dask() -> None:
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise ImportError('sweeps on workers need Dask: pip install -e ".[cluster]"') from None
    logging.getLogger("distributed").setLevel(logging.WARNING)
    for name in ("client", "core", "utils", "scheduler", "nanny"):  # what they would log, our errors say
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)


def _visible(card: int) -> str:
    """How a worker is told its card: the n-th of those that this process may see."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return seen[card] if seen else str(card)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {text!r}")
    return int(text)


def _pickled(function: Callable) -> bytes:
    """`function` with the code of its own module, whatever that is: a worker need not be able to import it."""
    import cloudpickle

    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.args[0] if inner.args and callable(inner.args[0]) else inner.func
    home = sys.modules.get(getattr(inner, "__module__", None) or "")
    travels = home is not None and _own(home)

    class Pickler(cloudpickle.CloudPickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, _CACHED) and value.__module__ in ("__main__", inner.__module__):
                return _cached, (value.__wrapped__, value.cache_parameters())  # else it would travel by name
            return super().reducer_override(value)

    out = io.BytesIO()
    if travels:
        cloudpickle.register_pickle_by_value(home)
    try:
        Pickler(out).dump(function)
    finally:
        if travels:
            cloudpickle.unregister_pickle_by_value(home)
    return out.getvalue()


def _own(module: types.ModuleType) -> bool:
    """Whether a module is the user's, neither installed nor the library's nor Python's."""
    file = getattr(module, "__file__", None)
    if not file or module.__name__.split(".")[0] in ("studybook", "__main__"):
        return False
    installed = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(Path(file).resolve().is_relative_to(Path(folder).resolve()) for folder in installed)


def _cached(function: Callable, parameters: Mapping[str, Any]) -> Callable:
    return functools.lru_cache(**parameters)(function)


def _plain(versions: Mapping[str, Any]) -> dict[str, Any]:
    """One machine's versions as Dask tells them, Python's as 3.11."""
    found = dict(versions["packages"])
    return {**found, "python": ".".join(found["python"].split(".")[:2])}


def _drained(done: queue.SimpleQueue) -> list:
    """What has finished; waits half a second for the first."""
    found = []
    with contextlib.suppress(queue.Empty):
        found.append(done.get(timeout=0.5))
        while True:
            found.append(done.get_nowait())
    return found


def _died(future: Any) -> str:
    """Why a case has no answer though no code of its own raised: as a rule, its workers died."""
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return (
            f"{KILLED}{error.last_worker.address} and the workers before it died while they measured this case; "
            "as a rule they ran out of memory"
        )
    return "".join(traceback.format_exception(error))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        warnings.filterwarnings("ignore", "Mismatched versions")  # we refuse them, with a sentence of our own
        yield
