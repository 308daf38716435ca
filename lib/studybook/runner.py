"""Runs studies, keeps their records and builds the book: the `studybook` command.

studybook list                                   what there is
studybook run calibration -p SEEDS 5             run a study, with a parameter changed
studybook run calibration --profile standard     ... on real data
studybook build                                  the book, from what was run
studybook status                                 verdicts, age, machine; fresh or stale
studybook check calibration                      does this machine find the committed numbers again?
"""

import ast
import contextlib
import datetime
import difflib
import functools
import hashlib
import html
import importlib.util
import json
import logging
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import click.shell_completion

QUICK = "quick"
TOLERANCE = 1e-3  # of a number in a record against the same number computed again, relative; floor 1e-4
_RECORD_VERSION = 1
_PAGE = ("plots", "workers", "sweep", "runner")  # modules that change how a page looks and none of its numbers
_LOADERS = (("data", "load"), ("data", "pictures"), ("data", "splits"))  # for which the data's fingerprint stands


class Problem(click.ClickException):
    """An error that the user can mend: one sentence, exit code 1."""


# ---------------------------------------------------------------- studies


@dataclass(frozen=True)
class Study:
    """One notebook, with what its YAML file says about it."""

    source: Path
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The slug: the notebook's file name."""
        return self.source.stem

    @property
    def part(self) -> str:
        """The part of the book: the notebook's folder."""
        return self.source.parent.name

    def profile(self, name: str) -> dict[str, Any]:
        """What the YAML file says of a profile; Problem, with the names there are, if it has no such profile."""
        if name == QUICK:
            return {"parameters": {}, **self.about.get("quick", {})}
        profiles = self.about.get("profiles", {})
        if name not in profiles:
            raise Problem(f"{self.name} has no profile {name!r}; it has {', '.join([QUICK, *profiles])}")
        return {"parameters": {}, **profiles[name]}

    @property
    def profiles(self) -> list[str]:
        """Names of the profiles, quick first."""
        return [QUICK, *self.about.get("profiles", {})]


def root() -> Path:
    """The project's folder: STUDYBOOK_ROOT, or the nearest one upward that holds `_config.yml` and `notebooks`."""
    here = Path(os.environ.get("STUDYBOOK_ROOT", Path.cwd())).resolve()
    for folder in (here, *here.parents):
        if (folder / "_config.yml").exists() and (folder / "notebooks").is_dir():
            return folder
    raise Problem(f"no study book at {here} or above it: run this inside a clone, or set STUDYBOOK_ROOT to one")


def studies() -> dict[str, Study]:
    """Every study of the project by name, sorted by part and name."""
    found: dict[str, Study] = {}
    for source in sorted((root() / "notebooks").glob("*/*.ipynb")):
        if source.stem in found:
            raise Problem(f"two studies are called {source.stem}: {found[source.stem].source} and {source}")
        found[source.stem] = Study(source, _about(source.with_suffix(".yml")))
    return found


def find(name: str) -> Study:
    """The study called `name`; Problem, with the nearest name, if there is none."""
    known = studies()
    if name not in known:
        raise Problem(f"no study is called {name!r}{_nearest(name, known)}")
    return known[name]


def parameters(study: Study) -> dict[str, Any]:
    """The defaults in the notebook's parameters cell."""
    cells = [c for c in _notebook(study.source)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1 or cells[0]["cell_type"] != "code":
        raise Problem(f"{study.source}: exactly one code cell must carry the tag 'parameters', found {len(cells)}")
    values = {}
    for node in ast.parse("".join(cells[0]["source"])).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                with contextlib.suppress(ValueError):
                    values[name] = ast.literal_eval(value)
                    continue
        raise Problem(
            f"{study.source}: the parameters cell must hold one plain assignment a line, such as SEEDS = 10; "
            f"line {node.lineno} is no such line"
        )
    return values


def typed(study: Study, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` values with the types of the notebook's own defaults; Problem for unknown names and misfits."""
    defaults = parameters(study)
    return {name: _typed(study, name, value, defaults) for name, value in given.items()}


def _typed(study: Study, name: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    if name not in defaults:
        raise Problem(f"{study.name} has no parameter {name!r}{_nearest(name, defaults)}; it has {', '.join(defaults)}")
    kind = type(defaults[name])
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
    text = str(value).strip()
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind is str:
            return str(value)
        if kind is int:
            return int(text)
        if kind is float:
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
        parsed = ast.literal_eval(text)
        if type(parsed) is not kind:
            raise ValueError
        return parsed
    except (KeyError, ValueError, SyntaxError):
        raise Problem(
            f"{study.name}: {name} must be {wanted} (as its default {defaults[name]!r}), got {text!r}"
        ) from None


def _about(file: Path) -> dict[str, Any]:
    import yaml

    if not file.exists():
        raise Problem(f"{file} is missing: every notebook has a YAML file beside it with its paper and profiles")
    try:
        about = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise Problem(f"{file}{line}: malformed YAML ({getattr(error, 'problem', error)})") from None
    for key, kind in {"title": str, "paper": dict, "quick": dict, "profiles": dict}.items():
        if not isinstance(about, dict) or not isinstance(about.get(key), kind):
            raise Problem(f"{file}: the key {key!r} must be there and be a {'text' if kind is str else 'mapping'}")
    for name, profile in about["profiles"].items():
        if not isinstance(profile, dict) or not isinstance(profile.get("parameters"), dict):
            raise Problem(f"{file}: profile {name!r} must be a mapping with the key 'parameters'")
    for name, profile in {QUICK: about["quick"], **about["profiles"]}.items():
        for hint in profile.get("cases", []):
            match hint:
                case {"case": dict(), "seconds": int() | float()}:
                    continue
            raise Problem(f"{file}: 'cases' of profile {name!r} must hold {{case: {{...}}, seconds: N}}, got {hint!r}")
    return about


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], 1, 0.5)
    return "".join(f"; did you mean {k!r}?" for k in known if close and k.lower() == close[0])


# ---------------------------------------------------------------- running


def run_study(
    study: Study, profile: str, overrides: Mapping[str, Any], *, fresh: bool = False, record: bool = False,
    force: bool = False, compute: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Executes one study and writes its page and run record; returns the record.

    The page of a run that fails goes to `.studybook/failed`, with its log, and the earlier page stays. A run whose
    sources, parameters and stored rows have not changed since the last is not repeated unless `force`.
    """
    from studybook import sweep

    given = typed(study, {**study.profile(profile)["parameters"], **overrides})
    _check_needs(study, profile)
    committed = results_folder(study, profile)
    inputs = _inputs(study, profile, given, committed, fresh, _device())
    page, saved = _page(study), _page(study).with_suffix(".json")
    if not (force or record or fresh) and page.exists() and saved.exists():
        earlier = _read_record(saved)
        if earlier.get("inputs") == inputs and not _data_moved(earlier):
            return {**earlier, "unchanged": True}
    with tempfile.TemporaryDirectory(prefix="studybook-") as scratch:
        collect, out = Path(scratch) / "rows", Path(scratch) / page.name
        environment = {
            "STUDYBOOK_COLLECT": str(collect),
            "STUDYBOOK_COMMITTED": str(committed),
            "STUDYBOOK_FRESH": "1" if fresh else "",
            "STUDYBOOK_COMPUTE": "1" if compute else "0",
            "STUDYBOOK_SECONDS": json.dumps(study.profile(profile).get("cases", [])),
            **({} if compute else {"HF_HUB_OFFLINE": "1"}),  # drawing downloads nothing
            "PYTHONHASHSEED": "0",
            "IPYTHONDIR": str(_quiet_ipython(Path(scratch))),
        }
        started = datetime.datetime.now(datetime.UTC)
        clock = time.perf_counter()
        with _environment(environment), _watched(f"{study.name} [{profile}]", collect) as peak:
            try:
                _papermill(study, out, given)
            except Exception as error:
                _keep_failure(study, out, error)
        seconds = time.perf_counter() - clock
        notebook = _notebook(out)
        done = {
            "version": _RECORD_VERSION,
            "study": study.name,
            "part": study.part,
            "profile": profile,
            "overrides": dict(overrides),
            "parameters": {**parameters(study), **given},
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "peak_memory_mib": round(peak()),
            **_commit(),
            "inputs": inputs,
            "versions": _versions(),
            "sweeps": sweep.tallies(collect),
            "claims": _claims(notebook),
        }
        done["stale"] = sorted({reason for sweep in done["sweeps"] for reason in sweep["stale"]})
        done["machine"] = _machine()
        _check_page(study, notebook, done["claims"])
        _write_page(study, notebook, done)
        if record:
            _record(study, profile, done, collect)
    return done


def results_folder(study: Study, profile: str) -> Path:
    """Where the committed rows and record of a profile live."""
    return root() / "book" / "results" / study.name / profile


def _page(study: Study) -> Path:
    return root() / "book" / "studies" / study.part / f"{study.name}.ipynb"


def _papermill(study: Study, out: Path, given: Mapping[str, Any]) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import papermill

        logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # a kernel that died raises, too

        papermill.execute_notebook(
            str(study.source), str(out), dict(given), kernel_name="python3", language="python", cwd=str(root()),
            progress_bar=False,
        )  # fmt: skip


def _quiet_ipython(scratch: Path) -> Path:
    """An IPython folder without the user's startup files, whose kernel keeps its log to itself."""
    profile = scratch / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 'CRITICAL'\n")
    return profile.parent


def _keep_failure(study: Study, out: Path, error: Exception) -> None:
    folder = root() / ".studybook" / "failed"
    folder.mkdir(parents=True, exist_ok=True)
    page, log = folder / out.name, folder / f"{study.name}.log"
    if out.exists():
        shutil.copy(out, page)
    log.write_text(f"{study.source}\n\n{error}\n")
    cell = getattr(error, "cell_index", None)
    if cell is None:
        raise Problem(f"{study.name} could not run: {_first_line(error)} (log: {_relative(log)})") from error
    what = _first_line(f"{error.ename}: {error.evalue}")
    raise Problem(f"{study.name} failed in cell {cell}: {what} (page so far: {_relative(page)}, log: {_relative(log)})")


def _first_line(text: object) -> str:
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(text).__name__


def _relative(path: Path) -> str:
    return str(path.relative_to(root()))


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    earlier = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _watched(title: str, collect: Path) -> Iterator[Any]:
    """Shows a bar over the sweep's cases and samples the memory of this process and its kernel; gives the peak.

    Where another `studybook run` draws one bar for several studies, it gets the sweep's state instead.
    """
    import psutil

    from studybook import sweep

    peak, stop, parent = [0.0], threading.Event(), os.getppid()
    elsewhere = os.environ.get("STUDYBOOK_PROGRESS")

    def memory() -> float:
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total / 2**20

    def watch() -> None:
        bar, total = None, None
        while not stop.wait(0.5):
            peak[0] = max(peak[0], memory())
            if elsewhere and os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGINT)  # nobody waits for this study any more
            with contextlib.suppress(OSError, ValueError):
                state = json.loads((collect / "progress.json").read_text())
                if elsewhere:
                    _write(Path(elsewhere), json.dumps(state))
                    continue
                if state["total"] != total:  # the study's next sweep
                    if bar:
                        bar.close()
                    bar, total = sweep.Bar(title), state["total"]
                if bar:
                    bar.show(**state)
                    if state["done"] >= total:  # figures follow, which the bar knows nothing of
                        bar.close()
                        bar = None
        if bar:
            bar.close()

    if not elsewhere:
        click.echo(f"{title}: running", err=True)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()


def _check_needs(study: Study, profile: str) -> None:
    needs = study.profile(profile).get("needs", {})
    if needs.get("gpu") and _device() == "cpu" and os.environ.get("STUDYBOOK_DEVICE") != "cpu":
        where = "no worker has one" if os.environ.get("STUDYBOOK_SCHEDULER") else "torch sees none here"
        raise Problem(
            f"{study.name} [{profile}] needs a GPU and {where}; "
            "to run it on the CPU all the same, however long it takes, set STUDYBOOK_DEVICE=cpu"
        )


def _check_page(study: Study, notebook: dict, claims: Sequence[Mapping]) -> None:
    """A page without errors on which every declared claim has a verdict, or Problem."""
    declared = declared_claims(notebook)
    judged = [claim["name"] for claim in claims]
    if missing := sorted(set(declared) - set(judged)):
        raise Problem(f"{study.name}: no verdict on {', '.join(missing)}; every claim must be judged")
    if len(judged) != len(set(judged)):
        raise Problem(f"{study.name}: a claim was judged twice: {', '.join(sorted(judged))}")
    for i, cell in enumerate(notebook["cells"]):
        if any(output.get("output_type") == "error" for output in cell.get("outputs", [])):
            raise Problem(f"{study.name}: cell {i} of the executed page holds an error")


def declared_claims(notebook: dict) -> list[str]:
    """Names of the claims that a notebook writes down, in order."""
    return [name for _, name in _calls(notebook, "Claim")]


def _calls(notebook: dict, function: str) -> list[tuple[int, str]]:
    """Calls of `*.function("name", ...)` in a notebook: index of the cell, and the name."""
    found = []
    for i, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            match node:
                case ast.Call(func=ast.Attribute(attr=attr), args=[ast.Constant(value=str(name)), *_]) if (
                    attr == function
                ):
                    found.append((i, node.lineno, name))
    return [(i, name) for i, _, name in sorted(found)]


def _claims(notebook: dict) -> list[dict]:
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    return [o["metadata"]["studybook"] for o in outputs if "studybook" in o.get("metadata", {})]


def _record(study: Study, profile: str, done: Mapping[str, Any], collect: Path) -> None:
    """Commits nothing itself: writes record and rows to where they are committed from."""
    folder = results_folder(study, profile)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("rows.json", "rows.npz") if profile != QUICK else ():
            if (collect / name).exists():
                shutil.copy(collect / name, folder / f"{name}.part")
                (folder / f"{name}.part").replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        _write(folder / "run.json", json.dumps(done, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise Problem(f"{study.name}: the run is done, but {folder} cannot be written ({error.strerror})") from None


# ---------------------------------------------------------------- provenance


def _inputs(
    study: Study, profile: str, given: Mapping[str, Any], committed: Path, fresh: bool, device: str
) -> dict[str, Any]:
    """Hashes of everything a page is made from."""
    rows = b"".join(f.read_bytes() for f in (committed / "rows.json", committed / "rows.npz") if f.exists())
    return {
        "source": _digest(study.source.read_bytes()),
        "about": _digest(study.source.with_suffix(".yml").read_bytes()),
        "notebook": _digest(_bare_code("\n".join(_code_cells(study.source))).encode()),
        "library": _digest(_library(study).encode()),
        "page": _digest(b"".join((Path(__file__).parent / f"{m}.py").read_bytes() for m in _PAGE)),
        "rows": _digest(rows),
        "profile": profile,
        "given": dict(given),
        "versions": _versions(),
        "device": device,
        "fresh": fresh,
    }


def _library(study: Study) -> str:
    """The library code that a notebook reaches, definition by definition, without comments and docstrings.

    Modules that only draw or store are left out, and so is the loading of data, for which the fingerprint stands: a
    page's numbers do not depend on them.
    """
    source = ast.parse("\n".join(_code_cells(study.source)))
    modules = {file.stem: ast.parse(file.read_text()) for file in Path(__file__).parent.glob("*.py")}
    named = {name: _named(tree) for name, tree in modules.items()}
    todo, seen = _reached(source, _imported(source), set()), {}
    while todo:
        module, name = todo.pop()
        known = f"{module}.{name}" in seen or name not in named.get(module, {})
        if known or module in _PAGE or (module, name) in _LOADERS:
            continue
        node = named[module][name]
        seen[f"{module}.{name}"] = _bare_code(ast.unparse(node))
        todo |= _reached(node, _imported(modules[module]), {(module, other) for other in named[module]})
    return json.dumps(seen, sort_keys=True)


def _named(tree: ast.Module) -> dict[str, ast.stmt]:
    """Functions, classes and constants that a module defines at its top."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = node
    return found


def _imported(tree: ast.Module) -> dict[str, tuple[str, str | None]]:
    """Local names of studybook modules, (module, None), and of things out of them, (module, name)."""
    found: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="studybook"):
                found |= {alias.asname or alias.name: (alias.name, None) for alias in node.names}
            case ast.ImportFrom(module=str(module)) if module.startswith("studybook."):
                found |= {alias.asname or alias.name: (module.split(".")[1], alias.name) for alias in node.names}
    return found


def _reached(tree: ast.AST, imported: Mapping[str, tuple], own: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Definitions of the library, (module, name), that a piece of code mentions; `own` are those of its module."""
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    local = stored | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    here = {name: (module, name) for module, name in own if name not in local}
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=alias), attr=name) if imported.get(alias, (0, 0))[1] is None:
                found.add((imported[alias][0], name))
            case ast.Name(id=name, ctx=ast.Load()) if name in here:
                found.add(here[name])
            case ast.Name(id=name, ctx=ast.Load()) if imported.get(name, (0, None))[1] is not None:
                found.add(imported[name])
    return found


def _bare_code(source: str) -> str:
    from studybook import sweep

    return sweep.bare(source)


def _code_cells(file: Path) -> list[str]:
    return [cell["source"] for cell in _notebook(file)["cells"] if cell["cell_type"] == "code"]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _commit() -> dict[str, Any]:
    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=root(), capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _versions() -> dict[str, str]:
    from studybook import __version__, workers

    return {"python": platform.python_version(), "studybook": __version__, **workers.packages()}


def _machine() -> dict[str, Any]:
    from studybook import workers

    return workers.machine()


def _device() -> str:
    """The kind of device that cases are measured on, here or on workers."""
    return _device_at(os.environ.get("STUDYBOOK_SCHEDULER", ""), os.environ.get("STUDYBOOK_DEVICE", ""))


@functools.cache
def _device_at(scheduler: str, asked: str) -> str:
    from studybook import workers

    with workers.team() as team:
        return team.device if team else workers.device_kind()


def _data_moved(record: Mapping[str, Any]) -> bool:
    """Whether a set that is here has changed since the record; a set that is not here cannot tell."""
    from studybook import data

    for one in record["sweeps"]:
        for name, mark in (one["data"] or {}).items():
            with contextlib.suppress(FileNotFoundError):
                if data.fingerprint(name) != mark:
                    return True
    return False


def _read_record(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise Problem(f"{file} is damaged ({error}); delete it and run the study again") from None


def _notebook(file: Path) -> dict:
    try:
        notebook = json.loads(file.read_text(encoding="utf-8"))
        for i, cell in enumerate(notebook["cells"]):
            cell["source"] = "".join(cell["source"])
            if cell["cell_type"] == "code":
                _check_syntax(file, i, cell["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(f"{file} is no readable notebook ({error})") from None
    return notebook


def _check_syntax(file: Path, cell: int, source: str) -> None:
    try:
        ast.parse(source)
    except SyntaxError as error:
        raise Problem(f"{file}: cell {cell}, line {error.lineno} is not plain Python ({error.msg})") from None


def _write(file: Path, text: str) -> None:
    """Written whole or not at all; an unchanged file keeps its time, so that the book need not read it again."""
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


# ---------------------------------------------------------------- pages


def _write_page(study: Study, notebook: dict, done: Mapping[str, Any]) -> None:
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)  # times differ in every run; the record keeps them
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:
            cell["metadata"]["tags"] = [*tags, "hide-input"]
        cell["outputs"] = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        if cell["cell_type"] != "code":
            del cell["outputs"]
    notebook["metadata"].pop("papermill", None)
    for text, name, at in (
        (_card(study, done), "card", 1),
        (_box(study, done), "provenance", len(notebook["cells"]) + 1),
    ):
        notebook["cells"].insert(at, {"cell_type": "markdown", "id": name, "metadata": {}, "source": text})
    page = _page(study)
    _write(page, json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    _write(page.with_suffix(".json"), json.dumps(done, indent=1, sort_keys=True) + "\n")


def _card(study: Study, done: Mapping[str, Any]) -> str:
    paper = study.about["paper"]
    tally = ", ".join(f"{n} {verdict}" for verdict, n in _tally(done["claims"]).items() if n)
    lines = [
        ":::{card}",
        f"[{paper['title']}]({paper['url']}), {paper['authors']}, {paper['venue']} {paper['year']}",
        "",
        f"**This page:** {_scale(study, done)}. **Verdicts:** {tally}.",
        ":::",
    ]
    if done["stale"]:
        lines += ["", f":::{{warning}}\n{_stale_sentence(done)}\n:::"]
    return "\n".join(lines)


def _scale(study: Study, done: Mapping[str, Any]) -> str:
    """What a page shows, at what size: the profile's own words only where no parameter was changed."""
    if changed := ", ".join(f"{name} = {value}" for name, value in done["overrides"].items()):
        return f"profile `{done['profile']}` with `{changed}`"
    return f"{study.profile(done['profile']).get('says', '')} (profile `{done['profile']}`)"


def _stale_sentence(done: Mapping[str, Any]) -> str:
    return (
        f"Stale: the {' and '.join(done['stale'])} behind the stored numbers of this page changed since they were "
        f"measured. `studybook run {done['study']} --profile {done['profile']} --fresh` measures them again."
    )


def _box(study: Study, done: Mapping[str, Any]) -> str:
    def machine(value: Mapping[str, Any]) -> str:
        return f"{value['processor']}, {value['cores']} cores in use, {value['memory']} GiB, device {value['device']}"

    measured = sorted({m for sweep in done["sweeps"] for m in sweep["measured"]})
    data = {name: mark for sweep in done["sweeps"] for name, mark in (sweep["data"] or {}).items()}
    total = {
        key: sum(s[key] for s in done["sweeps"]) for key in ("cases", "computed", "stored", "committed", "seconds")
    }
    command = f"studybook run {study.name}" + ("" if done["profile"] == QUICK else f" --profile {done['profile']}")
    command += "".join(f" -p {name} {value}" for name, value in done["overrides"].items())
    rows = {
        "profile": done["profile"],
        "parameters": ", ".join(f"{name} = {value!r}" for name, value in done["parameters"].items()),
        "run": f"{done['started']}, {done['seconds']:.0f} s, peak memory {done['peak_memory_mib']:,} MiB",
        "rows": f"{total['cases']} cases, {total['seconds']:.0f} s of measuring; {total['computed']} computed in this "
        f"run, {total['stored']} found in the store, {total['committed']} from the repository",
        "measured on": "; ".join(machine(json.loads(m)) for m in measured) or "no sweep",
        "page made on": machine(done["machine"]),
        "data": ", ".join(f"{name} ({mark})" for name, mark in data.items()) or "generated",
        "commit": f"{(done['commit'] or 'none')[:12]}{' with uncommitted changes' if done['dirty'] else ''}",
        "notebook, library": f"{done['inputs']['notebook']}, {done['inputs']['library']}",
        "versions": ", ".join(f"{name} {version}" for name, version in done["versions"].items()),
    }
    table = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return "\n".join(
        [
            ":::{admonition} How this page was made",
            ":class: dropdown provenance",
            f'<table class="provenance">{table}</table>',
            "",
            "To run it again:",
            "```bash",
            command,
            "```",
            ":::",
        ]
    )


def _tally(claims: Sequence[Mapping]) -> dict[str, int]:
    from studybook.ledger import VERDICTS

    return {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}


# ---------------------------------------------------------------- the book


def records() -> list[dict[str, Any]]:
    """The record of every study and profile that has one: the committed ones, and the quick pages made here."""
    found = []
    for study in studies().values():
        for profile in study.profiles:
            page, committed = _page(study).with_suffix(".json"), results_folder(study, profile) / "run.json"
            made = _read_record(page) if page.exists() else {}
            if profile == QUICK and made.get("profile") == QUICK and not made["overrides"]:
                found.append(made)
            elif committed.exists():
                found.append(_read_record(committed))
    return found


def moved_on(record: Mapping[str, Any]) -> list[str]:
    """What has changed since a record was written: reasons to call it stale."""
    study = find(record["study"])
    reasons = set(record["stale"])
    now = _inputs(study, record["profile"], {}, results_folder(study, record["profile"]), False, "")
    for part in ("notebook", "library"):
        if now[part] != record["inputs"][part]:
            reasons.add(part)
    if record["parameters"] != {**parameters(study), **study.profile(record["profile"])["parameters"]}:
        reasons.add("parameters")
    return sorted(reasons)


def build_book() -> Path:
    """Checks the executed pages, writes the generated ones and calls Jupyter Book with warnings as errors."""
    book = root() / "book"
    for study in studies().values():
        if not _page(study).exists() or not _page(study).with_suffix(".json").exists():
            raise Problem(f"{study.name} has not been run yet: studybook run {study.name}")
        record = _read_record(_page(study).with_suffix(".json"))
        _check_page(study, _notebook(_page(study)), record["claims"])
    _write(book / "_generated" / "scoreboard.md", _scoreboard(records()))
    if (scale := book / "results" / "scale.json").exists():
        _write_scale(_read_record(scale), book / "_generated")
    _install_mathjax(book / "_vendor" / "mathjax")
    log = book / "_build" / "build.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        "build",
        "book",
        "--path-output",
        "book",
        "--config",
        "_config.yml",
        "-W",
        "--keep-going",
    ]
    with log.open("w") as out:
        done = subprocess.run(command, cwd=root(), stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = [x for x in log.read_text().splitlines() if "WARNING" in x or "ERROR" in x or "Error" in x]
        raise Problem(f"the book did not build: {'; '.join(lines[:5]) or 'see the log'} (log: {_relative(log)})")
    return book / "_build" / "html" / "index.html"


def _install_mathjax(folder: Path) -> None:
    """Copies MathJax out of the package that ships it, so that formulas render without a network."""
    spec = importlib.util.find_spec("mathjax")
    if spec is None or spec.origin is None:
        raise Problem("the package django-static-mathjax, which ships MathJax, is not installed: make book installs it")
    shipped = Path(spec.origin).parent / "static" / "mathjax" / "es5"
    fonts = Path("output") / "chtml" / "fonts" / "woff-v2"
    if not (folder / fonts).exists():
        shutil.copytree(shipped / fonts, folder / fonts)
    if not (folder / "tex-mml-chtml.js").exists():
        shutil.copy(shipped / "tex-mml-chtml.js", folder)


def _scoreboard(found: Sequence[Mapping[str, Any]]) -> str:
    """Every claim with the paper's number, ours, the interval drawn against the threshold, and the verdict."""
    tally = _tally([claim for record in found for claim in record["claims"]])
    head = ", ".join(f"**{n}** {verdict}" for verdict, n in tally.items())
    lines = [f"{sum(tally.values())} claims judged: {head}.", ""]
    for record in found:
        study = find(record["study"])
        stale = moved_on(record)
        machines = {json.loads(m)["device"] for s in record["sweeps"] for m in s["measured"]}
        lines += [
            f"## {study.about['title']}",
            "",
            f"{{doc}}`Page </studies/{study.part}/{study.name}>`, profile `{record['profile']}`: "
            f"{study.profile(record['profile']).get('says', '')}. Measured on {', '.join(sorted(machines)) or 'cpu'}, "
            f"recorded {record['started'][:10]}, {'**stale** (' + ', '.join(stale) + ')' if stale else 'fresh'}.",
            "",
            '<div class="scoreboard-scroll"><table class="scoreboard"><thead><tr>'
            "<th>claim</th><th>paper</th><th>ours</th><th>95 % interval against the threshold</th><th>verdict</th>",
            "</tr></thead><tbody>",
            *(_scoreboard_row(claim) for claim in record["claims"]),
            "</tbody></table></div>",
            "",
        ]
    return "\n".join(lines) + "\n"


def _scoreboard_row(claim: Mapping[str, Any]) -> str:
    def show(value: float | None) -> str:
        return "unbounded" if value is None else format(value, claim["unit"])

    text = html.escape(claim["text"]) + (" <i>(control)</i>" if claim["control"] else "")
    numbers = f"{show(claim['low'])} to {show(claim['high'])}, n = {claim['n']}"
    return (
        f"<tr><td>{text}</td><td>{html.escape(claim['paper']) or '&ndash;'}</td><td>{show(claim['mean'])}</td>"
        f"<td>{_drawn(claim)}<br><small>{numbers}</small></td>"
        f'<td><span class="badge verdict-{claim["verdict"]}">{claim["verdict"]}</span></td></tr>'
    )


def _drawn(claim: Mapping[str, Any]) -> str:
    """The interval as a small bar; the dashed line is the threshold, the shaded side is the claimed one."""
    above = claim["above"] is not None
    threshold = claim["above"] if above else claim["below"]
    low, high = (claim["mean"] if end is None else end for end in (claim["low"], claim["high"]))
    reach = max(abs(low - threshold), abs(high - threshold), 1e-12) * 1.15

    def x(value: float) -> float:
        return round(80 + 78 * (value - threshold) / reach, 1)

    words = (
        f"interval {format(low, claim['unit'])} to {format(high, claim['unit'])}, "
        f"claimed {'above' if above else 'below'} {format(threshold, claim['unit'])}"
    )
    return (
        f'<svg class="interval verdict-{claim["verdict"]}" viewBox="0 0 160 16" role="img" aria-label="{words}">'
        f'<rect class="claimed" x="{80 if above else 0}" y="0" width="80" height="16"/>'
        f'<line class="threshold" x1="80" x2="80" y1="0" y2="16"/>'
        f'<line class="bar" x1="{x(low)}" x2="{x(high)}" y1="8" y2="8"/>'
        f'<circle class="dot" cx="{x(claim["mean"])}" cy="8" r="3.5"/></svg>'
    )


def _write_scale(found: Mapping[str, Any], folder: Path) -> None:
    """Tables and a figure of what benchmarks/workers.py measured and of the cost model, for the page on scale."""
    from studybook import workers

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
        lines = [head, ["---"] * len(head), *rows]
        _write(folder / f"scale-{name}.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    _draw_scale(costs, sleeping, folder / "scale.png")


def _draw_scale(costs: Any, sleeping: Sequence[Mapping[str, Any]], file: Path) -> None:
    from studybook import plots, workers

    figure = plots.figure(7.0, 3.5)
    counts = [round(10 ** (i / 20)) for i in range(101)]
    curves = {f"{s:g} s": [workers.efficiency(costs, n, s) for n in counts] for s in (0.1, 1.0, 10.0, 100.0)}
    measured = {
        name: {r["workers"]: r["efficiency"] for r in sleeping if f"{r['seconds']:g} s" == name} for name in curves
    }
    plots.efficiency(figure.add_subplot(), counts, curves, measured, 0.8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Software": None})


def _rounded_down(count: int) -> int:
    """To two digits: a model's third one means nothing."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit


# ---------------------------------------------------------------- check


def compare(committed: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences between two records of one study, number by number within TOLERANCE and verdict by verdict."""
    found = []
    old, new = ({claim["name"]: claim for claim in record["claims"]} for record in (committed, now))
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            found.append(f"{name}: only in the {'committed' if name in old else 'new'} record")
            continue
        if old[name]["verdict"] != new[name]["verdict"]:
            found.append(f"{name}: verdict {old[name]['verdict']}, now {new[name]['verdict']}")
        for number in ("mean", "low", "high", "n"):
            a, b = old[name][number], new[name][number]
            if (a is None) != (b is None) or a is not None and abs(a - b) > max(1e-4, TOLERANCE * abs(a)):
                found.append(f"{name}: {number} {a}, now {b}")
    return found


# ---------------------------------------------------------------- the command


class _Studies(click.ParamType):
    """A study's name, with tab completion."""

    name = "study"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list:
        return [click.shell_completion.CompletionItem(name) for name in studies() if name.startswith(incomplete)]


_FILE = click.Path(exists=True, dir_okay=False)
_TOGETHER = 4  # studies that share workers run at once: each is a kernel of about a gigabyte
_HELP = __doc__.replace("\n\n", "\n\n\b\n")  # click: keep the lines as they are


@click.group(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The `studybook` command; its help is the module's docstring."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))


@main.command("list")
def _list() -> None:
    """What studies there are, with paper, profiles and how long they take."""
    from studybook import sweep

    for study in studies().values():
        paper = study.about["paper"]
        click.echo(f"{study.part}/{click.style(study.name, bold=True)}: {study.about['title']}")
        click.echo(f"    {paper['authors']} ({paper['venue']} {paper['year']})")
        for name in study.profiles:
            profile = study.profile(name)
            click.echo(f"    {name:9} {profile.get('says', '')}, about {sweep.duration(profile.get('seconds', 0))}")


@main.command("run")
@click.argument("names", nargs=-1, type=_Studies(), metavar="[STUDY]...")
@click.option("--all", "everything", is_flag=True, help="Run every study.")
@click.option("--profile", default=QUICK, show_default=True, help="How big: quick, standard or full.")
@click.option(
    "-p", "given", type=(str, str), multiple=True, metavar="NAME VALUE", help="Change a parameter; repeatable."
)
@click.option("--fresh", is_flag=True, help="Measure again what the repository's stored rows no longer fit.")
@click.option("--force", is_flag=True, help="Execute the notebook even if nothing has changed.")
@click.option("--record", is_flag=True, help="Write rows and record to book/results, to be committed.")
@click.option("--drawn", is_flag=True, help="Compute nothing: draw from committed rows, or quick where there are none.")
@click.option("--workers", type=click.IntRange(1), metavar="N", envvar="STUDYBOOK_WORKERS",
    show_envvar=True,
              help="Measure on N Dask workers of this machine; one per GPU where there are GPUs.")  # fmt: skip
@click.option("--scheduler", metavar="ADDRESS", envvar="STUDYBOOK_SCHEDULER",
    show_envvar=True,
              help="Measure on the workers of this Dask scheduler: tcp://HOST:8786, tls:// or its file.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), metavar="N", envvar="STUDYBOOK_THREADS",
    show_envvar=True,
              help="Threads of a case; cores // workers unless given.")  # fmt: skip
@click.option(
    "--share-gpu", is_flag=True, envvar="STUDYBOOK_SHARE_GPU", show_envvar=True, help="Let several cases use one GPU."
)
@click.option("--tls-ca-file", type=_FILE, metavar="PEM", help="For tls://: who signed the cluster's certificates.")
@click.option("--tls-cert", type=_FILE, metavar="PEM", help="For tls://: this machine's certificate.")
@click.option("--tls-key", type=_FILE, metavar="PEM", help="For tls://: its key, if not in the certificate's file.")
def _run(
    names: Sequence[str], everything: bool, profile: str, given: Sequence[tuple[str, str]], fresh: bool, force: bool,
    record: bool, drawn: bool, **places: Any,
) -> None:  # fmt: skip
    """Run studies and write their pages and records."""
    chosen = list(studies().values()) if everything else [find(name) for name in names]
    if not chosen:
        raise Problem("name a study (studybook list shows them), or give --all")
    if record and given:
        raise Problem("--record keeps a profile as it stands; it cannot be combined with -p")
    overrides = dict(given)
    jobs = []
    for study in chosen:  # refuse before anything runs
        typed(study, {**study.profile(profile)["parameters"], **overrides})
        jobs.append(
            (study, QUICK if drawn and not (results_folder(study, profile) / "rows.json").exists() else profile)
        )
    with _ended_kindly(), _measured_on(**places) as on_workers:
        if on_workers and len(jobs) > 1:
            words = [word for name, value in given for word in ("-p", name, value)]
            flags = {"--fresh": fresh, "--force": force, "--record": record}
            failed = _together(jobs, [*words, *(flag for flag, on in flags.items() if on)], drawn)
        else:
            failed = [
                study.name
                for study, use in jobs
                if not _run_one(
                    study, use, overrides, fresh=fresh, record=record, force=force, compute=not drawn or use == QUICK
                )
            ]
    if failed and len(jobs) > 1:
        raise Problem(f"{len(failed)} of {len(chosen)} studies failed: {', '.join(failed)}")
    if failed:
        sys.exit(1)


def _run_one(study: Study, profile: str, overrides: Mapping[str, str], **how: bool) -> bool:
    """Runs one study and says how it went; False if it failed. Ctrl-C ends the command."""
    try:
        done = run_study(study, profile, typed(study, overrides), **how)
    except Problem as problem:
        problem.show()
        return False
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the dead kernel's task would complain at exit
        _say_interrupted(study.name)
        sys.exit(130)
    tally = ", ".join(f"{n} {verdict}" for verdict, n in _tally(done["claims"]).items() if n)
    took = "unchanged" if done.get("unchanged") else f"{done['seconds']:.0f} s"
    stale = f", stale ({', '.join(done['stale'])})" if done["stale"] else ""
    click.echo(f"{study.name} [{profile}]: {tally} ({took}{stale})")
    return True


def _say_interrupted(what: str) -> None:
    click.echo(f"\n{what}: interrupted; finished cases are stored, the same command goes on from there", err=True)


@contextlib.contextmanager
def _ended_kindly() -> Iterator[None]:
    """Ctrl-C, and the SIGTERM with which batch systems end a job, end the command with one sentence and code 130."""
    earlier = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _say_interrupted("studybook")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextlib.contextmanager
def _measured_on(
    workers: int | None, scheduler: str | None, threads: int | None, share_gpu: bool, tls_ca_file: str | None,
    tls_cert: str | None, tls_key: str | None,
) -> Iterator[bool]:  # fmt: skip
    """Lets kernels that start inside measure on the workers asked for, which are checked first; gives whether any are.

    Workers of this machine live as long as this block.
    """
    if workers and scheduler:
        raise Problem(
            "--workers (STUDYBOOK_WORKERS) starts workers here and --scheduler (STUDYBOOK_SCHEDULER) uses those of "
            "another: give one of the two"
        )
    environment = {"STUDYBOOK_WORKERS": "", "STUDYBOOK_THREADS": str(threads or "")}
    environment |= {"STUDYBOOK_SHARE_GPU": "1"} if share_gpu else {}
    tls = {"CA_FILE": tls_ca_file, "CLIENT__CERT": tls_cert, "CLIENT__KEY": tls_key or tls_cert}
    environment |= {f"DASK_DISTRIBUTED__COMM__TLS__{name}": file for name, file in tls.items() if file}
    if not (workers or scheduler):
        environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        with _environment(environment):
            yield False
        return
    from studybook import workers as dask

    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(environment))
        try:
            if workers:
                click.echo(f"starting {workers} worker{'s' * (workers > 1)}", err=True)
                scheduler = stack.enter_context(dask.local(workers, threads, share_gpu))
            stack.enter_context(_environment({"STUDYBOOK_SCHEDULER": scheduler}))
            with dask.team(lambda words: click.echo(words, err=True)) as team:
                if workers:
                    stack.enter_context(_environment({"STUDYBOOK_THREADS": str(team.threads)}))
                if not os.environ.get("STUDYBOOK_PROGRESS"):
                    click.echo(team.describe(), err=True)
        except (dask.Unfit, dask.Lost, ConnectionError, ImportError, ValueError) as error:
            raise Problem(str(error)) from None
        yield True


def _together(jobs: Sequence[tuple[Study, str]], words: Sequence[str], drawn: bool) -> list[str]:
    """Runs several studies at a time, the longest first, as commands of their own; gives those that failed.

    Their cases share the workers, so none of these stands idle while a study starts or draws its figures.
    """
    from studybook import sweep

    todo = sorted(jobs, key=lambda job: -job[0].profile(job[1]).get("seconds", 0))
    running: dict[str, tuple[subprocess.Popen, Path, str]] = {}
    failed, bar = [], sweep.Bar(f"{len(jobs)} studies")
    ended = {"done": 0, "total": 0, "failed": 0}
    with tempfile.TemporaryDirectory(prefix="studybook-") as scratch, contextlib.closing(bar):
        try:
            while todo or running:
                while todo and len(running) < _TOGETHER:
                    study, use = todo.pop(0)
                    file, log = Path(scratch) / f"{study.name}.json", Path(scratch) / f"{study.name}.log"
                    command = [sys.executable, "-m", "studybook.runner", "run", study.name, "--profile", use, *words]
                    with log.open("w") as out:
                        process = subprocess.Popen(
                            [*command, *["--drawn"] * (drawn and use != QUICK)], cwd=root(), stdout=out,
                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                            env={**os.environ, "STUDYBOOK_PROGRESS": str(file), "STUDYBOOK_ROOT": str(root())},
                        )  # fmt: skip
                    running[study.name] = (process, file, log)
                time.sleep(0.2)
                states = {name: _state(file) for name, (_, file, _) in running.items()}
                for name, (process, _, log) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[name]
                    for key in ended:
                        ended[key] += states[name].get(key, 0)
                    bar.clear()
                    click.echo(log.read_text().strip())
                    failed += [name] if process.returncode else []
                now = [states[name] for name in running if states[name]]
                left = [state["left"] for state in now if state["left"]]
                bar.show(
                    **{key: ended[key] + sum(state[key] for state in now) for key in ended},
                    left=max(left, default=None), words=next((s["words"] for s in now), ""),
                )  # fmt: skip
        except KeyboardInterrupt:
            for process, _, _ in running.values():
                process.send_signal(signal.SIGINT)
            for process, _, _ in running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15)
                process.kill()
            _say_interrupted(", ".join(running))
            sys.exit(130)
    return failed


def _state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {**state, "done": state["done"] + state["before"], "total": state["total"] + state["before"]}


@main.command("build")
def _build() -> None:
    """Build the book's pages from the studies that were run."""
    click.echo(f"the book is at {_relative(build_book())}")


@main.command("status")
def _status() -> None:
    """Verdicts, age and machine of every study and profile, fresh or stale."""
    known = {(record["study"], record["profile"]): record for record in records()}
    for study in studies().values():
        for profile in study.profiles:
            record = known.get((study.name, profile))
            if record is None:
                click.echo(f"{study.name:24} {profile:9} not run")
                continue
            tally = ", ".join(f"{n} {verdict}" for verdict, n in _tally(record["claims"]).items() if n)
            days = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(record["started"])).days
            devices = sorted({json.loads(m)["device"] for s in record["sweeps"] for m in s["measured"]})
            state = moved_on(record)
            freshness = f"stale ({', '.join(state)})" if state else "fresh"
            click.echo(f"{study.name:24} {profile:9} {tally}; {days} days old; {', '.join(devices)}; {freshness}")


@main.command("check")
@click.argument("name", type=_Studies(), metavar="STUDY")
def _check(name: str) -> None:
    """Compute a study's quick profile anew and compare it with the committed record."""
    study = find(name)
    file = results_folder(study, QUICK) / "run.json"
    if not file.exists():
        raise Problem(f"{name} has no committed quick record: studybook run {name} --record writes it")
    committed = _read_record(file)
    threads = str(
        committed["machine"]["cores"]
    )  # another number of threads rounds differently, and training amplifies it
    here = {"OMP_NUM_THREADS": threads, "STUDYBOOK_SCHEDULER": "", "STUDYBOOK_WORKERS": "", "STUDYBOOK_THREADS": ""}
    with tempfile.TemporaryDirectory(prefix="studybook-") as empty, _environment({"STUDYBOOK_CACHE": empty, **here}):
        now = run_study(study, QUICK, {}, force=True)
    if found := compare(committed, now):
        listed = "\n".join(f"  {line}" for line in found)
        there = committed["machine"]["processor"]
        raise Problem(
            f"{name} differs from its committed quick record (tolerance {TOLERANCE:.1%}; that was made on {there}, "
            f"this is {now['machine']['processor']}):\n{listed}"
        )
    click.echo(f"{name}: {len(now['claims'])} claims agree with the committed record within {TOLERANCE:.1%}")


if __name__ == "__main__":
    main()
