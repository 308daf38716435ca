"""The shape of the project: which module may import which, what the lock holds, what an import costs."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIBRARY = ROOT / "lib" / "studybook"
ORDER = [
    "data", "published", "synthetic", "corruptions", "models", "ensemble", "features", "probes", "metrics",
    "calibration", "stats", "explanations", "kernels", "views", "selfsup", "plots", "ledger", "workers", "sweep",
    "studies", "provenance", "figures", "pages", "performance", "slides", "book", "rendering", "fence", "course",
    "grading", "preload", "runner",
]  # fmt: skip
MODULES = sorted(file.stem for file in LIBRARY.glob("*.py") if file.stem != "__init__")


def imports(name):
    """Everything that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse((LIBRARY / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inner(name):
    return {part.split(".")[1] for part in imports(name) if part.startswith("studybook.")} - {"__version__"}


def test_every_module_has_its_place_in_the_order():
    assert set(MODULES) <= set(ORDER)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_modules_above_it(name):
    assert inner(name) <= set(ORDER[: ORDER.index(name)])


def test_only_plots_draws_and_only_runner_and_book_start_processes():
    drawing = {n for n in MODULES for i in imports(n) if i.split(".")[0] in ("matplotlib", "seaborn")}
    starting = {n for n in MODULES for i in imports(n) if i.split(".")[0] in ("subprocess", "papermill")}
    assert drawing == {"plots"}
    assert starting == {"book", "runner"}


def test_importing_modules_loads_nothing_heavy_but_torch():
    light = [name for name in MODULES if name not in ("plots", "grading")]  # nbgrader loads IPython
    heavy = {"matplotlib", "seaborn", "pandas", "sklearn", "scipy", "timm", "papermill", "datasets", "IPython"}
    heavy |= {"pyarrow", "captum", "skimage"}
    code = f"""
import importlib, sys, torch
for name in {light}:
    before = set(sys.modules)
    importlib.import_module("studybook." + name)
    print(name, *{{module.partition(".")[0] for module in set(sys.modules) - before}})
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name: set(rest) for name, *rest in map(str.split, said.splitlines())}
    assert set(loaded) == set(light)
    assert {name: found & heavy for name, found in loaded.items() if found & heavy} == {}


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_says_what_it_does(name):
    tree = ast.parse((LIBRARY / f"{name}.py").read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node.name != "main":
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


# ---------------------------------------------------------------- packaging


UNLOCKED = {"solar"}  # data under a license that not everybody can accept


@pytest.fixture(scope="module")
def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: words for name, words in project["optional-dependencies"].items() if name not in UNLOCKED}
    words = [*project["dependencies"], *(w for words in extras.values() for w in words)]
    return {canonicalize_name(r.name): r for r in map(Requirement, words)}


@pytest.fixture(scope="module")
def lock():
    return (ROOT / "requirements.lock").read_text()


def test_the_lock_holds_what_pyproject_asks_for(declared, lock):
    pins = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.M):
        pins.setdefault(name, []).append(version)
    for name, requirement in declared.items():
        assert name in pins, f"{name} is not in requirements.lock: make lock"
        assert any(requirement.specifier.contains(v) for v in pins[name]), (
            f"{name}: the lock has {pins[name]}: make lock"
        )


def test_the_lock_was_made_for_what_pyproject_asks_for(declared, lock):
    blocks = re.split(r"^(?=[a-z0-9-]+==)", lock, flags=re.M)[1:]
    direct = {b.split("==")[0] for b in blocks if "studybook (pyproject.toml)" in b}
    assert direct == set(declared), "requirements.lock and pyproject.toml disagree: make lock"


def test_the_makefile_locks_every_extra_but_those_left_out():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert set(re.findall(r"--extra (\w+)", (ROOT / "Makefile").read_text())) == extras - UNLOCKED


def test_every_pin_has_hashes_and_the_lock_names_no_address(lock):
    blocks = re.split(r"^(?=[a-z0-9-]+==)", lock, flags=re.M)[1:]
    assert len(blocks) > 100
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in lock


def test_conda_gets_the_same_lock_and_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["--requirement requirements.lock"]
    assert f"python{project['requires-python']}" in environment["dependencies"]


def test_citation_and_package_agree_on_the_version():
    from studybook import __version__

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_readmes_commands_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z]+)", readme, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    assert "make test" in (ROOT / ".ci" / "run").read_text()
