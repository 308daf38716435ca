"""From cases to stored rows: each case is measured once, and again only when something it depends on has changed.

A row's key is made of the source of `measure` and of the library code it reaches (docstrings, comments and layout
left out), the case with every global value that `measure` reads, the fingerprint of the data (which stands for the
code that loads them), the versions of the main packages, and the kind of device. Finished cases are written at once
and atomically, so a killed sweep resumes.

A study's committed rows (under `book/results`) are used where they fit; where the code, data or packages behind them
have moved on they are still used, and the table says that it is stale, unless `STUDYBOOK_FRESH` is set.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import io
import json
import linecache
import os
import shutil
import symtable
import sys
import textwrap
import time
import types
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from studybook import data as sets
from studybook import published, workers

if TYPE_CHECKING:
    import pandas as pd

Case = Mapping[str, Any]
_LOADERS = (sets.load, sets.pictures, sets.splits, published.files, published.table, published.tensor)


class Failure(NamedTuple):
    """A case that raised, the worker it raised on ("" for this process) and the traceback."""

    case: dict
    worker: str
    traceback: str


class Failed(RuntimeError):
    """Some cases of a sweep raised; the others are stored. `failures` holds them all."""

    failures: Sequence[Failure] = ()


def run(
    measure: Callable[[Case], Any], cases: Sequence[Case], data: str | Sequence[str] | None = None
) -> "pd.DataFrame":
    """One row or several per case, in the order of `cases`: the case's own columns first, then the measured ones.

    `measure` takes one case (a dict of plain values) and returns a dict, or a list of dicts for several rows; values
    are numbers, strings, or arrays. `data` names the sets that `measure` loads; `()` says that it loads none for
    these cases, though its code could. The global random state of torch and numpy is set from the case, so results
    depend neither on order nor on company. Where the environment names Dask workers (see `studybook.workers`) they do
    the measuring, the longest cases first; this process stores.

    The frame's `attrs["sweep"]` says how many cases were computed, found in the store or taken from committed rows,
    and why those are stale, if they are. A case that raises is noted with its traceback and the rest go on; at the
    end `Failed` names the failures. Raises ValueError, before anything runs, for cases that are not plain or equal
    each other, TypeError for a `measure` whose dependencies cannot be told, and `workers.Unfit` or `workers.Lost` for
    workers that must not be used or are gone; finished rows are stored all the same.
    """
    import pandas as pd

    named = data is not None
    data = (data,) if isinstance(data, str) else tuple(data or ())
    cases = [_plain(case) for case in cases]
    if not cases:
        raise ValueError("cases must hold at least one case, got none")
    if len({_json(case) for case in cases}) < len(cases):
        raise ValueError("cases must differ from each other, but some are equal")
    code, values, loads = reach(measure)
    if loads and not named:
        raise ValueError("measure loads data, so the sweep must name the sets: sweep.run(measure, cases, data=...)")
    with workers.team(_say) as team:
        parts = {
            "measure": measure.__qualname__,
            "code": code,
            "values": values,
            "data": _fingerprints(data, team),
            "packages": workers.packages(),
            "device": team.device if team else workers.device_kind(),
        }
        committed = _read_committed()
        found, tally = _known(parts, cases, committed)
        missing = [i for i in range(len(cases)) if i not in found]
        if missing and os.environ.get("STUDYBOOK_COMPUTE") == "0":
            raise Failed(f"{len(missing)} of {len(cases)} cases are not stored, and this run may compute nothing")
        for name in data if missing and parts["data"] is None else ():
            published.mark(name)  # a missing set is one clear error, not one per case
        if missing:
            expected = _expected(measure, cases, missing, committed)
            _compute(measure, parts, cases, missing, expected, team, found)
            tally["computed"] = len(missing)
    rows = [{**cases[i], **row} for i in range(len(cases)) for row in found[i]["rows"]]
    tally["seconds"] = sum(entry["seconds"] for entry in found.values())
    tally["measured"] = sorted({_json(entry["machine"]) for entry in found.values()})
    table = pd.DataFrame(rows)
    table.attrs["sweep"] = tally
    _collect([{**found[i], "case": cases[i]} for i in range(len(cases))], tally)
    return table


def _known(parts: dict, cases: Sequence[dict], committed: Mapping[str, dict]) -> tuple[dict[int, dict], dict]:
    """Entries that are there already, by the case's index, and the sweep's tally."""
    found: dict[int, dict] = {}
    tally = {
        "cases": len(cases),
        "computed": 0,
        "stored": 0,
        "committed": 0,
        "stale": [],
        "seconds": 0.0,
        "measured": [],
        "data": parts["data"],
        "code": parts["code"],
    }
    fresh, machines = bool(os.environ.get("STUDYBOOK_FRESH")), {}
    for i, case in enumerate(cases):
        if (entry := _stored(_key(parts, case))) is not None:
            tally["stored"] += 1
            entry = _shared({**entry, "parts": parts}, machines)  # the parts are equal, as the key is
        elif (entry := committed.get(_identity(parts, case))) is not None:
            moved = [part for part in ("code", "data", "packages") if parts[part] not in (None, entry["parts"][part])]
            if moved and fresh:
                continue
            tally["committed"] += 1
            tally["stale"] = sorted({*tally["stale"], *moved})
        else:
            continue
        found[i] = entry
    return found, tally


def _compute(
    measure: Callable[[Case], Any], parts: dict, cases: Sequence[dict], missing: Sequence[int],
    expected: Mapping[int, float], team: workers.Team | None, found: dict[int, dict],
) -> None:  # fmt: skip
    """Measures the missing cases here or on the team, storing and adding to `found` each that finishes."""
    failures: list[Failure] = []
    machines: dict[str, dict] = {}
    function = functools.partial(_measured, measure)
    if team and not os.environ.get("STUDYBOOK_COLLECT"):  # else the runner has said it
        _say(team.describe())
    progress = _Progress(len(cases), expected)
    if team:
        order = sorted(missing, key=lambda i: -expected[i])
        outcomes = team.outcomes(function, [cases[i] for i in order], parts["data"], progress.tick)
    else:
        order = list(missing)
        outcomes = workers.here(function, [cases[i] for i in order])
    try:
        with contextlib.closing(progress), contextlib.closing(outcomes):
            for outcome in outcomes:
                i = order[outcome.index]
                if outcome.failure:
                    failures.append(Failure(cases[i], outcome.worker, outcome.failure))
                    _note_failure(_key(parts, cases[i]), failures[-1])
                else:
                    found[i] = _shared({**outcome.value, "parts": parts}, machines)
                    _store(_key(parts, cases[i]), found[i], cases[i])
                progress.finished(i, len(failures))
    except (workers.Lost, workers.Unfit) as error:
        there = f"{len(found)} of {len(cases)} cases are stored"
        raise type(error)(f"{error} ({there}; the same command goes on from there)") from None
    if failures:
        raise _failed(failures, len(cases))


def _shared(entry: dict, machines: dict[str, dict]) -> dict:
    """The entry with one copy of names and machines for all entries: thousands of small rows are mostly those."""
    rows = [{sys.intern(name): value for name, value in row.items()} for row in entry["rows"]]
    machine = machines.setdefault(_json(entry["machine"]), entry["machine"])
    return {"parts": entry["parts"], "rows": rows, "seconds": entry["seconds"], "machine": machine}


def _failed(failures: Sequence[Failure], total: int) -> Failed:
    listed = "\n".join(
        f"- {f.case}" + f" (worker {f.worker})" * bool(f.worker) + f"\n{textwrap.indent(f.traceback, '    ')}" * (i < 3)
        for i, f in enumerate(failures)
    )
    others = " (the others are stored and will not be repeated)" if len(failures) < total else ""
    first = failures[0].traceback.strip().splitlines()[-1]
    error = Failed(
        f"{len(failures)} of {total} cases failed{others}, the first with {first}\n{listed}\n"
        f"every traceback is in {sets.cache_folder() / 'failures'}"
    )
    error.failures = tuple(failures)
    return error


def reach(function: Callable) -> tuple[str, dict, bool]:
    """What a function depends on: a digest of its source and of the studybook code it reaches (with that code's
    constants), the global values that it and its notebook's functions read, and whether it loads data.

    Docstrings, comments and layout do not count. What loads data (`data.load`, `published.table` and their like) is
    not looked into: the fingerprint of what it gives is part of the key. Raises TypeError for a global whose value
    cannot be told apart by its content (pass it through the case instead).
    """
    sources: dict[str, Any] = {}
    values: dict[str, Any] = {}
    todo: list[Any] = [function]
    loaders = [inspect.unwrap(loader) for loader in _LOADERS]
    loads = False
    while todo:
        thing = inspect.unwrap(todo.pop())
        label = f"{thing.__module__}.{thing.__qualname__}"
        if label in sources:
            continue
        if thing in loaders:
            sources[label], loads = "by fingerprint", True
            continue
        source = _source(thing)
        sources[label] = bare(source)
        for chain, value in _globals_read(thing, source):
            codes: list[Any] = []
            plain = _plain_value(chain, value, codes)
            todo += [code for code in codes if _ours(code, function)]
            if plain is not None and not isinstance(inspect.unwrap(value), types.FunctionType | type):
                if thing.__module__.split(".")[0] == "studybook":
                    sources[f"{label}: {chain}"] = plain
                else:
                    values[chain] = plain
    return _hash(sources), dict(sorted(values.items())), loads


def bare(source: str) -> str:
    """What `source` does, without docstrings, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case (
                ast.Module(body=[first, *rest])
                | ast.FunctionDef(body=[first, *rest])
                | ast.ClassDef(body=[first, *rest])
            ):
                match first:
                    case ast.Expr(value=ast.Constant(value=str())):
                        node.body = rest or [ast.Pass()]
    return _dumped(tree)


def _dumped(node: Any) -> str:
    """Like `ast.dump`, but the same from every version of Python: fields that are empty are left out."""
    if isinstance(node, ast.AST):
        fields = ((name, _dumped(value)) for name, value in ast.iter_fields(node) if value not in (None, []))
        return f"{type(node).__name__}({', '.join(f'{name}={text}' for name, text in fields)})"
    if isinstance(node, list):
        return f"[{', '.join(map(_dumped, node))}]"
    return repr(node)


def write_rows(entries: Sequence[dict], folder: Path) -> None:
    """Entries of a sweep as `rows.json`, one case a line, with their arrays in `rows.npz`, written atomically."""
    arrays: dict[str, np.ndarray] = {}
    lines = [json.dumps(_packed(entry, arrays, f"{i}.")) for i, entry in enumerate(entries)]
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "rows.json", ("[\n" + ",\n".join(lines) + "\n]\n").encode())
    if arrays:
        _replace(folder / "rows.npz", _npz(_stacked(arrays)))


def read_rows(folder: Path) -> list[dict]:
    """The entries that `write_rows` wrote; ValueError, naming the file, if they are damaged."""
    try:
        entries = json.loads((folder / "rows.json").read_text())
        arrays = _unstacked(_arrays(folder / "rows.npz"))
        return [_unpacked(entry, arrays, f"{i}.") for i, entry in enumerate(entries)]
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder / 'rows.json'} is damaged ({error}); restore it from git") from error


def _measured(measure: Callable[[Case], Any], case: dict) -> dict:
    """One case, measured now and in this process."""
    seed = int(_hash(case)[:8], 16)
    state = np.random.get_state()  # noqa: NPY002
    start = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            answer = measure(dict(case))
        finally:
            np.random.set_state(state)  # noqa: NPY002
    rows = [answer] if isinstance(answer, Mapping) else list(answer)
    return {
        "rows": [{name: _cell(name, value) for name, value in row.items()} for row in rows],
        "seconds": round(time.perf_counter() - start, 3),
        "machine": workers.machine(),
    }


def _store(key: str, entry: dict, case: dict) -> None:
    """Writes one measured case; OSError, at once and naming the place, if that cannot be done."""
    arrays: dict[str, np.ndarray] = {}
    packed, file, pace = _packed(entry, arrays), _file(key), _pace_file(entry["parts"]["measure"], case)
    try:
        pace.parent.mkdir(parents=True, exist_ok=True)
        _replace(pace, str(entry["seconds"]).encode())
        file.parent.mkdir(parents=True, exist_ok=True)
        if arrays:
            _replace(file.with_suffix(".npz"), _npz(arrays))
        _replace(file, json.dumps({**packed, "case": case}).encode())  # last: a row is there when this file is
    except OSError as error:
        raise OSError(
            f"rows cannot be stored in {sets.cache_folder()} ({error.strerror}); make room or set STUDYBOOK_CACHE"
        ) from error


def _stored(key: str) -> dict | None:
    file = _file(key)
    if not file.exists():
        return None
    try:
        return _unpacked(json.loads(file.read_text()), _arrays(file.with_suffix(".npz")))
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None  # damaged: measured again and overwritten


def _file(key: str) -> Path:
    return sets.cache_folder() / "rows" / key[:2] / f"{key}.json"


def _read_committed() -> dict[str, dict]:
    folder = os.environ.get("STUDYBOOK_COMMITTED")
    if not folder or not (Path(folder) / "rows.json").exists():
        return {}
    return {_identity(entry["parts"], entry["case"]): entry for entry in read_rows(Path(folder))}


def _identity(parts: dict, case: dict) -> str:
    """What was measured, whatever the code, data and packages were like: by this, committed rows are found."""
    return _json({"measure": parts["measure"], "values": parts["values"], "case": case})


def _collect(entries: list[dict], tally: dict) -> None:
    """Leaves what this run used where the runner asked for it; a study may call `run` more than once."""
    if folder := os.environ.get("STUDYBOOK_COLLECT"):
        place = Path(folder)
        earlier = read_rows(place) if (place / "rows.json").exists() else []
        write_rows([*earlier, *entries], place)
        _replace(place / "sweeps.json", json.dumps([*tallies(place), tally]).encode())


def tallies(folder: Path) -> list[dict]:
    """What a run's sweeps did, in order, from the folder they left it in."""
    file = folder / "sweeps.json"
    return json.loads(file.read_text()) if file.exists() else []


def _fingerprints(names: Sequence[str], team: workers.Team | None) -> dict[str, str] | None:
    """Fingerprints of the sets, as they are here or else on a worker; None if one is nowhere.

    Then only committed rows can serve.
    """
    try:
        return {name: published.mark(name) for name in names}
    except FileNotFoundError:
        if team:
            with contextlib.suppress(workers.Unfit):
                return team.fingerprints(names)
        return None


def _note_failure(key: str, failure: Failure) -> None:
    """Keeps a failure at once, as rows are kept: the sweep may be killed before it can raise."""
    folder = sets.cache_folder() / "failures"
    with contextlib.suppress(OSError):  # the sweep ends with it all the same
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / f"{key}.json", json.dumps(failure._asdict(), indent=1).encode())


# ---------------------------------------------------------------- how long it takes


def _expected(
    measure: Callable, cases: Sequence[dict], missing: Sequence[int], committed: Mapping[str, dict]
) -> dict[int, float]:
    """Seconds that each missing case should take.

    As it took before, whatever the code was then; else as the study's YAML says; else the mean of the others.
    """
    name = measure.__qualname__
    before = {_json(e["case"]): e["seconds"] for e in committed.values() if e["parts"]["measure"] == name}
    hints = json.loads(os.environ.get("STUDYBOOK_SECONDS") or "[]")
    found: dict[int, float] = {}
    for i in missing:
        with contextlib.suppress(OSError, ValueError):
            found[i] = float(_pace_file(name, cases[i]).read_text())
            continue
        if (seconds := before.get(_json(cases[i]))) is not None:
            found[i] = seconds
        elif fits := [h["seconds"] for h in hints if all(cases[i].get(k) == v for k, v in h["case"].items())]:
            found[i] = fits[0]
    usual = sum(found.values()) / len(found) if found else 1.0
    return {i: max(float(found.get(i, usual)), 1e-6) for i in missing}


def _pace_file(measure: str, case: dict) -> Path:
    name = _hash([measure, case])
    return sets.cache_folder() / "seconds" / name[:2] / name


class Bar:
    """One bar over cases: drawn where there is a terminal or a notebook, a line now and then where there is a log."""

    def __init__(self, title: str) -> None:
        from tqdm import tqdm

        self.title = title
        notebook = type(sys.stderr).__module__.startswith("ipykernel")  # which keeps every drawing
        self.drawn, self.every = sys.stderr.isatty() or notebook, 2.0 if notebook else 0.5
        self.start = self.last = time.monotonic()
        self.first: int | None = None
        self.bar = tqdm(
            desc=title, delay=1, leave=False, disable=not self.drawn, mininterval=self.every,
            ncols=None if shutil.get_terminal_size((80, 24)).columns else 80,  # a terminal may not know its width
            bar_format="{desc}: {n_fmt}/{total_fmt} cases {percentage:3.0f}%|{bar:16}| [{elapsed}{postfix}]",
        )  # fmt: skip

    def show(
        self, done: int, total: int, failed: int = 0, left: float | None = None, words: str = "", before: int = 0
    ) -> None:  # fmt: skip
        """`left` is in seconds, `words` what else there is to say, `before` cases of earlier sweeps, not shown."""
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        each = (now - self.start) / (done - self.first) if done > self.first else None
        notes = [
            *([f"{each:.1f} s a case" if each > 1 else f"{1 / each:.1f} cases/s"] if each else []),
            *([f"about {duration(left)} left"] if left else []),
            *([f"{failed} failed"] if failed else []),
            *([words] if words else []),
        ]
        if not self.drawn:
            if now - self.last > 15:
                self.last = now
                print(f"{self.title}: {', '.join([f'{done}/{total} cases', *notes])}", file=sys.stderr, flush=True)
            return
        self.bar.total = total
        self.bar.set_postfix_str(", ".join(notes), refresh=False)
        self.bar.n = done
        if now - self.start > 1 and now - self.last > self.every:
            self.last = now
            self.bar.refresh()

    def clear(self) -> None:
        """Makes room for a line; the next `show` draws the bar again."""
        self.bar.clear()

    def close(self) -> None:
        """Takes the bar away."""
        self.bar.close()


def duration(seconds: int | float) -> str:
    """Seconds in words: 40 s, 7 min, 3 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class _Progress:
    """How far a sweep is: a bar, or a file where the runner draws it, since a page shows its output at the end."""

    def __init__(self, total: int, expected: Mapping[int, float]) -> None:
        folder = os.environ.get("STUDYBOOK_COLLECT")
        self.file = Path(folder) / "progress.json" if folder else None
        self.bar = None if folder else Bar("cases")
        self.expected, self.start, self.written = expected, time.monotonic(), 0.0
        self.work, self.worked = sum(expected.values()), 0.0
        self.state = {"done": total - len(expected), "total": total, "failed": 0, "left": None, "words": ""}
        self.before = sum(tally["cases"] for tally in tallies(Path(folder))) if folder else 0
        self._show()

    def finished(self, i: int, failed: int) -> None:
        """Case `i` has ended; `failed` have so far."""
        self.worked += self.expected[i]
        left = (time.monotonic() - self.start) * max(0.0, self.work - self.worked) / self.worked
        self.state |= {"done": self.state["done"] + 1, "failed": failed, "left": left}
        self._show()

    def tick(self, words: str) -> None:
        """Time has passed; `words` say what there is to say of the workers."""
        self.state["words"] = words
        self._show()

    def close(self) -> None:
        """The last state, whatever ended the sweep."""
        self.written = 0.0
        self._show()
        if self.bar:
            self.bar.close()

    def _show(self) -> None:
        if self.bar:
            self.bar.show(**self.state)
        elif time.monotonic() - self.written > 0.2:
            self.written = time.monotonic()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.file, json.dumps({**self.state, "before": self.before}).encode())


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- keys and values


def _key(parts: dict, case: dict) -> str:
    return _hash({**parts, "case": case})


def _hash(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()[:32]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _plain(case: Case) -> dict:
    try:
        plain = json.loads(json.dumps(dict(case), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a case must hold plain numbers, strings, booleans and lists of them, got {case} ({error})"
        ) from None
    return plain


def _plain_value(name: str, value: Any, codes: list[Any]) -> Any:
    """A global as plain JSON values, with the functions and classes in it gathered in `codes`; None for modules."""
    if isinstance(value, types.ModuleType):
        return None
    if callable(value):
        value = inspect.unwrap(value)
    if isinstance(value, types.FunctionType | type):
        codes.append(value)
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        return [_plain_value(name, part, codes) for part in (value.func, list(value.args), value.keywords)]
    if isinstance(value, Mapping):
        # the text of a function or method holds its address, another one in every process; a class's does not
        keys = (key if isinstance(key, type) or not callable(key) else _plain_value(name, key, codes) for key in value)
        return {str(key): _plain_value(name, part, codes) for key, part in zip(keys, value.values(), strict=True)}
    if isinstance(value, list | tuple | range):
        return [_plain_value(name, part, codes) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain_value(name, part, codes) for part in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value)
    if isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(bits).hexdigest()}"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype.str} {list(value.shape)} {hashlib.sha256(np.ascontiguousarray(value)).hexdigest()}"
    if isinstance(value, types.MethodType):
        return [_plain_value(name, part, codes) for part in (value.__func__, value.__self__)]
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | None):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, types.GenericAlias | types.UnionType | np.ufunc):
        return repr(value)
    if type(value).__module__.split(".")[0] in ("typing", "jaxtyping"):
        return None
    raise TypeError(
        f"measure reads the global {name}, a {type(value).__name__}, which cannot become part of the row's key; "
        "pass plain values through the case, and load data inside measure"
    )


def _source(thing: Any) -> str:
    try:
        source = textwrap.dedent(_class_in_a_cell(thing) or inspect.getsource(thing))
        ast.parse(source)
    except (OSError, TypeError, SyntaxError) as error:
        raise TypeError(
            f"the source of {thing!r} cannot be read ({error}); define it with def, in a file or a cell"
        ) from None
    return source


def _class_in_a_cell(thing: Any) -> str | None:
    """The source of a class that was defined in a notebook's cell, which `inspect` finds for functions only."""
    if not isinstance(thing, type) or thing.__module__ != "__main__":
        return None
    for method in vars(thing).values():
        if isinstance(method, types.FunctionType) and method.__qualname__.startswith(f"{thing.__qualname__}."):
            cell = "".join(linecache.getlines(method.__code__.co_filename))
            for node in ast.walk(ast.parse(cell)):
                if isinstance(node, ast.ClassDef) and node.name == thing.__name__:
                    return ast.get_source_segment(cell, node)
    return None


def _globals_read(thing: Any, source: str) -> list[tuple[str, Any]]:
    """Global names, and attributes of global modules, that the code of `thing` reads, with their values."""
    scope = dict(vars(inspect.getmodule(thing) or types.ModuleType("none")))
    if isinstance(thing, types.FunctionType):
        scope = {**thing.__globals__, **inspect.getclosurevars(thing).nonlocals}
    tables = [symtable.symtable(source, "source", "exec")]
    names = {symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_referenced()}
    for table in tables:
        tables += table.get_children()
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    read = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom | ast.Import) and "studybook" in ast.unparse(node):
            raise TypeError(f"{thing.__qualname__} imports studybook inside; import it at the top, so that keys see it")
        chain = _chain(node)
        if not chain or chain[0] not in names or chain[0] not in scope:
            continue
        value, name = scope[chain[0]], chain[0]
        if isinstance(value, types.ModuleType) and value.__name__.split(".")[0] != "studybook":
            continue  # other people's code: their versions are part of the key
        for attribute in chain[1:]:
            if not isinstance(value, types.ModuleType) or not hasattr(value, attribute):
                break
            value, name = getattr(value, attribute), f"{name}.{attribute}"
        read.append((name, value))
    return read


def _chain(node: ast.AST) -> list[str]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def _ours(value: Any, measure: Callable) -> bool:
    module = getattr(value, "__module__", "") or ""
    return module.split(".")[0] == "studybook" or module == measure.__module__


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.ndim == 0 or isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) or isinstance(value, bool | int | float | str) or value is None:
        return value
    raise TypeError(f"measure must return numbers, strings or arrays; {name} is a {type(value).__name__}")


def _packed(entry: dict, arrays: dict[str, np.ndarray], prefix: str = "") -> dict:
    """The entry with its arrays moved into `arrays` and a reference left in their place."""
    rows = []
    for r, row in enumerate(entry["rows"]):
        out = {}
        for name, value in row.items():
            if isinstance(value, np.ndarray):
                arrays[f"{prefix}{r}.{name}"] = value
                value = {"array": list(value.shape)}
            out[name] = value
        rows.append(out)
    return {**entry, "rows": rows}


def _unpacked(entry: dict, arrays: Mapping[str, np.ndarray], prefix: str = "") -> dict:
    rows = [
        {name: arrays[f"{prefix}{r}.{name}"] if isinstance(value, dict) else value for name, value in row.items()}
        for r, row in enumerate(entry["rows"])
    ]
    return {**entry, "rows": rows}


def _arrays(file: Path) -> dict[str, np.ndarray]:
    if not file.exists():
        return {}
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def _stacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of one column and shape as one, beside their names: thousands of small ones would be mostly headers."""
    groups: dict[tuple, list[str]] = {}
    for name, values in arrays.items():
        groups.setdefault((name.rpartition(".")[2], values.shape, values.dtype.str), []).append(name)
    out = {}
    for i, names in enumerate(groups.values()):
        out |= {f"names:{i}": np.array(names), f"stack:{i}": np.stack([arrays[name] for name in names])}
    return out


def _unstacked(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `_stacked` was given; files from before it was there come back as they are."""
    found = {}
    for key, values in stored.items():
        if key.startswith("names:"):
            found |= dict(zip(values.tolist(), stored[key.replace("names", "stack", 1)], strict=True))
        elif not key.startswith("stack:"):
            found[key] = values
    return found


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def _replace(file: Path, content: bytes) -> None:
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
