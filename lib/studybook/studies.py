"""What studies there are: notebooks with parameters and claims, the YAML files beside them, where their pages go."""

import ast
import contextlib
import copy
import difflib
import functools
import io
import json
import math
import os
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

QUICK = "quick"


class Problem(click.ClickException):
    """An error that the user can mend: one sentence, exit code 1."""


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


def known() -> dict[str, Study]:
    """Every study of the project by name, sorted by part and name."""
    found: dict[str, Study] = {}
    for source in sorted((root() / "notebooks").glob("*/*.ipynb")):
        if source.stem in found:
            raise Problem(f"two studies are called {source.stem}: {found[source.stem].source} and {source}")
        found[source.stem] = Study(source, _about(source.with_suffix(".yml")))
    return found


def find(name: str) -> Study:
    """The study called `name`; Problem, with the nearest name, if there is none."""
    there = known()
    if name not in there:
        raise Problem(f"no study is called {name!r}{_nearest(name, there)}")
    return there[name]


class Parameter(NamedTuple):
    """One line of a notebook's parameters cell: `NAME = default  # help`."""

    name: str
    default: Any
    help: str


def parameter_lines(study: Study) -> list[Parameter]:
    """The lines of the notebook's parameters cell; Problem if it holds anything else."""
    cells = [c for c in notebook(study.source)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1 or cells[0]["cell_type"] != "code":
        raise Problem(f"{study.source}: exactly one code cell must carry the tag 'parameters', found {len(cells)}")
    source, found = cells[0]["source"], []
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                with contextlib.suppress(ValueError):
                    found.append(Parameter(name, ast.literal_eval(value), comments.get(node.lineno, "")))
                    continue
        raise Problem(
            f"{study.source}: the parameters cell must hold one plain assignment a line, such as SEEDS = 10; "
            f"line {node.lineno} is no such line"
        )
    return found


def parameters(study: Study) -> dict[str, Any]:
    """The defaults in the notebook's parameters cell."""
    return {line.name: line.default for line in parameter_lines(study)}


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
    if not file.exists():
        raise Problem(f"{file} is missing: every notebook has a YAML file beside it with its paper and profiles")
    return copy.deepcopy(_checked_about(file, file.read_text()))


@functools.lru_cache(maxsize=1024)
def _checked_about(file: Path, text: str) -> dict[str, Any]:
    import yaml

    try:
        about = yaml.safe_load(text)
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


def _nearest(name: str, among: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in among], 1, 0.5)
    return "".join(f"; did you mean {k!r}?" for k in among if close and k.lower() == close[0])


# ---------------------------------------------------------------- notebooks


def notebook(file: Path) -> dict:
    """A notebook with the source of each cell as one text; Problem if it is no notebook or not plain Python."""
    try:
        notebook = json.loads(file.read_text(encoding="utf-8"))
        for i, cell in enumerate(notebook["cells"]):
            cell["source"] = "".join(cell["source"])
            if cell["cell_type"] == "code":
                _check_syntax(file, i, cell["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(f"{file} is no readable notebook ({error})") from None
    return notebook


@functools.lru_cache(maxsize=10_000)
@functools.lru_cache(maxsize=1 << 14)
def parsed(source: str) -> ast.Module:
    """The syntax tree of a cell's code, which a command looks at several times; it must not be changed."""
    return ast.parse(source)


def _check_syntax(file: Path, cell: int, source: str) -> None:
    try:
        parsed(source)
    except SyntaxError as error:
        raise Problem(f"{file}: cell {cell}, line {error.lineno} is not plain Python ({error.msg})") from None


def declared_claims(cells: Sequence[dict]) -> list[str]:
    """Names of the claims that a notebook writes down, in order."""
    return [name for _, name in _calls(cells, "Claim")]


def _calls(cells: Sequence[dict], function: str) -> list[tuple[int, str]]:
    """Calls of `*.function("name", ...)` in a notebook: index of the cell, and the name."""
    found = []
    for i, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(parsed("".join(cell["source"]))):
            match node:
                case ast.Call(func=ast.Attribute(attr=attr), args=[ast.Constant(value=str(name)), *_]) if (
                    attr == function
                ):
                    found.append((i, node.lineno, name))
    return [(i, name) for i, _, name in sorted(found)]


def claims(cells: Sequence[dict]) -> list[dict]:
    """The verdicts that an executed notebook shows, in order."""
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    return [o["metadata"]["studybook"] for o in outputs if "studybook" in o.get("metadata", {})]


def check_page(study: Study, executed: dict, judged_claims: Sequence[Mapping]) -> None:
    """A page without errors on which every declared claim has a verdict, or Problem."""
    declared = declared_claims(executed["cells"])
    judged = [claim["name"] for claim in judged_claims]
    if missing := sorted(set(declared) - set(judged)):
        raise Problem(f"{study.name}: no verdict on {', '.join(missing)}; every claim must be judged")
    if len(judged) != len(set(judged)):
        raise Problem(f"{study.name}: a claim was judged twice: {', '.join(sorted(judged))}")
    for i, cell in enumerate(executed["cells"]):
        if any(output.get("output_type") == "error" for output in cell.get("outputs", [])):
            raise Problem(f"{study.name}: cell {i} of the executed page holds an error")


# ---------------------------------------------------------------- files


def results_folder(study: Study, profile: str) -> Path:
    """Where the committed rows and record of a profile live."""
    return root() / "book" / "results" / study.name / profile


def page(study: Study) -> Path:
    """The executed copy that the last run of a study wrote; its record is the JSON file beside it."""
    return root() / "book" / "studies" / study.part / f"{study.name}.ipynb"


def failure(study: Study) -> Path:
    """Where the last run of a study left its log if it failed; its first line says why in one sentence."""
    return root() / ".studybook" / "failed" / f"{study.name}.log"


def read_record(file: Path) -> dict[str, Any]:
    """A run record; Problem if it is damaged."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise Problem(f"{file} is damaged ({error}); delete it and run the study again") from None


def write(file: Path, text: str) -> None:
    """Written whole or not at all; an unchanged file keeps its time, so that the book need not read it again."""
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
