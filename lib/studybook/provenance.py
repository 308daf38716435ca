"""What a page was made from, as hashes, and whether any of it has changed since."""

import ast
import contextlib
import functools
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studybook.studies import Study, find, notebook, parameters, results_folder, root, write

RUNS = ("plots", "workers", "sweep", "runner")  # modules that change how an executed page looks and none of its numbers
_WRITES = ("studies", "provenance", "pages", "book", "rendering")  # modules that no number and no executed page needs
_LOADERS = (  # for which the data's fingerprint stands
    ("data", "load"), ("data", "pictures"), ("data", "splits"),
    ("published", "files"), ("published", "table"), ("published", "tensor"),
)  # fmt: skip


def inputs(
    study: Study, profile: str, given: Mapping[str, Any], committed: Path, fresh: bool, device: str
) -> dict[str, Any]:
    """Hashes of everything a page is made from."""
    rows = b"".join(f.read_bytes() for f in (committed / "rows.json", committed / "rows.npz") if f.exists())
    return {
        "source": _digest(study.source.read_bytes()),
        "about": _digest(study.source.with_suffix(".yml").read_bytes()),
        **_code(study),
        "page": _digest(b"".join((Path(__file__).parent / f"{m}.py").read_bytes() for m in RUNS)),
        "rows": _digest(rows),
        "profile": profile,
        "given": dict(given),
        "versions": versions(),
        "device": device,
        "fresh": fresh,
    }


_Files = tuple[tuple[Path, int, int], ...]  # with time of change and size


def _code(study: Study) -> dict[str, str]:
    """Hashes of a notebook's code and of the library code that it reaches.

    They are kept in `.studybook` by the notebook and the whole library, whose reading takes seconds for all studies.
    """
    files = _files()
    key, library = _digest("\n".join(_code_cells(study.source)).encode()), _content(files)
    store = root() / ".studybook" / "code.json"
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # none yet, or one that was damaged
        kept = json.loads(store.read_text(encoding="utf-8"))
    if kept.get("library") != library:
        kept = {"library": library, "found": {}}
    if key not in kept["found"]:
        code = "\n".join(_code_cells(study.source))
        kept["found"][key] = {
            "notebook": _digest(_bare_code(code).encode()), "library": _digest(_library(study).encode())
        }  # fmt: skip
        with contextlib.suppress(OSError):  # a project that cannot be written to is only slower
            write(store, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    return kept["found"][key]


def _files() -> _Files:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@functools.lru_cache(maxsize=2)
def _content(files: _Files) -> str:
    """A hash of the library and of the Python that reads it."""
    parts = [platform.python_version().encode(), *(hashlib.sha256(file.read_bytes()).digest() for file, *_ in files)]
    return _digest(b"".join(parts))


def _library(study: Study) -> str:
    """The library code that a notebook reaches, definition by definition, without comments and docstrings.

    Modules that only draw or store are left out, and so is the loading of data, for which the fingerprint stands: a
    page's numbers do not depend on them.
    """
    return _library_of("\n".join(_code_cells(study.source)), _files())


@functools.lru_cache(maxsize=512)  # a study's profiles share it
def _library_of(code: str, files: _Files) -> str:
    source, library = ast.parse(code), _parsed_library(files)
    todo, seen = _reached(source, _imported(source), set()), {}
    while todo:
        module, name = todo.pop()
        known = f"{module}.{name}" in seen or not library.defines(module, name)
        if known or module in (*RUNS, *_WRITES) or (module, name) in _LOADERS:
            continue
        seen[f"{module}.{name}"], reached = library.definition(module, name)
        todo |= reached
    return json.dumps(seen, sort_keys=True)


class _Parsed:
    """The library's modules, read once: the definitions at their top, and what each of them reaches."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.modules = {file.stem: ast.parse(file.read_text()) for file in files}
        self.named = {name: _named(tree) for name, tree in self.modules.items()}
        self.imported: dict[str, dict[str, tuple[str, str | None]]] = {}
        self.found: dict[tuple[str, str], tuple[str, set[tuple[str, str]]]] = {}

    def defines(self, module: str, name: str) -> bool:
        return name in self.named.get(module, {})

    def definition(self, module: str, name: str) -> tuple[str, set[tuple[str, str]]]:
        """Its bare code, and the definitions that it mentions."""
        if module not in self.imported:
            self.imported[module] = _imported(self.modules[module])
        if (module, name) not in self.found:
            node, own = self.named[module][name], {(module, other) for other in self.named[module]}
            self.found[module, name] = _bare_code(ast.unparse(node)), _reached(node, self.imported[module], own)
        return self.found[module, name]


@functools.lru_cache(maxsize=2)
def _parsed_library(files: _Files) -> _Parsed:
    return _Parsed([file for file, *_ in files])


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


@functools.lru_cache(maxsize=256)
def _bare_code(source: str) -> str:
    from studybook import sweep

    return sweep.bare(source)


def _code_cells(file: Path) -> list[str]:
    return [cell["source"] for cell in notebook(file)["cells"] if cell["cell_type"] == "code"]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of Python, the library and the packages that numbers depend on."""
    from studybook import __version__, workers

    return {"python": platform.python_version(), "studybook": __version__, **workers.packages()}


def device() -> str:
    """The kind of device that cases are measured on, here or on workers."""
    return _device_at(os.environ.get("STUDYBOOK_SCHEDULER", ""), os.environ.get("STUDYBOOK_DEVICE", ""))


@functools.cache
def _device_at(scheduler: str, asked: str) -> str:
    from studybook import workers

    with workers.team() as team:
        return team.device if team else workers.device_kind()


def data_moved(record: Mapping[str, Any]) -> bool:
    """Whether a set that is here has changed since the record; a set that is not here cannot tell."""
    from studybook import published

    for one in record["sweeps"]:
        for name, mark in (one["data"] or {}).items():
            with contextlib.suppress(FileNotFoundError):
                if published.mark(name) != mark:
                    return True
    return False


def moved_on(record: Mapping[str, Any]) -> list[str]:
    """What has changed since a record was written: reasons to call it stale."""
    study = find(record["study"])
    reasons = set(record["stale"])
    now = inputs(study, record["profile"], {}, results_folder(study, record["profile"]), False, "")
    for part in ("notebook", "library"):
        if now[part] != record["inputs"][part]:
            reasons.add(part)
    if record["parameters"] != {**parameters(study), **study.profile(record["profile"])["parameters"]}:
        reasons.add("parameters")
    return sorted(reasons)
