# make book: environment, every study at its quick profile, the book. make test: environment, all tests.
# Each target does only what is missing; the second run is fast.
PYTHON ?= python3
PROFILE ?= quick
NOTEBOOKS ?= notebooks
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := --extra data --extra dev --extra cluster --extra course --extra bench
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

.PHONY: book test bench lab pdf archive lock clean help

help:
	@echo "make book [PROFILE=standard] [WORKERS=4]   install, run every study at the quick profile, build the book"
	@echo "make test [JOBS=4]             install, run all tests, in two processes or more"
	@echo "make bench [ARGS='neighbors --no-scaling']   time the library against its peers (benchmarks/README.md): about an hour"
	@echo "make lab [NOTEBOOKS=folder] [ARGS='--no-browser --port=8890']   JupyterLab on the notebooks"
	@echo "make lock                      renew requirements.lock (environment.yml installs it too)"
	@echo "make pdf, make archive         the built book as one PDF (needs Chromium), or as a ZIP file"
	@echo "make clean                     remove what was built (not the environment, not stored rows)"

$(BIN)/uv:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; set PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(READY): requirements.lock pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

book: $(READY)
	$(BIN)/studybook run --all --profile $(PROFILE) --drawn $(if $(WORKERS),--workers $(WORKERS))
	$(BIN)/studybook build

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --no-loadscope-reorder

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir="$(NOTEBOOKS)" $(ARGS)

pdf: book
	$(BIN)/studybook build --pdf

archive: book
	$(BIN)/studybook build --archive

lock: | $(BIN)/uv
	$(BIN)/uv pip compile pyproject.toml $(EXTRAS) --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
		--no-header --upgrade --quiet --output-file requirements.lock

clean:
	rm -rf book/_build book/_generated book/_extra book/_vendor book/studies .studybook build
